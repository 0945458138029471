"""A domain: the images (or feature vectors) of one setting, read from whatever form the user has them in."""

from __future__ import annotations

import csv
import gc
import hashlib
import heapq
import io
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from acclimate.data.batches import Indices
from acclimate.data.npz import load_npz
from acclimate.errors import DataError

Items: TypeAlias = tuple[str, ...] | npt.NDArray[np.generic]
Kind: TypeAlias = Literal["files", "images", "vectors"]
Labels: TypeAlias = tuple[str | None, ...]

IMAGE_SUFFIXES = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir"})  # archives and network disks keep thumbnails in these
ROWS_AT_ONCE = 4096  # of an array that is looked through
STATE = np.dtype(
    [("found", "?"), ("device", "<u8"), ("number", "<u8"), ("size", "<i8"), ("mtime_ns", "<i8"), ("link", "?")]
)
IDENTITY = np.dtype("S16")
ARRAY_FORMS = "uint8 images (N, H, W) or (N, H, W, 1, 3 or 4), or float vectors (N, D)"


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
    """

    items: Items
    names: tuple[str, ...]
    origin: str
    mapped: bytes | None = None

    def __len__(self) -> int:
        return len(self.items)

    @property
    def kind(self) -> Kind:
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


def read_source(spec: str | Path) -> LabelledDomain:
    """Reads labelled images or vectors.

    Args:
        spec: A folder of class folders, whose images may lie deeper; an image list (.txt, `path label` a line); a CSV
            with the columns `path` and `label`; or an .npz with `x` and `y`, or a part of one: FILE.npz/train stands
            for its arrays `x_train` and `y_train`. Paths are relative to the file's folder; a list whose first path
            is not found there may have all of them relative to the folder above.

    Raises:
        DataError: `spec` cannot be read, is not completely labelled or has fewer than two classes.
    """
    domain, labels = _read(Path(spec), need_labels=True)
    return labelled(domain, labels)


def read_target(spec: str | Path) -> Domain:
    """Reads images or vectors and forgets any labels they have.

    Args:
        spec: What `read_source` takes, with labels or without, or a folder that holds images at any depth.

    Raises:
        DataError: `spec` cannot be read or holds nothing.
    """
    return _read(Path(spec), need_labels=False)[0]


def class_names(spec: str | Path) -> Labels:
    """The labels of a target, one for each of `read_target(spec).names`, None where an item has none.

    For `acclimate.evaluation` alone: nothing that trains may call it. In a folder, an image's label is the name of the
    top-level folder it lies in, whether or not that is a class.

    Raises:
        DataError: `spec` cannot be read or holds nothing.
    """
    path = Path(spec)
    with _reading(str(path)), _uncollected():
        if path.is_dir() and (found := _images_below(path)):  # the names alone: a path of each takes longer
            return tuple(map(_folder_label, found))
        if arrays := _npz_part(path):
            file, y = arrays[0], f"y{arrays[1]}"
            if y in (loaded := load_npz(file, [y])):  # not the vectors, through which reading them looks for NaN
                return _array_labels(loaded[y], str(path))
    return _read(path, need_labels=False)[1]


def label_counts(spec: str | Path) -> Counter[str | None]:
    """How many items have each of the labels that `class_names` gives; no image is opened.

    For looking at data before a run: nothing that trains may call it.

    Raises:
        DataError: `spec` cannot be read.
    """
    path = Path(spec)
    with _reading(str(path)):
        if path.is_dir():  # without making a path of each name, which takes longer than all the rest
            return Counter(_folder_label(name) for name in _images_below(path))
        if arrays := _npz_part(path):
            file, y = arrays[0], f"y{arrays[1]}"
            loaded = load_npz(file, [y])  # not the images
            _check_array(file, y, loaded)
            return Counter(map(str, loaded[y].tolist()))
    return Counter(class_names(spec))


def domain_of(x: npt.NDArray[np.generic] | Iterable[str | Path], origin: str = "x") -> Domain:
    """The domain of what a Python caller has: an array or the paths of image files.

    Args:
        x: uint8 images (N, H, W) or (N, H, W, 1, 3 or 4), float vectors (N, D), or paths.
        origin: What messages call it.

    Raises:
        DataError: `x` is empty, of another type or shape, not finite, or names a file that does not exist.
    """
    if isinstance(x, np.ndarray) and x.dtype.kind not in "OU":
        return _array_domain(x, origin)
    paths = list(x)
    if not all(isinstance(path, str | os.PathLike) for path in paths):
        raise DataError(f"{origin} holds neither paths nor arrays that fit: give image paths, {ARRAY_FORMS}.")
    with _reading(origin):
        return _file_domain([os.fspath(path) for path in paths], Path(), origin)


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


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector, which would go through all paths again and again while there are more and more."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _reading(origin: str) -> Iterator[None]:
    """Turns what the operating system refuses into a sentence."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{error.filename or origin} cannot be read ({error.strerror or error}): check that you may open it."
        ) from error


