"""A backbone: a network without its classifier, divided into a body and a pool."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from acclimate.data.preprocess import Preprocess
from acclimate.outside import Origin


class Backbone(nn.Module):
    """A network without its classifier, in two parts: the body makes a map of an image, the pool a vector of the map.

    Attributes:
        name: The name it was loaded by; the name of its class, where a module was handed over.
        preprocess: How its images are prepared.
        channels: Length C of the pooled vector; the map may have another number of channels.
        pretrained: Whether its weights come from elsewhere; False means that it has to be trained from scratch.
        body: From images (B, channels of `preprocess`, H, W) to a map (B, C', h, w) or tokens (B, T, C').
        pool: From the body's output to (B, C). It may hold weights of its own (a last normalisation, a layer).
        origin: Where its code is from; None means from this package or from timm.
    """

    def __init__(
        self, name: str, preprocess: Preprocess, body: nn.Module, pool: nn.Module, channels: int, *, pretrained: bool
    ) -> None:
        super().__init__()
        self.name = name
        self.preprocess = preprocess
        self.channels = channels
        self.pretrained = pretrained
        self.body = body
        self.pool = pool
        self.origin: Origin | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The pooled vector (B, C) of images x (B, 3, H, W), or (B, 1, H, W) for the digits networks."""
        f: Tensor = self.pool(self.body(x))
        return f


def weights_fingerprint(module: nn.Module) -> str:
    """SHA-256, in hexadecimal, of the names, types, shapes and values of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
