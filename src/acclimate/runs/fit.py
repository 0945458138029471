"""A run: from a source and a target to a run directory that holds the model, its predictions and the evidence."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import PIL
import timm
import torch
import torchvision

import acclimate
from acclimate.analysis import pack_masks
from acclimate.choices import Augment, KeepImages, Precision, TrackerName, Tune, View
from acclimate.data.batches import Pair
from acclimate.data.broken import without_broken
from acclimate.data.domain import Domain, LabelledDomain, check_pair
from acclimate.data.inputs import Inputs
from acclimate.data.read import read_source, read_target
from acclimate.errors import DataError, OptionError
from acclimate.evaluation.scores import Answers, Changes, Scores, changes, domain_errors, predict, read_answers, score
from acclimate.machine import fast_bf16, pick_device
from acclimate.methods import registry
from acclimate.model import Model, Setup
from acclimate.networks.backbone import Backbone
from acclimate.networks.backbones import load_backbone
from acclimate.progress import Track
from acclimate.reporting import (
    RUN_FILES,
    MetricsLog,
    Screen,
    read_probabilities,
    write_json,
    write_predictions,
    write_skipped,
)
from acclimate.runs.directory import BASELINE, RunDirectory, check_folder, comparable, delete_run
from acclimate.runs.trackers import Tracker, check_tracker, tracking
from acclimate.training import Checkpoint, Recipe, train

MOST_WARNINGS = 10  # of images that cannot be read, one by one

PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class Settings:
    """What a run is asked to do. Two runs with equal settings and data end with equal bits on the same machine.

    Attributes:
        source: Labelled images: a folder of class folders, an image list, a CSV, or an .npz.
        target: Images of the domain to adapt to; labels in it are used for evaluation alone.
        test: Labelled images of that domain which stay out of training, to measure on; None measures on the target.
        method: The method's name.
        options: Its hyper-parameters, where they differ from the defaults.
        backbone: The backbone's name.
        weights: A file of weights to use in place of the published ones.
        tune: What is trained; "auto" is the head on a CPU and all on a GPU, and all of a network from scratch.
        bottleneck: Length d of the feature that methods work on; None leaves the backbone's own.
        augment: The random views of training; "auto" is none on cached features and on networks from scratch, random
            crops and flips where a pretrained backbone is trained on images.
        recipe: How the method is trained.
        seed: Seed of the initial weights, the order of the samples and their augmentation.
        device: "auto", "cpu", "cuda", or any that torch knows.
        precision: Of the backbone: "auto" is bfloat16 where the hardware has units for it.
        cache_precision: Of the features on the disk, "fp16", "bf16" or "fp32".
        allow_class_mismatch: Accept a labelled target whose classes are not the source's.
        keep_images: Where resized images are kept when they are trained on: "memory", "disk", or "auto", which is the
            memory for as many as 1 GiB holds, and the disk for more; it does not change the result.
        checkpoint_seconds: Seconds between checkpoints; they do not change the result.
        track: The tracker that is shown the training as well: "tensorboard", "mlflow", "wandb", or "none".
    """

    source: str
    target: str
    test: str | None = None
    method: str = "wemnet"
    options: Mapping[str, Any] = field(default_factory=dict)
    backbone: str = "efficientnet_lite0"
    weights: str | None = None
    tune: Tune | Literal["auto"] = "auto"
    bottleneck: int | None = 256
    augment: Augment | Literal["auto"] = "auto"
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    cache_precision: Precision = "fp16"
    allow_class_mismatch: bool = False
    keep_images: KeepImages = "auto"
    checkpoint_seconds: float = 10.0
    track: TrackerName = "none"

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        registry.load(self.method)  # refuses an unknown name
        registry.check_options(self.method, dict(self.options))
        choices = {"tune": ("auto", *get_args(Tune)), "augment": ("auto", *get_args(Augment)), "precision": PRECISIONS}
        choices |= {
            "cache_precision": get_args(Precision),
            "keep_images": get_args(KeepImages),
            "track": get_args(TrackerName),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise OptionError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}.")
        if self.bottleneck is not None and self.bottleneck < 1:
            raise OptionError(f"bottleneck must be at least 1, or none, not {self.bottleneck}.")
        if not 0 <= self.seed < 2**64:
            raise OptionError(f"seed must be a whole number from 0 to 2^64 - 1, not {self.seed}.")
        if not self.checkpoint_seconds >= 0:
            raise OptionError(f"checkpoint_seconds must be a number from 0 up, not {self.checkpoint_seconds}.")


@dataclass(frozen=True)
class Task:
    """A source, a target and, for evaluation alone, the target's labels if it has any.

    Attributes:
        source: The labelled images that can be read.
        target: The unlabelled images that can be read.
        answers: The labels of the images that are measured on, `test` or the target; training never sees them.
        skipped: Names and reasons of the images that cannot be read.
        test: The images to measure on, where they are not the target.
    """

    source: LabelledDomain
    target: Domain
    answers: Answers | None
    skipped: list[tuple[str, str]]
    test: Domain | None = None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What makes the data the same data, labels included."""
        source, target, answers = self.source, self.target, self.answers
        return {
            "source": [source.domain.fingerprint(), source.labels.tolist(), source.classes],
            "target": target.fingerprint(),
            "test": self.test.fingerprint() if self.test is not None else None,
            "answers": answers.labels.tolist() if answers is not None else None,
        }


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
    if compare and record.get("compare") != (compared := _compared(out)):
        record["compare"] = compared
        write_json(out / "record.json", record)
    return record


