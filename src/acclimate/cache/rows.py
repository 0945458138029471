"""The files of a store's rows: the rows, a record of each, and the paths of the images that they were computed from."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from acclimate.cache.index import RECORD, valid_rows
from acclimate.cache.note import NOTE, Note
from acclimate.data.domain import Indices
from acclimate.files import leftovers

Array: TypeAlias = npt.NDArray[np.generic]

KINDS = ("rows", "paths", "index")

LOCK = "lock"

CHECKED_AT_ONCE = 2**24  # bytes of rows


class RowFiles:
    """The files of one generation of a store.

    Args:
        folder: The store's.
        note: What store.json says of them.

    Attributes:
        rows: The file of the rows, one after the other.
        paths: The file of the images' paths, a line a row.
        index: The file of the records, one after the other.
    """

    def __init__(self, folder: Path, note: Note) -> None:
        self._note = note
        self.rows, self.paths, self.index = (folder / f"{kind}-{note.generation}.bin" for kind in KINDS)

    @property
    def all(self) -> tuple[Path, Path, Path]:
        """The three files."""
        return self.rows, self.paths, self.index

    def records(self) -> npt.NDArray[Any]:
        """All records, (R,), the invalid ones included."""
        try:
            content = self.index.read_bytes()
        except FileNotFoundError:
            content = b""
        return np.frombuffer(content, RECORD, len(content) // RECORD.itemsize)  # behind them may be half of one

    def sound(self) -> Indices:
        """The numbers of the rows that are in use, ascending."""
        return np.flatnonzero(valid_rows(self.records()))

    def sources(self) -> Iterator[tuple[int, str]]:
        """The numbers of the rows that were computed from files, with the files' resolved paths."""
        try:
            with self.paths.open(encoding="ascii", errors="replace") as lines:
                for line in lines:
                    with suppress(ValueError, TypeError):  # a kill leaves half a line
                        row, path = json.loads(line)
                        yield int(row), str(path)
        except FileNotFoundError:
            return

    def mapped(self, count: int) -> Array | None:
        """The first rows, (count, V, ...), as a read-only memory map; None where there are not as many."""
        shape = self._note.shape
        assert shape is not None
        try:
            with self.rows.open("rb") as file:
                if count == 0 or os.fstat(file.fileno()).st_size < count * self._note.row_bytes:
                    return None
                return np.memmap(file, np.dtype(self._note.dtype), "r", shape=(count, *shape))
        except FileNotFoundError:
            return None

    def state(self) -> tuple[int, int]:
        """The size of the file of rows in bytes, and its time of change; zeros where there is none."""
        try:
            status = self.rows.stat()
        except FileNotFoundError:
            return 0, 0
        return status.st_size, status.st_mtime_ns

    def as_noted(self) -> bool:
        """Whether the file of rows is as it was when the store was last left."""
        return (self._note.size, self._note.mtime_ns) == self.state()

    def damaged(self, records: npt.NDArray[Any], rows: Indices) -> Indices:
        """Those of the rows whose bytes are not those that were written."""
        checksums = records["checksum"].tolist()
        size = self._note.row_bytes
        at_once = max(CHECKED_AT_ONCE // size, 1)
        damaged = []
        try:
            with self.rows.open("rb") as file:
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

    def undamaged(self, records: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The records (R,), of which those are made invalid, here alone, whose rows are damaged or not there yet."""
        kept = records.copy()
        kept[self.damaged(records, np.flatnonzero(valid_rows(records)))] = np.zeros((), RECORD)
        return kept

    def forget(self, rows: Indices) -> None:
        """Makes the records of these rows invalid."""
        with self.index.open("r+b") as index:
            for row in rows.tolist():
                index.seek(row * RECORD.itemsize)
                index.write(bytes(RECORD.itemsize))

    def delete(self) -> None:
        """Deletes the files."""
        for path in self.all:
            path.unlink(missing_ok=True)


def path_line(row: int, path: str) -> str:
    """A line of the file of paths. The line end comes first: what a kill left of a line before ends here."""
    return f"\n{json.dumps([row, path])}"


def files_of_store(folder: Path) -> list[Path]:
    """The files that a store consists of, those that a kill has left included, and nothing else."""
    token = "[0-9a-f]" * 8
    names = (LOCK, NOTE, *(f"{kind}-{token}.bin" for kind in KINDS))
    found = [path for name in names for path in sorted(folder.glob(name))]
    return [path for path in [*found, *leftovers(folder / NOTE)] if path.is_file()]


def delete_all_but_lock(folder: Path) -> None:
    """Deletes the files that a store consists of, and nothing else, but the lock, which the caller has."""
    for path in files_of_store(folder):
        if path.name != LOCK:
            path.unlink(missing_ok=True)
