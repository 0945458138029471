"""A tenth of the hostile cases of `measurements/hostile.py`, those that take no memory: none may fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "measurements" / "hostile.py"

QUICK = (
    "special files",
    "image bytes",
    "settings, options, devices",
    "grids",
    "lists",
    "arrays and weights",
    "names",
    "state files",
)


def test_every_hostile_case_ends_in_a_result_or_a_sentence() -> None:
    command = [sys.executable, str(SCRIPT), "--quick", "--only", *QUICK]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert all(f"| {area} |" in done.stdout for area in QUICK)
