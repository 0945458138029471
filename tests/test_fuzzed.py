"""What `measurements/fuzz.py` found: each file once ended in an error that was no sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from acclimate.data.read import read_source
from acclimate.errors import AcclimateError
from acclimate.networks.weights import read_weights

FOUND = sorted(Path(__file__).with_name("fuzzed").iterdir())

READERS: dict[str, Callable[[Path], object]] = {".npz": read_source, ".pth": read_weights}


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_a_sentence_says_what_is_wrong(path: Path) -> None:
    with pytest.raises(AcclimateError, match=r"^[^\n]* (cannot be loaded|is not Unicode)[^\n]*\.$"):
        READERS[path.suffix](path)
