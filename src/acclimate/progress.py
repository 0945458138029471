"""How long work reports its progress: an iterable is wrapped, and whoever wraps it draws the bar."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Track(Protocol):
    """Yields what it is given, unchanged and in order, showing progress and the time left on the way."""

    def __call__(self, items: Iterable[T], description: str, total: int) -> Iterable[T]:
        """Wrap `items`, of which there are `total`."""
        ...


def silent(items: Iterable[T], description: str, total: int) -> Iterable[T]:
    """The `Track` that shows nothing."""
    return items
