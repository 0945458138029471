"""What an image is known by in the cache, so that a change of one is noticed and a copy of the list is not."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from acclimate.data.decode import MOST_BYTES
from acclimate.data.domain import IDENTITY, Domain, Indices
from acclimate.errors import OptionError
from acclimate.files import read_regular

Identities: TypeAlias = npt.NDArray[np.bytes_]


def identities(domain: Domain) -> Identities:
    """What identifies each image of a domain, (N,).

    A file is known by its resolved path, its size and its time of change, so that nothing is read; with
    ACCLIMATE_CACHE_BY=content by its bytes, wherever it lies. An image in an array is known by its bytes.

    Raises:
        OptionError: The environment variable has another value.
    """
    by = _by()
    if not isinstance(domain.items, tuple):
        form = f"{domain.items.dtype.str} {domain.items.shape[1:]}".encode()
        digests: Iterable[bytes] = (_digest(form, np.ascontiguousarray(item)) for item in domain.items)
    elif by == "content":
        digests = map(_file_content, domain.items)
    else:
        return domain.file_identities
    return np.frombuffer(b"".join(digests), IDENTITY)


def file_paths(domain: Domain, positions: Indices) -> list[str | None]:
    """The resolved paths of the images at `positions`; None for those that are not known by their path."""
    if isinstance(domain.items, tuple) and _by() == "time":
        return [*domain.real_paths(positions)]
    return [None] * len(positions)


def _by() -> str:
    by = os.environ.get("ACCLIMATE_CACHE_BY") or "time"
    if by not in ("time", "content"):
        raise OptionError(f"ACCLIMATE_CACHE_BY must be time or content, not {by!r}.")
    return by


def _file_content(path: str) -> bytes:
    try:
        return _digest(b"content", read_regular(path, MOST_BYTES))
    except OSError:  # decoding will say why
        return _digest(b"gone", os.fsencode(path))


def _digest(*parts: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=IDENTITY.itemsize)
    for part in parts:
        digest.update(part)
    return digest.digest()
