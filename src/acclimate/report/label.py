"""The page on which a person labels a few images of the target, and the file for those who prefer a spreadsheet.

Neither says what a model makes of an image: whoever sees that tends to agree with it.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from acclimate.data.decode import pictured
from acclimate.data.domain import Domain
from acclimate.errors import DataError
from acclimate.evaluation.labels import COLUMNS, NONE, write_labels
from acclimate.outputs import PAGE, check_output
from acclimate.progress import Track, silent
from acclimate.report.exhibits import jpeg
from acclimate.report.page import render, written
from acclimate.runs.labels import Drawn, images

SIDE = 384  # pixels of an image's longer side

KEYS = "123456789abcdefghijklmnopqrstuvwxyz"  # of the classes, in their order

OTHER_KEY = "-"  # of `NONE`


class Written(NamedTuple):
    """The files that were written; no page where there are no images to look at."""

    labels: Path
    page: Path | None


def write_todo(drawn: Drawn, runs: Sequence[Path], out: Path, track: Track = silent) -> Written:
    """Write labels.csv, into which the labels belong, and label.html, on which they are given by a click.

    Args:
        drawn: The images.
        runs: As they were named, for the command that the page tells.
        out: The folder, which is made if need be.
        track: Shows the progress.

    Raises:
        DataError: The folder holds labels already or cannot be written to, or the images are no longer there.
    """
    labels, page = out / "labels.csv", out / "label.html"
    if labels.exists():
        raise DataError(f"{labels} is there already, maybe with labels: name another folder with --out.")
    if out.is_dir():
        check_output(page, PAGE)
    todo, model = drawn.todo, drawn.models[0]
    domain = images(model, [row.name for row in todo.rows])
    if domain is not None:
        classes = list(model.record.model.classes)
        command = ["acclimate", "evaluate", *map(str, runs), "--labels", "labels.csv"]
        data = {
            "draw": todo.draw,
            "heading": [todo.first_line, ",".join(COLUMNS)],
            "rows": [[row.name, str(row.stratum), f"{row.weight:.8g}"] for row in todo.rows],
            "images": [_thumbnail(domain, i) for i in track(range(len(domain)), "Reading images", len(domain))],
            "labels": [*classes, *([NONE] if NONE not in classes else [])],
            "keys": _keys(classes),
        }
        target = Path(model.record.data.target.origin)
        values = {"target": target.name, "n": len(todo.rows), "purpose": todo.purpose, "command": shlex.join(command)}
        written(render("label.html", "label", data=data, **values), page, [])
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_labels(labels, todo)
    except OSError as error:
        raise DataError(f"{labels} cannot be written ({error.strerror}): name another folder with --out.") from error
    return Written(labels, page if domain is not None else None)


def _keys(classes: Sequence[str]) -> list[str]:
    """The key of each class, then that of `NONE`; none where there are more classes than keys."""
    if all(len(name) == 1 for name in classes) and OTHER_KEY not in classes:
        return [*classes, OTHER_KEY]  # a digit has its own
    return [*KEYS[: len(classes)], OTHER_KEY] if len(classes) <= len(KEYS) else []


def _thumbnail(domain: Domain, i: int) -> str:
    """An image as training sees it, upright, in a size to look at."""
    with pictured(domain, i, at_least=SIDE) as image:
        longer = max(image.size)
        if longer < SIDE / 2:  # few pixels, which are meant to be seen
            times = SIDE // longer
            return jpeg(image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST))
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        return jpeg(image)
