"""A domain: the images (or feature vectors) of one setting, and what identifies them."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from acclimate.choices import DomainKind
from acclimate.errors import DataError

Indices = npt.NDArray[np.int64]

Items: TypeAlias = tuple[str, ...] | npt.NDArray[np.generic]

Labels: TypeAlias = tuple[str | None, ...]

STATE = np.dtype(
    [("found", "?"), ("device", "<u8"), ("number", "<u8"), ("size", "<i8"), ("mtime_ns", "<i8"), ("link", "?")]
)

IDENTITY = np.dtype("S16")


@dataclass(frozen=True, eq=False)
class Domain:
    """Images or feature vectors of one setting, without labels.

    It is a snapshot of the files' states: whoever changes files reads them again to have the changes noticed.

    Attributes:
        items: Paths of image files, or an array: uint8 images (N, H, W) or (N, H, W, 3 or 4), or float vectors (N, D).
            The paths are plain text, because a Path takes longer to make than all else that is asked of a file.
        names: One name an item, as found: the path below the folder, the path in the list, or the row's number.
        origin: What the user named, for messages.
        mapped: The `file_identity` of the file that an array is mapped from, and its place there; None if it is not.
        unread: Names and reasons of files beside the items that look like images and are not read here.
    """

    items: Items
    names: tuple[str, ...]
    origin: str
    mapped: bytes | None = None
    unread: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    @property
    def kind(self) -> DomainKind:
        """What the items are: image files, images in an array, or feature vectors."""
        if isinstance(self.items, tuple):
            return "files"
        return "vectors" if self.items.ndim == 2 else "images"

    def select(self, keep: Sequence[int] | Indices) -> Domain:
        """The domain of the items at the positions `keep`, in that order; it shares the array where that is all."""
        if np.array_equal(keep, np.arange(len(self))):
            return self  # a copy of the vectors might not fit into the memory
        positions = [int(i) for i in keep]
        items = tuple(self.items[i] for i in positions) if isinstance(self.items, tuple) else self.items[positions]
        return Domain(items, tuple(self.names[i] for i in positions), self.origin)

    def fingerprint(self) -> str:
        """A sha256 in hex that changes with the data.

        Files count by their resolved path, size and time of change, so that nothing is read, and so do arrays that
        are mapped from a file; others by their bytes. It is computed once.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        if isinstance(self.items, tuple):
            digest.update(self.file_identities.tobytes())
        else:
            digest.update(f"{self.items.dtype.str} {self.items.shape}".encode())
            digest.update(self.mapped or np.ascontiguousarray(self.items).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()

    @cached_property
    def states(self) -> npt.NDArray[np.void]:
        """What the system says of each file, (N,) of type `STATE`, zeros where there is none.

        It is asked once, because that takes longer than all that is made of the answers.
        """
        paths = self.items if isinstance(self.items, tuple) else ()
        return np.array([_state(path) for path in paths], dtype=STATE)

    def real_paths(self, positions: Indices | None = None) -> Iterator[str]:
        """The resolved paths of the files, or of those at `positions`; nothing of an array.

        A folder is resolved once, and a file only if it is a link itself: the system takes long over it.
        """
        paths = self.items if isinstance(self.items, tuple) else ()
        links = self.states["link"]
        if positions is not None:
            paths, links = tuple(paths[i] for i in positions.tolist()), links[positions]
        folder_of = cache(lambda folder: os.path.join(os.path.realpath(folder), ""))  # noqa: PTH118
        for path, link in zip(paths, links.tolist(), strict=True):
            folder, name = os.path.split(path)
            place = f"{folder_of(folder)}{name}"
            yield os.path.realpath(place) if link else place

    @cached_property
    def file_identities(self) -> npt.NDArray[np.bytes_]:
        """The `file_identity` of each file, (N,) of type `IDENTITY`; empty for an array."""
        fields = (self.states[name].tolist() for name in ("found", "size", "mtime_ns"))
        return np.frombuffer(b"".join(map(_identity, self.real_paths(), *fields)), IDENTITY)


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

    def __len__(self) -> int:
        return len(self.domain)

    def select(self, keep: Sequence[int] | Indices) -> LabelledDomain:
        """The items at the positions `keep`, in that order, with all the classes."""
        positions = np.asarray(keep, dtype=np.int64)
        return LabelledDomain(self.domain.select(positions), self.labels[positions], self.classes)

    def held_out(self, share: float, seed: int) -> npt.NDArray[np.bool_]:
        """Which items stay out of training, (N,): of n of a class, the first floor(share n) by a hash of their names.

        So an item stays where it is when others are added to its class, but for those at the border.
        """
        keys = [
            hashlib.sha256(f"{seed} {name}".encode(errors="surrogateescape")).digest() for name in self.domain.names
        ]
        order = np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)
        held = np.zeros(len(self), dtype=np.bool_)
        for k in range(len(self.classes)):
            of_class = order[self.labels[order] == k]
            held[of_class[: int(share * len(of_class))]] = True
        return held


