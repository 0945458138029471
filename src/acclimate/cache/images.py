"""Resized images on the disk, so that fine-tuning decodes each image once, however many there are.

They lie in stores as features do, a row an image. A store's rows have one length, but images that keep the ratio of
their sides do not, so there is a store for each of a few ratios; an image is in the narrowest that has room for it. A
row is two numbers, the image's height and width, then its pixels, then zeros.
"""

from __future__ import annotations

import logging
import math
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from acclimate.cache.content import Content, stores_folder
from acclimate.cache.identity import file_paths, identities
from acclimate.cache.store import Store
from acclimate.choices import Augment, KeepImages
from acclimate.data.broken import BrokenImages
from acclimate.data.decode import Pixels
from acclimate.data.domain import Domain, Indices
from acclimate.data.inputs import MEMORY, ImageInputs
from acclimate.data.preprocess import WIDEST, Preprocess

RATIOS = (1, 9 / 8, 4 / 3, 3 / 2, 16 / 9, 2, 5 / 2, 3, 4, 6, WIDEST)  # longer side to shorter, with those of cameras

USUAL = 1.4  # ratio of the sides of a photo, for an estimate of the room that many need

SPARE = 2  # times that room must be free before images are written unasked

BLOCK = 2**27  # bytes of images that are written at once: what a kill costs, and what waits in memory

_SIDES = np.dtype("<u4")

_HEAD = 2 * _SIDES.itemsize  # bytes of height and width

log = logging.getLogger("acclimate")


def image_inputs(
    domain: Domain,
    preprocess: Preprocess,
    augment: Augment = "none",
    *,
    images: KeepImages = "auto",
    memory: int = MEMORY,
    broken: BrokenImages | None = None,
) -> ImageInputs:
    """Images as batches need them, decoded once if there is room for them.

    Args:
        domain: Image files or an array of images.
        preprocess: How they become inputs.
        augment: The random views that training sees.
        images: Where resized images are kept. "memory": as many as `memory` holds. "disk": in the cache folder, as many
            as its disk holds. "auto": in memory if all fit, else on the disk if they are files and twice the room that
            they need is free; otherwise as many as fit in memory.
        memory: Bytes of the memory that may be taken.
        broken: Notes the images that cannot be read, see `ImageInputs`.

    Raises:
        DataError: The domain holds vectors.
    """
    fits = not isinstance(domain.items, tuple) or _estimate(preprocess, len(domain)) <= memory
    if images == "memory" or (images == "auto" and fits):
        return ImageInputs(domain, preprocess, augment, memory=memory, broken=broken)
    shelf = DiskShelf(domain, preprocess, spare=SPARE if images == "auto" else 0)
    return ImageInputs(domain, preprocess, augment, memory=memory, shelf=shelf, broken=broken)


