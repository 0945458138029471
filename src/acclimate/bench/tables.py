"""Tables of a bench's records, beside the figures that the papers print."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from acclimate.bench import papers
from acclimate.bench.figures import FEWEST, NOTHING, Difference, Figure, Number, average, difference, figure
from acclimate.bench.papers import Published
from acclimate.bench.records import METRICS, BenchRecord, Results, Trained
from acclimate.errors import OptionError
from acclimate.methods import options as method_options
from acclimate.methods import registry

Cell: TypeAlias = str | Figure | Number

HINDSIGHT = "Rows are in the order of what the target's labels say: that is hindsight, not a choice."


@dataclass
class Sheet:
    """A table to show.

    Attributes:
        title: What it is of.
        headings: Of its columns.
        rows: Cells, the first of each its name; those that are text say what the row is of.
        notes: Sentences below it.
    """

    title: str
    headings: list[str]
    rows: list[list[Cell]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def as_dict(sheet: Sheet) -> dict[str, Any]:
    """For JSON."""
    rows = [[cell if isinstance(cell, str) else cell._asdict() for cell in row] for row in sheet.rows]
    return {"title": sheet.title, "headings": sheet.headings, "rows": rows, "notes": sheet.notes}


def sheets(
    records: Sequence[BenchRecord],
    *,
    metric: str | None = None,
    published: str | None = None,
    baseline: str | None = None,
    compare: bool = False,
    costs: Mapping[str, float] | None = None,
) -> list[Sheet]:
    """The tables of a bench.

    Args:
        records: Of one or several benches.
        metric: "accuracy", "mean_per_class", "both" or "domain_error"; None takes what the benchmark reports, and both
            where the literature reports the mean over the classes.
        published: The paper's table to put beside.
        baseline: The row that every other is compared with; None takes source-only, if there is one.
        compare: Sort the rows by what was measured, in place of the grid's order.
        costs: What the training of each row costs relative to source-only, for a column of it.

    Raises:
        OptionError: Something is unknown, or does not belong to these records.
    """
    results = Results(records)
    table = papers.load(published) if published else None
    if table is not None:
        _check_published(table, results)
    if metric is None and table is not None and table.metric == "domain_error":
        metric = "domain_error"
    if metric == "domain_error":
        return [_domain_errors(results, table)]
    metric = metric or ("both" if results.metrics[0] == "mean_per_class" else "accuracy")
    names = tuple(METRICS) if metric == "both" else (metric,)
    if compare:
        _in_order_of(results, names[-1])
    if (table is not None and table.of_classes) or (len(results.tasks) == 1 and metric == "both"):
        shown = [_by_class(results, table)]
    else:
        shown = [_by_task(results, name, table) for name in names]
    differences = [sheet for name in names if (sheet := _differences(results, name, baseline)).rows]
    for sheet in shown:
        _mark_best(sheet)
        if compare and results.classes:
            sheet.notes.append(HINDSIGHT)
    if costs:
        for sheet in shown:
            _add_costs(sheet, costs)
    return shown + differences


def _in_order_of(results: Results, metric: str) -> None:
    """Sort the rows, that with the largest mean over the tasks first; those that lack a run after those that do not."""

    def place(row: str) -> tuple[bool, float]:
        values = results.percent(row, metric)
        known = values[~np.isnan(values)]
        return known.size == values.size, float(known.mean()) if known.size else -math.inf

    results.rows = {row: results.rows[row] for row in sorted(results.rows, key=place, reverse=True)}


def _mark_best(sheet: Sheet) -> None:
    """Mark the largest mean of each column, as it is printed, of the rows that are no paper's and lack no run."""
    ours = [row for row in sheet.rows if not str(row[0]).endswith(", published")]
    for column in range(1, len(sheet.headings)):
        means = [(row, _printed(row[column])) for row in ours]
        known = [(row, mean) for row, mean in means if mean is not None]
        most = max((mean for _, mean in known), default=0.0)
        for row, mean in known:
            cell = row[column]
            if isinstance(cell, Figure) and len(known) > 1:
                row[column] = cell._replace(best=mean == most)


def _printed(cell: Cell) -> float | None:
    """The mean of a cell that lacks no run, with the decimals that are shown: rows that look alike are equally good."""
    if isinstance(cell, Figure) and cell.mean is not None and not cell.missing:
        return round(cell.mean, cell.digits)
    return None


def _add_costs(sheet: Sheet, costs: Mapping[str, float]) -> None:
    """A column of what training costs."""
    sheet.headings.append("cost")
    for row in sheet.rows:
        row.append(as_cost(costs.get(str(row[0]))))
    sheet.notes.append(ON_COST)


ON_COST = "cost: the time of training relative to source-only, the median over tasks and seeds."


def as_cost(ratio: float | None) -> Number:
    """What training costs relative to source-only."""
    if ratio is None:
        return NOTHING
    return Number(f"{ratio:.1f}x" if ratio < 10 else f"{ratio:.0f}x", {"": ratio})


