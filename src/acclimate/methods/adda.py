"""ADDA: a target network trained to pass for the source's frozen one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, softplus

from acclimate.choices import Critic, Side
from acclimate.data.batches import Labelled, Pair, Unlabelled
from acclimate.errors import OptionError
from acclimate.methods.base import Method, Objective, Stage
from acclimate.methods.parts.layers import Discriminator
from acclimate.methods.parts.losses import domain_loss
from acclimate.networks.network import Network

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class ADDA(Method):
    """Adversarial Discriminative Domain Adaptation (Tzeng, Hoffman, Saenko and Darrell, CVPR 2017).

    A network M_s = `net` and a classifier are trained on the source and frozen. A second network M_t = `target_net`
    starts as a copy of it and learns to give the target features that a discriminator takes for the source's. The
    target is classified by the source's classifier on M_t.

        source stage:  CE(classifier(M_s(x_s)), y_s)                                    over M_s, classifier
        adapt stage:   domain_loss(critic, M_s(x_s), M_t(x_t))                          over critic
                       mean over t of -log sigmoid(critic(M_t(x_t))) (labels inverted)  over M_t

    Differences from the paper:
        In each step the discriminator moves first and M_t then plays against the moved one, where the authors' code
        updates both from the same forward pass. The discriminator has TLL's form with one logit, and both domains weigh
        a half in its loss. They share its BatchNorm statistics, in the mapping loss as well, of which only the target's
        part is taken. `mapping="minimax"` is TLL's variant, which reverses the discriminator's gradient with a
        coefficient that rises to 2: in the same two objectives, M_t ascends on twice the domain loss with weight ramp.
        The source's part of that loss reaches M_t as well, through the BatchNorm of the discriminator. M_t trains
        without its dropout, where the network has any: M_s, which is frozen, drops nothing, so that the discriminator
        would know M_t's features by their zeros, whatever M_t learned. The schedules run on over both stages, where TLL
        begins anew with the second. The domain logits are of both networks, whatever the batch: in training the source
        goes through M_s and the target through M_t. The authors' code for digits counts the classifier to the mapping:
        the discriminator reads logits, and M_t has a classifier of its own, which starts as a copy and trains with it
        (`reads="logits"`).

    Args:
        net: The network that becomes M_s; M_t is a copy of it.
        num_classes: K.
        pretrain: The part of the run that the source stage takes; TLL has 3 / 23.
        mapping: The loss of M_t: "inverted" labels, or "minimax", the discriminator's loss with the opposite sign.
        reads: What the discriminator reads: the "feature", or the "logits", with a classifier that belongs to M_t.
        critic: The discriminator: "mlp", "dropout" (as in CDAN's code) or "linear".
        hidden: Width of the discriminator's hidden layers.

    Raises:
        OptionError: `pretrain` leaves one of the stages without a step.
    """

    paper = "Tzeng et al., Adversarial Discriminative Domain Adaptation, CVPR 2017"
    year = 2017
    family = "adversarial"
    rows: ClassVar[Mapping[str, Mapping[str, Any]]] = {"ADDA": {}}
    good_for = "a target that needs a network of its own"
    target_only = True
    recipe: ClassVar[Mapping[str, Any]] = {"lr": 0.001, "decay": 3.0}

    def __init__(
        self,
        net: Network,
        num_classes: int,
        *,
        pretrain: float = 0.2,
        mapping: Literal["inverted", "minimax"] = "inverted",
        reads: Literal["feature", "logits"] = "feature",
        critic: Critic = "mlp",
        hidden: int = 1024,
    ) -> None:
        super().__init__(net, num_classes)
        if not 0 < pretrain < 1:
            raise OptionError(f"The option pretrain of adda must lie between 0 and 1, not at {pretrain}.")
        self.pretrain = pretrain
        self.inverted = mapping == "inverted"
        self.classifier = nn.Linear(net.dim, num_classes)
        self.reads_logits = reads == "logits"
        self.critic = Discriminator(num_classes if self.reads_logits else net.dim, kind=critic, hidden=hidden)
        self.target_net = copy.deepcopy(net)
        self.target_classifier = copy.deepcopy(self.classifier)

    @property
    def networks(self) -> tuple[Network, ...]:
        """M_s and M_t."""
        return self.net, self.target_net

    def stages(self, data: Pair) -> Iterator[Stage]:
        """The source stage, and the adaptation of a copy of what it trained."""
        yield Stage(self.step, self.pretrain, "source")
        self.target_net.load_state_dict(self.net.state_dict())
        self.target_classifier.load_state_dict(self.classifier.state_dict())
        self.net.eval()
        for module in self.target_net.modules():
            if isinstance(module, DROPOUT):
                module.eval()
        yield Stage(self.adapt, 1 - self.pretrain, "adapt")

    def step(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        """Of the source stage, one objective: the classification of the source, which goes through M_s alone."""
        yield Objective(self.net, self.classifier, classification=cross_entropy(self.classifier(self.net(s.x)), s.y))

    def adapt(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        """Of the adapt stage, two objectives: the discriminator's, and then M_t's against it."""
        with torch.no_grad():
            m_s = self._mapped(s.x, "source")  # (B, d), or logits (B, K)
        m_t = self._mapped(t.x, "target")
        yield Objective(self.critic, adversarial=domain_loss(self.critic, m_s, m_t.detach()))
        # The critic alone has moved: m_t is still what M_t makes of the batch, and nothing has used its graph.
        if self.inverted:
            d_t = self.critic(torch.cat([m_s, m_t]))[len(m_s) :]  # (B,)
            mapping = softplus(-d_t).mean()
        else:
            mapping = -2 * self.ramp * domain_loss(self.critic, m_s, m_t)
        over = (self.target_net, self.target_classifier) if self.reads_logits else (self.target_net,)
        yield Objective(*over, adversarial_mapping=mapping)

    def predict(self, x: Tensor) -> Tensor:
        """Class logits (B, K), on M_t: of use from the adapt stage on."""
        z: Tensor = self.target_classifier(self.target_net(x))
        return z

    def feature(self, x: Tensor, domain: Side) -> Tensor:
        """M_s(x) or M_t(x), (B, d)."""
        f: Tensor = self.net(x) if domain == "source" else self.target_net(x)
        return f

    def domain_logits(self, x: Tensor) -> dict[str, Tensor]:
        """The discriminator's logits of M_s(x) and of M_t(x)."""
        return {"M_s": self.critic(self._mapped(x, "source")), "M_t": self.critic(self._mapped(x, "target"))}

    def _mapped(self, x: Tensor, domain: Side) -> Tensor:
        """What the discriminator reads of M_s(x) or M_t(x): the feature (B, d), or logits (B, K)."""
        f = self.feature(x, domain)
        if not self.reads_logits:
            return f
        z: Tensor = self.classifier(f) if domain == "source" else self.target_classifier(f)
        return z
