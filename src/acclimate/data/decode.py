"""Decoding whatever image files a folder holds to upright RGB of 8 bits a channel."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import (  # so that Pillow knows these formats
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from acclimate.data import kinds
from acclimate.data.apart import decoded_apart
from acclimate.data.domain import Domain
from acclimate.data.room import ROOM, WEBP, Room, check_tags, needed, orientation, webp_size
from acclimate.errors import DataError
from acclimate.files import open_regular
from acclimate.machine import return_freed_memory

Pixels: TypeAlias = npt.NDArray[np.uint8]

ImageInHand: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[Any]

MAX_PIXELS = 178_956_970


class _Tiff(TiffImageFile):
    """A TIFF image that asks Pillow's limit of pixels no second time."""

    def load_prepare(self) -> None:
        if self._im is None:
            self.im = Image.core.new(self.mode, getattr(self, "_tile_size", self.size))  # type: ignore[attr-defined]
        super().load_prepare()


FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # of Pillow's others, some run programs

if kinds.AVIF:
    from PIL import AvifImagePlugin  # noqa: F401

if kinds.HEIF:
    from pillow_heif import register_heif_opener

    register_heif_opener()

APART = ("AVIF", "HEIF")

SIXTEEN_BIT = 65_535

THREADS = min(os.cpu_count() or 1, 16)

MOST_BYTES = 2**29  # of a file

UNCOUNTED = 2**22  # bytes of a file that are read before anybody knows what it takes to decode them

LARGE = 2**26  # bytes of an image's decoding from which on a thread keeps nothing of them

PART = 2**20  # pixels that are converted at a time

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_room = Room(ROOM)


class BrokenImageError(DataError):
    """A file cannot be read as an image.

    Attributes:
        reason: Why, in a few words.
    """

    def __init__(self, name: str | Path, reason: str) -> None:
        super().__init__(f"{name} cannot be read as an image ({reason}): replace or remove it.")
        self.reason = reason


@contextmanager
def decoded(path: str | os.PathLike[str], at_least: int | None = None) -> Iterator[Image.Image]:
    """A file as an upright RGB image of 8 bits a channel, of which the block makes something smaller.

    The first frame of several counts. Transparent pixels are laid on white, deep grey values are scaled to 8 bits.
    What the header says that it takes to decode, and what is taken by all others that are within such a block at that
    time, stays below `room.ROOM` bytes: a thread waits for it, so it may not be within two of these at once.

    Args:
        path: A JPEG, PNG, WebP, BMP, TIFF, GIF or AVIF file, or a HEIC with its plug-in, whatever its name ends in.
        at_least: Where this many pixels a side suffice, a large JPEG is decoded at a fraction of its size, which is
            several times faster. No side gets shorter than this.

    Raises:
        BrokenImageError: The file is missing, empty, truncated, not an image, not a regular file, has more than
            `MAX_PIXELS` pixels, or decoding it would take more memory than there is room.
    """
    with ExitStack() as held:
        try:
            with open_regular(os.fspath(path), MOST_BYTES) as file:
                image = _decode(file, os.fstat(file.fileno()).st_size, at_least, held)
        except Exception as error:  # on damaged files Pillow's decoders raise errors of a dozen unrelated types
            raise BrokenImageError(Path(path), _reason(error)) from error
        yield image
        del image  # before its room is given back


def read_image(path: str | os.PathLike[str], at_least: int | None = None) -> Image.Image:
    """A file as `decoded` gives it, to keep.

    Raises:
        BrokenImageError: As with `decoded`.
    """
    with decoded(path, at_least) as image:
        return image