def _read(path: Path, need_labels: bool) -> tuple[Domain, Labels]:
    readers = {".txt": _read_list, ".csv": _read_csv}
    with _reading(str(path)), _uncollected():
        if arrays := _npz_part(path):
            return _read_arrays(*arrays, origin=str(path), need_labels=need_labels)
        if not path.exists():
            raise DataError(f"{path} does not exist: check the path.")
        if path.is_dir():
            return _read_folder(path, need_labels)
        if path.suffix.lower() not in readers:
            raise DataError(
                f"{path} is not a form of data that can be read: "
                "give a folder, an image list (.txt), a CSV (.csv) or arrays (.npz)."
            )
        return readers[path.suffix.lower()](path, need_labels)


def _read_folder(folder: Path, need_labels: bool) -> tuple[Domain, Labels]:
    found = _images_below(folder)
    if not found:
        raise DataError(f"{folder} holds no images: name a folder with {', '.join(IMAGE_SUFFIXES)} files.")
    labels = tuple(map(_folder_label, found))
    if need_labels:
        _check_class_folders(folder, found, labels)
    prefix = os.path.join(folder, "")  # noqa: PTH118 (a Path has no separator at its end)
    items = tuple(f"{prefix}{name}" for name in found)
    return Domain(items, tuple(map(_printable, found)), str(folder)), labels


def _folder_label(name: str) -> str | None:
    """The top-level folder of an image's path."""
    return _printable(name.partition("/")[0]) if "/" in name else None


def _check_class_folders(folder: Path, found: Sequence[str], labels: Labels) -> None:
    loose = [name for name, label in zip(found, labels, strict=True) if label is None]
    if len(loose) == len(found):
        raise DataError(
            f"{folder} holds {len(found):,} images but no class folders: "
            "put the images of each class into a folder with the name of the class."
        )
    if loose:
        raise DataError(
            f"{folder} holds {len(loose):,} images outside its class folders, for example '{_printable(loose[0])}': "
            "move each into the folder of its class."
        )
    for name in sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _ignored(entry.name)):
        if _printable(name) not in labels:
            raise DataError(f"The class folder {folder / name} holds no image: add images to it or remove it.")


def _images_below(folder: Path) -> list[str]:
    """The paths of the images below `folder`, with slashes, sorted by their parts.

    Each folder is read once, so links may form cycles. Links wait until the rest is read: a folder that a link also
    leads to keeps its own name.
    """
    found: list[str] = []
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
                elif _is_image(entry.name) and (is_link or entry.is_file()):
                    found.append(prefix + entry.name)
    return sorted(found, key=lambda name: name.replace("/", "\0"))  # as the lists of their parts: no name has a \0


