"""TCA: the directions in which the domains have the same mean and the data still vary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from scipy.linalg import eigh
from torch import Tensor
from torch.nn import functional as F

from acclimate.choices import Shallow, Side
from acclimate.data.batches import Labelled, Pair, Unlabelled
from acclimate.errors import DataError, OptionError
from acclimate.methods.base import Method, Objective, Stage, over_all
from acclimate.methods.parts.layers import Fitted, ShallowClassifier, deviation
from acclimate.networks.network import Network

MOST_SAMPLES = 10_000
"""With a kernel that is not linear, matrices of as many rows and columns are decomposed, 0.8 GB each."""


class TCA(Method):
    """Transfer Component Analysis (Pan, Tsang, Kwok and Yang, IEEE Transactions on Neural Networks 2011).

    Samples of both domains are embedded so that the domains' means coincide, in the space of a kernel, while the
    variance is kept. A classifier is then fitted to the source's embedding. Nothing is trained: the embedding solves
    an eigenproblem.

        K = kernel(X, X),  X = [X_s; X_t]                                              (n, n), n = n_s + n_t
        e = [1 / n_s for each of the source; -1 / n_t for each of the target]          tr(K e e^T) = MMD^2
        W = argmin tr(W^T K e e^T K W) + mu tr(W^T W)  s.t.  W^T K H K W = I           (n, m)
        z = classifier(kernel(x, X) W)                                                 (B, K)

    W consists of the leading eigenvectors of (K H K) w = rho (K e e^T K + mu I) w, where H takes the mean away. With
    the linear kernel any F with F F^T = X^T X gives the same embedding, with X F in place of K and x F in place of
    kernel(x, X): a problem of D rows where there are more samples than features.

    Differences from the paper:
        The features are the backbone's, without a bottleneck. The paper classifies with least squares and an RBF
        kernel of fixed width; the tables of deep methods have a linear SVM on the embedding. m = 50, the linear
        kernel and mu are ours. Samples are normalised so that k(x, x) is 1, or 1 on average, since mu has the scale
        of K squared: of samples of that size, mu = 1 drops directions of little variance before it drops the
        difference of the domains' means. The squared width of the RBF kernel is the median of the squared distances
        that are not 0.

    Args:
        net: The network; its bottleneck is left out.
        num_classes: K.
        dim: Components m; fewer where the samples span fewer. None is 50, or half the features if that is less: all
            components together would hold the difference of the domains as well.
        kernel: "linear", or "rbf" for exp(-|x - x'|^2 / (2 sigma^2)), for up to 10,000 samples.
        mu: Weight of the penalty on W, against the distance of the means.
        normalise: What is done to samples first: "l2" gives each the length 1; "zscore" gives each feature, over both
            domains together, the mean 0 and the variance 1 / D; "none" leaves them alone.
        classifier: What is fitted to the source's embedding: "svm" (linear), "logistic" or "1nn".
    """

    paper = "Pan et al., Domain Adaptation via Transfer Component Analysis, IEEE Transactions on Neural Networks 2011"
    year = 2011
    family = "shallow"
    rows: ClassVar[Mapping[str, Mapping[str, Any]]] = {"TCA": {}}
    good_for = "a first look at little data"

    def __init__(
        self,
        net: Network,
        num_classes: int,
        *,
        dim: int | None = None,
        kernel: Literal["linear", "rbf"] = "linear",
        mu: float = 0.01,
        normalise: Literal["l2", "zscore", "none"] = "l2",
        classifier: Shallow = "svm",
    ) -> None:
        super().__init__(net.without_bottleneck(), num_classes)
        if not mu > 0:
            raise OptionError("mu of tca must be above 0: without the penalty on W the components are not determined.")
        self.dim = dim or min(50, max(self.net.dim // 2, 1))
        self.kernel = kernel
        self.mu = mu
        self.normalise = normalise
        self.fitted = Fitted()
        self.classifier = ShallowClassifier(num_classes, kind=classifier)

    def step(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        """Nothing: there is no training."""
        yield from ()

    def stages(self, data: Pair) -> Iterator[Stage]:
        """None: the embedding and the classifier are computed here, in float64.

        Raises:
            OptionError: There are too many samples for the kernel.
            DataError: All samples are alike.
        """
        n_s, n_t = len(data.source), len(data.target)
        if self.kernel == "rbf" and n_s + n_t > MOST_SAMPLES:
            raise OptionError(
                f"tca with kernel=rbf compares every sample with every other and takes {MOST_SAMPLES:,} at most, not "
                f"{n_s + n_t:,}: use kernel=linear."
            )
        domains = (over_all(self, self.net, inputs, device=data.device) for inputs in (data.source, data.target))
        f = torch.cat(list(domains))  # (n, D)
        e = torch.tensor([1 / n_s] * n_s + [-1 / n_t] * n_t, dtype=torch.float64)  # (n,)
        self._fit_embedding(f.cpu().double(), e)
        self.classifier.fit(self.embedding(f[:n_s].cpu().double()), data.labels)
        for part in (self.fitted, self.classifier):
            part.to(data.device, f.dtype)
        yield from ()

    def predict(self, x: Tensor) -> Tensor:
        """Class logits (B, K)."""
        z: Tensor = self.classifier(self.embedding(self.net(x)))
        return z

    def feature(self, x: Tensor, domain: Side) -> Tensor:
        """The embedding (B, m)."""
        return self.embedding(self.net(x))

    def embedding(self, f: Tensor) -> Tensor:
        """The components (B, m) of features (B, D), of any sample."""
        x = self._normalised(f)
        if self.kernel == "rbf":
            x = rbf(x, self.fitted["X"], self.fitted["sigma2"])  # (B, n)
        return x @ self.fitted["W"]

    def _fit_embedding(self, f: Tensor, e: Tensor) -> None:
        if self.normalise == "zscore":
            self.fitted.put(mean=f.mean(0), length=deviation(f) * f.shape[1] ** 0.5)
        X = self._normalised(f)  # (n, D)
        if self.kernel == "rbf":
            squared = torch.pdist(X) ** 2
            sigma2 = squared[squared > 0].median() if squared.any() else squared.new_ones(())
            self.fitted.put(X=X, sigma2=sigma2, W=components(rbf(X, X, sigma2), e, self.mu, self.dim))
        else:
            root = root_of_gram(X)  # (D, q)
            self.fitted.put(W=root @ components(X @ root, e, self.mu, self.dim))  # (D, m)

    def _normalised(self, f: Tensor) -> Tensor:
        if self.normalise == "zscore":
            return (f - self.fitted["mean"]) / self.fitted["length"]
        return F.normalize(f) if self.normalise == "l2" else f


def components(K: Tensor, e: Tensor, mu: float, dim: int) -> Tensor:
    """W (q, m) such that K W is the embedding: the leading eigenvectors of (K^T H K) w = rho (K^T e e^T K + mu I) w.

    They are scaled to W^T K^T H K W = I. m is `dim`, or the number of components that vary if that is less.

    Args:
        K: The kernel matrix (n, n), or for the linear kernel what stands for it, (n, q).
        e: Whose product with itself is the matrix L of the MMD, (n,).
        mu: Weight of |W|^2, above 0.
        dim: Most components.

    Raises:
        DataError: Nothing varies.
    """
    q = K.shape[1]
    centred = K - K.mean(0)  # H K
    scatter, apart = centred.T @ centred, K.T @ e  # (q, q), (q,)
    penalty = apart.outer(apart) + mu * torch.eye(q, dtype=K.dtype)  # (q, q)
    values, vectors = eigh(scatter.numpy(), penalty.numpy(), subset_by_index=[max(q - dim, 0), q - 1])
    rho, W = torch.from_numpy(values).flip(0), torch.from_numpy(vectors).flip(1)  # the largest first
    varies = rho > max(1e-12 * rho[0].item(), 1e-24)  # below that an eigenvector is rounding
    if not varies.any():
        raise DataError("All samples have the same features: tca has nothing to learn from.")
    return W[:, varies] / rho[varies].sqrt()  # eigh scales to W^T penalty W = I, where W^T scatter W = diag(rho)


def root_of_gram(X: Tensor) -> Tensor:
    """F (D, q) with F F^T = X^T X, of samples X (n, D), where q is the lesser of n and D."""
    if len(X) <= X.shape[1]:
        return X.T
    values, vectors = torch.linalg.eigh(X.T @ X)
    root: Tensor = vectors * values.clamp(min=0).sqrt()
    return root


def rbf(x: Tensor, X: Tensor, sigma2: Tensor) -> Tensor:
    """The kernel exp(-|x - x'|^2 / (2 sigma^2)) of x (B, D) with X (n, D): (B, n)."""
    distance = torch.cdist(x, X, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.exp(-(distance**2) / (2 * sigma2))
