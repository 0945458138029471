"""The files of a domain that cannot be read as images: found by whoever decodes them first, and then remembered."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path

import numpy as np

from acclimate.data.decode import THREADS, BrokenImageError, read_image
from acclimate.data.domain import Domain, Indices, LabelledDomain
from acclimate.errors import DataError
from acclimate.files import cache_folder, check_cache_may_change, read_regular, write_whole
from acclimate.progress import Track, silent
from acclimate.schema import Checked, Count, UnreadableError, as_json, decode
from acclimate.threads import in_order

MOST_BROKEN = 0.1  # of a domain's images

AHEAD = 256  # files decoded beyond the one that is waited for: an interrupt waits for no more


class _Noted(Checked, frozen=True, kw_only=True):
    """What the cache remembers of a domain: the positions of its broken images."""

    positions: tuple[Count, ...]


class TooManyBrokenError(DataError):
    """More images are broken than may be left out, although not all have been tried yet."""


class BrokenImages:
    """The images of a domain that cannot be read.

    No image is decoded for this alone. Whoever decodes all of them does so within `found` and notes those that cannot
    be read; afterwards it is known which they are. It is remembered in the cache folder until a file changes; only the
    broken ones are tried again by whoever needs the domain next.

    Args:
        data: The images; where they have labels, no class may lose all of its images.
        most: The largest fraction that may be broken.

    Attributes:
        domain: The images.
        reasons: Why an image cannot be read, by its position, for those that are noted.
        known: Whether all that are broken are noted.
    """

    def __init__(self, data: Domain | LabelledDomain, most: float = MOST_BROKEN) -> None:
        self.domain = data.domain if isinstance(data, LabelledDomain) else data
        self.reasons: dict[int, str] = {}
        self.known = not isinstance(self.domain.items, tuple)  # arrays are decoded already
        self._labelled = data if isinstance(data, LabelledDomain) else None
        self._most = most
        self._lock = threading.Lock()

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """The name of each image that is noted, and the reason."""
        return [(self.domain.names[i], self.reasons[i]) for i in sorted(self.reasons)]

    @property
    def readable(self) -> Indices:
        """The positions of all images that are not noted, ascending."""
        return np.delete(np.arange(len(self.domain)), np.array([*self.reasons], dtype=np.int64))

    @cached_property
    def left(self) -> Domain:
        """The domain of these images, once all that are broken are known."""
        assert self.known
        return self.domain.select(self.readable)

    def without(self, positions: Indices) -> Indices:
        """Those of the positions that are not noted."""
        return np.array([i for i in positions.tolist() if i not in self.reasons], dtype=np.int64)

    def note(self, position: int, reason: str) -> None:
        """Takes note of an image that cannot be read. Several threads may do so.

        Raises:
            TooManyBrokenError: It is one too many.
        """
        with self._lock:
            self.reasons[position] = reason
            if self._too_many():
                raise TooManyBrokenError(self._sentence())

    @contextmanager
    def found(self, track: Track = silent) -> Iterator[None]:
        """Within it, all images are decoded and the broken ones noted, unless they are known; afterwards they are.

        Raises:
            DataError: More are broken than may be, or all the images of a class.
        """
        self.recall()
        if self.known:
            yield
            return
        try:
            yield
        except TooManyBrokenError:
            self._decode_all(track)  # to say how many
        self.known = True
        with suppress(OSError):  # a cache that cannot be written costs time, nothing else
            self._remember()
        self._refuse_unusable()

    def recall(self) -> None:
        """Takes note of what an earlier process found, if one did.

        Raises:
            DataError: More are broken than may be, or all the images of a class.
        """
        if not self.known:
            positions = _remembered(self._record, len(self.domain))
            if positions is None:
                return
            tried = {i: _broken_reason(self.domain.items[i]) for i in positions}
            self.reasons = {i: reason for i, reason in tried.items() if reason is not None}
            self.known = True
        self._refuse_unusable()

    def check(self, track: Track = silent) -> None:
        """Finds the broken images by decoding all, unless they are known.

        Raises:
            DataError: More are broken than may be, or all the images of a class.
        """
        with self.found(track):
            if not self.known:
                self._decode_all(track)

    def _decode_all(self, track: Track) -> None:
        reasons = in_order(ThreadPoolExecutor(THREADS), _broken_reason, self.domain.items, ahead=AHEAD)
        for i, reason in enumerate(track(reasons, "Checking images", len(self.domain))):
            if reason is not None:
                self.reasons[i] = reason

    @property
    def _record(self) -> Path:
        return cache_folder() / "broken" / f"{self.domain.fingerprint()}.json"

    def _remember(self) -> None:
        check_cache_may_change(self._record)
        noted = _Noted(positions=tuple(sorted(self.reasons)))
        write_whole(self._record, json.dumps(as_json(noted)).encode())

    def _too_many(self) -> bool:
        return len(self.reasons) > self._most * len(self.domain)

    def _sentence(self) -> str:
        name, reason = self.skipped[0]
        return (
            f"{len(self.reasons):,} of the {len(self.domain):,} images of {self.domain.origin} cannot be read, for "
            f"example '{name}' ({reason}): replace or remove them."
        )

    def _refuse_unusable(self) -> None:
        if self._too_many():
            raise DataError(self._sentence())
        if self._labelled is None or not self.reasons:
            return
        labels = self._labelled.labels
        for k in np.setdiff1d(labels, labels[self.readable]):
            raise DataError(
                f"No image of the class '{self._labelled.classes[k]}' in {self.domain.origin} can be read: replace "
                "them or remove it."
            )


def _broken_reason(path: str) -> str | None:
    try:
        read_image(path, at_least=1)
    except BrokenImageError as error:
        return error.reason
    return None


def _remembered(record: Path, total: int) -> list[int] | None:
    """The positions that are noted in a record, None if there is none or it is damaged."""
    try:
        positions = decode(read_regular(record), _Noted).positions
    except (OSError, UnreadableError):
        return None
    return list(positions) if all(i < total for i in positions) else None
