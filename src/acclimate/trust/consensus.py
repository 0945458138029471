"""The consensus of several methods on one target: their votes, spread over a graph of its images, taught to one model.

The voters are the members, each an adapted model, and the nearest class means (`class_means`). M is the number of
voters, N that of the target's images, K of classes, D the length of the frozen features. Voters err differently, so
most of them are right where they agree; images that the untouched backbone finds alike are mostly of one class; so a
vote is worth most where voters agree, and reaches the images like it:

    V_ik = (share of the voters that say k of image i)^4              evidence
    W_ij = max(cos(x_i, x_j), 0)^3 for the 10 nearest of each image   the graph, x the centred features
    Z    = 0.05 sum_r 0.95^r S^r (V - 1/2 mean V)                     spread
    y_i  = argmax_k Z_ik                                              the consensus

and a student, `methods.consensus.Consensus`, learns y. All of it is ours, apart from the spreading (Zhou et al.,
NeurIPS 2003). Nothing here depends on the number of threads: products of features are exact (`neighbours`).
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array, diags_array

from acclimate.errors import DataError

Floats: TypeAlias = npt.NDArray[np.float64]
Classes: TypeAlias = npt.NDArray[np.int64]
Features: TypeAlias = npt.NDArray[np.floating]

POWER = 4.0  # of a share of the votes: what unanimous voters say weighs 16 times what half of them say
NEIGHBOURS = 10
REACH = 0.95  # how much of an image's score comes from its neighbours'
ROUNDS = 50
BACKGROUND = 0.5  # how much of each class's mean evidence is taken away before spreading
MOST = 20_000  # images in the graph; a sample of a larger target
BLOCK = 512  # images whose neighbours are sought at a time
GRID = 2.0**26  # steps of a coordinate of a vector of length 1


def ballots(votes: Classes, K: int) -> Floats:
    """The share of the voters that say each class of each image, (N, K).

    Args:
        votes: (M, N) each voter's predicted classes.
        K: Classes.

    Raises:
        DataError: There is no voter.
    """
    M, N = votes.shape
    if M == 0:
        raise DataError("A consensus needs at least one member.")
    counts = np.zeros((N, K))
    for vote in votes:
        counts[np.arange(N), vote] += 1
    shares: Floats = counts / M
    return shares


def agreement(votes: Classes) -> float:
    """The mean, over the pairs of M >= 2 voters, of the share of images of which both say the same class.

    Args:
        votes: (M, N) each voter's predicted classes.
    """
    return float(agreements(votes).mean())


def agreements(votes: Classes) -> Floats:
    """Of each of M >= 2 voters, the mean share of images on which it and another say the same class, (M,).

    Args:
        votes: (M, N) each voter's predicted classes.
    """
    M = len(votes)
    same = np.array([[(vote == other).mean() for other in votes] for vote in votes])
    return np.asarray((same.sum(1) - 1) / (M - 1))


def class_means(source: Features, labels: Classes, target: Features, K: int) -> Classes:
    """The class of the nearest class mean, (N,): a view of the target that shares no training with the members.

    Each domain's features are centred by their own mean, which takes the shift away that all classes have in common,
    and brought to length 1; nearest is the largest cosine. Of equal ones the first class is taken. As one voter among
    seven it keeps the consensus from following members that a lacking class has led astray.

    Args:
        source: (n, D) frozen features of the source, of which every class has some.
        labels: (n,) its labels.
        target: (N, D) frozen features of the target.
        K: Classes.
    """
    x_s, x_t = directions(source), directions(target)
    means = np.stack([x_s[labels == k].mean(0) for k in range(K)])
    cosines = _on_grid(x_t) @ _on_grid(_unit(means)).T
    return np.asarray(cosines.argmax(1), dtype=np.int64)


def sample(N: int, seed: int, most: int = MOST) -> Classes:
    """The positions of the images of which the consensus is formed, ascending: all N, or a random `most` of them."""
    if most >= N:
        return np.arange(N)
    return np.sort(np.random.default_rng(seed).choice(N, most, replace=False))


def of_each_class(labels: Classes, seed: int, most: int = MOST) -> Classes:
    """Positions of the images that stand for a labelled domain, ascending: all, or at random as many of each class.

    Args:
        labels: (n,) the labels.
        seed: Of the choice.
        most: From where on it is a choice; each class is given an equal part of it.
    """
    if len(labels) <= most:
        return np.arange(len(labels))
    present = np.unique(labels)
    order = np.random.default_rng(seed).permutation(len(labels))
    return np.sort(np.concatenate([order[labels[order] == k][: max(most // len(present), 1)] for k in present]))


def directions(features: Features) -> Floats:
    """Features (N, D) less their mean, each brought to length 1; a feature that equals the mean stays 0."""
    x = features.astype(np.float64)
    x -= x.mean(0)
    return _unit(x)


def neighbours(features: Features, k: int = NEIGHBOURS) -> csr_array:
    """The graph of the nearest neighbours among features, (N, N).

        w_ij = max(cos(x_i, x_j), 0)^3 if j is one of the k nearest of i, else 0
        W    = (w + w^T) / 2,    D_ii = sum_j W_ij,    S = D^-1/2 W D^-1/2

    The coordinates of the unit vectors x are rounded to multiples of 2^-26. Their products are then whole multiples of
    2^-52 of which at most 2^53 are added up, which float64 does without rounding: the neighbours are the same
    whatever the order of the sums, so for every number of threads and every BLAS. Of equally near images the first is
    taken. Time and memory are N^2 D and 512 N.

    Args:
        features: (N, D) frozen features. They are centred here.
        k: Neighbours of an image; fewer where there are fewer images.
    """
    x = _on_grid(directions(features))
    N = len(x)
    k = min(k, N - 1)
    nearest, cosines = np.empty((N, k), dtype=np.int64), np.empty((N, k))
    for start in range(0, N, BLOCK):
        block = x[start : start + BLOCK] @ x.T / GRID**2  # (B, N)
        block[np.arange(len(block)), np.arange(start, start + len(block))] = -np.inf
        for i, row in enumerate(block, start):
            nearest[i] = largest(row, k)
            cosines[i] = row[nearest[i]]
    w = np.maximum(cosines, 0)
    w = w * w * w
    one_way = csr_array((w.ravel(), nearest.ravel(), k * np.arange(N + 1)), shape=(N, N))
    W = (one_way + one_way.T) / 2
    degree = np.asarray(W.sum(1))
    root = np.where(degree > 0, 1 / np.sqrt(np.where(degree > 0, degree, 1)), 0.0)
    return csr_array(diags_array(root) @ W @ diags_array(root))


def largest(row: Floats, k: int) -> Classes:
    """The positions of the k largest entries of a row, in ascending order; of equal entries the first are taken."""
    if k == 0:
        return np.empty(0, dtype=np.int64)
    least = np.partition(row, len(row) - k)[len(row) - k]
    above, equal = np.flatnonzero(row > least), np.flatnonzero(row == least)
    return np.sort(np.concatenate([above, equal[: k - len(above)]]))


def spread(
    V: Floats, S: csr_array, reach: float = REACH, rounds: int = ROUNDS, background: float = BACKGROUND
) -> Floats:
    """Spread evidence over a graph: Z <- reach S Z + (1 - reach) V', from Z = V' = V - background mean(V).

    Each class's mean evidence is a background that every image receives from everywhere, and that says nothing about
    the image. With all of it left, a class that voters see too often swallows its neighbours; with all of it taken
    away, a class that the target lacks gains as much as another loses. Half is the best of 0, 1/2, 3/4 and 1 over
    PACS's six tasks, the same with three classes taken from the target, and two tasks of digits together.

    Args:
        V: (N, K) evidence.
        S: (N, N) the graph.
        reach: Between 0, the evidence alone, and 1, exclusive.
        rounds: Times that it spreads by one edge.
        background: Share of the mean that is taken away.

    Returns:
        (N, K) scores Z, which may be negative. The largest of a row is the consensus.
    """
    V = V - background * V.mean(0)
    Z = V
    for _ in range(rounds):
        Z = reach * (S @ Z) + (1 - reach) * V
    return Z


def consensus(votes: Classes, S: csr_array, K: int) -> Floats:
    """The scores (N, K) of the consensus of M voters: the largest of a row is its class.

    Where the evidence reaches an image that is like no other, its own vote decides; votes that tie are decided by the
    first class.

    Args:
        votes: (M, N) each voter's predicted classes. At most `MOST` images; see `sample`.
        S: (N, N) the graph of the same images; see `neighbours`.
        K: Classes.

    Raises:
        DataError: There is no voter.
    """
    return spread(ballots(votes, K) ** POWER, S)


def certainty(Z: Floats) -> Floats:
    """How far the largest score of a row leads the next, (N,): 0 at a tie."""
    ordered = np.sort(Z, axis=1)
    return ordered[:, -1] - ordered[:, -2]


def confidence_ranks(Z: Floats) -> Floats:
    """The weight of each image in teaching, (N,): its rank by certainty, scaled to a mean of 1.

    The least certain image has nearly no weight, the most certain one nearly 2.
    """
    N = len(Z)
    ranks = np.empty(N)
    ranks[np.argsort(certainty(Z), kind="stable")] = np.arange(1, N + 1)
    return np.asarray(2 * ranks / (N + 1))


def familiarity(shares: Floats, S: csr_array, reach: float = 0.9, rounds: int = ROUNDS) -> Floats:
    """How much the voters agree around an image, (N,), between 0 and 1: low where images look like no class.

    f = spread(v) / spread(1), with v_i = max_k shares_ik the share of the voters on the side of the majority: a mean of
    v over the neighbourhood, weighted as spreading weighs. It tells classes that the source lacks from those that it
    has: on PACS, with two of seven classes taken from the votes, with an area under the ROC curve of 0.87 on average,
    where v alone gives 0.78. Where the voters are mostly wrong on the known classes too (photo to cartoon), it is 0.7:
    then it cannot be told.

    Args:
        shares: (N, K) what `ballots` returned.
        S: (N, N) the graph.
        reach: As in `spread`.
        rounds: As in `spread`.
    """
    v = np.stack([shares.max(1), np.ones(len(shares))], 1)
    around = spread(v, S, reach, rounds, background=0)
    return np.asarray(around[:, 0] / around[:, 1])


def _unit(x: Floats) -> Floats:
    length = np.sqrt((x * x).sum(1, keepdims=True))
    return np.asarray(np.divide(x, length, out=np.zeros_like(x), where=length > 0))


def _on_grid(x: Floats) -> Floats:
    """Unit vectors (N, D) in whole steps of the grid, so that no sum of products of coordinates is rounded."""
    x *= GRID
    return np.rint(x, out=x)
