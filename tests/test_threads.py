"""Work in threads: its order, how far it goes ahead, and its end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from acclimate.threads import in_order


@pytest.mark.parametrize("ahead", [0, 1, 5, 100])
@pytest.mark.parametrize("threads", [1, 3])
def test_results_come_in_order(threads: int, ahead: int) -> None:
    assert list(in_order(ThreadPoolExecutor(threads), lambda n: n * n, range(20), ahead=ahead)) == [
        n * n for n in range(20)
    ]


def test_no_more_is_taken_than_asked_for() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for n in range(10):
            taken.append(n)
            yield n

    results = in_order(ThreadPoolExecutor(1), lambda n: n, items(), ahead=2)
    assert next(results) == 0
    assert taken == [0, 1, 2]
    results.close()  # type: ignore[attr-defined]


def test_what_nobody_has_begun_is_left_at_the_end() -> None:
    begun: list[int] = []
    go_on = threading.Event()

    def work(n: int) -> int:
        begun.append(n)
        if n == 1:
            go_on.wait(10)
        if n == 0:
            raise RuntimeError("the first fails")
        return n

    results = in_order(ThreadPoolExecutor(1), work, range(9), ahead=8)
    threading.Timer(0.2, go_on.set).start()
    with pytest.raises(RuntimeError, match="the first fails"):
        next(results)
    assert 8 not in begun
