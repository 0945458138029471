"""A bench: every run of a grid that is not made yet, and one record for each of them."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple

import torch

from acclimate.bench.grid import OF_A_RUN, Grid, Row, settings_of
from acclimate.errors import AcclimateError, OptionError, RunsFailedError
from acclimate.files import locked
from acclimate.reporting import Screen, write_json, write_jsonl
from acclimate.runs import fit
from acclimate.runs.directory import WITHOUT_EFFECT
from acclimate.runs.fit import Settings, Task

# --- the runs ----------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """A run of a grid, or of several rows with the same settings, and the folder that is named by its content."""

    settings: Settings
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do, not even to tidy up after a kill."""
        return (self.folder / "record.json").exists() and not (self.folder / "checkpoint").exists()


class Cell(NamedTuple):
    """A run's place in the grid."""

    row: Row
    task: tuple[str, str]
    seed: int
    run: Run


class Tasks:
    """The tasks of a process, each read and checked once."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self.read: dict[tuple[str, str, str | None, bool], Task] = {}

    def of(self, settings: Settings) -> Task:
        """The task of these settings."""
        key = (settings.source, settings.target, settings.test, settings.allow_class_mismatch)
        if key not in self.read:
            self.read[key] = fit.read_task(settings, self.screen)
        return self.read[key]


def plan(grid: Grid, out: Path, tasks: Tasks) -> list[Cell]:
    """Every run of the grid, in the order of its table; reads and checks all domains.

    A run is known by its content, so a changed grid shares with the old one whatever has not changed.

    Raises:
        AcclimateError: The options or the data cannot be used.
    """
    asked = [
        (row, task, seed, settings_of(grid, row, task, seed))
        for row in grid.rows
        for task in grid.tasks
        for seed in grid.seeds
    ]
    cells = []
    for row, (source, target), seed, settings in asked:
        content = fit.identity(settings, tasks.of(settings))[:12]
        name = re.sub(r"[^\w.-]+", "_", f"{row.method}-{source}-{target}-{seed}-{content}")
        cells.append(Cell(row, (source, target), seed, Run(settings, out / "runs" / name)))
    return cells


def bench(
    grid: Grid, out: Path, screen: Screen, *, jobs: int = 1, threads: int = 1, keep_models: bool = False
) -> list[dict[str, Any]]:
    """Make every run of a grid that is not made yet, the first seed of everything first.

    The same call goes on where an interrupted one stopped. A run that fails is recorded, and the others go on.

    Args:
        grid: What to run.
        out: The folder for `records.jsonl` and `runs`.
        screen: Where progress is shown.
        jobs: How many processes make runs; with one it is this one.
        threads: Threads of each. Only runs with equally many end with equal bits.
        keep_models: Keep the models' weights.

    Returns:
        The records, as in records.jsonl: a row's tasks and seeds together, in the order of the grid.

    Raises:
        AcclimateError: The grid or its data cannot be used.
    """
    for name, value in {"jobs": jobs, "threads": threads}.items():
        if value < 1:
            raise OptionError(f"--{name} must be at least 1, not {value}.")
    torch.set_num_threads(threads)
    tasks = Tasks(screen)
    cells = plan(grid, out, tasks)
    (out / "runs").mkdir(parents=True, exist_ok=True)
    board = _Board(grid, cells, out)
    board.write()
    in_order = sorted(cells, key=lambda cell: (grid.seeds.index(cell.seed), grid.tasks.index(cell.task)))
    runs = {cell.run.folder: cell.run for cell in in_order}
    waiting = [run for run in runs.values() if not run.finished]
    done = len(runs) - len(waiting)
    if done:
        screen.say(f"{done:,} of {len(runs):,} runs are finished already.")
    if jobs == 1:
        making = _in_turn(waiting, _Maker(tasks, screen if screen.interactive else Screen(quiet=True), keep_models))
    else:
        making = _side_by_side(waiting, jobs, threads, keep_models)
    with screen.progress("Runs", len(runs), done) as meter:
        for number, run in enumerate(making, done + 1):
            screen.say(f"{number:,} of {len(runs):,}: {board.note(run)}")
            board.write()
            meter.update(number)
    return board.records()


class _Maker:
    """Makes runs, one after the other."""

    def __init__(self, tasks: Tasks, screen: Screen, keep_models: bool) -> None:
        self.tasks = tasks
        self.screen = screen
        self.keep_models = keep_models

    def make(self, wanted: Run, *, wait: bool) -> bool:
        """Make a run; False if another process is making it, unless that is waited for."""
        wanted.folder.mkdir(parents=True, exist_ok=True)
        with locked(wanted.folder / "lock", wait=wait) as mine:
            if mine:
                try:
                    fit.run(wanted.settings, self.tasks.of(wanted.settings), wanted.folder, self.screen)
                except Exception as error:  # whatever it is, the other runs go on
                    _fail(wanted, _sentence(error))
                else:
                    (wanted.folder / "failed.json").unlink(missing_ok=True)
                    if not self.keep_models:
                        (wanted.folder / "model.safetensors").unlink(missing_ok=True)
        return mine


def _fail(wanted: Run, sentence: str) -> None:
    wanted.folder.mkdir(parents=True, exist_ok=True)
    write_json(wanted.folder / "failed.json", {"error": sentence})


def _sentence(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return lines[0] if isinstance(error, AcclimateError) else f"{type(error).__name__}: {lines[0]}"


def _in_turn(runs: Iterable[Run], maker: _Maker) -> Iterator[Run]:
    """Make runs in this process; those that another is making are waited for at the end."""
    busy = []
    for wanted in runs:
        if maker.make(wanted, wait=False):
            yield wanted
        else:
            busy.append(wanted)
    for wanted in busy:
        maker.make(wanted, wait=True)
        yield wanted


def _side_by_side(runs: Iterable[Run], jobs: int, threads: int, keep_models: bool) -> Iterator[Run]:
    """Make runs in several processes. One that dies fails its run and no other."""
    context = get_context("spawn")
    waiting = deque((wanted, False) for wanted in runs)
    idle: list[tuple[Any, Any]] = []
    working: dict[Any, tuple[Any, Run]] = {}
    try:
        while waiting or working:
            while waiting and len(working) < jobs:
                free, process = idle.pop() if idle else _worker(context, threads, keep_models)
                wanted, wait = waiting.popleft()
                working[free] = process, wanted
                free.send((wanted, wait))
            for ready in connection.wait(list(working)):
                pipe: Any = ready
                process, wanted = working.pop(pipe)
                try:
                    made = pipe.recv()
                    idle.append((pipe, process))
                except (EOFError, ConnectionError):
                    process.join()
                    _fail(wanted, f"Its process ended with exit code {process.exitcode}.")
                    made = True
                if made:
                    yield wanted
                else:
                    waiting.append((wanted, True))
    finally:
        for process in [process for process, _ in working.values()] + [process for _, process in idle]:
            process.terminate()
            process.join()


def _worker(context: Any, threads: int, keep_models: bool) -> tuple[Any, Any]:
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, threads, keep_models), daemon=True)
    process.start()
    theirs.close()  # so that its end is seen here
    return ours, process


def _serve(pipe: connection.Connection, threads: int, keep_models: bool) -> None:
    """The life of a worker: make the runs that come, and end with the bench."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the bench is interrupted, and ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    screen = Screen(quiet=True)
    maker = _Maker(Tasks(screen), screen, keep_models)
    while True:
        wanted, wait = pipe.recv()
        pipe.send(maker.make(wanted, wait=wait))


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


