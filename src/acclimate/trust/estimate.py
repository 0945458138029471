"""How accurate the consensus is on a target without labels: an estimate with a range, and a bound that is exact.

Nothing about the accuracy can be known without labels or an assumption. The estimate rests on one that cannot be
tested: that the voters err as differently on this target as they did on those by which it was calibrated. The bound
rests on nothing.

The constants were fitted to 20 runs of the default consensus: PACS's six tasks with the whole source and with four
fifths of it, the same with three classes taken from the target, and MNIST and USPS, each from the other, as pixels.
With the constants fitted to the other pairs of domains, the mean absolute error is 7.6 points on the pair left out, and
the range holds 95 % of the accuracies; with those below, on all of them, it is 5.8 points. ATC, a threshold on the
confidence of source-only, is wrong about source-only by 18 points on average.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from acclimate.trust.consensus import agreement, consensus

Classes: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]

INTERCEPT = 0.4
SLOPE = 2.0
SLOPE_ALIKE = 1.0  # of voters that err alike
WIDTH = 0.5
EXTREME = 0.98  # an agreement beyond which the estimate does not rise


@dataclass(frozen=True)
class Accuracy:
    """An estimate of the accuracy of the consensus on a target without labels.

    Attributes:
        value: The estimate.
        low: The lower end of a range that is to hold the accuracy of nine targets of ten.
        high: The upper end.
        agreement: What it rests on: the mean share of images of which two voters say the same class.
    """

    value: float
    low: float
    high: float
    agreement: float


def estimate_accuracy(votes: Classes, *, alike: bool = False) -> Accuracy:
    """Estimate the accuracy of the consensus from how often its voters agree.

        value = 1 / (1 + exp(-INTERCEPT - slope log(a / (1 - a))))
        range = value -+ WIDTH sqrt(value (1 - value) + 0.01), within 0 and 1

    a is the voters' mean pairwise agreement, kept between 0.02 and 0.98; the slope is `SLOPE`, or `SLOPE_ALIKE`. Voters
    that err independently agree where both are right, and elsewhere only by chance; the constants turn that into the
    accuracy of what all decide together. Voters that err alike agree more than they should, and the estimate is then
    too high.

    Args:
        votes: (M, N) the predicted classes of the M >= 2 voters of the consensus: its members and the class means.
            With one member, the members alone, or members of one family, the constants do not hold.
        alike: Whether the voters are known to err alike, as networks from scratch do: all that they know is from the
            same images.
    """
    a = agreement(votes)
    clipped = min(max(a, 1 - EXTREME), EXTREME)
    slope = SLOPE_ALIKE if alike else SLOPE
    value = 1 / (1 + math.exp(-INTERCEPT - slope * math.log(clipped / (1 - clipped))))
    half = WIDTH * math.sqrt(value * (1 - value) + 0.01)
    return Accuracy(value, max(value - half, 0.0), min(value + half, 1.0), a)


def estimate_gain(before: Classes, after: Classes, means: Classes, S: csr_array, K: int) -> float:
    """Estimate by how much adaptation changed the accuracy, from three voters that err differently.

        jury = the consensus of before, after and means over the graph S
        gain = share(after = jury) - share(before = jury)

    The jury takes no side between the two models: it follows whichever of them the class means and the neighbours bear
    out. On 150 runs of five methods on PACS, with all classes and with three taken from the target, the mean absolute
    error is 3.3 points and the correlation with the gain 0.93 (docs/results/consensus.md).

    Args:
        before: (N,) the classes that source-only predicts.
        after: (N,) the classes of the run.
        means: (N,) what `consensus.class_means` says.
        S: (N, N) the graph of the images' frozen features; see `consensus.neighbours`.
        K: Classes.
    """
    jury = consensus(np.stack([before, after, means]), S, K).argmax(1)
    return float((after == jury).mean() - (before == jury).mean())


def largest_change(before: Classes, after: Classes) -> float:
    """The most by which the accuracies of two models can differ, whatever the labels: the share of changed predictions.

    |acc(after) - acc(before)| <= (1 / N) #{i: before_i != after_i}, since elsewhere both are right or both wrong. It is
    exact and assumes nothing.

    Args:
        before: (N,) predicted classes.
        after: (N,) predicted classes of the other model.
    """
    return float(np.mean(before != after))


def reliability(votes: Classes, decided: Classes) -> Floats:
    """The share of the voters that say of each image what the consensus says, (N,).

    Args:
        votes: (M, N) the voters' predicted classes.
        decided: (N,) the classes of the consensus.
    """
    return np.asarray((votes == decided).mean(0))
