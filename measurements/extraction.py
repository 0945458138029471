"""What computing frozen features costs: from image files to the cache, against loops that only run the network.

    python measurements/extraction.py [--quick] [--images DIR] [--table docs/results/extraction.md]

The loops have their images in memory, prepared, and keep nothing. Acclimate's side reads and decodes files, prepares
them, runs the network and writes the cache, which is new each time. Every side of every round is a process of its own,
because how memory is kept is decided once a process; only the loop over the images is timed, after a first batch. The
sides of a round follow each other, in an order that is reversed every round, and each ratio is of one round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn

from acclimate.choices import Extractor
from acclimate.data.decode import picture
from acclimate.data.domain import Domain, Indices
from acclimate.data.inputs import ImageInputs
from acclimate.data.read import domain_of
from acclimate.machine import fast_bf16, keep_freed_memory
from acclimate.model import Model, ModelSpec
from acclimate.networks import engine
from acclimate.networks.backbones import load_backbone
from acclimate.networks.folding import folded
from speed import processor_name, put_out

BACKBONES = ("efficientnet_lite0", "resnet50", "vit_small_patch16_224")
SIDES = {
    "plain": "a loop as it is usually written: batches of 32, float32",
    "last": "batches of 8, channels last, the best precision",
    "kept": "the same, memory kept",
    "folded": "the same, batch normalisation folded",
    "acclimate": "Acclimate, from the files to the cache",
    "engine": "the same with OpenVINO",
    "decoding": "Acclimate's reading, decoding and preparing alone",
}
AIMS = {"last": 0.9, "plain": 1.0, "engine": 1.7}
if engine.version() is None:
    del SIDES["engine"]


# --- one side, in a process of its own -----------------------------------------------------------------------------


def loop(network: nn.Module, images: ImageInputs, size: int, *, last: bool, bf16: bool) -> float:
    """Images a second of a network on batches in memory."""
    layout = torch.channels_last if last else torch.contiguous_format
    network.to(memory_format=layout)
    parts = [np.arange(start, start + size) for start in range(0, len(images) - size + 1, size)]
    batches = [images.batch(part, None).to(memory_format=layout) for part in parts]
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        network(batches[0])
        return rate(lambda: [network(x) for x in batches], size * len(batches))


def rate(work: Callable[[], object], number: int) -> float:
    """How many a second."""
    start = time.perf_counter()
    work()
    return number / (time.perf_counter() - start)


def decoding(images: ImageInputs) -> float:
    """Images a second on one thread, without a network."""
    prepare = images.preprocess
    parts = [np.arange(start, min(start + 8, len(images))) for start in range(0, len(images), 8)]

    def prepared(part: Indices) -> Tensor:
        pictures = (picture(images.domain, i, at_least=prepare.resize) for i in part.tolist())
        return prepare.normalised(np.stack([prepare.plain(prepare.resized(image)) for image in pictures]))

    return rate(lambda: [prepared(part) for part in parts], len(images))


def extraction(name: str, domain: Domain, extractor: Extractor, *, bf16: bool) -> float:
    """Images a second of Acclimate, with a new cache; a network is converted before the clock starts."""
    backbone = load_backbone(name, pretrained=False)
    spec = ModelSpec("source_only", {}, ("a", "b"), name, 0, "head", 0, backbone.preprocess, bf16, extractor=extractor)
    model = Model(spec, backbone)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["ACCLIMATE_CACHE"] = cache
        keep_freed_memory()  # as every command does
        model.inputs(domain.select(np.arange(8)))
        return rate(lambda: model.inputs(domain), len(domain) - 8)


def side(name: str, backbone_name: str, domain: Domain) -> float:
    """Images a second of one side."""
    torch.manual_seed(0)
    bf16 = fast_bf16(torch.device("cpu"))
    if name in ("acclimate", "engine"):
        return extraction(backbone_name, domain, "torch" if name == "acclimate" else "openvino", bf16=bf16)
    backbone = load_backbone(backbone_name, pretrained=False).eval()
    images = ImageInputs(domain, backbone.preprocess, memory=0)
    if name == "decoding":
        return decoding(images)
    if name == "plain":
        return loop(backbone, images, 32, last=False, bf16=False)
    if name != "last":
        keep_freed_memory()
    if name == "folded":
        backbone = folded(backbone, images.batch(np.arange(1), None))  # type: ignore[assignment]
    return loop(backbone, images, 8, last=True, bf16=bf16)


# --- all sides -----------------------------------------------------------------------------------------------------


def make_photos(folder: Path, number: int) -> None:
    """Photos of 500 x 400 pixels with a photo's detail, as JPEG."""
    rng = np.random.default_rng(0)
    for i in range(number):
        coarse = Image.fromarray(rng.integers(0, 256, (25, 32, 3), dtype=np.uint8)).resize((500, 400))
        fine = np.asarray(coarse.filter(ImageFilter.GaussianBlur(2))) + rng.normal(0, 6, (400, 500, 3))
        Image.fromarray(fine.clip(0, 255).astype(np.uint8)).save(folder / f"{i:05d}.jpg", quality=90)


