"""MSTN: centroids of the same class, one domain's on the other's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from acclimate.choices import Critic, Reduction
from acclimate.data.batches import Labelled, Unlabelled
from acclimate.methods.base import Method, Objective
from acclimate.methods.parts.layers import Discriminator, MovingCentroids, reverse
from acclimate.methods.parts.losses import domain_loss, semantic_loss
from acclimate.networks.network import Network


class MSTN(Method):
    """Moving Semantic Transfer Network (Xie, Zheng, Chen and Chen, ICML 2018).

    DANN makes the domains alike as a whole; MSTN also draws the centroid of each class in the target, by
    pseudo-labels, to that class's centroid in the source. Moving averages make up for small batches.

        L = CE(classifier(f_s), y_s) + trade_off * domain_loss(critic, reverse(f_s, ramp), reverse(f_t, ramp))
            + ramp * semantic_weight * semantic_loss(C_s, C_t)
        C <- theta C + (1 - theta) mean of the batch's f with that (pseudo-)label

    Differences from the paper:
        The network, discriminator and schedules are those of TLL's DANN, the features those of its 256-d bottleneck.
        The distance is the mean over all entries of the centroids, as in the authors' code, while the paper prints a
        sum (`reduction="sum"`), K d times larger. A class that a batch lacks keeps its centroid, where the authors'
        code averages a zero in. Pseudo-labels come from the batch's own forward pass, in training mode. The authors'
        code adds 0.1 times the sum of both domains' cross-entropies, of which the domain loss is half: `trade_off=0.2`.
        DSBN's code, which reproduces it, has 0.1 of the mean. The default is the weight of DANN, which makes the
        adversary five times as heavy beside the semantic loss as in the authors' code.

    Args:
        net: The network.
        num_classes: K.
        trade_off: Weight of the domain loss, for the discriminator as well.
        semantic_weight: Weight of the semantic loss, times the ramp.
        theta: Weight of the past in the moving centroids.
        reduction: How the distance of the centroids is taken: "mean" or "sum".
        critic: The discriminator: "mlp", "dropout" (as in CDAN's code) or "linear".
        hidden: Width of the discriminator's hidden layers.
    """

    paper = "Xie et al., Learning Semantic Representations for Unsupervised Domain Adaptation, ICML 2018"
    year = 2018
    family = "adversarial"
    rows: ClassVar[Mapping[str, Mapping[str, Any]]] = {"MSTN": {}}
    good_for = "classes that form clear groups"

    def __init__(
        self,
        net: Network,
        num_classes: int,
        *,
        trade_off: float = 1.0,
        semantic_weight: float = 1.0,
        theta: float = 0.7,
        reduction: Reduction = "mean",
        critic: Critic = "mlp",
        hidden: int = 1024,
    ) -> None:
        super().__init__(net, num_classes)
        self.trade_off = trade_off
        self.semantic_weight = semantic_weight
        self.reduction: Reduction = reduction
        self.classifier = nn.Linear(net.dim, num_classes)
        self.critic = Discriminator(net.dim, kind=critic, hidden=hidden)
        self.centroids = MovingCentroids(num_classes, net.dim, theta)

    def step(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        """One objective: DANN's two terms and the distance between the centroids."""
        f_s, f_t = self.net.pair(s.x, t.x)  # (B, d)
        y_t = self.classifier(f_t).argmax(1)  # (B,) pseudo-labels
        C_s, C_t = self.centroids(f_s, s.y, f_t, y_t)  # (K, d)
        adversarial = domain_loss(self.critic, reverse(f_s, self.ramp), reverse(f_t, self.ramp))
        yield Objective(
            classification=cross_entropy(self.classifier(f_s), s.y),
            adversarial=self.trade_off * adversarial,
            semantic=self.ramp * self.semantic_weight * semantic_loss(C_s, C_t, self.reduction),
        )

    def predict(self, x: Tensor) -> Tensor:
        """Class logits (B, K)."""
        z: Tensor = self.classifier(self.net(x))
        return z

    def domain_logits(self, x: Tensor) -> dict[str, Tensor]:
        """The discriminator's logits of f."""
        return {"f": self.critic(self.net(x))}
