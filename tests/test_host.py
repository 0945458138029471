"""A library call leaves its process as it was: threads, allocator, random numbers, command, environment."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from acclimate.bench.grid import grid_of
from acclimate.bench.runner import bench
from acclimate.data.batches import Pair
from acclimate.data.inputs import ArrayInputs
from acclimate.data.read import read_target
from acclimate.estimator import AdaptiveClassifier
from acclimate.methods.dann import DANN
from acclimate.model import Model
from acclimate.networks.network import Network
from acclimate.progress import Meter, Nobody
from acclimate.runs.fit import fit
from acclimate.settings import Recipe, Settings
from acclimate.training import train
from tiny import on_vectors, pictures, vectors

THREADS = 3


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], dict[str, Any]]]:
    """What a host can see of itself, with a command of its own and another number of threads than the tests'."""
    monkeypatch.setattr(sys, "argv", ["somebody", "--else"])
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)

    def state() -> dict[str, Any]:
        return {
            "threads": torch.get_num_threads(),
            "threads of a new thread": in_a_new_thread(torch.get_num_threads),
            "torch": torch.get_rng_state().tolist(),
            "numpy": str(np.random.get_state()),  # noqa: NPY002 (the host's)
            "gradients": torch.is_grad_enabled(),
            "type": torch.get_default_dtype(),
            "command": list(sys.argv),
            "environment": dict(os.environ),
            "folder": Path.cwd(),
        }

    yield state
    torch.set_num_threads(before)


def in_a_new_thread(ask: Callable[[], int]) -> int:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(ask).result()


def settings(folder: Path, kind: str, **more: Any) -> Settings:
    """A short run, of "vectors" or of images."""
    small = {"steps": 2, "batch_size": 6, "bottleneck": 8, **more}
    if kind == "vectors":
        source, target = vectors(folder / "source.npz"), vectors(folder / "target.npz", shift=0.5)
    else:
        source, target = pictures(folder / "source"), pictures(folder / "target", shade=20)
    return Settings.of(source=str(source), target=str(target), **small)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("vectors", {"method": "wemnet"}),
        ("vectors", {"method": "tca", "options": {"dim": 2}}),  # scikit-learn draws random numbers, too
        ("images", {"method": "dann", "backbone": "lenet", "options": {"critic": "dropout", "hidden": 8}}),
        ("images", {"method": "source_only"}),  # features are computed, in threads
    ],
)
def test_fit(kind: str, more: dict[str, Any], host: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    asked = settings(tmp_path, kind, **more)
    before = host()
    record = fit(asked, str(tmp_path / "run"), compare=True)
    assert host() == before
    assert record.command == ()
    fit(asked, tmp_path / "run")  # the finished one is read
    Model.load(tmp_path / "run").predict(read_target(asked.target))
    assert host() == before


def test_fit_is_silent_unless_somebody_listens(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    asked = settings(tmp_path, "images", method="source_only", backbone="lenet")
    (tmp_path / "target" / "a" / "0.png").write_bytes(b"no image")
    fit(asked, tmp_path / "run")
    assert capfd.readouterr() == ("", "")
    assert "0.png" in (tmp_path / "run" / "skipped.csv").read_text()


def test_the_bits_of_a_run_do_not_depend_on_the_host_s_random_numbers(tmp_path: Path) -> None:
    more = {"method": "dann", "options": {"critic": "dropout", "hidden": 8}, "backbone": "lenet"}
    asked = settings(tmp_path, "images", **more)
    for seed in (1, 2):
        torch.manual_seed(seed)
        fit(asked, tmp_path / str(seed))
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in "12")
    assert one == two


GRID = """
seeds = [0]
[data]
domains = { S = "source.npz", T = "target.npz" }
[settings]
steps = 2
batch_size = 6
bottleneck = 8
[[row]]
name = "source-only"
method = "source_only"
"""


class Impatient(Nobody):
    """Interrupts a training when it is told of the first step."""

    interactive = True

    @contextmanager
    def progress(self, description: str, total: int, start: int = 0) -> Iterator[Meter]:
        with super().progress(description, total, start) as meter:
            yield self if description.startswith("Training") else meter

    def update(self, done: int, terms: Any = None) -> None:
        assert torch.get_num_threads() == 2
        raise KeyboardInterrupt


def test_bench(host: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    settings(tmp_path, "vectors")
    (tmp_path / "grid.toml").write_text(GRID, encoding="utf-8")
    grid = grid_of(str(tmp_path / "grid.toml"))
    before = host()
    with pytest.raises(KeyboardInterrupt):
        bench(grid, tmp_path / "out", Impatient(), threads=2)
    assert host() == before
    records = bench(grid, tmp_path / "out", threads=2)
    assert [record.trained.threads for record in records] == [2, 2]
    assert host() == before


@pytest.mark.parametrize("method", on_vectors())
def test_the_estimator(method: str, host: Callable[[], dict[str, Any]]) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(20, 4)), np.arange(20) % 2
    before = host()
    classifier = AdaptiveClassifier(method=method, steps=2, batch_size=4, bottleneck=8, random_state=0)
    classifier.fit(X + 4 * y[:, None], y, X_target=X).predict(X)
    assert host() == before


def test_training_in_a_loop_of_one_s_own_draws_what_the_method_draws(host: Callable[[], dict[str, Any]]) -> None:
    rng = np.random.default_rng(0)
    source, target = (ArrayInputs(rng.normal(size=(1, 12, 4)).astype(np.float32)) for _ in range(2))
    method = DANN(Network(nn.Identity(), nn.Identity(), 4, bottleneck=8), 2)
    before = host()
    assert len(list(train(method, Pair(source, np.arange(12) % 2, target, batch_size=4), Recipe(steps=3)))) == 3
    assert host() == before


def test_a_thread_that_begins_while_features_are_computed_has_the_host_s_number(
    host: Callable[[], dict[str, Any]], tmp_path: Path
) -> None:
    domain = read_target(pictures(tmp_path / "target", n=9))
    run = tmp_path / "run"
    fit(settings(tmp_path / "data", "images", method="source_only"), run)
    seen = []

    def track(items: Iterable[Any], description: str, total: int) -> Iterator[Any]:
        for item in items:
            if description == "Computing features":
                seen.append(in_a_new_thread(torch.get_num_threads))
            yield item

    Model.load(run).predict(domain, track)
    assert seen == [THREADS] * 4  # batches


MEMORY = """
import resource, sys
import torch

def faults():
    for _ in range(20):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

from acclimate.cli.app import app
from acclimate.runs.fit import fit
from acclimate.settings import Settings

source, target, out = sys.argv[1:]
small = {"steps": 1, "batch_size": 6, "bottleneck": 8, "method": "source_only"}
fit(Settings.of(source=source, target=target, **small), out)
print(faults())
app(["evaluate", out, target, "--json"], standalone_mode=False)
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_command_keeps_freed_memory_and_a_library_call_does_not(tmp_path: Path) -> None:
    source, target = vectors(tmp_path / "source.npz"), vectors(tmp_path / "target.npz", shift=0.5)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, source, target, tmp_path / "run"],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    after_call, *_, after_command = done.stdout.splitlines()
    assert int(after_call) > 1000  # pages, of 16,384: the system may give large ones
    assert int(after_command) < 100
