"""The stream of batches: what `draw` promises, and that a resumed or prefetched run sees the same."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acclimate.data.batches import Labelled, Pair, Unlabelled, draw
from acclimate.data.inputs import ArrayInputs

stable = settings(max_examples=60, deadline=None, derandomize=True, database=None)
sizes = st.integers(1, 80)
batch_sizes = st.integers(1, 40)
seeds = st.tuples(st.integers(0, 2**31), st.integers(0, 3))


@stable
@given(n=sizes, batch_size=batch_sizes, seed=seeds, passes=st.integers(1, 3))
def test_a_pass_repeats_nothing(n: int, batch_size: int, seed: tuple[int, ...], passes: int) -> None:
    n = max(n, batch_size)
    steps = n // batch_size
    for number in range(passes):
        drawn = np.concatenate([draw(n, batch_size, number * steps + i, seed) for i in range(steps)])
        assert len(drawn) == steps * batch_size
        assert len(set(drawn.tolist())) == len(drawn)
        assert drawn.min() >= 0
        assert drawn.max() < n
        if n % batch_size == 0:
            assert len(drawn) == n


@stable
@given(n=sizes, more=batch_sizes, step=st.integers(0, 50), seed=seeds)
def test_a_small_domain_is_repeated_evenly(n: int, more: int, step: int, seed: tuple[int, ...]) -> None:
    drawn = draw(n, n + more, step, seed)
    counts = Counter(drawn.tolist())
    assert len(drawn) == n + more
    assert set(counts) == set(range(n))
    assert max(counts.values()) - min(counts.values()) <= 1


@stable
@given(n=sizes, batch_size=batch_sizes, seed=seeds, steps=st.lists(st.integers(0, 200), min_size=1, max_size=10))
def test_the_stream_depends_on_the_seed_alone(n: int, batch_size: int, seed: tuple[int, ...], steps: list[int]) -> None:
    in_order = {step: draw(n, batch_size, step, seed).copy() for step in sorted(steps)}
    for step in steps:  # whatever was drawn before
        assert np.array_equal(draw(n, batch_size, step, seed), in_order[step])
        assert in_order[step].dtype == np.int64


@stable
@given(seed=st.integers(0, 2**31))
def test_seeds_and_passes_differ(seed: int) -> None:
    first = draw(60, 60, 0, (seed, 0))
    assert not np.array_equal(first, draw(60, 60, 0, (seed + 1, 0)))
    assert not np.array_equal(first, draw(60, 60, 0, (seed, 1)))
    assert not np.array_equal(first, draw(60, 60, 1, (seed, 0)))


def pair(seed: int = 0, prefetch: int = 0, views: int = 2) -> Pair:
    def inputs(n: int) -> ArrayInputs:
        return ArrayInputs(np.arange(views * n * 2, dtype=np.float32).reshape(views, n, 2))

    return Pair(inputs(13), np.arange(13) % 3, inputs(5), batch_size=4, seed=seed, prefetch=prefetch)


def equal(a: tuple[Labelled, Unlabelled], b: tuple[Labelled, Unlabelled]) -> bool:
    return all(torch.equal(u, v) for s, t in zip(a, b, strict=True) for u, v in zip(s, t, strict=True))


@stable
@given(stop=st.integers(0, 12), start=st.integers(0, 12), prefetch=st.integers(0, 4), seed=st.integers(0, 1000))
def test_a_resumed_run_sees_the_tail(stop: int, start: int, prefetch: int, seed: int) -> None:
    whole = list(pair(seed).batches(stop))
    tail = list(pair(seed, prefetch).batches(stop, start))
    assert len(whole) == stop
    assert len(tail) == max(stop - start, 0)
    assert all(equal(a, b) for a, b in zip(whole[start:], tail, strict=True))


def test_a_batch_holds_what_its_index_says() -> None:
    data = pair(views=1)
    for s, t in data.batches(6):
        assert torch.equal(s.x[:, 0], 2.0 * s.index)
        assert torch.equal(t.x[:, 0], 2.0 * t.index)
        assert torch.equal(s.y, s.index % 3)
        assert s.y.dtype == s.index.dtype == t.index.dtype == torch.int64
        assert len(s.x) == len(t.x) == 4


def test_the_domains_are_shuffled_apart() -> None:
    inputs = ArrayInputs(np.zeros((1, 40, 1), np.float32))
    s, t = Pair(inputs, np.zeros(40), inputs, batch_size=40).batch(0)
    assert not torch.equal(s.index, t.index)


@pytest.mark.parametrize("prefetch", [0, 3])
def test_leaving_early_stops_the_background(prefetch: int) -> None:
    batches = pair(prefetch=prefetch).batches(1000)
    first = next(batches)
    batches.close()
    assert equal(first, pair().batch(0))


def test_views_are_drawn_from_the_generator_alone() -> None:
    views = np.stack([np.zeros((50, 3)), np.ones((50, 3))]).astype(np.float32)
    inputs, index = ArrayInputs(views), np.arange(50)
    drawn = inputs.batch(index, np.random.default_rng(1))
    assert set(drawn[:, 0].tolist()) == {0.0, 1.0}
    assert torch.equal(drawn, inputs.batch(index, np.random.default_rng(1)))
    assert not torch.equal(drawn, inputs.batch(index, np.random.default_rng(2)))
    assert torch.equal(inputs.batch(index, None), torch.zeros(50, 3))
    assert len(inputs) == 50


def test_a_single_view_leaves_the_generator_alone() -> None:
    rng = np.random.default_rng(0)
    ArrayInputs(np.zeros((1, 5, 2), np.float32)).batch(np.arange(5), rng)
    assert rng.random() == np.random.default_rng(0).random()


def test_memory_mapped_half_precision(tmp_path: Path) -> None:
    path = str(tmp_path / "views.npy")
    np.save(path, np.arange(8, dtype=np.float16).reshape(1, 4, 2))
    x = ArrayInputs(np.load(path, mmap_mode="r")).batch(np.array([2, 0]), None)
    assert x.dtype == torch.float32
    assert x.tolist() == [[4, 5], [0, 1]]
    x += 1  # a copy, not the file
