"""What the rows of a store are: all that they depend on besides the images, which names the store's folder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from acclimate.choices import Precision, View
from acclimate.data.preprocess import Preprocess
from acclimate.files import cache_folder

FORMAT = 3  # a change of the files, or of what is computed, must raise it


@dataclass(frozen=True)
class Content:
    """All that a row depends on besides its image.

    Attributes:
        backbone: Its name.
        weights: The fingerprint of the weights of its frozen part.
        level: What the frozen part makes of an image: a vector or a map.
        tune: What is trained on it.
        preprocess: How an image becomes an input.
        views: The views of each image, in the order of a row's first axis.
        bf16: Whether the network runs in bfloat16.
        precision: Of the values on the disk; uint8 is for pixels.
        engine: What runs the network: PyTorch, or another with its version.
    """

    backbone: str
    weights: str
    level: str
    tune: str
    preprocess: Preprocess
    views: tuple[View, ...] = ("plain",)
    bf16: bool = False
    precision: Precision | Literal["uint8"] = "fp32"
    engine: str = "torch"

    @property
    def folder(self) -> Path:
        """Where the store of these features is."""
        return stores_folder() / hashlib.sha256(repr((FORMAT, self)).encode()).hexdigest()


def stores_folder() -> Path:
    """The folder of all stores; it need not exist."""
    return cache_folder() / "features"
