"""Drift: what the checks say of made samples, against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ks_2samp
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import roc_auc_score

from acclimate.errors import DataError
from acclimate.trust.drift import Reference, class_distances, drift, moved_shares, two_sample_auc
from acclimate.trust.shares import reweighted
from tiny import clouds


def probabilities(y: np.ndarray, K: int = 3, sure: float = 0.8, seed: int = 0) -> np.ndarray:
    """Probabilities (N, K) of a classifier that is right in `sure` of the cases and says so."""
    rng = np.random.default_rng(seed)
    says = np.where(rng.random(len(y)) < sure, y, (y + rng.integers(1, K, len(y))) % K)
    p = np.full((len(y), K), (1 - sure) / (K - 1))
    p[np.arange(len(y)), says] = sure
    return p


def test_two_halves_of_one_sample_are_not_told_apart() -> None:
    """The p-values of twenty pairs are spread over their range, and the areas around a half."""
    rng = np.random.default_rng(0)
    pairs = [rng.normal(size=(160, 12)) for _ in range(20)]
    found = [two_sample_auc(x[:100], x[100:], seed, permutations=50) for seed, x in enumerate(pairs)]
    areas, p = np.array(found).T
    assert abs(areas.mean() - 0.5) < 0.03
    assert (p < 0.1).mean() < 0.25
    assert 0.3 < p.mean() < 0.7


def test_a_shift_is_told_as_scikit_learn_tells_it() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(300, 8)), rng.normal(size=(200, 8)) + 0.4
    area, p = two_sample_auc(a, b, permutations=99)
    x, y = np.concatenate([a, b]), np.repeat([0, 1], [300, 200])
    order = rng.permutation(500)
    train, test = order[:400], order[400:]
    other = roc_auc_score(y[test], RidgeClassifier().fit(x[train], y[train]).decision_function(x[test]))
    assert area == pytest.approx(other, abs=0.06)
    assert p == 0.01  # the least that 99 permutations can tell


def test_a_feature_that_never_changes_tells_nothing() -> None:
    assert two_sample_auc(np.ones((100, 3)), np.ones((100, 3)), permutations=9)[0] == 0.5


def test_shares_of_the_reference_are_its_own_however_wrong_its_probabilities() -> None:
    p = np.random.default_rng(0).dirichlet([0.3, 1, 2], size=400)
    before, after, moved, chance = moved_shares(p, p, permutations=20)
    assert before == pytest.approx(p.mean(0))
    assert after == pytest.approx(before, abs=1e-3)
    assert (moved < 1e-3, chance > 0.5) == (True, True)


def test_shares_of_several_samples_are_those_of_each() -> None:
    p = np.random.default_rng(0).dirichlet([0.3, 1, 2], size=60)
    first, second = np.arange(60) < 30, np.arange(60) >= 40
    pi = np.array([[0.2, 0.3, 0.5], [0.6, 0.2, 0.2]]).T
    both = reweighted(p, pi, np.stack([first, second], 1).astype(float))
    for sample, of_it, found in zip((first, second), pi.T, both.T, strict=True):
        q = of_it
        for _ in range(400):
            weighted = p[sample] * (q / of_it)
            q = (weighted / weighted.sum(1, keepdims=True)).mean(0)
        assert found == pytest.approx(q, abs=0.02)


def test_moved_shares_are_found_behind_the_mistakes_of_the_model() -> None:
    y_ref, y_new = np.repeat([0, 1, 2], 400), np.repeat([0, 1], [900, 300])
    _, after, moved, chance = moved_shares(probabilities(y_ref), probabilities(y_new, seed=1), permutations=99)
    assert after == pytest.approx([0.75, 0.25, 0], abs=0.06)
    assert moved == pytest.approx(np.abs(np.array([0.75, 0.25, 0]) - 1 / 3).sum() / 2, abs=0.06)
    assert chance == 0.01


def test_distances_of_classes_are_those_of_scipy_with_bonferroni() -> None:
    p, q = probabilities(np.repeat([0, 1, 2], 50)), probabilities(np.repeat([0, 1, 2], [100, 30, 20]))
    D, chance = class_distances(p, q)
    assert pytest.approx([ks_2samp(p[:, k], q[:, k], method="asymp").statistic for k in range(3)]) == D
    assert chance == pytest.approx(3 * min(ks_2samp(p[:, k], q[:, k], method="asymp").pvalue for k in range(3)))


def test_what_lies_in_another_direction_is_novel() -> None:
    x, y = clouds(80, D=8)
    reference = Reference(x, probabilities(y), np.full(3, 1 / 3))
    assert (reference.distances(x) < 1e-3).all()  # these are known images
    same, _ = clouds(80, D=8, seed=1)
    assert (reference.distances(same) > 1).mean() < 0.05
    assert (reference.distances(3 * same) > 1).mean() < 0.05  # lengths tell nothing
    assert (reference.distances(-same) > 1).mean() > 0.95


def test_drift_is_a_size_beyond_the_bound_and_beyond_chance() -> None:
    x, y = clouds(150, D=8)
    reference = Reference(x, probabilities(y), np.full(3, 1 / 3))
    same, labels = clouds(40, D=8, seed=2)

    def checked(f: np.ndarray, p: np.ndarray) -> tuple[str, ...]:
        return drift(reference, f, p, reference.distances(f), np.arange(len(f))).drifted

    assert checked(same, probabilities(labels, seed=3)) == ()
    assert checked(same + 3, probabilities(labels, seed=3)) == ("classifier", "novelty")
    assert set(checked(np.repeat(same[:40], 3, 0), probabilities(np.zeros(120, int), seed=3))) >= {"outputs", "shares"}
    with pytest.raises(DataError, match=r"There are too few images to tell, 99: give at least 100."):
        checked(same[:99], probabilities(labels[:99]))
