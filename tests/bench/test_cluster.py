"""A grid made in parts or by executors: the records are those of one machine, and a lost worker costs one run."""

from __future__ import annotations

import concurrent.futures
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

import distributed
import pytest
from hypothesis import given
from hypothesis import strategies as st

import forks
from acclimate import shard
from acclimate.bench import runner
from acclimate.bench.grid import Grid, make_grid, read_grid
from acclimate.bench.plan import PlannedRun
from acclimate.errors import OptionError
from benches import GRID, written
from tiny import acclimate, refused, succeeds


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small grid, with an option that is true or false, as the commands that are listed have to write it."""
    file = written(tmp_path_factory.mktemp("grid"))
    text = GRID.replace('method = "dann"\noptions = {', 'method = "cdan"\noptions = { entropy = true,')
    assert text != GRID
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def whole(grid: Path) -> bytes:
    """The records of one machine."""
    succeeds("bench", grid, "--out", grid.parent / "whole", "-q")
    return (grid.parent / "whole" / "records.jsonl").read_bytes()


# --- parts ---------------------------------------------------------------------------------------------------------


def runs(n: int) -> list[PlannedRun]:
    settings: Any = None
    return [PlannedRun(settings, Path(f"dann-S-T-0-{i * 7919:012x}")) for i in range(n)]


def part(number: int, of: int, n: int) -> list[PlannedRun]:
    return [run for run in runs(n) if shard.Shard(number, of).has(run.content)]


@given(n=st.integers(0, 60), of=st.integers(1, 9))
def test_every_run_is_in_one_part(n: int, of: int) -> None:
    parts = [part(number, of, n) for number in range(of)]
    assert sorted(run.content for part in parts for run in part) == sorted(run.content for run in runs(n))
    more = [part(number, of, n + 5) for number in range(of)]
    grown = [{run.content for run in part} for part in more]  # a grid that grows
    assert all({run.content for run in part} <= part_now for part, part_now in zip(parts, grown, strict=True))


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("0/1", {}, (0, 1)),
        ("3/8", {}, (3, 8)),
        ("slurm", {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "8"}, (4, 8)),
        (
            "slurm",
            {
                "SLURM_ARRAY_TASK_ID": "6",
                "SLURM_ARRAY_TASK_MIN": "0",
                "SLURM_ARRAY_TASK_COUNT": "4",
                "SLURM_ARRAY_TASK_STEP": "2",
            },
            (3, 4),
        ),
        ("pbs/4", {"PBS_ARRAY_INDEX": "4"}, (0, 4)),
        ("pbs/4", {"PBS_ARRAYID": "3"}, (3, 4)),
        ("lsf", {"LSB_JOBINDEX": "1", "LSB_JOBINDEX_END": "16"}, (0, 16)),
        (
            "sge",
            {"SGE_TASK_ID": "3", "SGE_TASK_FIRST": "1", "SGE_TASK_LAST": "7", "SGE_TASK_STEPSIZE": "2"},
            (1, 4),
        ),
        ("k8s/5", {"JOB_COMPLETION_INDEX": "4"}, (4, 5)),
    ],
)
def test_a_part_by_number_or_by_scheduler(text: str, environment: dict[str, str], expected: tuple[int, int]) -> None:
    assert shard.shard_of(text, environment) == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("8/8", "--shard counts from 0"),
        ("0/0", "--shard counts from 0"),
        ("-1/8", "--shard takes I/N"),
        ("half", "--shard takes I/N"),
        ("1", "--shard takes I/N"),
        ("slurm", "--shard slurm reads SLURM_ARRAY_TASK_ID, which this job does not have"),
        ("k8s", "--shard k8s reads JOB_COMPLETION_INDEX"),
        ("slurm/0", "--shard slurm reads"),
        (f"0/{10**8}", "--shard counts from 0"),
    ],
)
def test_a_part_that_is_none(text: str, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        shard.shard_of(text, {})


def test_a_scheduler_that_does_not_say_how_many() -> None:
    with pytest.raises(OptionError, match="k8s does not say how many jobs its array has: write --shard k8s/N"):
        shard.shard_of("k8s", {"JOB_COMPLETION_INDEX": "0"})


def test_parts_then_one_command_that_collects(grid: Path, whole: bytes, tmp_path: Path) -> None:
    for part in ("0/2", "1/2"):
        succeeds("bench", grid, "--out", tmp_path, "-q", "--shard", part)
        assert not (tmp_path / "records.jsonl").exists()
    made = {file: file.stat().st_mtime_ns for file in tmp_path.glob("runs/*/record.json")}
    assert len(made) == 4
    succeeds("bench", grid, "--out", tmp_path, "-q")
    assert (tmp_path / "records.jsonl").read_bytes() == whole
    assert all(file.stat().st_mtime_ns == time for file, time in made.items())


KILLED = """
import os, signal, sys
import torch
import acclimate.runs.run as experiment
from acclimate.__main__ import main

