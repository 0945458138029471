"""Validators: figures that rank candidates without a label of the target.

A validator looks at the `Evidence` of one candidate and returns a float; of two candidates on one task, that with the
larger figure is taken for the better. None of the figures is an accuracy, and each is misled by something: the
docstrings say by what. Where a paper has a figure of which smaller is better, its negative is returned.

Logarithms are natural, entropies are divided by ln K so that tasks can be compared, and everything is computed in
float64. The order of the images and of the classes does not matter; above 5,000 images, what is quadratic or fits a
classifier reads a seeded sample of so many.

scikit-learn is imported where it is used: a run that compares nothing need not wait a second for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.special import log_softmax, softmax, xlogy

from acclimate.errors import DataError, OptionError
from acclimate.trust import consensus
from acclimate.trust.consensus import class_means
from acclimate.trust.estimate import estimate_gain

Floats: TypeAlias = npt.NDArray[np.float64]
Classes: TypeAlias = npt.NDArray[np.int64]

SAMPLE = 5000  # rows that a quadratic validator reads
BLOCK = 1024  # rows of a similarity matrix that are in memory at a time
SMALLEST = 5e-7  # what six decimals of a file of predictions leave of a smaller probability
DUPLICATES = 0.98  # candidates that agree on more than this share of the images have one vote
NEIGHBOURS = 5
LEAST_ERRORS = 10  # of a hold-out, below which a threshold cannot be fitted to them
LEAST_OVERLAP = 50  # effective images of the source that look like the target
LEAST_WEIGHT = 0.1  # mean of the weights, which is 1 where the source holds all that the target does

NEEDS = {
    "p_target": "the target's class probabilities",
    "z_target": "the target's logits",
    "f_target": "the target's features",
    "p_before": "the target's class probabilities of source-only",
    "p_source": "the class probabilities of a held-out part of the source",
    "y_source": "the labels of a held-out part of the source",
    "f_source": "the features of a held-out part of the source",
    "frozen_target": "the target's features of the untouched backbone",
    "frozen_source": "the source's features of the untouched backbone",
    "clusters": "the clusters of the target's frozen features",
    "neighbours": "the neighbours among the target's frozen features",
    "shares": "an estimate of the target's class shares",
    "p_candidates": "the class probabilities of all candidates",
    "p_mixed": "the class probabilities of mixed images",
    "pairs": "the pairs of images that were mixed",
    "p_reverse": "the source's class probabilities of a model trained from the target back to the source",
    "p_dropout": "the target's class probabilities with dropout",
}


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of a candidate without a label of the target. A validator refuses if it lacks what it needs.

    Attributes:
        p_target: (n_T, K) class probabilities of the target's images.
        z_target: (n_T, K) logits, before the softmax.
        f_target: (n_T, d) features in which the candidate compares the domains.
        p_before: (n_T, K) what source-only says of the same images.
        p_source: (n_S, K) class probabilities of source images that stayed out of training.
        y_source: (n_S,) their labels, positions in the classes.
        f_source: (n_S, d) their features.
        frozen_target: (n_T, D) features of the target's images by the backbone as it was pretrained.
        frozen_source: (n_S, D) the same of the source images of `y_source`. Those that were trained on do as well.
        clusters: (n_T,) the cluster of each image in `frozen_target`, as `clusters` makes them; -1 for an image that is
            not in the sample. Where it is not given, it is computed: give it to judge many candidates.
        neighbours: (n_T, 5) positions of the nearest images in `frozen_target`, as `nearest` finds them; likewise.
        graph: The `consensus.neighbours` among the same images' frozen features, of the sample of a large target;
            likewise.
        shares: (K,) the estimated shares of the classes in the target, which add up to 1.
        p_candidates: (m, n_T, K) class probabilities of all candidates, this one among them.
        p_mixed: (M, K) class probabilities of images 0.55 x_a + 0.45 x_b of the target.
        pairs: (M, 2) int, the positions a and b of the images in each.
        p_reverse: (n_S, K) what a model of the same method, trained on the target under the candidate's predictions
            and adapted back to the source, says of the source images of `y_source`.
        p_dropout: (M, n_T, K) class probabilities of the target in M passes with dropout.
        seed: Seed of samples and of k-means.

    Raises:
        DataError: An array has another shape than the others call for, or holds what it cannot.
    """

    p_target: npt.NDArray[Any] | None = None
    z_target: npt.NDArray[Any] | None = None
    f_target: npt.NDArray[Any] | None = None
    p_before: npt.NDArray[Any] | None = None
    p_source: npt.NDArray[Any] | None = None
    y_source: npt.NDArray[Any] | None = None
    f_source: npt.NDArray[Any] | None = None
    frozen_target: npt.NDArray[Any] | None = None
    frozen_source: npt.NDArray[Any] | None = None
    clusters: npt.NDArray[Any] | None = None
    neighbours: npt.NDArray[Any] | None = None
    graph: csr_array | None = None
    shares: npt.NDArray[Any] | None = None
    p_candidates: npt.NDArray[Any] | None = None
    p_mixed: npt.NDArray[Any] | None = None
    pairs: npt.NDArray[Any] | None = None
    p_reverse: npt.NDArray[Any] | None = None
    p_dropout: npt.NDArray[Any] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what no model can have said; make float64 of probabilities and logits.

        Values that are not finite pass: what a diverged model says is refused by the validator that would read it.
        """
        sizes: dict[str, int] = {}
        for name, dimensions in SHAPES.items():
            array = getattr(self, name)
            if array is None:
                continue
            array = np.asarray(array)
            if array.ndim != len(dimensions):
                raise DataError(f"{name} must have {len(dimensions)} dimensions, not {array.ndim}.")
            for size, length in zip(dimensions, array.shape, strict=True):
                if sizes.setdefault(size, length) != length or length == 0:
                    raise DataError(f"{name} has the shape {array.shape}, which does not fit the other arrays.")
            if name in WHOLE:
                array = array.astype(np.int64)
            elif name not in FEATURES:  # features may be large: what reads them takes a sample first
                array = array.astype(np.float64)
            if name in PROBABILITIES and (array.min() < 0 or abs(array.sum(-1) - 1).max() > 1e-3):
                raise DataError(f"{name} must hold probabilities that add up to 1.")
            object.__setattr__(self, name, array)
        if sizes.get("K", 2) < 2:
            raise DataError("A validator needs at least two classes.")
        if self.y_source is not None and (self.y_source.min() < 0 or self.y_source.max() >= sizes.get("K", np.inf)):
            raise DataError("y_source must hold positions in the classes.")
        if self.pairs is not None and (self.pairs.min() < 0 or self.pairs.max() >= sizes.get("n_T", np.inf)):
            raise DataError("pairs must hold positions of target images.")

    def need(self, validator: str, *names: str) -> tuple[npt.NDArray[Any], ...]:
        """The arrays of these names.

        Raises:
            DataError: One is not there, or holds values that are not finite; the sentence says what `validator` misses.
        """
        for name in names:
            if getattr(self, name) is None:
                raise DataError(f"The validator {validator} needs {NEEDS[name]}: give {name}.")
            if not np.isfinite(getattr(self, name)).all():
                raise DataError(f"{name} has values that are not finite, so {validator} has no value: train again.")
        return tuple(getattr(self, name) for name in names)


SHAPES = {
    "p_target": ("n_T", "K"),
    "z_target": ("n_T", "K"),
    "f_target": ("n_T", "d"),
    "p_before": ("n_T", "K"),
    "p_source": ("n_S", "K"),
    "y_source": ("n_S",),
    "f_source": ("n_S", "d"),
    "frozen_target": ("n_T", "D"),
    "frozen_source": ("n_S", "D"),
    "clusters": ("n_T",),
    "neighbours": ("n_T", "k"),
    "shares": ("K",),
    "p_candidates": ("m", "n_T", "K"),
    "p_mixed": ("M", "K"),
    "pairs": ("M", "2"),
    "p_reverse": ("n_S", "K"),
    "p_dropout": ("passes", "n_T", "K"),
}
WHOLE = ("y_source", "pairs", "clusters", "neighbours")
FEATURES = ("f_target", "f_source", "frozen_target", "frozen_source")
PROBABILITIES = ("p_target", "p_before", "p_source", "shares", "p_candidates", "p_mixed", "p_reverse", "p_dropout")
assert {*SHAPES, "graph", "seed"} == {field.name for field in fields(Evidence)}


# --- of the target's probabilities ----------------------------------------------------------------------------------


def entropy(evidence: Evidence) -> float:
    """-mean_x H(p(x)) / ln K, from -1 to 0: how certain the candidate is. Loves collapse and over-confidence.

    Source: Morerio et al., ICLR 2018.
    """
    (p,) = evidence.need("entropy", "p_target")
    return -float(entropies(p).mean() / np.log(p.shape[1]))


def diversity(evidence: Evidence) -> float:
    """H(mean_x p(x)) / ln K, from 0 to 1: how equal the predicted shares are. Loves whoever cannot decide.

    Source: Musgrave et al., arXiv 2208.07360.
    """
    (p,) = evidence.need("diversity", "p_target")
    return float(entropies(p.mean(0)) / np.log(p.shape[1]))


def im(evidence: Evidence) -> float:
    """Information maximisation, (H(mean p) - mean H(p)) / ln K, from 0 to 1. Misled where classes differ in size.

    Source: Shi and Sha, ICML 2012; Musgrave et al., arXiv 2208.07360.
    """
    (p,) = evidence.need("im", "p_target")
    return float((entropies(p.mean(0)) - entropies(p).mean()) / np.log(p.shape[1]))


def im_shares(evidence: Evidence) -> float:
    """(ln K - KL(mean p || q) - mean H(p)) / ln K, with the estimated shares q: `im`, where classes differ in size.

    With equal shares it is `im`. An estimate of 0 would make it infinite, so q holds one more image a class than were
    estimated. Ours.
    """
    p, q = evidence.need("im_shares", "p_target", "shares")
    n, K = p.shape
    q = (n * q + 1) / (n + K)
    mean = p.mean(0)
    divergence = float((xlogy(mean, mean) - xlogy(mean, q)).sum())
    return float(1 - (divergence + entropies(p).mean()) / np.log(K))


def nuclear_norm(evidence: Evidence) -> float:
    """The sum of the singular values of P (n_T, K) / sqrt(n_T min(n_T, K)): 1 for confident, balanced predictions.

    It is what BNM maximises. Misled where classes differ in size.

    Source: Cui et al., CVPR 2020; Deng et al., ICML 2023.
    """
    (p,) = evidence.need("nuclear_norm", "p_target")
    n, K = p.shape
    squared = np.linalg.eigvalsh(p.T @ p if n >= K else p @ p.T)
    return float(np.sqrt(np.maximum(squared, 0)).sum() / np.sqrt(n * min(n, K)))


def corr_c(evidence: Evidence) -> float:
    """tr(A) / ||A||_F with A = P' P, from 1 to sqrt(K): the cosine of A and the identity, times sqrt(K).

    Confident, balanced predictions have the most of it. Misled where classes differ in size.

    Source: Tu et al., arXiv 2302.01094. A comment in the code of EnsV takes the smallest for the best, which is that
    of a model that says one class everywhere, or every class equally.
    """
    (p,) = evidence.need("corr_c", "p_target")
    A = p.T @ p
    return float(A.trace() / np.linalg.norm(A))


def snd(evidence: Evidence) -> float:
    """Soft neighbourhood density: the mean entropy of the softmax over similarities of softmax outputs / 0.05.

    The rows of P have unit length, and a sample's similarity to itself is -1. Loves collapse most of all validators.

    Source: Saito et al., ICCV 2021, equations 1 to 3, on softmax outputs as there.
    """
    (p,) = evidence.need("snd", "p_target")
    p = p[_sample(len(p), evidence.seed)]
    if len(p) < 3:
        raise DataError("The validator snd needs at least three target images: give more.")
    p = p / np.linalg.norm(p, axis=1, keepdims=True)
    total = 0.0
    for start in range(0, len(p), BLOCK):
        similarity = p[start : start + BLOCK] @ p.T
        rows = np.arange(len(similarity))
        similarity[rows, start + rows] = -1
        total += float(entropies(softmax(similarity / 0.05, axis=1)).sum())
    return total / len(p)


def ac(evidence: Evidence) -> float:
    """Average confidence, mean_x max p(x). As an estimate of the accuracy it is nearly always too high."""
    (p,) = evidence.need("ac", "p_target")
    return float(p.max(1).mean())


def mano(evidence: Evidence) -> float:
    """MaNo, the (n_T K)-normalised 4-norm of normalised logits, from 1/K to K^-1/4. Loves collapse.

    If the mean of -log softmax over images and classes exceeds 5, the normalisation is softmax, otherwise that of
    1 + z + z^2 / 2. All images at once, from a model in evaluation mode: the authors' script takes batches in train
    mode.

    Source: Xie et al., NeurIPS 2024, equations 4 to 6; less the smallest of a row, as in the authors' code.
    """
    (z,) = evidence.need("mano", "z_target")
    K = z.shape[1]
    if -log_softmax(z, axis=1).mean() > 5:
        q = softmax(z, axis=1)
    else:
        q = 1 + z + z**2 / 2
        q -= q.min(1, keepdims=True)
        total = q.sum(1, keepdims=True)
        q = np.where(total > 0, q / np.where(total > 0, total, 1), 1 / K)
    return float((q**4).mean() ** 0.25)


def aetta(evidence: Evidence) -> float:
    """1 - clip(e / (H(mean p) / ln K)^3, 0, 1 - 1/K), e the share of predictions that passes with dropout change.

    Source: Lee et al., CVPR 2024.
    """
    p, passes = evidence.need("aetta", "p_target", "p_dropout")
    K: int = p.shape[1]
    disagreement = float((passes.argmax(2) != p.argmax(1)).mean())
    spread = float((entropies(p.mean(0)) / np.log(K)) ** 3)
    worst = 1 - 1 / K
    return 1 - (min(disagreement / spread, worst) if spread > 0 else worst)


# --- of the held-out source -----------------------------------------------------------------------------------------


def source_accuracy(evidence: Evidence) -> float:
    """The accuracy on the held-out source. Blind to all that happens in the target."""
    p, y = evidence.need("source_accuracy", "p_source", "y_source")
    return float((p.argmax(1) == y).mean())


def doc(evidence: Evidence) -> float:
    """Difference of confidences: accuracy on the source + mean confidence on the target - that on the source.

    The probabilities are first tempered to be right on the source. An estimate of the accuracy for a model that was
    trained on the source alone; too high after training on the target.

    Source: Guillory et al., ICCV 2021.
    """
    p_t, p_s, y = evidence.need("doc", "p_target", "p_source", "y_source")
    T = temperature(p_s, y)
    gain = tempered(p_t, T).max(1).mean() - tempered(p_s, T).max(1).mean()
    return source_accuracy(evidence) + float(gain)


def atc(evidence: Evidence) -> float:
    """Average thresholded confidence: the share of the target whose -H(p) is at least t, as in the source's accuracy.

    t is such that as many source images lie below it as are wrong. The probabilities are first tempered to be right
    on the source. An estimate of the accuracy for a model that was trained on the source alone; too high after
    training on the target.

    Source: Garg et al., ICLR 2022.

    Raises:
        DataError: Fewer than 10 images of the held-out source are wrong.
    """
    p_t, p_s, y = evidence.need("atc", "p_target", "p_source", "y_source")
    wrong = int((p_s.argmax(1) != y).sum())
    if wrong < LEAST_ERRORS:
        raise DataError(
            f"The validator atc needs at least {LEAST_ERRORS} errors on the held-out source, not {wrong}: "
            "hold out more of it."
        )
    T = temperature(p_s, y)
    certain_s, certain_t = -entropies(tempered(p_s, T)), -entropies(tempered(p_t, T))
    threshold = np.sort(certain_s)[wrong] if wrong < len(certain_s) else np.inf
    return float((certain_t >= threshold).mean())


def iwcv(evidence: Evidence) -> float:
    """Importance-weighted accuracy on the held-out source, sum(w right) / sum(w), w the ratio of the densities.

    The ratio is that of a domain classifier, see `density_ratio`, in place of two density estimates. Blind where the
    domains do not overlap.

    Source: Sugiyama et al., JMLR 2007.

    Raises:
        DataError: The weights are worth fewer than 50 images, or their mean lies far below 1.
    """
    p, y = evidence.need("iwcv", "p_source", "y_source")
    w = density_ratio("iwcv", evidence)
    effective = float(w.sum() ** 2 / (w**2).sum())
    if effective < LEAST_OVERLAP or w.mean() < LEAST_WEIGHT:
        raise DataError(
            "The domains overlap too little for iwcv to weight the source by the target: choose another validator."
        )
    return float((w * (p.argmax(1) == y)).sum() / w.sum())


def dev(evidence: Evidence) -> float:
    """Minus the deep embedded validation risk, -(mean(w l) + eta mean(w) - eta), eta = -cov(w l, w) / var(w).

    l is the cross-entropy of a held-out source image, w the ratio of the densities, see `density_ratio`. Without
    bound once weights explode, and then it picks the worst.

    Source: You et al., ICML 2019, equations 7 to 10.
    """
    return -_risk(_losses("dev", evidence), density_ratio("dev", evidence))


def devn(evidence: Evidence) -> float:
    """`dev` with weights that are divided by the largest and shifted to a mean of 1, which keeps them bounded.

    Source: Musgrave et al., arXiv 2208.07360.
    """
    w = density_ratio("devn", evidence)
    w = w / w.max()
    return -_risk(_losses("devn", evidence), w - w.mean() + 1)


def _losses(validator: str, evidence: Evidence) -> Floats:
    """The cross-entropy (n_S,) of each held-out source image."""
    p, y = evidence.need(validator, "p_source", "y_source")
    losses: Floats = -np.log(np.maximum(p[np.arange(len(y)), y], SMALLEST))
    return losses


def _risk(losses: Floats, w: Floats) -> float:
    weighted = w * losses
    variance = float(w.var(ddof=1))
    eta = -float(np.cov(weighted, w)[0, 1]) / variance if variance > 0 else 0.0
    return float(weighted.mean() + eta * w.mean() - eta)


def density_ratio(validator: str, evidence: Evidence) -> Floats:
    """The weight (n_S,) of each held-out source image: how much more often the target has its like.

    w = n_S / n_T * P(target | f) / P(source | f) from a logistic regression on standardised features, each image
    judged by one of five that did not see it.

    Raises:
        DataError: There are too few images, or the domains do not overlap at all.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    f_t, f_s = evidence.need(validator, "f_target", "f_source")
    f_t = f_t[_sample(len(f_t), evidence.seed)]
    if min(len(f_s), len(f_t)) < 10:
        raise DataError(f"The validator {validator} needs at least 10 images of each domain: give more.")
    order_s, order_t = _canonical(f_s), _canonical(f_t)  # the folds must not depend on the order of the images
    f = np.concatenate([f_s[order_s], f_t[order_t]]).astype(np.float64)
    target = np.repeat([0, 1], [len(f_s), len(f_t)])
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    with _unconverged():
        logits = cross_val_predict(classifier, f, target, cv=5, method="decision_function")
    with np.errstate(over="ignore"):
        w = np.empty(len(f_s))
        w[order_s] = len(f_s) / len(f_t) * np.exp(logits[: len(f_s)])
    if not (np.isfinite(w).all() and np.isfinite((w**2).sum()) and w.max() > 0):
        raise DataError(f"The domains do not overlap, so {validator} has no weights: choose another validator.")
    return w


