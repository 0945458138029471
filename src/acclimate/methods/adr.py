"""ADR: one classifier under two draws of dropout disagrees near its boundary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

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


class ADR(Method):
    """Adversarial Dropout Regularization (Saito, Ushiku, Harada and Saenko, ICLR 2018).

    Two draws of dropout make two classifiers of one, and samples near its boundary are those on which they disagree.
    The critic learns to be sensitive there, and the network to keep the target's features away from there.

        z_1, z_2 = critic(f_t) under two draws of dropout, p = softmax(z)                       (B, K)
        d = mean over target samples of (KL(p_1 || p_2) + KL(p_2 || p_1)) / 2K
        L = CE(critic(f_s), y_s) + balance_weight * balance(critic(f_t))
        balance(z) = -mean over classes of log(mean over samples of softmax(z))
        1. min over net and critic:  L;   min over classifier: CE(classifier(f_s), y_s), f_s a constant
        2. min over critic:          L - discrepancy_weight * d
        3. n times, min over net:    discrepancy_weight * d

    Differences from the paper:
        The network includes the 256-d bottleneck, which the heads of MCD for VisDA-2017 have not (`bottleneck=0`). Both
        classifiers are those heads, and the optimiser and the balance term are MCD's as well. The heads of the authors'
        code for digits also drop a part of the last layer's input (`last_dropout`), and start from PyTorch's weights
        (`init="pytorch"`): both make d larger. KL is a mean over the classes too, as in the authors' code for digits,
        where the paper sums over them. That code also holds the first distribution of each KL constant and takes the
        softmax twice, which is not reproduced, and offers |p_1 - p_2| instead (`divergence="l1"`). KL has no upper
        bound: large learning rates let the critic drive it up. The two draws go through the critic in one pass, one
        below the other, so that BatchNorm treats them alike; in step 2 the balance term reads the first. Step 2 passes
        through the network anew, since 1 has moved it, but without a gradient. Step 3 passes the target alone, so
        BatchNorm, in the network and in the critic, normalises there by the target's statistics, and the network's
        stored ones lean to the target (`joint_batchnorm` passes both domains). The classifier sees both domains'
        features in training, for its BatchNorm, and learns from the source's.

    Args:
        net: The network, G.
        num_classes: K.
        n: Steps 3 for each step 1.
        divergence: How d compares the draws: symmetric "kl", or "l1", the mean over samples and classes of |p_1 - p_2|.
        discrepancy_weight: Weight of d.
        balance_weight: Weight of the class-balance term.
        joint_batchnorm: Pass both domains in step 3 as well, so that BatchNorm sees in it what it sees in 2.
        hidden: Width of the hidden layers of the critic and of the classifier.
        hidden_layers: How many hidden layers each has.
        dropout: Part of each hidden layer's input that they drop in training.
        last_dropout: Drop as much of the last layer's input, as the authors' heads for digits do.
        init: Where their linear layers start: "small" is N(0, 0.01^2), as in MCD's code for VisDA-2017; "pytorch", as
            in the authors' code for digits.
    """

    paper = "Saito et al., Adversarial Dropout Regularization, ICLR 2018"
    year = 2018
    family = "adversarial"
    rows: ClassVar[Mapping[str, Mapping[str, Any]]] = {"ADR": {}}
    good_for = "a steady gain, where there is time; one head"
    recipe: ClassVar[Mapping[str, Any]] = {"lr": 1e-3, "backbone_lr": 1.0, "weight_decay": 5e-4, "schedule": "constant"}

    def __init__(
        self,
        net: Network,
        num_classes: int,
        *,
        n: int = 4,
        divergence: Literal["kl", "l1"] = "kl",
        discrepancy_weight: float = 1.0,
        balance_weight: float = 0.01,
        joint_batchnorm: bool = False,
        hidden: int = 1000,
        hidden_layers: int = 2,
        dropout: float = 0.5,
        last_dropout: bool = False,
        init: HeadInit = "small",
    ) -> None:
        super().__init__(net, num_classes)
        if not 0 < dropout < 1:
            raise OptionError(f"dropout must be between 0 and 1, not {dropout}: ADR compares two draws of it.")
        self.n = n
        self.divergence = symmetric_kl if divergence == "kl" else absolute_difference
        self.discrepancy_weight = discrepancy_weight
        self.balance_weight = balance_weight
        self.joint_batchnorm = joint_batchnorm
        self.critic, self.classifier = (
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
        """The network: a momentum of step 1's gradients would carry on against step 3's."""
        return (self.net,)

    def step(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        """Steps 1, 2 and n times 3, on the same batches."""
        B_s, B_t = len(s.x), len(t.x)
        f = torch.cat(self.net.pair(s.x, t.x))  # (2B, d)
        z_s, z_t = self.critic(f).split([B_s, B_t])  # (B, K)
        yield Objective(
            **self._supervised(z_s, s.y, z_t),
            evaluation=cross_entropy(self.classifier(f.detach())[:B_s], s.y),
        )

        with torch.no_grad():  # only the critic moves: its step needs no graph of the network
            f_s, f_t = self.net.pair(s.x, t.x)  # (B, d)
        z_s, z_1, z_2 = self.critic(torch.cat([f_s, f_t, f_t])).split([B_s, B_t, B_t])  # (B, K)
        yield Objective(
            self.critic,
            **self._supervised(z_s, s.y, z_1),
            discrepancy=-self.discrepancy_weight * self.divergence(z_1, z_2),
        )

        for _ in range(self.n):
            if self.joint_batchnorm:
                f_s, f_t = self.net.pair(s.x, t.x)
                z_1, z_2 = self.critic(torch.cat([f_s, f_t, f_t]))[B_s:].chunk(2)
            else:
                f_t = self.net(t.x)
                z_1, z_2 = self.critic(torch.cat([f_t, f_t])).chunk(2)
            yield Objective(self.net, discrepancy=self.discrepancy_weight * self.divergence(z_1, z_2))

    def predict(self, x: Tensor) -> Tensor:
        """Class logits (B, K) of the classifier that the network is not trained against."""
        z: Tensor = self.classifier(self.net(x))
        return z

    def _supervised(self, z_s: Tensor, y_s: Tensor, z_t: Tensor) -> dict[str, Tensor]:
        """The terms of L, of the critic's logits (B, K)."""
        return {
            "classification": cross_entropy(z_s, y_s),
            "balance": self.balance_weight * class_balance_loss(z_t),
        }


def symmetric_kl(z_1: Tensor, z_2: Tensor) -> Tensor:
    """Half of KL(p || q) + KL(q || p), p and q behind logits (B, K), as a mean over samples and classes."""
    log_p, log_q = z_1.log_softmax(1), z_2.log_softmax(1)  # (B, K)
    # p (log p - log q) + q (log q - log p)
    return 0.5 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).mean()


def absolute_difference(z_1: Tensor, z_2: Tensor) -> Tensor:
    """The mean absolute difference of the probabilities behind logits (B, K), over samples and classes."""
    return (z_1.softmax(1) - z_2.softmax(1)).abs().mean()
