"""Arrays of images or feature vectors, in memory or in an .npz file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from acclimate.data.domain import Domain, Labels, file_identity
from acclimate.data.npz import load_npz
from acclimate.errors import DataError

ROWS_AT_ONCE = 4096  # of an array that is looked through

FIRST_HALF, LAST_HALF = 0xD800, 0xDFFF  # of a character, in UTF-16

ARRAY_FORMS = "uint8 images (N, H, W) or (N, H, W, 1, 3 or 4), or float vectors (N, D)"


def npz_part(path: Path) -> tuple[Path, str] | None:
    """The .npz that `path` names or names a part of, and what the names of that part's arrays end in."""
    if path.suffix.lower() == ".npz" and path.is_file():
        return path, ""
    if path.parent.suffix.lower() == ".npz" and path.parent.is_file():
        return path.parent, f"_{path.name}"
    return None


def read_arrays(path: Path, ending: str, origin: str, need_labels: bool) -> tuple[Domain, Labels]:
    """The domain and the labels of the arrays of an .npz whose names end in `ending`."""
    x, y = f"x{ending}", f"y{ending}"
    arrays = load_npz(path, [x, y])
    for name in (x, y) if need_labels else (x,):
        check_array(path, name, arrays)
    domain = replace(array_domain(np.asarray(arrays[x]), origin), mapped=_mapped_from(arrays[x]))
    if y not in arrays:
        return domain, (None,) * len(domain)
    labels = array_labels(arrays[y], origin)
    if len(labels) != len(domain):
        raise DataError(f"{origin} has {len(domain):,} items in x but {len(labels):,} labels in y: give one an item.")
    return domain, labels


def check_array(path: Path, name: str, arrays: Mapping[str, object]) -> None:
    """Refuse a file that lacks the array called `name`."""
    if name not in arrays:
        raise DataError(
            f"{path} has no array '{name}': save it with numpy.savez(file, x=..., y=...), or name a part of it, "
            f"{path / 'train'} for x_train and y_train."
        )


def _mapped_from(x: npt.NDArray[np.generic]) -> bytes | None:
    if not isinstance(x, np.memmap):
        return None
    return file_identity(str(x.filename)) + str(x.offset).encode()


def array_domain(x: npt.NDArray[np.generic], origin: str) -> Domain:
    """The domain of an array of images or vectors."""
    is_image = x.dtype == np.uint8 and (x.ndim == 3 or (x.ndim == 4 and x.shape[3] in (1, 3, 4)))
    is_vector = np.issubdtype(x.dtype, np.floating) and x.ndim == 2
    if not (is_image or is_vector):
        raise DataError(f"The array x of {origin} is {x.dtype} of shape {x.shape}: give {ARRAY_FORMS}.")
    if x.size == 0:
        raise DataError(f"The array x of {origin} is empty, its shape is {x.shape}: give at least one item.")
    if is_vector and (row := _first_not_finite(x)) is not None:
        raise DataError(f"The array x of {origin} has NaN or infinite values, first in row {row}: remove them.")
    items = x[..., 0] if x.ndim == 4 and x.shape[3] == 1 else x
    return Domain(items, tuple(map(str, range(len(x)))), origin)


def _first_not_finite(x: npt.NDArray[Any]) -> int | None:
    """The first row with a NaN or an infinity, found without a mask of the whole."""
    for start in range(0, len(x), ROWS_AT_ONCE):
        rows = np.isfinite(x[start : start + ROWS_AT_ONCE]).all(1)
        if not rows.all():
            return start + int(rows.argmin())
    return None


def array_labels(y: npt.NDArray[np.generic], origin: str) -> tuple[str, ...]:
    """The labels in an array, as text."""
    if y.dtype.kind not in "iuU" or y.ndim != 1:
        raise DataError(f"The array y of {origin} is {y.dtype} of shape {y.shape}: give one integer or text an item.")
    if y.dtype.kind == "U" and not _is_unicode(y):
        raise DataError(f"The array y of {origin} has text that is not Unicode: save it again.")
    return tuple(map(str, y.tolist()))


def _is_unicode(text: npt.NDArray[np.generic]) -> bool:
    """Whether the numbers of which an array's text (N,) consists are characters, none of them half of a pair."""
    if not text.itemsize:
        return True
    points = np.ascontiguousarray(text).view(np.dtype(np.uint32).newbyteorder(text.dtype.byteorder))
    return bool(((points < FIRST_HALF) | ((points > LAST_HALF) & (points <= sys.maxunicode))).all())
