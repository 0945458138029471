"""What a hostile case is, and damage to bytes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias


class Case(NamedTuple):
    """A hostile input, and what is done with it."""

    name: str
    act: Callable[[], object]


Area: TypeAlias = Callable[[random.Random, Path, int], Iterator[Case]]


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Bytes with some damage."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(changed)) if changed else 0
        match rng.randrange(5):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del changed[at:]
            case 2:
                changed[at:at] = changed[at : at + rng.randrange(64)]
            case 3:
                changed[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4)])
            case 4:
                changed[at:at] = rng.randbytes(rng.randrange(16))
    return bytes(changed)
