"""store.json: what the rows of a store are, in words, and how they were when the store was last left."""

from __future__ import annotations

import json
import math
import secrets
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from acclimate.cache.content import FORMAT, Content
from acclimate.files import write_whole
from acclimate.schema import checksum

NOTE = "store.json"

WHAT = "Features that Acclimate computed of images, or resized images. Deleted ones are computed again when needed."

DTYPES: dict[str, str] = {"fp32": "<f4", "fp16": "<f2", "bf16": "<i2", "uint8": "|u1"}  # NumPy has no bfloat16


def new_generation() -> str:
    """G of the names of a store's files."""
    return secrets.token_hex(4)


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
    generation: str = field(default_factory=new_generation)
    rows: int = 0
    size: int = 0
    mtime_ns: int = 0
    overflow: bool = False

    @classmethod
    def of(cls, content: Content, *, overflow: bool = False) -> Note:
        """The note of a store without rows."""
        return cls(asdict(content), DTYPES[content.precision], overflow=overflow)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape or ()) * np.dtype(self.dtype).itemsize


class DamagedNoteError(Exception):
    """store.json cannot be understood."""


def read_note(folder: Path) -> Note | None:
    """What store.json says; None where there is none.

    Raises:
        DamagedNoteError: It is damaged.
        OSError: It cannot be read.
    """
    try:
        entries = json.loads((folder / NOTE).read_bytes())
        if entries.pop("checksum") != checksum(entries):
            raise ValueError("it was altered")
        note = Note(**{name: entries[name] for name in Note.__dataclass_fields__})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedNoteError from error
    return replace(note, shape=tuple(note.shape) if note.shape else None)


def write_note(folder: Path, note: Note) -> None:
    """Replace store.json, with a checksum of it.

    Raises:
        OSError: It cannot be written.
    """
    entries = {"what": WHAT, "format": FORMAT, **asdict(note)}
    entries["checksum"] = checksum(entries)
    write_whole(folder / NOTE, json.dumps(entries, indent=2).encode())
