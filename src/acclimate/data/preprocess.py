"""From a decoded image to a network's input: resizing, and the views of evaluation and training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from acclimate.choices import Aspect, Augment, Interpolation, View
from acclimate.data.decode import Pixels
from acclimate.errors import OptionError, brief

WIDEST = 8  # longer sides are cut to this many times the shorter, or a line of pixels would fill the memory

MOST_PIXELS = 1024, 2048  # a side of the crop, and of a resized image's shorter side

CROP_SCALE = (0.08, 1.0)  # share of the image's area

CROP_RATIO = (3 / 4, 4 / 3)  # width to height


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes a network's input. `dataclasses.asdict` and `Preprocess(**...)` take it through JSON.

    Attributes:
        resize: Pixels of the shorter side, or of both sides, before the crop.
        size: Pixels of both sides of the crop, at most `resize`.
        mean: One a channel, of values from 0 to 1.
        std: One a channel, of values from 0 to 1.
        interpolation: How pixels are resampled.
        channels: 3 for colour, 1 for grey.
        aspect: Whether resizing keeps the ratio of the sides or squashes the image to a square.

    Raises:
        OptionError: The sizes or the number of means do not fit.
    """

    resize: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bilinear"
    channels: Literal[1, 3] = 3
    aspect: Aspect = "keep"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))  # JSON gives lists
        object.__setattr__(self, "std", tuple(self.std))
        if self.size > MOST_PIXELS[0] or self.resize > MOST_PIXELS[1]:
            raise OptionError(
                f"Images are resized to at most {MOST_PIXELS[1]:,} pixels and cropped to {MOST_PIXELS[0]:,}, not to "
                f"{brief(self.resize)} and {brief(self.size)}: resize them to less."
            )
        if not 1 <= self.size <= self.resize:
            raise OptionError(
                f"A crop of {brief(self.size)} pixels does not fit a resized image of {brief(self.resize)}: crop less."
            )
        if not len(self.mean) == len(self.std) == self.channels:
            raise OptionError(f"Images of {self.channels} channels need as many means and standard deviations.")

    def resized(self, image: Image.Image) -> Pixels:
        """The whole RGB image at its new size and number of channels, (h, w, C) uint8."""
        if self.channels == 1:
            image = image.convert("L")
        box = _central_box(image.width, image.height)
        across = self._resized_sides(box[2] - box[0], box[3] - box[1])
        pixels = np.asarray(image.resize(across, self._filter, box))
        return pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels

    def plain(self, resized: Pixels) -> Pixels:
        """The view for evaluation, the central crop of a resized image: (size, size, C) uint8."""
        top, left = (resized.shape[0] - self.size) // 2, (resized.shape[1] - self.size) // 2
        return resized[top : top + self.size, left : left + self.size]

    def augmented(self, resized: Pixels, augment: Augment, rng: np.random.Generator) -> Pixels:
        """A random view for training, (size, size, C) uint8.

        A random crop covers 8 to 100 % of a resized image's area at a ratio of 3:4 to 4:3; a flip comes half the time.
        """
        view = self._random_crop(resized, rng) if "crop" in augment else self.plain(resized)
        return _mirrored(view) if "flip" in augment and rng.random() < 0.5 else view

    def normalised(self, views: Pixels) -> Tensor:
        """Views (B, H, W, C) uint8 as a network takes them: (B, C, H, W) float32, channels last in memory."""
        x = torch.from_numpy(views.astype(np.float32, order="C"))
        lines = x.view(-1, views.shape[2] * views.shape[3])  # over whole lines of pixels the arithmetic is fastest
        mean, std = (torch.tensor(values).repeat(views.shape[2]) for values in (self.mean, self.std))
        lines.div_(255).sub_(mean).div_(std)
        return x.permute(0, 3, 1, 2)

    def _random_crop(self, resized: Pixels, rng: np.random.Generator) -> Pixels:
        left, top, right, bottom = _random_box(resized.shape[1], resized.shape[0], rng)
        crop = resized[top:bottom, left:right]
        if resized.shape[2] == 3 and self.interpolation in ("bilinear", "bicubic"):
            return _resized_by_torch(crop, self.size, self.interpolation)
        grey = resized.shape[2] == 1
        image = Image.fromarray(crop[:, :, 0] if grey else crop)
        pixels = np.asarray(image.resize((self.size, self.size), self._filter))
        return pixels[:, :, np.newaxis] if grey else pixels

    def _resized_sides(self, width: int, height: int) -> tuple[int, int]:
        if self.aspect == "squash":
            return self.resize, self.resize
        scale = self.resize / min(width, height)
        return max(round(width * scale), self.resize), max(round(height * scale), self.resize)

    @property
    def _filter(self) -> Image.Resampling:
        return Image.Resampling[self.interpolation.upper()]


def _resized_by_torch(pixels: Pixels, size: int, interpolation: Literal["bilinear", "bicubic"]) -> Pixels:
    """Pixels (h, w, C) as a square: within 2 of 255 what Pillow makes of them, in half of its time."""
    return _from_torch(interpolate(_to_torch(pixels), (size, size), mode=interpolation, antialias=True))


def _mirrored(view: Pixels) -> Pixels:
    """Pixels (h, w, C) from right to left, in memory too."""
    return _from_torch(_to_torch(view).flip(-1))


def _to_torch(pixels: Pixels) -> Tensor:
    """A copy of pixels (h, w, C) as (1, C, h, w), in the one form that PyTorch has fast code for: channels last."""
    return torch.from_numpy(pixels.copy()).unsqueeze(0).permute(0, 3, 1, 2)


def _from_torch(x: Tensor) -> Pixels:
    pixels: Pixels = x.permute(0, 2, 3, 1)[0].numpy()
    return pixels


def in_view(x: Tensor, view: View) -> Tensor:
    """Inputs (B, C, H, W) seen plainly or in a mirror: the views that cached features are computed for."""
    return x.flip(-1) if view == "flip" else x


def pixels_in_view(pixels: Pixels, view: View) -> Pixels:
    """The same of pixels (B, H, W, C)."""
    return np.ascontiguousarray(pixels[:, :, ::-1]) if view == "flip" else pixels


def _central_box(width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the image's middle, which is all of it unless one side is extremely long."""
    longest = WIDEST * min(width, height)
    across, down = min(width, longest), min(height, longest)
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down


def _random_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a crop of random area and ratio; the central square if ten draws do not fit."""
    for _ in range(10):
        area = width * height * rng.uniform(*CROP_SCALE)
        ratio = math.exp(rng.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 1 <= across <= width and 1 <= down <= height:
            left, top = int(rng.integers(width - across + 1)), int(rng.integers(height - down + 1))
            return left, top, left + across, top + down
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side
