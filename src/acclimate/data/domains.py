"""A domain: the images (or feature vectors) of one setting, read from whatever form the user has them in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Items: TypeAlias = tuple[Path, ...] | npt.NDArray[np.generic]


@dataclass(frozen=True, eq=False)
class Domain:
    """Images or feature vectors of one setting, without labels.

    Attributes:
        items: Image files, or an array: uint8 images (N, H, W) or (N, H, W, 3), or float vectors (N, D).
        names: One name an item, as found: the path below the folder, the path in the list, or the row's number.
        origin: What the user named, for messages.
    """

    items: Items
    names: tuple[str, ...]
    origin: str

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True, eq=False)
class LabelledDomain:
    """A domain with its labels: the source. A target never becomes one below `evaluation`.

    Attributes:
        domain: The images.
        labels: (N,) int64, positions in `classes`.
        classes: The class names, sorted.
    """

    domain: Domain
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
