"""Folders of images, whose top-level folders may be classes."""

from __future__ import annotations

import heapq
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from acclimate.choices import IMAGE_SUFFIXES
from acclimate.data.domain import Domain, Labels
from acclimate.data.kinds import looks_like_image, unread
from acclimate.errors import DataError

SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir"})  # archives and network disks keep thumbnails in these


def read_folder(folder: Path, need_labels: bool) -> tuple[Domain, Labels]:
    """The images below a folder, and the names of the top-level folders they lie in."""
    left: list[str] = []
    found = images_below(folder, left)
    if not found and left:
        raise DataError(f"{folder} holds no images that can be read, only such as '{left[0]}' ({unread(left[0])}).")
    if not found:
        raise DataError(f"{folder} holds no images: name a folder with {', '.join(IMAGE_SUFFIXES)} files.")
    labels = folder_labels(folder, found)
    if need_labels:
        _check_class_folders(folder, found, labels)
    prefix = os.path.join(folder, "")  # noqa: PTH118 (a Path has no separator at its end)
    items = tuple(f"{prefix}{name}" for name in found)
    reasons = tuple((printable(name), unread(name) or "") for name in left)
    return Domain(items, tuple(map(printable, found)), str(folder), unread=reasons), labels


def folder_labels(folder: Path, found: Sequence[str]) -> Labels:
    """The name of the top-level folder of each image that was found below `folder`; None where it lies in none.

    Raises:
        DataError: Two of these folders have different names that would be written alike.
    """
    tops = [name.partition("/")[0] if "/" in name else None for name in found]
    written = {top: printable(top) for top in sorted({top for top in tops if top is not None})}
    _check_distinct(folder, written)
    return tuple(written[top] if top is not None else None for top in tops)


def _check_distinct(folder: Path, written: Mapping[str, str]) -> None:
    first: dict[str, str] = {}
    for name, label in written.items():
        if label in first:
            alike = " and ".join(f"'{_escaped(other)}'" for other in (first[label], name))
            raise DataError(
                f"The folders {alike} in {folder} have names that are not UTF-8 and that nobody can tell apart: "
                "rename one of them."
            )
        first[label] = name


def _check_class_folders(folder: Path, found: Sequence[str], labels: Labels) -> None:
    loose = [name for name, label in zip(found, labels, strict=True) if label is None]
    if len(loose) == len(found):
        raise DataError(
            f"{folder} holds {len(found):,} images but no class folders: "
            "put the images of each class into a folder with the name of the class."
        )
    if loose:
        raise DataError(
            f"{folder} holds {len(loose):,} images outside its class folders, for example '{printable(loose[0])}': "
            "move each into the folder of its class."
        )
    classes = set(labels)
    for name in sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _ignored(entry.name)):
        if printable(name) not in classes:
            raise DataError(f"The class folder {folder / name} holds no image: add images to it or remove it.")


def images_below(folder: Path, left: list[str] | None = None) -> list[str]:
    """The paths of the images below `folder`, with slashes, sorted by their parts.

    Those that look like images and are not read here are added to `left`.

    Each folder is read once, so links may form cycles. Links wait until the rest is read: a folder that a link also
    leads to keeps its own name.
    """
    found: list[str] = []
    others: list[str] = []
    read: set[tuple[int, int]] = set()
    waiting = [(False, "")]
    while waiting:
        prefix = heapq.heappop(waiting)[1]
        status = (folder / prefix).stat()
        if (status.st_dev, status.st_ino) in read:
            continue
        read.add((status.st_dev, status.st_ino))
        with os.scandir(folder / prefix) as entries:
            for entry in entries:
                if _ignored(entry.name):
                    continue
                is_link = entry.is_symlink()
                if entry.is_dir(follow_symlinks=False) or (is_link and Path(entry).is_dir()):
                    heapq.heappush(waiting, (is_link, f"{prefix}{entry.name}/"))
                elif looks_like_image(entry.name) and (is_link or entry.is_file()):
                    (found if unread(entry.name) is None else others).append(prefix + entry.name)
    if left is not None:
        left += _sorted(others)
    return _sorted(found)


def _sorted(names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: name.replace("/", "\0"))  # as the lists of their parts: no name has a \0


def _ignored(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM_FOLDERS


def printable(name: str) -> str:
    """A file name that can be written as UTF-8, whatever bytes the disk has."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _escaped(name: str) -> str:
    """A file name with each byte that is not UTF-8 as its number."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
