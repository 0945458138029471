"""Predictions as arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from acclimate.errors import DataError
from acclimate.progress import NOBODY
from acclimate.runs.output import table
from acclimate.runs.use import predict_images
from tiny import refused, succeeds, vectors


def test_arrays_hold_what_a_csv_holds(tmp_path: Path) -> None:
    source, target = vectors(tmp_path / "s.npz"), vectors(tmp_path / "t.npz", shift=0.5)
    run = tmp_path / "run"
    succeeds("fit", "--source", source, "--target", target, "--method", "source_only", "--steps", "2", "--out", run)
    succeeds("predict", run, target, "--out", tmp_path / "p.npz")
    rows = [line.split(",") for line in succeeds("predict", run, target).stdout.split()]
    with np.load(tmp_path / "p.npz") as arrays:
        assert sorted(arrays) == ["classes", "path", "predicted", "probabilities"]
        assert arrays["classes"].tolist() == rows[0][3:]
        assert arrays["path"].tolist() == [row[0] for row in rows[1:]]
        assert arrays["predicted"].tolist() == [row[1] for row in rows[1:]]
        assert arrays["probabilities"].dtype == np.float32
        assert np.allclose(arrays["probabilities"], np.array([row[3:] for row in rows[1:]], float), atol=1e-6)
    for wrong in (("--format", "npz"), ("--out", tmp_path / "q.npz", "--top", "2")):
        assert refused("predict", run, target, *wrong).startswith("--format npz writes the probabilities of all")


def test_parts_are_joined_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    p = np.array([[0.25, 0.75], [1, 0], [0.5, 0.5]])
    with table(str(tmp_path / "p.npz"), "npz", ("a", "ü"), None) as write:
        write(["x"], p[:1])
        write(["longer", "="], p[1:])
    with np.load(tmp_path / "p.npz") as arrays:
        assert arrays["path"].tolist() == ["x", "longer", "="]
        assert arrays["predicted"].tolist() == ["ü", "a", "a"]
        assert np.array_equal(arrays["probabilities"], p)
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "q.npz")
    with pytest.raises(DataError, match="cannot be written"), table(f"{tmp_path}/no/q.npz", "npz", ("a",), None):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz"]


def interrupted(path: Path) -> None:
    with table(str(path), "npz", ("a", "b"), None) as write:
        write(["x"], np.array([[0.25, 0.75]]))
        raise KeyboardInterrupt


def test_many_probabilities_are_remarked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acclimate.runs.use.MANY", 71)
    source = vectors(tmp_path / "s.npz")
    run = tmp_path / "run"
    succeeds("fit", "--source", source, "--target", vectors(tmp_path / "t.npz", shift=0.5), "--steps", "1",
             "--method", "source_only", "--out", run)  # fmt: skip
    assert "The predictions hold 72 probabilities: in an .npz" in succeeds("predict", run, source).stderr
    assert "probabilities" not in succeeds("predict", run, source, "--top", "2").stderr
    assert predict_images(run, [str(source)], str(tmp_path / "p.npz"), NOBODY)["items"] == 24
