"""What commands show of their results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from acclimate.evaluation.scores import Changes, Scores
from acclimate.methods import registry
from acclimate.runs import summary
from acclimate.runs.files import RUN_FILES
from acclimate.schema import as_json
from acclimate.screen import WIDEST, Screen

if TYPE_CHECKING:
    from acclimate.runs.record import RunRecord, Trust

MOST_CLASSES = 20  # of a confusion matrix on the screen


def show_scores(screen: Screen, scores: Mapping[str, Scores]) -> None:
    """Show accuracies, unless JSON was asked for.

    Args:
        screen: Where.
        scores: By method. With several, the last is compared with the first.
    """
    last = list(scores)[-1]
    result = scores[last]
    screen.show(f"\nAccuracy on the target in %, {result.n:,} labelled images\n", _accuracies(scores, screen.text))
    if result.n_unknown:
        screen.show(f"\nNot scored: {result.n_unknown:,} with no label, or one that is not a class of the source.")
    if len(result.classes) <= MOST_CLASSES:
        _show_confusion(screen, result, screen.text(last))


def _show_confusion(screen: Screen, scores: Scores, method: str) -> None:
    """Show the confusion matrix where the screen is wide enough."""
    table = _confusion(scores, screen.text)
    wide = Measurement.get(screen.stdout, screen.stdout.options.update(max_width=WIDEST), table).maximum
    if wide <= screen.stdout.width:
        screen.show(f"\nConfusion of {method}: % of a true class (row) by predicted class (column)\n", table)


def show_changes(screen: Screen, changes: Changes, classes: Sequence[str], before: str, after: str) -> None:
    """Show what adaptation changed on a target without labels, unless JSON was asked for.

    Args:
        screen: Where.
        changes: What changed.
        classes: K names.
        before: Name of the method that made the first predictions.
        after: Name of the method that made the second.
    """
    before, after = screen.text(before), screen.text(after)
    screen.show(
        f"\nPredicted classes of the target's {changes.n:,} images, which have no labels\n",
        _counts(changes, [screen.text(name) for name in classes], before, after),
        f"\n{after} predicts another class than {before} for {100 * changes.share_changed:.1f} % of the images. "
        f"The mean confidence was {100 * changes.confidence_before:.1f} % and is "
        f"{100 * changes.confidence_after:.1f} %; that is not an accuracy.",
    )


def show_table(
    screen: Screen, title: str, headings: Sequence[str], rows: Iterable[Sequence[object]], *notes: str
) -> None:
    """Show a table with a title and notes, as wide as it is, unless JSON was asked for."""
    table = _table(*map(screen.text, headings))
    for row in rows:
        table.add_row(*(screen.text(str(cell)) for cell in row))
    wide = Console(width=WIDEST, markup=False, emoji=False, highlight=False)  # a figure must not be cut off
    if not screen.json:
        screen.show(f"\n{screen.text(title)}\n")
        wide.print(table)
        screen.show("", *map(screen.text, notes))


def show_files(screen: Screen, folder: Path) -> None:
    """Show what lies in a run directory, unless JSON was asked for."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, meaning in RUN_FILES.items():
        if (folder / name).exists():
            table.add_row(f"  {name}", meaning)
    screen.show(f"\nWritten to {screen.text(str(folder))}", table)


def show_methods(
    screen: Screen, described: Sequence[Mapping[str, Any]], installed: Sequence[tuple[str, str, str]]
) -> None:
    """List methods, and the rows of the papers' tables.

    Args:
        screen: Where.
        described: This package's methods, as `options.describe` describes them.
        installed: Name, package and version of the methods that installed packages offer.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("method", no_wrap=True)
    table.add_column("good for")
    for heading in ("cost", "gain", "harmed"):
        table.add_column(heading, no_wrap=True, justify="right")
    table.add_column("works on")
    rows = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("row of the papers' tables", "how to run it"):
        rows.add_column(heading)
    for method in described:
        known = _measured(method["measured"] or {})
        table.add_row(method["name"], method["good_for"], *known, _WORKS_ON[method["needs"]])
        for row, options in method["rows"].items():
            sets = "".join(f" --set {name}={_spelt(value)}" for name, value in options.items())
            rows.add_row(row, f"--method {method['name']}{sets}")
    others = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("method", "package", "version"):
        others.add_column(heading)
    for entry in installed:
        others.add_row(*map(screen.text, entry))
    screen.show(table, f"\n{ON_MEASURED}\n")
    if installed:
        screen.show(others, "")
    screen.show(rows, "\nacclimate methods NAME shows a method's paper, equations and options.")


ON_MEASURED = (
    "cost: the time of a training on frozen features relative to source-only, with 31 classes (docs/results/cost.md). "
    "gain: the median over the source-only of the same task and seed, in points; harmed: the runs more than a point "
    "below it. They rest on PACS alone: 6 tasks, 3 seeds, frozen features, each method's own recipe "
    "(docs/results/pacs_methods.md)."
)


def _measured(known: Mapping[str, float]) -> tuple[str, str, str]:
    """A method's cost, gain and harm, a dash for what is not known."""
    from acclimate.bench.tables import as_cost

    cost, gain, harmed = (known.get(name) for name in ("cost", "median_gain", "harmed"))
    return (
        str(as_cost(cost)),
        "-" if gain is None else f"{gain:+.1f}",
        "-" if harmed is None else f"{100 * harmed:.0f} %",
    )


