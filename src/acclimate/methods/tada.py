"""TADA: discriminators of the regions and of the image say what to attend to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acclimate.choices import Family, Level
from acclimate.data.batches import Labelled, Unlabelled
from acclimate.errors import OptionError
from acclimate.methods.base import Method, Objective
from acclimate.methods.parts.layers import Discriminator, Discriminators, reverse
from acclimate.methods.parts.losses import entropy
from acclimate.networks.network import Network


class TADA(Method):
    """Transferable Attention for Domain Adaptation (Wang, Li, Ye, Long and Wang, AAAI 2019).

    Not all regions of an image transfer, nor all images. A discriminator for each region of the map weighs the
    regions (local attention); one for the whole image weighs the entropy that is minimised (global attention).

        d_l = critic_local(reverse(f, ramp)),   w = 1 - H(sigmoid(d_l)),   h = (1 + w) f       f, h (B, C, H, W)
        g = embed(h),   z = classifier(g)
        d_g = critic_global(reverse(g, ramp)),  m = 1 + H(sigmoid(d_g))
        L = CE(z_s, y_s) + gamma * mean of m H(softmax(z)) + trade_off * (BCE(d_g, domain) + BCE(d_l, domain))

    H is the entropy; the means are over both domains, and over all regions. w and m are weights: no gradient flows
    through them. The local discriminators are a part of the model: prediction needs w.

    Differences from the paper:
        The published w = 1 - H is largest where the discriminator is sure, though its text wants the regions that
        transfer, where it is not: `local_weight="entropy"` is the other reading. The paper does not say the logarithm's
        base, whether w and m carry a gradient, nor what the discriminators are: `log_base`, `attn_grad`, and two
        hidden layers with ReLU for each region, without BatchNorm or dropout, so that w depends on the image
        alone. They are 256 wide, since 49 of 1024 have 154 million weights. The global one, the bottleneck and the
        schedules are those of TLL's DANN.

    Args:
        net: The network, with a map.
        num_classes: K.
        local_attention: Use w and the discriminators of the regions; without it h = f.
        global_attention: Use m, its entropy loss and the discriminator of the image.
        trade_off: Weight lambda of both domain losses, for the discriminators as well.
        gamma: Weight of the entropy loss.
        local_weight: w is "1-entropy" or "entropy" of a region's discriminator.
        log_base: Base of the logarithms in w and m, "e" or "2".
        attn_grad: Let gradients flow through w and m, and so the other losses train the discriminators; what reaches
            the network by them is reversed.
        shared: One discriminator for all regions.
        hidden: Width of each region's discriminator.
        global_hidden: Width of the image's discriminator.
    """

    paper: ClassVar[str] = "Wang et al., Transferable Attention for Domain Adaptation, AAAI 2019"
    year: ClassVar[int] = 2019
    family: ClassVar[Family] = "adversarial"
    rows: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "TADA (local)": {"global_attention": False},
        "TADA (global)": {"local_attention": False},
        "TADA (local+global)": {},
        "TADA": {},
    }
    good_for = "images in which only some regions transfer"
    needs: ClassVar[Level] = "map"

    def __init__(
        self,
        net: Network,
        num_classes: int,
        *,
        local_attention: bool = True,
        global_attention: bool = True,
        trade_off: float = 1.0,
        gamma: float = 0.1,
        local_weight: Literal["1-entropy", "entropy"] = "1-entropy",
        log_base: Literal["e", "2"] = "e",
        attn_grad: bool = False,
        shared: bool = False,
        hidden: int = 256,
        global_hidden: int = 1024,
    ) -> None:
        super().__init__(net, num_classes)
        if not (local_attention or global_attention):
            raise OptionError("tada without local_attention and global_attention adapts nothing; use source_only.")
        self.trade_off = trade_off
        self.gamma = gamma
        self.local_weight = local_weight
        self.log_base = log_base
        self.attn_grad = attn_grad
        self.classifier = nn.Linear(net.dim, num_classes)
        self.critic_global = Discriminator(net.dim, hidden=global_hidden) if global_attention else None
        self.critic_local: Discriminators | None = None
        if local_attention:
            if net.map_shape is None:
                raise OptionError(
                    "tada attends to the regions of a map, and this network makes none; choose a convolutional "
                    "backbone, such as efficientnet_lite0, or set local_attention=false."
                )
            C, H, W = net.map_shape
            self.critic_local = Discriminators(1 if shared else H * W, C, hidden=hidden)

    def step(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        """One objective: classification of the source, the domain losses, and the attentive entropy of both domains."""
        h, d_l = self.attend(self.net.map(torch.cat([s.x, t.x])))  # (2B, C, H, W), (2B, H, W)
        g = self.net.embed(h)  # (2B, d)
        z = self.classifier(g)  # (2B, K)
        terms = {"classification": F.cross_entropy(z[: len(s.x)], s.y)}
        if d_l is not None:
            terms["adversarial_local"] = self.trade_off * _domain_loss(d_l, len(s.x))
        if self.critic_global is not None:
            d_g = self.critic_global(reverse(g, self.ramp))  # (2B,)
            m = 1 + self.uncertainty(d_g)  # (2B,)
            terms["adversarial_global"] = self.trade_off * _domain_loss(d_g, len(s.x))
            terms["attentive_entropy"] = self.gamma * (m * entropy(z)).mean()
        yield Objective(**terms)

    def predict(self, x: Tensor) -> Tensor:
        """Class logits (B, K) of the attended map: the local discriminators are part of the model."""
        h, _ = self.attend(self.net.map(x))
        z: Tensor = self.classifier(self.net.embed(h))
        return z

    def domain_logits(self, x: Tensor) -> dict[str, Tensor]:
        """The logits of the image's discriminator, and the mean over the regions of their discriminators' logits."""
        h, d_l = self.attend(self.net.map(x))
        logits = {}
        if self.critic_global is not None:
            logits["f"] = self.critic_global(self.net.embed(h))
        if d_l is not None:
            logits["regions"] = d_l.mean((1, 2))
        return logits

    def attention(self, x: Tensor) -> dict[str, Tensor]:
        """The local attention w (B, H, W)."""
        _, d_l = self.attend(self.net.map(x))
        return {} if d_l is None else {"local": self.weight(d_l)}

    def attend(self, f: Tensor) -> tuple[Tensor, Tensor | None]:
        """The map with its regions weighed, h (B, C, H, W), and the regions' domain logits d_l (B, H, W).

        Without local attention, the map itself and None.
        """
        if self.critic_local is None:
            return f, None
        regions = reverse(f, self.ramp).flatten(2).mT  # (B, H W, C)
        if self.critic_local.count == 1:
            regions = regions.flatten(0, 1).unsqueeze(1)  # (B H W, 1, C)
        d_l = self.critic_local(regions).reshape(f.shape[0], *f.shape[2:])  # (B, H, W)
        return (1 + self.weight(d_l)).unsqueeze(1) * f, d_l

    def weight(self, d: Tensor) -> Tensor:
        """The weight w of regions with the logits d, of the same shape."""
        H = self.uncertainty(d)
        return H if self.local_weight == "entropy" else 1 - H

    def uncertainty(self, d: Tensor) -> Tensor:
        """The entropy H(sigmoid(d)) of domain logits d, of the same shape: a constant unless `attn_grad`."""
        d = d if self.attn_grad else d.detach()
        # -log sigmoid(d) = softplus(-d): exact where a probability rounds to 0 or 1
        H = d.sigmoid() * F.softplus(-d) + (-d).sigmoid() * F.softplus(d)
        return H / math.log(2) if self.log_base == "2" else H


def _domain_loss(d: Tensor, n_s: int) -> Tensor:
    """Mean cross-entropy of domain logits (2B, ...), of which the first n_s samples are the source's."""
    source = torch.zeros_like(d)
    source[:n_s] = 1
    return F.binary_cross_entropy_with_logits(d, source)