def measure(backbones: tuple[str, ...], folder: Path, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Images a second: by backbone and side, one a round."""
    found: dict[str, dict[str, list[float]]] = {name: {key: [] for key in SIDES} for name in backbones}
    for number in range(rounds):
        for name in backbones:
            for key in list(SIDES)[:: -1 if number % 2 else 1]:
                command = [sys.executable, __file__, "--images", str(folder), "--side", key, "--backbone", name]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found[name][key].append(json.loads(done.stdout))
                print(f"round {number + 1}: {name}, {key}: {found[name][key][-1]:.1f} images/s", file=sys.stderr)
    return found


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """Markdown: the rates, and Acclimate's as parts of the loops'."""
    lines = ["| images/s | " + " | ".join(found) + " |", "|---|" + "---:|" * len(found)]
    for key, what in SIDES.items():
        lines.append(f"| {what} | " + " | ".join(f"{np.median(rates[key]):.1f}" for rates in found.values()) + " |")
    lines += [
        "",
        "| Acclimate's rate to that of | " + " | ".join(found) + " | aim |",
        "|---|" + "---:|" * (len(found) + 1),
    ]
    for key in ("plain", "last", "kept", "folded"):
        aim = f"≥ {AIMS[key]}" if key in AIMS else ""
        lines.append(f"| {SIDES[key]} | " + " | ".join(ratio(rates, key) for rates in found.values()) + f" | {aim} |")
    if engine.version() is not None:
        ratios = " | ".join(ratio(rates, "acclimate", of="engine") for rates in found.values())
        lines.append(f"| with OpenVINO, to Acclimate's with PyTorch | {ratios} | ≥ {AIMS['engine']} |")
    return "\n".join(lines)


def ratio(rates: dict[str, list[float]], key: str, of: str = "acclimate") -> str:
    """The median and the range over the rounds."""
    ratios = np.array(rates[of]) / np.array(rates[key])
    return f"**{np.median(ratios):.2f}** ({ratios.min():.2f} to {ratios.max():.2f})"


def whole(folder: Path) -> dict[str, Any]:
    """All images of a folder through the default backbone: how many, how many a second, and decoding's share.

    With OpenVINO, if it is installed, and with PyTorch, one after the other.
    """
    domain = domain_of(sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png")), "images")
    threads = torch.get_num_threads()
    by_torch = side("acclimate", BACKBONES[0], domain)
    fastest = side("engine", BACKBONES[0], domain) if "engine" in SIDES else by_torch
    alone = side("decoding", BACKBONES[0], domain)
    return {
        "images": len(domain),
        "rate": fastest,
        "torch": by_torch,
        "decoding": fastest / (alone * threads),
        "threads": threads,
    }


def main() -> None:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of images, measured whole; made photos otherwise")
    parser.add_argument("--number", type=int, default=96, help="images a side and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="try everything out, in a minute")
    parser.add_argument("--table", type=Path, help="write the table here too")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--backbone", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        domain = domain_of(sorted(args.images.glob("*.jpg")), "images")
        print(json.dumps(side(args.side, args.backbone, domain)))
        return
    load = os.getloadavg()[0]
    backbones, number, rounds = (BACKBONES[:1], 32, 1) if args.quick else (BACKBONES, args.number, args.rounds)
    with tempfile.TemporaryDirectory() as folder:
        make_photos(Path(folder), number)
        found = measure(backbones, Path(folder), rounds)
    real = whole(args.images) if args.images else None
    text = "\n\n".join(
        [
            "# Extraction of features",
            "Images a second from files to the cache, against loops over batches in memory. Made by "
            "`python measurements/extraction.py --table docs/results/extraction.md`.",
            table(found),
            *(
                [
                    f"All {real['images']:,} images of a folder through {BACKBONES[0]} on {real['threads']} threads: "
                    f"**{real['rate']:.1f} images/s** ({real['torch']:.1f} with PyTorch), of which reading, decoding "
                    f"and preparing take {100 * real['decoding']:.0f} % of the processor's time."
                ]
                if real
                else []
            ),
            f"- Machine: {processor_name()}, {os.cpu_count()} cores; PyTorch {torch.__version__} on "
            f"{torch.get_num_threads()} of them; "
            f"{'bfloat16' if fast_bf16(torch.device('cpu')) else 'float32, as it has no units for bfloat16'}. "
            f"Load average before the run: {load:.1f}.\n"
            f"- {number} made photos of 500 x 400 pixels, {rounds} rounds; rates are medians, ratios those round by "
            "round, as medians and ranges.",
        ]
    )
    put_out(text, args.table)


if __name__ == "__main__":
    main()
