"""A bench: every run of a grid that is not made yet, and one record for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from acclimate.bench.board import Board
from acclimate.bench.commands import fit_command
from acclimate.bench.grid import Grid
from acclimate.bench.plan import plan
from acclimate.bench.records import BenchRecord
from acclimate.bench.workers import Executor, How, Maker, in_turn, side_by_side, submitted
from acclimate.errors import OptionError
from acclimate.processes import MOST_AT_ONCE
from acclimate.progress import NOBODY, Listener, WarningsOnly
from acclimate.runs.task import Tasks
from acclimate.shard import Shard


def bench(
    grid: Grid,
    out: Path,
    screen: Listener = NOBODY,
    *,
    command: Sequence[str] = (),
    jobs: int = 1,
    threads: int = 1,
    keep_models: bool = False,
    shard: Shard | None = None,
    executor: Executor | None = None,
) -> list[BenchRecord]:
    """Make every run of a grid that is not made yet, the first seed of everything first.

    The same call goes on where an interrupted one stopped. A run that fails is recorded, and the others go on.

    Args:
        grid: What to run.
        out: The folder for `records.jsonl` and `runs`.
        screen: Who is told how it comes along; nobody unless given.
        command: The arguments of the command line that asks for it, for the runs' records.
        jobs: How many processes make runs; with one it is this one.
        threads: Threads of each. Only runs with equally many end with equal bits.
        keep_models: Keep the models' weights.
        shard: Make this part of the runs alone, and write no `records.jsonl`: the same call without it, when all parts
            are made, collects them, and makes what is missing.
        executor: What makes the runs in place of processes of this machine, see `bench.workers.Executor`. It shares
            the folder and the data with this machine.

    Returns:
        The records, as in records.jsonl: a row's tasks and seeds together, in the order of the grid. Of a shard, its
        runs' alone.

    Raises:
        AcclimateError: The grid or its data cannot be used.
    """
    for name, value in {"jobs": jobs, "threads": threads}.items():
        if not 1 <= value <= MOST_AT_ONCE:
            raise OptionError(f"--{name} must be a whole number from 1 to {MOST_AT_ONCE:,}, not {value}.")
    tasks = Tasks(screen)
    cells = plan(grid, out, tasks)
    if shard is not None:
        cells = [cell for cell in cells if shard.has(cell.run.content)]
    (out / "runs").mkdir(parents=True, exist_ok=True)
    board = Board(grid, cells, out, collects=shard is None)
    board.write()
    in_order = sorted(cells, key=lambda cell: (grid.seeds.index(cell.seed), grid.tasks.index(cell.task)))
    runs = {cell.run.folder: cell.run for cell in in_order}
    waiting = [run for run in runs.values() if board.results[run.folder].status != "done"]
    done = len(runs) - len(waiting)
    if done:
        screen.say(f"{done:,} of {len(runs):,} runs are finished already.")
    how = How(threads, tuple(command), keep_models)
    if executor is not None:
        making = submitted(waiting, executor, how)
    elif jobs == 1:
        making = in_turn(waiting, Maker(tasks, screen if screen.interactive else WarningsOnly(screen), how))
    else:
        making = side_by_side(waiting, jobs, how)
    with screen.progress("Runs", len(runs), done) as meter:
        for number, run in enumerate(making, done + 1):
            screen.say(f"{number:,} of {len(runs):,}: {board.note(run)}")
            board.write()
            meter.update(number)
    return board.records()


def commands(
    grid: Grid, out: Path, screen: Listener = NOBODY, *, threads: int = 1, shard: Shard | None = None
) -> list[str]:
    """A `fit` command for each run of a grid that is not made yet, for GNU parallel and whatever else runs commands.

    Args:
        grid: What to run.
        out: The bench's folder.
        screen: Who is told how the reading of the data comes along.
        threads: Threads of each run.
        shard: List this part of the runs alone.

    Raises:
        AcclimateError: The grid or its data cannot be used.
    """
    runs = {cell.run.folder: cell.run for cell in plan(grid, out, Tasks(screen))}
    asked = [run for run in runs.values() if shard is None or shard.has(run.content)]
    return [fit_command(run.settings, run.folder, threads) for run in asked if not run.finished]
