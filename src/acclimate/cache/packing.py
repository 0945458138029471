"""Packing a store: its rows without those that no image can ask for any more, in new files."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import replace
from typing import IO

import numpy as np

from acclimate.cache.index import guards
from acclimate.cache.note import NOTE, Note, new_generation, write_note
from acclimate.cache.rows import RowFiles, files_of_store, path_line
from acclimate.cache.store import Store
from acclimate.data.domain import IDENTITY, Indices, file_identity


def drop_dead_rows(store: Store) -> int:
    """Deletes the rows of images that have changed or are gone, and what kills have left. Needs the lock.

    Returns:
        How many rows they were.

    Raises:
        OSError: The rows that stay cannot be written once more.
    """
    store.check()
    note = store.note()
    if note is None or note.shape is None:
        if note is None or not note.overflow:
            store.remove()
        return 0
    files = RowFiles(store.folder, note)
    _delete_leftovers(store, files)
    sound = files.sound()
    identities = files.records()["identity"]
    path_of = dict(files.sources())  # the last line of a row counts
    known = {row: identity for row, identity in zip(sound.tolist(), identities[sound], strict=True) if row in path_of}
    dead = {row for row, identity in known.items() if _identity(path_of[row]) != identity}
    keep = np.array([row for row in sound.tolist() if row not in dead], dtype=np.int64)
    if not len(keep):
        store.remove()
    elif len(keep) * note.row_bytes < note.size:  # there are dead rows, or gaps that kills have left
        _pack(store, note, keep)
    return len(dead)


def _delete_leftovers(store: Store, files: RowFiles) -> None:
    """Deletes what a kill has left of files that were to be new."""
    current = {store.lock, store.folder / NOTE, *files.all}
    for path in files_of_store(store.folder):
        if path not in current:
            path.unlink(missing_ok=True)


def _identity(path: str) -> np.bytes_:
    """What identifies a file, as an array gives it: without zeros at its end."""
    identity: np.bytes_ = np.frombuffer(file_identity(path), IDENTITY)[0]
    return identity


def _pack(store: Store, note: Note, keep: Indices) -> None:
    """Copies the rows at `keep` to new files, which then take the place of the old.

    Raises:
        OSError: There is no room for both.
    """
    size = note.row_bytes
    if shutil.disk_usage(store.folder).free < len(keep) * size:
        raise OSError(errno.ENOSPC, "There is no room for its smaller copy", str(store.folder))
    packed = replace(note, generation=new_generation(), rows=len(keep))
    old, new = RowFiles(store.folder, note), RowFiles(store.folder, packed)
    records = old.records()[keep]
    records["guard"] = guards(records, np.arange(len(keep)))
    number = {int(row): i for i, row in enumerate(keep)}
    try:
        with old.rows.open("rb") as source, new.rows.open("wb") as rows:
            for row in keep.tolist():
                source.seek(row * size)
                rows.write(source.read(size))
            _sync(rows)
        with new.paths.open("w", encoding="ascii") as paths:
            paths.writelines(path_line(number[row], path) for row, path in old.sources() if row in number)
        with new.index.open("wb") as index:
            index.write(records.tobytes())
            _sync(index)
        length, mtime_ns = new.state()
        write_note(store.folder, replace(packed, size=length, mtime_ns=mtime_ns))
    except OSError:
        new.delete()
        raise
    old.delete()


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
