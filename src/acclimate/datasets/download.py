"""Fetching what a benchmark publishes under direct links, so that a cut connection costs only what was under way."""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import math
import re
import shutil
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import numpy.typing as npt

from acclimate.datasets.catalogue import Benchmark, Download, File
from acclimate.errors import DataError, OptionError, brief, nearest
from acclimate.files import open_no_follow
from acclimate.progress import Track, silent

FOLDER = ".downloads"  # below the root: what is not complete yet
CHUNK = 2**20
BLOCK = 2**12  # bytes of a disk, at least one for each file
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)  # what is wrong with a disk, not with what comes
ATTEMPTS = 5  # in a row that bring nothing
PAUSE = 2.0  # seconds between them
TIMEOUT = 60.0

Array = npt.NDArray[np.generic]


def unverified(benchmark: Benchmark, root: Path, known: Mapping[str, str]) -> list[str]:
    """The files that would be fetched and of which no checksum is published or among `known`, by name."""
    files = [file for download in _wanted(benchmark, root) for file in download.files]
    return [file.name for file in files if file.md5 is None and file.name not in known]


def get(
    benchmark: Benchmark, root: Path, track: Track = silent, *, known: Mapping[str, str] | None = None
) -> list[Path]:
    """Fetch all of a benchmark that has a direct link and is not there yet.

    The same call goes on where an interrupted one stopped. What is below `root` under its own name is complete.

    Args:
        benchmark: The benchmark.
        root: The folder to put it into.
        track: Shows the progress.
        known: SHA-256 checksums that the user knows, in hex, by the files' names.

    Returns:
        What was fetched.

    Raises:
        DataError: The benchmark has no direct link, a link is dead, a file is not what was published, or the disk has
            too little room.
        OptionError: A checksum is of no file of the benchmark, or is none.
    """
    known = known or {}
    _check_known(benchmark, known)
    if not benchmark.downloads:
        raise DataError(
            f"{benchmark.title} has no direct link: download it from {benchmark.page}, unpack it into {root} and run "
            f"'acclimate data check {benchmark.name} --root {root}'."
        )
    wanted = _wanted(benchmark, root)
    store = root / FOLDER
    store.mkdir(parents=True, exist_ok=True)
    for download in wanted:
        checked = [file._replace(sha256=known.get(file.name)) for file in download.files]
        files = [fetch(file, store, benchmark.page, track) for file in checked]
        made = store / f"{download.makes}.made"
        for _ in track([made], f"Unpacking {download.makes}", 1):
            _make(download, files, made, benchmark)
        made.replace(root / download.makes)
        _delete(*files)
    if not any(store.iterdir()):
        store.rmdir()
    return [root / download.makes for download in wanted]


def _wanted(benchmark: Benchmark, root: Path) -> list[Download]:
    return [download for download in benchmark.downloads if not (root / download.makes).exists()]


def _check_known(benchmark: Benchmark, known: Mapping[str, str]) -> None:
    names = [file.name for download in benchmark.downloads for file in download.files]
    for name, digest in known.items():
        if name not in names:
            raise OptionError(f"{benchmark.title} has no file {brief(name)}; {nearest(name, names)}")
        if re.fullmatch("[0-9a-f]{64}", digest) is None:
            raise OptionError(
                f"{brief(digest)} is no SHA-256 of {name}: give 64 digits in hex, as sha256sum prints them."
            )


def _make(download: Download, files: Sequence[Path], made: Path, benchmark: Benchmark) -> None:
    """Make of files what is wanted, or leave nothing behind.

    Raises:
        DataError: They hold something else, which are deleted then, or the disk has too little room.
    """
    _clear(made)
    try:
        _FORMS[download.form](files, made, download.makes)
    except BaseException as error:
        _clear(made)
        if isinstance(error, DataError) or not isinstance(error, Exception):
            raise
        reason = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
        if isinstance(error, OSError) and error.errno in DISK:
            raise DataError(
                f"{download.makes} cannot be unpacked ({error.strerror}), and what came of it is deleted: make room or "
                "name another --root, and run the same command again."
            ) from error
        _delete(*files)
        raise DataError(
            f"What {download.files[0].url} holds cannot be unpacked ({reason}): run the same command again, "
            f"which fetches it anew, or get {benchmark.title} from {benchmark.page}."
        ) from error


def _clear(made: Path) -> None:
    """Delete what an earlier try has left."""
    for path in (made, _whole_of(made)):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _whole_of(made: Path) -> Path:
    """Where an archive is unpacked, all of it."""
    return made.with_suffix(".inside")


def fetch(file: File, folder: Path, page: str, track: Track = silent) -> Path:
    """Fetch one file into a folder, going on with what is there of it.

    Args:
        file: The address, and the checksum if one is known.
        folder: An existing folder.
        page: Where people find the data, for messages.
        track: Shows how many MiB have come.

    Raises:
        DataError: The link is dead, the connection brings nothing several times in a row, the checksum differs, or the
            disk has too little room.
    """
    path = folder / file.name
    part = path.with_name(f"{path.name}.part")
    failures = 0
    if path.exists():
        _check(file, path, page)
    while not path.exists():
        had = _size(part)
        try:
            _advance(file.url, part, track)
            _check(file, part, page)
            part.replace(path)
        except (OSError, HTTPException) as error:
            if isinstance(error, HTTPError) and error.code < 500:
                raise DataError(f"{file.url} is a dead link ({error.code} {error.reason}): see {page}.") from error
            failures = 0 if _size(part) > had else failures + 1
            if failures == ATTEMPTS:
                raise DataError(
                    f"{file.url} cannot be fetched ({error}): try again later, which goes on with what has come, or "
                    f"see {page}."
                ) from error
            time.sleep(PAUSE)
    return path