def show_method(screen: Screen, described: Mapping[str, Any]) -> None:
    """Describe one method, as `options.describe` describes it."""
    own = ", ".join(f"{name} {value}" for name, value in described["recipe"].items())
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("option", no_wrap=True)
    table.add_column("default", no_wrap=True)
    table.add_column("values", overflow="fold")
    for name, option in described["options"].items():
        table.add_row(name, str(option["default"]), ", ".join(map(str, option["choices"])))
    screen.show(described["title"], "", described["description"])
    if described["good_for"]:
        cost, gain, harmed = _measured(described["measured"] or {})
        screen.show(f"\nGood for: {described['good_for']}. Cost {cost}, gain {gain}, harmed {harmed}.", ON_MEASURED)
    screen.show(f"\nWorks on {_WORKS_ON[described['needs']]}. Its own recipe: {own or 'the defaults'}.")
    if described["options"]:
        screen.show("\nOptions, each given as --set OPTION=VALUE\n", table)


def show_backbones(screen: Screen, found: Sequence[Any]) -> None:
    """List backbones, as `list_backbones` finds them."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("backbone", "weights", "input"):
        table.add_column(heading)
    for info in found:
        table.add_row(info.name, info.weights, f"{info.size} px")
    screen.show(table)
    screen.show_json([info._asdict() for info in found])


def show_benchmarks(screen: Screen, described: Sequence[Mapping[str, Any]]) -> None:
    """List benchmarks, as `catalogue.describe` describes them."""
    table = _table("benchmark", "domains", "classes", "images", "tasks", "data get")
    for benchmark in described:
        images = sum(domain["images"] + (domain["test_images"] or 0) for domain in benchmark["domains"])
        numbers = len(benchmark["domains"]), len(benchmark["classes"]), images, len(benchmark["tasks"])
        table.add_row(benchmark["name"], *(f"{n:,}" for n in numbers), "yes" if benchmark["downloads"] else "-")
    screen.show(table, "\nacclimate data list NAME shows a benchmark's domains, tasks, terms and publication.")
    screen.show_json(described)


def show_benchmark(screen: Screen, described: Mapping[str, Any]) -> None:
    """Describe one benchmark, as `catalogue.describe` describes it."""
    table = _table("domain", "short", "images")
    for domain in described["domains"]:
        test = f" + {domain['test_images']:,}" if domain["test_images"] else ""
        table.add_row(domain["name"], domain["short"], f"{domain['images']:,}{test}")
    screen.show(
        f"{described['title']}, {len(described['classes'])} classes\n",
        table,
        f"\nTasks: {', '.join(described['tasks'])}",
        f"Metric: {', '.join(described['metrics'])}",
        f"Augmentation: {described['augment']}",
        f"Published: {described['page']}",
        f"Terms: {described['licence'] or 'not known here; ask where it is published'}",
        f"Direct links: {', '.join(described['downloads']) or 'none'}",
        f"\n{described['citation']}",
    )
    screen.show_json([described])


def show_check(screen: Screen, report: Mapping[str, Any]) -> None:
    """Show what was found of a benchmark, as `datasets.check.Check.as_dict` has it."""
    table = _table("domain", "images", "of", "classes", "of")
    table.add_column("found", overflow="fold")
    for entry in report["domains"]:
        numbers = (entry[name] for name in ("images", "expected_images", "classes", "expected_classes"))
        part = "" if entry["part"] == "all" else f", {entry['part']}"
        found = screen.text(entry["spec"]) if entry["spec"] is not None else "no"
        table.add_row(f"{entry['domain']}{part}", *(f"{n:,}" for n in numbers), found)
    screen.show(table)
    problems = [(entry["domain"], problem) for entry in report["domains"] for problem in entry["problems"]]
    screen.show("", *(f"{domain} {screen.text(problem)}." for domain, problem in problems))
    if report["missing"]:
        screen.show(f"Missing: {', '.join(report['missing'])}")
    screen.show(f"Tasks that can be run: {', '.join(report['tasks']) or 'none'}")
    screen.show_json(report)


_WORKS_ON = {"vector": "vectors, maps, images", "map": "maps, images", "image": "images (--tune all)"}


def _spelt(value: object) -> str:
    """An option's value as `--set` takes it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _accuracies(scores: Mapping[str, Scores], text: Callable[[str], str]) -> Table:
    """A row a class and a column a method, in percent; below them the means. The last method minus the first, too."""
    several = list(scores.values())
    headings = ["Class", "Images", *map(text, scores)]
    if len(several) > 1:
        headings.append("Change")
    table = _table(*headings)
    for of_class in zip(*(s.per_class for s in several), strict=True):
        name, count = of_class[-1].name, of_class[-1].count
        table.add_row(text(name), f"{count:,}", *_percents([c.accuracy for c in of_class]))
    table.add_section()
    table.add_row("Mean per class", "", *_percents([s.mean_per_class for s in several]))
    table.add_row("Overall", f"{several[-1].n:,}", *_percents([s.accuracy for s in several]), style="bold")
    return table


