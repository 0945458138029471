"""Batches: what a training step is given. The target's type has no labels, so they cannot leak into training."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from acclimate.threads import in_order

Indices = npt.NDArray[np.int64]


class Labelled(NamedTuple):
    """A source batch: x (B, ...) inputs, y (B,) int64 labels, index (B,) int64 positions in the source."""

    x: Tensor
    y: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody calls


class Unlabelled(NamedTuple):
    """A target batch: x (B, ...) inputs, index (B,) int64 positions in the target."""

    x: Tensor
    index: Tensor  # type: ignore[assignment]


class Inputs(Protocol):
    """What batches are drawn from: cached features in memory or on disk, or images decoded as they are needed."""

    def __len__(self) -> int:
        """How many samples there are."""
        ...

    def batch(self, index: Indices, rng: np.random.Generator | None) -> Tensor:
        """The inputs at `index` (B, ...); `rng` draws the augmentation, None means none."""
        ...


class ArrayInputs:
    """Inputs that are an array already: features, maps or decoded images, in memory or memory-mapped.

    Args:
        views: (V, N, ...) of any type, with one entry a cached view (for example plain and flipped). Training draws a
            view a sample; the first is the plain one, which evaluation uses.
    """

    def __init__(self, views: npt.NDArray[np.generic]) -> None:
        self.views = views

    def __len__(self) -> int:
        return int(self.views.shape[1])

    def batch(self, index: Indices, rng: np.random.Generator | None) -> Tensor:
        """The features at `index`, (B, ...) float32."""
        several = rng is not None and len(self.views) > 1
        view = rng.integers(len(self.views), size=len(index)) if rng is not None and several else 0
        return torch.from_numpy(np.ascontiguousarray(self.views[view, index], dtype=np.float32))


class RowInputs:
    """Inputs that are rows of a larger array, which several domains may share: the cache of frozen features.

    Args:
        rows: (R, V, ...) float32, float16, or int16 for the bits of bfloat16, which NumPy lacks. In memory or
            memory-mapped. V are the cached views; training draws one a sample, evaluation uses the first.
        positions: (N,) the row of each sample.
    """

    def __init__(self, rows: npt.NDArray[np.generic], positions: Indices) -> None:
        self.rows = np.asarray(rows)  # indexing a memmap itself takes longer
        self.positions = positions

    def __len__(self) -> int:
        return len(self.positions)

    def batch(self, index: Indices, rng: np.random.Generator | None) -> Tensor:
        """The features at `index`, (B, ...) float32."""
        several = rng is not None and self.rows.shape[1] > 1
        view = rng.integers(self.rows.shape[1], size=len(index)) if rng is not None and several else 0
        x = torch.from_numpy(self.rows[self.positions[index], view])
        return (x.view(torch.bfloat16) if x.dtype == torch.int16 else x).float()


def draw(n: int, batch_size: int, step: int, seed: tuple[int, ...]) -> Indices:
    """The positions of batch number `step` in an endless shuffled stream over `n` samples, (batch_size,) int64.

    The stream is a function of the seed alone, so a resumed run needs nothing but its step. Every pass is a new
    permutation whose incomplete last batch is dropped; a domain smaller than a batch is repeated within it.
    """
    per_pass = max(n // batch_size, 1)
    number, position = divmod(step, per_pass)
    order = _order(n, max(n, batch_size), (*seed, number))
    return order[position * batch_size : (position + 1) * batch_size].copy()


@lru_cache(maxsize=4)  # both domains' current pass and, while prefetching, the next one
def _order(n: int, length: int, seed: tuple[int, ...]) -> Indices:
    return np.resize(np.random.default_rng(seed).permutation(n), length)


class Pair:
    """The labelled source and the unlabelled target that one run trains on.

    Args:
        source: The source's inputs.
        labels: (N_s,) int64 source labels.
        target: The target's inputs.
        batch_size: Samples a batch from each domain.
        seed: Seed of the order of the samples and of their augmentation.
        device: Where batches are put.
        prefetch: Batches prepared in the background; 0 for inputs that are in memory.
    """

    def __init__(
        self,
        source: Inputs,
        labels: npt.NDArray[np.int64],
        target: Inputs,
        *,
        batch_size: int = 32,
        seed: int = 0,
        device: torch.device | str = "cpu",
        prefetch: int = 0,
    ) -> None:
        self.source = source
        self.labels = torch.from_numpy(np.asarray(labels, dtype=np.int64))
        self.target = target
        self.batch_size = batch_size
        self.seed = seed
        self.device = torch.device(device)
        self.prefetch = prefetch

    def batches(self, stop: int, start: int = 0) -> Iterator[tuple[Labelled, Unlabelled]]:
        """Batches number `start` to `stop` - 1: the same for every run with this seed, wherever it starts."""
        if not self.prefetch:
            yield from map(self.batch, range(start, stop))
            return
        yield from in_order(ThreadPoolExecutor(1), self.batch, range(start, stop), ahead=self.prefetch)

    def batch(self, step: int) -> tuple[Labelled, Unlabelled]:
        """Batch number `step` of both domains."""
        i_s = draw(len(self.source), self.batch_size, step, (self.seed, 0))
        i_t = draw(len(self.target), self.batch_size, step, (self.seed, 1))
        rng = np.random.default_rng((self.seed, 2, step))
        x_s, x_t = self.source.batch(i_s, rng).to(self.device), self.target.batch(i_t, rng).to(self.device)
        index_s, index_t = torch.from_numpy(i_s), torch.from_numpy(i_t)
        y_s = self.labels[index_s].to(self.device)
        return Labelled(x_s, y_s, index_s.to(self.device)), Unlabelled(x_t, index_t.to(self.device))
