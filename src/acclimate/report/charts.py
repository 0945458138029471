"""A report's curves and tables of classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from acclimate.report.run import Run
from acclimate.report.words import Section, number
from acclimate.runs.files import Metrics
from acclimate.runs.masks import mask_figures
from acclimate.runs.summary import by_merit

MOST_CLASSES = 20  # of a confusion matrix

MOST_CONFUSIONS = 6


def per_class(run: Run) -> list[Section]:
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


def members(run: Run) -> Section | None:
    """The members of a consensus, the best first: how far they agree, how accurate they are, how long they took."""
    trust = run.record.trust
    if trust is None or not trust.members:
        return None
    ordered = by_merit(trust.members)
    scored = any(member.accuracy is not None for member in ordered)
    return {
        "rows": [
            {"member": member, "best": scored and nth == 0, "failed": member.failed}
            for nth, member in enumerate(ordered)
        ],
        "scored": scored,
        "result": run.scores.accuracy if run.scores is not None else None,
    }


def shares(run: Run) -> Section | None:
    """How large a part of the target each class is: as predicted, as estimated, and where there are labels in truth."""
    trust = run.record.trust
    if trust is None or not trust.shares:
        return None
    scores = run.scores if not run.tested else None
    truth = [of_class.count / scores.n for of_class in scores.per_class] if scores is not None else None
    ends = [share.bbse[2] if share.bbse is not None else 0.0 for share in trust.shares]
    return {
        "rows": [
            {"share": share, "truth": truth[k] if truth is not None else None} for k, share in enumerate(trust.shares)
        ],
        "estimated": any(share.bbse is not None for share in trust.shares),
        "labelled": truth is not None,
        "scale": max(*ends, *(share.predicted for share in trust.shares), *(truth or ())),
        "rough": trust.rough,
    }


def confusion(run: Run) -> list[Section] | None:
    """Rows of the confusion matrix: fractions of a true class, each with its shade from 0 to 10."""
    if run.scores is None or len(run.classes) > MOST_CLASSES:
        return None
    rows = []
    for name, counts in zip(run.classes, run.scores.confusion.tolist(), strict=True):
        total = sum(counts)
        cells = [{"count": n, "fraction": n / total, "shade": round(10 * n / total)} if n else None for n in counts]
        rows.append({"name": name, "cells": cells})
    return rows


def confusions(run: Run) -> list[Section]:
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


def curves(metrics: Sequence[Metrics]) -> list[Section]:
    """A chart for each term of the objectives and each figure of the masks, and one for the learning rate."""
    if len(metrics) < 2:
        return []  # as of a method that solves for its weights at once
    points: dict[str, list[tuple[int, float]]] = {}
    for line, figures in zip(metrics, mask_figures([line.masks for line in metrics]), strict=True):
        for name, value in {**line.terms, **figures}.items():
            points.setdefault(name, []).append((line.step, value))
    points["learning rate"] = [(line.step, line.lr) for line in metrics]
    begins = [(a.step, b.stage) for a, b in pairwise(metrics) if a.stage != b.stage]
    return [_curve(name, of_it, begins, metrics[-1].step) for name, of_it in points.items()]


def _curve(name: str, points: list[tuple[int, float]], begins: list[tuple[int, str]], last: int) -> Section:
    """The chart of the points (step, value), up to the last step; `begins` is where stages begin, and their names."""
    steps, values = np.array(points, dtype=np.float64).T
    y_ticks = ticks(min(float(values.min()), 0.0), float(values.max()))
    low, high = y_ticks[0], y_ticks[-1]
    x = LEFT + (WIDTH - LEFT - RIGHT) * steps / last
    smooth = smoothed(values)

    def height(v: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (v - low) / (high - low)

    return {
        "name": name,
        "last": float(values[-1]),
        "first": float(values[0]),
        "raw": svg_path(x, height(values)),
        "smooth": svg_path(x, height(smooth)),
        "y_ticks": [{"at": float(height(np.array(v))), "text": number(v)} for v in y_ticks],
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
