"""Making runs: one after the other, or side by side in processes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from multiprocessing import connection, get_context
from typing import Any, NamedTuple, Protocol

from acclimate.bench.board import write_failure
from acclimate.bench.plan import PlannedRun
from acclimate.errors import AcclimateError, OptionError
from acclimate.locks import alone
from acclimate.machine import begin_computing, torch_threads
from acclimate.processes import serve, signals_held
from acclimate.progress import NOBODY, Listener
from acclimate.runs import fit
from acclimate.runs.directory import discard_damaged
from acclimate.runs.task import Tasks

POLL = 0.2  # seconds between two looks at what an executor has made


class How(NamedTuple):
    """How a bench makes its runs.

    Attributes:
        threads: PyTorch's threads in each.
        command: The arguments of the command line that asked for the bench, for the records.
        keep_models: Keep the models' weights.
    """

    threads: int
    command: tuple[str, ...]
    keep_models: bool


class Maker:
    """Makes runs, one after the other."""

    def __init__(self, tasks: Tasks, screen: Listener, how: How) -> None:
        self.tasks = tasks
        self.screen = screen
        self.how = how

    def make(self, wanted: PlannedRun, *, wait: bool) -> bool:
        """Make a run; False if another process is making it, unless that is waited for."""
        with alone(wanted.folder, wait=wait) as mine:
            if mine and not wanted.finished:
                try:
                    self._run(wanted)
                except Exception as error:  # whatever it is, the other runs go on
                    fail(wanted, _sentence(error))
                else:
                    (wanted.folder / "failed.json").unlink(missing_ok=True)
                    if not self.how.keep_models:
                        (wanted.folder / "model.safetensors").unlink(missing_ok=True)
        return mine

    def _run(self, wanted: PlannedRun) -> None:
        task = self.tasks.of(wanted.settings)
        wanted.check(task)
        discard_damaged(wanted.folder)
        with torch_threads(self.how.threads):
            fit.make(wanted.settings, task, wanted.folder, self.screen, command=self.how.command)


def fail(wanted: PlannedRun, sentence: str) -> None:
    """Note in a run's folder why it failed."""
    wanted.folder.mkdir(parents=True, exist_ok=True)
    write_failure(wanted.folder, sentence)


def _sentence(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return lines[0] if isinstance(error, AcclimateError) else f"{type(error).__name__}: {lines[0]}"


class Executor(Protocol):
    """What makes runs elsewhere: `concurrent.futures`, loky, Dask, submitit, and whatever else has `submit`."""

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Any:
        """Call the function with the arguments, in another process; returns a future, with `done` and `exception`."""


def make_run(wanted: PlannedRun, how: How) -> None:
    """Make one run in its folder, which is the result; a failure is noted there. For executors: it can be pickled."""
    Maker(Tasks(NOBODY), NOBODY, how).make(wanted, wait=True)


def submitted(runs: Iterable[PlannedRun], executor: Executor, how: How) -> Iterator[PlannedRun]:
    """Have an executor make runs. What it returns counts for nothing: what a run's folder holds does.

    Raises:
        OptionError: The executor refuses to be given runs.
    """
    try:
        with executor.batch() if hasattr(executor, "batch") else nullcontext():  # submitit's: one array for all
            futures = {executor.submit(make_run, wanted, how): wanted for wanted in runs}
    except Exception as error:  # whatever it raises
        raise OptionError(f"The executor takes no runs ({_sentence(error)}).") from error
    while futures:
        for future in [future for future in futures if future.done()]:
            wanted = futures.pop(future)
            ended = future.exception()
            if ended is not None and not wanted.finished:
                fail(wanted, f"Its process ended: {_sentence(ended)}")
            yield wanted
        if futures:
            time.sleep(POLL)


def in_turn(runs: Iterable[PlannedRun], maker: Maker) -> Iterator[PlannedRun]:
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


def side_by_side(runs: Iterable[PlannedRun], jobs: int, how: How) -> Iterator[PlannedRun]:
    """Make runs in several processes. One that dies fails its run and no other."""
    context = get_context("spawn")
    waiting = deque((wanted, False) for wanted in runs)
    idle: list[tuple[Any, Any]] = []
    working: dict[Any, tuple[Any, PlannedRun]] = {}
    try:
        while waiting or working:
            while waiting and len(working) < jobs:
                free, process = idle.pop() if idle else _worker(context, how)
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
                    fail(wanted, f"Its process ended with exit code {process.exitcode}.")
                    made = True
                if made:
                    yield wanted
                else:
                    waiting.append((wanted, True))
    finally:
        for process in [process for process, _ in working.values()] + [process for _, process in idle]:
            process.terminate()
            process.join()


def _worker(context: Any, how: How) -> tuple[Any, Any]:
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), daemon=True)
    with signals_held():
        process.start()
    theirs.close()  # so that its end is seen here
    ours.send((_make, (how,)))
    return ours, process


def _make(pipe: connection.Connection, how: How) -> None:
    """What a worker does: make the runs that come."""
    begin_computing()
    maker = Maker(Tasks(NOBODY), NOBODY, how)  # the bench has told of the data, and tells of the runs
    while True:
        wanted, wait = pipe.recv()
        pipe.send(maker.make(wanted, wait=wait))
