"""The report of a run: one HTML file that holds all it shows and asks nothing of any network.

Names of files and classes are data: the templates escape everything, and the page's policy forbids any request.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from acclimate.errors import DataError
from acclimate.files import write_whole
from acclimate.outputs import PAGE, check_output
from acclimate.progress import Track, silent
from acclimate.report.charts import confusion, confusions, curves, members, per_class, shares
from acclimate.report.doubts import doubts
from acclimate.report.exhibits import exhibits
from acclimate.report.run import Run, read_data, read_votes
from acclimate.report.words import answer, domain_error, labelling, made, number, percent, points, shown, trusted


class Report(NamedTuple):
    """What was written: the file, its size in bytes, and a sentence for each thing that could not be shown."""

    path: Path
    size: int
    left_out: list[str]


def write(
    run: Path,
    out: Path | None = None,
    *,
    method: str | None = None,
    backbone: str | None = None,
    track: Track = silent,
) -> Report:
    """Write the report of a finished run.

    The same run and data give the same bytes on the same machine.

    Args:
        run: The run directory. The data are read anew from where its record says that they lie.
        out: The file; None is report.html in the run directory.
        method: The method again, as for `Model.load`; without one from a file, what needs the model is left out.
        backbone: The backbone again, likewise.
        track: Shows the progress.

    Raises:
        DataError: There is no finished run, or the file cannot be written.
    """
    out = out or run / "report.html"
    finished = Run.read(run)
    check_output(out, PAGE)
    left_out: list[str] = []
    data = read_data(finished, left_out)
    votes = read_votes(finished, left_out)
    page = render(
        "run.html",
        run=finished,
        answer=answer(finished),
        trust=[sentence.replace(" %", "\N{NO-BREAK SPACE}%") for sentence in trusted(finished, data)],
        commands=labelling(finished),
        members=members(finished),
        per_class=per_class(finished),
        shares=shares(finished),
        doubts=doubts(finished, votes, data.answers if data is not None else None),
        confusion=confusion(finished),
        confusions=confusions(finished),
        curves=curves(finished.metrics),
        domain_error=domain_error(finished),
        **exhibits(finished, data, votes, left_out, track, method=method, backbone=backbone),
        made=made(finished),
        left_out=left_out,
    )
    return written(page, out, left_out)


def written(page: str, path: Path, left_out: list[str]) -> Report:
    """Write a page, whole."""
    try:
        write_whole(path, page.encode())
    except OSError as error:
        raise DataError(f"The file {path} cannot be written ({error.strerror}): name another with --out.") from error
    return Report(path, path.stat().st_size, left_out)


def render(template: str, *own: str, **values: Any) -> str:
    """A page of the folder templates: its template, style and script, and a policy that allows these alone.

    Args:
        template: The file.
        own: The names of styles and scripts beside those that all pages have.
        values: What the template shows.
    """
    page = resources.files("acclimate.report") / "templates"
    style, script = (
        "".join((page / f"{name}.{kind}").read_text(encoding="utf-8") for name in ("page", *own))
        for kind in ("css", "js")
    )
    sheet = values.get("sheet")
    sprite = f".sprite{{background-image:url({sheet})}}" if sheet else ""
    allowed = {"style": f"'{_digest(style)}' '{_digest(sprite)}'", "script": f"'{_digest(script)}'"}
    environment = Environment(
        loader=PackageLoader("acclimate.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"shown": shown, "percent": percent, "points": points, "number": number}
    return environment.get_template(template).render(
        style=style, sprite=sprite, script=script, allowed=allowed, **values
    )


def _digest(text: str) -> str:
    """What a policy calls this text by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
