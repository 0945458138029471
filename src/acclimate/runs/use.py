"""A finished run at work: predicting and measuring."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from acclimate.data.broken import BrokenImages
from acclimate.data.domain import Domain
from acclimate.data.read import read_sealed, read_target
from acclimate.errors import DataError
from acclimate.evaluation.answers import read_answers
from acclimate.evaluation.scores import Probabilities, Scores, score
from acclimate.machine import pick_device
from acclimate.methods import registry
from acclimate.methods.base import Method
from acclimate.model import Model
from acclimate.networks.backbones import BackboneSource
from acclimate.progress import NOBODY, Listener
from acclimate.runs.files import RUN_FILES, write_predictions
from acclimate.runs.record import read_record
from acclimate.runs.summary import caution

MOST_WARNINGS = 10  # of images that cannot be read, one by one


def load(
    run: str | Path,
    device: str = "auto",
    *,
    method: str | type[Method] | None = None,
    backbone: BackboneSource | None = None,
) -> Model:
    """The model of a finished run.

    Args:
        run: The run directory.
        device: Where it computes: "cpu", "cuda", or "auto", a GPU if there is one.
        method: The method that it was trained with, where that is in a file of its user: no file's code is run unless
            it is given again.
        backbone: The backbone that it was trained with, likewise.

    Raises:
        DataError: The folder holds no model, or a damaged one.
        OptionError: The device does not exist, or the method or the backbone has to be given again.
    """
    return Model.load(Path(run), pick_device(device), method=method, backbone=backbone)


def predict_images(
    run: Path,
    data: str,
    out: Path,
    screen: Listener = NOBODY,
    *,
    device: str = "auto",
    method: str | None = None,
    backbone: str | None = None,
) -> dict[str, Any]:
    """Classify images with the model of a run, and write a CSV like the run's own predictions.csv.

    Args:
        run: The run directory.
        data: The images.
        out: The CSV.
        screen: Where progress and warnings are shown.
        device: Where the model runs.
        method: The method again, as for `Model.load`.
        backbone: The backbone again, as for `Model.load`.

    Returns:
        How many items there were, the names and reasons of those that cannot be read, how many items fell to each
        class, and the file.

    Raises:
        DataError: There is no model, the images cannot be used, or the file cannot be written.
        OptionError: The method or the backbone has to be given again.
    """
    _check_table(out, run, data)
    model = load(run, device, method=method, backbone=backbone)
    _pass_on_warning(run, screen)
    found = read_target(data)
    probabilities, broken = _predicted(model, found, screen)
    domain = found.select(broken.readable)
    try:
        write_predictions(out, domain.names, probabilities, model.spec.classes)
    except OSError as error:
        raise DataError(f"The file {out} cannot be written ({error.strerror}): name another with --out.") from error
    counts = np.bincount(probabilities.argmax(1), minlength=len(model.spec.classes))
    return {
        "items": len(domain),
        "skipped": [{"path": name, "reason": reason} for name, reason in broken.skipped],
        "classes": dict(zip(model.spec.classes, counts.tolist(), strict=True)),
        "out": str(out),
    }


def evaluate_images(
    run: Path,
    data: str,
    screen: Listener = NOBODY,
    *,
    device: str = "auto",
    allow_mismatch: bool = False,
    method: str | None = None,
    backbone: str | None = None,
) -> tuple[str, Scores]:
    """Measure the model of a run on labelled images.

    Args:
        run: The run directory.
        data: The images.
        screen: Where progress and warnings are shown.
        device: Where the model runs.
        allow_mismatch: Score the classes that the model and the data share.
        method: The method again, as for `Model.load`.
        backbone: The backbone again, as for `Model.load`.

    Returns:
        The method's name as it is shown, and its scores.

    Raises:
        DataError: There is no model, or the images cannot be used, or have no labels.
        OptionError: The method or the backbone has to be given again.
    """
    model = load(run, device, method=method, backbone=backbone)
    domain, sealed = read_sealed(data)
    answers = read_answers(sealed, domain, model.spec.classes, allow_mismatch=allow_mismatch)
    if answers is None:
        raise DataError(
            f"{data} has no labels that the model knows ({', '.join(model.spec.classes)}): put the images into "
            "folders of these names, or use acclimate predict."
        )
    probabilities, broken = _predicted(model, domain, screen)
    return registry.shown(model.spec.method), score(probabilities, answers.select(broken.readable), model.spec.classes)


def _pass_on_warning(run: Path, screen: Listener) -> None:
    """Repeat the warning of a run, where its record lies beside the model: a model alone predicts as well."""
    try:
        sentence = caution(read_record(run / "record.json"))
    except DataError:
        return
    if sentence is not None:
        screen.warn(sentence)


def _predicted(model: Model, domain: Domain, screen: Listener) -> tuple[Probabilities, BrokenImages]:
    """The probabilities of the images that can be read, and which cannot. Each is decoded once."""
    broken = BrokenImages(domain)
    with broken.found(screen.track):
        probabilities = model.predict(domain, screen.track, broken).probabilities
    for name, reason in broken.skipped[:MOST_WARNINGS]:
        screen.warn(f"{name} is left out: {reason}.")
    if len(broken.skipped) > MOST_WARNINGS:
        screen.warn(f"{len(broken.skipped) - MOST_WARNINGS:,} more images are left out; --json names them all.")
    return probabilities, broken


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
