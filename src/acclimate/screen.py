"""What a command shows: progress, remarks and errors on stderr, results on stdout."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from threading import Lock, Timer
from time import monotonic
from typing import SupportsFloat, TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from acclimate.progress import NOBODY, Meter
from acclimate.text import visible, visible_lines

T = TypeVar("T")

WIDEST = 1000  # columns of a table

BEGIN_AFTER = 2.0  # seconds of work of which nothing is shown

BAR_EVERY = 0.1

LINE_EVERY = 30.0

FEW = 20  # pieces of work, each of which gets a line in a log

PIECE_EVERY = 5.0  # seconds at least between the lines of pieces

REMEMBERED = 600.0  # seconds by which the time left is estimated: long pieces are few


class Screen:
    """The `Listener` of a command: it shows progress, remarks and errors on stderr, results on stdout.

    Args:
        quiet: Show no progress and no remarks, only results, warnings and errors.
        json: Results are JSON on stdout instead of tables.
        mute: Show nothing but errors, as a process does that works along with one that shows the rest.
    """

    def __init__(self, *, quiet: bool = False, json: bool = False, mute: bool = False) -> None:
        self.quiet = quiet or mute
        self.json = json
        self.mute = mute
        self._stderr = Console(stderr=True, markup=False, emoji=False, highlight=False)
        self.stdout = Console(markup=False, emoji=False, highlight=False)
        self._bars = _Bars(self._stderr)

    @property
    def interactive(self) -> bool:
        """Whether there is a terminal, on which progress can be drawn."""
        return self._stderr.is_interactive

    def say(self, sentence: str) -> None:
        """A remark."""
        if not self.quiet:
            self._tell(Text(printable(sentence, self._stderr)))

    def warn(self, sentence: str) -> None:
        """Something that the user should know even when quiet."""
        if not self.mute:
            self._tell(Text.assemble(("Warning: ", "yellow"), printable(sentence, self._stderr)))

    def error(self, sentence: str) -> None:
        """Why the command ends."""
        self._tell(Text.assemble(("Error: ", "bold red"), printable(sentence, self._stderr)))

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

        It is shown from the moment that the work has taken two seconds. On a terminal it is a bar. In a log it is a
        line then, and afterwards at most one in 30 seconds, or one for each piece where these are few and long.
        """
        description = printable(description, self._stderr)
        if self.quiet:
            with NOBODY.progress(description, total, start) as meter:
                yield meter
        elif not self._stderr.is_interactive:
            lines = _Lines(self._tell, description, total, start)
            with _soon(lines.begin):
                yield lines
        else:
            bar = _Bar(self._bars, description, total, start)
            try:
                with _soon(bar.begin):
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

    def text(self, data: str) -> str:
        """Data as they can be printed on standard output."""
        return printable(data, self.stdout)

    def write(self, text: str) -> None:
        """Put lines for other programs on standard output: as they are, unless that is a terminal."""
        shown = visible_lines(text) if self.stdout.is_terminal else text
        encoding = self.stdout.encoding
        print(shown.encode(encoding, "backslashreplace").decode(encoding), end="", flush=True)  # noqa: T201

    def show(self, *renderables: RenderableType) -> None:
        """Print on standard output, unless JSON was asked for."""
        if not self.json:
            for renderable in renderables:
                self.stdout.print(renderable, soft_wrap=isinstance(renderable, str) and not self.stdout.is_terminal)


def printable(text: str, console: Console) -> str:
    """The text without anything that could move the cursor, break the line or not be written by this console."""
    return visible(text).encode(console.encoding, "backslashreplace").decode(console.encoding)


@contextmanager
def _soon(begin: Callable[[], None]) -> Iterator[None]:
    """Call a function when what is done meanwhile has taken a while, though it may not have told of itself yet."""
    timer = Timer(BEGIN_AFTER, begin)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Lines:
    """The meter of a log."""

    def __init__(self, tell: Callable[[Text], None], description: str, total: int, start: int) -> None:
        self.tell = tell
        self.description = description
        self.total = total
        self.start = start
        self.begun = self.shown = monotonic()

    def begin(self) -> None:
        self.tell(Text(f"{self.description}: {self.start:,} of {self.total:,}"))

    def update(self, done: int, terms: Mapping[str, SupportsFloat] | None = None) -> None:
        now = monotonic()
        if now - self.shown < (PIECE_EVERY if self.total <= FEW else LINE_EVERY):
            return
        self.shown = now
        speed = (done - self.start) / (now - self.begun)
        line = f"{self.description}: {done:,} of {self.total:,} ({100 * done / self.total:.0f} %)"
        if speed and done < self.total:
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
            speed_estimate_period=REMEMBERED,
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
        self.done = start
        self.closing = Lock()
        self.closed = False

    def begin(self) -> None:
        with self.closing:
            if not self.closed:
                self.bars.update(self.task, completed=self.done, visible=True)
                self.bars.start()
                self.bars.refresh()

    def update(self, done: int, terms: Mapping[str, SupportsFloat] | None = None) -> None:
        now, self.done = monotonic(), done
        if now - self.begun < BEGIN_AFTER or now - self.shown < BAR_EVERY:
            return
        self.shown = now
        self.bars.update(self.task, completed=done, visible=True, terms=_values(terms or {}))
        self.bars.start()

    def close(self) -> None:
        with self.closing:
            self.closed = True
            if len(self.bars.tasks) == 1:
                self.bars.stop()
            self.bars.remove_task(self.task)


def _values(terms: Mapping[str, SupportsFloat]) -> str:
    return "  ".join(f"{name} {float(value):.3g}" for name, value in terms.items())