# --- of features ----------------------------------------------------------------------------------------------------


def class_ami(evidence: Evidence) -> float:
    """Adjusted mutual information of the predictions and the K clusters of the adapted features, at most 1.

    Misled by a method that has torn its features into K clean, wrong clusters.

    Source: Musgrave et al., arXiv 2208.07360.
    """
    p, f = evidence.need("class_ami", "p_target", "f_target")
    return _ami(p, clusters(f, p.shape[1], evidence.seed))


def frozen_class_ami(evidence: Evidence) -> float:
    """`class_ami` on the features of the untouched backbone, which no method has torn. Ours."""
    p, f = evidence.need("frozen_class_ami", "p_target", "frozen_target")
    found = evidence.clusters if evidence.clusters is not None else clusters(f, p.shape[1], evidence.seed)
    return _ami(p, found)


def class_ss(evidence: Evidence) -> float:
    """The silhouette of the K clusters of the adapted features, from -1 to 1. Misled as `class_ami` is.

    Source: Musgrave et al., arXiv 2208.07360.

    Raises:
        DataError: The features have too few clusters.
    """
    from sklearn.metrics import silhouette_score

    p, f = evidence.need("class_ss", "p_target", "f_target")
    found = clusters(f, p.shape[1], evidence.seed)
    kept = found >= 0
    if not 2 <= len(np.unique(found[kept])) < kept.sum():
        raise DataError("The target's features have fewer than two clusters, so class_ss has no value.")
    return float(silhouette_score(_unit(f[kept].astype(np.float64)), found[kept]))