def in_hand(images: ImageInHand | Iterable[ImageInHand]) -> list[ImageInHand]:
    """One image or several, as a list.

    Args:
        images: What `pictured_in_hand` takes, or any number of those. An array (H, W) or (H, W, 1, 3 or 4) is one
            image, any other (N, ...) as many as it has entries.

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


@contextmanager
def pictured_in_hand(image: ImageInHand, name: str, at_least: int | None = None) -> Iterator[Image.Image]:
    """An image that a Python caller has, as `decoded` gives it.

    Args:
        image: The path of a file, the bytes of one, an image of Pillow, or uint8 pixels (H, W) or (H, W, 1, 3 or 4).
        name: What messages call it, where it is no path.
        at_least: As for `decoded`.

    Raises:
        BrokenImageError: It cannot be read as an image.
        DataError: It is something else.
    """
    with ExitStack() as held:
        if isinstance(image, str | os.PathLike):
            found = held.enter_context(decoded(image, at_least))
        else:
            try:
                found = _in_rgb(image, name, at_least, held)
            except DataError:
                raise
            except Exception as error:  # as in `decoded`
                raise BrokenImageError(name, _reason(error)) from error
        yield found
        del found


def _in_rgb(image: ImageInHand, name: str, at_least: int | None, held: ExitStack) -> Image.Image:
    match image:
        case bytes():
            return _decode(io.BytesIO(image), len(image), at_least, held)
        case Image.Image():
            image.load()
            return _to_rgb(image)
        case np.ndarray() if image.dtype == np.uint8 and (image.ndim == 2 or image.shape[2:] in ((1,), (3,), (4,))):
            return _to_rgb(Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image))
    what = (
        f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else f"of type {type(image).__name__}"
    )
    raise DataError(
        f"{name} is {what}: give a path, the bytes of an image file, an image of Pillow, or uint8 pixels (H, W) or "
        "(H, W, 1, 3 or 4)."
    )


def pictured(domain: Domain, position: int, at_least: int | None = None) -> AbstractContextManager[Image.Image]:
    """The item at `position` as `decoded` gives it, from a file or from an array of images.

    Raises:
        BrokenImageError: The file cannot be read as an image.
    """
    if isinstance(domain.items, tuple):
        return decoded(domain.items[position], at_least)
    return nullcontext(_to_rgb(Image.fromarray(domain.items[position])))


def picture(domain: Domain, position: int, at_least: int | None = None) -> Image.Image:
    """The item at `position` as `pictured` gives it, to keep.

    Raises:
        BrokenImageError: The file cannot be read as an image.
    """
    with pictured(domain, position, at_least) as image:
        return image


def _decode(file: IO[bytes], size: int, at_least: int | None, held: ExitStack) -> Image.Image:
    """The image; the memory that it may need is taken before it is, and `held`."""
    if size <= UNCOUNTED:
        content = io.BytesIO(file.read(size))
        image, count = _examined(content, at_least)
        _take(size + count, held)
    else:
        with _room.taken(min(3 * size, _room.size)):  # the metadata may be all of it, and are kept twice
            count = _examined(file, at_least)[1]
        _take(size + count, held)
        file.seek(0)
        content, image = io.BytesIO(file.read(size)), None
    if image is None:
        image = _opened(content)
        _draft(image, at_least)
    if image.width * image.height > MAX_PIXELS:  # as only a WebP can have by now, one that contradicts itself
        raise ValueError(_too_large(image.width * image.height))
    if image.format in APART:
        whole, turn = decoded_apart(content.getvalue(), image.format, count)
        del image
        return _to_rgb(whole, turn)
    image.load()
    return _to_rgb(image)


def _take(count: int, held: ExitStack) -> None:
    held.enter_context(_room.taken(count))
    if count > LARGE:
        held.callback(return_freed_memory)


def _examined(file: IO[bytes], at_least: int | None) -> tuple[ImageFile | None, int]:
    """The image with its header read, if that alone takes no memory, and the bytes that it takes to decode it."""
    full = webp_size(file.read(30))
    image = None
    if full is None:
        image = _opened(file)
        full = image.size
    pixels = full[0] * full[1]
    if pixels > MAX_PIXELS:
        raise ValueError(_too_large(pixels))
    if image is None:
        return None, WEBP * pixels
    _draft(image, at_least)
    return image, needed(image, full)


def _too_large(pixels: int) -> str:
    return f"it has {pixels:,} pixels, more than {MAX_PIXELS:,}"


def _draft(image: ImageFile, at_least: int | None) -> None:
    if at_least is not None and image.format in ("JPEG", "MPO"):  # a HEIC's draft is another picture, its thumbnail
        image.draft(None, (at_least, at_least))


def _opened(file: IO[bytes]) -> ImageFile:
    """What `Image.open` makes of a file, without its limit of pixels, which is that of the whole process."""
    file.seek(0)
    start = file.read(64)
    if not start:
        raise ValueError("the file is empty")
    if start[4:8] == b"ftyp":
        return _opened_with_plugin(file, start)
    for name in FORMATS:
        make, accepts = Image.OPEN[name]
        if accepts is None or accepts(start) is True:
            if name == "TIFF":
                check_tags(file)
                make = _Tiff
            with suppress(SyntaxError, IndexError, TypeError, struct.error):  # Pillow's signs of another format
                file.seek(0)
                return make(file, "")
    raise UnidentifiedImageError


def _opened_with_plugin(file: IO[bytes], start: bytes) -> ImageFile:
    """The same of a file of the family of HEIC and AVIF, whose first box names its kinds."""
    brands = start[8 : max(min(int.from_bytes(start[:4]), len(start)), 12)]
    name, here, advice = "HEIF", kinds.HEIF, kinds.NO_HEIF
    if b"avif" in brands or b"avis" in brands:
        name, here, advice = "AVIF", kinds.AVIF, kinds.NO_AVIF
    elif not any(brand in brands for brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")):
        raise UnidentifiedImageError  # such as a video
    if not here:
        raise ValueError(advice)
    file.seek(0)
    return Image.OPEN[name][0](file, "")


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, PermissionError):
        return "it may not be opened"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "the memory does not suffice"
    if isinstance(error, UnidentifiedImageError):
        return "it is not a JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF or HEIC image"
    if "truncated" in str(error):
        return "the file is truncated"
    return str(error) or type(error).__name__


def _to_rgb(image: Image.Image, turned: int | None = None) -> Image.Image:
    """The image in RGB, upright; `turned` is its orientation, if its metadata do not tell."""
    turn = TURNS.get(orientation(image) if turned is None else turned)
    if image.mode != "RGB" or image.has_transparency_data:
        image = _converted(image)
    return image if turn is None else image.transpose(turn)


def _converted(image: Image.Image) -> Image.Image:
    """The image in RGB, made part by part, since what lies between takes several times the memory of the image."""
    scale = _scale(image) if image.mode == "F" or image.mode.startswith("I") else None
    boxes = [*_boxes(image.width, image.height)]
    if len(boxes) == 1:
        return _part(image, scale)
    whole = Image.new("RGB", image.size)
    for box in boxes:
        whole.paste(_part(image.crop(box), scale), box)
    return whole


def _part(image: Image.Image, scale: tuple[float, float] | None) -> Image.Image:
    if scale is not None:
        image = Image.fromarray(_eight_bits(image, *scale))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _boxes(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Left, top, right and bottom of parts that cover an image, of at most `PART` pixels each."""
    across = min(width, PART)
    down = PART // across
    for top in range(0, height, down):
        for left in range(0, width, across):
            yield left, top, min(left + across, width), min(top + down, height)


def _scale(image: Image.Image) -> tuple[float, float]:
    """Which deep grey values become black and white: the range they are stored for, or their own if they leave it."""
    ends = [(part.min(), part.max()) for part in (_grey(image.crop(box)) for box in _boxes(image.width, image.height))]
    low, high = float(min(end[0] for end in ends)), float(max(end[1] for end in ends))
    ranges = (1.0, 255.0) if image.mode == "F" else (float(SIXTEEN_BIT),)
    if low >= 0 and high <= ranges[-1]:
        return 0.0, next(top for top in ranges if high <= top)
    return low, high


def _grey(image: Image.Image) -> npt.NDArray[np.float64]:
    return np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0.0, neginf=0.0)


def _eight_bits(image: Image.Image, low: float, high: float) -> Pixels:
    """Deep grey values as bytes."""
    return np.rint((_grey(image) - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
