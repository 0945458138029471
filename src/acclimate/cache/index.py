"""The index of a store: a record a row, with checksums, found by the image's identity."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from acclimate.cache.identity import Identities
from acclimate.data.domain import IDENTITY, Indices

RECORD = np.dtype([("identity", IDENTITY), ("checksum", "<u4"), ("guard", "<u4")])


def guards(records: npt.NDArray[Any], rows: Indices) -> npt.NDArray[np.uint32]:
    """A checksum of each record and its row's number, which is not 0 for a record of zeros."""
    words = np.ascontiguousarray(records).view("<u4").reshape(-1, RECORD.itemsize // 4)[:, :-1]  # all but the guard
    factors = np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1], dtype=np.uint32)  # odd
    guards: npt.NDArray[np.uint32] = (words * factors).sum(1, dtype=np.uint32) + (2 * rows + 1).astype(np.uint32)
    return guards


def valid_rows(records: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which records (R,) belong to the row they stand at and were written whole."""
    valid: npt.NDArray[np.bool_] = records["guard"] == guards(records, np.arange(len(records)))
    return valid


def find_rows(records: npt.NDArray[Any], wanted: Identities) -> Indices:
    """The number of the valid record of each wanted image, -1 for none."""
    sound = np.flatnonzero(valid_rows(records))
    if not len(sound):
        return np.full(len(wanted), -1, dtype=np.int64)
    known = records["identity"][sound]
    halves = _first_halves(known)
    order = np.argsort(halves)
    place = order[np.searchsorted(halves[order], _first_halves(wanted)).clip(max=len(known) - 1)]
    return np.where(known[place] == wanted, sound[place], -1)


def _first_halves(identities: Identities) -> npt.NDArray[np.uint64]:
    """Numbers, which are found in a fifth of the time of strings; two images that share one are computed again."""
    halves: npt.NDArray[np.uint64] = np.ascontiguousarray(identities).view("<u8")[::2]
    return halves
