"""The network a method trains: images, cached maps or cached vectors in, bottleneck features out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from acclimate.choices import Level


class Network(nn.Module):
    """An encoder and a bottleneck.

    What the encoder is depends on what the batches hold (`level`): a whole backbone on images, a backbone's last
    stage on cached maps, or nothing at all (`nn.Identity`) on cached vectors. Methods do not see the difference.

    Args:
        encoder: From a batch (B, ...) to a map (B, C, H, W), tokens (B, T, C) or vectors (B, C).
        pool: From the encoder's output to (B, channels); identity where it is a vector already.
        channels: Length of the pooled vector.
        bottleneck: Length d of the feature f. A new layer Linear-BatchNorm-ReLU makes it (the networks of TLL);
            0 leaves it out, so d = channels.
        level: What a batch holds.
        pretrained: Whether the encoder and the pool come with weights, so that they train at a lower learning rate.
        bf16: Run the encoder in bfloat16; everything after it is float32.
        mean: Of each channel of the images, where a batch holds images: what preprocessing subtracted.
        std: What it divided by.
        map_shape: (C, H, W) of the encoder's output, for methods with a layer a region; None where it is not a map,
            or where nobody asked.
    """

    def __init__(
        self,
        encoder: nn.Module,
        pool: nn.Module,
        channels: int,
        *,
        bottleneck: int = 256,
        level: Level = "image",
        pretrained: bool = True,
        bf16: bool = False,
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        std: tuple[float, ...] = (0.5, 0.5, 0.5),
        map_shape: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.pool = pool
        self.channels = channels
        self.dim = bottleneck or channels
        self.level: Level = level
        self.pretrained = pretrained
        self.bf16 = bf16
        self.mean, self.std = mean, std
        self.map_shape = map_shape
        self.bottleneck: nn.Module = nn.Identity()
        if bottleneck:
            self.bottleneck = nn.Sequential(nn.Linear(channels, bottleneck), nn.BatchNorm1d(bottleneck), nn.ReLU())

    def map(self, x: Tensor) -> Tensor:
        """The encoder's output, never in bfloat16: (B, C, H, W) if there is a map, (B, C) if vectors are cached."""
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            h: Tensor = self.encoder(x)
        return h.float() if self.bf16 else h

    def embed(self, h: Tensor) -> Tensor:
        """The feature f (B, d) of a map: pooled, then through the bottleneck."""
        f: Tensor = self.bottleneck(self.pool(h))
        return f

    def forward(self, x: Tensor) -> Tensor:
        """The feature f (B, d) of a batch."""
        return self.embed(self.map(x))

    def pair(self, x_s: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        """The features of both domains from one forward pass, so that they share BatchNorm's statistics."""
        f_s, f_t = self(torch.cat([x_s, x_t])).split([len(x_s), len(x_t)])
        return f_s, f_t

    def pixels(self, x: Tensor) -> Tensor:
        """The images (B, C, H, W) of a batch with values from 0 to 1, as they were before preprocessing scaled them."""
        mean, std = (x.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return x * std + mean

    def without_bottleneck(self) -> Network:
        """A network of the same encoder and pool where f is the pooled vector itself; this one stays as it is.

        For methods in closed form: they train nothing, so nothing that is shared changes.
        """
        return Network(
            self.encoder,
            self.pool,
            self.channels,
            bottleneck=0,
            level=self.level,
            pretrained=self.pretrained,
            bf16=self.bf16,
            mean=self.mean,
            std=self.std,
            map_shape=self.map_shape,
        )


def lay_out_convolutions(module: nn.Module, *, images: bool) -> None:
    """Keep convolutions' weights with the channels last, in place, where that makes training on a CPU faster.

    Images come channels last, and a step on them takes 5 to 27 % less time where the weights lie so too. On cached
    maps, which come channels first, it takes a fifth (RegNetY) to a third (efficientnet_lite0, MobileNetV3) less time
    where convolutions are grouped, nothing less for ResNeXt, and a sixth more for ResNet-18, so networks without groups
    are left alone there. The values differ by rounding.

    Args:
        module: Whose convolutions; transposed ones stay as they are.
        images: Whether it trains on images.
    """
    convolutions = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    if images or any(layer.groups > 1 for layer in convolutions):
        for layer in convolutions:
            layer.to(memory_format=torch.channels_last)
