"""Who is told how work comes along. The work knows these protocols alone; what shows it lies above (`screen.py`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, SupportsFloat, TypeVar

T = TypeVar("T")


class Track(Protocol):
    """Yields what it is given, unchanged and in order, showing progress and the time left on the way."""

    def __call__(self, items: Iterable[T], description: str, total: int) -> Iterable[T]:
        """Wrap `items`, of which there are `total`."""
        ...


class Meter(Protocol):
    """Shows how far a piece of work is."""

    def update(self, done: int, terms: Mapping[str, SupportsFloat] | None = None) -> None:
        """Say how much is done.

        It may be called at every step: it looks at `terms`, the current values of a training's terms, only when it
        shows them, so that values on a device need not be fetched before.
        """
        ...


class Listener(Protocol):
    """Who is told how a run or a bench comes along."""

    @property
    def interactive(self) -> bool:
        """Whether progress can be drawn over, as on a terminal; in a log each line stays."""
        ...

    def say(self, sentence: str) -> None:
        """A remark."""
        ...

    def warn(self, sentence: str) -> None:
        """Something that the user should know even when quiet."""
        ...

    def track(self, items: Iterable[T], description: str, total: int) -> Iterable[T]:
        """The `Track` that shows progress."""
        ...

    def progress(self, description: str, total: int, start: int = 0) -> AbstractContextManager[Meter]:
        """Show progress through work of `total` steps, of which `start` are done."""
        ...


class Nobody:
    """The `Listener` that shows nothing. A run's record and its skipped.csv say what it would have been told."""

    interactive = False

    def say(self, sentence: str) -> None:
        """Nothing."""

    def warn(self, sentence: str) -> None:
        """Nothing."""

    def track(self, items: Iterable[T], description: str, total: int) -> Iterable[T]:
        """The items themselves."""
        return items

    def progress(self, description: str, total: int, start: int = 0) -> AbstractContextManager[Meter]:
        """A meter that shows nothing."""
        return nullcontext(_NoMeter())


class WarningsOnly(Nobody):
    """A listener to the warnings of work whose progress somebody else shows.

    Args:
        listener: Is told the warnings.
    """

    def __init__(self, listener: Listener) -> None:
        self.listener = listener

    def warn(self, sentence: str) -> None:
        """Something that the user should know."""
        self.listener.warn(sentence)


class _NoMeter:
    def update(self, done: int, terms: Mapping[str, SupportsFloat] | None = None) -> None:
        pass


NOBODY: Listener = Nobody()

silent: Track = NOBODY.track
"""The `Track` that shows nothing."""
