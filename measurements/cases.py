"""What a hostile case is."""

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
