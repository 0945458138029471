"""Where a benchmark's domains lie below a folder of the user's."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path

from acclimate.choices import Split
from acclimate.datasets.catalogue import Benchmark, Facts, plain
from acclimate.errors import DataError

DEEPEST = 2  # folders between the root and the domains

LIST_FOLDERS = ("image_list", "image_lists", "list", "lists", "txt")


def find(benchmark: Benchmark, root: str | Path, split: Split = "train") -> dict[str, str]:
    """Where the domains lie below a folder.

    Recognised are the layouts of the archives, of Transfer-Learning-Library with its lists, and folders, image
    lists and .npz files that are named as the domains in any case, with `_`, `-`, blanks or nothing between the
    words, up to two folders deep. All specs are of one style, so that the labels agree: lists where they divide
    the benchmark into splits, else class folders and arrays, unless the other style finds more domains.

    Args:
        benchmark: Which.
        root: The folder.
        split: Which images, where the benchmark has splits and what is found does.

    Returns:
        By the names of the domains that are found, in the benchmark's order, what `read_source` and `read_target`
        take.

    Raises:
        DataError: `root` is not a folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: name the one that holds {benchmark.title}.")
    folders = [root]
    for _ in range(DEEPEST + 1):
        found = [_Place(folder).find(benchmark, split) for folder in folders]
        if any(found):
            return max(found, key=len)
        folders = [Path(entry) for folder in folders for entry in _entries(folder) if entry.is_dir()]
    return {}


class _Place:
    """A folder that may hold domains: its folders, image lists and arrays by their plain names."""

    def __init__(self, folder: Path) -> None:
        entries = _entries(folder)
        self.folders = {plain(entry.name): Path(entry) for entry in entries if entry.is_dir()}
        self.arrays = _files(entries, ".npz")
        self.lists = _files(entries, ".txt")
        for name in LIST_FOLDERS:
            if within := self.folders.get(plain(name)):
                self.lists |= _files(_entries(within), ".txt")

    def find(self, benchmark: Benchmark, split: Split) -> dict[str, str]:
        part = split if benchmark.has_splits else ""
        classes = {plain(name) for name in benchmark.classes}
        own = {domain.name: self._images(domain, part, classes) for domain in benchmark.domains}
        listed = {domain.name: self._list(domain, part) for domain in benchmark.domains}
        styles = [
            {name: str(path) for name, path in found.items() if path is not None}
            for found in ((listed, own) if benchmark.has_splits else (own, listed))
        ]
        return max(styles, key=len)  # the first of equals

    def _images(self, domain: Facts, part: str, classes: Collection[str]) -> Path | None:
        for name in map(plain, domain.names):
            file = self.arrays.get(name + part) or self.arrays.get(name)
            if file is not None:
                return file / part if part and _has_array(file, f"y_{part}") else file
            if (folder := self.folders.get(name)) is not None:
                for inside in (part, "", "images", folder.name):  # zip files hold a folder of their own name
                    if any(e.is_dir() and plain(e.name) in classes for e in _entries(folder / inside)):
                        return folder / inside
        return None

    def _list(self, domain: Facts, part: str) -> Path | None:
        stems = [f"{plain(name)}{ending}" for name in domain.names for ending in (part, "", "list", "all")]
        return next((self.lists[stem] for stem in stems if stem in self.lists), None)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, sorted; nothing if it is not there or may not be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError:
        return []


def _files(entries: Sequence[os.DirEntry[str]], suffix: str) -> dict[str, Path]:
    files = (Path(entry) for entry in entries if entry.name.lower().endswith(suffix))
    return {plain(file.stem): file for file in files}


def _has_array(file: Path, name: str) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return f"{name}.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False  # whoever reads it says what is wrong