# --- the records -------------------------------------------------------------------------------------------------


class _Board:
    """What is known of each run of a grid, and the file of it."""

    def __init__(self, grid: Grid, cells: Sequence[Cell], out: Path) -> None:
        self.grid = grid
        self.cells = cells
        self.path = out / "records.jsonl"
        self.results = {cell.run.folder: _result(cell.run) for cell in cells}

    def note(self, wanted: Run) -> str:
        """Read the result of a run; returns a line on it."""
        result = self.results[wanted.folder] = _result(wanted)
        cell = next(cell for cell in self.cells if cell.run.folder == wanted.folder)
        name = f"{cell.row.name}, {'-'.join(cell.task)}, seed {cell.seed}"
        if result["error"]:
            return f"{name} failed: {result['error']}"
        scores = result["scores"]
        return f"{name}: {100 * scores['accuracy']:.1f} %" if scores else f"{name}: finished, without labels to score"

    def records(self) -> list[dict[str, Any]]:
        """A record a cell, in the order of the grid; nothing in it depends on when and where it was made."""
        return [self._record(cell) for cell in self.cells]

    def _record(self, cell: Cell) -> dict[str, Any]:
        settings = asdict(replace(cell.run.settings, options={}))
        recipe = settings.pop("recipe")
        kept = {
            name: value for name, value in {**settings, **recipe}.items() if name not in (*OF_A_RUN, *WITHOUT_EFFECT)
        }
        kept["weights"] = kept["weights"] and Path(kept["weights"]).name
        return {
            "row": cell.row.name,
            "baselines": list(cell.row.baselines),
            "method": cell.row.method,
            "options": dict(cell.row.options),
            "benchmark": self.grid.benchmark,
            "metrics": list(self.grid.metrics),
            "source": cell.task[0],
            "target": cell.task[1],
            "seed": cell.seed,
            "settings": kept,
            **self.results[cell.run.folder],
        }

    def write(self) -> None:
        """Write records.jsonl whole."""
        write_jsonl(self.path, self.records())


