"""MADA: one discriminator a class, so that the modes of both domains are aligned with each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from acclimate.choices import Family
from acclimate.data.batches import Labelled, Unlabelled
from acclimate.errors import OptionError
from acclimate.methods.base import Method, Objective
from acclimate.methods.parts.layers import Discriminators, reverse
from acclimate.methods.parts.losses import domain_loss
from acclimate.networks.network import Network


class MADA(Method):
    """Multi-Adversarial Domain Adaptation (Pei, Cao, Long and Wang, AAAI 2018).

    DANN may align a class of the source with another class of the target. MADA gives each class a discriminator of its
    own, which sees a sample as far as the classifier takes it for that class.

        a^k = yhat^k f,  yhat = softmax(classifier(f)) in both domains                                 (B, K, d)
        L = CE(classifier(f_s), y_s) + trade_off * sum over k of BCE(critics^k(reverse(a^k, ramp)), domain)

    Differences from the paper:
        The features are those of TLL's 256-d bottleneck with BatchNorm and ReLU. The discriminators are those of the
        authors' code: two hidden layers with ReLU and dropout, without BatchNorm. The loss is the sum over the
        classes of means over the samples, as the paper prints it: since yhat sums to 1, a mean over the classes would
        adapt K times less. The authors' code weighs each class by 0.3 (`trade_off=0.3`). As there, the gradient flows
        through yhat, so the classifier plays against the discriminators as well.

    Args:
        net: The network.
        num_classes: K.
        trade_off: Weight of the domain loss of each class, for the discriminators as well.
        detach: No gradient through yhat: the classifier learns from the source's labels alone.
        hidden: Width of each discriminator. Their weights grow with K hidden^2: 40 million for 31 classes.
        dropout: Part of a discriminator's hidden units that training leaves out, below 1.
    """

    paper: ClassVar[str] = "Pei et al., Multi-Adversarial Domain Adaptation, AAAI 2018"
    year: ClassVar[int] = 2018
    family: ClassVar[Family] = "adversarial"
    rows: ClassVar[Mapping[str, Mapping[str, Any]]] = {"MADA": {}}
    good_for = "the largest gains, where there is time; few classes"

    def __init__(
        self,
        net: Network,
        num_classes: int,
        *,
        trade_off: float = 1.0,
        detach: bool = False,
        hidden: int = 1024,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(net, num_classes)
        if dropout >= 1:
            raise OptionError(f"The option dropout of mada must be below 1, not {dropout}.")
        self.trade_off = trade_off
        self.detach = detach
        self.classifier = nn.Linear(net.dim, num_classes)
        self.critics = Discriminators(num_classes, net.dim, hidden=hidden, dropout=dropout)

    def step(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        """One objective: classification of the source, and the reversed domain loss of all classes."""
        B = [len(s.x), len(t.x)]
        f = torch.cat(self.net.pair(s.x, t.x))  # (2B, d)
        z = self.classifier(f)  # (2B, K)
        a = self.by_class(f, z.detach() if self.detach else z)  # (2B, K, d)
        mean = domain_loss(self.critics, *torch.split(reverse(a, self.ramp), B))  # over samples and classes
        yield Objective(
            classification=cross_entropy(z[: len(s.x)], s.y),
            adversarial=self.trade_off * self.num_classes * mean,
        )

    def by_class(self, f: Tensor, z: Tensor) -> Tensor:
        """The feature's share of each class: yhat^k f (B, K, d), which sum to f over the classes.

        Args:
            f: Features (B, d).
            z: Class logits (B, K).
        """
        return z.softmax(1).unsqueeze(2) * f.unsqueeze(1)

    def predict(self, x: Tensor) -> Tensor:
        """Class logits (B, K)."""
        z: Tensor = self.classifier(self.net(x))
        return z

    def domain_logits(self, x: Tensor) -> dict[str, Tensor]:
        """The K discriminators' logits of f, averaged with the weights yhat."""
        f = self.net(x)  # (B, d)
        z = self.classifier(f)  # (B, K)
        return {"f": (z.softmax(1) * self.critics(self.by_class(f, z))).sum(1)}
