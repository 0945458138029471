"""Filling the cache before the runs: parts of an extraction, each in a store of its own, are read as one."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

import forks
from acclimate.cache import index, upkeep
from acclimate.cache.content import folders_of_stores
from tiny import pictures, refused, succeeds

N = 10  # images of a class; 30 of a domain
NETWORK = ("--backbone", "test_resnet", "--tune", "head")
TRAINED = ("model.safetensors", "metrics.jsonl", "predictions.csv")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source, a target, the weights of a network, and what a run ends with that fills its own cache."""
    folder = tmp_path_factory.mktemp("data")
    pictures(folder / "S", n=N)
    pictures(folder / "T", n=N, shade=20)
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet").state_dict(), folder / "w.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCLIMATE_CACHE", str(folder / "cache"))
        fit(data=folder, out=folder / "expected")
    return folder


def network(data: Path) -> tuple[str | Path, ...]:
    return (*NETWORK, "--weights", data / "w.safetensors")


def fit(data: Path, out: Path) -> str:
    """What a short run says."""
    small = ("--bottleneck", "8", "--batch-size", "6", "--steps", "4")
    return succeeds("fit", data / "S", data / "T", *network(data), *small, "--out", out).output


def fill(data: Path, *more: str) -> dict[str, Any]:
    told = succeeds("cache", "fill", data / "S", data / "T", *network(data), *more, "--json").stdout
    filled: dict[str, Any] = json.loads(told)
    return filled


def assert_equal_bits(data: Path, out: Path) -> None:
    for name in TRAINED:
        assert (out / name).read_bytes() == (data / "expected" / name).read_bytes(), name


def images() -> dict[str | None, int | None]:
    """How many images each store has, by the part."""
    return {entry.part: entry.images for entry in upkeep.entries()}


# --- the command ---------------------------------------------------------------------------------------------------


def test_a_run_computes_nothing_that_was_filled(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled = fill(data)
    assert [(entry["images"], entry["skipped"], entry["level"]) for entry in filled["filled"]] == [
        (30, 0, "vector")
    ] * 2
    assert images() == {None: 60}
    monkeypatch.setenv("ACCLIMATE_CACHE_READONLY", "1")
    assert "not cached" not in fit(data, tmp_path / "run")
    assert_equal_bits(data, tmp_path / "run")


FILL = """
import os, signal, sys
from acclimate.cache import writer
from tiny import acclimate

at = int(sys.argv[1])
append, batches = writer.Writer.append, []

def counted(self, *args):
    append(self, *args)
    batches.append(1)
    if len(batches) == at:
        os.kill(os.getpid(), signal.SIGKILL)

writer.Writer.append = counted
result = acclimate("cache", "fill", *sys.argv[2:], "-q")
print(result.output, len(batches))
sys.exit(result.exit_code)
"""


def test_two_parts_one_of_them_killed_on_its_way(data: Path, tmp_path: Path) -> None:
    second = sum(entry["images"] for entry in fill(data, "--shard", "1/2")["filled"])
    code, told = forks.run(FILL, "1", data / "S", data / "T", *network(data), "--shard", "0/2")
    assert code == -signal.SIGKILL, told
    assert images() == {"0/2": 8, "1/2": second}  # a batch
    assert sum(entry["images"] for entry in fill(data, "--shard", "0/2")["filled"]) == 60 - second
    parts = images()
    assert parts == {"0/2": 60 - second, "1/2": second}
    (store,) = (path for path in folders_of_stores() if path.name.endswith("-0-of-2"))
    (records,) = store.glob("index-*.bin")
    assert records.stat().st_size == (parts["0/2"] or 0) * index.RECORD.itemsize  # none was computed twice
    fit(data, tmp_path / "run")
    assert images() == parts, "the run computed something"
    assert_equal_bits(data, tmp_path / "run")


def test_a_run_computes_what_a_missing_part_would_have(data: Path, tmp_path: Path) -> None:
    there = sum(entry["images"] for entry in fill(data, "--shard", "2/3")["filled"])
    assert 0 < there < 60
    fit(data, tmp_path / "run")
    assert images() == {"2/3": there, None: 60 - there}
    assert_equal_bits(data, tmp_path / "run")


def test_a_grid_fills_what_its_runs_read(data: Path, tmp_path: Path) -> None:
    grid = data / "grid.toml"
    grid.write_text(
        "[data]\n[data.domains]\nS = 'S'\nT = 'T'\n[settings]\nbackbone = 'test_resnet'\nsteps = 1\nbottleneck = 8\n"
        "batch_size = 6\n[[row]]\nname = 'source-only'\nsettings = {tune = 'head'}\n[[row]]\nname = 'TADA'\n"
        "options = {hidden = 8}\nsettings = {tune = 'head'}\n[[row]]\nname = 'DANN'\nsettings = {tune = 'all'}\n"
    )
    weights = ("--weights", data / "w.safetensors")
    filled = json.loads(succeeds("cache", "fill", grid, *weights, "--json").stdout)["filled"]
    assert sorted((Path(entry["data"]).name, entry["level"]) for entry in filled) == [
        ("S", "map"), ("S", "vector"), ("T", "map"), ("T", "vector"),
    ]  # fmt: skip
    before = images()
    rows = ("--methods", "source-only,TADA", "--tasks", "S-T", "--seeds", "0")
    succeeds("bench", grid, *weights, *rows, "--out", tmp_path / "bench")
    assert images() == before


def test_what_cannot_be_filled_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("cache", "fill", data / "S", *network(data))
    assert "--shard counts from 0" in refused(*command, "--shard", "3/3")
    assert "Nothing of these data has features" in refused(
        *command[:3], *network(data)[:2], *network(data)[4:], "--tune", "all"
    )
    assert "A grid names its data itself" in refused(*command, data / "grid.toml")
    assert "--root goes with a grid" in refused(*command, "--root", data)
    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path / "file"))
    (tmp_path / "file").write_text("a file where the folder should be")
    assert "cannot be written to" in refused(*command)
    monkeypatch.setenv("ACCLIMATE_CACHE_READONLY", "1")
    for changing in (command, ("cache", "clear", "--yes"), ("cache", "prune")):
        assert "unset ACCLIMATE_CACHE_READONLY" in refused(*changing)