def _ami(p: Floats, found: Classes) -> float:
    from sklearn.metrics import adjusted_mutual_info_score

    kept = found >= 0
    return float(adjusted_mutual_info_score(p.argmax(1)[kept], found[kept]))


def clusters(f: npt.NDArray[Any], K: int, seed: int = 0) -> Classes:
    """The cluster (n,) of each row of features, by k-means on rows of unit length; -1 for a row not in the sample.

    Args:
        f: (n, d) features.
        K: How many clusters to look for.
        seed: Seed of the sample and of the first centres.

    Raises:
        DataError: There are fewer rows than clusters.
    """
    from sklearn.cluster import KMeans

    if len(f) < K:
        raise DataError(f"The target has fewer images than the {K} clusters to look for: choose another validator.")
    kept = _sample(len(f), seed)
    kept = kept[_canonical(f[kept])]  # k-means must not depend on the order of the images
    found = np.full(len(f), -1)
    with _unconverged():  # features that collapsed have fewer clusters
        found[kept] = KMeans(K, n_init=4, random_state=seed).fit_predict(_unit(f[kept].astype(np.float64)))
    return found


def frozen_reverse_accuracy(evidence: Evidence) -> float:
    """The balanced accuracy on the source of a classifier taught by the candidate's predictions on the target.

    A logistic regression on the features of the untouched backbone, centred by domain and of unit length. It drops
    where the predictions have lost the structure of the classes; classes that are swapped as a whole are noticed,
    because the source's labels are true. Reverse validation in a space that no method has moved: ours.
    """
    from sklearn.linear_model import LogisticRegression

    p, f_t, f_s, y = evidence.need("frozen_reverse_accuracy", "p_target", "frozen_target", "frozen_source", "y_source")
    kept = _sample(len(f_t), evidence.seed)
    taught, seen = p.argmax(1)[kept], _centred(f_t[kept])
    judged = _sample(len(f_s), evidence.seed)
    if len(np.unique(taught)) == 1:
        said = np.full(len(judged), taught[0])
    else:
        with _unconverged():
            classifier = LogisticRegression(C=10, max_iter=300).fit(seen, taught)
        said = classifier.predict(_centred(f_s[judged]))
    return balanced_accuracy(said, y[judged])