def read_task(settings: Settings, screen: Screen) -> Task:
    """Read and check both domains before anything is computed.

    Raises:
        DataError: They cannot be used.
    """
    source, target = read_source(settings.source), read_target(settings.target)
    check_pair(source, target)
    test = read_target(settings.test) if settings.test else None
    if test is not None:
        check_pair(source, test)
    measured, origin = (target, settings.target) if test is None else (test, str(settings.test))
    answers = read_answers(origin, measured, source.classes, allow_mismatch=settings.allow_class_mismatch)
    if test is not None and answers is None:
        raise DataError(f"{settings.test} has no labels to measure with: give labelled images, or leave out --test.")

    kept, skipped = [], []
    for domain in (source.domain, target, *([test] if test is not None else [])):
        keep, broken = without_broken(domain, screen.track)
        kept.append(keep)
        skipped += [(f"{domain.origin}: {name}", reason) for name, reason in broken]
    if answers is not None:
        answers = replace(answers, labels=answers.labels[kept[-1]])  # the last is the one that is measured on
    if skipped:
        screen.warn(f"{len(skipped)} broken images are left out; skipped.csv in the run directory names them.")
    known = "unlabelled" if answers is None or test is not None else "labelled, for evaluation alone"
    measuring = f" Measured on {len(kept[-1]):,} others." if test is not None else ""
    screen.say(
        f"Source: {len(kept[0]):,} items of {len(source.classes)} classes. "
        f"Target: {len(kept[1]):,} items ({known}).{measuring}"
    )
    test = test.select(kept[-1]) if test is not None else None
    return Task(source.select(kept[0]), target.select(kept[1]), answers, skipped, test)


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
    folder = RunDirectory(out, same, _settings_json(settings))
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
    with tracking(settings.track, out, same, comparable(_settings_json(settings)), first) as tracker:
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
        "settings": _settings_json(settings),
        "model": asdict(model.setup),
        "data": _data_json(task),
        "environment": _environment_json(device),
        "steps": settings.recipe.steps,
        "resumed_at": checkpoint.step if checkpoint else None,
        "terms": _terms_summary(log),
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


