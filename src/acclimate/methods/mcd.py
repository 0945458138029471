"""MCD: two classifiers that disagree where the target is far from the source."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from acclimate.choices import HeadInit
from acclimate.data.batches import Labelled, Unlabelled
from acclimate.errors import OptionError
from acclimate.methods.base import Method, Objective
from acclimate.methods.parts.layers import DropoutHead
from acclimate.methods.parts.losses import class_balance_loss
from acclimate.networks.network import Network


class MCD(Method):
    """Maximum Classifier Discrepancy (Saito, Watanabe, Ushiku and Harada, CVPR 2018).

    Two heads that classify the source alike are made to disagree on the target, which shows the target samples that
    lie outside of what the source supports; the network then moves those samples to where the heads agree.

        d = mean over target samples and classes of |softmax(z_1) - softmax(z_2)|
        L = CE(z_1_s, y_s) + CE(z_2_s, y_s) + balance_weight * (balance(z_1_t) + balance(z_2_t))
        balance(z) = -mean over classes of log(mean over samples of softmax(z))
        A. min over net and heads:   L
        B. min over heads:           L - discrepancy_weight * d
        C. n times, min over net:    discrepancy_weight * d

    Differences from the paper:
        The network includes the 256-d bottleneck, which the authors' code for VisDA-2017 has not (`bottleneck=0`); the
        heads, their initialisation, the balance term and the optimiser (no momentum for the network, one learning rate
        for all layers) are those of that code, but for Nesterov's form of the heads' momentum. The heads of the
        authors' code for digits and for Office also drop a part of the last layer's input (`last_dropout`), and those
        for digits start from PyTorch's weights (`init="pytorch"`). In steps A and B each forward pass holds both
        domains, as in that code. B passes through the network anew, since A has moved it, but without a gradient. C
        passes the target alone, as in the authors' code for digits: so BatchNorm, in the network and in the heads,
        normalises there by the target's statistics, the stored ones lean to the target, and a step costs little more
        than half of what it does with both domains in C (`joint_batchnorm`), the form of the VisDA code and TLL. The
        code for digits never mixes the domains in a pass (`separate_batchnorm`), passes the source alone in A, and has
        no balance term. Predictions are the mean of both heads' logits; the paper reports single heads.

    Args:
        net: The network, G.
        num_classes: K.
        n: Steps C for each step A.
        discrepancy_weight: Weight of d; TLL has 10 for Office-31, whose 31 classes make the mean small.
        balance_weight: Weight of the class-balance term.
        joint_batchnorm: Pass both domains in step C as well, so that BatchNorm sees in it what it sees in A and B.
        separate_batchnorm: Pass each domain by itself in A and B as well, so that BatchNorm never sees a mixture.
        hidden: Width of the heads' hidden layers.
        hidden_layers: How many hidden layers a head has.
        dropout: Part of each hidden layer's input that the heads drop in training.
        last_dropout: Drop as much of the last layer's input, as the authors' heads for digits and for Office do.
        init: Where the heads' linear layers start: "small" is N(0, 0.01^2), as for VisDA-2017; "pytorch", as for
            digits.
    """

    paper = "Saito et al., Maximum Classifier Discrepancy for Unsupervised Domain Adaptation, CVPR 2018"
    year = 2018
    family = "adversarial"
    rows: ClassVar[Mapping[str, Mapping[str, Any]]] = {"MCD": {}}
    good_for = "a steady gain, where there is time"
    recipe: ClassVar[Mapping[str, Any]] = {"lr": 1e-3, "backbone_lr": 1.0, "weight_decay": 5e-4, "schedule": "constant"}

    def __init__(
        self,
        net: Network,
        num_classes: int,
        *,
        n: int = 4,
        discrepancy_weight: float = 1.0,
        balance_weight: float = 0.01,
        joint_batchnorm: bool = False,
        separate_batchnorm: bool = False,
        hidden: int = 1000,
        hidden_layers: int = 2,
        dropout: float = 0.5,
        last_dropout: bool = False,
        init: HeadInit = "small",
    ) -> None:
        super().__init__(net, num_classes)
        if not dropout < 1:
            raise OptionError(f"dropout must be below 1, not {dropout}.")
        if joint_batchnorm and separate_batchnorm:
            raise OptionError("Set joint_batchnorm or separate_batchnorm of mcd, not both.")
        self.n = n
        self.discrepancy_weight = discrepancy_weight
        self.balance_weight = balance_weight
        self.joint_batchnorm = joint_batchnorm
        self.separate_batchnorm = separate_batchnorm
        self.heads = nn.ModuleList(
            DropoutHead(
                net.dim,
                num_classes,
                hidden=hidden,
                hidden_layers=hidden_layers,
                dropout=dropout,
                last_dropout=last_dropout,
                init=init,
            )
            for _ in range(2)
        )

    @property
    def without_momentum(self) -> tuple[nn.Module, ...]:
        """The network: a momentum of step A's gradients would carry on against step C's."""
        return (self.net,)

    def step(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        """Steps A, B and n times C, on the same batches."""
        z_s, z_t = self._logits(self._features(s, t), len(s.x))  # (2, B, K)
        yield Objective(**self._supervised(z_s, s.y, z_t))

        with torch.no_grad():  # only the heads move: their step needs no graph of the network
            f = self._features(s, t)
        z_s, z_t = self._logits(f, len(s.x))
        yield Objective(
            self.heads, **self._supervised(z_s, s.y, z_t), discrepancy=-self.discrepancy_weight * discrepancy(z_t)
        )

        for _ in range(self.n):
            if self.joint_batchnorm:
                _, z_t = self._logits(self._features(s, t), len(s.x))
            else:
                z_t = self.logits(self.net(t.x))
            yield Objective(self.net, discrepancy=self.discrepancy_weight * discrepancy(z_t))

    def predict(self, x: Tensor) -> Tensor:
        """Class logits (B, K), the mean of both heads'."""
        return self.logits(self.net(x)).mean(0)

    def logits(self, f: Tensor) -> Tensor:
        """Both heads' logits (2, B, K) of the features (B, d)."""
        return torch.stack([head(f) for head in self.heads])

    def _features(self, s: Labelled, t: Unlabelled) -> list[Tensor]:
        """The features of both domains, as they pass through the heads: (2B, d) together, or twice (B, d)."""
        if self.separate_batchnorm:
            return [self.net(s.x), self.net(t.x)]
        return [torch.cat(self.net.pair(s.x, t.x))]

    def _logits(self, features: list[Tensor], B_s: int) -> tuple[Tensor, Tensor]:
        """Both heads' logits (2, B, K) of the source's features, which come first, and of the target's."""
        z = torch.cat([self.logits(f) for f in features], dim=1)
        return z[:, :B_s], z[:, B_s:]

    def _supervised(self, z_s: Tensor, y_s: Tensor, z_t: Tensor) -> dict[str, Tensor]:
        """The terms of L, of both heads' logits (2, B, K)."""
        return {
            "classification": cross_entropy(z_s[0], y_s) + cross_entropy(z_s[1], y_s),
            "balance": self.balance_weight * (class_balance_loss(z_t[0]) + class_balance_loss(z_t[1])),
        }


def discrepancy(z: Tensor) -> Tensor:
    """The mean absolute difference of the probabilities behind two logits, (2, B, K) together. Equation 2."""
    p = z.softmax(2)
    return (p[0] - p[1]).abs().mean()
