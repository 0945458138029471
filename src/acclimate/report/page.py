"""The report of a run: one HTML file that holds all it shows and asks nothing of any network.

Names of files and classes are data: the templates escape everything, and the page's policy forbids any request.
"""

from __future__ import annotations

import base64
import hashlib
import math
import shlex
from collections.abc import Iterator, Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined

from acclimate import analysis
from acclimate.bench import tables
from acclimate.errors import DataError
from acclimate.files import write_whole
from acclimate.progress import Track, silent
from acclimate.report.exhibits import BASELINE, Data, Run, Section, exhibits, read_data, shown

MOST_CLASSES = 20  # of a confusion matrix
MOST_CONFUSIONS = 6
MOST_SKIPPED = 50


class Report(NamedTuple):
    """What was written: the file, its size in bytes, and a sentence for each thing that could not be shown."""

    path: Path
    size: int
    left_out: list[str]


def write(run: Path, out: Path | None = None, *, track: Track = silent) -> Report:
    """Write the report of a finished run.

    The same run and data give the same bytes on the same machine.

    Args:
        run: The run directory. The data are read anew from where its record says that they lie.
        out: The file; None is report.html in the run directory.
        track: Shows the progress.

    Raises:
        DataError: There is no finished run, or the file cannot be written.
    """
    finished = Run.read(run)
    left_out: list[str] = []
    data = read_data(finished, left_out)
    page = render(
        "run.html",
        run=finished,
        answer=_answer(finished),
        trust=[sentence.replace(" %", "\N{NO-BREAK SPACE}%") for sentence in _trust(finished, data)],
        per_class=_per_class(finished),
        confusion=_confusion(finished),
        confusions=_confusions(finished),
        curves=_curves(analysis.mask_figures(finished.metrics)),
        domain_error=finished.record["domain_error"],
        **exhibits(finished, data, left_out, track),
        made=_made(finished),
        left_out=left_out,
    )
    return _written(page, out or run / "report.html", left_out)


def write_bench(records: Sequence[tables.Record], out: Path) -> Report:
    """Write the report of benches: their tables, every run as a dot, and the differences to source-only.

    Args:
        records: As `tables.read_records` gives them.
        out: The file.

    Raises:
        DataError: The file cannot be written.
    """
    results = tables.Results(records)
    metric = results.metrics[0]
    page = render(
        "bench.html",
        results=results,
        benchmarks=sorted(name for name in results.benchmarks if name),
        metric=tables.METRICS[metric],
        sheets=tables.sheets(records),
        panels=_panels(results, metric),
        gains=_gains(results, metric),
    )
    return _written(page, out, [])


def _written(page: str, path: Path, left_out: list[str]) -> Report:
    try:
        write_whole(path, page.encode())
    except OSError as error:
        raise DataError(f"The file {path} cannot be written ({error.strerror}): name another with --out.") from error
    return Report(path, path.stat().st_size, left_out)


# --- the page ------------------------------------------------------------------------------------------------------


