"""Finding the files that cannot be read as images before anything is computed."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from acclimate.data.decode import THREADS, BrokenImageError, read_image
from acclimate.data.domain import Domain, Indices, LabelledDomain
from acclimate.errors import DataError
from acclimate.files import cache_folder, write_whole
from acclimate.progress import Track, silent
from acclimate.threads import in_order

AHEAD = 256  # files decoded beyond the one that is waited for: an interrupt waits for no more


def find_broken(domain: Domain, track: Track = silent) -> dict[int, str]:
    """Decodes every file and gives the position and the reason of each that cannot be read as an image.

    What was found is remembered in the cache folder until a file changes; the broken files are always tried again.
    """
    if not isinstance(domain.items, tuple):
        return {}
    record = cache_folder() / "broken" / f"{domain.fingerprint()}.json"
    positions = _remembered(record, len(domain))
    if positions is None:
        reasons = in_order(ThreadPoolExecutor(THREADS), _broken_reason, domain.items, ahead=AHEAD)
        tracked = track(enumerate(reasons), "Checking images", len(domain))
        broken = {i: reason for i, reason in tracked if reason is not None}
        with suppress(OSError):  # a cache that cannot be written costs time, nothing else
            write_whole(record, json.dumps(list(broken)).encode())
        return broken
    again = ((i, _broken_reason(domain.items[i])) for i in positions)
    return {i: reason for i, reason in again if reason is not None}


def without_broken(data: Domain | LabelledDomain, track: Track = silent) -> tuple[Indices, list[tuple[str, str]]]:
    """Leaves out the files that cannot be read, if they are few.

    Returns:
        The positions to keep, for `data.select`, and the name and the reason of each file left out.

    Raises:
        DataError: More than a tenth of the files are broken, or all the files of a class.
    """
    domain = data.domain if isinstance(data, LabelledDomain) else data
    broken = find_broken(domain, track)
    skipped = [(domain.names[i], reason) for i, reason in broken.items()]
    if len(broken) * 10 > len(domain):
        name, reason = skipped[0]
        raise DataError(
            f"{len(broken):,} of the {len(domain):,} images of {domain.origin} cannot be read, for example '{name}' "
            f"({reason}): replace or remove them."
        )
    keep = np.array([i for i in range(len(domain)) if i not in broken], dtype=np.int64)
    if isinstance(data, LabelledDomain):
        _check_classes_left(data, keep)
    return keep, skipped


def _check_classes_left(data: LabelledDomain, keep: Indices) -> None:
    for i in np.setdiff1d(data.labels, data.labels[keep]):
        raise DataError(
            f"No image of the class '{data.classes[i]}' in {data.domain.origin} can be read: replace them or remove it."
        )


def _broken_reason(path: str) -> str | None:
    try:
        read_image(path, at_least=1)
    except BrokenImageError as error:
        return error.reason
    return None


def _remembered(record: Path, total: int) -> list[int] | None:
    """The positions a former check found, None if there is none or its record is damaged."""
    try:
        positions = json.loads(record.read_bytes())
    except (OSError, ValueError):
        return None
    sound = isinstance(positions, list) and all(type(i) is int and 0 <= i < total for i in positions)
    return positions if sound else None