def _result(made: Run) -> dict[str, Any]:
    """What a run's folder holds of its result: `status` is "done", "failed" or "missing"."""
    result: dict[str, Any] = dict.fromkeys(("status", "error", "scores", "domain_error", "terms", "trained"))
    if not made.finished:
        error = _read_json(made.folder / "failed.json")
        return result | {"status": "failed" if error else "missing", "error": error and error["error"]}
    record = _read_json(made.folder / "record.json")
    scores = record["scores"]
    return result | {
        "status": "done",
        "scores": scores and _scores(scores, "the target" if record["data"]["test"] is None else "its test images"),
        "domain_error": record["domain_error"],
        "terms": {name: value["last"] for name, value in record["terms"].items()},
        "trained": {
            "backbone": record["model"]["backbone"],
            "tune": record["model"]["tune"],
            "bf16": record["model"]["bf16"],
            "selection": record["selection"],
            "threads": record["environment"]["threads"],
        },
    }


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _scores(scores: Mapping[str, Any], on: str) -> dict[str, Any]:
    per_class = {entry["name"]: [entry["correct"], entry["count"]] for entry in scores["per_class"]}
    kept = {name: scores[name] for name in ("accuracy", "mean_per_class", "n")}
    return {"on": on, **kept, "per_class": per_class}


def summary(records: Sequence[Mapping[str, Any]], out: Path) -> dict[str, Any]:
    """How many runs of a bench ended how, and the file of the records."""
    counts = Counter(record["status"] for record in records)
    return {"records": str(out / "records.jsonl"), **{name: counts[name] for name in ("done", "failed", "missing")}}


def check(records: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Tell of the runs that failed.

    Raises:
        RunsFailedError: There are some.
    """
    failed = [record for record in records if record["status"] == "failed"]
    if failed:
        first = failed[0]
        raise RunsFailedError(
            f"{len(failed):,} of {len(records):,} runs failed, the first of them {first['row']} on "
            f"{first['source']}-{first['target']} with seed {first['seed']} ({first['error'].rstrip('.')}); "
            f"{out / 'records.jsonl'} names them all."
        )
