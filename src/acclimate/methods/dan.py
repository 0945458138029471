"""DAN: features whose distributions a kernel cannot tell apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from acclimate.choices import Estimator
from acclimate.data.batches import Labelled, Unlabelled
from acclimate.methods.base import Method, Objective
from acclimate.methods.parts.losses import gaussian_kernels, mmd, squared_distances
from acclimate.networks.network import Network


class DAN(Method):
    """Deep Adaptation Network (Long, Cao, Wang and Jordan, ICML 2015).

    Two distributions are equal if their means in the feature space of a kernel are. DAN lowers the distance of these
    means, the maximum mean discrepancy (MMD), for a sum of Gaussian kernels of several widths.

        k_ij = sum over c in {1/4, 1/2, 1, 2, 4} of exp(-||f_i - f_j||^2 / (c b))          (B_s + B_t, B_s + B_t)
        L = CE(classifier(f_s), y_s) + trade_off * mmd(k)

    Here b is the mean of ||f_i - f_j||^2 over all pairs of the joint batch, without a gradient.

    Differences from the paper:
        The paper estimates the MMD in linear time from disjoint pairs (`estimator="pairs"`). The default is TLL's
        estimate, also linear, which pairs every sample with its neighbour in the batch and so uses each one twice. As
        the whole kernel matrix is there anyway, "unbiased" costs the same and scatters less (of 32 + 32 samples from
        one distribution, a quarter of the standard deviation); it is not the default because neither the paper's
        figures nor TLL's were made with it. TLL adds a constant to the loss; here it may be negative. The five kernels
        have weight one, as in the authors' code, where the paper learns the weights by a quadratic programme; b
        leaves out the distance of a sample from itself, as that code does, where TLL's mean includes it. One layer is
        adapted, the bottleneck, where the paper adapts three of AlexNet's. The bottleneck is Linear-BatchNorm-ReLU,
        TLL's for DAN Linear-ReLU-Dropout. The weight is TLL's; the paper selects one.

    Args:
        net: The network.
        num_classes: K.
        trade_off: Weight lambda of the MMD.
        estimator: How the MMD is estimated: "linear" from neighbours in the batch, "pairs" from disjoint pairs,
            "unbiased" or "biased" from all pairs.
    """

    paper = "Long et al., Learning Transferable Features with Deep Adaptation Networks, ICML 2015"
    year = 2015
    family = "discrepancy"
    rows: ClassVar[Mapping[str, Mapping[str, Any]]] = {"DAN": {}}
    good_for = "a cheap first alignment"
    recipe: ClassVar[Mapping[str, Any]] = {"lr": 0.003, "decay": 3.0, "weight_decay": 5e-4}

    def __init__(
        self, net: Network, num_classes: int, *, trade_off: float = 1.0, estimator: Estimator = "linear"
    ) -> None:
        super().__init__(net, num_classes)
        self.trade_off = trade_off
        self.estimator: Estimator = estimator
        self.classifier = nn.Linear(net.dim, num_classes)

    def step(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        """One objective: classification of the source, and the discrepancy of the features."""
        f_s, f_t = self.net.pair(s.x, t.x)  # (B, d)
        k = gaussian_kernels(squared_distances(torch.cat([f_s, f_t])))  # (B_s + B_t, B_s + B_t)
        yield Objective(
            classification=cross_entropy(self.classifier(f_s), s.y),
            mmd=self.trade_off * mmd(k, len(f_s), self.estimator),
        )

    def predict(self, x: Tensor) -> Tensor:
        """Class logits (B, K)."""
        z: Tensor = self.classifier(self.net(x))
        return z
