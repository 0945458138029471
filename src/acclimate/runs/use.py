"""A finished run at work: predicting and measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from acclimate.choices import Extractor, PredictionFormat
from acclimate.data.broken import MOST_BROKEN, BrokenImages
from acclimate.data.domain import Domain
from acclimate.data.read import read_sealed, read_targets
from acclimate.errors import DataError, OptionError
from acclimate.evaluation.answers import read_answers
from acclimate.evaluation.scores import Probabilities, Scores, score
from acclimate.machine import pick_device
from acclimate.methods import registry
from acclimate.methods.base import Method
from acclimate.model import Model
from acclimate.networks.backbones import BackboneSource
from acclimate.outputs import TABLE, check_output
from acclimate.progress import NOBODY, Listener, Track, silent
from acclimate.runs.hub import located
from acclimate.runs.output import STDOUT, UNSURE, Links, table
from acclimate.runs.record import read_record
from acclimate.runs.summary import caution

MANY = 10**7  # probabilities: 90 MB as text

AT_ONCE = 4096  # images that are predicted at a time

Result = TypeVar("Result")

MOST_WARNINGS = 10  # of images that cannot be read, one by one


def load(
    run: str | Path,
    device: str = "auto",
    *,
    method: str | type[Method] | None = None,
    backbone: BackboneSource | None = None,
    extractor: Extractor | None = None,
) -> Model:
    """The model of a finished run.

    Args:
        run: The run directory, or `hf://OWNER/NAME` or `hf://OWNER/NAME@REVISION` of the Hugging Face Hub.
        device: Where it computes: "cpu", "cuda", or "auto", a GPU if there is one.
        method: The method that it was trained with, where that is in a file of its user: no file's code is run unless
            it is given again.
        backbone: The backbone that it was trained with, likewise.
        extractor: What computes the features of a frozen backbone on a CPU, "torch" or "openvino"; None for what did
            when it was trained. Features differ by rounding.

    Raises:
        DataError: The folder holds no model, or a damaged one.
        OptionError: The device does not exist, or the method or the backbone has to be given again.
    """
    return Model.load(located(run), pick_device(device), method=method, backbone=backbone, extractor=extractor)


def predict_images(
    run: Path,
    data: Sequence[str],
    out: str | None,
    screen: Listener = NOBODY,
    *,
    form: PredictionFormat | None = None,
    top: int | None = None,
    link: Path | None = None,
    min_confidence: float | None = None,
    escape_formulas: bool = False,
    device: str = "auto",
    method: str | None = None,
    backbone: str | None = None,
    extractor: Extractor | None = None,
) -> dict[str, Any]:
    """Classify images with the model of a run, and write what it says of them as it comes.

    `AT_ONCE` images are predicted at a time, so that the memory holds of all images no more than their paths.

    Args:
        run: The run directory.
        data: The images, as for `read_targets`.
        out: The file to write, like the run's own predictions.csv; "-" for standard output, None for none.
        screen: Where progress and warnings are shown.
        form: The form of the file; None tells it by its ending.
        top: Name so many of the most probable classes alone.
        link: A folder in which to link the images, one folder a class.
        min_confidence: Link images of less confidence apart.
        escape_formulas: In a CSV, put an apostrophe before names that a spreadsheet would take for a formula.
        device: Where the model runs.
        method: The method again, as for `Model.load`.
        backbone: The backbone again, as for `Model.load`.
        extractor: What computes the features, as for `load`.

    Returns:
        How many items there were, the names and reasons of those that cannot be read, how many items fell to each
        class, and the file and the folder of links, if there are any.

    Raises:
        DataError: There is no model, the images cannot be used, or the file or the links cannot be written.
        OptionError: The method or the backbone has to be given again.
    """
    form = form or (_form_of(out) if out is not None else None)
    if escape_formulas and form != "csv":
        raise OptionError("--escape-formulas is for a CSV: leave it out, or choose --format csv.")
    if form == "npz" and (out == STDOUT or top is not None):
        raise OptionError(
            "--format npz writes the probabilities of all classes to a file: name one with --out, and leave out --top."
        )
    run = located(run)
    if out is not None and out != STDOUT:
        check_output(Path(out), TABLE, inputs=data)
    if link is not None and any(
        Path(name).is_dir() and link.resolve().is_relative_to(Path(name).resolve()) for name in data
    ):
        raise DataError(f"{link} lies in the input, of which its links would become a part: name another with --link.")
    model = load(run, device, method=method, backbone=backbone, extractor=extractor)
    _pass_on_warning(run, screen)
    found = read_targets(data)
    model.check(found)
    classes = model.spec.classes
    if form in ("csv", "jsonl") and top is None and len(found) * len(classes) > MANY:
        screen.say(
            f"The predictions hold {len(found) * len(classes):,} probabilities: in an .npz they take less than "
            "half the room, and --top 5 names the most probable classes alone."
        )
    counts = np.zeros(len(classes), dtype=np.int64)
    skipped: list[tuple[str, str]] = []
    with ExitStack() as outputs:
        links = None if link is None else Links(link, classes, min_confidence)
        write = None
        if out is not None:
            write = outputs.enter_context(table(out, form or "csv", classes, top, escape_formulas=escape_formulas))
        for part, p in in_parts(found, lambda *of: model.predict(*of).probabilities, skipped, screen):
            counts += np.bincount(p.argmax(1), minlength=len(classes))
            if write is not None:
                write(part.names, p)
            if links is not None:
                links.add(part, p)
    result = {
        "items": int(counts.sum()),
        "skipped": [{"path": name, "reason": reason} for name, reason in skipped],
        "classes": dict(zip(classes, counts.tolist(), strict=True)),
    }
    return (
        result
        | ({"out": out} if out is not None else {})
        | ({"link": str(link), UNSURE: links.unsure} if links is not None else {})
    )


def _form_of(out: str) -> PredictionFormat:
    endings: dict[str, PredictionFormat] = {".jsonl": "jsonl", ".npz": "npz"}
    return endings.get(Path(out).suffix.lower(), "csv")


def in_parts(
    found: Domain,
    work: Callable[[Domain, Track, BrokenImages], Result],
    skipped: list[tuple[str, str]],
    screen: Listener,
    description: str = "Predicting",
) -> Iterator[tuple[Domain, Result]]:
    """Work through the images of a domain, `AT_ONCE` at a time.

    Args:
        found: The domain.
        work: What to do with a part of it; it notes the images that it cannot read.
        skipped: Their names and the reasons are added to it.
        screen: Where progress and warnings are shown.
        description: What is being done.

    Yields:
        The images of each part that can be read, and what was made of them.

    Raises:
        DataError: More than `MOST_BROKEN` of all cannot be read.
    """
    starts = range(0, len(found), AT_ONCE)
    with screen.progress(description, len(found)) if len(starts) > 1 else nullcontext() as meter:
        for start in starts:
            part = found.select(np.arange(start, min(start + AT_ONCE, len(found))))
            broken = BrokenImages(part, most=1.0)
            track = screen.track if meter is None else silent
            with broken.found(track):
                result = work(part, track, broken)
            _tell_of(broken.skipped, len(skipped), screen)
            skipped += broken.skipped
            if len(skipped) > MOST_BROKEN * len(found):
                name, reason = skipped[0]
                raise DataError(
                    f"{len(skipped):,} of the {len(found):,} images of {found.origin} cannot be read, for example "
                    f"'{name}' ({reason}): replace or remove them."
                )
            yield part.select(broken.readable), result
            if meter is not None:
                meter.update(start + len(part))
    _tell_of(found.unread, len(skipped), screen)
    skipped += found.unread
    _tell_of_rest(skipped, screen)


def _tell_of(skipped: Sequence[tuple[str, str]], told: int, screen: Listener) -> None:
    """Name the first images that are left out, of which so many are told of already."""
    for name, reason in skipped[: max(MOST_WARNINGS - told, 0)]:
        screen.warn(f"{name} is left out: {reason}.")


def _tell_of_rest(skipped: Sequence[tuple[str, str]], screen: Listener) -> None:
    """Say how many more there are."""
    if len(skipped) > MOST_WARNINGS:
        screen.warn(f"{len(skipped) - MOST_WARNINGS:,} more images are left out; --json names them all.")


def evaluate_images(
    run: Path,
    data: str,
    screen: Listener = NOBODY,
    *,
    device: str = "auto",
    allow_mismatch: bool = False,
    method: str | None = None,
    backbone: str | None = None,
    extractor: Extractor | None = None,
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
        extractor: What computes the features, as for `load`.

    Returns:
        The method's name as it is shown, and its scores.

    Raises:
        DataError: There is no model, or the images cannot be used, or have no labels.
        OptionError: The method or the backbone has to be given again.
    """
    model = load(run, device, method=method, backbone=backbone, extractor=extractor)
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
    _tell_of(broken.skipped, 0, screen)
    _tell_of_rest(broken.skipped, screen)
    return probabilities, broken
