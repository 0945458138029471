from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import softmax

from acclimate.errors import DataError
from acclimate.trust import shares
from acclimate.trust.shares import bbse, calibrate, calibrated, mlls

Floats = npt.NDArray[np.float64]
Classes = npt.NDArray[np.int64]

TARGET = np.array([0.1, 0.2, 0.3, 0.4])


def certain(c: Classes, K: int) -> Floats:
    return 0.7 * np.eye(K)[c] + 0.3 / K


def domain(n: int, shares: Floats, seed: int, moved: float = 0.0) -> tuple[Floats, Classes]:
    """n images of four classes: a classifier's over-confident probabilities, and the classes."""
    rng = np.random.default_rng(seed)
    y = rng.choice(4, n, p=shares)
    x = rng.normal(size=(n, 4)) + 2.2 * np.eye(4)[y] + moved * np.array([1.0, 0, 0, 0])
    return softmax(2 * 2.2 * x, axis=1), y  # 2.2 x are the true logits where the classes have equal shares


def source(seed: int = 0, n: int = 400) -> tuple[Floats, Classes]:
    return domain(n, np.full(4, 0.25), seed)


# BBSE


def test_bbse_by_hand() -> None:
    # A = [[0.9, 0.2], [0.1, 0.8]] and mu = (0.55, 0.45), which is A (1/2, 1/2).
    y = np.repeat([0, 1], [20, 10])
    c = np.concatenate([np.arange(20) >= 18, np.arange(10) >= 2]).astype(np.int64)
    found = bbse(certain(c, 2), y, certain(np.repeat([0, 1], [55, 45]), 2))
    assert found.shares == pytest.approx([0.5, 0.5], abs=1e-6)


def test_a_share_is_never_negative() -> None:
    y = np.repeat([0, 1], 50)
    c = np.concatenate([np.arange(50) >= 40, np.arange(50) >= 10]).astype(np.int64)  # A = [[0.8, 0.2], [0.2, 0.8]]
    found = bbse(certain(c, 2), y, certain(np.repeat([0, 1], [95, 5]), 2))
    assert found.shares == pytest.approx([1, 0], abs=1e-6)


def test_a_class_without_held_out_images_is_refused() -> None:
    p, y = source()
    with pytest.raises(DataError, match="a class has no held-out image: hold out a larger part of the source"):
        bbse(p[y != 2], y[y != 2], p)


def test_a_classifier_that_confuses_the_classes_is_refused() -> None:
    p, y = source()
    p[:, 3] = p[:, 2] * 0.5  # the last class is never predicted
    for estimate in (bbse, mlls):
        with pytest.raises(DataError, match=r"confuses classes of the source .* \(smallest singular value 0\.0"):
            estimate(p, y, p)


# Both


@pytest.mark.parametrize("estimate", [bbse, mlls])
def test_shares_that_differ_are_found_and_better_than_by_counting(estimate: object) -> None:
    assert callable(estimate)
    p_t, _ = domain(1500, TARGET, 1)
    found = estimate(*source(), p_t)
    assert found.shares.sum() == pytest.approx(1)
    assert found.shares == pytest.approx(TARGET, abs=0.05)
    assert (found.low <= found.shares).all()
    assert (found.shares <= found.high).all()
    assert not found.rough


@pytest.mark.parametrize("estimate", [bbse, mlls])
def test_the_seed_decides_the_intervals_and_nothing_else(estimate: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "DRAWS", 20)
    assert callable(estimate)
    p_t, _ = domain(60, TARGET, 1)
    first, again, other = (estimate(*source(n=80), p_t, seed=seed) for seed in (1, 1, 2))
    assert (first.low == again.low).all()
    assert (first.shares == other.shares).all()
    assert (first.low != other.low).any()


def test_the_order_of_images_and_classes_does_not_matter_to_the_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "DRAWS", 20)
    (p_s, y_s), (p_t, _) = source(n=100), domain(100, TARGET, 1)
    rng = np.random.default_rng(0)
    s, t, k = rng.permutation(100), rng.permutation(100), rng.permutation(4)
    place = np.argsort(k)
    for estimate in (bbse, mlls):
        plain = estimate(p_s, y_s, p_t)
        moved = estimate(p_s[s][:, k], place[y_s[s]], p_t[t][:, k])
        assert moved.shares == pytest.approx(plain.shares[k], abs=1e-4)
        assert moved.residual == pytest.approx(plain.residual, abs=1e-6)


def test_the_intervals_cover_where_only_the_shares_differ() -> None:
    covered = []
    for seed in range(40):
        p_t, _ = domain(500, TARGET, 1000 + seed)
        found = bbse(*source(seed), p_t)
        covered.append((found.low <= TARGET) & (found.high >= TARGET))
    assert np.mean(covered) >= 0.93


def test_the_residual_tells_when_the_classes_look_different_and_seldom_otherwise() -> None:
    p_s, y_s = source(n=800)
    rough = [bbse(p_s, y_s, domain(1000, TARGET, seed)[0]).rough for seed in range(20)]
    assert np.mean(rough) <= 0.2
    # In the target each image is a mixture of two classes.
    (p, _), (other, _) = domain(1000, TARGET, 1), domain(1000, TARGET, 2)
    found = bbse(p_s, y_s, (p + other) / 2)
    assert found.rough
    assert found.residual <= 2


# Calibration


def test_calibration_by_hand() -> None:
    # With the classes' logits 2.2 x, and twice that given, the inverse temperature is a half and no class is favoured.
    p, y = source(n=4000)
    theta = calibrate(p, y)
    assert theta[0] == pytest.approx(0.5, abs=0.05)
    assert theta[1:] - theta[1:].mean() == pytest.approx(np.zeros(4), abs=0.15)
    q = calibrated(p, theta)
    assert q.sum(1) == pytest.approx(np.ones(4000))
    assert q.max(1).mean() == pytest.approx((p.argmax(1) == y).mean(), abs=0.01)


def test_a_bias_of_the_classifier_is_taken_out() -> None:
    p, y = source(n=4000)
    biased = p * np.array([8.0, 1, 1, 1])
    theta = calibrate(biased / biased.sum(1, keepdims=True), y)
    assert theta[1] - theta[2:].mean() == pytest.approx(-theta[0] * np.log(8), abs=0.2)


def test_a_classifier_without_an_error_can_be_calibrated() -> None:
    y = np.arange(40) % 4
    theta = calibrate(certain(y, 4), y)
    assert np.isfinite(theta).all()
    assert 1 < theta[0] <= 20