def _check_published(table: papers.Table, results: Results) -> None:
    if results.benchmarks - {None, table.benchmark}:
        raise OptionError(
            f"{table.name} is of {table.benchmark}, and these records are of "
            f"{', '.join(sorted(str(name) for name in results.benchmarks))}: compare like with like."
        )
    columns = results.classes if table.of_classes else ["-".join(task) for task in results.tasks]
    if columns and not set(columns) & set(table.columns):
        raise OptionError(
            f"{table.name} has the columns {', '.join(table.columns)}, and these records none of them "
            f"({', '.join(columns[:6])}): compare like with like."
        )


def _by_task(results: Results, metric: str, table: papers.Table | None) -> Sheet:
    sheet = Sheet(f"{METRICS[metric].capitalize()}, at the last step", ["method", *_task_headings(results)])
    for name in results.rows:
        values, unlabelled = results.percent(name, metric), results.unlabelled(name)
        cells = [figure(v, unlabelled=int(u.sum())) for v, u in zip(values, unlabelled, strict=True)]
        sheet.rows.append([name, *_with_average(cells, average(values, unlabelled=int(unlabelled.sum())))])
        for row in _rows_of(table, results.rows[name], metric=metric):
            known = _by_column(table, row)
            printed = [known.get("-".join(task), Figure(None)) for task in results.tasks]
            sheet.rows.append([f"{name}, published", *_with_average(printed, Figure(row.average))])
    sheet.notes = [*_notes(results), *_sources(table, sheet)]
    return sheet


def _task_headings(results: Results) -> list[str]:
    """A heading a task, and one for the average where there are several."""
    headings = ["→".join(task) for task in results.tasks]
    if len(headings) > 1:
        headings.append("Avg")
    return headings


def _with_average(of_tasks: list[Figure], mean: Figure) -> list[Figure]:
    """The cells below `_task_headings`."""
    if len(of_tasks) > 1:
        return [*of_tasks, mean]
    return of_tasks


def _by_class(results: Results, table: papers.Table | None) -> Sheet:
    """A column a class, and both metrics, each by its name."""
    sheet = Sheet("Accuracy of each class in %, at the last step", ["method", *results.classes, "mean", "overall"])
    several = len(results.tasks) > 1
    for name in results.rows:
        for i, task in enumerate(results.tasks):
            label = f"{name}, {'→'.join(task)}" if several else name
            cells = [figure(results.of_class(name, c)[i]) for c in results.classes]
            both = [figure(results.percent(name, metric)[i]) for metric in ("mean_per_class", "accuracy")]
            sheet.rows.append([label, *cells, *both])
        for row in _rows_of(table, results.rows[name], metric="mean_per_class"):
            known = _by_column(table, row)
            classes = [known.get(c, Figure(None)) for c in results.classes]
            sheet.rows.append([f"{name}, published", *classes, *_both_averages(table, row)])
    sheet.notes = ["mean: over the classes, each counting alike. overall: over the images.", *_notes(results)]
    if any(isinstance(cell, Figure) and cell.computed for row in sheet.rows for cell in row):
        sheet.notes.append("*: not printed, but computed from the printed classes and their numbers of images.")
    sheet.notes += _sources(table, sheet)
    return sheet


def _both_averages(table: papers.Table | None, row: Published) -> list[Figure]:
    """A published row's mean over the classes and its overall accuracy: one is printed, the other follows."""
    if table is None:
        return []
    if row.average_is == "accuracy":
        return [Figure(table.mean(row), computed=True), Figure(row.average)]
    return [Figure(row.average), Figure(table.overall(row), computed=True)]


def _domain_errors(results: Results, table: papers.Table | None) -> Sheet:
    headings = ["method", "domain", "feature", *_task_headings(results)]
    sheet = Sheet("Domain error (WEMNet, equation 12), at the last step", headings)
    for name in results.rows:
        features = dict.fromkeys(
            f for (row, *_), record in results.done.items() if row == name for f in record.domain_error
        )
        for domain in ("source", "target"):
            for feature in features:
                values = results.values(name, _domain_error_of(feature, domain))
                shown = {"f": "with f_d", "f_hat_d": "without f_d"}.get(feature) if "f_hat_d" in features else None
                cells = _with_average([figure(v, 2) for v in values], average(values, 2))
                sheet.rows.append([name, domain, shown or feature, *cells])
                for row in _rows_of(table, results.rows[name], metric="domain_error"):
                    if (row.domain, row.feature) == (domain, feature):
                        known = _by_column(table, row, 2)
                        printed = [known.get("-".join(task), Figure(None)) for task in results.tasks]
                        cells = _with_average(printed, Figure(row.average, digits=2))
                        sheet.rows.append([f"{name}, published", domain, shown or feature, *cells])
    sheet.notes = [
        "0: the discriminator cannot tell the domains apart; 50: it is certain of every image.",
        *_notes(results),
        *_sources(table, sheet),
    ]
    return sheet


def _domain_error_of(feature: str, domain: str) -> Callable[[BenchRecord], float | None]:
    """What finds the domain error of a feature on the images of a domain."""

    def found(record: BenchRecord) -> float | None:
        errors = record.domain_error.get(feature)
        return {"source": errors.source, "target": errors.target}[domain] if errors is not None else None

    return found


