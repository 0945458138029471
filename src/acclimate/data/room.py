"""Room in memory for images that are being decoded, shared by all threads, and how much of it an image needs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Literal

from PIL import Image, TiffImagePlugin

ROOM = 900 * 10**6  # bytes for all images that are being decoded: with what nobody counts, 1 GB

RGB = 4  # bytes of a pixel of an RGB image in Pillow

PER_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}  # bytes of a pixel; of others 4

WEBP = 20  # bytes of a pixel: two canvases, libwebp's own copy, one for Python, and the image

PLANES = 18  # bytes of a pixel of an AVIF or HEIC: 10 bits in full colour, turned; 11 and 9 were measured with 8 bits

COEFFICIENT = 2  # bytes of one of a JPEG's

ORIENTATION = 0x0112

BIG_TIFF = 43

TAGS_AS_BYTES = (1, 2, 7)  # types of tags that stay bytes

MOST_NUMBERS = 2**20  # in a TIFF's directory, those of its strips above all


class Room:
    """Bytes that threads take and give back. Who asks first is served first.

    Args:
        size: All there are.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._empty()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._empty)  # the threads that had some are not in the child

    def _empty(self) -> None:
        self._free = self.size
        self._turn = threading.Lock()
        self._given_back = threading.Condition()

    @contextmanager
    def taken(self, count: int) -> Iterator[None]:
        """Within it, `count` bytes are this thread's; it waits until they are free, so it may not hold others.

        Raises:
            ValueError: There are not so many.
        """
        if count > self.size:
            raise ValueError(f"decoding it would take {count / 1e6:,.0f} MB, more than {self.size / 1e6:,.0f} MB")
        with self._turn, self._given_back:
            self._given_back.wait_for(lambda: self._free >= count)
            self._free -= count
        try:
            yield
        finally:
            with self._given_back:
                self._free += count
                self._given_back.notify_all()


def needed(image: Any, full: tuple[int, int]) -> int:
    """The most bytes that it takes to decode an image, of which the header alone has been read, and to make RGB of it.

    Args:
        image: The image, whose size may be a draft's.
        full: Its size in the file.
    """
    pixels: int = image.width * image.height
    own = PER_PIXEL.get(image.mode, 4)
    copy = 0 if image.mode == "RGB" and not image.has_transparency_data else RGB
    if image.format == "TIFF":  # Pillow turns it itself, while it decodes
        turned = own if orientation(image) != 1 else 0
        return pixels * (own + max(turned, copy)) + _strip(image)
    if image.format in ("JPEG", "MPO"):
        turned = RGB if orientation(image) != 1 else 0
        return pixels * (own + copy + turned) + _coefficients(image, full)
    if image.format == "GIF":  # a frame, and the screen that it lies on
        return pixels * (2 * own + copy)
    if image.format in ("AVIF", "HEIF"):
        return pixels * PLANES
    if image.format == "BMP":  # runs are unpacked into bytes first
        return pixels * (own + copy + 2)
    return pixels * (own + max(copy, RGB))  # a PNG's orientation may come after its pixels


def _coefficients(image: Any, full: tuple[int, int]) -> int:
    """Bytes of a JPEG's coefficients, which libjpeg keeps, all of them, if they do not come in a single scan."""
    if not image.info.get("progressive") and _has_one_scan(image):
        return 0
    across, down = (max(component[k] for component in image.layer) for k in (1, 2))
    share = sum(component[1] * component[2] for component in image.layer) / max(across * down, 1)
    return int(COEFFICIENT * share * full[0] * full[1])


def _has_one_scan(image: Any) -> bool:
    """Whether the first scan of a JPEG, after whose header its file stands, has all components."""
    length = 6 + 2 * image.layers
    image.fp.seek(-length, os.SEEK_CUR)
    header: bytes = image.fp.read(length)
    return header[:3] == bytes([0, length, image.layers])


def _strip(image: Any) -> int:
    """Bytes of the strip or the tile that libtiff unpacks at a time, whose sides are not bound to the image's."""
    tags = image.tag_v2
    width = _whole(tags.get(TiffImagePlugin.TILEWIDTH), _whole(tags.get(TiffImagePlugin.IMAGEWIDTH), image.width))
    height = _whole(tags.get(TiffImagePlugin.IMAGELENGTH), image.height)
    rows = min(_whole(tags.get(TiffImagePlugin.ROWSPERSTRIP), height), height)
    rows = _whole(tags.get(TiffImagePlugin.TILELENGTH), rows)
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
    samples = max(_whole(tags.get(TiffImagePlugin.SAMPLESPERPIXEL), 1), len(bits))
    of_pixel = max(bits) * samples / 8
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 6 or image.info.get("compression") == "tiff_jpeg":
        of_pixel += 2 * RGB  # YCbCr goes through RGBA
    return int(width * rows * of_pixel) if image.use_load_libtiff else 0


def _whole(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) else otherwise


def check_tags(file: IO[bytes]) -> None:
    """Refuse a TIFF file whose first directory has more numbers than any image needs: Pillow makes objects of them.

    Raises:
        ValueError: It has.
    """
    file.seek(0)
    start = file.read(16)
    order: Literal["little", "big"] = "little" if start[:2] == b"II" else "big"
    big = int.from_bytes(start[2:4], order) == BIG_TIFF
    word, entry = (8, 20) if big else (4, 12)
    file.seek(int.from_bytes(start[8:16] if big else start[4:8], order))
    entries = file.read(min(int.from_bytes(file.read(8 if big else 2), order), 2**16) * entry)
    numbers = 0
    for at in range(0, len(entries), entry):
        if int.from_bytes(entries[at + 2 : at + 4], order) not in TAGS_AS_BYTES:
            numbers += int.from_bytes(entries[at + 4 : at + 4 + word], order)
    if numbers > MOST_NUMBERS:
        raise ValueError(f"its directory has {numbers:,} numbers, more than {MOST_NUMBERS:,}")


def webp_size(start: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP image from its first 30 bytes; None if it is none.

    Pillow makes the canvases as it opens the file, so they must be known before.
    """
    if start[:4] != b"RIFF" or start[8:12] != b"WEBP" or len(start) < 30:
        return None
    if start[12:16] == b"VP8X":
        return int.from_bytes(start[24:27], "little") + 1, int.from_bytes(start[27:30], "little") + 1
    if start[12:16] == b"VP8L":
        bits = int.from_bytes(start[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return int.from_bytes(start[26:28], "little") & 0x3FFF, int.from_bytes(start[28:30], "little") & 0x3FFF


def orientation(image: Image.Image) -> int:
    """The orientation in an image's metadata; 1, upright, if there is none or they are damaged."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # metadata too damaged to read say nothing of it
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1
