"""Choosing among candidates for one target without its labels: gates, a vote, and "undecided" where it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from acclimate.errors import DataError
from acclimate.trust.validators import (
    VALIDATORS,
    Classes,
    Evidence,
    Floats,
    agreement,
    ballots,
    clusters,
    entropies,
    graph_of,
    nearest,
    source_accuracy,
    tally,
)

LEAST_CANDIDATES = 4
LEAST_OF_SOURCE_ACCURACY = 0.9  # of source-only's on the held-out source
LEAST_OF_CLASSES = 0.5  # of the effective number of classes that the target is estimated to hold
LEAST_OF_CLASS = 0.1  # of the images that a class is estimated to have
FAR_APART = 0.1  # share of the images on which two candidates differ, from which on they are not nearly the same
TO_LABEL = 30

LEADING = ("estimated_gain", "vote", "frozen_class_ami", "im")
"""The scores of which one has to bear out the choice: the first that all candidates have decides.

They are what source-only, the candidate and the frozen features say together, what the candidates say together, what
the frozen features say, and the certainty.
"""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A trained model that may be chosen.

    Attributes:
        name: Its name, which no other candidate has.
        evidence: What it says of the target, and of the held-out source where there is one. All candidates have the
            same images in the same order. The baseline's estimated shares and frozen features serve all.
        row: What it is a seed of; seeds of one row share one vote. None is a row of its own.
    """

    name: str
    evidence: Evidence
    row: str | None = None


@dataclass(frozen=True)
class Judged:
    """A candidate with what was found of it.

    Attributes:
        name: Its name.
        failed: The gates that it does not pass, a sentence each. With one, it cannot be chosen and has no vote.
        scores: The figure of each validator, the larger the better; none of them is an accuracy.
        refused: Why a validator has no figure, by validator.
        share_changed: The share of the target's images that it classifies otherwise than source-only does.
    """

    name: str
    failed: tuple[str, ...]
    scores: Mapping[str, float]
    refused: Mapping[str, str]
    share_changed: float


@dataclass(frozen=True)
class Choice:
    """What is chosen, or why nothing is.

    Attributes:
        candidates: All, the best by the vote first, those that fail a gate last.
        chosen: The name of the chosen candidate; None is "undecided".
        reason: One sentence.
        leaders: The candidate that each of the leading scores puts first.
        to_label: Where it is undecided, positions of target images on which the leaders differ, at most 30 at random:
            their labels would decide.
    """

    candidates: tuple[Judged, ...]
    chosen: str | None
    reason: str
    leaders: Mapping[str, str]
    to_label: tuple[int, ...]


def choose(candidates: Sequence[Candidate], classes: Sequence[str], *, baseline: str, seed: int = 0) -> Choice:
    """Choose a candidate of those that pass the gates: by the estimated gain, or without frozen features by their vote.

    A candidate passes if its predictions are finite, it keeps 90 % of the baseline's accuracy on the held-out source,
    and it predicts at least half as many classes as the target is estimated to hold and at least a tenth of the
    images of each class that is estimated to be common. Each that passes has one vote an image, near-duplicates and
    seeds of one row share one. The winner has the largest `estimated_gain`; without frozen features it agrees best with
    the majority. Ties go to the better `im_shares`.

    It is undecided where no other of the leading scores names the same candidate, or one that differs from it on at
    most 10 % of the images, and where no candidate passes.

    Args:
        candidates: At least four, the baseline among them.
        classes: The K names of the classes.
        baseline: The name of the candidate without adaptation. Where it has no estimate of the shares, its mean
            probabilities stand in for one.
        seed: Seed of the images to label.

    Raises:
        DataError: There are too few candidates, or they do not belong together.
    """
    _check(candidates, classes, baseline)
    candidates = sorted(candidates, key=lambda c: c.name)  # so that not even last bits depend on their order
    finite = [c for c in candidates if _finite(c)]
    before = next((c for c in finite if c.name == baseline), None)
    if before is None:
        raise DataError(f"The predictions of {baseline}, against which the others are judged, are not finite.")
    (p_before,) = before.evidence.need("vote", "p_target")
    shares = before.evidence.shares if before.evidence.shares is not None else p_before.mean(0)

    failed = {c.name: _gates(c, before, shares, classes) for c in candidates}
    passing = [c for c in finite if not failed[c.name]]
    everyone = np.stack([c.evidence.need("vote", "p_target")[0] for c in finite])  # (m, n_T, K)
    predictions = {c.name: p.argmax(1) for c, p in zip(finite, everyone, strict=True)}
    votes = _vote(passing, predictions, len(classes))
    shared = {"shares": shares, "p_candidates": everyone, "p_before": p_before, **_structure(before.evidence)}
    judged = []
    for candidate in candidates:
        if candidate not in finite:
            judged.append(Judged(candidate.name, failed[candidate.name], {}, {}, 0.0))
            continue
        classed = predictions[candidate.name]
        scores, refused = _scores(replace(candidate.evidence, **shared))
        if votes is not None:
            scores["vote"] = agreement(classed, votes)
        changed = float((classed != predictions[baseline]).mean())
        judged.append(Judged(candidate.name, failed[candidate.name], scores, refused, changed))
    lead = leading([j for j in judged if not j.failed])
    judged.sort(key=lambda j: (bool(j.failed), -j.scores.get(lead, 0.0), -j.scores.get("im_shares", 0.0), j.name))
    return _decide(judged, predictions, seed)


def leading(judged: Sequence[Judged]) -> str:
    """The score that decides among these: the estimated gain if all have one, else the vote."""
    return LEADING[0] if all(LEADING[0] in j.scores for j in judged) else "vote"


