"""SimNet: a sample belongs to the class whose prototype it is most similar to."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acclimate.choices import Critic
from acclimate.data.batches import Labelled, Pair, Unlabelled
from acclimate.methods.base import Method, Objective, Stage, over_all
from acclimate.methods.parts.layers import Discriminator, class_means, reverse
from acclimate.methods.parts.losses import domain_loss
from acclimate.networks.network import Network


class SimNet(Method):
    """Similarity Network (Pinheiro, CVPR 2018).

    In place of a classifier stands a bilinear similarity between the feature of a sample and the prototype of each
    class, which is the mean over the source's images of that class of what a second network g = `prototype_net` makes
    of them. A discriminator makes the features, not the prototypes, alike in both domains.

        mu_k = mean over the source's class k of g(x),  P = rows mu_k / |mu_k|                    (K, d)
        h = (U f) (V P)^T,  p = softmax(h)                                                       (B, K)
        L = CE(h_s, y_s) + gamma |P P^T - I|^2
            + trade_off * domain_loss(critic, reverse(f_s, ramp), reverse(f_t, ramp))

    Differences from the paper:
        Taking the means over the whole source in every step is out of reach. In training mu is a moving average over
        the batches, through whose current part alone the gradient reaches g; a class that a batch lacks keeps its mu.
        After training mu is the mean over the whole source, in evaluation mode, and is saved with the model. The
        prototypes have length 1, as the regulariser wants them: of features as long as those of a bottleneck it
        outweighs all else, and the prototypes shrink to nothing (`unit=False`). It is taken of the K x K Gram matrix;
        the paper prints the d x d one, whose identity K prototypes cannot reach where K < d. The recipe and the ramp
        are those of TLL's DANN, as nothing is published; g starts as a copy of the network, its new layers included.

    Args:
        net: The network f; g is a copy of it.
        num_classes: K.
        trade_off: Weight lambda of the domain loss, for the discriminator as well.
        gamma: Weight of the regulariser.
        rank: m, the rows of U and V.
        unit: Scale the prototypes to length 1; without it P = mu.
        theta: Weight of the past in the moving prototypes.
        critic: The discriminator: "mlp", "dropout" (as in CDAN's code) or "linear".
        hidden: Width of the discriminator's hidden layers.
    """

    paper = "Pinheiro, Unsupervised Domain Adaptation with Similarity Learning, CVPR 2018"
    year = 2018
    family = "adversarial"
    rows: ClassVar[Mapping[str, Mapping[str, Any]]] = {"SimNet": {}}
    good_for = "classes of one typical look; equal class shares"

    prototypes: Tensor

    def __init__(
        self,
        net: Network,
        num_classes: int,
        *,
        trade_off: float = 0.5,
        gamma: float = 0.01,
        rank: int = 512,
        unit: bool = True,
        theta: float = 0.9,
        critic: Critic = "mlp",
        hidden: int = 1024,
    ) -> None:
        super().__init__(net, num_classes)
        self.trade_off = trade_off
        self.gamma = gamma
        self.unit = unit
        self.theta = theta
        self.U = nn.Linear(net.dim, rank, bias=False)
        self.V = nn.Linear(net.dim, rank, bias=False)
        self.critic = Discriminator(net.dim, kind=critic, hidden=hidden)
        self.prototype_net = copy.deepcopy(net)
        self.register_buffer("prototypes", torch.zeros(num_classes, net.dim))

    @property
    def networks(self) -> tuple[Network, ...]:
        """Both networks, f and g."""
        return self.net, self.prototype_net

    def stages(self, data: Pair) -> Iterator[Stage]:
        """One stage; after it the prototypes are taken over the whole source."""
        yield Stage(self.step)
        g = over_all(self, self.prototype_net, data.source, device=data.device)  # (N_s, d)
        self.prototypes, _ = class_means(g, data.labels.to(data.device), self.num_classes)

    def step(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        """One objective: classification by similarity, the prototypes' regulariser, and the reversed domain loss."""
        f_s, f_t = self.net.pair(s.x, t.x)  # (B, d)
        P = self._rows(self._moved(self.prototype_net(s.x), s.y))  # (K, d)
        adversarial = domain_loss(self.critic, reverse(f_s, self.ramp), reverse(f_t, self.ramp))
        yield Objective(
            classification=F.cross_entropy(self._similarity(f_s, P), s.y),
            orthogonality=self.gamma * orthogonality(P),
            adversarial=self.trade_off * adversarial,
        )

    def predict(self, x: Tensor) -> Tensor:
        """Class logits (B, K): the similarities to the prototypes, which move until the training ends."""
        return self._similarity(self.net(x), self._rows(self.prototypes))

    def domain_logits(self, x: Tensor) -> dict[str, Tensor]:
        """The discriminator's logits of f."""
        return {"f": self.critic(self.net(x))}

    def _moved(self, g: Tensor, y: Tensor) -> Tensor:
        """The prototypes mu (K, d) with this batch averaged in, and stored for the next one."""
        means, present = class_means(g, y, self.num_classes)
        mu = torch.where(present, self.theta * self.prototypes + (1 - self.theta) * means, self.prototypes)
        self.prototypes = mu.detach()
        return mu

    def _rows(self, mu: Tensor) -> Tensor:
        return F.normalize(mu) if self.unit else mu

    def _similarity(self, f: Tensor, P: Tensor) -> Tensor:
        h: Tensor = self.U(f) @ self.V(P).T
        return h


def orthogonality(P: Tensor) -> Tensor:
    """|P P^T - I|^2, the sum over all entries: 0 if the rows of P (K, d) are orthonormal."""
    return (P @ P.T - torch.eye(len(P), dtype=P.dtype, device=P.device)).square().sum()
