"""A store: what one frozen network makes of images, or resized images, a row each, in files that survive kills.

A store is a folder. `store.json` says in words what the rows are, `rows-G.bin` holds them one after the other to be
memory-mapped, `index-G.bin` holds a record a row, and `paths-G.bin` the files that they were computed from, for
pruning. G is drawn anew when the store is packed, so that files of two packings are never taken together.

Rows are only ever appended, so that whoever has mapped them is not disturbed. A row counts from the moment that its
record is written, and a record holds a checksum of itself: a kill, a torn write and a stray byte cost the rows that
they hit and no others.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import secrets
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from acclimate.cache.identity import Identities
from acclimate.cache.index import RECORD, find_rows, guards, valid_rows
from acclimate.choices import Precision, View
from acclimate.data.domain import Indices
from acclimate.data.preprocess import Preprocess
from acclimate.files import cache_folder, leftovers, locked, write_whole

Kind: TypeAlias = Literal["rows", "paths", "index"]

Array: TypeAlias = npt.NDArray[np.generic]

FORMAT = 3  # a change of the files, or of what is computed, must raise it

WHAT = "Features that Acclimate computed of images, or resized images. Deleted ones are computed again when needed."

DTYPES: dict[str, str] = {"fp32": "<f4", "fp16": "<f2", "bf16": "<i2", "uint8": "|u1"}  # NumPy has no bfloat16

FILES: tuple[Kind, ...] = ("rows", "paths", "index")

log = logging.getLogger("acclimate")


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
    """

    backbone: str
    weights: str
    level: str
    tune: str
    preprocess: Preprocess
    views: tuple[View, ...] = ("plain",)
    bf16: bool = False
    precision: Precision | Literal["uint8"] = "fp32"

    @property
    def folder(self) -> Path:
        """Where the store of these features is."""
        return stores_folder() / hashlib.sha256(repr((FORMAT, self)).encode()).hexdigest()


def stores_folder() -> Path:
    """The folder of all stores; it need not exist."""
    return cache_folder() / "features"


@dataclass(frozen=True)
class Note:
    """What store.json holds.

    Attributes:
        content: What the rows are, for people: the entries of a `Content`.
        dtype: Of the values.
        shape: (V, ...) of a row; None before there is one.
        generation: G of the names of the files, drawn anew whenever the rows get other numbers.
        rows: How many there were when the store was last left.
        size: Bytes of the file of rows then; -1 while the rows are being checked.
        mtime_ns: Its time of change then.
        overflow: Whether there are features that `dtype` cannot hold, so that the store stays empty.
    """

    content: dict[str, Any]
    dtype: str
    shape: tuple[int, ...] | None = None
    generation: str = field(default_factory=lambda: secrets.token_hex(4))
    rows: int = 0
    size: int = 0
    mtime_ns: int = 0
    overflow: bool = False

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape or ()) * np.dtype(self.dtype).itemsize


class DamagedNoteError(Exception):
    """store.json cannot be understood."""