def _check(candidates: Sequence[Candidate], classes: Sequence[str], baseline: str) -> None:
    """Refuse candidates that cannot be ranked, or not against each other."""
    names = [c.name for c in candidates]
    if len(candidates) < LEAST_CANDIDATES:
        raise DataError(
            f"Choosing needs at least {LEAST_CANDIDATES} candidates, not {len(candidates)}: fewer cannot outvote one."
        )
    if len(set(names)) < len(names):
        raise DataError("Two candidates have the same name: give each its own.")
    if baseline not in names:
        raise DataError(f"{baseline} is not among the candidates: add it, since all others are judged against it.")
    shapes = set()
    for candidate in candidates:
        p = candidate.evidence.p_target
        if p is None:
            raise DataError(f"{candidate.name} has no predictions of the target: give p_target.")
        shapes.add(p.shape)
    if len(shapes) > 1 or next(iter(shapes))[1] != len(classes):
        raise DataError("The candidates' predictions are not of the same images and classes: compare runs of one task.")


def _finite(candidate: Candidate) -> bool:
    return candidate.evidence.p_target is not None and bool(np.isfinite(candidate.evidence.p_target).all())


def _gates(candidate: Candidate, before: Candidate, shares: Floats, classes: Sequence[str]) -> tuple[str, ...]:
    """The gates that a candidate does not pass, a sentence each."""
    if not _finite(candidate):
        return ("Its predictions are not finite.",)
    (p,) = candidate.evidence.need("vote", "p_target")
    n, K = p.shape
    failed = []
    mine, base = (_accuracy(c.evidence) for c in (candidate, before))
    if mine is not None and base is not None and mine < LEAST_OF_SOURCE_ACCURACY * base:
        failed.append(
            f"It is right on {100 * mine:.1f} % of the held-out source, less than {LEAST_OF_SOURCE_ACCURACY} times the "
            f"{100 * base:.1f} % of {before.name}."
        )
    counts = np.bincount(p.argmax(1), minlength=K)
    effective, expected = (float(np.exp(entropies(q))) for q in (counts / n, shares))
    if effective < LEAST_OF_CLASSES * expected:
        failed.append(
            f"It predicts {effective:.1f} classes in effect, fewer than half of the {expected:.1f} that the target is "
            "estimated to hold."
        )
    common = shares > 1 / (2 * K)
    lost = np.flatnonzero(common & (counts < LEAST_OF_CLASS * shares * n)).tolist()
    failed += [
        f"It predicts “{classes[k]}” for {counts[k]:,} images, where about {shares[k] * n:,.0f} are estimated."
        for k in lost
    ]
    return tuple(failed)


def _accuracy(evidence: Evidence) -> float | None:
    """The accuracy on the held-out source, where there is one."""
    return None if evidence.p_source is None or evidence.y_source is None else source_accuracy(evidence)


def _vote(passing: Sequence[Candidate], predictions: Mapping[str, Classes], K: int) -> Floats | None:
    """The votes (n_T, K) of the candidates that pass the gates; None if none does."""
    if not passing:
        return None
    voters = np.stack([predictions[c.name] for c in passing])
    rows = [c.row if c.row is not None else c.name for c in passing]
    return tally(voters, ballots(voters, rows), K)


def _structure(evidence: Evidence) -> dict[str, Any]:
    """The structure of the frozen features, which is every candidate's, so that it is found once."""
    if evidence.frozen_target is None:
        return {}
    p, f = evidence.need("frozen_class_ami", "p_target", "frozen_target")
    K = p.shape[1]
    found = {"frozen_target": f, "graph": graph_of(f, evidence.seed)}
    if len(f) < K:
        return found
    return found | {"clusters": clusters(f, K, evidence.seed), "neighbours": nearest(f, evidence.seed)}


def _scores(evidence: Evidence) -> tuple[dict[str, float], dict[str, str]]:
    """The figure of every validator that has one, and why the others have none."""
    scores, refused = {}, {}
    for name, validator in VALIDATORS.items():
        if name == "vote":  # that of the candidates that pass, which is not each candidate's alone
            continue
        try:
            scores[name] = validator(evidence)
        except DataError as error:
            refused[name] = str(error)
    return scores, refused


def _decide(judged: Sequence[Judged], predictions: Mapping[str, Classes], seed: int) -> Choice:
    """Choose the first of the ranked candidates, if the leading scores do not contradict each other."""
    passing = [j for j in judged if not j.failed]
    if not passing:
        return Choice(tuple(judged), None, "Undecided: no candidate passes the gates.", {}, ())
    leaders = {
        score: max((j for j in passing if score in j.scores), key=lambda j: j.scores[score]).name
        for score in LEADING
        if any(score in j.scores for j in passing)
    }
    lead, winner = leading(passing), passing[0]
    leaders[lead] = winner.name  # its ties are broken by im_shares
    others = {score: name for score, name in leaders.items() if score != lead}
    apart = [predictions[name] != predictions[winner.name] for name in others.values()]
    if apart and all(differ.mean() > FAR_APART for differ in apart):
        where = np.flatnonzero(np.any(apart, axis=0))
        drawn = np.random.default_rng(seed).permutation(where)[:TO_LABEL]
        named = ", ".join(f"{score} names {name}" for score, name in leaders.items())
        reason = f"Undecided: {named}, which differ on many images; label {len(drawn)} of these to decide."
        return Choice(tuple(judged), None, reason, leaders, tuple(sorted(drawn.tolist())))
    figure = 100 * winner.scores[lead]
    if lead == "vote":
        reason = f"{winner.name} agrees best with the vote of the candidates, on {figure:.0f} % of the images."
    else:
        reason = f"{winner.name} is estimated to gain most over the baseline, {figure:.0f} points."
    return Choice(tuple(judged), winner.name, reason, leaders, ())