def _differences(results: Results, metric: str, baseline: str | None) -> Sheet:
    """Every row minus the unadapted one, and minus the row that it builds on."""
    headings = ["this", "minus this", "mean difference", "95 % interval", "better in", "pairs missing"]
    sheet = Sheet(f"Paired differences of the {METRICS[metric].removesuffix(' in %')}, in points", headings)
    common = _baseline(results, baseline)
    for name, record in results.rows.items():
        for other in dict.fromkeys((common, *record.baselines)):
            if other in results.rows and other != name:
                found = difference(results.percent(name, metric), results.percent(other, metric))
                if found is not None:
                    sheet.rows.append([name, other, *_told(found)])
    sheet.notes.append(f"Runs are paired by task and seed. {on_interval(results)}")
    return sheet


def on_interval(results: Results) -> str:
    """What the interval of a difference is over, and why there is none over two."""
    several = len(results.tasks) > 1
    units = len(results.tasks) if several else len(results.seeds)
    if units < FEWEST:
        return f"{units} {'tasks' if several else 'seeds' if units > 1 else 'seed'}: too few for an interval."
    if several:
        return f"The 95 % interval is Student's t over the {units} tasks, each counted with its mean over the seeds."
    return f"The 95 % interval is Student's t over the {units} seeds of the one task, and tells nothing of other tasks."


def _told(found: Difference) -> list[Cell]:
    interval = NOTHING
    if found.half is not None:
        low, high = found.mean - found.half, found.mean + found.half
        interval = Number(f"{low:+.1f} to {high:+.1f}", {"low": low, "high": high})
    return [
        Number(f"{found.mean:+.1f}", {"": found.mean}),
        interval,
        Number(f"{found.better} of {found.pairs}", {"": found.better, "of": found.pairs}),
        Number(str(found.missing), {"": found.missing}),
    ]


def _baseline(results: Results, asked: str | None) -> str | None:
    if asked is None:
        return next((row for row, record in results.rows.items() if record.method == registry.BASELINE), None)
    for row in results.rows:
        if registry.plain(row) == registry.plain(asked):
            return row
    raise OptionError(f"There is no row {asked!r} to compare with; there are {', '.join(results.rows)}.")


def _rows_of(table: papers.Table | None, record: BenchRecord, *, metric: str) -> list[Published]:
    """The published rows that a row reproduces: those of its name, else of its method and options."""
    if table is None or table.metric != metric:
        return []
    named = [row for row in table.rows if registry.plain(row.name) == registry.plain(record.row)]
    return named or [row for row in table.rows if _resolves(row.name, record)]


def _resolves(name: str, record: BenchRecord) -> bool:
    try:
        method, options = registry.row(name)
    except OptionError:
        return False
    return method == record.method and _set(method, options) == _set(method, record.options)


def _set(method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not the defaults."""
    known = method_options.options(method)
    return {name: value for name, value in options.items() if name not in known or value != known[name].default}


def _by_column(table: papers.Table | None, row: Published, digits: int = 1) -> dict[str, Figure]:
    if table is None:
        return {}
    spread = row.spread or (None,) * len(row.figures)
    figures = [Figure(value, std, digits=digits) for value, std in zip(row.figures, spread, strict=True)]
    return dict(zip(table.columns, figures, strict=True))


def _notes(results: Results) -> Iterator[str]:
    """How the runs were made, and how many are not there."""
    seeds = ", ".join(map(str, results.seeds))
    if len(results.seeds) > 1:
        yield f"Ours: mean ± standard deviation (n - 1) over the seeds {seeds}."
    else:
        yield f"Ours: seed {seeds} alone."
    told = {_how(record.settings, record.trained) for record in results.done.values() if record.trained is not None}
    if told:
        yield f"Run with {told.pop()}." if len(told) == 1 else "Backbone, tune, steps or batch differ from run to run."
    planned = len(results.rows) * len(results.tasks) * len(results.seeds)
    if missing := planned - len(results.done):
        failed = f", {results.failed:,} of them failed" if results.failed else ""
        yield f"{missing:,} of {planned:,} runs are missing{failed}; an average over tasks is given without gaps alone."


def _how(settings: Mapping[str, Any], trained: Trained) -> str:
    network = f"{trained.backbone}, tune {trained.tune}" if trained.backbone else "feature vectors"
    steps = "1 step" if settings["steps"] == 1 else f"{settings['steps']:,} steps"
    return f"{network}, {steps} of {settings['batch_size']} + {settings['batch_size']} items"


def _sources(table: papers.Table | None, sheet: Sheet) -> Iterator[str]:
    if table is None:
        return
    yield f"Published: {table.title} ({table.source})."
    shown = {str(cells[0]).removesuffix(", published") for cells in sheet.rows if str(cells[0]).endswith(", published")}
    for row in table.rows:
        if row.name in shown:
            told = []
            if row.source:
                told.append(f"from {row.source}'s table")
            if row.remark:
                told.append(row.remark)
            if told:
                yield f"{row.name}: {'; '.join(told)}."
