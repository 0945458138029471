"""Adding rows to a store. A batch of rows counts from the moment it is complete."""

from __future__ import annotations

import errno
import math
import os
import shutil
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np

from acclimate.cache.identity import Identities
from acclimate.cache.index import RECORD, guards
from acclimate.cache.note import Note, read_note, write_note
from acclimate.cache.rows import Array, RowFiles, delete_all_but_lock, path_line
from acclimate.files import open_no_follow


class Writer:
    """Adds rows to a store whose lock this process has.

    Args:
        folder: The store's; it has a note.
        files: Closes what is opened.
    """

    def __init__(self, folder: Path, files: ExitStack) -> None:
        self._folder = folder
        self._files = files
        self._opened: _Opened | None = None

    def reserve(self, count: int, block: Array) -> None:
        """Makes ready for `count` rows like those of `block` (B, V, ...); to be called once, before the first append.

        Raises:
            OSError: They do not fit on the disk, or into the store.
        """
        note = read_note(self._folder)
        if note is None:
            raise FileNotFoundError(errno.ENOENT, "it was deleted", str(self._folder))
        if note.shape not in (None, block.shape[1:]):
            delete_all_but_lock(self._folder)
            raise OSError(errno.EINVAL, f"its rows had the shape {note.shape} and were deleted")
        if shutil.disk_usage(self._folder).free < count * block[0].nbytes:  # better known now than after hours
            raise OSError(errno.ENOSPC, f"{count * block[0].nbytes / 1e9:.1f} GB do not fit on the disk")
        if note.shape is None:
            note = replace(note, shape=block.shape[1:])
            write_note(self._folder, note)
        files = RowFiles(self._folder, note)
        rows, paths, index = self._open(files.rows), self._open(files.paths), self._open(files.index)
        paths.seek(0, os.SEEK_END)
        ends = os.fstat(rows.fileno()).st_size / note.row_bytes, os.fstat(index.fileno()).st_size // RECORD.itemsize
        self._opened = _Opened(note, rows, paths, index, next=math.ceil(max(ends)))

    def _open(self, path: Path) -> IO[bytes]:
        open_no_follow(path, "ab").close()
        return self._files.enter_context(open_no_follow(path, "r+b", buffering=0))

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
        _write(to.paths, "".join(path_line(row, path) for row, path in named if path is not None).encode())
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
                left = replace(note, rows=rows, size=status.st_size, mtime_ns=status.st_mtime_ns)
                write_note(self._folder, left)


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
