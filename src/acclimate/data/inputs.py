"""What batches are drawn from: arrays, rows of the cache, or images decoded as they are needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import default_collate

from acclimate.choices import Augment
from acclimate.data.broken import AHEAD, BrokenImages
from acclimate.data.decode import THREADS, BrokenImageError, ImageInHand, Pixels, pictured, pictured_in_hand
from acclimate.data.domain import Domain, Indices
from acclimate.data.preprocess import Preprocess
from acclimate.errors import DataError
from acclimate.progress import Track, silent
from acclimate.threads import in_order


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
        view = _drawn_view(len(self.views), len(index), rng)
        return torch.from_numpy(np.ascontiguousarray(self.views[view, index], dtype=np.float32))


class JoinedRows:
    """Several arrays (R_i, V, ...) as one (R, V, ...) of which rows can be taken; nothing is copied before.

    Args:
        parts: At least one; all but R_i is equal in all.
    """

    def __init__(self, parts: Sequence[npt.NDArray[np.generic]]) -> None:
        self._parts = [np.asarray(part) for part in parts]  # indexing a memmap itself takes longer
        self._starts = np.cumsum([0, *map(len, self._parts)])
        self.dtype = self._parts[0].dtype
        self.shape: tuple[int, ...] = (int(self._starts[-1]), *self._parts[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: tuple[Indices, Indices | int]) -> npt.NDArray[np.generic]:
        """The rows at given positions (N,), each in one view, or in the one at its place in (N,): (N, ...)."""
        positions, views = key
        part_of = np.searchsorted(self._starts, positions, side="right") - 1
        taken = np.empty((len(positions), *self.shape[2:]), self.dtype)
        for part in np.unique(part_of).tolist():
            here = np.flatnonzero(part_of == part)
            view = views if isinstance(views, int) else views[here]
            taken[here] = self._parts[part][positions[here] - self._starts[part], view]
        return taken


class RowInputs:
    """Inputs that are rows of a larger array, which several domains may share: the cache of frozen features.

    Args:
        rows: (R, V, ...) float32, float16, or int16 for the bits of bfloat16, which NumPy lacks. In memory or
            memory-mapped. V are the cached views; training draws one a sample, evaluation uses the first.
        positions: (N,) the row of each sample.
    """

    def __init__(self, rows: npt.NDArray[np.generic] | JoinedRows, positions: Indices) -> None:
        # Indexing a memmap itself takes longer.
        self.rows = rows if isinstance(rows, JoinedRows) else np.asarray(rows)
        self.positions = positions

    def __len__(self) -> int:
        return len(self.positions)

    def batch(self, index: Indices, rng: np.random.Generator | None) -> Tensor:
        """The features at `index`, (B, ...) float32."""
        view = _drawn_view(self.rows.shape[1], len(index), rng)
        x = torch.from_numpy(self.rows[self.positions[index], view])
        return (x.view(torch.bfloat16) if x.dtype == torch.int16 else x).float()


def _drawn_view(views: int, samples: int, rng: np.random.Generator | None) -> Indices | int:
    """The number of the cached view of each sample: drawn in training, the first in evaluation."""
    if rng is None or views == 1:
        return 0
    return rng.integers(views, size=samples)


class SelectedInputs:
    """Some of the samples of other inputs.

    Args:
        inputs: The others.
        positions: (N,) where in them each sample is.
    """

    def __init__(self, inputs: Inputs, positions: Indices) -> None:
        self.inputs = inputs
        self.positions = positions

    def __len__(self) -> int:
        return len(self.positions)

    def batch(self, index: Indices, rng: np.random.Generator | None) -> Tensor:
        """The inputs at `index` (B, ...); `rng` draws the augmentation, None means none."""
        return self.inputs.batch(self.positions[index], rng)


class Samples(Protocol):
    """A PyTorch dataset with positions, or any other sequence of samples."""

    def __len__(self) -> int:
        """How many samples there are."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """The sample at a position: x, or a tuple that begins with it."""
        ...


class DatasetInputs:
    """Inputs that are the samples of a PyTorch dataset, fetched one by one as batches need them.

    Only x is taken of a sample, so that a labelled dataset may be the target. What augments are the dataset's own
    transforms: evaluation sees them as well, unless it is given a dataset without them.

    Args:
        dataset: N samples: x of one shape, as a tensor, an array or a number, or tuples that begin with it.
    """

    def __init__(self, dataset: Samples) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, index: Indices, rng: np.random.Generator | None) -> Tensor:
        """The samples at `index`, (B, ...) float32."""
        samples = [self.dataset[i] for i in index.tolist()]
        x: Tensor = default_collate([sample[0] if isinstance(sample, tuple) else sample for sample in samples])
        return x.float()


class InHandInputs:
    """Images that a Python caller has in hand, decoded as batches need them, as evaluation sees them.

    Args:
        images: N images, each in one of the forms that `pictured_in_hand` takes.
        preprocess: How they become inputs.
    """

    def __init__(self, images: Sequence[ImageInHand], preprocess: Preprocess) -> None:
        self.images = images
        self.preprocess = preprocess
        self._pool = ThreadPoolExecutor(THREADS)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Indices, rng: np.random.Generator | None) -> Tensor:
        """The images at `index`, (B, C, size, size) float32.

        Raises:
            DataError: One of them is no image or cannot be read.
        """
        return self.preprocess.normalised(self.pixels(index))

    def pixels(self, index: Indices) -> Pixels:
        """The images at `index` before they are normalised, (B, size, size, C) uint8.

        Raises:
            DataError: One of them is no image or cannot be read.
        """
        return np.stack([*self._pool.map(self._view, index.tolist())])

    def _view(self, position: int) -> Pixels:
        name = f"Image {position + 1:,} of {len(self):,}"
        with pictured_in_hand(self.images[position], name, at_least=self.preprocess.resize) as image:
            resized = self.preprocess.resized(image)
            del image
        return self.preprocess.plain(resized)


class MappedInputs:
    """What a function makes of images in hand, batch by batch.

    Args:
        function: From pixels (B, size, size, C) uint8 to a batch (B, ...).
        images: N images.
    """

    def __init__(self, function: Callable[[Pixels], Tensor], images: InHandInputs) -> None:
        self.function = function
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Indices, rng: np.random.Generator | None) -> Tensor:
        """What the function makes of the images at `index`, (B, ...)."""
        return self.function(self.images.pixels(index))


MEMORY = 2**30  # bytes of resized images that are kept


class Shelf(Protocol):
    """Where resized images are kept, so that they need not be decoded again. Several threads use it."""

    def get(self, position: int) -> Pixels | None:
        """The image at `position`, (h, w, C) uint8, if it is kept."""
        ...

    def put(self, position: int, resized: Pixels) -> bool:
        """Keeps the image at `position`, or says that it cannot."""
        ...

    def flush(self) -> None:
        """Says that no more images come for now."""
        ...


class ImageInputs:
    """Images decoded as batches need them: the `Inputs` of training and of feature extraction.

    Args:
        domain: Image files or an array of images.
        preprocess: How they become inputs.
        augment: The random views that training sees.
        memory: Bytes of resized images to keep, so that small data sets are decoded once; 0 keeps none.
        shelf: Where those are kept that training asks for; the memory then takes only what the shelf refuses.
        broken: Notes the images that cannot be read, which are then missing from their batches. None refuses them.

    Raises:
        DataError: The domain holds vectors.
    """

    def __init__(
        self,
        domain: Domain,
        preprocess: Preprocess,
        augment: Augment = "none",
        *,
        memory: int = MEMORY,
        shelf: Shelf | None = None,
        broken: BrokenImages | None = None,
    ) -> None:
        if domain.kind == "vectors":
            raise DataError(f"{domain.origin} holds feature vectors: give images where a network is to read them.")
        self.domain = domain
        self.preprocess = preprocess
        self.augment: Augment = augment
        self._positions = np.arange(len(domain))
        self._room = memory
        self._kept: dict[int, Pixels] = {}
        self._full = False  # whether there was an image for which no room was left
        self._shelf = shelf
        self._broken = broken
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(THREADS)

    def __len__(self) -> int:
        return len(self._positions)

    def read(self, track: Track = silent) -> None:
        """Decodes all images once, and keeps those that there is room for: for training, which asks for them again.

        From then on these are the inputs of the images that can be read; `broken` has noted the others, and is told of
        no more: a file that breaks while a run trains ends it.
        """
        assert self._broken is not None
        begun = in_order(ThreadPoolExecutor(THREADS), self._read, range(len(self.domain)), ahead=AHEAD)
        for _ in track(begun, "Reading images", len(self.domain)):
            pass
        if self._shelf is not None:
            self._shelf.flush()
        self._positions, self._broken = self._broken.readable, None

    def batch(self, index: Indices, rng: np.random.Generator | None) -> Tensor:
        """The images at `index`, (B, C, size, size) float32: random views, or those of evaluation where `rng` is None.

        Raises:
            BrokenImageError: A file cannot be read as an image, and nobody notes such.
        """
        return self.preprocess.normalised(self.pixels(index, rng))

    def pixels(self, index: Indices, rng: np.random.Generator | None) -> Pixels:
        """The same before they are normalised, (B, size, size, C) uint8."""
        # A generator a sample, made before any thread runs: the views do not depend on which finishes first.
        children: Sequence[np.random.Generator | None] = [None] * len(index)
        if rng is not None and self.augment != "none":
            children = rng.spawn(len(index))
        view = partial(self._view, again=rng is not None)
        found = self._pool.map(view, self._positions[index].tolist(), children)
        views = [pixels for pixels in found if pixels is not None]
        size, channels = self.preprocess.size, self.preprocess.channels
        return np.stack(views) if views else np.empty((0, size, size, channels), np.uint8)

    def _view(self, position: int, rng: np.random.Generator | None, again: bool) -> Pixels | None:
        """A view of an image; None if it is noted as broken."""
        try:
            resized = self._resized(position, again)
        except BrokenImageError as error:
            self._note(position, error)
            return None
        return self.preprocess.plain(resized) if rng is None else self.preprocess.augmented(resized, self.augment, rng)

    def _read(self, position: int) -> None:
        """Keeps an image if there is room, or else sees whether it can be read at all, which takes less."""
        try:
            if not self._full:
                self._resized(position, again=True)
            elif self._kept_before(position) is None:
                with pictured(self.domain, position, at_least=1):
                    pass
        except BrokenImageError as error:
            self._note(position, error)

    def _note(self, position: int, error: BrokenImageError) -> None:
        if self._broken is None:
            raise error
        self._broken.note(position, error.reason)

    def _kept_before(self, position: int) -> Pixels | None:
        kept = self._kept.get(position)
        if kept is None and self._shelf is not None:
            kept = self._shelf.get(position)
        return kept

    def _resized(self, position: int, again: bool) -> Pixels:
        """A resized image; `again` says that it will be asked for again, as training does and evaluation does not."""
        kept = self._kept_before(position)
        if kept is not None:
            return kept
        with pictured(self.domain, position, at_least=self.preprocess.resize) as image:
            resized = self.preprocess.resized(image)
            del image  # before the room that it took is given back
        if self._shelf is None:
            self._remember(position, resized)
        elif again:
            taken = self._shelf.put(position, resized)
            if not taken:
                self._remember(position, resized)
        return resized

    def _remember(self, position: int, resized: Pixels) -> None:
        with self._lock:
            if position in self._kept:
                return
            if resized.nbytes > self._room:
                self._full = True
                return
            self._kept[position] = resized
            self._room -= resized.nbytes
