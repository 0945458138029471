"""Work in threads whose results come in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def in_order(pool: Executor, work: Callable[[S], T], items: Iterable[S], *, ahead: int) -> Iterator[T]:
    """What `work` makes of each item, in order; so many items beyond the one that is waited for are begun.

    The pool ends with the iterator. Items that nobody has begun then are left.
    """
    waiting: deque[Future[T]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
