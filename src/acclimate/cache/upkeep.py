"""Looking after the cache of features: what is in it, and deleting what nobody needs. Foreign files stay untouched."""

from __future__ import annotations

import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from acclimate.cache.content import stores_folder
from acclimate.cache.note import NOTE
from acclimate.cache.packing import drop_dead_rows
from acclimate.cache.rows import RowFiles, files_of_store
from acclimate.cache.store import Store
from acclimate.locks import locked

DAY = 24 * 3600
GB = 10**9


@dataclass(frozen=True)
class StoreEntry:
    """A store.

    Attributes:
        path: The folder.
        bytes: Size on the disk.
        used: When it was last used, in seconds since 1970.
        backbone: The network's name; None, like all that follows, where the store's note is missing or damaged.
        level: What is kept of an image: a vector or a map.
        tune: What is trained on it.
        views: The views of each image.
        precision: Of the values.
        images: How many there are.
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


def entries() -> list[StoreEntry]:
    """All that the cache holds, the most recently used first."""
    return sorted(map(_entry, _stores()), key=lambda entry: entry.used, reverse=True)


def as_table(found: list[StoreEntry]) -> tuple[list[str], list[list[str]]]:
    """The headings and the rows of a table of entries."""
    headings = ["backbone", "level", "tune", "views", "precision", "images", "MB", "last used", "name"]
    return headings, [_table_row(entry) for entry in found]


def _table_row(entry: StoreEntry) -> list[str]:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
    images = "" if entry.images is None else f"{entry.images:,}"
    described = [entry.backbone or "unreadable", entry.level or "", entry.tune or "", " ".join(entry.views)]
    return [*described, entry.precision or "", images, f"{entry.bytes / 1e6:,.1f}", used, entry.path.name[:12]]


@dataclass(frozen=True)
class Freed:
    """What was deleted: whole stores, rows of other stores, and bytes; and the stores that are in use."""

    entries: int
    rows: int
    bytes: int
    busy: tuple[Path, ...]

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {**asdict(self), "busy": list(map(str, self.busy))}


def clear() -> Freed:
    """Deletes all stores that are not in use.

    Raises:
        OSError: Something cannot be deleted.
    """
    return _delete(entries())


def prune(*, older_than: float | None = None, larger_than: float | None = None) -> Freed:
    """Deletes what is not needed: the rows of images that have changed or are gone, and on request more.

    Args:
        older_than: Days; stores that were last used before are deleted.
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
                rows += drop_dead_rows(store)
            elif store.folder not in busy:
                busy.append(store.folder)
    surplus, total = [], 0
    for entry in entries():
        total += entry.bytes
        if larger_than is not None and total > larger_than:
            surplus.append(entry)
    more = _delete(surplus)
    return Freed(deleted.entries + more.entries, rows, before - _total(), tuple(dict.fromkeys([*busy, *more.busy])))


def _delete(wanted: list[StoreEntry]) -> Freed:
    before, count, busy = _total(), 0, []
    for entry in wanted:
        store = Store(entry.path)
        with locked(store.lock, wait=False) as mine:
            if mine:
                store.remove()
                count += 1
            else:
                busy.append(entry.path)
    return Freed(count, 0, before - _total(), tuple(busy))


def _stores() -> list[Store]:
    root = stores_folder()
    folders = sorted(root.iterdir()) if root.is_dir() else []
    ours = [path for path in folders if re.fullmatch("[0-9a-f]{64}", path.name) and not path.is_symlink()]
    return [Store(path) for path in ours if files_of_store(path)]


def _entry(store: Store) -> StoreEntry:
    size = sum(path.stat().st_size for path in files_of_store(store.folder))
    note = store.note()
    if note is None:
        return StoreEntry(store.folder, size, used=store.folder.stat().st_mtime)
    content = note.content
    return StoreEntry(
        store.folder,
        size,
        used=(store.folder / NOTE).stat().st_mtime,
        backbone=content.get("backbone"),
        level=content.get("level"),
        tune=content.get("tune"),
        views=tuple(content.get("views", ())),
        precision=content.get("precision"),
        images=len(RowFiles(store.folder, note).sound()),
    )


def _total() -> int:
    return sum(entry.bytes for entry in entries())