class Store:
    """The features of one content, shared by all domains and processes.

    Every method may raise OSError where the folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = folder / "lock"

    def note(self) -> Note | None:
        """What store.json says; None where there is none.

        Raises:
            DamagedNoteError: It is damaged.
        """
        try:
            entries = json.loads((self.folder / "store.json").read_bytes())
            if entries.pop("checksum") != _checksum(entries):
                raise ValueError("it was altered")
            note = Note(**{name: entries[name] for name in Note.__dataclass_fields__})
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedNoteError from error
        return replace(note, shape=tuple(note.shape) if note.shape else None)

    def read(self, wanted: Identities) -> tuple[Array | None, Indices]:
        """The rows as a read-only memory map (R, V, ...), and which of them each wanted image is, -1 for none.

        The rows are verified before, unless another process is adding to them, which has done it.
        """
        try:
            with locked(self.lock, wait=False) as mine:
                if mine:
                    self.check()
        except OSError:
            if not self._is_as_noted():  # a cache that may only be read serves as long as it is sound
                raise
        nothing = None, np.full(len(wanted), -1, dtype=np.int64)
        try:
            note = self.note()
        except DamagedNoteError:
            return nothing
        if note is None or note.shape is None or note.size < 0:
            return nothing
        with suppress(OSError):  # last used
            os.utime(self.folder / "store.json")
        rows = find_rows(self.records(note), wanted)
        count = int(rows.max(initial=-1)) + 1
        try:
            with self.file(note, "rows").open("rb") as file:
                if count == 0 or os.fstat(file.fileno()).st_size < count * note.row_bytes:
                    return nothing
                return np.memmap(file, np.dtype(note.dtype), "r", shape=(count, *note.shape)), rows
        except FileNotFoundError:
            return nothing

    def missing(self, wanted: Identities) -> Indices:
        """The positions in `wanted` of the images that are still to be computed, each of them once."""
        note = self.note()
        found = find_rows(self.records(note), wanted) if note else np.full(len(wanted), -1)
        absent = np.flatnonzero(found < 0)
        _, first = np.unique(wanted[absent], return_index=True)
        missing: Indices = absent[np.sort(first)]
        return missing

    def overflows(self) -> bool:
        """Whether a value was met that the precision cannot hold."""
        try:
            note = self.note()
        except DamagedNoteError:
            return False
        return note is not None and note.overflow

    @contextmanager
    def writing(self, content: Content) -> Iterator[Writer]:
        """Adds rows; waits until no other process does. Every row before them has been verified."""
        with locked(self.lock):
            self.check()
            if self.note() is None:
                self.write_note(Note(asdict(content), DTYPES[content.precision]))
            with ExitStack() as files:
                writer = Writer(self, files)
                try:
                    yield writer
                finally:
                    writer.finish()

    def check(self) -> None:
        """Verifies the rows where their file is not as it was left, and forgets the damaged ones. Needs the lock."""
        try:
            note = self.note()
        except DamagedNoteError:
            log.warning("The index of the cached rows in %s was damaged: they are computed again.", self.folder)
            self.delete_files()
            return
        if note is None or note.shape is None:
            return
        records = self.records(note)
        sound = np.flatnonzero(valid_rows(records))
        lost = note.rows - len(sound)
        if lost == 0 and (note.size, note.mtime_ns) == _state(self.file(note, "rows")):
            return
        if lost > 0:
            log.warning(
                "The index of the cached rows in %s was damaged: %d of them are computed again.", self.folder, lost
            )
        self.write_note(replace(note, size=-1))
        damaged = self._damaged(note, records, sound)
        if len(damaged):
            log.warning(
                "%d of the %d cached rows in %s were damaged: they are computed again.",
                len(damaged),
                len(sound),
                self.folder,
            )
            self._forget(note, damaged)
        size, mtime_ns = _state(self.file(note, "rows"))
        self.write_note(replace(note, rows=len(sound) - len(damaged), size=size, mtime_ns=mtime_ns))

    def refuse(self, content: Content) -> None:
        """Notes that the precision does not suffice, and deletes the rows."""
        with locked(self.lock):
            self.delete_files()
            self.write_note(Note(asdict(content), DTYPES[content.precision], overflow=True))

    def pack(self, keep: Indices) -> None:
        """Copies the rows at `keep` to new files, which then take the place of the old. Needs the lock.

        Raises:
            OSError: There is no room for both.
        """
        old = self.note()
        if old is None:
            return
        if shutil.disk_usage(self.folder).free < len(keep) * old.row_bytes:
            raise OSError(errno.ENOSPC, "There is no room for its smaller copy", str(self.folder))
        new = replace(old, generation=secrets.token_hex(4), rows=len(keep))
        records = self.records(old)[keep]
        records["guard"] = guards(records, np.arange(len(keep)))
        number = {int(row): i for i, row in enumerate(keep)}
        try:
            with self.file(old, "rows").open("rb") as source, self.file(new, "rows").open("wb") as rows:
                size = old.row_bytes
                for row in keep.tolist():
                    source.seek(row * size)
                    rows.write(source.read(size))
                _sync(rows)
            with self.file(new, "paths").open("w", encoding="ascii") as paths:
                paths.writelines(_path_line(number[row], path) for row, path in self.paths(old) if row in number)
            with self.file(new, "index").open("wb") as index:
                index.write(records.tobytes())
                _sync(index)
            length, mtime_ns = _state(self.file(new, "rows"))
            self.write_note(replace(new, size=length, mtime_ns=mtime_ns))
        except OSError:
            self._delete_generation(new)
            raise
        self._delete_generation(old)

    def delete_files(self) -> None:
        """Deletes all that a store consists of, and nothing else, but the lock. Needs the lock."""
        for path in self.files():
            if path != self.lock:
                path.unlink(missing_ok=True)

    def files(self) -> list[Path]:
        """The files that the store consists of, those that a kill has left included."""
        token = "[0-9a-f]" * 8
        kinds = ("lock", "store.json", *(f"{kind}-{token}.bin" for kind in FILES))
        found = [path for kind in kinds for path in sorted(self.folder.glob(kind))]
        return [path for path in [*found, *leftovers(self.folder / "store.json")] if path.is_file()]

    def file(self, note: Note, kind: Kind) -> Path:
        """One of the store's files."""
        return self.folder / f"{kind}-{note.generation}.bin"

    def records(self, note: Note) -> npt.NDArray[Any]:
        """All records, (R,), the invalid ones included."""
        try:
            content = self.file(note, "index").read_bytes()
        except FileNotFoundError:
            content = b""
        return np.frombuffer(content, RECORD, len(content) // RECORD.itemsize)  # behind them may be half of one

    def sound(self, note: Note) -> Indices:
        """The rows that are in use, ascending."""
        return np.flatnonzero(valid_rows(self.records(note)))

    def paths(self, note: Note) -> Iterator[tuple[int, str]]:
        """The rows that were computed from files, with the files' resolved paths."""
        try:
            with self.file(note, "paths").open(encoding="ascii", errors="replace") as lines:
                for line in lines:
                    with suppress(ValueError, TypeError):  # a kill leaves half a line
                        row, path = json.loads(line)
                        yield int(row), str(path)
        except FileNotFoundError:
            return

    def write_note(self, note: Note) -> None:
        """Replaces store.json, with a checksum of it."""
        entries = {"what": WHAT, "format": FORMAT, **asdict(note)}
        entries["checksum"] = _checksum(entries)
        write_whole(self.folder / "store.json", json.dumps(entries, indent=2).encode())

    def _is_as_noted(self) -> bool:
        try:
            note = self.note()
        except (DamagedNoteError, OSError):
            return False
        return note is not None and (note.size, note.mtime_ns) == _state(self.file(note, "rows"))

    def _damaged(self, note: Note, records: npt.NDArray[Any], rows: Indices) -> Indices:
        """Those of the rows whose bytes are not those that were written."""
        checksums = records["checksum"].tolist()
        size = note.row_bytes
        at_once = max(2**24 // size, 1)
        damaged = []
        try:
            with self.file(note, "rows").open("rb") as file:
                for first in range(0, len(records), at_once):
                    file.seek(first * size)
                    content = memoryview(file.read(at_once * size))
                    for row in rows[slice(*np.searchsorted(rows, (first, first + at_once)))].tolist():
                        start = (row - first) * size
                        if zlib.crc32(content[start : start + size]) != checksums[row]:
                            damaged.append(row)
        except FileNotFoundError:
            return rows
        return np.array(damaged, dtype=np.int64)

    def _forget(self, note: Note, rows: Indices) -> None:
        with self.file(note, "index").open("r+b") as index:
            for row in rows.tolist():
                index.seek(row * RECORD.itemsize)
                index.write(bytes(RECORD.itemsize))

    def _delete_generation(self, note: Note) -> None:
        for kind in FILES:
            self.file(note, kind).unlink(missing_ok=True)


class Writer:
    """Adds rows to a store whose lock this process has. A batch of rows counts from the moment it is complete."""

    def __init__(self, store: Store, files: ExitStack) -> None:
        self._store = store
        self._files = files
        self._opened: _Opened | None = None

    def reserve(self, count: int, block: Array) -> None:
        """Makes ready for `count` rows like those of `block` (B, V, ...); to be called once, before the first append.

        Raises:
            OSError: They do not fit on the disk, or into the store.
        """
        store, note = self._store, self._store.note()
        if note is None:
            raise FileNotFoundError(errno.ENOENT, "it was deleted", str(store.folder))
        if note.shape not in (None, block.shape[1:]):
            store.delete_files()
            raise OSError(errno.EINVAL, f"its rows had the shape {note.shape} and were deleted")
        if shutil.disk_usage(store.folder).free < count * block[0].nbytes:  # better known now than after hours
            raise OSError(errno.ENOSPC, f"{count * block[0].nbytes / 1e9:.1f} GB do not fit on the disk")
        if note.shape is None:
            note = replace(note, shape=block.shape[1:])
            store.write_note(note)
        rows, paths, index = (self._open(store.file(note, kind)) for kind in FILES)
        paths.seek(0, os.SEEK_END)
        ends = os.fstat(rows.fileno()).st_size / note.row_bytes, os.fstat(index.fileno()).st_size // RECORD.itemsize
        self._opened = _Opened(note, rows, paths, index, next=math.ceil(max(ends)))

    def _open(self, path: Path) -> IO[bytes]:
        path.touch()
        return self._files.enter_context(path.open("r+b", buffering=0))

    def append(self, identities: Identities, paths: Sequence[str | None], block: Array) -> None:
        """Adds the rows of a batch.

        Args:
            identities: What identifies its images, (B,).
            paths: The files that they were read from, None for arrays.
            block: (B, V, ...), contiguous.
        """
        to = self._opened
        assert to is not None
        numbers = np.arange(to.next, to.next + len(block))
        records = np.zeros(len(block), RECORD)
        records["identity"] = identities
        records["checksum"] = [zlib.crc32(row) for row in block]
        records["guard"] = guards(records, numbers)
        to.rows.seek(to.next * to.note.row_bytes)
        _write(to.rows, block.data.cast("B"))
        named = zip(numbers.tolist(), paths, strict=True)
        _write(to.paths, "".join(_path_line(row, path) for row, path in named if path is not None).encode())
        to.index.seek(to.next * RECORD.itemsize)
        _write(to.index, records.tobytes())  # last: now the rows count
        to.next += len(block)
        to.added += len(block)

    def finish(self) -> None:
        """Notes that the rows are as they were meant to be, so that the next reader need not verify them."""
        if self._opened is not None:
            note = self._opened.note
            for file in (self._opened.rows, self._opened.index):
                os.fsync(file.fileno())
            status = os.fstat(self._opened.rows.fileno())
            if status.st_nlink:  # it is not deleted
                rows = note.rows + self._opened.added
                self._store.write_note(replace(note, rows=rows, size=status.st_size, mtime_ns=status.st_mtime_ns))


@dataclass
class _Opened:
    """The files of a store that grows, the number of its next row, and how many were added."""

    note: Note
    rows: IO[bytes]
    paths: IO[bytes]
    index: IO[bytes]
    next: int
    added: int = 0


def _write(file: IO[bytes], content: bytes | memoryview) -> None:
    """Writes all of it to an unbuffered file, which may take it in parts."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _path_line(row: int, path: str) -> str:
    return f"\n{json.dumps([row, path])}"  # the line end comes first: what a kill left of a line ends here


def _state(path: Path) -> tuple[int, int]:
    """A file's size in bytes and its time of change; zeros where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _checksum(entries: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(entries, sort_keys=True).encode())


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
