"""Batches: what a training step is given. The target's type has no labels, so they cannot leak into training."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from acclimate.data.domain import Indices
from acclimate.data.inputs import Inputs
from acclimate.threads import in_order


class Labelled(NamedTuple):
    """A source batch: x (B, ...) inputs, y (B,) int64 labels, index (B,) int64 positions in the source."""

    x: Tensor
    y: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody calls


class Unlabelled(NamedTuple):
    """A target batch: x (B, ...) inputs, index (B,) int64 positions in the target."""

    x: Tensor
    index: Tensor  # type: ignore[assignment]


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
        labels: (N_s,) the source's labels, from 0 to K - 1.
        target: The target's inputs.
        batch_size: Samples a batch from each domain.
        seed: Seed of the order of the samples and of their augmentation.
        device: Where batches are put.
        prefetch: Batches prepared in the background; 0 for inputs that are in memory.
    """

    def __init__(
        self,
        source: Inputs,
        labels: npt.ArrayLike,
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

    def batches(self, stop: int, start: int = 0, stride: int = 1) -> Iterator[tuple[Labelled, Unlabelled]]:
        """Batches of the numbers in range(start, stop, stride): the same for every run with this seed."""
        numbers = range(start, stop, stride)
        if not self.prefetch:
            yield from map(self.batch, numbers)
            return
        yield from in_order(ThreadPoolExecutor(1), self.batch, numbers, ahead=self.prefetch)

    def batch(self, step: int) -> tuple[Labelled, Unlabelled]:
        """Batch number `step` of both domains."""
        i_s = draw(len(self.source), self.batch_size, step, (self.seed, 0))
        i_t = draw(len(self.target), self.batch_size, step, (self.seed, 1))
        rng = np.random.default_rng((self.seed, 2, step))
        x_s, x_t = self._moved(self.source.batch(i_s, rng)), self._moved(self.target.batch(i_t, rng))
        index_s, index_t = torch.from_numpy(i_s), torch.from_numpy(i_t)
        y_s = self._moved(self.labels[index_s])
        return Labelled(x_s, y_s, self._moved(index_s)), Unlabelled(x_t, self._moved(index_t))

    def _moved(self, x: Tensor) -> Tensor:
        """A tensor on the device. A GPU fetches it by itself, from memory that stays in place meanwhile."""
        return x.to(self.device) if self.device.type != "cuda" else x.pin_memory().to(self.device, non_blocking=True)
