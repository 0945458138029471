"""JAN: features and predictions whose joint distributions a kernel cannot tell apart."""

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

LABEL_BANDWIDTH = 1.68


class JAN(Method):
    """Joint Adaptation Network (Long, Zhu, Wang and Jordan, ICML 2017).

    Features whose distributions agree may still lie with other classes than in the source. JAN compares the joint
    distribution of features and predictions: its kernel is the product of one on f and one on p = softmax(z).

        k_ij = [sum over c in {1/4, 1/2, 1, 2, 4} of exp(-||f_i - f_j||^2 / (c b))] * exp(-||p_i - p_j||^2 / 1.68)
        L = CE(z_s, y_s) + ramp * trade_off * mmd(k),  z = classifier(f)

    Here b is the mean of ||f_i - f_j||^2 over all pairs of the joint batch, without a gradient; p has one.

    Differences from the paper:
        The paper trains on an estimate in linear time (`estimator="pairs"`); the default is TLL's, over all pairs but
        a sample with itself, which the paper's definition includes (`estimator="biased"`). TLL keeps the weight
        constant (`ramped=False`); the paper ramps it. The layers are the bottleneck and the predictions, as in TLL,
        where the paper names ResNet's pooled features and predictions. Bottleneck: Linear-BatchNorm-ReLU; TLL's for
        JAN has a dropout behind it. The label bandwidth is that of the authors' code, TLL's 1.693; b leaves out the
        distance of a sample from itself, as the authors' code does, where TLL's mean includes it. Their first code, in
        Caffe, weighs the term by a constant 0.3 and has a second one, of predictions alone. The adversarial variant
        JAN-A is left out.

    Args:
        net: The network.
        num_classes: K.
        trade_off: Weight lambda of the joint MMD.
        ramped: Multiply the weight by the ramp.
        estimator: How the MMD is estimated: "unbiased" or "biased" from all pairs, "linear" from neighbours in the
            batch, "pairs" from disjoint pairs.
    """

    paper = "Long et al., Deep Transfer Learning with Joint Adaptation Networks, ICML 2017"
    year = 2017
    family = "discrepancy"
    rows: ClassVar[Mapping[str, Mapping[str, Any]]] = {"JAN": {}}
    good_for = "large gains at little cost"
    recipe: ClassVar[Mapping[str, Any]] = {"lr": 0.003, "decay": 3.0, "weight_decay": 5e-4}

    def __init__(
        self,
        net: Network,
        num_classes: int,
        *,
        trade_off: float = 1.0,
        ramped: bool = True,
        estimator: Estimator = "unbiased",
    ) -> None:
        super().__init__(net, num_classes)
        self.trade_off = trade_off
        self.ramped = ramped
        self.estimator: Estimator = estimator
        self.classifier = nn.Linear(net.dim, num_classes)

    def step(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        """One objective: classification of the source, and the discrepancy of features and predictions together."""
        f = torch.cat(self.net.pair(s.x, t.x))  # (B_s + B_t, d)
        z = self.classifier(f)  # (B_s + B_t, K)
        k_f = gaussian_kernels(squared_distances(f))  # (B_s + B_t, B_s + B_t)
        k_p = torch.exp(-squared_distances(z.softmax(1)) / LABEL_BANDWIDTH)  # (B_s + B_t, B_s + B_t)
        weight = self.trade_off * (self.ramp if self.ramped else 1.0)
        yield Objective(
            classification=cross_entropy(z[: len(s.y)], s.y),
            jmmd=weight * mmd(k_f * k_p, len(s.y), self.estimator),
        )

    def predict(self, x: Tensor) -> Tensor:
        """Class logits (B, K)."""
        z: Tensor = self.classifier(self.net(x))
        return z
