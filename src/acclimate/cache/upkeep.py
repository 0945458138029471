"""Looking after the cache: what is in it, and deleting what nobody needs. Foreign files stay untouched."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from acclimate.cache.content import folders_of_stores, part_of
from acclimate.cache.engines import VERDICT, converted_networks, files_of_network, named, remove_network
from acclimate.cache.note import NOTE
from acclimate.cache.packing import drop_dead_rows
from acclimate.cache.rows import LOCK, RowFiles, files_of_store
from acclimate.cache.store import Store
from acclimate.errors import OptionError
from acclimate.files import cache_may_change
from acclimate.locks import locked

DAY = 24 * 3600
GB = 10**9


@dataclass(frozen=True)
class StoreEntry:
    """A store, or a converted network of another engine.

    Attributes:
        path: The folder.
        what: Which of both it is.
        bytes: Size on the disk.
        used: When it was last used, in seconds since 1970.
        backbone: The network's name; None, like all that follows, where the store's note is missing or damaged.
        level: What is kept of an image: a vector or a map.
        tune: What is trained on it.
        views: The views of each image.
        precision: Of the values.
        images: How many there are.
        part: Which part of an extraction has filled the store, as in 0/4; None where it is that of all else.
    """

    path: Path
    what: Literal["rows", "network"]
    bytes: int
    used: float
    backbone: str | None = None
    level: str | None = None
    tune: str | None = None
    views: tuple[str, ...] = ()
    precision: str | None = None
    images: int | None = None
    part: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {**asdict(self), "path": str(self.path), "views": list(self.views)}


def entries() -> list[StoreEntry]:
    """All that the cache holds, the most recently used first."""
    found = [*map(_entry, _stores()), *map(_network, converted_networks())]
    return sorted(found, key=lambda entry: entry.used, reverse=True)


def as_table(found: list[StoreEntry]) -> tuple[list[str], list[list[str]]]:
    """The headings and the rows of a table of entries."""
    headings = ["backbone", "level", "tune", "views", "precision", "images", "MB", "last used", "name"]
    return headings, [_table_row(entry) for entry in found]


def _table_row(entry: StoreEntry) -> list[str]:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
    images = "" if entry.images is None else f"{entry.images:,}"
    backbone = entry.backbone or "unreadable"
    if entry.what == "network":
        backbone = f"{entry.backbone or 'a network'} for OpenVINO"
    described = [backbone, entry.level or "", entry.tune or "", " ".join(entry.views)]
    name = entry.path.name[:12] + (f" part {entry.part}" if entry.part else "")
    return [*described, entry.precision or "", images, f"{entry.bytes / 1e6:,.1f}", used, name]


@dataclass(frozen=True)
class Freed:
    """What was deleted: whole stores and networks, rows of other stores, and bytes; and what is in use."""

    entries: int
    rows: int
    bytes: int
    busy: tuple[Path, ...]

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {**asdict(self), "busy": list(map(str, self.busy))}


def clear() -> Freed:
    """Deletes all stores and converted networks that are not in use.

    Raises:
        OptionError: The cache may only be read.
        OSError: Something cannot be deleted.
    """
    _check_may_change()
    return _delete(entries())


def prune(*, older_than: float | None = None, larger_than: float | None = None) -> Freed:
    """Deletes what is not needed: the rows of images that have changed or are gone, and on request more.

    Args:
        older_than: Days; what was last used before is deleted.
        larger_than: Bytes; while the cache is larger, what has not been used for longest is deleted.

    Raises:
        OptionError: The cache may only be read.
        OSError: Something cannot be deleted, or there is no room for the smaller copy of a store.
    """
    _check_may_change()
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
        with locked(entry.path / LOCK, wait=False) as mine:
            if not mine:
                busy.append(entry.path)
                continue
            if entry.what == "rows":
                Store(entry.path).remove()
            else:
                remove_network(entry.path)
            count += 1
    return Freed(count, 0, before - _total(), tuple(busy))


def _stores() -> list[Store]:
    return [Store(path) for path in folders_of_stores() if files_of_store(path)]


def _check_may_change() -> None:
    if not cache_may_change():
        raise OptionError("The cache may only be read: unset ACCLIMATE_CACHE_READONLY to delete something of it.")


def _network(folder: Path) -> StoreEntry:
    """A converted network. It was last used when its verdict was last touched."""
    files = files_of_network(folder)
    used = max((path.stat().st_mtime for path in files if path.name == VERDICT), default=folder.stat().st_mtime)
    size = sum(path.stat().st_size for path in files)
    backbone, level, tune = named(folder) or (None, None, None)
    return StoreEntry(folder, "network", size, used, backbone=backbone, level=level, tune=tune)


def _entry(store: Store) -> StoreEntry:
    size = sum(path.stat().st_size for path in files_of_store(store.folder))
    part = part_of(store.folder)
    note = store.note()
    if note is None:
        return StoreEntry(store.folder, "rows", size, used=store.folder.stat().st_mtime, part=part)
    content = note.content
    return StoreEntry(
        store.folder,
        "rows",
        size,
        part=part,
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
