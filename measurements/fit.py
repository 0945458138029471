"""How long a whole `acclimate fit` on cached features takes, from the command to the finished run.

    python measurements/fit.py [--quick] [--source DIR --target DIR] [--table docs/results/fit.md]

The features are in the cache before the first measured run, and every run is a process of its own. The runs of a round
follow each other, in an order that is reversed every round. Importing PyTorch and timm, which every run begins with, is
measured beside them in the same way.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from speed import processor_name, put_out

AIM = 15.0  # seconds
METHODS = ("source_only", "wemnet", "dann")
CLASSES = tuple("abcdefg")
COUNTS = (1670, 2048)  # of PACS's photos and paintings


class Taken(NamedTuple):
    """Seconds of a process, on the clock on the wall and of the processor."""

    wall: float
    processor: float


def make_images(folder: Path, number: int, seed: int) -> Path:
    """Small images in class folders."""
    rng = np.random.default_rng(seed)
    for i in range(number):
        path = folder / CLASSES[i % len(CLASSES)] / f"{i:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return folder


def timed(command: list[str], cache: Path) -> Taken:
    """Run a command in a process of its own, with a cache of its own."""
    start, before = time.perf_counter(), os.times()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "ACCLIMATE_CACHE": str(cache)})
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return Taken(time.perf_counter() - start, processor)


def commands(source: Path, target: Path, out: Path, steps: int) -> dict[str, list[str]]:
    """What is measured, by its name."""
    python = [sys.executable, "-c", "import timm, torch"]
    found = {"importing PyTorch and timm": python}
    for method in METHODS:
        fit = [sys.executable, "-m", "acclimate", "fit", "--source", str(source), "--target", str(target)]
        fit += ["--out", str(out), "--overwrite", "--method", method, "--steps", str(steps)]
        found[f"{method}, without the report"] = [*fit, "--no-report"]
        found[f"{method}, with the report"] = [*fit, "--report"]
    return found


def measure(source: Path, target: Path, folder: Path, steps: int, rounds: int) -> dict[str, list[Taken]]:
    """The times of each command, one a round."""
    sides = commands(source, target, folder / "run", steps)
    timed(sides[f"{METHODS[0]}, with the report"], folder / "cache")  # which this fills
    found: dict[str, list[Taken]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, command in list(sides.items())[:: -1 if number % 2 else 1]:
            found[name].append(timed(command, folder / "cache"))
            print(f"round {number + 1}: {name}: {found[name][-1].wall:.1f} s", file=sys.stderr)
    return found


def table(found: dict[str, list[Taken]]) -> str:
    """Markdown: a line a command."""
    lines = ["| | wall, s | range | processor, s | aim, s |", "|---|---:|---:|---:|---:|"]
    for name, taken in found.items():
        wall, processor = np.array(taken).T
        aim = f"< {AIM:g}" if name.endswith("without the report") else ""
        cells = [f"**{np.median(wall):.1f}**", f"{wall.min():.1f} to {wall.max():.1f}", f"{np.median(processor):.1f}"]
        lines.append(f"| {name} | {' | '.join(cells)} | {aim} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="class folders; made images otherwise")
    parser.add_argument("--target", type=Path, help="images; made ones otherwise")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="try everything out with a tenth of the images and steps")
    parser.add_argument("--table", type=Path, help="write the page here too")
    args = parser.parse_args()
    if (args.source is None) != (args.target is None):
        parser.error("--source and --target go together.")
    load = os.getloadavg()[0]
    part = 10 if args.quick else 1
    steps, rounds = 1500 // part, 1 if args.quick else args.rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = args.source or make_images(folder / "source", COUNTS[0] // part, 0)
        target = args.target or make_images(folder / "target", COUNTS[1] // part, 1)
        found = measure(source, target, folder, steps, rounds)
    what = "two folders of photos" if args.source else "two folders of made images"
    text = "\n\n".join(
        [
            "# A whole fit",
            f"`acclimate fit` on {what} whose features are in the cache, {steps:,} steps of 32 + 32, start-up "
            "included. Made by `python measurements/fit.py --table docs/results/fit.md`.",
            table(found),
            f"Medians of {rounds} runs, each a process of its own. Machine: {processor_name()}, {os.cpu_count()} "
            f"cores; PyTorch {torch.__version__} on {torch.get_num_threads()} of them; load average before the run: "
            f"{load:.1f}.",
        ]
    )
    put_out(text, args.table)


if __name__ == "__main__":
    main()
