"""Decoding whatever image files a folder holds to upright RGB of 8 bits a channel."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from acclimate.data.domain import Domain
from acclimate.errors import DataError

Pixels: TypeAlias = npt.NDArray[np.uint8]

ImageInHand: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[Any]

MAX_PIXELS = 178_956_970

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # no others: some of Pillow's run programs

SIXTEEN_BIT = 65_535

THREADS = min(os.cpu_count() or 1, 16)

_pillow_limit = threading.Lock()


class BrokenImageError(DataError):
    """A file cannot be read as an image.

    Attributes:
        reason: Why, in a few words.
    """

    def __init__(self, name: str | Path, reason: str) -> None:
        super().__init__(f"{name} cannot be read as an image ({reason}): replace or remove it.")
        self.reason = reason


def read_image(path: str | os.PathLike[str], at_least: int | None = None) -> Image.Image:
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


def in_hand(images: ImageInHand | Iterable[ImageInHand]) -> list[ImageInHand]:
    """One image or several, as a list.

    Args:
        images: What `picture_in_hand` takes, or any number of those. An array (H, W) or (H, W, 1, 3 or 4) is one image,
            any other (N, ...) as many as it has entries.

    Raises:
        DataError: There are none.
    """
    if isinstance(images, np.ndarray):
        found = [images] if images.ndim == 2 or images.shape[2:] in ((1,), (3,), (4,)) else list(images)
    elif isinstance(images, str | os.PathLike | bytes | Image.Image):
        found = [images]
    else:
        found = list(images)
    if not found:
        raise DataError("There are no images: give at least one.")
    return found


def picture_in_hand(image: ImageInHand, name: str, at_least: int | None = None) -> Image.Image:
    """An image that a Python caller has, as `read_image` gives it.

    Args:
        image: The path of a file, the bytes of one, an image of Pillow, or uint8 pixels (H, W) or (H, W, 1, 3 or 4).
        name: What messages call it, where it is no path.
        at_least: As for `read_image`.

    Raises:
        BrokenImageError: It cannot be read as an image.
        DataError: It is something else.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(image, at_least)
    try:
        match image:
            case bytes():
                return _decode(image, at_least)
            case Image.Image():
                return _upright(image)
            case np.ndarray() if image.dtype == np.uint8 and (image.ndim == 2 or image.shape[2:] in ((1,), (3,), (4,))):
                return _to_rgb(Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image))
    except Exception as error:  # as in `read_image`
        raise BrokenImageError(name, _reason(error)) from error
    what = (
        f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else f"of type {type(image).__name__}"
    )
    raise DataError(
        f"{name} is {what}: give a path, the bytes of an image file, an image of Pillow, or uint8 pixels (H, W) or "
        "(H, W, 1, 3 or 4)."
    )


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
    return _upright(image)


def _upright(image: Image.Image) -> Image.Image:
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