class DiskShelf:
    """The resized images of a domain in the cache folder, shared by all runs and processes.

    Images are written in blocks. Where that fails a warning says so once, and what is on the disk is still read.

    Args:
        domain: Image files or an array of images.
        preprocess: How they are resized; what comes after that does not matter.
        spare: How many times the room that they need must be free before the first is written; 0 does not ask.
    """

    def __init__(self, domain: Domain, preprocess: Preprocess, *, spare: float = 0) -> None:
        self._domain = domain
        self._preprocess = preprocess
        self._spare = spare
        self._identities = identities(domain)
        ratios = RATIOS if preprocess.aspect == "keep" else RATIOS[:1]
        self._contents = [_content(preprocess, ratio) for ratio in ratios]
        self._lengths = np.array([_bytes(preprocess, ratio) for ratio in ratios])
        self._files: list[Path] = []  # each mapped once; those that pruning has replaced stay mapped
        self._maps: list[Pixels] = []
        self._places = np.full((len(domain), 2), -1)  # of each image: the number of its file and of its row
        self._look_up(np.arange(len(domain)), self._contents)
        self._waiting: dict[int, Pixels] = {}
        self._writable: bool | None = None  # None before it was tried
        self._lock = threading.Lock()
        self._turn = threading.Lock()  # of the thread that writes

    def get(self, position: int) -> Pixels | None:
        """The image at `position`, (h, w, C) uint8, if it is kept."""
        if (waiting := self._waiting.get(position)) is not None:
            return waiting
        row = self._places[position, 1]
        if row < 0:
            return None
        return _unpacked(self._maps[self._places[position, 0]][row, 0], self._preprocess.channels)

    def put(self, position: int, resized: Pixels) -> bool:
        """Keeps the image at `position`, or says that it cannot. From time to time this writes those that wait."""
        with self._lock:
            if self._writable is None:
                self._writable = self._has_room()
            if not self._writable:
                return False
            self._waiting[position] = resized
        while self._is_due() and self._turn.acquire(blocking=False):
            try:
                self._write_waiting()
            finally:
                self._turn.release()
        return True

    def flush(self) -> None:
        """Writes the images that wait, since those that are still missing may never come."""
        with self._turn:
            if self._waiting:
                self._write_waiting()

    def _is_due(self) -> bool:
        """Whether enough images wait to be written, or all that are still to come."""
        with self._lock:
            size = sum(pixels.nbytes for pixels in self._waiting.values())
            return size >= BLOCK or len(self._waiting) >= max(len(self._missing()), 1)

    def _missing(self) -> Indices:
        """The positions of the images that are not known to be on the disk."""
        return np.flatnonzero(self._places[:, 1] < 0)

    def _has_room(self) -> bool:
        needed = _estimate(self._preprocess, len(self._missing()))
        folder = stores_folder()
        with suppress(OSError):  # writing will say why
            while not folder.exists():
                folder = folder.parent
            if shutil.disk_usage(folder).free < self._spare * needed:
                reason = f"they need about {needed / 1e9:.1f} GB, and its disk has not {self._spare:g} times that room"
                self._warn(reason)
                return False
        return True

    def _warn(self, reason: object) -> None:
        sentence = "The resized images of %s are not kept in %s, but decoded again in every epoch: %s."
        log.warning(sentence, self._domain.origin, stores_folder(), reason)

    def _write_waiting(self) -> None:
        with self._lock:
            block = dict(self._waiting)
        failed = False
        try:
            kinds = np.searchsorted(self._lengths, [pixels.nbytes for pixels in block.values()])
            positions = np.array([*block])
            for kind in np.unique(kinds):
                self._write(self._contents[kind], self._lengths[kind], positions[kinds == kind], block)
        except OSError as error:
            self._warn(error)
            failed = True
        with self._lock:
            self._writable = not failed
            for position in [*self._waiting] if failed else block:
                del self._waiting[position]  # only now: until here `get` found them among those that wait

    def _write(self, content: Content, length: int, positions: Indices, block: dict[int, Pixels]) -> None:
        store = Store(content.folder)
        with store.writing(content) as writer:
            missing = positions[store.missing(self._identities[positions])]
            if len(missing):
                rows = np.zeros((len(missing), 1, _HEAD + length), np.uint8)
                for row, position in zip(rows, missing.tolist(), strict=True):
                    _pack(block[position], row[0])
                writer.reserve(len(missing), rows)
                writer.append(self._identities[missing], file_paths(self._domain, missing), rows)
        if len(missing) == len(positions):
            self._look_up(positions, [content])
        else:  # another process is at it too, and may have written others
            self._look_up(self._missing(), self._contents)

    def _look_up(self, positions: Indices, contents: list[Content]) -> None:
        """Takes note of where in the stores of `contents` the images at `positions` are."""
        for content in contents:
            with suppress(OSError):  # what cannot be read is decoded
                if content.folder.is_dir():
                    rows, numbers = Store(content.folder).read(self._identities[positions])
                    if isinstance(rows, np.memmap):
                        found = numbers >= 0
                        self._places[positions[found], 0] = self._mapped(rows)
                        self._places[positions[found], 1] = numbers[found]  # last: now `get` finds them

    def _mapped(self, rows: np.memmap[Any, Any]) -> int:
        """The number of a file of rows, of which the longest map counts."""
        assert rows.filename is not None
        file = Path(rows.filename)
        if file not in self._files:
            self._maps.append(np.asarray(rows))  # indexing a memmap itself takes longer
            self._files.append(file)
        number = self._files.index(file)
        if len(rows) > len(self._maps[number]):
            self._maps[number] = np.asarray(rows)
        return number


def _content(preprocess: Preprocess, ratio: float) -> Content:
    """What the stores are known by: of the preprocessing only what comes before the crop."""
    plain = Preprocess(
        resize=preprocess.resize,
        size=preprocess.resize,
        mean=(0.0,) * preprocess.channels,
        std=(1.0,) * preprocess.channels,
        interpolation=preprocess.interpolation,
        channels=preprocess.channels,
        aspect=preprocess.aspect,
    )
    return Content("resized images", "", f"{ratio:.3g} to 1", "all", plain, precision="uint8")


def _bytes(preprocess: Preprocess, ratio: float) -> int:
    """Bytes of an image whose sides have this ratio."""
    return math.ceil(ratio * preprocess.resize) * preprocess.resize * preprocess.channels


def _estimate(preprocess: Preprocess, images: int) -> int:
    """About how many bytes so many images take."""
    return images * _bytes(preprocess, USUAL if preprocess.aspect == "keep" else 1)


def _pack(pixels: Pixels, row: Pixels) -> None:
    row[:_HEAD].view(_SIDES)[:] = pixels.shape[:2]
    row[_HEAD : _HEAD + pixels.size] = pixels.reshape(-1)


def _unpacked(row: Pixels, channels: int) -> Pixels:
    height, width = row[:_HEAD].view(_SIDES).tolist()
    return row[_HEAD : _HEAD + height * width * channels].reshape(height, width, channels)
