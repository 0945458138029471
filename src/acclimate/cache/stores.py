"""The stores of one content read as one: its own, and those that the parts of an extraction have filled.

A part of an extraction, which may run on another machine, has a store of its own, so that no two machines ever add to
the same files. Whoever reads looks an image up in one store after the other; in which it is makes no difference.
"""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from acclimate.cache.content import Content, folders_of_stores
from acclimate.cache.identity import Identities
from acclimate.cache.rows import Array
from acclimate.cache.store import Store
from acclimate.data.domain import Indices
from acclimate.data.inputs import JoinedRows
from acclimate.shard import Shard


class Stores:
    """All stores of one content.

    Args:
        content: What their rows are.
        shard: The part of an extraction that is at work; None is no part.

    Attributes:
        own: The store that rows are added to.
    """

    def __init__(self, content: Content, shard: Shard | None = None) -> None:
        self.content = content
        self.own = Store(content.folder_of(shard))

    def read(self, wanted: Identities) -> tuple[Array | JoinedRows | None, Indices]:
        """The rows of all stores (R, V, ...), memory-mapped, and which of them each wanted image is, -1 for none.

        Raises:
            OSError: The folder of the own one cannot be used.
        """
        positions = np.full(len(wanted), -1, dtype=np.int64)
        parts: list[Array] = []
        start = 0
        for store in (self.own, *self._others()):
            lacking = np.flatnonzero(positions < 0)
            rows = None
            if len(lacking) and store.folder.is_dir():  # looking into one that is not there would make it
                rows, found = self._read(store, wanted[lacking])
            if rows is None or (parts and rows.shape[1:] != parts[0].shape[1:]):
                continue
            here = found >= 0
            positions[lacking[here]] = found[here] + start
            parts.append(rows)
            start += len(rows)
        if not parts:
            return None, positions
        return parts[0] if len(parts) == 1 else JoinedRows(parts), positions

    def overflow(self) -> bool:
        """Whether a value was met, by any part, that the precision cannot hold."""
        return any(store.overflows() for store in (self.own, *self._others()))

    def _others(self) -> list[Store]:
        digest = self.content.folder.name
        folders = [path for path in folders_of_stores() if path.name.startswith(digest)]
        return [Store(path) for path in folders if path != self.own.folder]

    def _read(self, store: Store, wanted: Identities) -> tuple[Array | None, Indices]:
        if store is self.own:
            return store.read(wanted)
        with suppress(OSError):  # what cannot be read is computed
            return store.read(wanted, alone=True)
        return None, np.empty(0, dtype=np.int64)