def estimated_gain(evidence: Evidence) -> float:
    """The estimated change of the accuracy against source-only, by `estimate.estimate_gain`: ours.

    Source-only, the candidate and the class means of the frozen features vote, and the votes spread over the graph of
    the target's frozen features; the figure is how much better than source-only the candidate agrees with the outcome.
    Misled where the frozen features do not bring images of a class together, and by classes that the source lacks.
    """
    p, p_before, f_t, f_s, y = evidence.need(
        "estimated_gain", "p_target", "p_before", "frozen_target", "frozen_source", "y_source"
    )
    K = p.shape[1]
    if len(np.unique(y)) < K:
        raise DataError("The validator estimated_gain needs source images of every class: give more of the source.")
    kept = _sample(len(f_t), evidence.seed)
    graph = evidence.graph if evidence.graph is not None else graph_of(f_t, evidence.seed)
    means = class_means(f_s, y, f_t[kept], K)
    return estimate_gain(p_before[kept].argmax(1), p[kept].argmax(1), means, graph, K)


def graph_of(frozen: npt.NDArray[Any], seed: int) -> csr_array:
    """The graph that `estimated_gain` spreads votes over: of all images, or of the sample of a large target."""
    return consensus.neighbours(frozen[_sample(len(frozen), seed)])


