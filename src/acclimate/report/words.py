"""A report in words: the answer, and how far to trust it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from msgspec import structs

from acclimate.evaluation import scores as analysis
from acclimate.report.run import Data, Run

Section: TypeAlias = dict[str, Any]

LONGEST = 80  # characters of a name


def shown(text: object, longest: int = LONGEST) -> str:
    """A name as it is shown: without what moves the cursor or the direction of writing, and shortened in its middle."""
    clean = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    if len(clean) <= longest:
        return clean
    return f"{clean[: longest // 2]}…{clean[-(longest // 2 - 1) :]}"


MOST_SKIPPED = 50


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction in percent, a dash for none."""
    return "–" if fraction is None else f"{100 * fraction:.{digits}f}"


def points(difference: float | None) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return "–" if difference is None else f"{100 * difference:+.1f}".replace("-", "−")


def number(value: float) -> str:
    """A number as text: whole, or with three digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}".replace("-", "−")


def answer(run: Run) -> Section:
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


def trust(run: Run, data: Data | None) -> Iterator[str]:
    """How far to trust the predictions, in plain words."""
    confident = float(run.confidence.mean())
    if run.scores is None:
        yield (
            "The target has no labels, so nobody knows how many predictions are right, and nothing on this page "
            f"measures it. The mean confidence, {percent(confident)} %, is what the model believes of itself."
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
        f"random sample of what the model will see, its accuracy lies between {percent(low)} and {percent(high)} % "
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
        yield f"These images stayed out of training. The mean confidence on the target is {percent(confident)} %."
    elif abs(gap) < 0.03:
        yield f"Its confidence is about right: {percent(confident)} % on average."
    else:
        high_or_low = "high" if gap > 0 else "low"
        yield (
            f"Its confidence is too {high_or_low}: {percent(confident)} % on average, where "
            f"{percent(scores.accuracy)} % are right."
        )
    scored = [c for c in scores.per_class if c.accuracy is not None]
    worst = min(scored, key=lambda c: c.accuracy or 0.0)
    yield (
        f"It is weakest on “{shown(worst.name, 40)}”, of which {percent(worst.accuracy)} % are right; the mean over "
        f"the classes is {percent(scores.mean_per_class)} %."
    )
    yield "The labels of the target were used for these figures alone: not in training, and not to choose a step."


def _unsure(run: Run) -> str:
    unsure = int((run.confidence < 0.5).sum())
    return (
        f"{unsure:,} of {len(run.names):,} images ({percent(unsure / len(run.names))} %) have a confidence below "
        "50 %: look at these first."
    )


def made(run: Run) -> Section:
    """How the run was made."""
    record, data = run.record, run.record.data
    settings = dict(record.settings)
    for name in ("options", "source", "target", "test", "method", "checkpoint_seconds"):
        settings.pop(name, None)
    machine = structs.asdict(record.environment)
    libraries = machine.pop("libraries")
    return {
        "command": [shlex.quote(part) for part in ("acclimate", *record.command)],
        "settings": {name: value for name, value in settings.items() if value is not None},
        "options": record.settings["options"],
        "model": {name: getattr(record.model, name) for name in ("backbone", "tune", "bottleneck", "bf16")},
        "data": {"source": data.source, "target": data.target, **({"test": data.test} if data.test else {})},
        "environment": {"acclimate": record.acclimate, **machine, **libraries},
        "seconds": structs.asdict(record.seconds),
        "selection": record.selection,
        "skipped": run.skipped[:MOST_SKIPPED],
        "more_skipped": max(len(run.skipped) - MOST_SKIPPED, 0),
    }