def identity(settings: Settings, task: Task) -> str:
    """What makes a run the same run: its settings and the data, labels included."""
    weights = Path(settings.weights) if settings.weights else None
    parts = {
        "settings": comparable(_settings_json(settings)),
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest() if weights and weights.is_file() else None,
        "version": acclimate.__version__,
        **task.identity,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def prepare(settings: Settings, task: Task, device: torch.device, track: Track) -> tuple[Model, Pair, Inputs]:
    """The model before training, what it is trained on, and the target as evaluation sees it."""
    torch.manual_seed(settings.seed)  # a network from scratch draws its weights here
    backbone = None
    if task.source.domain.kind != "vectors":
        weights = Path(settings.weights) if settings.weights else None
        backbone = load_backbone(settings.backbone, weights=weights)
    setup = resolve(settings, task, backbone, device)
    torch.manual_seed(settings.seed)
    model = Model(setup, backbone, device)
    augment = _augment(settings, setup.tune, backbone)
    views: tuple[View, ...] = ("plain", "flip") if augment == "flip" else ("plain",)
    source, target = (
        model.inputs(domain, views=views, augment=augment, images=settings.keep_images, track=track)
        for domain in (task.source.domain, task.target)
    )
    pair = Pair(
        source,
        task.source.labels,
        target,
        batch_size=settings.recipe.batch_size,
        seed=settings.seed,
        device=device,
        prefetch=2 if model.method.net.level == "image" else 0,
    )
    return model, pair, target


def resolve(settings: Settings, task: Task, backbone: Backbone | None, device: torch.device) -> Setup:
    """The setup of the model, every "auto" decided.

    Raises:
        OptionError: The settings do not fit the backbone or the data.
    """
    items = task.source.domain.items
    scratch = backbone is not None and not backbone.pretrained
    tune: Tune
    if settings.tune != "auto":
        tune = settings.tune
    elif backbone is None:
        tune = "head"
    else:
        tune = "all" if scratch or device.type == "cuda" else "head"
    if scratch and tune != "all":
        raise OptionError(f"{settings.backbone} has no pretrained weights: use --tune all, or give --weights FILE.")
    if backbone is None and tune != "head":
        raise OptionError("Feature vectors have no backbone to train: use --tune head, or give images.")
    if backbone is None and settings.weights is not None:
        raise OptionError("Feature vectors have no backbone to load weights into: leave out --weights, or give images.")
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and fast_bf16(device))
    return Setup(
        method=settings.method,
        options=dict(settings.options),
        classes=task.source.classes,
        backbone=settings.backbone if backbone is not None else None,
        vector=int(items.shape[1]) if backbone is None and not isinstance(items, tuple) else None,
        tune=tune,
        bottleneck=settings.bottleneck,
        preprocess=backbone.preprocess if backbone is not None else None,
        bf16=bf16 and backbone is not None,
        cache_precision=settings.cache_precision,
    )


def _augment(settings: Settings, tune: Tune, backbone: Backbone | None) -> Augment:
    if settings.augment == "auto":
        return "crop+flip" if tune == "all" and backbone is not None and backbone.pretrained else "none"
    if backbone is None and settings.augment != "none":
        raise OptionError("Feature vectors cannot be augmented: use --augment none, or give images.")
    if tune != "all" and settings.augment not in ("none", "flip"):
        raise OptionError(
            f"Cached features know no random crops: use --augment flip with --tune {tune}, or --tune all."
        )
    return settings.augment


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


def predict_images(run: Path, data: str, out: Path, screen: Screen, *, device: str = "auto") -> dict[str, Any]:
    """Classify images with the model of a run, and write a CSV like the run's own predictions.csv.

    Returns:
        How many items there were, the names and reasons of those that cannot be read, how many items fell to each
        class, and the file.

    Raises:
        DataError: There is no model, the images cannot be used, or the file cannot be written.
    """
    _check_table(out, run, data)
    model = Model.load(run, pick_device(device))
    domain, skipped = _usable(model, read_target(data), screen)
    probabilities = model.predict(domain, screen.track)
    try:
        write_predictions(out, domain.names, probabilities, model.setup.classes)
    except OSError as error:
        raise DataError(f"The file {out} cannot be written ({error.strerror}): name another with --out.") from error
    counts = np.bincount(probabilities.argmax(1), minlength=len(model.setup.classes))
    return {
        "items": len(domain),
        "skipped": [{"path": name, "reason": reason} for name, reason in skipped],
        "classes": dict(zip(model.setup.classes, counts.tolist(), strict=True)),
        "out": str(out),
    }