torch.set_num_threads(1)
write_record = experiment.write_record

def die(path, record):
    write_record(path, record)
    os.kill(os.getpid(), signal.SIGKILL)

experiment.write_record = die
sys.argv[1:] = ["bench", sys.argv[1], "--out", sys.argv[2], "-q", "--shard", "0/1"]
main()
"""


def test_a_part_that_was_killed_goes_on_and_is_collected(grid: Path, whole: bytes, tmp_path: Path) -> None:
    assert forks.run(KILLED, grid, tmp_path)[0] == -signal.SIGKILL
    assert len(list(tmp_path.glob("runs/*"))) == 1
    succeeds("bench", grid, "--out", tmp_path, "-q", "--shard", "0/2")
    succeeds("bench", grid, "--out", tmp_path, "-q")
    assert (tmp_path / "records.jsonl").read_bytes() == whole


# --- commands ------------------------------------------------------------------------------------------------------


def test_the_listed_commands_make_the_bench(grid: Path, whole: bytes, tmp_path: Path) -> None:
    listed = succeeds("bench", grid, "--out", tmp_path, "--list").stdout.splitlines()
    assert len(listed) == 4
    for line in listed:
        threads, command, *args = shlex.split(line)
        assert (threads, command) == ("OMP_NUM_THREADS=1", "acclimate")
        assert acclimate(*args).exit_code == 0
    assert succeeds("bench", grid, "--out", tmp_path, "--list").stdout == ""
    succeeds("bench", grid, "--out", tmp_path, "-q")
    assert (tmp_path / "records.jsonl").read_bytes() == whole


# --- executors -----------------------------------------------------------------------------------------------------


def planned(grid: Path) -> Grid:
    return make_grid(read_grid(grid))


def test_an_executor_of_the_standard_library(grid: Path, whole: bytes, tmp_path: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        runner.bench(planned(grid), tmp_path, executor=executor)
    assert (tmp_path / "records.jsonl").read_bytes() == whole


class Lost:
    """A future of a worker that died."""

    def done(self) -> bool:
        return True

    def exception(self) -> Exception:
        return ChildProcessError("the worker is gone")


class Unreliable:
    """An executor whose first worker dies, and whose results are lies."""

    def __init__(self) -> None:
        self.lost = 0

    def submit(self, function: Any, /, *args: Any) -> Any:
        if not self.lost:
            self.lost += 1
            return Lost()
        future: concurrent.futures.Future[str] = concurrent.futures.Future()
        function(*args)
        future.set_result("not what anybody reads")
        return future


def test_a_worker_that_dies_fails_its_run_alone(grid: Path, whole: bytes, tmp_path: Path) -> None:
    records = runner.bench(planned(grid), tmp_path, executor=Unreliable())
    assert sorted(record.status for record in records) == ["done", "done", "done", "failed"]
    (error,) = [record.error for record in records if record.error]
    assert error == "Its process ended: ChildProcessError: the worker is gone"
    runner.bench(planned(grid), tmp_path)  # another call makes it
    assert (tmp_path / "records.jsonl").read_bytes() == whole


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its logs open
def test_submitit_in_this_process(grid: Path, whole: bytes, tmp_path: Path) -> None:
    succeeds("bench", grid, "--out", tmp_path, "-q", "--engine", "slurm", "--slurm", "cluster=debug,time=5")
    assert (tmp_path / "records.jsonl").read_bytes() == whole


def test_dask_in_this_process(grid: Path, whole: bytes, tmp_path: Path) -> None:
    alone: dict[str, Any] = {"processes": False, "n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.Client(**alone) as client:
        runner.bench(planned(grid), tmp_path, executor=client.get_executor(pure=False))
    assert (tmp_path / "records.jsonl").read_bytes() == whole


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--slurm", "time=5"], "--slurm goes with --engine slurm."),
        (["--dask", "tcp://x:1"], "--dask goes with --engine dask."),
        (["--engine", "slurm", "--slurm", "queue=long"], "--slurm takes partition=..., account=..."),
        (["--engine", "slurm", "--slurm", "time=soon"], "time in --slurm must be a whole number, not soon."),
    ],
)
def test_an_engine_that_is_not_understood(args: list[str], sentence: str, grid: Path, tmp_path: Path) -> None:
    assert refused("bench", grid, "--out", tmp_path, *args).startswith(sentence)


def test_an_engine_that_is_not_installed(grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for engine, module in (("slurm", "submitit"), ("dask", "distributed")):
        monkeypatch.setitem(sys.modules, module, None)
        assert "pip install" in refused("bench", grid, "--out", tmp_path, "--engine", engine)