def _ignored(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM_FOLDERS


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _printable(name: str) -> str:
    """A file name that can be written as UTF-8, whatever bytes the disk has."""
    return name if name.isascii() else name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _read_list(path: Path, need_labels: bool) -> tuple[Domain, Labels]:
    rows = []
    for number, line in enumerate(io.StringIO(_text(path), newline=None), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, label = _split_line(line.strip())
        if "\0" in name or (need_labels and label is None):
            raise DataError(f"Line {number} of {path} is not a path and a label: write 'path label'.")
        rows.append((name, label))
    return _listed_domain(path, rows)


def _split_line(line: str) -> tuple[str, str | None]:
    """The path, which may hold blanks, and the label, which is the last token unless the path ends there."""
    name, *label = line.rsplit(maxsplit=1)
    if label and not _is_image(label[0]):
        return name, label[0]
    return line, None


def _read_csv(path: Path, need_labels: bool) -> tuple[Domain, Labels]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), skipinitialspace=True)
    rows = []
    try:
        columns = [column.strip() for column in reader.fieldnames or ()]
        for column in ("path", "label") if need_labels else ("path",):
            if column not in columns:
                raise DataError(
                    f"{path} has no column '{column}': begin it with a header line that names it, such as 'path,label'."
                )
        reader.fieldnames = columns
        for row in reader:
            name, label = (row["path"] or "").strip(), (row.get("label") or "").strip() or None
            if not name or "\0" in name or (need_labels and label is None):
                raise DataError(f"Line {reader.line_num} of {path} lacks a path or a label: complete or remove it.")
            rows.append((name, label))
    except csv.Error as error:
        raise DataError(f"Line {reader.line_num} of {path} is not CSV ({error}): correct it.") from error
    return _listed_domain(path, rows)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: save it with that encoding.") from error


def _listed_domain(path: Path, rows: Sequence[tuple[str, str | None]]) -> tuple[Domain, Labels]:
    names, folder = [name for name, _ in rows], path.parent
    if names and not (folder / names[0]).is_file() and (folder.parent / names[0]).is_file():
        folder = folder.parent  # benchmarks publish their lists in a folder beside the domains'
    return _file_domain(names, folder, str(path)), tuple(label for _, label in rows)


def _file_domain(names: Sequence[str], folder: Path, origin: str) -> Domain:
    """The domain of the files that `names` gives relative to `folder`."""
    if not names:
        raise DataError(f"{origin} names no images: list at least one.")
    items = tuple(os.path.join(folder, name) for name in names)  # noqa: PTH118 (a Path takes longer)
    missing = [path for path in items if not os.path.isfile(path)]  # noqa: PTH113
    if missing:
        raise DataError(
            f"{len(missing):,} of the {len(items):,} files that {origin} names cannot be found, "
            f"the first is {missing[0]}: correct the paths, which start from {folder.resolve()}."
        )
    return Domain(items, tuple(_printable(name) for name in names), origin)


def _npz_part(path: Path) -> tuple[Path, str] | None:
    """The .npz that `path` names or names a part of, and what the names of that part's arrays end in."""
    if path.suffix.lower() == ".npz" and path.is_file():
        return path, ""
    if path.parent.suffix.lower() == ".npz" and path.parent.is_file():
        return path.parent, f"_{path.name}"
    return None


def _read_arrays(path: Path, ending: str, origin: str, need_labels: bool) -> tuple[Domain, Labels]:
    x, y = f"x{ending}", f"y{ending}"
    arrays = load_npz(path, [x, y])
    for name in (x, y) if need_labels else (x,):
        _check_array(path, name, arrays)
    domain = replace(_array_domain(np.asarray(arrays[x]), origin), mapped=_mapped_from(arrays[x]))
    if y not in arrays:
        return domain, (None,) * len(domain)
    labels = _array_labels(arrays[y], origin)
    if len(labels) != len(domain):
        raise DataError(f"{origin} has {len(domain):,} items in x but {len(labels):,} labels in y: give one an item.")
    return domain, labels


def _check_array(path: Path, name: str, arrays: Mapping[str, object]) -> None:
    if name not in arrays:
        raise DataError(
            f"{path} has no array '{name}': save it with numpy.savez(file, x=..., y=...), or name a part of it, "
            f"{path / 'train'} for x_train and y_train."
        )


def _mapped_from(x: npt.NDArray[np.generic]) -> bytes | None:
    if not isinstance(x, np.memmap):
        return None
    return file_identity(str(x.filename)) + str(x.offset).encode()


def _array_domain(x: npt.NDArray[np.generic], origin: str) -> Domain:
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


def _array_labels(y: npt.NDArray[np.generic], origin: str) -> tuple[str, ...]:
    if y.dtype.kind not in "iuU" or y.ndim != 1:
        raise DataError(f"The array y of {origin} is {y.dtype} of shape {y.shape}: give one integer or text an item.")
    return tuple(map(str, y.tolist()))
