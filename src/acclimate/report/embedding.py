"""Where the domains lie, and how far apart they are."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from acclimate.choices import Side
from acclimate.data.domain import Indices
from acclimate.data.inputs import Inputs
from acclimate.methods.base import Method, over_all

Array: TypeAlias = npt.NDArray[np.float64]

COMPONENTS = 50  # of a feature that t-SNE sees, as its authors recommend

PERPLEXITY = 30.0

ITERATIONS = 500  # half of scikit-learn's: the divergence of 800 photos ends 2 % higher, in half of the time

REGULARISATION = 0.01  # C of the classifier behind the A-distance: there are about as many samples as channels


def sample(n: int, most: int, seed: int = 0) -> Indices:
    """The positions of at most `most` of `n` items, drawn without replacement, in rising order."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False))


def features(method: Method, inputs: Inputs, side: Side, *, device: torch.device) -> Array:
    """The features (N, d) in which a method compares the domains, of one domain, un-augmented."""
    f = over_all(method, lambda x: method.feature(x, side), inputs, device=device)
    return f.double().cpu().numpy()


def frozen_features(inputs: Inputs) -> Array:
    """What the method is given, before anything is trained: (N, C), the mean over the positions of a map or tokens.

    Args:
        inputs: Cached features: vectors (C), maps (C, H, W) or tokens (T, C).
    """
    x = inputs.batch(np.arange(len(inputs)), None).double()
    if x.ndim == 4:
        x = x.mean((2, 3))
    elif x.ndim == 3:
        x = x.mean(1)
    return x.numpy()


def tsne(f_s: Array, f_t: Array, seed: int = 0) -> tuple[Array, Array]:
    """Both domains' features, (N_s, d) and (N_t, d), in one plane: positions in [0, 1] with one scale for both axes.

    Neighbours in the plane are neighbours among the features; distances between groups and their sizes mean nothing.

    Source: van der Maaten and Hinton, JMLR 2008; as in figure 2 of TADA, before and after adaptation.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    f = np.concatenate([f_s, f_t])
    f = f - f.mean(0)
    plane = np.zeros((len(f), 2))
    if f.any():  # else all features are the same, and there is nothing to lay out
        f = np.pad(f / np.abs(f).max(), ((0, 0), (0, max(2 - f.shape[1], 0))))  # it begins with two components
        f = PCA(min(COMPONENTS, *f.shape), svd_solver="full").fit_transform(f)
        perplexity = min(PERPLEXITY, (len(f) - 1) / 3)
        layout = TSNE(perplexity=perplexity, init="pca", max_iter=ITERATIONS, random_state=seed)
        plane = layout.fit_transform(f).astype(np.float64)
    low, high = plane.min(0), plane.max(0)
    extent = max(float((high - low).max()), 1e-12)
    plane = 0.5 + (plane - (low + high) / 2) / extent
    return plane[: len(f_s)], plane[len(f_s) :]


def a_distance(f_s: Array, f_t: Array, seed: int = 0) -> float:
    """The proxy A-distance 2 (1 - 2 err) of two domains: 0 when they cannot be told apart, 2 when always.

    err is the error of a linear classifier of the domains on the half of the samples that it was not trained on, as
    the mean over both halves. It is logistic regression on standardised features; both domains weigh the same.

    Source: Ben-David, Blitzer, Crammer and Pereira, NeurIPS 2006, section 3.

    Args:
        f_s: Features (N_s, d) of the source, at least two.
        f_t: Features (N_t, d) of the target, at least two.
        seed: Of the halves.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    f = np.concatenate([f_s, f_t])
    is_target = np.repeat([0, 1], [len(f_s), len(f_t)])
    accuracies = []
    for train, test in StratifiedKFold(2, shuffle=True, random_state=seed).split(f, is_target):
        tell = LogisticRegression(C=REGULARISATION, class_weight="balanced", max_iter=5000)
        classifier = make_pipeline(StandardScaler(), tell).fit(f[train], is_target[train])
        accuracies.append(balanced_accuracy_score(is_target[test], classifier.predict(f[test])))
    error = 1 - float(np.mean(accuracies))
    return max(2 * (1 - 2 * error), 0.0)
