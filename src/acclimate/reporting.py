"""What a run writes and what the user sees. File and class names are data: nothing in them is ever interpreted."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import IO, TYPE_CHECKING, Any, Protocol, SupportsFloat, TypeVar

import numpy as np
from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from acclimate.evaluation.scores import Changes, Probabilities, Scores

T = TypeVar("T")

RUN_FILES = {
    "predictions.csv": "the target's images: class, confidence, probabilities",
    "skipped.csv": "images that could not be read, and why",
    "report.html": "the report",
    "record.json": "how the run was made, and its figures",
    "metrics.jsonl": "the training's terms, step by step",
    "model.safetensors": "the model's weights",
    "model.json": "what the weights need for predicting",
}

WIDEST = 1000  # columns of a table
MOST_CLASSES = 20  # of a confusion matrix on the screen
BAR_AFTER = 2.0  # seconds
BAR_EVERY = 0.1
LINE_EVERY = 30.0


@contextmanager
def _replacing(path: Path, *, errors: str, newline: str | None = None) -> Iterator[IO[str]]:
    """A text file that takes the place of `path` when it is complete: a kill leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", errors=errors, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write JSON in UTF-8, indented, keys in their own order, a list of numbers on one line.

    Raises:
        ValueError: `value` holds NaN or an infinity, which JSON does not have.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    text = re.sub(r"\[\n([-+.\deE,\s]+)\]", lambda numbers: f"[{' '.join(numbers[1].split())}]", text)
    # A file name that is not UTF-8 holds lone surrogates, for which \udcxx is the right escape in JSON too.
    with _replacing(path, errors="backslashreplace") as file:
        file.write(text + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write one JSON object a line.

    Raises:
        ValueError: A value is NaN or infinite.
    """
    with _replacing(path, errors="backslashreplace") as file:
        file.writelines(map(_line, rows))


def write_predictions(path: Path, names: Sequence[str], probabilities: Probabilities, classes: Sequence[str]) -> None:
    """Write a CSV of one row an item, in the order given: path, predicted, confidence, then one column a class.

    Args:
        path: The file.
        names: N names.
        probabilities: (N, K), written with six decimals.
        classes: K names.
    """
    predicted = probabilities.argmax(1)
    _write_csv(
        path,
        ["path", "predicted", "confidence", *classes],
        (
            [name, classes[k], f"{row[k]:.6f}", *(f"{p:.6f}" for p in row.tolist())]
            for name, k, row in zip(names, predicted, probabilities, strict=True)
        ),
    )


def read_probabilities(path: Path) -> Probabilities:
    """The probabilities (N, K) in a file that `write_predictions` wrote."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file)
        next(rows)
        return np.array([[float(p) for p in row[3:]] for row in rows], dtype=np.float64)


def write_skipped(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write a CSV of the images that could not be used: path, reason."""
    _write_csv(path, ["path", "reason"], rows)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    # The module's own line end, \r\n, makes it quote a name that holds either of them; surrogateescape gives a file
    # name that is not UTF-8 its own bytes back.
    with _replacing(path, errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


class MetricsLog:
    """A file of one JSON object a line, which grows while a run trains.

    Args:
        path: The file; it need not exist.
        keep_until: For a run that resumes at this step: drop the lines of later steps, and a line half written. A run
            that starts anew gives -1.
    """

    def __init__(self, path: Path, keep_until: int | None = None) -> None:
        self.path = path
        if keep_until is not None:
            kept = [row for row in self.read() if row["step"] <= keep_until]
            write_jsonl(path, kept)

    def append(self, step: int, values: Mapping[str, object]) -> None:
        """Add the values of a step.

        Raises:
            ValueError: A value is NaN or infinite.
        """
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(_line({"step": step, **values}))

    def read(self) -> list[dict[str, Any]]:
        """All complete lines; none when there is no file."""
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")
        return [json.loads(line) for line in lines[:-1]]  # behind the last line end is nothing, or half a line


def _line(row: Mapping[str, object]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


class Meter(Protocol):
    """Shows how far a piece of work is."""

    def update(self, done: int, terms: Mapping[str, SupportsFloat] | None = None) -> None:
        """Say how much is done.

        It may be called at every step: it looks at `terms`, the current values of a training's terms, only when it
        shows them, so that values on a device need not be fetched before.
        """
        ...


class Screen:
    """What a command shows: progress, remarks and errors on stderr, results on stdout.

    Args:
        quiet: Show no progress and no remarks, only results, warnings and errors.
        json: Results are JSON on stdout instead of tables.
    """

    def __init__(self, *, quiet: bool = False, json: bool = False) -> None:
        self.quiet = quiet
        self.json = json
        self._stderr = Console(stderr=True, markup=False, emoji=False, highlight=False)
        self._stdout = Console(markup=False, emoji=False, highlight=False)
        self._bars = _Bars(self._stderr)

    @property
    def interactive(self) -> bool:
        """Whether there is a terminal, on which progress can be drawn."""
        return self._stderr.is_interactive

    def say(self, sentence: str) -> None:
        """A remark."""
        if not self.quiet:
            self._tell(Text(_printable(sentence, self._stderr)))

    def warn(self, sentence: str) -> None:
        """Something that the user should know even when quiet."""
        self._tell(Text.assemble(("Warning: ", "yellow"), _printable(sentence, self._stderr)))

    def error(self, sentence: str) -> None:
        """Why the command ends."""
        self._tell(Text.assemble(("Error: ", "bold red"), _printable(sentence, self._stderr)))

    def _tell(self, text: Text) -> None:
        # In a log a sentence stays one line, so that it can be searched for.
        self._stderr.print(text, soft_wrap=not self._stderr.is_terminal)

    def track(self, items: Iterable[T], description: str, total: int) -> Iterable[T]:
        """The `Track` that shows progress."""
        with self.progress(description, total) as meter:
            for done, item in enumerate(items, 1):
                yield item
                meter.update(done)

    @contextmanager
    def progress(self, description: str, total: int, start: int = 0) -> Iterator[Meter]:
        """Show progress through work of `total` steps, of which `start` are done.

        On a terminal it is a bar, from the moment that the work has taken two seconds; in a log a line at the start
        and then at most one in 30 seconds.
        """
        description = _printable(description, self._stderr)
        if self.quiet:
            yield _Silent()
        elif not self._stderr.is_interactive:
            yield _Lines(self._tell, description, total, start)
        else:
            bar = _Bar(self._bars, description, total, start)
            try:
                yield bar
            finally:
                bar.close()

    def show_json(self, result: object) -> None:
        """Print a result as JSON, if that was asked for.

        Raises:
            ValueError: `result` holds NaN or an infinity.
        """
        if self.json:
            print(json.dumps(result, indent=2, allow_nan=False), flush=True)  # noqa: T201 (not for people)

    def show_scores(self, scores: Mapping[str, Scores]) -> None:
        """Show accuracies, unless JSON was asked for.

        Args:
            scores: By method. With several, the last is compared with the first.
        """
        last = list(scores)[-1]
        result = scores[last]
        self._show(f"\nAccuracy on the target in %, {result.n:,} labelled images\n", _accuracies(scores, self._text))
        if result.n_unknown:
            self._show(f"\nNot scored: {result.n_unknown:,} with no label, or one that is not a class of the source.")
        if len(result.classes) <= MOST_CLASSES:
            self._show_confusion(result, self._text(last))

    def _show_confusion(self, scores: Scores, method: str) -> None:
        """Show the confusion matrix where the screen is wide enough."""
        table = _confusion(scores, self._text)
        wide = Measurement.get(self._stdout, self._stdout.options.update(max_width=WIDEST), table).maximum
        if wide <= self._stdout.width:
            self._show(f"\nConfusion of {method}: % of a true class (row) by predicted class (column)\n", table)

    def show_changes(self, changes: Changes, classes: Sequence[str], before: str, after: str) -> None:
        """Show what adaptation changed on a target without labels, unless JSON was asked for.

        Args:
            changes: What changed.
            classes: K names.
            before: Name of the method that made the first predictions.
            after: Name of the method that made the second.
        """
        before, after = self._text(before), self._text(after)
        self._show(
            f"\nPredicted classes of the target's {changes.n:,} images, which have no labels\n",
            _counts(changes, [self._text(name) for name in classes], before, after),
            f"\n{after} predicts another class than {before} for {100 * changes.share_changed:.1f} % of the images. "
            f"The mean confidence was {100 * changes.confidence_before:.1f} % and is "
            f"{100 * changes.confidence_after:.1f} %; that is not an accuracy.",
        )

    def show_table(self, title: str, headings: Sequence[str], rows: Iterable[Sequence[object]], notes: str) -> None:
        """Show a table with a title and notes, as wide as it is, unless JSON was asked for."""
        table = _table(*map(self._text, headings))
        for row in rows:
            table.add_row(*(self._text(str(cell)) for cell in row))
        wide = Console(width=WIDEST, markup=False, emoji=False, highlight=False)  # a figure must not be cut off
        if not self.json:
            self._show(f"\n{self._text(title)}\n")
            wide.print(table)
            self._show(f"\n{self._text(notes)}")

    def show_files(self, folder: Path) -> None:
        """Show what lies in a run directory, unless JSON was asked for."""
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for name, meaning in RUN_FILES.items():
            if (folder / name).exists():
                table.add_row(f"  {name}", meaning)
        self._show(f"\nWritten to {self._text(str(folder))}", table)

    def show_methods(self, described: Sequence[Mapping[str, Any]]) -> None:
        """List methods, as `methods.describe` describes them, and the rows of the papers' tables."""
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for heading in ("method", "family", "works on"):
            table.add_column(heading, no_wrap=True)
        table.add_column("paper")
        rows = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for heading in ("row of the papers' tables", "how to run it"):
            rows.add_column(heading)
        for method in described:
            table.add_row(method["name"], method["family"], _WORKS_ON[method["needs"]], method["title"])
            for row, options in method["rows"].items():
                sets = "".join(f" --set {name}={_spelt(value)}" for name, value in options.items())
                rows.add_row(row, f"--method {method['name']}{sets}")
        self._show(table, "", rows, "\nacclimate methods NAME shows a method's equations and options.")

    def show_method(self, described: Mapping[str, Any]) -> None:
        """Describe one method, as `methods.describe` describes it."""
        own = ", ".join(f"{name} {value}" for name, value in described["recipe"].items())
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        table.add_column("option", no_wrap=True)
        table.add_column("default", no_wrap=True)
        table.add_column("values", overflow="fold")
        for name, option in described["options"].items():
            table.add_row(name, str(option["default"]), ", ".join(map(str, option["choices"])))
        self._show(described["title"], "", described["description"])
        self._show(f"\nWorks on {_WORKS_ON[described['needs']]}. Its own recipe: {own or 'the defaults'}.")
        if described["options"]:
            self._show("\nOptions, each given as --set OPTION=VALUE\n", table)

    def show_backbones(self, found: Sequence[Any]) -> None:
        """List backbones, as `list_backbones` finds them."""
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for heading in ("backbone", "weights", "input"):
            table.add_column(heading)
        for info in found:
            table.add_row(info.name, info.weights, f"{info.size} px")
        self._show(table)
        self.show_json([info._asdict() for info in found])

    def show_benchmarks(self, described: Sequence[Mapping[str, Any]]) -> None:
        """List benchmarks, as `benchmarks.describe` describes them."""
        table = _table("benchmark", "domains", "classes", "images", "tasks", "data get")
        for benchmark in described:
            images = sum(domain["images"] + (domain["test_images"] or 0) for domain in benchmark["domains"])
            numbers = len(benchmark["domains"]), len(benchmark["classes"]), images, len(benchmark["tasks"])
            table.add_row(benchmark["name"], *(f"{n:,}" for n in numbers), "yes" if benchmark["downloads"] else "-")
        self._show(table, "\nacclimate data list NAME shows a benchmark's domains, tasks, terms and publication.")
        self.show_json(described)

    def show_benchmark(self, described: Mapping[str, Any]) -> None:
        """Describe one benchmark, as `benchmarks.describe` describes it."""
        table = _table("domain", "short", "images")
        for domain in described["domains"]:
            test = f" + {domain['test_images']:,}" if domain["test_images"] else ""
            table.add_row(domain["name"], domain["short"], f"{domain['images']:,}{test}")
        self._show(
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
        self.show_json([described])

    def show_check(self, report: Mapping[str, Any]) -> None:
        """Show what was found of a benchmark, as `benchmarks.Report.as_dict` has it."""
        table = _table("domain", "images", "of", "classes", "of")
        table.add_column("found", overflow="fold")
        for entry in report["domains"]:
            numbers = (entry[name] for name in ("images", "expected_images", "classes", "expected_classes"))
            part = "" if entry["part"] == "all" else f", {entry['part']}"
            found = self._text(entry["spec"]) if entry["spec"] is not None else "no"
            table.add_row(f"{entry['domain']}{part}", *(f"{n:,}" for n in numbers), found)
        self._show(table)
        problems = [(entry["domain"], problem) for entry in report["domains"] for problem in entry["problems"]]
        self._show("", *(f"{domain} {self._text(problem)}." for domain, problem in problems))
        if report["missing"]:
            self._show(f"Missing: {', '.join(report['missing'])}")
        self._show(f"Tasks that can be run: {', '.join(report['tasks']) or 'none'}")
        self.show_json(report)

    def _text(self, data: str) -> str:
        return _printable(data, self._stdout)

    def _show(self, *renderables: RenderableType) -> None:
        if not self.json:
            for renderable in renderables:
                self._stdout.print(renderable, soft_wrap=isinstance(renderable, str) and not self._stdout.is_terminal)


_WORKS_ON = {"vector": "vectors, maps, images", "map": "maps, images", "image": "images (--tune all)"}


def _spelt(value: object) -> str:
    """An option's value as `--set` takes it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _printable(text: str, console: Console) -> str:
    """The text without anything that could move the cursor, break the line or not be written by this console."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return shown.encode(console.encoding, "backslashreplace").decode(console.encoding)


class _Silent:
    """The meter that shows nothing."""

    def update(self, done: int, terms: Mapping[str, SupportsFloat] | None = None) -> None:
        pass


class _Lines:
    """The meter of a log."""

    def __init__(self, tell: Callable[[Text], None], description: str, total: int, start: int) -> None:
        self.tell = tell
        self.description = description
        self.total = total
        self.start = start
        self.begun = self.shown = monotonic()
        tell(Text(f"{description}: {start:,} of {total:,}"))

    def update(self, done: int, terms: Mapping[str, SupportsFloat] | None = None) -> None:
        now = monotonic()
        if now - self.shown < LINE_EVERY:
            return
        self.shown = now
        speed = (done - self.start) / (now - self.begun)
        line = f"{self.description}: {done:,} of {self.total:,} ({100 * done / self.total:.0f} %)"
        if speed:
            line += f", {timedelta(seconds=round((self.total - done) / speed))} left"
        if terms:
            line += f"; {_values(terms)}  {speed:.1f} steps/s"
        self.tell(Text(line))


class _Bars(Progress):
    """All bars of a screen: work within other work has its bar below the other's."""

    def __init__(self, console: Console) -> None:
        super().__init__(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            redirect_stdout=False,  # results are not remarks
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars, then the terms of what is trained."""
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            if task.fields["terms"]:
                speed = f"  {task.speed:.1f} steps/s" if task.speed else ""
                yield Text(task.fields["terms"] + speed, style="dim", no_wrap=True, overflow="ellipsis")


class _Bar:
    """The meter of a terminal."""

    def __init__(self, bars: _Bars, description: str, total: int, start: int) -> None:
        self.bars = bars
        self.task = bars.add_task(description, total=total, completed=start, visible=False, terms="")
        self.begun = self.shown = monotonic()

    def update(self, done: int, terms: Mapping[str, SupportsFloat] | None = None) -> None:
        now = monotonic()
        if now - self.begun < BAR_AFTER or now - self.shown < BAR_EVERY:
            return
        self.shown = now
        self.bars.update(self.task, completed=done, visible=True, terms=_values(terms or {}))
        self.bars.start()

    def close(self) -> None:
        if len(self.bars.tasks) == 1:
            self.bars.stop()
        self.bars.remove_task(self.task)


def _values(terms: Mapping[str, SupportsFloat]) -> str:
    return "  ".join(f"{name} {float(value):.3g}" for name, value in terms.items())


def _accuracies(scores: Mapping[str, Scores], text: Callable[[str], str]) -> Table:
    """A row a class and a column a method, in percent; below them the means. The last method minus the first, too."""
    several = list(scores.values())
    table = _table("Class", "Images", *map(text, scores), *["Change"][: len(several) - 1])
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