def render(template: str, **values: Any) -> str:
    """A page of the folder report_page: its template, style and script, and a policy that allows these alone."""
    page = resources.files("acclimate.report") / "templates"
    style, script = ((page / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
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
    environment.filters |= {"shown": shown, "percent": _percent, "points": _points, "number": _number}
    return environment.get_template(template).render(
        style=style, sprite=sprite, script=script, allowed=allowed, **values
    )


def _digest(text: str) -> str:
    """What a policy calls this text by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _percent(fraction: float | None, digits: int = 1) -> str:
    return "–" if fraction is None else f"{100 * fraction:.{digits}f}"


def _points(difference: float | None) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return "–" if difference is None else f"{100 * difference:+.1f}".replace("-", "−")


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}".replace("-", "−")


# --- in words ------------------------------------------------------------------------------------------------------


def _answer(run: Run) -> Section:
    """The first thing to know: accuracy before and after, or what changed where there are no labels."""
    scores, before = run.scores, run.scores_before
    answer: Section = {
        "labelled": scores is not None,
        "tested": run.tested,
        "n": len(run.names),
        "compared": run.before is not None,
    }
    if scores is not None:
        answer |= {"n": scores.n, "after": scores.accuracy, "mean_per_class": scores.mean_per_class}
        if before is not None:
            answer |= {"before": before.accuracy, "change": scores.accuracy - before.accuracy}
    elif run.predicted_before is not None:
        answer |= {"changed": float(np.mean(run.predicted != run.predicted_before))}
    return answer


def _trust(run: Run, data: Data | None) -> Iterator[str]:
    """How far to trust the predictions, in plain words."""
    confident = float(run.confidence.mean())
    if run.scores is None:
        yield (
            "The target has no labels, so nobody knows how many predictions are right, and nothing on this page "
            f"measures it. The mean confidence, {_percent(confident)} %, is what the model believes of itself."
        )
        yield (
            "To know, draw 100 images at random, put them into class folders, and run acclimate evaluate on them: "
            "that tells the accuracy to within about 10 points."
        )
        yield _unsure(run)
        return
    scores = run.scores
    correct = int(scores.confusion.trace())
    low, high = analysis.interval(correct, scores.n)
    yield (
        f"{correct:,} of {scores.n:,} labelled images are classified correctly. If they are a "
        f"random sample of what the model will see, its accuracy lies between {_percent(low)} and {_percent(high)} % "
        "(95 % interval). Training with another seed can move it by more than that."
    )
    if data is not None and data.answers is not None and run.predicted_before is not None:
        known = data.answers >= 0
        right, was_right = (p[known] == data.answers[known] for p in (run.predicted, run.predicted_before))
        yield (
            f"Against source-only, adaptation put {int((right & ~was_right).sum()):,} images right "
            f"and {int((~right & was_right).sum()):,} wrong."
        )
    gap = confident - scores.accuracy
    if run.tested:
        yield f"These images stayed out of training. The mean confidence on the target is {_percent(confident)} %."
    elif abs(gap) < 0.03:
        yield f"Its confidence is about right: {_percent(confident)} % on average."
    else:
        high_or_low = "high" if gap > 0 else "low"
        yield (
            f"Its confidence is too {high_or_low}: {_percent(confident)} % on average, where "
            f"{_percent(scores.accuracy)} % are right."
        )
    scored = [c for c in scores.per_class if c.accuracy is not None]
    worst = min(scored, key=lambda c: c.accuracy or 0.0)
    yield (
        f"It is weakest on “{shown(worst.name, 40)}”, of which {_percent(worst.accuracy)} % are right; the mean over "
        f"the classes is {_percent(scores.mean_per_class)} %."
    )
    yield "The labels of the target were used for these figures alone: not in training, and not to choose a step."


def _unsure(run: Run) -> str:
    unsure = int((run.confidence < 0.5).sum())
    return (
        f"{unsure:,} of {len(run.names):,} images ({_percent(unsure / len(run.names))} %) have a confidence below "
        "50 %: look at these first."
    )


def _made(run: Run) -> Section:
    """How the run was made."""
    record = run.record
    settings = {**record["settings"], **record["settings"]["recipe"]}
    for name in ("recipe", "options", "source", "target", "test", "method", "checkpoint_seconds"):
        settings.pop(name, None)
    return {
        "command": [shlex.quote(part) for part in ("acclimate", *record["command"])],
        "settings": {name: value for name, value in settings.items() if value is not None},
        "options": record["settings"]["options"],
        "model": {name: record["model"][name] for name in ("backbone", "tune", "bottleneck", "bf16")},
        "data": {side: record["data"][side] for side in ("source", "target", "test") if record["data"].get(side)},
        "environment": {"acclimate": record["acclimate"], **record["environment"]},
        "seconds": record["seconds"],
        "selection": record["selection"],
        "skipped": run.skipped[:MOST_SKIPPED],
        "more_skipped": max(len(run.skipped) - MOST_SKIPPED, 0),
    }


# --- tables and curves ---------------------------------------------------------------------------------------------


def _per_class(run: Run) -> list[Section]:
    """A row a class: accuracies before and after, or without labels the shares of the predictions."""
    before: list[float | None] = [None] * len(run.classes)
    if run.scores is not None:
        if run.scores_before is not None:
            before = [c.accuracy for c in run.scores_before.per_class]
        found = [(c.name, c.count, c.accuracy) for c in run.scores.per_class]
    else:
        if run.predicted_before is not None:
            before = [n / len(run.names) for n in run.counts(run.predicted_before)]
        counts = run.counts(run.predicted)
        found = [(name, n, n / len(run.names)) for name, n in zip(run.classes, counts, strict=True)]
    return [
        {"name": name, "count": n, "before": old, "after": new, "change": _difference(old, new)}
        for (name, n, new), old in zip(found, before, strict=True)
    ]


def _difference(old: float | None, new: float | None) -> float | None:
    return None if old is None or new is None else new - old


def _confusion(run: Run) -> list[Section] | None:
    """Rows of the confusion matrix: fractions of a true class, each with its shade from 0 to 10."""
    if run.scores is None or len(run.classes) > MOST_CLASSES:
        return None
    rows = []
    for name, counts in zip(run.classes, run.scores.confusion.tolist(), strict=True):
        total = sum(counts)
        cells = [{"count": n, "fraction": n / total, "shade": round(10 * n / total)} if n else None for n in counts]
        rows.append({"name": name, "cells": cells})
    return rows


def _confusions(run: Run) -> list[Section]:
    """The most frequent mistakes."""
    if run.scores is None:
        return []
    mistakes = run.scores.confusion - np.diag(run.scores.confusion.diagonal())
    order = np.argsort(-mistakes, axis=None, kind="stable")[:MOST_CONFUSIONS]
    pairs = [divmod(int(i), len(run.classes)) for i in order]
    return [
        {
            "truth": run.classes[i],
            "taken_for": run.classes[j],
            "count": int(mistakes[i, j]),
            "fraction": mistakes[i, j] / run.scores.confusion[i].sum(),
        }
        for i, j in pairs
        if mistakes[i, j]
    ]


WIDTH, HEIGHT = 320, 160  # of a curve's chart
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 10, 24  # its margins


def _curves(metrics: list[dict[str, Any]]) -> list[Section]:
    """A chart for each term of the objectives, and one for the learning rate."""
    names = dict.fromkeys(name for row in metrics for name in row if name not in ("step", "stage", "lr"))
    return [_curve(metrics, name) for name in [*names, *(["lr"] if metrics else [])]]


def _curve(metrics: list[dict[str, Any]], name: str) -> Section:
    rows = [row for row in metrics if name in row]
    steps = np.array([row["step"] for row in rows], dtype=np.float64)
    values = np.array([row[name] for row in rows], dtype=np.float64)
    last = float(metrics[-1]["step"])
    y_ticks = ticks(min(float(values.min()), 0.0), float(values.max()))
    low, high = y_ticks[0], y_ticks[-1]
    x = LEFT + (WIDTH - LEFT - RIGHT) * steps / last
    smooth = smoothed(values)
    begins = [(a["step"], b["stage"]) for a, b in pairwise(metrics) if a["stage"] != b["stage"]]

    def height(v: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (v - low) / (high - low)

    return {
        "name": "learning rate" if name == "lr" else name,
        "last": float(values[-1]),
        "first": float(values[0]),
        "raw": svg_path(x, height(values)),
        "smooth": svg_path(x, height(smooth)),
        "y_ticks": [{"at": float(height(np.array(v))), "text": _number(v)} for v in y_ticks],
        "x_ticks": [
            {"at": LEFT + (WIDTH - LEFT - RIGHT) * v / last, "text": f"{v:,.0f}"} for v in ticks(0, last) if v <= last
        ],
        "stages": [{"at": LEFT + (WIDTH - LEFT - RIGHT) * step / last, "name": stage} for step, stage in begins],
    }


def smoothed(values: npt.NDArray[np.float64], reach: int = 5) -> npt.NDArray[np.float64]:
    """The mean of each value and up to `reach` neighbours on both sides."""
    total = np.cumsum(np.concatenate([[0.0], values]))
    i = np.arange(len(values))
    low, high = np.maximum(i - reach, 0), np.minimum(i + reach + 1, len(values))
    smooth: npt.NDArray[np.float64] = (total[high] - total[low]) / (high - low)
    return smooth


def svg_path(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> str:
    """The `d` of a path through the points (x, y), in pixels."""
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))


def ticks(low: float, high: float, about: int = 3) -> list[float]:
    """Round numbers, evenly apart, from at most `low` to at least `high`."""
    span = high - low if high > low else max(abs(high), 1.0)
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(max(high, low + step) / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


# --- benches -------------------------------------------------------------------------------------------------------


def _panels(results: tables.Results, metric: str) -> list[Section]:
    """A chart for each task, and one for their mean: a line a row, a dot a seed, a tick at the mean; in %."""
    values = np.array([results.percent(name, metric) for name in results.rows])  # (rows, tasks, seeds)
    titles = ["→".join(task) for task in results.tasks]
    if len(titles) > 1:
        values, titles = np.concatenate([values, values.mean(1, keepdims=True)], 1), [*titles, "mean over the tasks"]
    panels = []
    for task, title in enumerate(titles):
        of_task = values[:, task]
        if np.isnan(of_task).all():
            continue
        scale = ticks(float(np.nanmin(of_task)), float(np.nanmax(of_task)))
        rows = [_strip(name, seeds, scale) for name, seeds in zip(results.rows, of_task, strict=True)]
        panels.append({"title": title, "low": scale[0], "high": scale[-1], "rows": rows})
    return panels


def _strip(name: str, values: npt.NDArray[np.float64], scale: list[float]) -> Section:
    known = values[~np.isnan(values)]
    along = 100 * (known - scale[0]) / (scale[-1] - scale[0])
    mean = float(known.mean()) if known.size else None
    return {"name": name, "dots": along.tolist(), "at": float(along.mean()) if known.size else None, "mean": mean}


def _gains(results: tables.Results, metric: str) -> Section | None:
    """What each row adds to source-only, in points, with an interval of 95 %."""
    base = next((name for name, record in results.rows.items() if record["method"] == BASELINE), None)
    others = {name: results.percent(name, metric) for name in results.rows if name != base}
    if base is None or not others:
        return None
    found = {name: tables.difference(values, results.percent(base, metric)) for name, values in others.items()}
    known = {name: gain for name, gain in found.items() if gain is not None}
    if not known:
        return None
    reach = max(abs(gain.mean) + (gain.half or 0) for gain in known.values())
    bound = ticks(0, reach)[-1]

    def along(points: float) -> float:
        return 50 + 50 * points / bound

    rows = [
        {
            "name": name,
            "mean": gain.mean,
            "half": gain.half,
            "at": along(gain.mean),
            "ends": [along(gain.mean - (gain.half or 0)), along(gain.mean + (gain.half or 0))],
            "better": gain.better,
            "pairs": gain.pairs,
        }
        for name, gain in known.items()
    ]
    return {"base": base, "bound": bound, "rows": rows}