def _advance(url: str, part: Path, track: Track) -> None:
    """Append what is missing of a file.

    Raises:
        OSError: The connection was cut, and `part` has grown as far as it came.
        DataError: The disk has too little room.
    """
    have = _size(part)
    try:
        response = urlopen(Request(url, headers={"Range": f"bytes={have}-"} if have else {}), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416:  # nothing is left, or the file is another one now
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return
            part.unlink()
            raise ConnectionError("the file has changed") from error
        raise
    with response:
        goes_on = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if goes_on else 0
        left = int(response.headers.get("Content-Length", 0))
        _check_room(part, have, left)
        with open_no_follow(part, "ab" if goes_on else "wb") as out:
            chunks = iter(lambda: response.read(CHUNK), b"")
            for chunk in track(chunks, f"Downloading {part.stem} (MiB)", math.ceil(left / CHUNK)):
                out.write(chunk)
    if left and _size(part) != have + left:
        raise ConnectionError("the connection was cut")


def _check_room(part: Path, have: int, left: int) -> None:
    """The rest of the file must fit, and then what is unpacked from it, which is about as large: images are packed."""
    free = shutil.disk_usage(part.parent).free
    needed = left + have + left
    if needed > free:
        raise DataError(
            f"{part.stem} needs {needed / 2**30:.1f} GiB with what is unpacked from it, but {part.parent.parent} has "
            f"{free / 2**30:.1f} GiB free: make room or name another --root."
        )


def _check(file: File, part: Path, page: str) -> None:
    """Compare a file with its checksums.

    Raises:
        DataError: One differs; the file is deleted.
    """
    expected: dict[str, tuple[str | None, Callable[[], Any]]] = {
        "that was published": (file.md5, partial(hashlib.md5, usedforsecurity=False)),
        "that you gave": (file.sha256, hashlib.sha256),
    }
    for whose, (digest, algorithm) in expected.items():
        if digest is not None and (found := _digest(part, algorithm)) != digest:
            part.unlink()
            raise DataError(
                f"{file.url} has not the checksum {whose}, {digest}, but {found}: it was deleted; run the "
                f"same command again, or see {page}."
            )


def _digest(path: Path, algorithm: Callable[[], Any]) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, algorithm).hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _delete(*files: Path) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def _unpack(files: Sequence[Path], made: Path, name: str) -> None:
    """Unpacks an archive, of which the folder `name` is wanted."""
    (archive,) = files
    inside = _whole_of(made)
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            _check_unpacked(archive, (member.file_size for member in packed.infolist()))
            packed.extractall(inside)
    else:
        with tarfile.open(archive) as packed:
            _check_unpacked(archive, (member.size for member in packed))
            packed.extractall(inside, filter="data")
    if not (inside / name).is_dir():
        raise FileNotFoundError(f"it has no folder {name}")
    (inside / name).replace(made)
    shutil.rmtree(inside)


def _check_unpacked(archive: Path, sizes: Iterable[int]) -> None:
    """What an archive says of the sizes of its files must fit; nothing is unpacked beyond what it says.

    Raises:
        DataError: It does not.
    """
    free, needed = shutil.disk_usage(archive.parent).free, 0
    for size in sizes:
        needed += max(math.ceil(size / BLOCK), 1) * BLOCK
        if needed > free:  # and who knows how much more
            raise DataError(
                f"{archive.name} unpacks to more than {free / 2**30:.1f} GiB, and {archive.parent.parent} has no more "
                "free: make room or name another --root."
            )


def _keep(files: Sequence[Path], made: Path, name: str) -> None:
    (file,) = files
    file.replace(made)


def _digits(read: Callable[[Sequence[Path]], tuple[Array, Array]]) -> Callable[[Sequence[Path], Path, str], None]:
    """Writes an .npz of training and test digits, each read from one half of the files: x uint8, y from 0 to 9."""

    def write(files: Sequence[Path], made: Path, name: str) -> None:
        half = len(files) // 2
        (x_train, y_train), (x_test, y_test) = read(files[:half]), read(files[half:])
        with open_no_follow(made, "wb") as out:
            np.savez(out, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)

    return write


def _idx(files: Sequence[Path]) -> tuple[Array, Array]:
    """MNIST: bytes behind a header of 16 or 8, gzipped."""
    images, labels = (gzip.decompress(file.read_bytes()) for file in files)
    return np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8, offset=8)


def _libsvm(files: Sequence[Path]) -> tuple[Array, Array]:
    """USPS: a line a digit, its label from 1 to 10 and 256 times index:value with values from -1 to 1."""
    with bz2.open(files[0], "rt") as lines:
        rows = [line.split() for line in lines]
    x = np.array([[value.partition(":")[2] for value in row[1:]] for row in rows], dtype=np.float32)
    y = np.array([row[0] for row in rows], dtype=np.uint8) - 1
    return np.rint((x.reshape(-1, 16, 16) + 1) * 127.5).astype(np.uint8), y


def _mat(files: Sequence[Path]) -> tuple[Array, Array]:
    """SVHN: X (32, 32, 3, N) and y (N, 1), where 10 stands for the digit 0."""
    from scipy.io import loadmat

    content = loadmat(files[0])
    return content["X"].transpose(3, 0, 1, 2), (content["y"][:, 0] % 10).astype(np.uint8)


_FORMS: dict[str, Callable[[Sequence[Path], Path, str], None]] = {
    "archive": _unpack,
    "list": _keep,
    "idx": _digits(_idx),
    "libsvm": _digits(_libsvm),
    "mat": _digits(_mat),
}
