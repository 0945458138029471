"""Fit: from a source and a target to a run directory, and what to make of the result."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from msgspec import structs

from acclimate.errors import DataError, OptionError
from acclimate.locks import alone, worker_of
from acclimate.machine import pick_device
from acclimate.methods.registry import BASELINE, CONSENSUS
from acclimate.parallel import World, world
from acclimate.progress import NOBODY, Listener
from acclimate.runs.council import Council
from acclimate.runs.directory import RunDirectory, check_folder, writing
from acclimate.runs.judge import judge
from acclimate.runs.members import members_of
from acclimate.runs.record import RunRecord, compared, write_record
from acclimate.runs.run import run
from acclimate.runs.task import Task, identity, read_task
from acclimate.runs.trackers import check_tracker
from acclimate.settings import Settings


def fit(
    settings: Settings,
    out: str | Path,
    screen: Listener = NOBODY,
    *,
    command: Sequence[str] = (),
    compare: bool = False,
    overwrite: bool = False,
    jobs: int = 1,
) -> RunRecord:
    """Adapt a classifier, and write a run directory.

    The same call goes on where an interrupted one stopped, and repeats nothing that is finished. While another process
    makes the same run, it waits, and then reads what that has made.

    Args:
        settings: What to do.
        out: The run directory.
        screen: Who is told how it comes along; nobody unless given. `acclimate.screen.Screen()` shows it.
        command: The arguments of the command line that asks for it, for the record.
        compare: Train source-only with the same seed and data as well, in `out`/source_only. A consensus that has
            source-only as a member is compared with that anyway.
        overwrite: Delete an earlier run in `out`, once the data and the options are known to be sound.
        jobs: Members of a consensus that are trained at a time, each in a process of its own; with one it is this one.
            It changes no bit of the result.

    Returns:
        The record, as in record.json.

    Raises:
        AcclimateError: The data or the options cannot be used, training diverged, or the disk is full.
    """
    out = Path(out)
    if world().size > 1:
        settings = _shared(settings, world())
    pick_device(settings.device)  # refused before the data are read, which may take a while
    check_tracker(settings.tracker)
    check_folder(out, settings.source)
    if settings.method == CONSENSUS:
        members_of(settings)  # refused before the data are read
    task = read_task(settings, screen)
    if not overwrite:
        RunDirectory(out, identity(settings, task), settings.as_dict()).check_same(
            begun=False
        )  # nobody need wait to hear of it
    # Of processes that train together, the leading one alone writes.
    guard = alone(out, wait=not overwrite) if world().leads else nullcontext(True)
    with writing(out), guard as mine:
        if not mine:
            raise DataError(f"{worker_of(out)} works in {out}: end it first, or leave out --overwrite and wait for it.")
        return _fit(settings, task, out, screen, command=command, compare=compare, overwrite=overwrite, jobs=jobs)


def _fit(
    settings: Settings,
    task: Task,
    out: Path,
    screen: Listener,
    *,
    command: Sequence[str],
    compare: bool,
    overwrite: bool,
    jobs: int,
) -> RunRecord:
    """`fit` in a folder that no other process works in."""
    members = members_of(settings) if settings.method == CONSENSUS else ()
    baseline = next((out / member.folder for member in members if member.settings.method == BASELINE), None)
    earlier = (out, out / BASELINE) if overwrite else ()
    if baseline is None and compare and settings.method != BASELINE:
        baseline = out / BASELINE
        unadapted = replace(settings, method=BASELINE, options={})
        made = run(unadapted, task, baseline, screen, command=command, anew=overwrite, delete=earlier)
        _completed(unadapted, made, task, baseline, None)
        overwrite, earlier = False, ()
    record = make(
        settings, task, out, screen, command=command, jobs=jobs, anew=overwrite, delete=earlier, watchable=True
    )
    if baseline is not None and not (baseline / "record.json").exists():
        baseline = None  # it diverged, as a member may
    return _completed(settings, record, task, out, baseline)


def _shared(settings: Settings, processes: World) -> Settings:
    """The settings of a run that several processes train together: a step takes the batches of all of them.

    Raises:
        OptionError: They cannot train this together.
    """
    if settings.method == CONSENSUS:
        raise OptionError(
            "A consensus trains its members side by side in processes of its own (--jobs): run it without torchrun, or "
            "name one --method."
        )
    processes.take_gpu(settings.device)
    accumulate = settings.recipe.accumulate * processes.size
    return replace(settings, recipe=replace(settings.recipe, accumulate=accumulate))


def make(
    settings: Settings,
    task: Task,
    out: Path,
    screen: Listener,
    *,
    command: Sequence[str] = (),
    jobs: int = 1,
    anew: bool = False,
    delete: Sequence[Path] = (),
    watchable: bool = False,
) -> RunRecord:
    """Make the run of a method; a consensus makes those of its members first. For the arguments see `run` and `fit`.

    Raises:
        DataError: `out` holds another run, or the disk is full.
    """
    teacher = Council(settings, task, out, screen, command, jobs) if settings.method == CONSENSUS else None
    with writing(out):
        return run(
            settings, task, out, screen, command=command, anew=anew, delete=delete, teacher=teacher, watchable=watchable
        )


def _completed(settings: Settings, record: RunRecord, task: Task, out: Path, baseline: Path | None) -> RunRecord:
    """The record of a run with what it changed against the baseline, and how far to trust it; written if it is new."""
    if not world().leads:
        return record
    change = compared(baseline, out) if baseline is not None else record.compare
    trust = record.trust
    if trust is None or (not trust.members and (change is None) != (record.compare is None)):
        trust = judge(settings, record, task, out, baseline)
    completed = structs.replace(record, compare=change, trust=trust)
    if completed != record:
        write_record(out / "record.json", completed)
    return completed
