"""A run of one method: its run directory holds the model, its predictions and how they were made."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import acclimate
from acclimate import schema
from acclimate.errors import DataError
from acclimate.evaluation.predict import domain_errors, predict
from acclimate.evaluation.scores import Probabilities, Scores, score
from acclimate.machine import pick_device, random_state_kept
from acclimate.methods import registry
from acclimate.methods.base import Method
from acclimate.parallel import world
from acclimate.progress import Listener
from acclimate.runs.directory import RunDirectory, delete_run
from acclimate.runs.files import (
    Metrics,
    MetricsLog,
    read_skipped,
    write_predictions,
    write_skipped,
    write_source_predictions,
)
from acclimate.runs.masks import pack_masks
from acclimate.runs.prepare import Prepared, prepare
from acclimate.runs.record import (
    RunRecord,
    Seconds,
    Trust,
    data_of,
    environment,
    files_of,
    read_record,
    terms_summary,
    write_record,
)
from acclimate.runs.reference import write_reference
from acclimate.runs.task import Task, identity
from acclimate.runs.trackers import Tracker, tracking
from acclimate.settings import Settings, comparable
from acclimate.training import Checkpoint, Step, train

LOGGED = 200  # steps of a training, at least, if it has so many

NOTED = "run/classes"  # the tensor, in a checkpoint, of the classes that were predicted after three quarters

MOST_WATCHED = 20_000  # images of a target that is predicted during training too, to see whether it settles


class Judgement(NamedTuple):
    """What the members of a consensus say of its result.

    Attributes:
        reliability: (N,) the share of them that agree on each image of the target; None without members.
        trust: How far to trust the result.
    """

    reliability: npt.NDArray[np.float64] | None = None
    trust: Trust | None = None


class Teacher(Protocol):
    """The members of a consensus, as the run that learns from them sees it."""

    def teach(self, ready: Prepared) -> None:
        """Make the members, and give the method their lesson."""
        ...

    def judge(self, ready: Prepared, probabilities: Probabilities) -> Judgement:
        """What to make of the result, of which these are the probabilities (N, K) of the target."""
        ...


def run(
    settings: Settings,
    task: Task,
    out: Path,
    screen: Listener,
    *,
    command: Sequence[str] = (),
    anew: bool = False,
    delete: Sequence[Path] = (),
    teacher: Teacher | None = None,
    watchable: bool = False,
) -> RunRecord:
    """Train one method and write its run directory; go on where an interrupted run stopped.

    Of several processes that train together, each calls this, and the leading one writes.

    Args:
        settings: What to do.
        task: The data.
        out: The run directory.
        screen: Who is told how it comes along.
        command: The arguments of the command line that asks for it, for the record.
        anew: Begin at the start, whatever lies in `out`.
        delete: Folders whose runs are deleted when all is ready for training.
        teacher: The members of a consensus, which teach it and tell how far to trust it; None for other methods.
        watchable: Keep a sample of the target, so that new images can be compared with it.

    Returns:
        The record, as in record.json.

    Raises:
        DataError: `out` holds another run.
    """
    folder = RunDirectory(out, identity(settings, task), settings.as_dict())
    finished = folder.finished() if not anew else None
    checkpoint = folder.checkpoint() if not anew and finished is None else None
    before = _Before.read(out, checkpoint, settings.recipe.steps) if checkpoint is not None else None
    _check_views(folder, finished, checkpoint)
    if finished is not None:
        screen.say(f"{registry.shown(settings.method)} is finished already: its results are read from {out}.")
        if world().leads:
            folder.tidy()
        return finished
    watch = _Stopwatch()
    device = pick_device(settings.device)
    with random_state_kept(device):
        ready = _prepare(settings, task, device, screen)
        if before is not None and (why := before.unfit(ready)) is not None:
            screen.say(f"{why}, so it begins anew.")
            checkpoint = None
        if not world().leads:
            return _trained_along(settings, ready, checkpoint)
        for earlier in delete:
            delete_run(earlier)
        folder.begin()
        write_skipped(out / "skipped.csv", ready.task.skipped)
        watch.lap("features")
        if teacher is not None:
            teacher.teach(ready)
            watch.lap("members")
        try:
            with world().together(device):
                log, noted = _train(settings, ready, folder, checkpoint, screen)
        except _MadeElsewhereError:
            screen.warn(f"Another process has made the run in {out} meanwhile: its results are read.")
            return read_record(out / "record.json")
    watch.lap("training")
    results = _write_results(ready, teacher, out, screen, settings.seed if watchable else None)
    errors = domain_errors(
        ready.model.method, ready.pair.source, ready.target, device=ready.model.device, track=screen.track
    )
    watch.lap("evaluation")
    record = RunRecord(
        acclimate=acclimate.__version__,
        identity=folder.identity,
        command=tuple(command),
        settings=settings.as_dict(),
        model=ready.model.spec,
        data=data_of(ready.task, len(ready.held.source) if ready.held is not None else 0),
        environment=environment(ready.model),
        steps=settings.recipe.steps,
        resumed_at=checkpoint.step if checkpoint else None,
        terms=terms_summary(log),
        scores=results.scores.record() if results.scores is not None else None,
        compare=None,
        selection="last step",
        domain_error=errors,
        changed_late=_changed_late(noted, results.classes),
        trust=results.trust,
        seconds=Seconds(**{"members": 0.0, **watch.laps}),
        files=files_of(out),
    )
    write_record(out / "record.json", record)
    folder.tidy()
    world().told(json.dumps(schema.as_json(record)))
    return record


def _prepare(settings: Settings, task: Task, device: torch.device, screen: Listener) -> Prepared:
    """Prepare a run; the first of a task says how many images are broken."""
    first = not all(broken.known for broken in task.broken.values())
    ready = prepare(settings, task, device, screen.track)
    if first and (count := len(ready.task.skipped)):
        screen.warn(f"{count} images that cannot be read are left out; skipped.csv in the run directory names them.")
    return ready


class _Before(NamedTuple):
    """What an interrupted run left beside its checkpoint, read before anything is written.

    Attributes:
        skipped: The names of the images that it left out; None if the list is damaged.
        is_logged: Whether the log holds every step that it should.
    """

    skipped: list[str] | None
    is_logged: bool

    @classmethod
    def read(cls, out: Path, checkpoint: Checkpoint, steps: int) -> _Before:
        """Read it from a run directory."""
        logged = [step for step in range(1, checkpoint.step + 1) if _is_logged(step, steps)]
        is_logged = MetricsLog(out / "metrics.jsonl").holds(logged)
        try:
            return cls([name for name, _ in read_skipped(out / "skipped.csv")], is_logged)
        except DataError:
            return cls(None, is_logged)

    def unfit(self, ready: Prepared) -> str | None:
        """Why a run cannot go on from its checkpoint; None if it can."""
        if self.skipped is None:
            return "The list of the images that the run left out is damaged"
        if self.skipped != [name for name, _ in ready.task.skipped]:
            return "Other images can be read than when the run began"
        return None if self.is_logged else "The log of the run's training is damaged"


def _is_logged(step: int, steps: int) -> bool:
    return step % max(steps // LOGGED, 1) == 0 or step == steps


class _MadeElsewhereError(Exception):
    """Another process has made the run, in spite of the locks."""


def _check_views(folder: RunDirectory, finished: RunRecord | None, checkpoint: Checkpoint | None) -> None:
    """Check that processes that train together see the same data, and the same state of the run directory.

    Raises:
        DataError: This one sees something else than the leading one.
    """
    seen = json.dumps([folder.identity, finished is not None, checkpoint.step if checkpoint is not None else None])
    if world().told(seen) != seen:
        raise DataError(
            f"The processes do not see the same data, or not the same run in {folder.path}: let the data and --out lie "
            "where all of them see them."
        )


def _trained_along(settings: Settings, ready: Prepared, checkpoint: Checkpoint | None) -> RunRecord:
    """The record that the leading process writes, once this one has trained along with it."""
    with world().together(ready.model.device):
        deque(train(ready.model.method, ready.pair, settings.recipe, checkpoint), maxlen=0)
    return schema.decode(world().told("").encode(), RunRecord)


def _train(
    settings: Settings, ready: Prepared, folder: RunDirectory, checkpoint: Checkpoint | None, screen: Listener
) -> tuple[MetricsLog, Tensor | None]:
    """Train, and log and checkpoint on the way.

    Returns:
        The log, and the classes (N,) that were predicted of the target after three quarters, where somebody looked.
    """
    recipe, method = settings.recipe, ready.model.method
    start = checkpoint.step if checkpoint else 0
    log = MetricsLog(folder.path / "metrics.jsonl", keep_until=start if checkpoint else -1)
    watched = method.net.level == "vector" and len(ready.target) <= MOST_WATCHED
    three_quarters = recipe.steps * 3 // 4 if watched else 0
    noted = checkpoint.tensors.get(NOTED) if checkpoint else None
    saved = time.monotonic()
    shown = comparable(settings.as_dict())
    with (
        tracking(settings.tracker, folder.path, folder.identity, shown, start) as tracker,
        screen.progress(f"Training {registry.shown(settings.method)}", recipe.steps, start) as meter,
    ):
        for step in train(method, ready.pair, recipe, checkpoint):
            meter.update(step.step, step.terms)
            last = step.step == recipe.steps
            if _is_logged(step.step, recipe.steps):
                _log(step, method, log, tracker)
            if step.step == three_quarters:
                noted = torch.from_numpy(predict(method, ready.target, device=ready.model.device).argmax(1))
            if last or time.monotonic() - saved >= settings.checkpoint_seconds:
                if folder.is_finished and world().size == 1:
                    raise _MadeElsewhereError
                log.sync()
                folder.save(_with(step.checkpoint(), noted))
                saved = time.monotonic()
    return log, noted


def _with(checkpoint: Checkpoint, noted: Tensor | None) -> Checkpoint:
    """A checkpoint that keeps what was noted as well."""
    if noted is None:
        return checkpoint
    return checkpoint._replace(tensors=checkpoint.tensors | {NOTED: noted})


def _log(step: Step, method: Method, log: MetricsLog, tracker: Tracker) -> None:
    """Note a step's values, and what the method's masks mark."""
    terms = step.values()
    log.append(Metrics(step=step.step, stage=step.stage, lr=step.lr, terms=terms, masks=pack_masks(method.masks())))
    tracker.log(step.step, {"lr": step.lr, **terms})


def _changed_late(noted: Tensor | None, classes: npt.NDArray[np.int64]) -> float | None:
    """The share of the target's predictions that changed in the last quarter of training, where they were noted."""
    return float((noted.numpy() != classes).mean()) if noted is not None else None