def reverse_accuracy(evidence: Evidence) -> float:
    """The balanced accuracy on the source of the method trained back from the target, under its own predictions.

    Costs a second training. Classes that are swapped both ways are invisible.

    Source: Bruzzone and Marconcini, TPAMI 2010.
    """
    p, y = evidence.need("reverse_accuracy", "p_reverse", "y_source")
    return balanced_accuracy(p.argmax(1), y)


def neighbour_consistency(evidence: Evidence) -> float:
    """The share of an image's 5 nearest neighbours that are predicted to be of its class, mean over the target.

    Nearest by the cosine of centred features of the untouched backbone. It finds scattered errors, not whole classes
    that have moved; loves collapse. Ours.
    """
    p, f = evidence.need("neighbour_consistency", "p_target", "frozen_target")
    found = evidence.neighbours if evidence.neighbours is not None else nearest(f, evidence.seed)
    kept = np.flatnonzero(found[:, 0] >= 0)
    c = p.argmax(1)
    return float((c[found[kept]] == c[kept, None]).mean())


def nearest(f: npt.NDArray[Any], seed: int = 0) -> npt.NDArray[np.int64]:
    """The positions (n, 5) of the rows nearest to each, by the cosine of centred features; -1 outside of the sample.

    Args:
        f: (n, d) features. Of fewer than six rows, all others are neighbours.
        seed: Seed of the sample.

    Raises:
        DataError: There is but one row.
    """
    if len(f) < 2:
        raise DataError("The validator neighbour_consistency needs at least two target images: give more.")
    kept = _sample(len(f), seed)
    unit = _centred(f[kept])
    k = min(NEIGHBOURS, len(kept) - 1)
    found = np.full((len(f), k), -1)
    for start in range(0, len(kept), BLOCK):
        similarity = unit[start : start + BLOCK] @ unit.T
        rows = np.arange(len(similarity))
        similarity[rows, start + rows] = -np.inf
        found[kept[start + rows]] = kept[np.argpartition(-similarity, k - 1, axis=1)[:, :k]]
    return found


