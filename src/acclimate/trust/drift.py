"""Whether new images still look like the target that a model was adapted to, found without a label.

Each check compares the new images with a sample of the target. With many images every difference is beyond chance, so
what decides is its size; chance only decides that a difference counts at all. n is the number of images of the
reference, m that of the new ones, K that of the classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.stats import binomtest, ks_2samp, rankdata

from acclimate.errors import DataError
from acclimate.trust.shares import Floats, reweighted

Features: TypeAlias = npt.NDArray[np.floating]

SignKind: TypeAlias = Literal["classifier", "outputs", "shares", "novelty", "confidence"]

FEWEST = 100  # new images

MOST = 2000  # images of the reference, and of the new ones in the checks that compare samples

QUANTILE = 0.99  # of the distances among the reference: what lies further from it is novel

CHANCE = 0.01  # the probability below which a difference is not laid to chance

FOLDS = 5

RIDGE = 0.3  # of the two-sample classifier, where an image's features have the mean square 1

PERMUTATIONS = 200


@dataclass(frozen=True)
class Bounds:
    """From which size on a difference is a sign of drift.

    Attributes:
        classifier: The area under the curve of a classifier of new against reference, which is 0.5 by chance.
        outputs: The largest Kolmogorov-Smirnov distance of a class's probability.
        shares: How much of the class shares has moved, half the sum of the absolute differences.
        novelty: The share of the new images that are novel, of which the reference has 0.01.
    """

    classifier: float = 0.65
    outputs: float = 0.15
    shares: float = 0.1
    novelty: float = 0.05


BOUNDS = Bounds()


@dataclass(frozen=True, eq=False)
class Reference:
    """A sample of the target as the model saw it.

    Attributes:
        features: (n, D), which no adaptation has moved where the backbone was frozen.
        probabilities: (n, K) by the model.
        shares: (K,) of the predicted classes in the whole target.
    """

    features: Features
    probabilities: Floats
    shares: Floats

    @cached_property
    def novel_from(self) -> float:
        """The distance to the nearest other image of the reference that 99 of 100 of its images stay within."""
        return float(np.quantile(_nearest(self.features, self.features, others=True), QUANTILE))

    def distances(self, features: Features) -> Floats:
        """How far images (m, D) lie from the nearest of the reference, (m,), as a multiple of `novel_from`."""
        return _nearest(features, self.features) / max(self.novel_from, 1e-6)


@dataclass(frozen=True)
class Sign:
    """What a check has found.

    Attributes:
        check: Which one.
        size: How large the difference is, in the check's own measure.
        bound: The size from which on it is a sign of drift; None for what is told and judges nothing.
        p: The probability of such a size by chance.
        drifted: Whether the size is beyond the bound, and not by chance.
    """

    check: SignKind
    size: float
    bound: float | None
    p: float | None
    drifted: bool


@dataclass(frozen=True, eq=False)
class Drift:
    """How new images differ from the reference.

    Attributes:
        m: How many they are.
        signs: What each check has found.
        outputs: (K,) the Kolmogorov-Smirnov distance of each class's probability.
        shares_before: (K,) the class shares of the reference, the mean of its probabilities.
        shares_after: (K,) those of the new images, by maximum likelihood from there.
        confidence_before: The mean probability of the predicted class in the reference.
        confidence_after: In the new images.
    """

    m: int
    signs: tuple[Sign, ...]
    outputs: Floats
    shares_before: Floats
    shares_after: Floats
    confidence_before: float
    confidence_after: float

    @property
    def drifted(self) -> tuple[SignKind, ...]:
        """The checks that have found a sign of drift."""
        return tuple(sign.check for sign in self.signs if sign.drifted)


def drift(
    reference: Reference,
    features: Features,
    probabilities: Floats,
    distances: Floats,
    chosen: Sequence[int] | npt.NDArray[np.int64],
    seed: int = 0,
) -> Drift:
    """Compare new images with the reference.

    Args:
        reference: The sample of the target.
        features: (k, D) of a sample of the new images.
        probabilities: (m, K) of all.
        distances: (m,) of all, as `Reference.distances` gives them.
        chosen: (k,) which of all are the sample, at most `MOST`.
        seed: Of folds and permutations.

    Raises:
        DataError: There are fewer than `FEWEST` new images.
    """
    m = len(probabilities)
    if m < FEWEST:
        raise DataError(f"There are too few images to tell, {m:,}: give at least {FEWEST}.")
    p_ref, p_new = reference.probabilities, probabilities[np.asarray(chosen)]
    auc, chance_auc = two_sample_auc(reference.features, features, seed)
    D, chance_D = class_distances(p_ref, p_new)
    before, after, moved, chance_moved = moved_shares(p_ref, p_new, seed)
    beyond = int((distances > 1).sum())
    chance_novel = float(binomtest(beyond, m, 1 - QUANTILE, alternative="greater").pvalue)
    sure = [float(p.max(1).mean()) for p in (p_ref, probabilities)]
    return Drift(
        m=m,
        signs=(
            _sign("classifier", auc, BOUNDS.classifier, chance_auc),
            _sign("outputs", float(D.max()), BOUNDS.outputs, chance_D),
            _sign("shares", moved, BOUNDS.shares, chance_moved),
            _sign("novelty", beyond / m, BOUNDS.novelty, chance_novel),
            Sign("confidence", sure[1] - sure[0], None, None, drifted=False),
        ),
        outputs=D,
        shares_before=before,
        shares_after=after,
        confidence_before=sure[0],
        confidence_after=sure[1],
    )


def _sign(check: SignKind, size: float, bound: float, p: float) -> Sign:
    return Sign(check, size, bound, p, drifted=bool(size > bound and p < CHANCE))


def two_sample_auc(a: Features, b: Features, seed: int = 0, permutations: int = PERMUTATIONS) -> tuple[float, float]:
    """How well a linear classifier tells two samples apart that it was not trained on.

    The classifier is ridge regression on the standardised features, of 1 for `b` and 0 for `a`, cross-validated over
    five folds. Its solution is linear in what it regresses on, so it is trained anew for every permutation as well, and
    the p-value is exact but for the number of permutations.

    Args:
        a: (n, D).
        b: (m, D).
        seed: Of folds and permutations.
        permutations: How many.

    Returns:
        The area under the curve, the mean over the folds, and the share of permutations that reach it.

    Source: Lopez-Paz and Oquab, ICLR 2017, with ridge regression in place of a network.
    """
    x = np.concatenate([a, b]).astype(np.float32)
    x -= x.mean(0)
    spread = x.std(0)
    x = x[:, spread > 0] / spread[spread > 0]
    gram = x @ x.T / max(x.shape[1], 1)  # (n + m, n + m)
    rng, N = np.random.default_rng(seed), len(x)
    y = (np.arange(N) >= len(a)).astype(np.float32)
    ys = np.stack([y, *(rng.permutation(y) for _ in range(permutations))], axis=1)  # (n + m, 1 + permutations)
    fold = rng.permutation(N) % FOLDS
    areas = np.mean([_areas(gram, ys, fold == k) for k in range(FOLDS)], axis=0)
    return float(areas[0]), float((1 + (areas[1:] >= areas[0]).sum()) / (1 + permutations))


def _areas(gram: Features, ys: Features, out: npt.NDArray[np.bool_]) -> Floats:
    """The areas under the curve on the held-out rows, for each column of labels."""
    kept = ~out
    K = gram[np.ix_(kept, kept)] + RIDGE * np.eye(int(kept.sum()), dtype=np.float32)
    weights = cho_solve(cho_factor(K, lower=True, overwrite_a=True), ys[kept] - ys[kept].mean(0))
    ranks = rankdata(gram[np.ix_(out, kept)] @ weights, axis=0)
    labels = ys[out]
    ones = labels.sum(0)
    pairs = np.maximum(ones * (len(labels) - ones), 1)
    return np.asarray(((ranks * labels).sum(0) - ones * (ones + 1) / 2) / pairs, dtype=np.float64)


def class_distances(p_ref: Floats, p_new: Floats) -> tuple[Floats, float]:
    """The Kolmogorov-Smirnov distance of each class's probability (K,), and the p-value of the largest.

    Args:
        p_ref: (n, K).
        p_new: (m, K).

    Source: Lipton et al., ICML 2018; Rabanser et al., NeurIPS 2019, who correct for K tests as well (Bonferroni).
    """
    tests = [ks_2samp(a, b, method="asymp") for a, b in zip(p_ref.T, p_new.T, strict=True)]
    chance = min(1.0, len(tests) * min(float(test.pvalue) for test in tests))
    return np.array([test.statistic for test in tests], dtype=np.float64), chance


def moved_shares(
    p_ref: Floats, p_new: Floats, seed: int = 0, permutations: int = PERMUTATIONS
) -> tuple[Floats, Floats, float, float]:
    """How far the class shares have moved, taking it that a class looks as it did.

    Args:
        p_ref: (n, K).
        p_new: (m, K).
        seed: Of the permutations.
        permutations: How many.

    Returns:
        The shares of the reference (K,), the mean of its probabilities; those of the new images (K,), by maximum
        likelihood from there, which gives the reference its own shares back whether or not its probabilities are
        calibrated; half the sum of their absolute differences; and the share of permutations that reach it.

    Source: Saerens et al., Neural Computation 2002.
    """
    rng, both = np.random.default_rng(seed), np.concatenate([p_ref, p_new])
    is_new = (np.arange(len(both)) >= len(p_ref)).astype(np.float64)
    new = np.stack(
        [is_new, *(rng.permutation(is_new) for _ in range(permutations))], axis=1
    )  # (n + m, 1 + permutations)
    before = both.T @ (1 - new) / len(p_ref)
    after = reweighted(both, before, new)
    moved = np.abs(after - before).sum(0) / 2
    chance = float((1 + (moved[1:] >= moved[0]).sum()) / (1 + permutations))
    return before[:, 0], after[:, 0], float(moved[0]), chance


def _nearest(a: Features, b: Features, *, others: bool = False) -> Floats:
    """One minus the cosine of the angle of each row of `a` (m, D) to the nearest of `b` (n, D), or the nearest other.

    On PACS, lengths hide what is novel: by Euclidean distances no photo is beyond the paintings' own.
    """
    cosines = _unit(a) @ _unit(b).T  # (m, n)
    if others:
        np.fill_diagonal(cosines, -np.inf)
    return np.asarray(1 - np.minimum(cosines.max(1), 1), dtype=np.float64)


def _unit(x: Features) -> Features:
    x = x.astype(np.float32)
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(np.float32).tiny))