def _percents(fractions: Sequence[float | None]) -> list[str]:
    first, last = fractions[0], fractions[-1]
    shown = [f"{100 * x:.1f}" if x is not None else "-" for x in fractions]
    if len(fractions) > 1:
        shown.append(f"{100 * (last - first):+.1f}" if first is not None and last is not None else "-")
    return shown


def _counts(changes: Changes, classes: Sequence[str], before: str, after: str) -> Table:
    table = _table("Class", before, after, "Change")
    for name, old, new in zip(classes, changes.counts_before, changes.counts_after, strict=True):
        table.add_row(name, f"{old:,}", f"{new:,}", f"{new - old:+,}")
    return table


def _confusion(scores: Scores, text: Callable[[str], str]) -> Table:
    """Percentages of a row; the columns bear the rows' numbers, because names would not fit."""
    table = _table("", *(str(number) for number in range(1, len(scores.classes) + 1)))
    names = table.columns[0]
    names.max_width, names.no_wrap, names.overflow = 20, True, "crop"
    for number, (name, row) in enumerate(zip(scores.classes, scores.confusion.tolist(), strict=True), 1):
        table.add_row(f"{number:2} {text(name)}", *(f"{100 * count / sum(row):.0f}" if count else "." for count in row))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold")
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def show_run(record: RunRecord, out: Path, screen: Screen) -> None:
    """Show the results of a fit: first how far to trust it, then its figures."""
    name, compare = registry.shown(record.model.method), record.compare
    if record.trust is not None:
        _show_trust(record, record.trust, screen)
    if record.scores is not None:
        before = {compare.method: Scores.of(compare.scores)} if compare is not None and compare.scores else {}
        show_scores(screen, {**before, name: Scores.of(record.scores)})
    elif compare is not None:
        show_changes(screen, compare.changes, record.model.classes, compare.method, name)
    show_files(screen, out)
    screen.show_json(as_json(record))


def _show_trust(record: RunRecord, trust: Trust, screen: Screen) -> None:
    """The verdict, and what it rests on."""
    verdict = f"{trust.verdict[0].upper()}{trust.verdict[1:]}"
    lines = [summary.estimated(trust.estimate)] if trust.estimate is not None else []
    lines += [sentence for sentence in (summary.bound(trust), summary.rests_on(trust, record.settings)) if sentence]
    found = [f"{finding.level.capitalize()}: {finding.sentence}" for finding in summary.alarms(trust)]
    screen.show("", Text(f"{verdict}.", style="bold"), *(screen.text(line) for line in [*found, *lines]))
    if trust.members:
        screen.show("\nMembers, and the share of the target's images in % on which they agree\n")
        screen.show(_members(trust, screen.text))
        for member in trust.members:
            if member.failed is not None:
                screen.show(screen.text(f"{member.name} has no vote: {member.failed}"))


def _members(trust: Trust, text: Callable[[str], str]) -> Table:
    """A row a member, the best first; the best is marked where labels say which it is."""
    members = [member for member in summary.by_merit(trust.members) if member.failed is None]
    scored = any(member.accuracy is not None for member in members)
    table = _table("Member", "with others", "with result", *(["Accuracy"] if scored else []), "Training")
    for nth, member in enumerate(members):
        accuracy = [f"{'best  ' if nth == 0 else ''}{_percent(member.accuracy)}"] if scored else []
        shares = (_percent(member.agreement), _percent(member.with_result))
        table.add_row(text(member.name), *shares, *accuracy, f"{member.seconds:.0f} s")
    return table


def _percent(share: float | None) -> str:
    return f"{100 * share:.1f}" if share is not None else "-"