# --- of several candidates ------------------------------------------------------------------------------------------


def ensv(evidence: Evidence) -> float:
    """The share of the target on which the candidate agrees with the mean probabilities of all candidates.

    Misled by few candidates of which one is over-confident, and by near-duplicates.

    Source: Hu et al., NeurIPS Datasets and Benchmarks 2024.
    """
    p, everyone = evidence.need("ensv", "p_target", "p_candidates")
    return float((p.argmax(1) == everyone.mean(0).argmax(1)).mean())


def vote(evidence: Evidence) -> float:
    """The share of the target on which the candidate agrees with the majority of all candidates' hard votes.

    Over-confidence has no weight here. Candidates that agree with another on more than 98 % of the images share one
    vote. An image whose vote is tied counts for each of the tied classes in part. Ours, after EnsV.
    """
    p, everyone = evidence.need("vote", "p_target", "p_candidates")
    predictions = everyone.argmax(2)
    return agreement(p.argmax(1), tally(predictions, ballots(predictions), p.shape[1]))


def ballots(predictions: Classes, rows: Sequence[str] | None = None) -> Floats:
    """The weight (m,) of each candidate's vote: those that are near-duplicates, or of one row, share one.

    Args:
        predictions: (m, n_T) classes.
        rows: The row of each candidate; seeds of one method are one row.
    """
    one_voice = np.array([(other == predictions).mean(1) > DUPLICATES for other in predictions])
    if rows is not None:
        one_voice |= np.array([[a == b for b in rows] for a in rows])
    _, group = connected_components(csr_array(one_voice), directed=False)
    weights: Floats = 1 / np.bincount(group)[group]
    return weights