class _Results(NamedTuple):
    """The predicted classes (N,) of the target, how far to trust them, and the scores if there are labels."""

    classes: npt.NDArray[np.int64]
    trust: Trust | None
    scores: Scores | None


def _write_results(
    ready: Prepared, teacher: Teacher | None, out: Path, screen: Listener, reference_seed: int | None
) -> _Results:
    """Write the model, the predictions, and where there is a seed for it the sample of the target."""
    model, task, classes = ready.model, ready.task, ready.task.source.classes
    model.save(out)
    p = predict(model.method, ready.target, device=model.device, track=screen.track)
    if reference_seed is not None:
        write_reference(out, model, ready.target, p, reference_seed)
    judgement = teacher.judge(ready, p) if teacher is not None else Judgement()
    write_predictions(out / "predictions.csv", task.target.names, p, classes, judgement.reliability)
    if ready.held is not None:
        p_source = predict(model.method, ready.held.inputs, device=model.device)
        write_source_predictions(out / "source_predictions.csv", ready.held.source, p_source, classes)
    scores = None
    if task.answers is not None:
        measured = p if ready.test is None else predict(model.method, ready.test, device=model.device)
        scores = score(measured, task.answers, classes)
    return _Results(p.argmax(1), judgement.trust, scores)


class _Stopwatch:
    """How many seconds each part of a run took."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """The time since the last lap, or the start, belongs to the part called `name`."""
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now