def labelled(domain: Domain, y: Iterable[object]) -> LabelledDomain:
    """`domain` with its labels `y` (N,); the classes are their texts, sorted as numbers if all are integers.

    Raises:
        DataError: The lengths differ, or there are fewer than two classes.
    """
    names = [str(label) for label in y]
    if len(names) != len(domain):
        raise DataError(f"{domain.origin} has {len(domain):,} items but {len(names):,} labels: give one label an item.")
    classes = sorted_classes(names)
    if len(classes) < 2:
        raise DataError(
            f"{domain.origin} has only the class '{classes[0]}': give at least two classes; if it is a folder whose "
            "class folders lie deeper, name the folder that holds them."
        )
    position = {name: i for i, name in enumerate(classes)}
    return LabelledDomain(domain, np.array([position[name] for name in names], dtype=np.int64), classes)


def sorted_classes(names: Iterable[str]) -> tuple[str, ...]:
    """The distinct names, sorted as numbers if all are integers, else alphabetically."""
    distinct = sorted(set(names))
    numeric = all(re.fullmatch(r"-?\d{1,18}", name) for name in distinct)
    return tuple(sorted(distinct, key=int) if numeric else distinct)


def check_pair(source: LabelledDomain, target: Domain) -> None:
    """Checks that one run can use the two together.

    Raises:
        DataError: They are of different kinds, their vectors differ in length, or they share data.
    """
    _check_kinds(source.domain, target)
    shared = _shared(source.domain, target)
    if shared:
        raise DataError(
            f"{shared:,} of the {len(target):,} items of the target {target.origin} are also in the source "
            f"{source.domain.origin}: give two domains that share nothing."
        )


def _check_kinds(source: Domain, target: Domain) -> None:
    if (source.kind == "vectors") != (target.kind == "vectors"):
        vectors, images = (source, target) if source.kind == "vectors" else (target, source)
        raise DataError(
            f"{vectors.origin} holds feature vectors but {images.origin} holds images: give two of the same kind."
        )
    if isinstance(source.items, tuple) or isinstance(target.items, tuple) or source.kind == "images":
        return
    d_s, d_t = source.items.shape[1], target.items.shape[1]
    if d_s != d_t:
        raise DataError(
            f"The vectors of {source.origin} have {d_s:,} values and those of {target.origin} have {d_t:,}: "
            "compute both with the same features."
        )


def _shared(source: Domain, target: Domain) -> int:
    """How many of the target's items are also in the source: files by identity, arrays only as a whole."""
    if isinstance(source.items, tuple) and isinstance(target.items, tuple):
        known = set(_numbers(source))
        return sum(number in known for number in _numbers(target))
    same = source.kind == target.kind and source.fingerprint() == target.fingerprint()
    return len(target) if same else 0


def _numbers(domain: Domain) -> list[tuple[int, int]]:
    """What two names of one file have in common, whatever links lead to it."""
    states = domain.states[domain.states["found"]]
    return list(zip(states["device"].tolist(), states["number"].tolist(), strict=True))


def file_identity(path: str) -> bytes:
    """What identifies a file without reading it: a hash of its resolved path, its size and its time of change."""
    found, _, _, size, mtime_ns, _ = _state(path)
    return _identity(os.path.realpath(path), found, size, mtime_ns)


def _identity(path: str, found: bool, size: int, mtime_ns: int) -> bytes:
    state = f"{size} {mtime_ns}" if found else "gone"
    return hashlib.blake2b(b"file" + os.fsencode(f"{path}\0{state}"), digest_size=IDENTITY.itemsize).digest()


def _state(path: str) -> tuple[bool, int, int, int, int, bool]:
    try:
        status = os.lstat(path)
        link = stat.S_ISLNK(status.st_mode)
        if link:
            status = os.stat(path)  # noqa: PTH116 (a Path takes longer)
    except OSError:
        return False, 0, 0, 0, 0, False
    return True, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, link
