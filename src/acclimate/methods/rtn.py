"""RTN: a source classifier that differs from the target's by a residual."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from acclimate.choices import Estimator
from acclimate.data.batches import Labelled, Unlabelled
from acclimate.methods.base import Method, Objective
from acclimate.methods.parts.losses import distances_from_gram, entropy, gaussian_kernels, mmd
from acclimate.networks.network import Network


class RTN(Method):
    """Residual Transfer Network (Long, Zhu, Wang and Jordan, NIPS 2016).

    The domains need not share a classifier: the source's is the target's with a residual added, learned from the
    source's labels. The target's is kept in place by the MMD of features and logits fused and by confident predictions.

        z = classifier(f), the target's logits;  z_s + residual(z_s), the source's
        k_ij = sum over c in {1/4, 1/2, 1, 2, 4} of exp(-||f_i (x) z_i - f_j (x) z_j||^2 / (c b))
        L = CE(z_s + residual(z_s), y_s) + trade_off * mmd(k) + ramp * entropy_weight * mean H(softmax(z_t))

    Here b is the mean of ||f_i (x) z_i - f_j (x) z_j||^2 over all pairs of the joint batch, without a gradient. The
    outer products are never formed: <f_i (x) z_i, f_j (x) z_j> = <f_i, f_j> <z_i, z_j>.

    Differences from the paper:
        The authors' code shrinks the outer product by max-pooling, to save memory; nothing is pooled here. Its weights
        are 1 and 0.1, the second ramped; here they are the paper's, and the entropy is ramped as in the code
        (`ramped=False` is the paper), since the predictions of the first steps should not be made confident. The
        default estimate of the MMD leaves out the pairs of a sample with itself, which the paper's formula includes
        (`estimator="biased"`). The network is TLL's, with a bottleneck Linear-BatchNorm-ReLU.

    Args:
        net: The network.
        num_classes: K.
        trade_off: Weight lambda of the MMD.
        entropy_weight: Weight gamma of the target's entropy.
        ramped: Multiply the weight of the entropy by the ramp.
        estimator: How the MMD is estimated: "unbiased" or "biased" from all pairs, "linear" from neighbours in the
            batch, "pairs" from disjoint pairs.
    """

    paper = "Long et al., Unsupervised Domain Adaptation with Residual Transfer Networks, NIPS 2016"
    year = 2016
    family = "discrepancy"
    rows: ClassVar[Mapping[str, Mapping[str, Any]]] = {"RTN": {}}
    good_for = "a steady gain at little cost"
    target_only = True

    def __init__(
        self,
        net: Network,
        num_classes: int,
        *,
        trade_off: float = 0.3,
        entropy_weight: float = 0.3,
        ramped: bool = True,
        estimator: Estimator = "unbiased",
    ) -> None:
        super().__init__(net, num_classes)
        self.trade_off = trade_off
        self.entropy_weight = entropy_weight
        self.ramped = ramped
        self.estimator: Estimator = estimator
        self.classifier = nn.Linear(net.dim, num_classes)
        self.residual = nn.Sequential(
            nn.Linear(num_classes, num_classes), nn.ReLU(), nn.Linear(num_classes, num_classes)
        )

    def step(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        """One objective: classification of the source, discrepancy of the fused layers, entropy of the target."""
        f = torch.cat(self.net.pair(s.x, t.x))  # (B_s + B_t, d)
        z = self.classifier(f)  # (B_s + B_t, K)
        z_s, z_t = z.split([len(s.y), len(t.x)])  # (B, K)
        k = gaussian_kernels(distances_from_gram((f @ f.T) * (z @ z.T)))  # (B_s + B_t, B_s + B_t)
        entropy_weight = self.entropy_weight * (self.ramp if self.ramped else 1.0)
        yield Objective(
            classification=cross_entropy(z_s + self.residual(z_s), s.y),
            mmd=self.trade_off * mmd(k, len(s.y), self.estimator),
            entropy=entropy_weight * entropy(z_t).mean(),
        )

    def predict(self, x: Tensor) -> Tensor:
        """The target's class logits (B, K), without the residual."""
        z: Tensor = self.classifier(self.net(x))
        return z
