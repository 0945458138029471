"""Signs that adaptation has done harm, found without a label of the target.

Each check looks at one thing and returns a `Finding` with a sentence, or None where there is nothing to say. Most
compare a run with source-only on the same images. None of them is proof: a note is a reason to look, and two notes
make a warning. What decides, `Limits`, was set on runs whose accuracy is known, for all domains and methods at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from acclimate.errors import DataError
from acclimate.trust.consensus import agreement
from acclimate.trust.estimate import largest_change
from acclimate.trust.validators import (
    Classes,
    Evidence,
    Floats,
    clusters,
    entropies,
    frozen_class_ami,
    frozen_reverse_accuracy,
    nearest,
    neighbour_consistency,
    source_accuracy,
)

Check: TypeAlias = Literal[
    "bound",
    "gain",
    "collapse",
    "shares",
    "clusters",
    "neighbours",
    "reverse",
    "source",
    "adversary",
    "settled",
    "members",
    "unknown",
]
Level: TypeAlias = Literal["fact", "note", "warning"]


@dataclass(frozen=True)
class Limits:
    """From where on a check has something to say. All are fractions.

    Attributes:
        gain: The estimated change of the accuracy below which adaptation has probably done harm.
        effective: Collapse: of the classes that the target is estimated to hold, the part that is still predicted.
        lost: Collapse: of the images that a common class is estimated to have, the part that is still predicted.
        shares: How much further the predicted shares may lie from the estimate than source-only's, in total variation.
        clusters: Drop of the adjusted mutual information with the clusters of frozen features.
        neighbours: Drop of the share of nearest frozen neighbours that are of one class.
        reverse: Drop of the balanced accuracy on the source, taught by the predictions.
        source: Drop of the accuracy on the held-out source.
        adversary: Domain error, as a fraction of 50, at which the discriminator is sure of every image.
        settled: Predictions that changed in the last quarter of training.
        members: Mean pairwise agreement of the members.
        unknown: Images that look like no class of the source.
    """

    gain: float = -0.03
    effective: float = 0.5
    lost: float = 0.1
    shares: float = 0.5
    clusters: float = 0.05
    neighbours: float = 0.05
    reverse: float = 0.25
    source: float = 0.1
    adversary: float = 0.9
    settled: float = 0.4
    members: float = 0.6
    unknown: float = 0.15


LIMITS = Limits()


@dataclass(frozen=True)
class Finding:
    """What a check has to say.

    Attributes:
        check: The check's name.
        level: A "fact" holds whatever happened; a "note" is a reason to look; a "warning" is one by itself.
        sentence: For the user.
        figures: The numbers behind it, fractions unless the sentence says otherwise.
    """

    check: Check
    level: Level
    sentence: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Findings:
    """What all checks have to say of a run.

    Attributes:
        found: In the order of the checks, the bound first.
        level: "warning" for one or for two notes, "note" for one note, "fact" for none.
    """

    found: tuple[Finding, ...]
    level: Level


@dataclass(frozen=True, eq=False)
class Outcome:
    """What is known of a finished run without a label of the target. A check that lacks what it needs says nothing.

    Attributes:
        classes: K names.
        after: What the run says: p_target, and where they are there p_source, y_source, frozen_target, frozen_source
            and the estimated shares.
        before: What source-only says of the same images.
        domain_error: By feature and by domain, the discriminator's error from 0 to 50, as in record.json.
        everywhere: The classes (N,) that source-only predicts and those of the run, of all images, where the evidence
            is of a sample: the bound is of all of them.
        gain: What `estimate.estimate_gain` said of the run.
        changed_late: The share of the predictions that changed in the last quarter of training.
        members: (m, n_T) the classes that the members of a consensus predict.
        unknown: (n_T,) bool, the images that look like no class of the source.
    """

    classes: Sequence[str]
    after: Evidence
    before: Evidence | None = None
    domain_error: Mapping[str, Mapping[str, float]] | None = None
    everywhere: tuple[Classes, Classes] | None = None
    gain: float | None = None
    changed_late: float | None = None
    members: Classes | None = None
    unknown: npt.NDArray[np.bool_] | None = None


def examine(outcome: Outcome, limits: Limits = LIMITS) -> Findings:
    """Run every check for which there is evidence."""
    after, before = outcome.after, outcome.before
    (p,) = after.need("examine", "p_target")
    classes = p.argmax(1)
    found: list[Finding | None] = []
    if before is not None:
        (p_before,) = before.need("examine", "p_target")
        found.append(bound(*(outcome.everywhere or (p_before.argmax(1), classes))))
    if outcome.gain is not None:
        found.append(likely_change(outcome.gain, limits))
    shares = _shares(after, before)
    if shares is not None:
        found.append(collapse(classes, shares, outcome.classes, limits))
    if before is not None:
        if after.shares is not None:
            found.append(shift_of_shares(p_before.argmax(1), classes, after.shares, outcome.classes, limits))
        found += _structure(before, after, limits)
    found.append(adversary(outcome.domain_error or {}, limits))
    if outcome.changed_late is not None:
        found.append(settled(outcome.changed_late, limits))
    if outcome.members is not None:
        found.append(members_at_odds(outcome.members, limits))
    if outcome.unknown is not None:
        found.append(unknown_classes(outcome.unknown, limits))
    there = tuple(finding for finding in found if finding is not None)
    return Findings(there, severity(there))


def severity(found: Sequence[Finding]) -> Level:
    """One note is a note; two, or a warning, are a warning."""
    levels = [finding.level for finding in found]
    if "warning" in levels or levels.count("note") >= 2:
        return "warning"
    return "note" if "note" in levels else "fact"


# --- the checks -----------------------------------------------------------------------------------------------------


def bound(before: Classes, after: Classes) -> Finding:
    """How far accuracy can have moved at most: by the share of images whose class changed. Exact, for any labels."""
    changed = largest_change(before, after)
    return Finding(
        "bound",
        "fact",
        f"Adaptation changed {_percent(changed)} of the predictions, so it cannot have moved the accuracy by more than "
        f"{100 * changed:.1f} points either way.",
        {"share_changed": changed},
    )


def likely_change(gain: float, limits: Limits = LIMITS) -> Finding:
    """Whether adaptation has probably helped or done harm. A warning by itself where it has done harm.

    Args:
        gain: The estimated change of the accuracy.
        limits: From where on it is a warning.
    """
    figures, points = {"gain": gain}, round(abs(100 * gain))
    about = f"about {points} point{'' if points == 1 else 's'} of accuracy"
    judge = "judging by both models and the class means, voting over similar images"
    if gain < limits.gain:
        return Finding("gain", "warning", f"Adaptation has probably cost {about}, {judge}.", figures)
    if abs(gain) < 0.01:
        return Finding("gain", "fact", f"Adaptation has probably changed the accuracy little, {judge}.", figures)
    change = "gained" if gain > 0 else "cost"
    return Finding("gain", "fact", f"Adaptation has probably {change} {about}, {judge}.", figures)


def collapse(after: Classes, shares: Floats, classes: Sequence[str], limits: Limits = LIMITS) -> Finding | None:
    """Classes that are no longer predicted, though the target is estimated to hold them.

    A note where some are lost, since a target may lack them; a warning where most images have fallen to a few classes.

    Args:
        after: (n_T,) predicted classes.
        shares: (K,) estimated shares of the classes.
        classes: K names.
        limits: From where on it is one.
    """
    n, K = len(after), len(shares)
    counts = np.bincount(after, minlength=K)
    effective, expected = (float(np.exp(entropies(np.asarray(q)))) for q in (counts / n, shares))
    lost = [k for k in range(K) if shares[k] > 1 / (2 * K) and counts[k] < limits.lost * shares[k] * n]
    figures = {"effective_classes": effective, "expected_classes": expected, "lost_classes": float(len(lost))}
    if effective < limits.effective * expected:
        sentence = (
            f"The model predicts {effective:.1f} classes in effect, where about {expected:.1f} are expected: most "
            "images have fallen to a few classes."
        )
        return Finding("collapse", "warning", sentence, figures)
    if lost:
        named = ", ".join(f"“{classes[k]}” ({counts[k]:,} images, about {shares[k] * n:,.0f} expected)" for k in lost)
        sentence = f"The model hardly predicts {named} any more: look whether the target has these classes."
        return Finding("collapse", "note", sentence, figures)
    return None


def shift_of_shares(
    before: Classes, after: Classes, shares: Floats, classes: Sequence[str], limits: Limits = LIMITS
) -> Finding | None:
    """Predicted shares that lie far further from the estimated ones than source-only's: marginal alignment does that.

    Args:
        before: (n_T,) the classes that source-only predicts.
        after: (n_T,) predicted classes.
        shares: (K,) estimated shares of the classes.
        classes: K names.
        limits: From where on it is one.
    """
    K = len(shares)
    was, now = (np.bincount(c, minlength=K) / len(c) for c in (before, after))
    distance_before, distance = (0.5 * float(abs(q - shares).sum()) for q in (was, now))
    if distance - distance_before <= limits.shares:
        return None
    k = int(abs(now - shares).argmax())
    sentence = (
        f"The predicted shares of the classes have moved away from the estimated ones: “{classes[k]}” has "
        f"{_percent(now[k])} of the images, where {_percent(shares[k])} are estimated."
    )
    return Finding("shares", "note", sentence, {"distance_before": distance_before, "distance": distance})


def lost_clusters(before: float, after: float, limits: Limits = LIMITS) -> Finding | None:
    """Classes that follow the groups of similar images less than source-only's do.

    Args:
        before: `validators.frozen_class_ami` of source-only.
        after: That of the run.
        limits: From where on it is a note.
    """
    if before - after <= limits.clusters:
        return None
    sentence = (
        "The predicted classes follow the natural groups of the images less well than before adaptation "
        f"(agreement {after:.2f}, before {before:.2f})."
    )
    return Finding("clusters", "note", sentence, {"before": before, "after": after})


def scattered(before: float, after: float, limits: Limits = LIMITS) -> Finding | None:
    """Similar images that are given the same class less often than by source-only.

    Args:
        before: `validators.neighbour_consistency` of source-only.
        after: That of the run.
        limits: From where on it is a note.
    """
    if before - after <= limits.neighbours:
        return None
    sentence = (
        f"Similar images are given the same class in {_percent(after)} of cases, less often than before adaptation "
        f"({_percent(before)}): classes have been scattered."
    )
    return Finding("neighbours", "note", sentence, {"before": before, "after": after})


def lost_way_back(before: float, after: float, limits: Limits = LIMITS) -> Finding | None:
    """Predictions that teach the source's classes less well than source-only's do.

    Args:
        before: `validators.frozen_reverse_accuracy` of source-only.
        after: That of the run.
        limits: From where on it is a note.
    """
    if before - after <= limits.reverse:
        return None
    sentence = (
        f"A classifier taught by the predictions is right on {_percent(after)} of the source, where source-only's "
        f"predictions teach {_percent(before)}: classes have been mixed up."
    )
    return Finding("reverse", "note", sentence, {"before": before, "after": after})


def forgotten_source(before: float, after: float, limits: Limits = LIMITS) -> Finding | None:
    """Held-out source images of which fewer are right than of source-only.

    Args:
        before: The accuracy of source-only on the held-out source.
        after: That of the run.
        limits: From where on it is a note.
    """
    if before - after <= limits.source:
        return None
    sentence = (
        f"The model is right on {_percent(after)} of the held-out source, where source-only is right on "
        f"{_percent(before)}: it has unlearnt the classes."
    )
    return Finding("source", "note", sentence, {"before": before, "after": after})


def adversary(domain_error: Mapping[str, Mapping[str, float]], limits: Limits = LIMITS) -> Finding | None:
    """A discriminator that still tells the domains apart, so that the features were never aligned.

    Args:
        domain_error: By feature and by domain, the error from 0 (cannot tell) to 50 (certain).
        limits: From where on it is a note.
    """
    means = [float(np.mean(list(domains.values()))) for domains in domain_error.values() if domains]
    if not means or min(means) <= 50 * limits.adversary:
        return None
    sentence = (
        "The discriminator still tells the domains apart with certainty, so the features of source and target were not "
        "aligned."
    )
    return Finding("adversary", "note", sentence, {"domain_error": min(means)})


def settled(changed: float, limits: Limits = LIMITS) -> Finding | None:
    """Predictions that still changed in the last quarter of training.

    Args:
        changed: Their share.
        limits: From where on it is a note.
    """
    if changed <= limits.settled:
        return None
    sentence = (
        f"Training had not settled: {_percent(changed)} of the predictions changed in its last quarter, so another "
        "seed may end elsewhere."
    )
    return Finding("settled", "note", sentence, {"share_changed": changed})


def members_at_odds(members: Classes, limits: Limits = LIMITS) -> Finding | None:
    """Members of a consensus that agree on few images, so that their vote is worth little.

    Where two disagree, one is wrong: their errors add up to at least the share on which they do.

    Args:
        members: (m, n_T) predicted classes of at least two members.
        limits: From where on it is a note.

    Raises:
        DataError: There are fewer than two members.
    """
    if len(members) < 2:
        raise DataError("Agreement needs at least two members: give the predictions of more.")
    agree = agreement(members)
    if agree >= limits.members:
        return None
    sentence = (
        f"Two members agree on only {_percent(agree)} of the images on average, so on average a member is wrong on "
        f"at least {_percent((1 - agree) / 2)}."
    )
    return Finding("members", "note", sentence, {"agreement": agree})


def unknown_classes(unknown: npt.NDArray[np.bool_], limits: Limits = LIMITS) -> Finding | None:
    """Images that look like no class of the source.

    Args:
        unknown: (n_T,) which do.
        limits: From where on it is a note.
    """
    share = float(unknown.mean())
    if share <= limits.unknown:
        return None
    sentence = (
        f"{_percent(share)} of the images look like no class of the source: they are classified all the same, so look "
        "at them before you use the predictions."
    )
    return Finding("unknown", "note", sentence, {"share": share})


def _shares(after: Evidence, before: Evidence | None) -> Floats | None:
    """The shares that the target is held to have: those estimated, else those that source-only predicts."""
    if after.shares is not None or before is None or before.p_target is None:
        return after.shares
    shares: Floats = before.p_target.mean(0)
    return shares


def _structure(before: Evidence, after: Evidence, limits: Limits) -> list[Finding | None]:
    """The checks that compare a figure of the run with source-only's, for which there is evidence on both sides."""
    found: list[Finding | None] = []
    frozen, source, y = after.frozen_target, after.frozen_source, after.y_source
    if frozen is not None and before.p_target is not None and len(frozen) > before.p_target.shape[1]:
        shared: dict[str, Any] = {"frozen_target": frozen, "seed": after.seed}
        shared |= {"clusters": clusters(frozen, before.p_target.shape[1], after.seed)}
        shared |= {"neighbours": nearest(frozen, after.seed), "frozen_source": source, "y_source": y}
        was, now = (Evidence(p_target=e.p_target, **shared) for e in (before, after))
        found.append(lost_clusters(frozen_class_ami(was), frozen_class_ami(now), limits))
        found.append(scattered(neighbour_consistency(was), neighbour_consistency(now), limits))
        if source is not None and y is not None:
            found.append(lost_way_back(frozen_reverse_accuracy(was), frozen_reverse_accuracy(now), limits))
    if all(e.p_source is not None and e.y_source is not None for e in (before, after)):
        found.append(forgotten_source(source_accuracy(before), source_accuracy(after), limits))
    return found


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
