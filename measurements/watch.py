"""How often `acclimate watch` raises a false alarm on PACS, and what it notices; prints the tables of docs/watch.md.

    python measurements/watch.py PACS WORK [SEEDS]

A run is adapted to one half of a target, and its other half is what comes later: as it is, without some classes, or
corrupted. The images of the other domains are another target. WORK keeps runs and corrupted images, and what is there
is not made again.
"""

from __future__ import annotations

import io
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from acclimate.runs.fit import fit
from acclimate.runs.watch import Watched, watch
from acclimate.settings import Settings

DOMAINS = ("photo", "art_painting", "cartoon")
METHOD = "dann"
SIZES, DRAWS = (100, 300), 5
CORRUPTED = 300  # images

CORRUPTIONS = {
    "noise of 0.08": ("noise", 0.08),
    "noise of 0.18": ("noise", 0.18),
    "blur of 1 pixel": ("blur", 1.0),
    "blur of 3 pixels": ("blur", 3.0),
    "JPEG of quality 25": ("jpeg", 25.0),
    "JPEG of quality 10": ("jpeg", 10.0),
    "half as bright": ("dark", 0.5),
}


def main() -> None:
    data, work = Path(sys.argv[1]), Path(sys.argv[2])
    seeds = int(sys.argv[3]) if len(sys.argv) > 3 else 2
    found: dict[str, list[Watched]] = defaultdict(list)
    for target in DOMAINS:
        for source in DOMAINS:
            if source == target:
                continue
            for seed in range(seeds):
                folder = work / f"{source}-{target}-{seed}"
                first, later = _halves(data / target, seed)
                fit(
                    Settings(source=str(data / source), target=str(_listed(folder, "first", first)), method=METHOD),
                    folder / "run",
                )
                for case, images in _cases(data, work, target, later, seed):
                    found[case].append(watch(folder / "run", _listed(folder, "new", images)))
                print(f"{folder.name} is done.", file=sys.stderr, flush=True)
    _show(found)


def _halves(domain: Path, seed: int) -> tuple[list[Path], list[Path]]:
    images = sorted(domain.glob("*/*.jpg"))
    order = np.random.default_rng(seed).permutation(len(images))
    shuffled = [images[i] for i in order]
    return shuffled[: len(images) // 2], shuffled[len(images) // 2 :]


def _listed(folder: Path, name: str, images: list[Path]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.csv"
    text = "path\n" + "".join(f"{image}\n" for image in images)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return path


def _cases(data: Path, work: Path, target: str, later: list[Path], seed: int) -> Iterator[tuple[str, list[Path]]]:
    """What comes later, by name: the other half of the target as it is and altered, and the other domains."""
    rng = np.random.default_rng(seed)
    for size in SIZES:
        for _ in range(DRAWS):
            yield f"the other half, {size}", [later[i] for i in rng.permutation(len(later))[:size]]
    yield "the other half, all", later
    for other in DOMAINS:
        if other != target:
            images = sorted((data / other).glob("*/*.jpg"))
            for size in SIZES:
                yield f"another domain, {size}", [images[i] for i in rng.permutation(len(images))[:size]]
    classes = sorted({image.parent.name for image in later})
    left = set(rng.permutation(classes).tolist()[:2])
    yield "without two of seven classes", [image for image in later if image.parent.name not in left]
    left = set(rng.permutation(classes).tolist()[:4])
    yield "without four of seven classes", [image for image in later if image.parent.name not in left]
    for name, (kind, strength) in CORRUPTIONS.items():
        yield name, [_corrupted(image, kind, strength, data, work / "corrupted") for image in later[:CORRUPTED]]


def _corrupted(path: Path, kind: str, strength: float, data: Path, folder: Path) -> Path:
    """A corrupted image, saved without further loss."""
    out = folder / f"{kind}-{strength:g}" / path.relative_to(data).with_suffix(".png")
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as file:
            _corrupt(file.convert("RGB"), kind, strength).save(out)
    return out


def _corrupt(image: Image.Image, kind: str, strength: float) -> Image.Image:
    if kind == "blur":
        return image.filter(ImageFilter.GaussianBlur(strength))
    if kind == "jpeg":
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(strength))
        return Image.open(buffer).convert("RGB")
    pixels = np.asarray(image, dtype=np.float64)
    if kind == "noise":
        pixels = pixels + 255 * strength * np.random.default_rng(0).normal(size=pixels.shape)
    else:
        pixels = pixels * strength
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _show(found: dict[str, list[Watched]]) -> None:
    checks = ("classifier", "outputs", "shares", "novelty")
    print(f"| new images | cases | {' | '.join(checks)} | any of them |")
    print(f"|---|---:|{'---:|' * len(checks)}---:|")
    for case, watched in found.items():
        flags = [set(one.drift.drifted) for one in watched]
        cells = [f"{100 * np.mean([check in flagged for flagged in flags]):.0f}" for check in checks]
        some = 100 * np.mean([bool(flagged) for flagged in flags])
        print(f"| {case} | {len(watched)} | {' | '.join(cells)} | {some:.0f} |")
    print(f"\n| new images | {' | '.join(checks)} | confidence |\n|---|{'---:|' * len(checks)}---:|")
    for case, watched in found.items():
        sizes = np.array([[sign.size for sign in one.drift.signs] for one in watched])
        middle = np.median(sizes, axis=0)
        print(f"| {case} | {' | '.join(f'{size:.2f}' for size in middle)} |")


if __name__ == "__main__":
    main()
