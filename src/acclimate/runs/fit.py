"""A run: from a source and a target to a run directory that holds the model, its predictions and the evidence."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import acclimate
from acclimate.data.batches import Pair
from acclimate.evaluation.predict import domain_errors, predict
from acclimate.evaluation.scores import score
from acclimate.files import write_json
from acclimate.machine import pick_device
from acclimate.model import Model
from acclimate.runs.directory import BASELINE, RunDirectory, check_folder, comparable, delete_run
from acclimate.runs.files import MetricsLog, write_predictions, write_skipped
from acclimate.runs.masks import pack_masks
from acclimate.runs.prepare import prepare
from acclimate.runs.record import compared as what_changed
from acclimate.runs.record import data_json, environment_json, terms_summary
from acclimate.runs.task import Task, identity, read_task
from acclimate.runs.trackers import Tracker, check_tracker, tracking
from acclimate.screen import Screen
from acclimate.settings import Settings
from acclimate.training import Checkpoint, train


def fit(
    settings: Settings, out: Path, screen: Screen, *, compare: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """Adapt a classifier, and write a run directory.

    The same call goes on where an interrupted one stopped, and repeats nothing that is finished.

    Args:
        settings: What to do.
        out: The run directory.
        screen: Where progress and results are shown.
        compare: Train source-only with the same seed and data as well, in `out`/source_only.
        overwrite: Delete an earlier run in `out`, once the data and the options are known to be sound.

    Returns:
        The record, as in record.json.

    Raises:
        AcclimateError: The data or the options cannot be used, or training diverged.
    """
    pick_device(settings.device)  # refused before the data are read, which may take a while
    check_tracker(settings.track)
    check_folder(out, settings.source)
    task = read_task(settings, screen)
    compare = compare and settings.method != BASELINE
    doomed = (out, out / BASELINE) if overwrite else ()
    if compare:
        run(replace(settings, method=BASELINE, options={}), task, out / BASELINE, screen, doomed)
        doomed = ()
    record = run(settings, task, out, screen, doomed)
    if compare and record.get("compare") != (compared := what_changed(out)):
        record["compare"] = compared
        write_json(out / "record.json", record)
    return record


def run(settings: Settings, task: Task, out: Path, screen: Screen, doomed: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Train one method and write its run directory; go on where an interrupted run stopped.

    Args:
        settings: What to do.
        task: The data.
        out: The run directory.
        screen: Where progress is shown.
        doomed: Folders whose runs are deleted when training is about to begin; then nothing is gone on with.

    Returns:
        The record, as in record.json.

    Raises:
        DataError: `out` holds another run.
    """
    same = identity(settings, task)
    folder = RunDirectory(out, same, settings.as_dict())
    checkpoint = None
    if not doomed:
        if (finished := folder.finished()) is not None:
            screen.say(f"{settings.method} is finished already: its results are read from {out}.")
            folder.tidy()
            return finished
        checkpoint = folder.checkpoint()
    started = time.perf_counter()
    device = pick_device(settings.device)
    model, pair, target = prepare(settings, task, device, screen.track)
    for earlier in doomed:
        delete_run(earlier)
    folder.begin()
    prepared = time.perf_counter()

    log = MetricsLog(out / "metrics.jsonl", keep_until=checkpoint.step if checkpoint else -1)
    first = checkpoint.step if checkpoint else 0
    with tracking(settings.track, out, same, comparable(settings.as_dict()), first) as tracker:
        _train(settings, model, pair, folder, log, tracker, checkpoint, screen)
    trained = time.perf_counter()

    model.save(out)
    probabilities = predict(model.method, target, device=device, track=screen.track)
    write_predictions(out / "predictions.csv", task.target.names, probabilities, task.source.classes)
    write_skipped(out / "skipped.csv", task.skipped)
    scores = None
    if task.answers is not None:
        measured = probabilities if task.test is None else model.predict(task.test, screen.track)
        scores = score(measured, task.answers, task.source.classes)
    record = {
        "acclimate": acclimate.__version__,
        "identity": same,
        "command": sys.argv[1:],
        "settings": settings.as_dict(),
        "model": asdict(model.setup),
        "data": data_json(task),
        "environment": environment_json(device),
        "steps": settings.recipe.steps,
        "resumed_at": checkpoint.step if checkpoint else None,
        "terms": terms_summary(log),
        "scores": scores.as_dict() if scores is not None else None,
        "selection": "last step",
        "domain_error": domain_errors(model.method, pair.source, target, device=device, track=screen.track),
        "seconds": {
            "features": prepared - started,
            "training": trained - prepared,
            "evaluation": time.perf_counter() - trained,
        },
    }
    write_json(out / "record.json", record)
    folder.tidy()
    return record


def _train(
    settings: Settings,
    model: Model,
    pair: Pair,
    folder: RunDirectory,
    log: MetricsLog,
    tracker: Tracker,
    checkpoint: Checkpoint | None,
    screen: Screen,
) -> None:
    recipe = settings.recipe
    every = max(recipe.steps // 200, 1)
    saved = time.monotonic()
    start = checkpoint.step if checkpoint else 0
    with screen.progress(f"Training {settings.method}", recipe.steps, start) as meter:
        for progress in train(model.method, pair, recipe, checkpoint):
            meter.update(progress.step, progress.terms)
            last = progress.step == recipe.steps
            if progress.step % every == 0 or last:
                values = {"lr": progress.lr, **progress.values()}
                marked = pack_masks(model.method.masks())
                log.append(progress.step, {"stage": progress.stage, **values, **({"masks": marked} if marked else {})})
                tracker.log(progress.step, values)
            if last or time.monotonic() - saved >= settings.checkpoint_seconds:
                progress.checkpoint().save(folder.checkpoint_file)
                saved = time.monotonic()
