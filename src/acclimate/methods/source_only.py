"""Source-only: what adaptation is measured against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from acclimate.data.batches import Labelled, Unlabelled
from acclimate.methods.base import Method, Objective
from acclimate.networks.network import Network


class SourceOnly(Method):
    """Source-only: train on the labelled source and apply to the target as it is.

    The target is never looked at, not even by BatchNorm: source batches go through the network alone.

        L = CE(classifier(f_s), y_s)

    Differences from the paper:
        None; the rows of the literature ("ResNet-50") differ in their recipes. Here it is the default one, that of the
        adversarial methods, so that the difference to them is the adaptation's. TLL has a learning rate of 0.001, a
        decay of 3 and a weight decay of 5e-4 for it, as the grids of the papers' tables have.
    """

    paper = "Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016, section 5: the baseline"
    year = 2016
    family = "baseline"
    rows: ClassVar[Mapping[str, Mapping[str, Any]]] = {"ResNet-50": {}, "ResNet-101": {}}
    good_for = "what every other method has to beat"

    def __init__(self, net: Network, num_classes: int) -> None:
        super().__init__(net, num_classes)
        self.classifier = nn.Linear(net.dim, num_classes)

    def step(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        """One objective: the classification of the source."""
        yield Objective(classification=cross_entropy(self.predict(s.x), s.y))

    def predict(self, x: Tensor) -> Tensor:
        """Class logits (B, K)."""
        z: Tensor = self.classifier(self.net(x))
        return z
