"""Signs of harm: what each check says, when it says nothing, and how grave all of it is together."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from acclimate.errors import DataError
from acclimate.trust.validators import Evidence
from acclimate.trust.warnings import (
    LIMITS,
    Finding,
    Findings,
    Limits,
    Outcome,
    adversary,
    bound,
    collapse,
    examine,
    forgotten_source,
    likely_change,
    lost_clusters,
    lost_way_back,
    members_at_odds,
    scattered,
    settled,
    severity,
    shift_of_shares,
    unknown_classes,
)

CLASSES = ("cat", "dog", "owl")
N = 120
TRUTH = np.arange(N) % 3
EQUAL = np.ones(3) / 3


def sentence(finding: Finding | None) -> str:
    assert finding is not None
    return finding.sentence


# --- the bound ------------------------------------------------------------------------------------------------------


@given(hnp.arrays(np.int64, (3, 40), elements=st.integers(0, 3)))
def test_accuracy_never_moves_by_more_than_the_share_that_changed(three: np.ndarray) -> None:
    truth, before, after = three
    moved = abs((after == truth).mean() - (before == truth).mean())
    assert moved <= bound(before, after).figures["share_changed"] + 1e-12


def test_the_bound_is_a_fact_whatever_happened() -> None:
    finding = bound(TRUTH, np.where(np.arange(N) < 30, 0, TRUTH))
    assert finding.level == "fact"
    assert finding.sentence == (
        "Adaptation changed 16.7 % of the predictions, so it cannot have moved the accuracy by more than 16.7 points "
        "either way."
    )


def test_an_estimated_loss_is_a_warning_and_a_gain_is_a_fact() -> None:
    loss, nothing, gain = (likely_change(change) for change in (-0.121, 0.004, 0.08))
    assert loss.level == "warning"
    assert loss.sentence.startswith("Adaptation has probably cost about 12 points of accuracy, judging by both models")
    assert [nothing.level, gain.level, likely_change(-0.02).level] == ["fact"] * 3
    assert nothing.sentence.startswith("Adaptation has probably changed the accuracy little")
    assert gain.sentence.startswith("Adaptation has probably gained about 8 points")


# --- one check at a time --------------------------------------------------------------------------------------------


def test_collapse_names_the_classes() -> None:
    owls = np.where(TRUTH == 2, 0, TRUTH)
    finding = collapse(owls, EQUAL, CLASSES)
    assert sentence(finding) == (
        "The model hardly predicts “owl” (0 images, about 40 expected) any more: look whether the target has these "
        "classes."
    )
    assert finding is not None
    assert finding.level == "note"  # a target may lack a class
    assert collapse(TRUTH, EQUAL, CLASSES) is None
    assert collapse(owls, np.array([0.6, 0.4, 0.0]), CLASSES) is None  # the target is not held to have any
    rare = np.array([0.5, 0.4, 0.1])  # below half of an equal share, so it may be missing
    assert collapse(owls, rare, CLASSES) is None


def test_collapse_to_few_classes_of_many() -> None:
    names = [f"class {k}" for k in range(10)]
    lopsided = np.repeat(np.arange(10), [910, *[10] * 9])
    shares = np.array([0.52, 0.09, *[0.04875] * 8])
    assert sentence(collapse(lopsided, shares, names)) == (
        "The model predicts 1.6 classes in effect, where about 5.7 are expected: most images have fallen to a few "
        "classes."
    )


def test_shares_that_moved_away_from_the_estimate() -> None:
    moved = np.where(TRUTH == 1, 0, TRUTH)
    limits = replace(LIMITS, shares=0.3)
    assert sentence(shift_of_shares(TRUTH, moved, EQUAL, CLASSES, limits)) == (
        "The predicted shares of the classes have moved away from the estimated ones: “cat” has 66.7 % of the images, "
        "where 33.3 % are estimated."
    )
    assert shift_of_shares(TRUTH, moved, EQUAL, CLASSES, replace(LIMITS, shares=0.34)) is None
    assert shift_of_shares(moved, TRUTH, EQUAL, CLASSES, limits) is None  # nearer than before
    assert shift_of_shares(moved, moved, EQUAL, CLASSES, limits) is None


@pytest.mark.parametrize(
    ("check", "limit", "words"),
    [
        (lost_clusters, LIMITS.clusters, "follow the natural groups of the images less well than before adaptation"),
        (scattered, LIMITS.neighbours, "Similar images are given the same class in"),
        (lost_way_back, LIMITS.reverse, "A classifier taught by the predictions is right on"),
        (forgotten_source, LIMITS.source, "The model is right on"),
    ],
)
def test_figures_that_drop(check: Any, limit: float, words: str) -> None:
    finding = check(0.8, 0.8 - limit - 0.01)
    assert words in finding.sentence
    assert finding.level == "note"
    assert finding.figures == {"before": 0.8, "after": 0.8 - limit - 0.01}
    assert check(0.8, 0.8 - limit + 0.001) is None
    assert check(0.8, 0.9) is None


def test_an_adversary_that_won() -> None:
    certain = {"f": {"source": 49.0, "target": 48.0}}
    assert "still tells the domains apart with certainty" in sentence(adversary(certain))
    assert adversary({"f": {"source": 20.0, "target": 30.0}}) is None
    assert adversary({**certain, "g": {"source": 3.0, "target": 5.0}}) is None  # one of two features is aligned
    assert adversary({}) is None


def test_training_that_had_not_settled() -> None:
    assert sentence(settled(0.5)).startswith("Training had not settled: 50.0 % of the predictions changed")
    assert settled(0.0) is None


def test_members_at_odds() -> None:
    others = [(TRUTH + k * (np.arange(N) % 2)) % 3 for k in (1, 2)]  # each pair agrees on one half
    assert sentence(members_at_odds(np.stack([TRUTH, *others]))) == (
        "Two members agree on only 50.0 % of the images on average, so on average a member is wrong on at least 25.0 %."
    )
    assert members_at_odds(np.stack([TRUTH, TRUTH])) is None
    with pytest.raises(DataError, match="at least two members"):
        members_at_odds(TRUTH[None])


@given(hnp.arrays(np.int64, (4, 30), elements=st.integers(0, 2)))
def test_members_are_wrong_as_often_as_the_sentence_says(drawn: np.ndarray) -> None:
    members, truth = drawn[:3], drawn[3]
    finding = members_at_odds(members, replace(LIMITS, members=1.01))
    assert finding is not None
    assert (members != truth).mean() >= (1 - finding.figures["agreement"]) / 2 - 1e-12


def test_unknown_classes() -> None:
    assert sentence(unknown_classes(np.arange(N) < 60)).startswith("50.0 % of the images look like no class")
    assert unknown_classes(np.zeros(N, bool)) is None


# --- together -------------------------------------------------------------------------------------------------------


def test_severity() -> None:
    fact, note, warning = (Finding("settled", level, "", {}) for level in ("fact", "note", "warning"))
    assert severity([]) == severity([fact, fact]) == "fact"
    assert severity([fact, note]) == "note"
    assert severity([note, note]) == severity([warning]) == "warning"


def says(classes: np.ndarray) -> np.ndarray:
    return 0.1 + 0.7 * np.eye(3)[classes]


def outcome(after: np.ndarray, before: np.ndarray = TRUTH, **more: Any) -> Outcome:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    frozen = {
        "frozen_target": 5 * np.eye(3, 6)[TRUTH] + rng.normal(size=(N, 6)) + 1,
        "frozen_source": 5 * np.eye(3, 6)[y] + rng.normal(size=(60, 6)),
        "y_source": y,
    }
    held_out = more.pop("held_out", y)
    evidence = Evidence(p_target=says(after), p_source=says(held_out), shares=EQUAL, **frozen)
    source_only = Evidence(p_target=says(before), p_source=says(y), y_source=y)
    return Outcome(CLASSES, evidence, source_only, **more)


def names(findings: Findings) -> list[str]:
    return [finding.check for finding in findings.found]


def test_a_sound_run_has_nothing_but_the_bound() -> None:
    better = np.where(np.arange(N) % 6 == 0, (TRUTH + 1) % 3, TRUTH)
    findings = examine(outcome(TRUTH, before=better))
    assert names(findings) == ["bound"]
    assert findings.level == "fact"


def test_scattered_errors_are_a_warning() -> None:
    rng = np.random.default_rng(0)
    worse = np.where(rng.random(N) < 0.4, rng.integers(0, 3, N), TRUTH)
    findings = examine(outcome(worse))
    assert {"clusters", "neighbours"} <= set(names(findings))
    assert findings.level == "warning"


def test_everything_at_once_is_told_in_order() -> None:
    y = np.arange(60) % 3
    findings = examine(
        outcome(
            np.zeros(N, int),
            held_out=(y + 1) % 3,
            domain_error={"f": {"source": 50.0, "target": 50.0}},
            changed_late=0.5,
            members=np.stack([TRUTH, (TRUTH + 1) % 3]),
            unknown=np.ones(N, bool),
        )
    )
    expected = ["bound", "collapse", "shares", "clusters", "reverse", "source", "adversary", "settled", "members"]
    assert names(findings) == [*expected, "unknown"]  # one class everywhere is consistent among neighbours
    assert findings.level == "warning"
    assert all(finding.sentence.endswith(".") for finding in findings.found)


def test_swapped_classes_are_seen_on_the_way_back() -> None:
    swapped = np.choose(TRUTH, [1, 0, 2])
    assert names(examine(outcome(swapped))) == ["bound", "reverse"]


def test_without_source_only_the_rest_is_said() -> None:
    alone = Outcome(CLASSES, Evidence(p_target=says(np.zeros(N, int)), shares=EQUAL), changed_late=0.5)
    assert names(examine(alone)) == ["collapse", "settled"]
    assert examine(Outcome(CLASSES, Evidence(p_target=says(TRUTH)))) == Findings((), "fact")


def test_without_an_estimate_source_only_tells_which_classes_to_expect() -> None:
    owls = np.where(TRUTH == 2, 0, TRUTH)
    bare = Outcome(CLASSES, Evidence(p_target=says(owls)), Evidence(p_target=says(TRUTH)))
    assert names(examine(bare)) == ["bound", "collapse"]


def test_limits_decide() -> None:
    silent = Limits(**{field.name: 2.0 for field in fields(Limits)} | {"effective": 0.0, "lost": 0.0, "members": 0.0})
    rng = np.random.default_rng(0)
    assert names(examine(outcome(rng.integers(0, 3, N)), silent)) == ["bound"]
