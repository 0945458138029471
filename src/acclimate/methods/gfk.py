"""GFK: a kernel that weighs up all the subspaces on the way from one domain's to the other's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from acclimate.choices import Shallow, Side
from acclimate.data.batches import Labelled, Pair, Unlabelled
from acclimate.errors import DataError, OptionError
from acclimate.methods.base import Method, Objective, Stage, over_all
from acclimate.methods.parts.layers import Fitted, ShallowClassifier, deviation
from acclimate.networks.network import Network

MOST_AXES = 128
"""How far the search for the dimension goes. Each step takes the singular values of matrices of its size."""


class GFK(Method):
    """Geodesic Flow Kernel (Gong, Shi, Sha and Grauman, CVPR 2012).

    The subspaces of the two domains' principal axes are points on a Grassmann manifold. A sample is compared with
    another in every subspace on the geodesic between them; the integral over all is a kernel in closed form.

        P_s, P_t: orthonormal axes of the largest variance of each domain                (D, dim)
        U, cos(theta), V = svd(P_s^T P_t)                                                 principal angles theta
        A = P_s U,  Q = (P_t V - A cos(theta)) / sin(theta)                              (D, dim)
        phi(tau) = A cos(tau theta) + Q sin(tau theta)                                   P_s at 0, P_t at 1
        G = integral from 0 to 1 of phi(tau) phi(tau)^T = [A Q] M [A Q]^T                (D, D)
        z = classifier(x [A Q] M^(1/2))                                                  (B, K)

    The features x [A Q] M^(1/2) have 2 dim entries, and their inner products are x G x'; G itself is never built.

    Differences from the paper:
        The features are the backbone's, without a bottleneck. The paper classifies by the nearest neighbour
        (`classifier="1nn"`); the tables of deep methods have a linear SVM. Where the subspaces' disagreement never
        reaches 1, the search for the dimension ends at 128, at half the features or at the rank of a domain. An
        explicit `dim` may exceed half the features, as no complement of a subspace is needed here.

    Args:
        net: The network; its bottleneck is left out.
        num_classes: K.
        dim: Dimension of the subspaces. None takes the least at which both domains' subspaces have, to two digits, an
            axis at a right angle to the subspace of both together: the disagreement measure of the paper.
        normalise: What is done to the features first, in each domain by itself: "zscore" gives them mean 0 and
            variance 1; "centre" mean 0. A sample to predict is taken for the target's, whose statistics are kept.
        classifier: What is fitted to the source: "svm" (linear), "logistic" or "1nn".
    """

    paper = "Gong et al., Geodesic Flow Kernel for Unsupervised Domain Adaptation, CVPR 2012"
    year = 2012
    family = "shallow"
    rows: ClassVar[Mapping[str, Mapping[str, Any]]] = {"GFK": {}}
    good_for = "a steady gain in seconds, without training"
    target_only = True

    def __init__(
        self,
        net: Network,
        num_classes: int,
        *,
        dim: int | None = None,
        normalise: Literal["zscore", "centre"] = "zscore",
        classifier: Shallow = "svm",
    ) -> None:
        super().__init__(net.without_bottleneck(), num_classes)
        self.dim = dim
        self.normalise = normalise
        self.fitted = Fitted()
        self.classifier = ShallowClassifier(num_classes, kind=classifier)

    def step(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        """Nothing: there is no training."""
        yield from ()

    def stages(self, data: Pair) -> Iterator[Stage]:
        """None: the kernel and the classifier are computed here, in float64.

        Raises:
            OptionError: A domain has fewer axes than `dim`.
            DataError: The samples of a domain are all alike.
        """
        f_s, f_t = (over_all(self, self.net, inputs, device=data.device) for inputs in (data.source, data.target))
        x_s, mean_s, length_s = self._normalised(f_s)  # (n_s, D)
        x_t, mean_t, length_t = self._normalised(f_t)  # (n_t, D)
        projection = flow(*self._subspaces(x_s, x_t))  # (D, 2 dim)
        self.classifier.fit(x_s @ projection, data.labels)
        self.fitted.put(projection=projection)
        self.fitted.put(mean_source=mean_s, length_source=length_s, mean_target=mean_t, length_target=length_t)
        for part in (self.fitted, self.classifier):
            part.to(data.device, f_t.dtype)
        yield from ()

    def predict(self, x: Tensor) -> Tensor:
        """Class logits (B, K) of a batch of the target."""
        z: Tensor = self.classifier(self.feature(x, "target"))
        return z

    def feature(self, x: Tensor, domain: Side) -> Tensor:
        """The features x [A Q] M^(1/2) (B, 2 dim) of a batch of this domain."""
        x = (self.net(x) - self.fitted[f"mean_{domain}"]) / self.fitted[f"length_{domain}"]  # (B, D)
        return x @ self.fitted["projection"]

    def _normalised(self, f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A domain's features (n, D) normalised, in float64, and what was subtracted and divided by, (D,)."""
        x = f.cpu().double()
        mean = x.mean(0)
        length = deviation(x) if self.normalise == "zscore" else torch.ones_like(mean)
        return (x - mean) / length, mean, length

    def _subspaces(self, x_s: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        """P_s and P_t (D, dim)."""
        P_s, P_t = principal_axes(x_s), principal_axes(x_t)  # (D, rank)
        rank = min(P_s.shape[1], P_t.shape[1])
        if rank == 0:
            which = "source" if P_s.shape[1] == 0 else "target"
            raise DataError(f"The samples of the {which} have all the same features: gfk has nothing to learn from.")
        if self.dim is not None and self.dim > rank:
            which = "source" if P_s.shape[1] == rank else "target"
            raise OptionError(f"dim of gfk must be at most {rank} here, the rank of the {which}, not {self.dim}.")
        dim = self.dim or agreed_dimension(P_s, P_t, principal_axes(torch.cat([x_s, x_t])))
        return P_s[:, :dim], P_t[:, :dim]


def principal_axes(x: Tensor) -> Tensor:
    """Orthonormal axes (D, rank) of centred samples x (n, D), that of the largest variance first."""
    n, D = x.shape
    variance, axes = torch.linalg.eigh(x.T @ x if n > D else x @ x.T)
    varies = (variance > 1e-12 * variance[-1]).flip(0)  # below that an axis is rounding
    axes = axes.flip(1)[:, varies]
    P: Tensor = axes if n > D else torch.linalg.qr(x.T @ axes).Q
    return P


def agreed_dimension(P_s: Tensor, P_t: Tensor, P: Tensor) -> int:
    """The least d at which (sin alpha_d + sin beta_d) / 2 is 1.00, the largest allowed if it is nowhere.

    alpha_d and beta_d are the largest principal angles of the first d axes of the source (D, r_s) and the target
    (D, r_t) with those of both together (D, r).

    Source: Gong et al., CVPR 2012, section 3.4.
    """
    largest = max(min(P_s.shape[1], P_t.shape[1], P.shape[1], len(P) // 2, MOST_AXES), 1)
    cos_s, cos_t = P_s.T @ P, P_t.T @ P
    for d in range(1, largest):
        cos = torch.stack([torch.linalg.svdvals(c[:d, :d])[-1] for c in (cos_s, cos_t)]).clamp(max=1)
        if (1 - cos**2).sqrt().mean() >= 0.995:
            return d
    return largest


def flow(P_s: Tensor, P_t: Tensor) -> Tensor:
    """B (D, 2 dim) with B B^T = G, the kernel of the geodesic flow from P_s to P_t (D, dim), both orthonormal.

    Source: Gong et al., CVPR 2012, equations 5 and 6, with A for P_s U_1 and Q for -R_s U_2.
    """
    U, cos, Vh = torch.linalg.svd(P_s.T @ P_t)
    A = P_s @ U  # (D, dim)
    apart = P_t @ Vh.T - A * cos  # (D, dim), orthogonal to A, of length sin(theta)
    sin = apart.norm(dim=0)
    Q = torch.where(sin < 1e-8, 0.0, apart / sin)  # 0 for directions that do not move
    theta = torch.atan2(sin, cos).clamp(min=1e-8)
    L_1 = (1 + torch.sin(2 * theta) / (2 * theta)) / 2
    L_2 = (1 - torch.cos(2 * theta)) / (4 * theta)
    L_3 = (1 - torch.sin(2 * theta) / (2 * theta)) / 2
    M = torch.cat([torch.cat([L_1.diag(), L_2.diag()], 1), torch.cat([L_2.diag(), L_3.diag()], 1)])  # (2 dim, 2 dim)
    values, vectors = torch.linalg.eigh(M)
    B: Tensor = torch.cat([A, Q], 1) @ vectors * values.clamp(min=0).sqrt()
    return B
