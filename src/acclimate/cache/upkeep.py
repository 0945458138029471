"""Looking after the cache of features: what is in it, and deleting what nobody needs. Foreign files stay untouched."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from acclimate.cache.store import FILES, DamagedNoteError, Note, Store, stores_folder
from acclimate.data.domain import IDENTITY, file_identity
from acclimate.files import locked

DAY = 24 * 3600
GB = 10**9
_DIGEST = "[0-9a-f]{64}"
_OLD = re.compile(rf"{_DIGEST}(\.[0-9a-f]{{32}}\.tmp|\.npy)")  # one array a domain, of versions before the stores


@dataclass(frozen=True)
class Entry:
    """A store, or a file of features that an earlier version has left.

    Attributes:
        path: The folder or the file.
        backbone: The network's name; None where it is not known.
        level: What is kept of an image: a vector or a map.
        tune: What is trained on it.
        views: The views of each image.
        precision: Of the values.
        images: How many there are.
        bytes: Size on the disk.
        used: When it was last used, in seconds since 1970.
    """

    path: Path
    bytes: int
    used: float
    backbone: str | None = None
    level: str | None = None
    tune: str | None = None
    views: tuple[str, ...] = ()
    precision: str | None = None
    images: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {**asdict(self), "path": str(self.path), "views": list(self.views)}


def entries() -> list[Entry]:
    """All that the cache holds, the most recently used first."""
    found = [*map(_entry, _stores()), *map(_old_entry, _old_files())]
    return sorted(found, key=lambda entry: entry.used, reverse=True)


def as_table(found: list[Entry]) -> tuple[list[str], list[list[str]]]:
    """The headings and the rows of a table of entries."""
    headings = ["backbone", "level", "tune", "views", "precision", "images", "MB", "last used", "name"]
    return headings, [_table_row(entry) for entry in found]


def _table_row(entry: Entry) -> list[str]:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
    images = "" if entry.images is None else f"{entry.images:,}"
    kind = "of an earlier version" if entry.path.suffix else "unreadable"
    described = [entry.backbone or kind, entry.level or "", entry.tune or "", " ".join(entry.views)]
    return [*described, entry.precision or "", images, f"{entry.bytes / 1e6:,.1f}", used, entry.path.name[:12]]


@dataclass(frozen=True)
class Freed:
    """What was deleted: whole stores and old files, rows of other stores, and bytes; and the stores that are in use."""

    entries: int
    rows: int
    bytes: int
    busy: tuple[Path, ...]

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {**asdict(self), "busy": list(map(str, self.busy))}


def clear() -> Freed:
    """Deletes all stores and the files of earlier versions.

    Raises:
        OSError: Something cannot be deleted.
    """
    return _delete(entries())


def prune(*, older_than: float | None = None, larger_than: float | None = None) -> Freed:
    """Deletes what is not needed: the rows of images that have changed or are gone, and on request more.

    Args:
        older_than: Days; stores and old files that were last used before are deleted.
        larger_than: Bytes; while the cache is larger, what has not been used for longest is deleted.

    Raises:
        OSError: Something cannot be deleted, or there is no room for the smaller copy of a store.
    """
    before = _total()
    now = time.time()
    deleted = _delete([e for e in entries() if older_than is not None and now - e.used > older_than * DAY])
    rows, busy = 0, [*deleted.busy]
    for store in _stores():
        with locked(store.lock, wait=False) as mine:
            if mine:
                rows += _drop_dead_rows(store)
            elif store.folder not in busy:
                busy.append(store.folder)
    surplus, total = [], 0
    for entry in entries():
        total += entry.bytes
        if larger_than is not None and total > larger_than:
            surplus.append(entry)
    more = _delete(surplus)
    return Freed(deleted.entries + more.entries, rows, before - _total(), tuple(dict.fromkeys([*busy, *more.busy])))


def _delete(wanted: list[Entry]) -> Freed:
    before, count, busy = _total(), 0, []
    for entry in wanted:
        if entry.path.is_dir():
            store = Store(entry.path)
            with locked(store.lock, wait=False) as mine:
                if mine:
                    _remove(store)
            if not mine:
                busy.append(entry.path)
                continue
        else:
            entry.path.unlink(missing_ok=True)
        count += 1
    return Freed(count, 0, before - _total(), tuple(busy))


def _remove(store: Store) -> None:
    """Deletes a store whose lock this process has; what else may lie in its folder stays."""
    store.delete_files()
    with suppress(OSError):  # Windows keeps an open file; a foreign file keeps the folder
        store.lock.unlink()
        store.folder.rmdir()


def _drop_dead_rows(store: Store) -> int:
    """Packs a store without the rows that no image can ask for any more; returns how many they were."""
    store.check()
    note = store.note()
    if note is None or note.shape is None:
        if note is None or not note.overflow:
            _remove(store)
        return 0
    _delete_leftovers(store, note)
    sound = store.sound(note)
    identities = store.records(note)["identity"]
    path_of = dict(store.paths(note))  # the last line of a row counts
    known = {row: identity for row, identity in zip(sound.tolist(), identities[sound], strict=True) if row in path_of}
    dead = {row for row, identity in known.items() if _identity(path_of[row]) != identity}
    keep = np.array([row for row in sound.tolist() if row not in dead], dtype=np.int64)
    if not len(keep):
        _remove(store)
    elif len(keep) * note.row_bytes < note.size:  # there are dead rows, or gaps that kills have left
        store.pack(keep)
    return len(dead)


def _identity(path: str) -> np.bytes_:
    """What identifies a file, as an array gives it: without zeros at its end."""
    identity: np.bytes_ = np.frombuffer(file_identity(path), IDENTITY)[0]
    return identity


def _delete_leftovers(store: Store, note: Note) -> None:
    """Deletes what a kill has left of files that were being written whole."""
    current = {store.lock, store.folder / "store.json", *(store.file(note, kind) for kind in FILES)}
    for path in store.files():
        if path not in current:
            path.unlink(missing_ok=True)


def _stores() -> list[Store]:
    folders = (p for p in _children() if re.fullmatch(_DIGEST, p.name) and p.is_dir() and not p.is_symlink())
    return [store for store in map(Store, folders) if store.files()]


def _old_files() -> list[Path]:
    return [p for p in _children() if _OLD.fullmatch(p.name) and p.is_file() and not p.is_symlink()]


def _children() -> Iterator[Path]:
    folder = stores_folder()
    return iter(sorted(folder.iterdir()) if folder.is_dir() else [])


def _entry(store: Store) -> Entry:
    size = sum(path.stat().st_size for path in store.files())
    try:
        note = store.note()
    except DamagedNoteError:
        note = None
    if note is None:
        return Entry(store.folder, size, store.folder.stat().st_mtime)
    used = (store.folder / "store.json").stat().st_mtime
    images = len(store.sound(note)) if note.shape else 0
    content = {name: note.content.get(name) for name in ("backbone", "level", "tune", "precision")}
    return Entry(store.folder, size, used, views=tuple(note.content.get("views", ())), images=images, **content)


def _old_entry(path: Path) -> Entry:
    status = path.stat()
    return Entry(path, status.st_size, status.st_mtime)


def _total() -> int:
    return sum(entry.bytes for entry in entries())
