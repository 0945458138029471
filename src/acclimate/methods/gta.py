"""GTA: features from which an image of the source can be generated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, one_hot, softplus

from acclimate.data.batches import Labelled, Unlabelled
from acclimate.errors import OptionError
from acclimate.methods.base import Method, Objective
from acclimate.networks.network import Network


class GTA(Method):
    """Generate To Adapt (Sankaranarayanan, Balaji, Castillo and Chellappa, CVPR 2018).

    A generator makes images of features, and a discriminator tells them from the source's images and names their
    class. The network learns features, of both domains, of which images come that pass for the source's. Generator
    and discriminator are for training alone.

        g_s = generator([f_s, noise, y_s]),  g_t = generator([f_t, noise, "no class"])           (B, C, S, S)
        v, d = critic(image)                                                      class logits (B, K), real (B,)
        1. critic:      CE(v(x_s), y_s) + real(d(x_s)) + fake(d(g_s)) + fake(d(g_t))
        2. generator:   CE(v(g_s), y_s) + real(d(g_s))
        3. classifier:  CE(classifier(f_s), y_s)
        4. net:         CE(classifier(f_s), y_s) + alpha CE(v(g_s), y_s) + beta real(d(g_t))

    where real(d) = softplus(-d) and fake(d) = softplus(d), averaged over the batch.

    After each update the losses are computed anew with the weights that have moved: critic(g_s) in 2, g_s and g_t of
    the same noise, and critic of them, in 4. The features of a step are computed once, since the network moves last.
    Each batch of real or generated images passes through the generator and the critic by itself, so that BatchNorm
    takes the statistics of each.

    Differences from the paper:
        The losses of the generator and of the network are those of the authors' code, real(d), where the paper prints
        -fake(d). alpha and beta are the code's for digits; those for Office-31 are not published. Generator and critic
        are DCGAN's, which fit images of any such side; the code's are for 32 pixels. The feature is that of the 256-d
        bottleneck, and both domains share one forward pass of the network. The classifier is linear; the code's for
        digits has a hidden layer. The learning rate of the code, lr / (1 + 0.0001 step), is replaced by
        lr (1 + 1.5 step / 10,000)^-0.75, which stays within 2 per cent of it over 10,000 steps, and 6 over 20,000; the
        generator's decays as well, which the code leaves constant.

    Args:
        net: The network.
        num_classes: K.
        alpha: Weight of the class of the source's generated images in the network's objective.
        beta: Weight of the target's generated images in the network's objective.
        image_size: Side S of the images that are generated: a power of two from 16 up. The source's are resized to it.
        width: Channels of the critic's first layer and of the generator's last hidden one; each layer of half the
            side has twice as many.
        noise: Length of the noise.
    """

    paper = (
        "Sankaranarayanan et al., Generate To Adapt: Aligning Domains using Generative Adversarial Networks, CVPR 2018"
    )
    year = 2018
    family = "generative"
    rows: ClassVar[Mapping[str, Mapping[str, Any]]] = {"GTA": {}}
    good_for = "digits and other small images"
    needs = "image"
    recipe: ClassVar[Mapping[str, Any]] = {
        "optimizer": "adam",
        "lr": 5e-4,
        "momentum": 0.8,
        "weight_decay": 0.0,
        "schedule": "tll",
        "decay": 1.5,
    }

    def __init__(
        self,
        net: Network,
        num_classes: int,
        *,
        alpha: float = 0.1,
        beta: float = 0.03,
        image_size: int = 64,
        width: int = 64,
        noise: int = 512,
    ) -> None:
        super().__init__(net, num_classes)
        if image_size < 16 or not math.log2(image_size).is_integer():
            raise OptionError(
                f"image_size of gta must be a power of two from 16 up, such as 32 or 64, not {image_size}."
            )
        self.alpha = alpha
        self.beta = beta
        self.image_size = image_size
        self.noise = noise
        channels = len(net.mean)
        self.classifier = nn.Linear(net.dim, num_classes)
        self.generator = Generator(net.dim + noise + num_classes + 1, channels, image_size=image_size, width=width)
        self.critic = ImageCritic(channels, num_classes, image_size=image_size, width=width)

    def step(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        """Four objectives: of the critic, the generator, the classifier and the network."""
        f_s, f_t = self.net.pair(s.x, t.x)  # (B, d)
        code_s = self._code(s.y)  # (B, noise + K + 1)
        code_t = self._code(torch.full((len(t.x),), self.num_classes, device=t.x.device))
        g_s = self.generator(f_s.detach(), code_s)  # (B, C, S, S)
        g_t = self.generator(f_t.detach(), code_t).detach()

        v, d = self.critic(self._images(s.x))  # (B, K), (B,)
        yield Objective(
            self.critic,
            critic_class=cross_entropy(v, s.y),
            critic_real=real(d),
            critic_fake_s=fake(self.critic(g_s.detach())[1]),
            critic_fake_t=fake(self.critic(g_t)[1]),
        )
        v, d = self.critic(g_s)
        yield Objective(self.generator, generator_class=cross_entropy(v, s.y), generator_real=real(d))

        yield Objective(self.classifier, classification=cross_entropy(self.classifier(f_s), s.y))

        v, _ = self.critic(self.generator(f_s, code_s))
        _, d = self.critic(self.generator(f_t, code_t))
        yield Objective(
            self.net,
            classification=cross_entropy(self.classifier(f_s), s.y),
            generated_class=self.alpha * cross_entropy(v, s.y),
            adversarial=self.beta * real(d),
        )

    def predict(self, x: Tensor) -> Tensor:
        """Class logits (B, K)."""
        z: Tensor = self.classifier(self.net(x))
        return z

    def _code(self, y: Tensor) -> Tensor:
        """Noise beside one-hot classes y (B,), of which K means none: (B, noise + K + 1)."""
        noise = torch.randn(len(y), self.noise, device=y.device)
        return torch.cat([noise, one_hot(y, self.num_classes + 1)], 1).to(self.classifier.weight.dtype)

    def _images(self, x: Tensor) -> Tensor:
        """The images (B, C, S, S) of a batch, from -1 to 1."""
        images = 2 * self.net.pixels(x) - 1
        return interpolate(images, size=(self.image_size,) * 2, mode="bilinear", antialias=True)


class Generator(nn.Module):
    """From a vector to an image, from -1 to 1: a linear layer makes 4 pixels a side, transposed convolutions 8 to S.

    The linear layer is often written as a transposed convolution of one pixel, which is the same product; on a CPU a
    step of GTA takes a quarter longer with it.

    Source: Radford, Metz and Chintala, ICLR 2016.

    Args:
        dim: Length of the vector.
        channels: C, of the image.
        image_size: S.
        width: Channels of the last hidden layer.
    """

    def __init__(self, dim: int, channels: int, *, image_size: int, width: int) -> None:
        super().__init__()
        widths = _widths(image_size, width)[::-1]
        project = nn.Linear(dim, 16 * widths[0], bias=False)
        self.layers = nn.Sequential(project, nn.Unflatten(1, (widths[0], 4, 4)), nn.BatchNorm2d(widths[0]), nn.ReLU())
        for before, after in pairwise(widths):
            convolution = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False)
            self.layers.extend([convolution, nn.BatchNorm2d(after), nn.ReLU()])
        self.layers.extend([nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1), nn.Tanh()])
        _draw_weights(self)

    def forward(self, f: Tensor, code: Tensor) -> Tensor:
        """Images (B, C, S, S) of features (B, d) and of what is known beside them."""
        images: Tensor = self.layers(torch.cat([f, code], 1))
        return images


class ImageCritic(nn.Module):
    """Class logits and a logit of being real, of an image, by strided convolutions down to 4 pixels.

    Source: Radford, Metz and Chintala, ICLR 2016.

    Args:
        channels: C, of the image.
        num_classes: K.
        image_size: S.
        width: Channels of the first layer.
    """

    def __init__(self, channels: int, num_classes: int, *, image_size: int, width: int) -> None:
        super().__init__()
        widths = _widths(image_size, width)
        self.layers = nn.Sequential(nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2))
        for before, after in pairwise(widths):
            convolution = nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False)
            self.layers.extend([convolution, nn.BatchNorm2d(after), nn.LeakyReLU(0.2)])
        self.layers.append(nn.Flatten())  # (B, 16 widths[-1])
        self.classes = nn.Linear(16 * widths[-1], num_classes)
        self.real = nn.Linear(16 * widths[-1], 1)
        _draw_weights(self)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (B, K) and logits of being real (B,), of images (B, C, S, S)."""
        h = self.layers(images)
        return self.classes(h), self.real(h).squeeze(1)


def real(d: Tensor) -> Tensor:
    """How little the logits d (B,) say that images are real: the cross-entropy with "real"."""
    return softplus(-d).mean()


def fake(d: Tensor) -> Tensor:
    """How little the logits d (B,) say that images are generated: the cross-entropy with "generated"."""
    return softplus(d).mean()


def _widths(image_size: int, width: int) -> list[int]:
    """The channels of the maps of half the image's side, a quarter, and so on down to 4 pixels."""
    return [width * 2**i for i in range(int(math.log2(image_size)) - 2)]


def _draw_weights(module: nn.Module) -> None:
    """Weights from N(0, 0.02^2), as in DCGAN and in GTA's code; BatchNorm's scales start from 1."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
