"""CDAN: a discriminator that sees features together with what the classifier makes of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acclimate.choices import Critic
from acclimate.data.batches import Labelled, Unlabelled
from acclimate.methods.base import Method, Objective
from acclimate.methods.parts.layers import Discriminator, reverse
from acclimate.methods.parts.losses import entropy
from acclimate.networks.network import Network

LARGEST_PRODUCT = 4096  # entries; the paper's rule replaces longer products by a random map


class CDAN(Method):
    """Conditional Domain Adversarial Network (Long, Cao, Wang and Jordan, NeurIPS 2018).

    DANN compares features whatever their class; CDAN's discriminator reads the product of feature and prediction, so
    that it compares class by class. CDAN+E lets samples that the classifier is sure of weigh more.

        g = softmax(classifier(f)), a constant                                                  (2B, K)
        h = all products g_k f_j                                                                (2B, K d)
            or, with `random`, (R_f f) * (R_g g) / sqrt(random_dim) with fixed R from N(0, 1)   (2B, random_dim)
        w = 1 + exp(-H(g)) with `entropy`, else 1; divided by its sum                           (2B,)
        L = CE(classifier(f_s), y_s) + trade_off * sum of w * BCE(critic(reverse(h, ramp)), domain)

    Differences from the paper:
        The network, the discriminator with BatchNorm and the schedules are those of TLL, and so are the weights w:
        constants that sum to 1 over both domains together. In the authors' code they sum to a half in each domain, and
        the entropy is no constant: its reversed gradient pushes the classifier (`weights="domain"`); the discriminator
        has dropout in place of BatchNorm (`critic="dropout"`), and on Office each domain passes through the network by
        itself, so that BatchNorm never sees a mixture. The paper takes the random map where K d > 4096
        (`random="auto"`), but neither the authors' commands nor TLL's, which made the published figures, ever do: so
        the product is the default, however long. The entropy is exact; both codes add 1e-5 inside of its logarithm.

    Args:
        net: The network.
        num_classes: K.
        entropy: Weigh samples by the entropy of their prediction: the row CDAN+E.
        weights: How `entropy`'s weights are made: constants that sum to 1 over both domains ("joint"), or summing to a
            half in each domain and with a reversed gradient ("domain").
        random: The random map in place of the product: "off", "on", or "auto", where the product has more than 4,096
            entries. The discriminator's first layer has `hidden` weights for each entry of the product.
        random_dim: Length of h after the random map.
        trade_off: Weight of the domain loss, for the discriminator as well.
        critic: The discriminator: "mlp", "dropout" (as in CDAN's code) or "linear".
        hidden: Width of the discriminator's hidden layers.
    """

    paper = "Long et al., Conditional Adversarial Domain Adaptation, NeurIPS 2018"
    year = 2018
    family = "adversarial"
    rows: ClassVar[Mapping[str, Mapping[str, Any]]] = {"CDAN": {"entropy": False}, "CDAN+E": {}}
    good_for = "large gains at a fair cost; many classes"

    R_f: Tensor
    R_g: Tensor

    def __init__(
        self,
        net: Network,
        num_classes: int,
        *,
        entropy: bool = True,
        weights: Literal["joint", "domain"] = "joint",
        random: Literal["off", "on", "auto"] = "off",
        random_dim: int = 1024,
        trade_off: float = 1.0,
        critic: Critic = "mlp",
        hidden: int = 1024,
    ) -> None:
        super().__init__(net, num_classes)
        self.by_entropy = entropy
        self.by_domain = weights == "domain"
        self.trade_off = trade_off
        self.classifier = nn.Linear(net.dim, num_classes)
        length = num_classes * net.dim
        self.random = random == "on" or (random == "auto" and length > LARGEST_PRODUCT)
        if self.random:
            length = random_dim
            self.register_buffer("R_f", torch.randn(net.dim, random_dim))
            self.register_buffer("R_g", torch.randn(num_classes, random_dim))
        self.critic = Discriminator(length, kind=critic, hidden=hidden)

    def step(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        """One objective: classification of the source, and the reversed, weighted domain loss on h."""
        B = [len(s.x), len(t.x)]
        f = torch.cat(self.net.pair(s.x, t.x))  # (2B, d)
        z = self.classifier(f)  # (2B, K)
        h = self.conditioned(f, z.detach().softmax(1))  # (2B, K d)
        d_s, d_t = torch.split(self.critic(reverse(h, self.ramp)), B)  # (B,)
        bce = torch.cat([F.softplus(-d_s), F.softplus(d_t)])  # (2B,)
        yield Objective(
            classification=F.cross_entropy(z[: len(s.y)], s.y),
            adversarial=self.trade_off * (self.sample_weights(z, B) * bce).sum(),
        )

    def predict(self, x: Tensor) -> Tensor:
        """Class logits (B, K)."""
        z: Tensor = self.classifier(self.net(x))
        return z

    def domain_logits(self, x: Tensor) -> dict[str, Tensor]:
        """The discriminator's logits of h, the feature together with its prediction."""
        f = self.net(x)
        return {"h": self.critic(self.conditioned(f, self.classifier(f).softmax(1)))}

    def conditioned(self, f: Tensor, g: Tensor) -> Tensor:
        """h: features (B, d) and predictions (B, K) multiplied, (B, K d), or by the random map (B, random_dim).

        Source: section 3.1.
        """
        if self.random:
            return (f @ self.R_f) * (g @ self.R_g) / math.sqrt(self.R_f.shape[1])
        return torch.einsum("bk,bd->bkd", g, f).flatten(1)

    def sample_weights(self, z: Tensor, B: list[int]) -> Tensor:
        """The part of the domain loss that each of the logits (B_s + B_t, K) has, (B_s + B_t,), with sum 1.

        Source: section 3.2, and the authors' code.
        """
        if not self.by_entropy:
            w = z.new_ones(len(z))
        else:
            z = reverse(z, self.ramp) if self.by_domain else z.detach()
            w = 1 + torch.exp(-entropy(z))  # (2B,)
        if self.by_domain:
            return torch.cat([w_d / (2 * w_d.sum().detach()) for w_d in torch.split(w, B)])
        return w / w.sum()
