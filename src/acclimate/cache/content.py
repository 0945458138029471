"""What the rows of a store are: all that they depend on besides the images, which names the store's folder."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from acclimate.choices import Precision, View
from acclimate.data.preprocess import Preprocess
from acclimate.files import cache_folder
from acclimate.shard import Shard

FORMAT = 3  # a change of the files, or of what is computed, must raise it

NAME = r"([0-9a-f]{64})(?:-(\d+)-of-(\d+))?"  # of a store's folder: what it holds, and which part of an extraction


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

    def folder_of(self, shard: Shard | None) -> Path:
        """Where the store is that one of several parts of an extraction fills; the only part has no other."""
        if shard is None or shard.of == 1:
            return self.folder
        return self.folder.with_name(f"{self.folder.name}-{shard.number}-of-{shard.of}")


def stores_folder() -> Path:
    """The folder of all stores; it need not exist."""
    return cache_folder() / "features"


def folders_of_stores() -> list[Path]:
    """The folders that are named as stores are, sorted; each may lack the files of one."""
    return folders_named(NAME, stores_folder())


def folders_named(pattern: str, root: Path) -> list[Path]:
    """What lies in a folder of the cache under names of this pattern, sorted, without links."""
    folders = sorted(root.iterdir()) if root.is_dir() else []
    return [path for path in folders if re.fullmatch(pattern, path.name) and not path.is_symlink()]


def part_of(folder: Path) -> str | None:
    """Which part of an extraction a store is of, as in 0/4; None where it is that of all else."""
    named = re.fullmatch(NAME, folder.name)
    return f"{named[2]}/{named[3]}" if named and named[2] else None
