"""Figures: means, deviations and paired differences of what runs measured."""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

Figures: TypeAlias = npt.NDArray[np.float64]

FEWEST = 3  # tasks or seeds, from which an interval is estimated


class Figure(NamedTuple):
    """A cell with a number.

    Attributes:
        mean: Over the runs that there are; None without any.
        std: Over the runs, with n - 1; None for fewer than two.
        missing: How many runs are not there.
        digits: Decimals.
        computed: Whether a published figure is not printed, but follows from printed ones.
        unlabelled: How many runs were made and have nothing to be measured with; they are not among the missing.
        best: Whether no other row has a larger mean in its column, where a table is made to compare rows.
    """

    mean: float | None
    std: float | None = None
    missing: int = 0
    digits: int = 1
    computed: bool = False
    unlabelled: int = 0
    best: bool = False

    def __str__(self) -> str:
        if self.mean is None and self.unlabelled:
            return f"no labels ({self.missing} missing)" if self.missing else "no labels"
        if self.mean is None:
            return f"{self.missing} missing" if self.missing else "-"
        text = f"{self.mean:.{self.digits}f}"
        if self.computed:
            text += "*"
        if self.std is not None:
            text += f" ± {self.std:.{self.digits}f}"
        if self.missing:
            text += f" ({self.missing} missing)"
        return text


class Number(NamedTuple):
    """A cell with a number that is no mean of runs.

    Attributes:
        text: As people read it.
        values: The numbers, by what tells them apart: "" where there is one, "low" and "high" of an interval.
    """

    text: str
    values: dict[str, float]

    def __str__(self) -> str:
        return self.text


NOTHING = Number("-", {})  # where there is no number


def figure(values: Figures, digits: int = 1, unlabelled: int = 0) -> Figure:
    """Mean and standard deviation of the values (n,) that are there; NaN stands for one that is not.

    Args:
        values: One a run.
        digits: Decimals.
        unlabelled: How many of those that are not there have a run, but no labels.
    """
    known = values[~np.isnan(values)]
    return Figure(
        float(known.mean()) if known.size else None,
        float(known.std(ddof=1)) if known.size > 1 else None,
        int(values.size - known.size) - unlabelled,
        digits,
        unlabelled=unlabelled,
    )


def average(values: Figures, digits: int = 1, unlabelled: int = 0) -> Figure:
    """Of values (tasks, seeds): the mean over the tasks, and its deviation over the seeds; none with gaps."""
    gaps = int(np.isnan(values).sum())
    if gaps:
        return Figure(None, None, gaps - unlabelled, digits, unlabelled=unlabelled)
    return figure(values.mean(0), digits)


class Difference(NamedTuple):
    """A paired comparison of two rows.

    Attributes:
        mean: Of the differences, over tasks of the means over seeds.
        half: Half the width of its 95 % interval; None for fewer than three tasks (or seeds, where there is one task):
            from two, Student's t makes it 9 times as wide as the distance between them.
        better: Pairs in which the first is above the second.
        pairs: Pairs of runs of one task and seed.
        missing: Pairs of which a run is missing.
    """

    mean: float
    half: float | None
    better: int
    pairs: int
    missing: int


def difference(a: Figures, b: Figures) -> Difference | None:
    """Compare values (tasks, seeds) of two rows, paired by task and seed; None if they have no pair.

    The interval is Student's over the tasks, each counted with its mean over the seeds, so that it tells what to expect
    on other tasks of the kind; where there is one task, it is over the seeds, and tells of other seeds alone.
    """
    d = a - b
    there = ~np.isnan(d)
    if not there.any():
        return None
    per_task = np.array([row[known].mean() for row, known in zip(d, there, strict=True) if known.any()])
    units = per_task if len(d) > 1 else d[there]
    half = t_975(len(units) - 1) * units.std(ddof=1) / math.sqrt(len(units)) if len(units) >= FEWEST else None
    pairs = int(there.sum())
    return Difference(float(per_task.mean()), half, int((d[there] > 0).sum()), pairs, d.size - pairs)


def t_975(degrees: int) -> float:
    """Student's t at 0.975, with three decimals."""
    return round(float(stdtrit(degrees, 0.975)), 3)
