"""Two domains of handwritten digits that are installed with the package, so that a demo needs no download."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from acclimate.errors import DataError
from acclimate.files import write_whole

Digits = tuple[Iterable[Image.Image], npt.NDArray[np.integer]]

MNIST = Path(__file__).with_name("mnist_5000.npz")

FRAME, BOX = 28, 20  # MNIST's own: digits of 20 pixels in frames of 28
UCI_IMAGES, MNIST_IMAGES = 1_797, 5_000


def write_digits(folder: Path) -> tuple[Path, Path]:
    """Writes the UCI digits (1,797) and a part of MNIST (5,000) as class folders of 28 x 28 grey PNG files.

    Files that are there already are kept, so a second call does nothing and an interrupted one is completed.

    Returns:
        The folders `uci`, meant as the source, and `mnist`, meant as the target, below `folder`.

    Raises:
        DataError: The folder cannot be written to.
    """
    try:
        _complete(folder / "uci", UCI_IMAGES, _uci)
        _complete(folder / "mnist", MNIST_IMAGES, _mnist)
    except OSError as error:
        raise DataError(f"The digits cannot be written to {folder} ({error.strerror}): name another folder.") from error
    return folder / "uci", folder / "mnist"


def _complete(folder: Path, total: int, load: Callable[[], Digits]) -> None:
    present = {path.relative_to(folder) for path in folder.glob("[0-9]/[0-9]*.png")}
    if len(present) == total:  # loading takes longer than looking
        return
    images, labels = load()
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        name = Path(str(label)) / f"{i:04}.png"
        if name not in present:
            write_whole(folder / name, _png(image), durable=False)  # thousands, which can be written again


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def _uci() -> Digits:
    """Optical recognition of handwritten digits (UCI): 8 x 8 counts of ink from 0 to 16."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return map(_framed, np.rint(data.images * (255 / 16)).astype(np.uint8)), data.target


def _framed(digit: npt.NDArray[np.uint8]) -> Image.Image:
    """A digit (8, 8) in the middle of a black frame, of the size that MNIST's have."""
    frame, margin = Image.new("L", (FRAME, FRAME)), (FRAME - BOX) // 2
    frame.paste(Image.fromarray(digit).resize((BOX, BOX), Image.Resampling.BICUBIC), (margin, margin))
    return frame


def _mnist() -> Digits:
    """500 digits of each class from MNIST; the text beside the file says whose they are."""
    with np.load(MNIST) as file:
        return map(Image.fromarray, file["x"]), file["y"]
