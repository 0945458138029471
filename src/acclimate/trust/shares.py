"""The shares of the classes in the target, estimated from source-only's predictions.

Both estimates take it that a class looks the same in both domains, p(x | y), and that only the shares of the classes
differ. A shift of domain breaks that, which is why each estimate comes with a residual that tells whether the target
looks like any mixture of the source's classes at all: where it does not, the shares are a rough guide. On PACS's six
tasks it never does, and half the sum of the absolute errors is 28 points for `bbse` and 35 for `mlls`, where counting
the predictions of source-only gives 25 and those of the consensus 10. So these are a check, not a basis.

Both must be given the predictions of source-only, since an adapted model has moved its predictions already. n is the
number of held-out images of the source, N that of the images of the target, K that of the classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize, nnls
from scipy.special import log_softmax, softmax

from acclimate.errors import DataError

Floats: TypeAlias = npt.NDArray[np.float64]
Classes: TypeAlias = npt.NDArray[np.int64]

LEAST_SINGULAR = 0.05  # of P(c | y), which is 1 for a perfect classifier
SMALLEST = 5e-7  # what six decimals of a file of predictions leave of a smaller probability
PENALTY = 0.001  # on a calibration
DRAWS = 500
LARGEST_SAMPLE = 5000  # images of the target that a draw of `mlls` reads


@dataclass(frozen=True, eq=False)
class Shares:
    """An estimate of the target's class shares.

    Attributes:
        shares: (K,) they sum to 1.
        low: (K,) the lower ends of intervals of 95 %: percentiles of a bootstrap of both domains. They hold if p(x | y)
            is the same in both domains.
        high: (K,) the upper ends.
        residual: How far the target's predictions are from every mixture of the source's classes, between 0 and 2.
        limit: What the residual exceeds in one of twenty draws where p(x | y) is the same in both domains.
    """

    shares: Floats
    low: Floats
    high: Floats
    residual: float
    limit: float

    @property
    def rough(self) -> bool:
        """Whether the shares are a rough guide only, since the classes look different in the target."""
        return self.residual > self.limit


def bbse(p_source: Floats, y_source: Classes, p_target: Floats, seed: int = 0) -> Shares:
    """Estimate the shares by black-box shift estimation.

    With A_ij = P(c = i | y = j) on the held-out images and mu_i = P(c = i) on the target, c the predicted class:

        q = argmin_q |A q - mu|^2    with q >= 0 and sum_j q_j = 1

    Args:
        p_source: (n, K) source-only's probabilities for the held-out images of the source.
        y_source: (n,) their labels.
        p_target: (N, K) its probabilities for the target.
        seed: Of the bootstrap.

    Raises:
        DataError: A class has no held-out image, or the classifier confuses classes so much that the target's
            predictions do not determine the shares: A's smallest singular value is below 0.05.

    Source: Lipton et al., ICML 2018. They write C_ij = P(c = i, y = j) and w_j = q_j / P(y = j), which is
    the same; A is used here because its singular values do not fall with the number of classes.
    """
    table, n_j = _checked(p_source, y_source)
    mu = _counts(p_target.argmax(1), p_target.shape[1])
    q = _mixture(table / n_j, mu / mu.sum())
    rng = np.random.default_rng(seed)
    draws = [
        _mixture(_redraw(table / n_j, n_j, rng) / n_j, rng.multinomial(mu.sum(), mu / mu.sum()) / mu.sum())
        for _ in range(DRAWS)
    ]
    return _shares(q, draws, p_source, y_source, p_target, rng)


def mlls(p_source: Floats, y_source: Classes, p_target: Floats, seed: int = 0) -> Shares:
    """Estimate the shares by maximum likelihood: calibrated probabilities, reweighted until they agree with their mean.

    With pi the shares of the held-out images, and p calibrated on them (`calibrate`), from q = pi on:

        q_j <- mean_x [ (q_j / pi_j) p_j(x) / sum_k (q_k / pi_k) p_k(x) ]

    until no share changes by more than 1e-6, or for 1,000 rounds. A draw of the bootstrap calibrates anew.

    Args:
        p_source: (n, K) source-only's probabilities for the held-out images of the source.
        y_source: (n,) their labels.
        p_target: (N, K) its probabilities for the target.
        seed: Of the bootstrap.

    Raises:
        DataError: As `bbse`.

    Source: Saerens et al., Neural Computation 2002; Alexandari et al., ICML 2020 (calibration); Garg et al., NeurIPS
    2020.
    """
    _checked(p_source, y_source)
    K, rng = p_source.shape[1], np.random.default_rng(seed)
    z_source, z_target = _log(p_source), _log(p_target)
    theta = calibrate(p_source, y_source)
    pi = _counts(y_source, K) / len(y_source)
    q = _reweighted(_calibrated(z_target, theta), pi, pi)
    sample = rng.permutation(len(z_target))[:LARGEST_SAMPLE]
    members = [np.flatnonzero(y_source == k) for k in range(K)]
    draws = []
    for _ in range(DRAWS):
        redrawn = np.concatenate([rng.choice(part, len(part)) for part in members])
        again = _fit(z_source[redrawn], y_source[redrawn], start=theta)
        images = z_target[rng.choice(sample, len(sample))]
        draws.append(_reweighted(_calibrated(images, again), pi, q, tolerance=1e-4))
    return _shares(q, draws, p_source, y_source, p_target, rng)


def calibrate(p: Floats, y: Classes) -> Floats:
    """Fit a temperature and a bias a class to held-out labels, "bias-corrected temperature scaling".

    The calibrated probabilities are softmax(theta_0 log p + theta_1..K), and theta minimises the mean negative log
    likelihood plus 0.0005 |theta - (1, 0, ..., 0)|^2. Without that it would be infinite where every label is predicted.

    Args:
        p: (n, K) probabilities.
        y: (n,) labels.

    Returns:
        (K + 1,) the inverse temperature theta_0, between 0.05 and 20, and the biases.

    Source: Alexandari et al., ICML 2020; the penalty is ours.
    """
    return _fit(_log(p), y, start=np.eye(1, p.shape[1] + 1)[0])


def calibrated(p: Floats, theta: Floats) -> Floats:
    """Probabilities (N, K) after the calibration that `calibrate` found."""
    return _calibrated(_log(p), theta)


def reweighted(p: Floats, pi: Floats, samples: Floats) -> Floats:
    """The class shares (K, M) of M samples of images, by maximum likelihood as in `mlls`, all at once.

    Of a sample whose mean probabilities are pi, they are pi itself, whether or not the probabilities are calibrated.

    Args:
        p: (N, K) the probabilities of all images.
        pi: (K, M) the shares for which they hold, in the view of each sample.
        samples: (N, M) how often each image is in each sample.
    """
    p, pi, m = np.maximum(p, SMALLEST), np.maximum(pi, SMALLEST), samples.sum(0)
    q = pi
    for _ in range(300):
        after = q / pi * (p.T @ (samples / (p @ (q / pi)))) / m
        done = np.abs(after - q).max() < 1e-4
        q = after
        if done:
            break
    return q


def _checked(p: Floats, y: Classes) -> tuple[Floats, Floats]:
    """Counts of the predictions c = i of the images of y = j (K, K), and of the images of each class (K,)."""
    K = p.shape[1]
    n_j = _counts(y, K)
    if (n_j == 0).any():
        raise DataError(
            "The class shares of the target cannot be estimated, because a class has no held-out image: hold out a "
            "larger part of the source."
        )
    table = np.zeros((K, K))
    np.add.at(table, (p.argmax(1), y), 1)
    least = float(np.linalg.svd(table / n_j, compute_uv=False)[-1])
    if least < LEAST_SINGULAR:
        raise DataError(
            "The class shares of the target cannot be estimated, because source-only confuses classes of the source "
            f"with each other (smallest singular value {least:.2f}, at least {LEAST_SINGULAR} is needed): give it more "
            "steps or more images."
        )
    return table, n_j


def _shares(q: Floats, draws: list[Floats], p_s: Floats, y_s: Classes, p_t: Floats, rng: np.random.Generator) -> Shares:
    """The intervals of an estimate from its redrawn ones, and its residual with the limit of it.

    Cells i tell the predicted class, and whether its probability is above the class's median on the held-out images.
    The K classes alone would nearly always fit K shares. With B_ij = P(cell i | y = j) and nu_i = P(cell i) on the
    target, the residual is sum_i |B q - nu|_i.
    """
    K, N = p_s.shape[1], len(p_t)
    top, c = p_s.max(1), p_s.argmax(1)
    median = np.array([np.median(top[c == k]) if (c == k).any() else 0.5 for k in range(K)])
    B = np.zeros((2 * K, K))
    np.add.at(B, (_cells(p_s, median), y_s), 1)
    n_j = B.sum(0)
    B, nu = B / n_j, _counts(_cells(p_t, median), 2 * K) / N
    null = []
    for _ in range(DRAWS):
        B_again, nu_again = _redraw(B, n_j, rng) / n_j, rng.multinomial(N, _whole(B @ q)) / N
        null.append(np.abs(B_again @ _mixture(B_again, nu_again) - nu_again).sum())
    residual = float(np.abs(B @ _mixture(B, nu) - nu).sum())
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    return Shares(q, np.minimum(low, q), np.maximum(high, q), residual, float(np.quantile(null, 0.95)))


def _cells(p: Floats, median: Floats) -> Classes:
    c = p.argmax(1)
    return np.asarray(2 * c + (p.max(1) > median[c]), dtype=np.int64)


def _counts(c: Classes, K: int) -> Floats:
    return np.bincount(c, minlength=K).astype(np.float64)


def _redraw(A: Floats, n_j: Floats, rng: np.random.Generator) -> Floats:
    """Counts of n_j draws from each column of A."""
    return np.stack([rng.multinomial(int(n), _whole(column)) for n, column in zip(n_j, A.T, strict=True)], 1)


def _whole(shares: Floats) -> Floats:
    """Shares that sum to 1 whatever the rounding."""
    return np.asarray(shares / shares.sum())


def _mixture(A: Floats, mu: Floats) -> Floats:
    """The shares q >= 0, of sum 1, for which A q is nearest to mu."""
    heavy = 1e4  # the weight of the row that holds the sum
    q, _ = nnls(np.vstack([A, np.full(A.shape[1], heavy)]), np.append(mu, heavy))
    return _whole(q)


def _log(p: Floats) -> Floats:
    return np.log(np.maximum(p, SMALLEST))


def _calibrated(z: Floats, theta: Floats) -> Floats:
    return np.asarray(softmax(theta[0] * z + theta[1:], axis=1))


def _fit(z: Floats, y: Classes, start: Floats) -> Floats:
    n, K = z.shape
    Y, centre = np.eye(K)[y], np.eye(1, K + 1)[0]

    def loss(theta: Floats) -> tuple[float, Floats]:
        log_p = log_softmax(theta[0] * z + theta[1:], axis=1)
        error = (np.exp(log_p) - Y) / n  # (n, K)
        away = theta - centre
        gradient = np.append((error * z).sum(), error.sum(0)) + PENALTY * away
        return float(-(log_p * Y).sum() / n + PENALTY / 2 * away @ away), gradient

    bounds = [(0.05, 20), *[(None, None)] * K]
    return np.asarray(minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x, dtype=np.float64)


def _reweighted(p: Floats, pi: Floats, start: Floats, tolerance: float = 1e-6) -> Floats:
    """The shares of maximum likelihood, by expectation and maximisation."""
    q = start
    for _ in range(1000):
        weighted = p * (q / pi)
        after = np.asarray((weighted / weighted.sum(1, keepdims=True)).mean(0))
        done = np.abs(after - q).max() < tolerance
        q = after
        if done:
            break
    return q
