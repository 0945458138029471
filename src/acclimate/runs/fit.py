"""A run: from a source and a target to a run directory that holds the model, its predictions and the evidence."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from msgspec import structs

import acclimate
from acclimate.evaluation.predict import domain_errors, predict
from acclimate.evaluation.scores import Scores, score
from acclimate.machine import pick_device, random_state_kept
from acclimate.methods import registry
from acclimate.methods.base import Method
from acclimate.methods.registry import BASELINE
from acclimate.progress import NOBODY, Listener
from acclimate.runs.directory import RunDirectory, check_folder, delete_run
from acclimate.runs.files import Metrics, MetricsLog, read_skipped, write_predictions, write_skipped
from acclimate.runs.masks import pack_masks
from acclimate.runs.prepare import Prepared, prepare
from acclimate.runs.record import RunRecord, Seconds, compared, data_of, environment, terms_summary, write_record
from acclimate.runs.task import Task, identity, read_task
from acclimate.runs.trackers import Tracker, check_tracker, tracking
from acclimate.settings import Settings, comparable
from acclimate.training import Checkpoint, Step, train


def fit(
    settings: Settings,
    out: str | Path,
    screen: Listener = NOBODY,
    *,
    command: Sequence[str] = (),
    compare: bool = False,
    overwrite: bool = False,
) -> RunRecord:
    """Adapt a classifier, and write a run directory.

    The same call goes on where an interrupted one stopped, and repeats nothing that is finished.

    Args:
        settings: What to do.
        out: The run directory.
        screen: Who is told how it comes along; nobody unless given. `acclimate.screen.Screen()` shows it.
        command: The arguments of the command line that asks for it, for the record.
        compare: Train source-only with the same seed and data as well, in `out`/source_only.
        overwrite: Delete an earlier run in `out`, once the data and the options are known to be sound.

    Returns:
        The record, as in record.json.

    Raises:
        AcclimateError: The data or the options cannot be used, or training diverged.
    """
    out = Path(out)
    pick_device(settings.device)  # refused before the data are read, which may take a while
    check_tracker(settings.tracker)
    check_folder(out, settings.source)
    task = read_task(settings, screen)
    compare = compare and settings.method != BASELINE
    earlier = (out, out / BASELINE) if overwrite else ()
    if compare:
        baseline = replace(settings, method=BASELINE, options={})
        run(baseline, task, out / BASELINE, screen, command=command, anew=overwrite, delete=earlier)
        record = run(settings, task, out, screen, command=command)
        return _with_comparison(record, out)
    return run(settings, task, out, screen, command=command, anew=overwrite, delete=earlier)


def run(
    settings: Settings,
    task: Task,
    out: Path,
    screen: Listener,
    *,
    command: Sequence[str] = (),
    anew: bool = False,
    delete: Sequence[Path] = (),
) -> RunRecord:
    """Train one method and write its run directory; go on where an interrupted run stopped.

    Args:
        settings: What to do.
        task: The data.
        out: The run directory.
        screen: Who is told how it comes along.
        command: The arguments of the command line that asks for it, for the record.
        anew: Begin at the start, whatever lies in `out`.
        delete: Folders whose runs are deleted when all is ready for training.

    Returns:
        The record, as in record.json.

    Raises:
        DataError: `out` holds another run.
    """
    folder = RunDirectory(out, identity(settings, task), settings.as_dict())
    if not anew and (finished := folder.finished()) is not None:
        screen.say(f"{registry.shown(settings.method)} is finished already: its results are read from {out}.")
        folder.tidy()
        return finished
    checkpoint = None if anew else folder.checkpoint()
    watch = _Stopwatch()
    device = pick_device(settings.device)
    with random_state_kept(device):
        ready = _prepare(settings, task, device, screen)
        if checkpoint is not None and _skipped_before(out) != [name for name, _ in ready.task.skipped]:
            screen.say("Other images can be read than when the run began, so it begins anew.")
            checkpoint = None
        for earlier in delete:
            delete_run(earlier)
        folder.begin()
        write_skipped(out / "skipped.csv", ready.task.skipped)
        watch.lap("features")
        log = _train(settings, ready, folder, checkpoint, screen)
    watch.lap("training")
    scores = _write_results(ready, out, screen)
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
        data=data_of(ready.task),
        environment=environment(ready.model.device),
        steps=settings.recipe.steps,
        resumed_at=checkpoint.step if checkpoint else None,
        terms=terms_summary(log),
        scores=scores.record() if scores is not None else None,
        compare=None,
        selection="last step",
        domain_error=errors,
        seconds=Seconds(**watch.laps),
    )
    write_record(out / "record.json", record)
    folder.tidy()
    return record


def _prepare(settings: Settings, task: Task, device: torch.device, screen: Listener) -> Prepared:
    """Prepare a run; the first of a task says how many images are broken."""
    first = not all(broken.known for broken in task.broken.values())
    ready = prepare(settings, task, device, screen.track)
    if first and (count := len(ready.task.skipped)):
        screen.warn(f"{count} broken images are left out; skipped.csv in the run directory names them.")
    return ready


def _skipped_before(out: Path) -> list[str]:
    """The names of the images that an interrupted run left out."""
    path = out / "skipped.csv"
    return [name for name, _ in read_skipped(path)] if path.exists() else []


def _with_comparison(record: RunRecord, out: Path) -> RunRecord:
    """The record of a run with what it changed against the baseline; it is written if that is new."""
    change = compared(out)
    if record.compare == change:
        return record
    completed = structs.replace(record, compare=change)
    write_record(out / "record.json", completed)
    return completed


def _train(
    settings: Settings, ready: Prepared, folder: RunDirectory, checkpoint: Checkpoint | None, screen: Listener
) -> MetricsLog:
    """Train, and log and checkpoint on the way."""
    recipe, method = settings.recipe, ready.model.method
    start = checkpoint.step if checkpoint else 0
    log = MetricsLog(folder.path / "metrics.jsonl", keep_until=start if checkpoint else -1)
    every = max(recipe.steps // 200, 1)
    saved = time.monotonic()
    shown = comparable(settings.as_dict())
    with (
        tracking(settings.tracker, folder.path, folder.identity, shown, start) as tracker,
        screen.progress(f"Training {registry.shown(settings.method)}", recipe.steps, start) as meter,
    ):
        for step in train(method, ready.pair, recipe, checkpoint):
            meter.update(step.step, step.terms)
            last = step.step == recipe.steps
            if step.step % every == 0 or last:
                _log(step, method, log, tracker)
            if last or time.monotonic() - saved >= settings.checkpoint_seconds:
                step.checkpoint().save(folder.checkpoint_file)
                saved = time.monotonic()
    return log


def _log(step: Step, method: Method, log: MetricsLog, tracker: Tracker) -> None:
    """Note a step's values, and what the method's masks mark."""
    terms = step.values()
    log.append(Metrics(step=step.step, stage=step.stage, lr=step.lr, terms=terms, masks=pack_masks(method.masks())))
    tracker.log(step.step, {"lr": step.lr, **terms})


def _write_results(ready: Prepared, out: Path, screen: Listener) -> Scores | None:
    """Write the model and the predictions; returns the scores, if there are labels to score with."""
    model, task, classes = ready.model, ready.task, ready.task.source.classes
    model.save(out)
    probabilities = predict(model.method, ready.target, device=model.device, track=screen.track)
    write_predictions(out / "predictions.csv", task.target.names, probabilities, classes)
    if task.answers is None:
        return None
    if ready.test is not None:
        probabilities = predict(model.method, ready.test, device=model.device, track=screen.track)
    return score(probabilities, task.answers, classes)


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
