"""Reading domains from whatever form the user has them in."""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from acclimate.data.domain import Domain, LabelledDomain, Labels, labelled
from acclimate.data.formats.arrays import ARRAY_FORMS, array_domain, array_labels, check_array, npz_part, read_arrays
from acclimate.data.formats.folder import folder_labels, images_below, printable, read_folder
from acclimate.data.formats.lists import file_domain, read_csv, read_list
from acclimate.data.kinds import is_image
from acclimate.data.npz import load_npz
from acclimate.data.sealed import SealedLabels
from acclimate.errors import DataError

STDIN = "-"


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


def read_targets(specs: Sequence[str]) -> Domain:
    """Reads several targets as one.

    Args:
        specs: What `read_target` takes, image files, or `-` for a list of image files on standard input, a path a line.

    Returns:
        The domain, in the order given. Of a single folder, list, table or archive the names are those of
        `read_target`; otherwise an item's name is the path of its file.

    Raises:
        DataError: One cannot be read or holds nothing, or an archive of arrays is not alone.
    """
    if len(specs) == 1 and not _is_file_of(specs[0]):
        return read_target(specs[0])
    items: list[str] = []
    names: list[str] = []
    unread: list[tuple[str, str]] = []
    for spec in specs:
        with _reading(spec):
            if spec == STDIN:
                listed = [os.fsdecode(line) for line in sys.stdin.buffer.read().splitlines() if line.strip()]
                domain = file_domain(listed, Path(), "Standard input")
            elif _is_file_of(spec):
                domain = file_domain([spec], Path(), spec)
            else:
                domain = read_target(spec)
        if not isinstance(domain.items, tuple):
            raise DataError(f"{spec} holds arrays, which are read alone: name nothing else beside it.")
        items += domain.items
        unread += ((os.path.join(spec, name), reason) for name, reason in domain.unread)  # noqa: PTH118
        names += domain.names if _is_file_of(spec) else map(printable, domain.items)
    origin = " and ".join(specs[:2]) if len(specs) < 3 else "The data"
    return Domain(tuple(items), tuple(names), origin, unread=tuple(unread))


def _is_file_of(spec: str) -> bool:
    """Whether what a user names is an image file or standard input, and no folder, list, table or archive."""
    return spec == STDIN or (is_image(spec) and not Path(spec).is_dir())


def read_sealed(spec: str | Path) -> tuple[Domain, SealedLabels]:
    """Reads images or vectors, and seals whatever labels they have: for `acclimate.evaluation`, which alone opens them.

    Both are of one reading, so that nothing that happens to the files meanwhile can come between an item and its label.
    In a folder, an image's label is the name of the top-level folder it lies in, whether or not that is a class.

    Args:
        spec: What `read_target` takes.

    Raises:
        DataError: `spec` cannot be read or holds nothing.
    """
    path = Path(spec)
    domain, labels = _read(path, need_labels=False)
    return domain, SealedLabels(domain.names, labels, are_folders=path.is_dir())


def label_counts(spec: str | Path) -> Counter[str | None]:
    """How many items have each label, None counting those without one; no image is opened.

    For looking at data before a run: nothing that trains may call it.

    Raises:
        DataError: `spec` cannot be read.
    """
    path = Path(spec)
    with _reading(str(path)):
        if path.is_dir():  # without making a path of each name, which takes longer than all the rest
            return Counter(folder_labels(path, images_below(path)))
        if arrays := npz_part(path):
            file, y = arrays[0], f"y{arrays[1]}"
            loaded = load_npz(file, [y])  # not the images
            check_array(file, y, loaded)
            return Counter(array_labels(loaded[y], str(path)))
    return Counter(_read(path, need_labels=False)[1])


def domain_of(x: npt.NDArray[np.generic] | Iterable[str | Path], origin: str = "x") -> Domain:
    """The domain of what a Python caller has: an array or the paths of image files.

    Args:
        x: uint8 images (N, H, W) or (N, H, W, 1, 3 or 4), float vectors (N, D), or paths.
        origin: What messages call it.

    Raises:
        DataError: `x` is empty, of another type or shape, not finite, or names a file that does not exist.
    """
    if isinstance(x, np.ndarray) and x.dtype.kind not in "OU":
        return array_domain(x, origin)
    paths = list(x)
    if not all(isinstance(path, str | os.PathLike) for path in paths):
        raise DataError(f"{origin} holds neither paths nor arrays that fit: give image paths, {ARRAY_FORMS}.")
    with _reading(origin):
        return file_domain([os.fspath(path) for path in paths], Path(), origin)


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
    readers = {".txt": read_list, ".csv": read_csv}
    with _reading(str(path)), _uncollected():
        if arrays := npz_part(path):
            return read_arrays(*arrays, origin=str(path), need_labels=need_labels)
        if not path.exists():
            raise DataError(f"{path} does not exist: check the path.")
        if path.is_dir():
            return read_folder(path, need_labels)
        if path.suffix.lower() not in readers:
            raise DataError(
                f"{path} is not a form of data that can be read: "
                "give a folder, an image list (.txt), a CSV (.csv) or arrays (.npz)."
            )
        return readers[path.suffix.lower()](path, need_labels)
