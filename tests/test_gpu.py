"""`measurements/gpu.py` in its small form, on a CPU: every part of it runs, and each figure is kept as it is made."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

MEASUREMENTS = Path(__file__).parents[1] / "measurements"


def test_every_part_makes_its_figures_and_one_that_fails_ends_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(MEASUREMENTS))
    gpu = importlib.import_module("gpu")
    kept: list[int] = []

    def fails(setup: object) -> None:
        kept.append(len((tmp_path / "gpu.jsonl").read_text().splitlines()))
        raise RuntimeError("CUDA error: made up\nand explained at length")

    monkeypatch.setitem(gpu.PARTS, "extraction", fails)
    gpu.main(["--quick", "--device", "cpu", "--out", str(tmp_path)])
    rows = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert {row["part"] for row in rows} == set(gpu.PARTS)
    assert [row for row in rows if "failed" in row] == [
        {"part": "extraction", "failed": "RuntimeError: CUDA error: made up"}
    ]
    assert kept[0] > 4
    (method,) = (row for row in rows if row["part"] == "conformance")
    assert method["resumes to the bit"] is method["all on the device"] is True
    assert method["distance to the CPU's, of the way"] == 0
    assert next(row["resumes to the bit"] for row in rows if row["part"] == "runs") is True
    assert "| crst |" in (tmp_path / "gpu.md").read_text()
