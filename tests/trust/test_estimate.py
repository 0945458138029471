from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acclimate.trust.consensus import neighbours
from acclimate.trust.estimate import estimate_accuracy, estimate_gain, largest_change, reliability


def voters(share: float, M: int = 5, N: int = 20) -> npt.NDArray[np.int64]:
    """Voters of which every pair says the same of that share of the images."""
    votes = np.zeros((M, N), dtype=np.int64)
    votes[:, round(share * N) :] = np.arange(M)[:, None]
    return votes


def test_the_estimate_by_hand() -> None:
    found = estimate_accuracy(voters(0.6))
    value = 1 / (1 + math.exp(-0.4 - 2 * math.log(0.6 / 0.4)))
    half = 0.5 * math.sqrt(value * (1 - value) + 0.01)
    assert found.agreement == pytest.approx(0.6)
    assert (found.value, found.low, found.high) == pytest.approx((value, value - half, value + half))


@given(st.floats(0, 1))
def test_the_range_holds_the_estimate_and_is_never_certain(share: float) -> None:
    found = estimate_accuracy(voters(share))
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.high - found.low > 0.04


def test_the_more_voters_agree_the_higher_the_estimate() -> None:
    values = [estimate_accuracy(voters(share)).value for share in (0.2, 0.4, 0.6, 0.8, 0.9)]
    assert values == sorted(values)
    assert estimate_accuracy(voters(1.0)).value > 0.98
    assert estimate_accuracy(voters(0.0)).high < 0.2


@given(st.integers(1, 50), st.integers(2, 6), st.integers(0, 999))
def test_no_labels_can_part_two_models_by_more_than_what_changed(N: int, K: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    before, after, labels = rng.integers(K, size=(3, N))
    difference = (after == labels).mean() - (before == labels).mean()
    assert abs(difference) <= largest_change(before, after) + 1e-12
    assert 1 - (before == after).mean() == pytest.approx(largest_change(before, after))


def test_reliability_is_the_share_that_agrees_with_the_consensus() -> None:
    votes = np.array([[0, 1, 2], [0, 1, 0], [0, 2, 1], [0, 1, 1]])
    assert reliability(votes, np.array([0, 1, 1])) == pytest.approx([1, 0.75, 0.5])


def test_the_gain_is_estimated_from_what_the_neighbours_bear_out() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(3), 80)
    S = neighbours(rng.normal(size=(240, 8)) + 6 * np.eye(3, 8)[truth])
    means = np.where(rng.random(240) < 0.8, truth, rng.integers(3, size=240))
    good, poor = (np.where(rng.random(240) < share, truth, rng.integers(3, size=240)) for share in (0.95, 0.6))
    change = (good == truth).mean() - (poor == truth).mean()
    assert estimate_gain(poor, good, means, S, 3) == pytest.approx(change, abs=0.02)
    assert estimate_gain(good, poor, means, S, 3) == pytest.approx(-change, abs=0.02)
    assert estimate_gain(good, good, means, S, 3) == 0


def test_a_class_that_moved_into_another_counts_as_lost() -> None:
    rng = np.random.default_rng(1)
    truth = np.repeat(np.arange(3), 80)
    S = neighbours(rng.normal(size=(240, 8)) + 6 * np.eye(3, 8)[truth])
    means = np.where(rng.random(240) < 0.8, truth, rng.integers(3, size=240))
    before = np.where(rng.random(240) < 0.8, truth, rng.integers(3, size=240))
    assert estimate_gain(before, np.where(truth == 2, 0, truth), means, S, 3) < -0.1  # though its classes are clean


def test_the_agreement_of_voters_that_err_alike_is_worth_less() -> None:
    assert estimate_accuracy(voters(0.6), alike=True).value == pytest.approx(1 / (1 + math.exp(-0.4) * 0.4 / 0.6))
