"""Images: decoding whatever a folder holds, resizing, views for evaluation and training, and finding broken files."""

from __future__ import annotations

import io
import json
import math
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

from acclimate.data.batches import Indices
from acclimate.data.domains import Domain, LabelledDomain
from acclimate.errors import DataError, OptionError
from acclimate.files import cache_folder, write_whole
from acclimate.progress import Track, silent
from acclimate.threads import in_order

Pixels: TypeAlias = npt.NDArray[np.uint8]
Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Augment: TypeAlias = Literal["none", "flip", "crop", "crop+flip"]
View: TypeAlias = Literal["plain", "flip"]

MAX_PIXELS = 178_956_970
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # no others: some of Pillow's run programs
SIXTEEN_BIT = 65_535
WIDEST = 8  # longer sides are cut to this many times the shorter, or a line of pixels would fill the memory
CROP_SCALE = (0.08, 1.0)  # share of the image's area
CROP_RATIO = (3 / 4, 4 / 3)  # width to height
THREADS = min(os.cpu_count() or 1, 16)
MEMORY = 2**30  # bytes of resized images that are kept
AHEAD = 256  # files decoded beyond the one that is waited for: an interrupt waits for no more

_pillow_limit = threading.Lock()


class BrokenImageError(DataError):
    """A file cannot be read as an image.

    Attributes:
        reason: Why, in a few words.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} cannot be read as an image ({reason}): replace or remove it.")
        self.reason = reason


def read_image(path: str | Path, at_least: int | None = None) -> Image.Image:
    """Decodes a file as an upright RGB image of 8 bits a channel.

    The first frame of several counts. Transparent pixels are laid on white, deep grey values are scaled to 8 bits.

    Args:
        path: A JPEG, PNG, WebP, BMP, TIFF or GIF file, whatever its name ends in.
        at_least: Where this many pixels a side suffice, a large JPEG is decoded at a fraction of its size, which is
            several times faster. No side gets shorter than this.

    Raises:
        BrokenImageError: The file is missing, empty, truncated, not an image or has more than `MAX_PIXELS` pixels.
    """
    path = Path(path)
    try:
        return _decode(path.read_bytes(), at_least)
    except Exception as error:  # on damaged files Pillow's decoders raise errors of a dozen unrelated types
        raise BrokenImageError(path, _reason(error)) from error


def picture(domain: Domain, position: int, at_least: int | None = None) -> Image.Image:
    """The item at `position` as `read_image` gives it, from a file or from an array of images.

    Raises:
        BrokenImageError: The file cannot be read as an image.
    """
    if isinstance(domain.items, tuple):
        return read_image(domain.items[position], at_least)
    return _to_rgb(Image.fromarray(domain.items[position]))


def _decode(content: bytes, at_least: int | None) -> Image.Image:
    if not content:
        raise ValueError("the file is empty")
    with _without_pillow_limit():
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise ValueError(f"it has {pixels:,} pixels, more than {MAX_PIXELS:,}")
    if at_least is not None:
        image.draft(None, (at_least, at_least))
    with _without_pillow_limit() if pixels > MAX_PIXELS // 2 else nullcontext():  # TIFF asks the limit here again
        image.load()
    with suppress(Exception):  # metadata too damaged to read says nothing of the orientation
        image = ImageOps.exif_transpose(image)
    return _to_rgb(image)


@contextmanager
def _without_pillow_limit() -> Iterator[None]:
    """Lifts Pillow's limit of pixels, which warns where ours does not; the lock keeps threads from mixing the two."""
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, PermissionError):
        return "it may not be opened"
    if isinstance(error, UnidentifiedImageError):
        return "it is not a JPEG, PNG, WebP, BMP, TIFF or GIF image"
    if "truncated" in str(error):
        return "the file is truncated"
    return str(error) or type(error).__name__


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(values: npt.NDArray[np.generic]) -> Pixels:
    """Deep grey values as bytes: by the range they are stored for if they keep to one, else by their own range."""
    grey = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(grey.min()), float(grey.max())
    ranges = (1.0, 255.0) if values.dtype.kind == "f" else (float(SIXTEEN_BIT),)
    if low >= 0 and high <= ranges[-1]:
        low, high = 0.0, next(top for top in ranges if high <= top)
    return np.rint((grey - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)


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
        aspect: Whether resizing keeps the ratio of the sides or squashes the image to a square, as the papers on
            domain adaptation do.

    Raises:
        OptionError: The sizes or the number of means do not fit.
    """

    resize: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: Interpolation = "bilinear"
    channels: Literal[1, 3] = 3
    aspect: Literal["keep", "squash"] = "keep"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))  # JSON gives lists
        object.__setattr__(self, "std", tuple(self.std))
        if not 1 <= self.size <= self.resize:
            raise OptionError(f"A crop of {self.size} pixels does not fit a resized image of {self.resize}: crop less.")
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


class Shelf(Protocol):
    """Where resized images are kept, so that they need not be decoded again. Several threads use it."""

    def get(self, position: int) -> Pixels | None:
        """The image at `position`, (h, w, C) uint8, if it is kept."""
        ...

    def put(self, position: int, resized: Pixels) -> bool:
        """Keeps the image at `position`, or says that it cannot."""
        ...


class ImageInputs:
    """Images decoded as batches need them: the `Inputs` of training and of feature extraction.

    Args:
        domain: Image files or an array of images.
        preprocess: How they become inputs.
        augment: The random views that training sees.
        memory: Bytes of resized images to keep, so that small data sets are decoded once; 0 keeps none.
        shelf: Where those are kept that training asks for; the memory then takes only what the shelf refuses.

    Raises:
        DataError: The domain holds vectors.
    """

    def __init__(
        self,
        domain: Domain,
        preprocess: Preprocess,
        augment: Augment = "none",
        *,
        memory: int = MEMORY,
        shelf: Shelf | None = None,
    ) -> None:
        if domain.kind == "vectors":
            raise DataError(f"{domain.origin} holds feature vectors: give images where a network is to read them.")
        self.domain = domain
        self.preprocess = preprocess
        self.augment: Augment = augment
        self._room = memory
        self._kept: dict[int, Pixels] = {}
        self._shelf = shelf
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(THREADS)

    def __len__(self) -> int:
        return len(self.domain)

    def batch(self, index: Indices, rng: np.random.Generator | None) -> Tensor:
        """The images at `index`, (B, C, size, size) float32: random views, or those of evaluation where `rng` is None.

        Raises:
            BrokenImageError: A file cannot be read as an image.
        """
        # A generator a sample, made before any thread runs: the views do not depend on which finishes first.
        random = rng is not None and self.augment != "none"
        children = rng.spawn(len(index)) if rng is not None and random else [None] * len(index)
        view = partial(self._view, again=rng is not None)
        return self.preprocess.normalised(np.stack(list(self._pool.map(view, index.tolist(), children))))

    def _view(self, position: int, rng: np.random.Generator | None, again: bool) -> Pixels:
        resized = self._resized(position, again)
        return self.preprocess.plain(resized) if rng is None else self.preprocess.augmented(resized, self.augment, rng)

    def _resized(self, position: int, again: bool) -> Pixels:
        """A resized image; `again` says that it will be asked for again, as training does and evaluation does not."""
        kept = self._kept.get(position)
        if kept is None and self._shelf is not None:
            kept = self._shelf.get(position)
        if kept is not None:
            return kept
        resized = self.preprocess.resized(picture(self.domain, position, at_least=self.preprocess.resize))
        if self._shelf is None or (again and not self._shelf.put(position, resized)):
            self._remember(position, resized)
        return resized

    def _remember(self, position: int, resized: Pixels) -> None:
        with self._lock:
            if position not in self._kept and resized.nbytes <= self._room:
                self._kept[position] = resized
                self._room -= resized.nbytes


def find_broken(domain: Domain, track: Track = silent) -> dict[int, str]:
    """Decodes every file and gives the position and the reason of each that cannot be read as an image.

    What was found is remembered in the cache folder until a file changes; the broken files are always tried again.
    """
    if not isinstance(domain.items, tuple):
        return {}
    record = cache_folder() / "broken" / f"{domain.fingerprint()}.json"
    positions = _remembered(record, len(domain))
    if positions is None:
        reasons = in_order(ThreadPoolExecutor(THREADS), _broken_reason, domain.items, ahead=AHEAD)
        tracked = track(enumerate(reasons), "Checking images", len(domain))
        broken = {i: reason for i, reason in tracked if reason is not None}
        with suppress(OSError):  # a cache that cannot be written costs time, nothing else
            write_whole(record, json.dumps(list(broken)).encode())
        return broken
    again = ((i, _broken_reason(domain.items[i])) for i in positions)
    return {i: reason for i, reason in again if reason is not None}


def without_broken(data: Domain | LabelledDomain, track: Track = silent) -> tuple[Indices, list[tuple[str, str]]]:
    """Leaves out the files that cannot be read, if they are few.

    Returns:
        The positions to keep, for `data.select`, and the name and the reason of each file left out.

    Raises:
        DataError: More than a tenth of the files are broken, or all the files of a class.
    """
    domain = data.domain if isinstance(data, LabelledDomain) else data
    broken = find_broken(domain, track)
    skipped = [(domain.names[i], reason) for i, reason in broken.items()]
    if len(broken) * 10 > len(domain):
        name, reason = skipped[0]
        raise DataError(
            f"{len(broken):,} of the {len(domain):,} images of {domain.origin} cannot be read, for example '{name}' "
            f"({reason}): replace or remove them."
        )
    keep = np.array([i for i in range(len(domain)) if i not in broken], dtype=np.int64)
    if isinstance(data, LabelledDomain):
        _check_classes_left(data, keep)
    return keep, skipped


def _check_classes_left(data: LabelledDomain, keep: Indices) -> None:
    for i in np.setdiff1d(data.labels, data.labels[keep]):
        raise DataError(
            f"No image of the class '{data.classes[i]}' in {data.domain.origin} can be read: replace them or remove it."
        )


def _broken_reason(path: str) -> str | None:
    try:
        read_image(path, at_least=1)
    except BrokenImageError as error:
        return error.reason
    return None


def _remembered(record: Path, total: int) -> list[int] | None:
    """The positions a former check found, None if there is none or its record is damaged."""
    try:
        positions = json.loads(record.read_bytes())
    except (OSError, ValueError):
        return None
    sound = isinstance(positions, list) and all(type(i) is int and 0 <= i < total for i in positions)
    return positions if sound else None
