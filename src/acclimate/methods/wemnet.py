"""WEMNet: masks read off the discriminator's and the classifier's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acclimate.choices import Reduction
from acclimate.data.batches import Labelled, Unlabelled
from acclimate.methods.base import Method, Objective
from acclimate.methods.parts.layers import Discriminator, MovingCentroids, reverse
from acclimate.methods.parts.losses import domain_loss, semantic_loss
from acclimate.networks.network import Network

WeightReading = Literal["linear", "mlp_first", "mlp_product", "mlp_product_bn", "mlp_penultimate"]


class WEMNet(Method):
    """Weight-based Mask for Domain Adaptation (Lee, Kim and Kim, ICASSP 2023, arXiv 2304.11479).

    Large entries of the discriminator's weight mark the channels that tell domains apart: the Domain Ignore Module
    (DIM) subtracts what they hold before classifying. Large entries of the classifier's weight mark the channels of
    each class: the Semantic Enhancement Module (SEM) adds what they hold before the domains are compared.

        M_d = 1[sigmoid(|W_d|) > mean of sigmoid(|W_d|)]                                          (1, d)
        M_c = 1[sigmoid(|W_c|) > mean over the row]                                               (K, d)
        f_hat_d = f - DEC_d(ENC_d(f) * M_d)
        f_hat_c = r + DEC_c(ENC_c(r) * q M_c),  r = reverse(f, ramp),  q = labels or predictions  (B, K)
        L = CE(classifier(f_hat_d_s), y_s) + trade_off * domain_loss(critic, f_hat_c_s, f_hat_c_t)
            [+ ramp * semantic_weight * semantic_loss(C_s, C_t)  with `mstn`]

    Differences from the paper:
        Where it is silent, the recipe is TLL's DANN, whose settings it shares; f is the output of the 256-d bottleneck.
        Its text says that the discriminator is one fully connected layer with a weight of one row, and that the modules
        fit any adversarial framework; it builds on DANN, whose discriminator is an MLP. The default keeps that
        discriminator and reads W_d off the product of its layers, which has one row and as many entries as f: it meets
        all that the text asks for but the one layer, which is not DANN's. `w_d="linear"` has one layer, and is then no
        longer DANN with two modules: DANN with a linear discriminator is a weaker method. The reversal stands before
        SEM, since equation 10 maximises over SEM together with the discriminator. Masks and q carry no gradient.
        Thresholds are means of sigmoid(|W|), as its equations have it, not of |W| as its text says. The domain loss is
        TLL's mean of both domains' terms, where equations 10 and 11 with lambda = 1 are their sum: `trade_off=2`.
        `mstn=True` is the row WEMNet-dagger, with the centroids on f and pseudo-labels from the classifier on f_hat_d.

    Args:
        net: The network.
        num_classes: K.
        dim: Use the Domain Ignore Module; without it f_hat_d = f.
        sem: Use the Semantic Enhancement Module; without it f_hat_c = r.
        mstn: Add MSTN's semantic loss.
        trade_off: Weight lambda of the adversarial loss.
        w_d: Which weight of the discriminator W_d is: the product of the MLP's layers without ("mlp_product") or with
            BatchNorm's scales ("mlp_product_bn"); the MLP's first layer ("mlp_first", averaged over its rows); its last
            layer ("mlp_penultimate"; ENC_d then leads to its width); the one layer of a "linear" discriminator.
        mask: "weight" as above, or "random": the same number of channels at random places that never
            change, a control.
        dec_init: "default", or "zero" so that f_hat_d = f and f_hat_c = r at first.
        activation: After ENC_d and ENC_c: "none" or "relu".
        grl: The reversal stands "before_sem", or "after_sem", where SEM plays against the discriminator.
        scores: The target's q is predicted from "f_hat_d" or from "f".
        detach_scores: No gradient through q. With one, the adversarial loss reaches the classifier, DIM and the network
            by q without a reversal, if that stands "before_sem".
        centroids: The feature whose centroids `mstn` compares: "f", "f_hat_d" or "f_hat_c".
        semantic_weight: Weight of the semantic loss, times the ramp.
        theta: Weight of the past in the moving centroids.
        reduction: How the distance of the centroids is taken: "mean" or "sum".
        hidden: Width of the discriminator when it is an MLP.
    """

    paper = "Lee, Kim and Kim, Weight-based Mask for Domain Adaptation, ICASSP 2023"
    year = 2023
    family = "adversarial"
    rows: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "WEMNet": {},
        "WEMNet †": {"mstn": True},
        "WEMNet on MSTN": {"mstn": True},  # the same, for those without the sign on their keyboard
        "WEMNet (DIM)": {"sem": False},
        "WEMNet (SEM)": {"dim": False},
    }
    good_for = "features of which some channels tell the domain"

    rank_d: Tensor
    rank_c: Tensor

    def __init__(
        self,
        net: Network,
        num_classes: int,
        *,
        dim: bool = True,
        sem: bool = True,
        mstn: bool = False,
        trade_off: float = 1.0,
        w_d: WeightReading = "mlp_product",
        mask: Literal["weight", "random"] = "weight",
        dec_init: Literal["default", "zero"] = "default",
        activation: Literal["none", "relu"] = "none",
        grl: Literal["before_sem", "after_sem"] = "before_sem",
        scores: Literal["f_hat_d", "f"] = "f_hat_d",
        detach_scores: bool = True,
        centroids: Literal["f", "f_hat_d", "f_hat_c"] = "f",
        semantic_weight: float = 1.0,
        theta: float = 0.7,
        reduction: Reduction = "mean",
        hidden: int = 1024,
    ) -> None:
        super().__init__(net, num_classes)
        self.trade_off = trade_off
        self.w_d: WeightReading = w_d
        self.random_mask = mask == "random"
        self.reverse_first = grl == "before_sem"
        self.scores = scores
        self.detach_scores = detach_scores
        self.centroids_of = centroids
        self.semantic_weight = semantic_weight
        self.reduction: Reduction = reduction
        self.classifier = nn.Linear(net.dim, num_classes)
        self.critic = Discriminator(net.dim, kind="linear" if w_d == "linear" else "mlp", hidden=hidden)
        relu, zero = activation == "relu", dec_init == "zero"
        width_d = hidden if w_d == "mlp_penultimate" else net.dim
        self.dim = MaskedPart(net.dim, width_d, relu=relu, zero=zero) if dim else None
        self.sem = MaskedPart(net.dim, net.dim, relu=relu, zero=zero) if sem else None
        self.centroids = MovingCentroids(num_classes, net.dim, theta) if mstn else None
        # Drawn last, so that a run with random masks starts from the same weights as one without.
        self.register_buffer("rank_d", torch.rand(1, width_d).argsort(1))
        self.register_buffer("rank_c", torch.rand(num_classes, net.dim).argsort(1))

    def step(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        """One objective: classification on f_hat_d, the domain loss on f_hat_c, with `mstn` the semantic loss."""
        B = [len(s.x), len(t.x)]
        f = torch.cat(self.net.pair(s.x, t.x))  # (2B, d)
        f_hat_d = self.ignore_domain(f)  # (2B, d)
        z_s, z_t = torch.split(self.classifier(f_hat_d), B)  # (B, K)

        p_t = (z_t if self.scores == "f_hat_d" else self.classifier(f[len(s.x) :])).softmax(1)  # (B, K)
        q = torch.cat([F.one_hot(s.y, self.num_classes), p_t.detach() if self.detach_scores else p_t])  # (2B, K)
        if self.reverse_first:
            f_hat_c = self.enhance_semantics(reverse(f, self.ramp), q)  # (2B, d)
        else:
            f_hat_c = reverse(self.enhance_semantics(f, q), self.ramp)

        terms = {
            "classification": F.cross_entropy(z_s, s.y),
            "adversarial": self.trade_off * domain_loss(self.critic, *torch.split(f_hat_c, B)),
        }
        if self.centroids is not None:
            read = {"f": lambda: f, "f_hat_d": lambda: f_hat_d, "f_hat_c": lambda: self.enhance_semantics(f, q)}
            h_s, h_t = torch.split(read[self.centroids_of](), B)  # (B, d)
            C_s, C_t = self.centroids(h_s, s.y, h_t, z_t.argmax(1))  # (K, d)
            terms["semantic"] = self.ramp * self.semantic_weight * semantic_loss(C_s, C_t, self.reduction)
        yield Objective(**terms)

    def predict(self, x: Tensor) -> Tensor:
        """Class logits (B, K), on f_hat_d: the discriminator's weight is part of the model."""
        z: Tensor = self.classifier(self.ignore_domain(self.net(x)))
        return z

    def domain_logits(self, x: Tensor) -> dict[str, Tensor]:
        """The discriminator's logits of f ("with f_d"), of f_hat_d ("without f_d") and of f_hat_c.

        Source: equation 12 and table 4, which do not say whether SEM comes first. q is the prediction here.
        """
        f = self.net(x)
        f_hat_d = self.ignore_domain(f)
        f_hat_c = self.enhance_semantics(f, self.classifier(f_hat_d).softmax(1))
        return {"f": self.critic(f), "f_hat_d": self.critic(f_hat_d), "f_hat_c": self.critic(f_hat_c)}

    def masks(self) -> dict[str, Tensor]:
        """M_d (1, d) as "domain" and M_c (K, d) as "class", of the modules that are used."""
        masks = {}
        if self.dim is not None:
            masks["domain"] = self.domain_mask().bool()
        if self.sem is not None:
            masks["class"] = self.class_masks().bool()
        return masks

    def ignore_domain(self, f: Tensor) -> Tensor:
        """DIM: f_hat_d (B, d), the feature f without what its domain channels hold."""
        return f if self.dim is None else f - self.dim(f, self.domain_mask())

    def enhance_semantics(self, f: Tensor, q: Tensor) -> Tensor:
        """SEM: f_hat_c (B, d), the feature f with what the channels of its class hold.

        Args:
            f: Features (B, d).
            q: Class scores (B, K), one-hot where the class is known.
        """
        return f if self.sem is None else f + self.sem(f, q @ self.class_masks())

    def domain_mask(self) -> Tensor:
        """M_d (1, d): 1 where the discriminator's weight is larger than its mean. Equation 2."""
        return self._mask(self._discriminator_weight().sigmoid().mean(0, keepdim=True), self.rank_d)

    def class_masks(self) -> Tensor:
        """M_c (K, d): for each class, 1 where its weight is larger than the row's mean. Equation 6."""
        return self._mask(self.classifier.weight.detach().double().abs().sigmoid(), self.rank_c)

    def _mask(self, a: Tensor, rank: Tensor) -> Tensor:
        M = above_mean(a)
        if self.random_mask:  # as many channels in a row, at places that do not depend on the weights
            M = rank < M.sum(1, keepdim=True)
        return M.to(self.classifier.weight.dtype)

    def _discriminator_weight(self) -> Tensor:
        """|W_d| (rows, d) in the reading `w_d`."""
        linear = [m for m in self.critic.layers if isinstance(m, nn.Linear)]
        weight = [m.weight.detach().double() for m in linear]  # (h, d), (h, h), (1, h), or (1, d) alone
        if self.w_d in ("linear", "mlp_first"):
            return weight[0].abs()
        if self.w_d == "mlp_penultimate":
            return weight[-1].abs()
        W_1, W_2, W_3 = weight
        if self.w_d == "mlp_product_bn":
            norm_1, norm_2 = (m for m in self.critic.layers if isinstance(m, nn.BatchNorm1d))
            W_1, W_2 = _scale(norm_1)[:, None] * W_1, _scale(norm_2)[:, None] * W_2
        return (W_3 @ W_2 @ W_1).abs()