def tally(predictions: Classes, weights: Floats, K: int) -> Floats:
    """The votes (n_T, K) that each class has of candidates who predict (m, n_T) classes."""
    votes = np.zeros((predictions.shape[1], K))
    for classes, weight in zip(predictions, weights, strict=True):
        votes[np.arange(len(classes)), classes] += weight
    return votes


def agreement(classes: Classes, votes: Floats) -> float:
    """The share of images (n_T,) whose class has the most votes (n_T, K); of j classes that are tied each has 1/j."""
    first = votes >= votes.max(1, keepdims=True) - 1e-9  # sums of the same parts may differ in their last bits
    return float((first[np.arange(len(classes)), classes] / first.sum(1)).mean())


# --- of mixed images ------------------------------------------------------------------------------------------------


def mixing_pairs(n: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """The positions (n, 2) of the images to mix: each of n images with another, the same pairs for every candidate.

    Args:
        n: Images of the target, at least two.
        seed: Seed of the order in which each image is mixed with the next.
    """
    order = np.random.default_rng(seed).permutation(n)
    return np.stack([order, np.roll(order, -1)], axis=1)


def mixval_intra(evidence: Evidence) -> float:
    """The share of mixed images that keep the class of their larger part, of pairs predicted to be of one class.

    Loves collapse: who says one class everywhere is consistent. The paper mixes images by their predictions; with
    pairs that are the same for all candidates one pass of the backbone serves them all.

    Source: Hu et al., NeurIPS 2023.

    Raises:
        DataError: There is no such pair.
    """
    return _consistency("mixval_intra", evidence, same=True)


def mixval_inter(evidence: Evidence) -> float:
    """`mixval_intra` of pairs predicted to be of different classes.

    Raises:
        DataError: There is no such pair.
    """
    return _consistency("mixval_inter", evidence, same=False)


def mixval(evidence: Evidence) -> float:
    """The mean of `mixval_intra` and `mixval_inter`. The paper has the mean of their ranks over the candidates."""
    return (mixval_intra(evidence) + mixval_inter(evidence)) / 2


def _consistency(validator: str, evidence: Evidence, *, same: bool) -> float:
    p, mixed, pairs = evidence.need(validator, "p_target", "p_mixed", "pairs")
    a, b = p.argmax(1)[pairs.T]
    chosen = (a == b) == same
    if not chosen.any():
        kind = "one class" if same else "different classes"
        raise DataError(f"No pair of mixed images is predicted to be of {kind}, so {validator} has no value.")
    return float((mixed.argmax(1) == a)[chosen].mean())


# --- what they share ------------------------------------------------------------------------------------------------


def entropies(p: Floats) -> Floats:
    """H(p) of the last axis, natural logarithm; 0 ln 0 is 0."""
    h: Floats = -xlogy(p, p).sum(-1)
    return h


def balanced_accuracy(said: npt.NDArray[Any], y: npt.NDArray[Any]) -> float:
    """The mean over the classes in `y` of the share that is recognised."""
    return float(np.mean([(said[y == k] == k).mean() for k in np.unique(y)]))


def temperature(p: Floats, y: Classes) -> float:
    """The T that makes p^(1/T), scaled to add up to 1, most likely for the labels, between 1/20 and 20.

    Source: Guo et al., ICML 2017.
    """
    rows = np.arange(len(y))

    def loss(log_T: float) -> float:
        q = tempered(p, np.exp(log_T))
        return -float(np.log(np.maximum(q[rows, y], SMALLEST)).mean())

    found = minimize_scalar(loss, bounds=(-np.log(20), np.log(20)), method="bounded")
    return float(np.exp(found.x))


def tempered(p: Floats, T: float) -> Floats:
    """p^(1/T), scaled to add up to 1: the probabilities of logits divided by T."""
    q: Floats = softmax(np.log(np.maximum(p, SMALLEST)) / T, axis=1)
    return q


@contextmanager
def _unconverged() -> Iterator[None]:
    """What has not quite converged is good enough for a score."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def _sample(n: int, seed: int) -> npt.NDArray[np.intp]:
    """The positions of all of n rows, or of a seeded sample of 5,000."""
    if n <= SAMPLE:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, SAMPLE, replace=False))


def _canonical(f: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """An order of the rows that depends on nothing but what they hold."""
    rows = [row.tobytes() for row in np.ascontiguousarray(f)]
    return np.array(sorted(range(len(rows)), key=rows.__getitem__), dtype=np.intp)


def _unit(f: Floats) -> Floats:
    """The rows at unit length; a row of zeros stays."""
    length = np.linalg.norm(f, axis=1, keepdims=True)
    unit: Floats = f / np.where(length > 0, length, 1)
    return unit


def _centred(f: npt.NDArray[Any]) -> Floats:
    """The rows less their mean, at unit length."""
    f = f.astype(np.float64)
    return _unit(f - f.mean(0))


Validator: TypeAlias = Callable[[Evidence], float]

VALIDATORS: dict[str, Validator] = {
    function.__name__: function
    for function in (
        entropy, diversity, im, im_shares, nuclear_norm, corr_c, snd, ac, mano, aetta,
        source_accuracy, doc, atc, iwcv, dev, devn,
        class_ami, frozen_class_ami, class_ss, frozen_reverse_accuracy, reverse_accuracy, neighbour_consistency,
        estimated_gain, ensv, vote, mixval_intra, mixval_inter, mixval,
    )
}  # fmt: skip
"""Every validator by its name."""


def validator(name: str) -> Validator:
    """The validator of this name.

    Raises:
        OptionError: There is none.
    """
    if name not in VALIDATORS:
        raise OptionError(f"There is no validator {name!r}: choose one of {', '.join(VALIDATORS)}.")
    return VALIDATORS[name]


# --- for scikit-learn and Optuna ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ValidatorScorer:
    """Scores a fitted estimator by a validator. It is what `make_validator_scorer` makes.

    Attributes:
        name: The validator's name.
        shares: The estimated shares of the classes in the target, in the order of `classes_`, for `im_shares`.
        seed: Seed of samples and of k-means.
    """

    name: str
    shares: tuple[float, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a name that no validator has."""
        validator(self.name)

    def __call__(self, estimator: Any, X: Any = None, y: Any = None) -> float:
        """The score of a fitted estimator; the larger, the better.

        Args:
            estimator: A fitted `AdaptiveClassifier`, or a pipeline that ends in one.
            X: Samples of the source that stayed out of the fit, for validators that look at them.
            y: Their labels.

        Raises:
            DataError: The estimator was fitted without a target, or the validator needs what it does not have.
        """
        return validator(self.name)(_seen(estimator, X, y, self.shares, self.seed))


def make_validator_scorer(name: str, *, shares: Sequence[float] | None = None, seed: int = 0) -> ValidatorScorer:
    """A scorer that looks at the target without its labels, `GridSearchCV(..., scoring=make_validator_scorer("im"))`.

    The target is that of the fit, which the estimator keeps as `X_target_`; the fold that scikit-learn holds out is
    the held-out source. For Optuna it is called itself: `return scorer(model.fit(X, y, X_target=T), X_out, y_out)`,
    in a study of `direction="maximize"`.

    Args:
        name: One of `VALIDATORS`. Those that compare candidates (ensv, vote) or need more than one model's answers
            refuse when they are called.
        shares: The estimated shares of the classes in the target, for `im_shares`.
        seed: Seed of samples and of k-means.

    Raises:
        OptionError: There is no validator of this name.
    """
    return ValidatorScorer(name, None if shares is None else tuple(shares), seed)


def _seen(estimator: Any, X: Any, y: Any, shares: tuple[float, ...] | None, seed: int) -> Evidence:
    """The evidence that a fitted estimator and a held-out part of the source give."""
    from sklearn.pipeline import Pipeline

    if isinstance(estimator, Pipeline):
        X = estimator[:-1].transform(X) if X is not None and len(estimator) > 1 else X
        estimator = estimator[-1]
    X_target = getattr(estimator, "X_target_", None)
    if X_target is None:
        raise DataError("The estimator was fitted without a target: give X_target to fit, so that it can be scored.")
    arrays = _answers(estimator, X_target, "target")
    if X is not None:
        arrays |= _answers(estimator, X, "source")
    if y is not None:
        y = np.asarray(y)
        if not np.isin(y, estimator.classes_).all():
            raise DataError("The held-out source has classes that were not fitted: give each fold images of all.")
        arrays["y_source"] = np.searchsorted(estimator.classes_, y)
    return Evidence(**arrays, shares=None if shares is None else np.asarray(shares), seed=seed)


def _answers(estimator: Any, X: Any, side: str) -> dict[str, Any]:
    """What the estimator says of samples: probabilities, its features, and the vectors themselves, which are frozen."""
    arrays = {f"p_{side}": estimator.predict_proba(X)}
    if hasattr(estimator, "transform"):
        arrays[f"f_{side}"] = estimator.transform(X)
    frozen = np.asarray(X)
    if frozen.ndim == 2 and frozen.dtype.kind in "fiu":
        arrays[f"frozen_{side}"] = frozen
    return arrays
