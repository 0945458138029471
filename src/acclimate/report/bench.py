"""The report of a bench."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from acclimate.bench import figures
from acclimate.bench.choose import Ranking
from acclimate.bench.records import METRICS, BenchRecord, Results
from acclimate.bench.shown import shown
from acclimate.bench.tables import on_interval
from acclimate.methods.registry import BASELINE
from acclimate.outputs import PAGE, check_output
from acclimate.progress import NOBODY, Listener
from acclimate.report.charts import ticks
from acclimate.report.page import Report, render, written
from acclimate.report.words import Section


def write_bench(
    records: Sequence[BenchRecord], out: Path, *, folder: Path | None = None, screen: Listener = NOBODY
) -> Report:
    """Write the report of benches: their tables, every run as a dot, and the differences to source-only.

    Where the target has no labels, it says what `bench.choose` finds.

    Args:
        records: As `bench.records.read_records` gives them.
        out: The file.
        folder: The bench's folder, where its runs lie.
        screen: Is shown the progress.

    Raises:
        DataError: The file cannot be written.
    """
    check_output(out, PAGE)
    results = Results(records)
    metric = results.metrics[0]
    found = shown(records, [folder] if folder is not None else [], screen=screen)
    page = render(
        "bench.html",
        results=results,
        benchmarks=sorted(name for name in results.benchmarks if name),
        metric=METRICS[metric],
        sheets=found.sheets,
        choices=[_choice(ranking) for ranking in found.rankings],
        without_labels=len(results.without_labels),
        panels=_panels(results, metric),
        gains=_gains(results, metric),
    )
    return written(page, out, [])


def _choice(ranking: Ranking) -> Section:
    """What is chosen on a task without labels."""
    task = "→".join(ranking.task)
    return {"task": task, "chosen": ranking.choice.chosen, "reason": ranking.choice.reason, "instead": ranking.instead}


def _panels(results: Results, metric: str) -> list[Section]:
    """A chart for each task, and one for their mean: a line a row, a dot a seed, a tick at the mean; in %."""
    values = np.array([results.percent(name, metric) for name in results.rows])  # (rows, tasks, seeds)
    titles = ["→".join(task) for task in results.tasks]
    if len(titles) > 1:
        values = np.concatenate([values, values.mean(1, keepdims=True)], 1)
        titles.append("mean over the tasks")
    panels = []
    for task, title in enumerate(titles):
        of_task = values[:, task]
        if np.isnan(of_task).all():
            continue
        scale = ticks(float(np.nanmin(of_task)), float(np.nanmax(of_task)))
        rows = [_strip(name, seeds, scale) for name, seeds in zip(results.rows, of_task, strict=True)]
        rows.sort(key=lambda row: -math.inf if row["mean"] is None else row["mean"], reverse=True)
        panels.append({"title": title, "low": scale[0], "high": scale[-1], "rows": rows})
    return panels


def _strip(name: str, values: npt.NDArray[np.float64], scale: list[float]) -> Section:
    known = values[~np.isnan(values)]
    along = 100 * (known - scale[0]) / (scale[-1] - scale[0])
    mean = float(known.mean()) if known.size else None
    return {"name": name, "dots": along.tolist(), "at": float(along.mean()) if known.size else None, "mean": mean}


def _gains(results: Results, metric: str) -> Section | None:
    """What each row adds to source-only, in points, with an interval of 95 %."""
    base = next((name for name, record in results.rows.items() if record.method == BASELINE), None)
    others = {name: results.percent(name, metric) for name in results.rows if name != base}
    if base is None or not others:
        return None
    found = {name: figures.difference(values, results.percent(base, metric)) for name, values in others.items()}
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
        for name, gain in sorted(known.items(), key=lambda item: item[1].mean, reverse=True)
    ]
    intervals = any(row["half"] is not None for row in rows)
    return {"base": base, "bound": bound, "rows": rows, "intervals": intervals, "interval": on_interval(results)}
