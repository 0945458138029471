"""Stand-ins for the benchmarks: trees with the right names and tiny made images, in the layout of the archives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from acclimate.datasets import catalogue

LAYOUT = {
    "office31": {f"{domain}/images": "jpg" for domain in ("amazon", "dslr", "webcam")},
    "office_home": dict.fromkeys(("Art", "Clipart", "Product", "Real World"), "jpg"),
    "visda2017": {"train": "png", "validation": "jpg"},
}


def make(name: str, root: Path, per_class: int = 2) -> Path:
    """Write the stand-in for "office31", "office_home" or "visda2017" below `root`, which is returned.

    A class has its own colour and each domain its own shade, so that a network can learn them.
    """
    for number, (folder, suffix) in enumerate(LAYOUT[name].items()):
        rng = np.random.default_rng(number)
        listed = []
        for k, label in enumerate(catalogue.load(name).classes):
            (root / folder / label).mkdir(parents=True)
            for i, pixels in enumerate(_images(k, number, per_class, rng)):
                file = f"{label}/frame_{i + 1:04}.{suffix}"
                Image.fromarray(pixels).save(root / folder / file)
                listed.append(f"{file} {k}\n")
        if name == "visda2017":
            (root / folder / "image_list.txt").write_text("".join(listed))
    return root


def _images(k: int, domain: int, count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """`count` images (16, 16, 3) of class k: its colour, one of 5 x 5 x 5, on a shade of the domain, and noise."""
    colour = 40 * np.array([k % 5, k // 5 % 5, k // 25]) + 10 * domain
    for _ in range(count):
        yield (colour + rng.integers(0, 20, (16, 16, 3))).astype(np.uint8)