def _scale(norm: nn.BatchNorm1d) -> Tensor:
    """What BatchNorm multiplies each channel by in evaluation, (h,)."""
    assert norm.running_var is not None  # it keeps statistics
    return norm.weight.detach() / (norm.running_var + norm.eps).sqrt()


class MaskedPart(nn.Module):
    """The part of a feature that the masked channels hold: DEC(ENC(f) * M), one linear layer each."""

    def __init__(self, dim: int, width: int, *, relu: bool, zero: bool) -> None:
        super().__init__()
        self.enc = nn.Linear(dim, width)
        self.act = nn.ReLU() if relu else nn.Identity()
        self.dec = nn.Linear(width, dim)
        if zero:
            nn.init.zeros_(self.dec.weight)
            nn.init.zeros_(self.dec.bias)

    def forward(self, f: Tensor, M: Tensor) -> Tensor:
        """(B, d), of features (B, d) and a mask (1, width) or (B, width)."""
        part: Tensor = self.dec(self.act(self.enc(f)) * M)
        return part


def above_mean(a: Tensor) -> Tensor:
    """Where `a` (rows, d) in float64 is larger than the mean of its row, (rows, d) bool.

    The margin is above the rounding of the mean, so that equal entries make a mask of zeros, and far below any
    difference between trained weights.
    """
    return a > a.mean(1, keepdim=True) + 1e-12
