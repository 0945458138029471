"""A store: what one frozen network makes of images, or resized images, a row each, in files that survive kills.

A store is a folder. `store.json` says in words what the rows are, `rows-G.bin` holds them one after the other to be
memory-mapped, `index-G.bin` holds a record a row, and `paths-G.bin` the files that they were computed from, for
pruning. G is drawn anew when the store is packed, so that files of two packings are never taken together.

Rows are only ever appended, so that whoever has mapped them is not disturbed. A row counts from the moment that its
record is written, and a record holds a checksum of itself: a kill, a torn write and a stray byte cost the rows that
they hit and no others.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from acclimate.cache.content import Content, part_of
from acclimate.cache.identity import Identities
from acclimate.cache.index import find_rows, valid_rows
from acclimate.cache.note import NOTE, DamagedNoteError, Note, read_note, write_note
from acclimate.cache.rows import LOCK, Array, RowFiles, delete_all_but_lock
from acclimate.cache.writer import Writer
from acclimate.data.domain import Indices
from acclimate.files import cache_may_change, check_cache_may_change
from acclimate.locks import WITHOUT_LOCKS, locked

log = logging.getLogger("acclimate")


class Store:
    """The rows of one content, shared by all domains and processes.

    Every method may raise OSError where the folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = folder / LOCK

    def note(self) -> Note | None:
        """What store.json says; None where there is none, or a damaged one."""
        try:
            return read_note(self.folder)
        except DamagedNoteError:
            return None

    def read(self, wanted: Identities, *, alone: bool = False) -> tuple[Array | None, Indices]:
        """The rows as a read-only memory map (R, V, ...), and which of them each wanted image is, -1 for none.

        The rows are verified before, unless another process is adding to them, which has done it.

        Args:
            wanted: The images.
            alone: Whether nobody else is taken to have verified them: somebody who is adding may be on another machine,
                whose bytes come here in any order.
        """
        changeable, verified = cache_may_change(), False
        try:
            if changeable:
                with locked(self.lock, wait=False) as mine:
                    if mine:
                        self.check()
                    verified = mine or not alone
        except OSError:
            changeable = False
        note = self.note()
        if note is None or note.shape is None or (verified and note.size < 0):
            return None, _none_of(wanted)
        if changeable:
            with suppress(OSError):  # last used
                os.utime(self.folder / NOTE)
        files = RowFiles(self.folder, note)
        records = files.records()
        if not verified and not files.as_noted():
            records = files.undamaged(records)
        positions = find_rows(records, wanted)
        rows = files.mapped(int(positions.max(initial=-1)) + 1)
        return rows, _none_of(wanted) if rows is None else positions

    def missing(self, wanted: Identities) -> Indices:
        """The positions in `wanted` of the images that are still to be computed, each of them once."""
        note = self.note()
        found = _none_of(wanted) if note is None else find_rows(RowFiles(self.folder, note).records(), wanted)
        absent = np.flatnonzero(found < 0)
        _, first = np.unique(wanted[absent], return_index=True)
        missing: Indices = absent[np.sort(first)]
        return missing

    def overflows(self) -> bool:
        """Whether a value was met that the precision cannot hold."""
        note = self.note()
        return note is not None and note.overflow

    def refuse(self, content: Content) -> None:
        """Notes that the precision does not suffice, and deletes the rows."""
        check_cache_may_change(self.folder)
        with self._held():
            delete_all_but_lock(self.folder)
            write_note(self.folder, Note.of(content, overflow=True))

    @contextmanager
    def writing(self, content: Content) -> Iterator[Writer]:
        """Adds rows; waits until no other process does. Every row before them has been verified."""
        check_cache_may_change(self.folder)
        with self._held():
            self.check()
            if self.note() is None:
                write_note(self.folder, Note.of(content))
            with ExitStack() as files:
                writer = Writer(self.folder, files)
                try:
                    yield writer
                finally:
                    writer.finish()

    @contextmanager
    def _held(self) -> Iterator[None]:
        """The lock. Where the file system has none, the store of a part goes without: nobody else adds to it."""
        with ExitStack() as held:
            try:
                held.enter_context(locked(self.lock))
            except OSError as error:
                if error.errno not in WITHOUT_LOCKS or part_of(self.folder) is None:
                    raise
            yield

    def check(self) -> None:
        """Verifies the rows where their file is not as it was left, and forgets the damaged ones. Needs the lock."""
        try:
            note = read_note(self.folder)
        except DamagedNoteError:
            log.warning("The index of the cached rows in %s was damaged: they are computed again.", self.folder)
            delete_all_but_lock(self.folder)
            return
        if note is None or note.shape is None:
            return
        files = RowFiles(self.folder, note)
        records = files.records()
        sound = np.flatnonzero(valid_rows(records))
        lost = note.rows - len(sound)
        if lost == 0 and files.as_noted():
            return
        if lost > 0:
            log.warning(
                "The index of the cached rows in %s was damaged: %d of them are computed again.", self.folder, lost
            )
        write_note(self.folder, replace(note, size=-1))
        damaged = files.damaged(records, sound)
        if len(damaged):
            log.warning(
                "%d of the %d cached rows in %s were damaged: they are computed again.",
                len(damaged),
                len(sound),
                self.folder,
            )
            files.forget(damaged)
        size, mtime_ns = files.state()
        write_note(self.folder, replace(note, rows=len(sound) - len(damaged), size=size, mtime_ns=mtime_ns))

    def remove(self) -> None:
        """Deletes the store; what else may lie in its folder stays. Needs the lock."""
        delete_all_but_lock(self.folder)
        with suppress(OSError):  # Windows keeps an open file; a foreign file keeps the folder
            self.lock.unlink()
            self.folder.rmdir()


def _none_of(wanted: Identities) -> Indices:
    return np.full(len(wanted), -1, dtype=np.int64)
