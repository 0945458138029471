"""Classify images with an ONNX file that `acclimate export` has written. It needs onnxruntime, NumPy and Pillow alone.

    python onnx_predict.py model.onnx images/ more/one.jpg > predictions.csv

The rows are those of `acclimate predict`. From Python:

    reader = Reader("model.onnx")
    probabilities, features = reader(["one.jpg", "two.jpg"])  # (N, K) in the order of reader.classes, and (N, d)

A copy of this file may go wherever the ONNX file goes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image, ImageOps

Item: TypeAlias = "str | os.PathLike[str] | Image.Image | npt.NDArray[np.float32]"

SCHEMA = "1"  # of the entries in the ONNX file's metadata

BATCH = 8  # images that are computed at once

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")

SUFFIXES = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

WIDEST = 8  # longer sides are cut to this many times the shorter


class Reader:
    """A model in an ONNX file.

    Args:
        path: The file.

    Attributes:
        classes: K names.
        preprocess: How an image becomes the model's input; None for a model of feature vectors.

    Raises:
        ValueError: Another program has written the file, or another version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        entries = self._session.get_modelmeta().custom_metadata_map
        if entries.get("schema") != SCHEMA or "classes" not in entries:
            raise ValueError(f"{path} is not of the schema {SCHEMA} that this file reads: export the run again.")
        self.classes: list[str] = json.loads(entries["classes"])
        self.preprocess: dict[str, Any] | None = json.loads(entries["preprocess"])

    def __call__(self, items: Sequence[Item]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """The class probabilities (N, K) and the features (N, d) of N images.

        Args:
            items: Paths or images of Pillow; for a model of feature vectors, vectors (D,).
        """
        batches = [self._batch(items[i : i + BATCH]) for i in range(0, len(items), BATCH)]
        probabilities, features = zip(*(self._session.run(None, {"input": x}) for x in batches), strict=True)
        return np.concatenate(probabilities), np.concatenate(features)

    def _batch(self, items: Sequence[Item]) -> npt.NDArray[Any]:
        if self.preprocess is None:
            return np.stack([np.asarray(item, dtype=np.float32) for item in items])
        return np.stack([pixels(item, self.preprocess) for item in items])


def pixels(item: Item, preprocess: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """An image as the model takes it: resized, and cropped at its centre, (size, size, C)."""
    resize, size = preprocess["resize"], preprocess["size"]
    image = upright(item) if isinstance(item, Image.Image) else decoded(Path(item), resize)  # type: ignore[arg-type]
    if preprocess["channels"] == 1:
        image = image.convert("L")
    longest = WIDEST * min(image.size)
    width, height = min(image.width, longest), min(image.height, longest)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    scale = resize / min(width, height)
    across, down = max(round(width * scale), resize), max(round(height * scale), resize)
    if preprocess["aspect"] == "squash":
        across = down = resize
    resampling = Image.Resampling[preprocess["interpolation"].upper()]
    whole = np.asarray(image.resize((across, down), resampling, (left, top, left + width, top + height)))
    left, top = (across - size) // 2, (down - size) // 2
    return whole[top : top + size, left : left + size].reshape(size, size, preprocess["channels"])


def decoded(path: Path, at_least: int) -> Image.Image:
    """A file as an upright RGB image; a large JPEG at a fraction of its size, with no side shorter than `at_least`."""
    with Image.open(path, formats=FORMATS) as image:
        image.draft(None, (at_least, at_least))
        image.load()
        return upright(image)


def upright(image: Image.Image) -> Image.Image:
    """An image as it is to be seen: RGB of 8 bits a channel, transparent pixels on white."""
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # metadata too damaged to read says nothing of the orientation
        image.load()
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(eight_bits(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def eight_bits(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Deep grey values as bytes: by the range they are stored for if they keep to one, else by their own range."""
    grey = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(grey.min()), float(grey.max())
    ranges = (1.0, 255.0) if values.dtype.kind == "f" else (65_535.0,)
    if low >= 0 and high <= ranges[-1]:
        low, high = 0.0, next(top for top in ranges if high <= top)
    return np.rint((grey - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)


def found(data: Sequence[str]) -> Iterator[tuple[str, Item]]:
    """The name and the path of each image; of a single folder the names are relative to it."""
    for name in data:
        path = Path(name)
        if path.suffix.lower() in (".npy", ".npz"):
            loaded = np.load(path)
            for i, vector in enumerate(loaded["x"] if path.suffix.lower() == ".npz" else loaded):
                yield str(i), vector
        elif path.is_dir():
            inside = [file.relative_to(path) for file in path.rglob("*") if file.name.lower().endswith(SUFFIXES)]
            for file in sorted(inside, key=lambda file: file.parts):
                if not any(part.startswith(".") or part in ("__MACOSX", "@eaDir") for part in file.parts):
                    yield (file.as_posix() if len(data) == 1 else str(path / file)), path / file
        else:
            yield name, path


def main() -> None:
    """Write a CSV to standard output: path, predicted, confidence, one column a class."""
    parser = argparse.ArgumentParser(description="Classify images with an ONNX file that acclimate has written.")
    parser.add_argument("model", help="the ONNX file")
    parser.add_argument("data", nargs="+", help="image files or folders of images; vectors in an .npy or .npz")
    arguments = parser.parse_args()
    try:
        reader = Reader(arguments.model)
    except Exception as error:  # onnxruntime has types of its own
        parser.exit(2, f"Error: {str(error).splitlines()[0]}\n")
    writer = csv.writer(sys.stdout)
    writer.writerow(["path", "predicted", "confidence", *reader.classes])
    for name, item in found(arguments.data):
        try:
            row = reader([item])[0][0]
        except Exception as error:  # on damaged files Pillow raises errors of a dozen types
            print(f"{name} is left out: {error}", file=sys.stderr)  # noqa: T201 (a program of its own)
            continue
        writer.writerow([name, reader.classes[row.argmax()], f"{row.max():.6f}", *(f"{p:.6f}" for p in row)])


if __name__ == "__main__":
    main()