def evaluate_images(
    run: Path, data: str, screen: Screen, *, device: str = "auto", allow_mismatch: bool = False
) -> tuple[str, Scores]:
    """Measure the model of a run on labelled images.

    Returns:
        The method's name, and its scores.

    Raises:
        DataError: There is no model, or the images cannot be used, or have no labels.
    """
    model = Model.load(run, pick_device(device))
    domain, _ = _usable(model, read_target(data), screen)
    answers = read_answers(data, domain, model.setup.classes, allow_mismatch=allow_mismatch)
    if answers is None:
        raise DataError(
            f"{data} has no labels that the model knows ({', '.join(model.setup.classes)}): put the images into "
            "folders of these names, or use acclimate predict."
        )
    return model.setup.method, score(model.predict(domain, screen.track), answers, model.setup.classes)


def _usable(model: Model, domain: Domain, screen: Screen) -> tuple[Domain, list[tuple[str, str]]]:
    """The part of a domain that can be read, and the names and reasons of the rest."""
    model.check(domain)
    keep, skipped = without_broken(domain, screen.track)
    for name, reason in skipped[:MOST_WARNINGS]:
        screen.warn(f"{name} is left out: {reason}.")
    if len(skipped) > MOST_WARNINGS:
        screen.warn(f"{len(skipped) - MOST_WARNINGS:,} more images are left out; --json names them all.")
    return domain.select(keep), skipped


def _check_table(out: Path, run: Path, data: str) -> None:
    """Refuse an output that cannot be written, or whose writing would destroy something, before computing anything."""
    if out.is_dir():
        raise DataError(f"{out} is a folder: name a file with --out, such as {out / 'predictions.csv'}.")
    if not out.parent.is_dir():
        raise DataError(f"The folder {out.parent} does not exist: make it, or name another file with --out.")
    if out.exists() and any(
        path.exists() and out.samefile(path) for path in (Path(data), *map(run.joinpath, RUN_FILES))
    ):
        raise DataError(f"{out} belongs to the run or to the data: name another file with --out.")


def _compared(out: Path) -> dict[str, Any]:
    """What the method changed against the baseline whose run lies in the same folder."""
    before = json.loads((out / BASELINE / "record.json").read_text(encoding="utf-8"))
    change = changes(
        read_probabilities(out / BASELINE / "predictions.csv"), read_probabilities(out / "predictions.csv")
    )
    compared: dict[str, Any] = {"method": BASELINE, "scores": before["scores"], "changes": change.as_dict()}
    return compared


def show(record: dict[str, Any], out: Path, screen: Screen) -> None:
    """Show the results of a fit."""
    name, compare = record["settings"]["method"], record.get("compare")
    if record["scores"] is not None:
        before = {BASELINE: Scores.from_dict(compare["scores"])} if compare else {}
        screen.show_scores({**before, name: Scores.from_dict(record["scores"])})
    elif compare:
        screen.show_changes(Changes(**compare["changes"]), record["model"]["classes"], BASELINE, name)
    screen.show_files(out)
    screen.show_json(record)


def _settings_json(settings: Settings) -> dict[str, Any]:
    return {**asdict(settings), "options": dict(settings.options)}


def _data_json(task: Task) -> dict[str, Any]:
    source, target = task.source, task.target
    counts = Counter(source.labels.tolist())
    return {
        "paths_start_from": str(Path.cwd()),
        "source": {
            "origin": source.domain.origin,
            "items": len(source),
            "classes": {name: counts[k] for k, name in enumerate(source.classes)},
            "fingerprint": source.domain.fingerprint(),
        },
        "target": {
            "origin": target.origin,
            "items": len(target),
            "labelled": task.answers is not None and task.test is None,
            "fingerprint": target.fingerprint(),
        },
        "test": {"origin": task.test.origin, "items": len(task.test), "fingerprint": task.test.fingerprint()}
        if task.test is not None
        else None,
        "skipped": len(task.skipped),
    }


def _environment_json(device: torch.device) -> dict[str, Any]:
    libraries = (torch, torchvision, timm, np, PIL)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        **{library.__name__: library.__version__ for library in libraries},
        "sklearn": version("scikit-learn"),  # importing it takes seconds, and not every run needs it
    }


def _terms_summary(log: MetricsLog) -> dict[str, dict[str, float]]:
    """First, last and mean value of each term over the logged steps."""
    rows = log.read()
    names = dict.fromkeys(name for row in rows for name in row if name not in ("step", "stage", "lr", "masks"))
    values = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: {"first": v[0], "last": v[-1], "mean": float(np.mean(v))} for name, v in values.items()}
