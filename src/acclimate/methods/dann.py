"""DANN: features that a discriminator cannot tell apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from acclimate.choices import Critic
from acclimate.data.batches import Labelled, Unlabelled
from acclimate.methods.base import Method, Objective
from acclimate.methods.parts.layers import Discriminator, reverse
from acclimate.methods.parts.losses import domain_loss
from acclimate.networks.network import Network


class DANN(Method):
    """Domain-Adversarial Neural Network (Ganin et al., JMLR 2016; Ganin and Lempitsky, ICML 2015).

    A discriminator learns to tell source features from target features, and the network, through a gradient
    reversal, to make that impossible, while a classifier keeps the features useful.

        L = CE(classifier(f_s), y_s) + trade_off * domain_loss(critic, reverse(f_s, ramp), reverse(f_t, ramp))

    Differences from the paper:
        The network, the discriminator with BatchNorm and the mean over both domains are those of TLL, whose figures
        are the better reproduced. The original scales the domain loss by 0.1 in its Caffe code: `trade_off=0.1`.

    Args:
        net: The network.
        num_classes: K.
        trade_off: Weight of the domain loss, for the discriminator as well.
        critic: The discriminator: "mlp", "dropout" (as in CDAN's code) or "linear".
        hidden: Width of the discriminator's hidden layers.
    """

    paper = "Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016"
    year = 2016
    family = "adversarial"
    rows: ClassVar[Mapping[str, Mapping[str, Any]]] = {"DANN": {}}
    good_for = "the classic to compare with; equal class shares"

    def __init__(
        self, net: Network, num_classes: int, *, trade_off: float = 1.0, critic: Critic = "mlp", hidden: int = 1024
    ) -> None:
        super().__init__(net, num_classes)
        self.trade_off = trade_off
        self.classifier = nn.Linear(net.dim, num_classes)
        self.critic = Discriminator(net.dim, kind=critic, hidden=hidden)

    def step(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        """One objective: classification of the source, and the reversed domain loss."""
        f_s, f_t = self.net.pair(s.x, t.x)  # (B, d)
        adversarial = domain_loss(self.critic, reverse(f_s, self.ramp), reverse(f_t, self.ramp))
        yield Objective(
            classification=cross_entropy(self.classifier(f_s), s.y),
            adversarial=self.trade_off * adversarial,
        )

    def predict(self, x: Tensor) -> Tensor:
        """Class logits (B, K)."""
        z: Tensor = self.classifier(self.net(x))
        return z

    def domain_logits(self, x: Tensor) -> dict[str, Tensor]:
        """The discriminator's logits of f."""
        return {"f": self.critic(self.net(x))}
