"""A report in words: the answer, and how far to trust it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any, TypeAlias

from msgspec import structs

from acclimate.evaluation import scores as analysis
from acclimate.report.run import Data, Run
from acclimate.runs import summary
from acclimate.runs.record import AccuracyEstimate, Trust

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
    """The first thing to know: the accuracy, or without labels the verdict and what it rests on."""
    scores, before, trust = run.scores, run.scores_before, run.record.trust
    answer: Section = {
        "labelled": scores is not None,
        "tested": run.tested,
        "n": len(run.names),
        "compared": run.before is not None,
        "verdict": trust.verdict if trust is not None else None,
        "level": trust.level if trust is not None else None,
        "estimate": trust.estimate if trust is not None else None,
        "bound": summary.bound(trust) if trust is not None else None,
        "rests_on": summary.rests_on(trust, run.record.settings) if trust is not None else None,
        "alarms": summary.alarms(trust),
    }
    if scores is not None:
        answer |= {"n": scores.n, "after": scores.accuracy, "mean_per_class": scores.mean_per_class}
        if before is not None:
            answer |= {"before": before.accuracy, "change": scores.accuracy - before.accuracy}
    return answer


def trusted(run: Run, data: Data | None) -> Iterator[str]:
    """How far to trust the predictions, in plain words."""
    confident, trust = float(run.confidence.mean()), run.record.trust
    if run.scores is None:
        yield (
            "The target has no labels, so nobody knows how many predictions are right, and nothing on this page "
            f"measures it. The mean confidence, {percent(confident)} %, is what the model believes of itself."
        )
        yield from _doubts(run)
        yield (
            "To know, label some images: the first of these commands draws 50 and writes a page on which you click "
            "their classes, the second tells the accuracy with an interval."
        )
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
    if trust is not None and trust.estimate is not None:
        yield _checked(trust, trust.estimate, scores.accuracy, run)
    yield "The labels of the target were used for these figures alone: not in training, and not to choose a step."


def labelling(run: Run) -> list[list[str]]:
    """The commands that tell the accuracy from a few labels; none where there are labels."""
    if run.scores is not None:
        return []
    folder = shlex.quote(str(run.folder))
    return [
        ["acclimate", "label", folder, "--n 50", "--out labels"],
        ["acclimate", "evaluate", folder, "--labels labels/labels.csv"],
    ]


def _checked(trust: Trust, estimate: AccuracyEstimate, accuracy: float, run: Run) -> str:
    """How good the estimate was that needed no label."""
    off = 100 * (round(estimate.value, 2) - accuracy)
    within = estimate.low <= accuracy <= estimate.high
    return (
        f"The estimate without labels was {percent(estimate.value, 0)} %, {abs(off):.1f} points too "
        f"{'high' if off > 0 else 'low'}; the accuracy lies {'in' if within else 'outside'} its range. "
        f"{summary.rests_on(trust, run.record.settings)}"
    )


def _doubts(run: Run) -> Iterator[str]:
    """How many images are in doubt."""
    N, trust = len(run.names), run.record.trust
    if run.reliability is not None:
        odds = int((run.reliability <= 0.5).sum())
        yield (
            f"Of {odds:,} of the {N:,} images ({percent(odds / N)} %), half of the members or more say another class: "
            "look at these first."
        )
    else:
        unsure = int((run.confidence < 0.5).sum())
        yield (
            f"{unsure:,} of {N:,} images ({percent(unsure / N)} %) have a confidence below 50 %: look at these first."
        )
    if trust is not None and trust.unfamiliar:
        yield (
            f"{percent(trust.unfamiliar)} % of the images look like no class of the source. They are given one all the "
            "same."
        )


FEATURES = {
    "f": "the features",
    "h": "the features together with the predicted classes",
    "f_hat_d": "the features that the classifier reads, without what tells the domains apart",
    "f_hat_c": "the features that were to become alike, with what tells the classes apart",
    "M_s": "the features of the source’s network",
    "M_t": "the features of the target’s network",
}
"""What the discriminators read, by the name that the method's equations give it."""


def domain_error(run: Run) -> list[Section]:
    """The errors of the method's discriminators, with words for what they read."""
    return [
        {"name": name, "words": FEATURES.get(name), "error": error} for name, error in run.record.domain_error.items()
    ]


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
