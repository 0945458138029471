"""A few labels, spent well: which images to label, and what the labels then say.

N is the number of images of the target, n that of the images that a person labels. Everything here holds because the
images are drawn at random: it assumes nothing about the model or the domains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from acclimate.errors import OptionError
from acclimate.evaluation.scores import interval

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

FEWEST = 20  # labels below which the intervals cover too seldom


@dataclass(frozen=True, eq=False)
class Draw:
    """Images to be labelled, each stratum's drawn at random without replacement.

    Attributes:
        chosen: (n,) positions in the target, in the order in which to show them: shuffled, so that the order tells
            nothing about the model.
        stratum: (n,) the stratum of each of them.
        sizes: (H,) how many images of the target each stratum has.
    """

    chosen: Indices
    stratum: Indices
    sizes: Indices


@dataclass(frozen=True)
class Estimate:
    """A share with its interval of 95 %, from `n` labels."""

    value: float
    low: float
    high: float
    n: int


def draw(certainty: Floats, n: int, seed: int) -> Draw:
    """Choose images by which to estimate the accuracy of a model.

    The strata are four equal parts of the target in the order of the certainty, two where fewer than 30 labels are
    planned. Each is given its share of the labels, but two at least. Where the certainty tells right from wrong, this
    makes the interval narrower; where it does not, it does no harm.

    Args:
        certainty: (N,) how certain the model is of each image: any score that rises with the chance to be right.
        n: Images to label.
        seed: Of the choice.

    Raises:
        OptionError: There are fewer than `n` images, or `n` is less than `FEWEST`.
    """
    N = len(certainty)
    _check(n, N, "the target")
    H = 4 if n >= 30 else 2
    order = np.argsort(certainty, kind="stable")
    strata = np.array_split(order, H)
    sizes = np.array([len(part) for part in strata], dtype=np.int64)
    return _draw(strata, allocate(sizes, n), sizes, seed)


def draw_changed(before: Indices, after: Indices, n: int, seed: int) -> Draw:
    """Choose images by which to tell whether adaptation helped: some of those whose predicted class it changed.

    Elsewhere both models are right or both are wrong, so that a label there would tell nothing about the difference.

    Args:
        before: (N,) predicted classes.
        after: (N,) predicted classes of the other model.
        n: Images to label; all that changed where these are fewer.
        seed: Of the choice.

    Raises:
        OptionError: No image changed, or `n` is less than `FEWEST`.
    """
    return draw_disputed(np.stack([before, after]), n, seed)


def draw_disputed(predictions: Indices, n: int, seed: int) -> Draw:
    """Choose images by which to choose among M models: some of those on which not all of them agree.

    Args:
        predictions: (M, N) predicted classes.
        n: Images to label; all that are disputed where these are fewer.
        seed: Of the choice.

    Raises:
        OptionError: The models agree on every image, or `n` is less than `FEWEST`.
    """
    disputed = np.flatnonzero((predictions != predictions[0]).any(0))
    if not len(disputed):
        raise OptionError("The predictions agree on every image, so there is nothing that labels could decide.")
    n = min(_check(n), len(disputed))
    return _draw([disputed], np.array([n]), np.array([len(disputed)], dtype=np.int64), seed)


def allocate(sizes: Indices, n: int) -> Indices:
    """How many of `n` labels each stratum is given: in proportion to its size, two at least where it has them.

    What is left over by rounding down goes to the largest remainders, the first of equal ones.

    Args:
        sizes: (H,) images of each stratum, their sum at least `n`.
        n: Labels, at least two a stratum.
    """
    given = np.minimum(sizes, 2)
    ideal = n * sizes / sizes.sum()
    while given.sum() < n:
        short = np.where(given < sizes, ideal - given, -np.inf)
        given[short.argmax()] += 1
    return given


def accuracy(draw: Draw, right: Flags) -> Estimate:
    """The accuracy of a model on the whole target, from the labels of a `draw`.

    With W_h = N_h / N, and k_h right among the n_h labels of stratum h:

        a   = sum_h W_h k_h / n_h
        v   = sum_h W_h^2 r_h (1 - r_h) / n_h (N_h - n_h) / N_h,    r_h = (k_h + 1/2) / (n_h + 1)
        n_e = a (1 - a) / v, kept between n and 3 n; n where a is 0 or 1

    and the interval is Wilson's for a share a among n_e labels. The half in r_h keeps a stratum without an error from
    passing for certain. Where a has up to three labels on one side, that side's limit is at least as far as Poisson's
    of one side, since Wilson's covers too seldom there.

    Args:
        draw: What `draw` returned.
        right: (n,) whether the model's prediction of each drawn image is right, in the order of `draw.chosen`.

    Source: Cochran, Sampling Techniques, 1977, equations 5.1 and 5.7 for a and v; Wilson, JASA 1927; Brown, Cai and
    DasGupta, Statistical Science 2001, section 4.1.1, for few errors. The bounds of n_e are ours.
    """
    n, H = len(right), len(draw.sizes)
    n_h = np.bincount(draw.stratum, minlength=H)
    k_h = np.bincount(draw.stratum[right], minlength=H)
    W_h = draw.sizes / draw.sizes.sum()
    a = min(float((W_h * k_h / n_h).sum()), 1.0)
    if n == draw.sizes.sum():
        return Estimate(a, a, a, n)
    r_h = (k_h + 0.5) / (n_h + 1)
    v = float((W_h**2 * r_h * (1 - r_h) / n_h * (draw.sizes - n_h) / draw.sizes).sum())
    certain = k_h.sum() in (0, n)
    n_e = n if certain else min(max(a * (1 - a) / v, n), 3 * n)
    return Estimate(a, *_interval(a, n_e), n)


def class_accuracies(truth: Indices, right: Flags, K: int, least: int = 10) -> list[Estimate | None]:
    """The accuracy on each class's images, from the labels that turned out to be of that class.

    Args:
        truth: (n,) the labels; -1 for an image of no class.
        right: (n,) whether the prediction is right.
        K: Classes.
        least: A class with fewer labels gets None: its interval would be too wide to show.

    Returns:
        K entries. The strata are passed over: a draw gives each nearly its share, so that all labels weigh the same.
    """
    found = []
    for k in range(K):
        n, correct = int((truth == k).sum()), int(right[truth == k].sum())
        found.append(Estimate(correct / n, *_interval(correct / n, n), n) if n >= least else None)
    return found


@dataclass(frozen=True)
class Comparison:
    """By how much one model is more accurate than another on the whole target, from labels of what they dispute.

    Attributes:
        difference: The accuracy of the one minus that of the other.
        low: The lower end of its interval of 95 %.
        high: The upper end.
        gained: Labels by which the one is right and the other wrong.
        lost: Labels by which the other is right and the one wrong.
        n: Labels, those by which both are wrong included.
        p: How probable a split as uneven as `gained` to `lost` is if neither is better: the exact sign test.
    """

    difference: float
    low: float
    high: float
    gained: int
    lost: int
    n: int
    p: float


def compare(draw: Draw, after_right: Flags, before_right: Flags, N: int, level: float = 0.95) -> Comparison:
    """Whether adaptation helped, from the labels of a `draw_changed`.

    With d the share of the N images that the two models predict differently, gained b and lost c among n labels:

        acc(after) - acc(before) = d (P(after right | changed) - P(before right | changed))

    of which d (b - c) / n is the estimate. The interval is d times Newcombe's for the difference of the two paired
    shares, made narrower by sqrt(1 - n / changed), since the images are drawn without replacement.

    Args:
        draw: What `draw_changed` or `draw_disputed` returned.
        after_right: (n,) whether the one model is right, in the order of `draw.chosen`.
        before_right: (n,) whether the other is.
        N: Images of the target.
        level: How often the interval is to cover.

    Source: Sawade et al., NIPS 2012, of which this is the case of 0-1 loss; Newcombe, Statistics in Medicine 1998,
    paired differences, method 10, with the limits of `accuracy` for its two shares.
    """
    n, M = len(draw.chosen), int(draw.sizes.sum())
    b, c = int((after_right & ~before_right).sum()), int((before_right & ~after_right).sum())
    both = int((after_right & before_right).sum())
    low, high = _paired(both, b, c, n, float(special.ndtri(0.5 + level / 2)))
    d, value, narrow = M / N, (b - c) / n, math.sqrt(1 - n / M)
    p = min(2 * float(special.bdtr(min(b, c), b + c, 0.5)), 1.0)
    ends = (d * (value - narrow * (value - low)), d * (value + narrow * (high - value)))
    return Comparison(d * value, *ends, b, c, n, p)


@dataclass(frozen=True)
class Choice:
    """Which of M models labels speak for.

    Attributes:
        leader: The model that is right most often on the labels, the first of equal ones.
        left: The models that the labels do not rule out, the leader among them.
        differences: M comparisons of the leader with each model.
    """

    leader: int
    left: tuple[int, ...]
    differences: tuple[Comparison, ...]


def choose(draw: Draw, right: Flags, N: int, level: float = 0.95) -> Choice:
    """Choose among M models by the labels of a `draw_disputed`.

    A model is ruled out when the interval of its difference to the leader lies above 0, at a level that counts the
    M - 1 comparisons (Bonferroni's). The leader was chosen by these labels, so that they say too much of its accuracy:
    measure that by others.

    Args:
        draw: What `draw_disputed` returned.
        right: (M, n) whether each model is right on each drawn image.
        N: Images of the target.
        level: How often all intervals together are to cover.
    """
    leader = int(right.sum(1).argmax())
    single = 1 - (1 - level) / max(len(right) - 1, 1)
    differences = tuple(compare(draw, right[leader], other, N, single) for other in right)
    left = tuple(m for m, difference in enumerate(differences) if difference.low <= 0)
    return Choice(leader, left, differences)


def _interval(a: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval for a share `a` of `n` labels, widened where at most three are on one side."""
    low, high = interval(a * n, n, z)
    alpha = 2 * float(special.ndtr(-z))
    if 0 < (1 - a) * n < 3.5:
        high = max(high, 1 - float(special.gammaincinv((1 - a) * n, alpha)) / n)
    if 0 < a * n < 3.5:
        low = min(low, float(special.gammaincinv(a * n, alpha)) / n)
    return min(low, a), max(high, a)


def _paired(both: int, b: int, c: int, n: int, z: float) -> tuple[float, float]:
    """Newcombe's interval for p_1 - p_2, where both are right in `both` of n labels, one alone in b, the other in c."""
    neither = n - both - b - c
    p_1, p_2 = (both + b) / n, (both + c) / n
    (l_1, u_1), (l_2, u_2) = _interval(p_1, n, z), _interval(p_2, n, z)
    product = (both + b) * (c + neither) * (both + c) * (b + neither)
    covariance = float(both * neither - b * c)
    if covariance > 0:
        covariance = max(covariance - n / 2, 0.0)
    phi = covariance / math.sqrt(product) if product else 0.0
    down, up, other_down, other_up = p_1 - l_1, u_1 - p_1, p_2 - l_2, u_2 - p_2
    low = p_1 - p_2 - math.sqrt(max(down**2 - 2 * phi * down * other_up + other_up**2, 0))
    high = p_1 - p_2 + math.sqrt(max(up**2 - 2 * phi * up * other_down + other_down**2, 0))
    return low, high


def _draw(strata: Sequence[Indices], counts: Indices, sizes: Indices, seed: int) -> Draw:
    rng = np.random.default_rng(seed)
    chosen = np.concatenate([rng.choice(part, k, replace=False) for part, k in zip(strata, counts, strict=True)])
    order = rng.permutation(len(chosen))
    return Draw(chosen[order], np.repeat(np.arange(len(sizes)), counts)[order], sizes)


def _check(n: int, available: int | None = None, what: str = "") -> int:
    if n < FEWEST:
        raise OptionError(f"{n:,} labels say too little: label at least {FEWEST} images.")
    if available is not None and n > available:
        raise OptionError(f"There are only {available:,} images in {what}, fewer than the {n:,} to be labelled.")
    return n
