"""What the layout of images and of weights in memory changes in a training step on a CPU.

    python measurements/layout.py [--quick] [--table docs/results/layout.md]

Each network with random weights takes DANN's steps twice: once as `acclimate fit` has it, once with the channels first
throughout. The sides take turns step by step, in an order that is reversed every round. The time is the processor's, so
that what else the machine does counts less.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from acclimate.choices import Tune
from acclimate.data.batches import Pair
from acclimate.data.domain import Indices
from acclimate.data.inputs import ArrayInputs
from acclimate.machine import keep_freed_memory
from acclimate.model import Model, ModelSpec
from acclimate.networks.backbones import load_backbone
from acclimate.settings import Recipe
from acclimate.training import train
from speed import Block, Plan, Times, advance, measure, processor_name, put_out

CLASSES = tuple("abcdefg")
STEPS = 10_000  # of which a few are taken


class Case(NamedTuple):
    """What is trained on.

    Attributes:
        backbone: The network.
        tune: "all" on images, "top" on cached maps.
        side: Of an image, in pixels.
        batch: Samples a batch from each domain.
    """

    backbone: str
    tune: Tune
    side: int
    batch: int


CASES = [
    *(Case(name, "all", 28, 64) for name in ("lenet", "digits_cnn")),
    Case("resnet18", "all", 64, 32),
    *(Case(name, "all", 224, 4) for name in ("resnet18", "resnet50", "tf_efficientnet_lite0")),
    *(Case(name, "top", 224, 32) for name in ("tf_efficientnet_lite0", "mobilenetv3_small_100", "regnety_004")),
    *(Case(name, "top", 224, 32) for name in ("ghostnet_100", "resnext50_32x4d", "convnext_atto")),
    *(Case(name, "top", 224, 32) for name in ("resnet50", "resnet18")),
]


class ChannelsLast(ArrayInputs):
    """Images as they come from files."""

    def batch(self, index: Indices, rng: np.random.Generator | None) -> Tensor:
        """The images at `index`, (B, C, H, W) with the channels last in memory."""
        return super().batch(index, rng).contiguous(memory_format=torch.channels_last)


def make_side(case: Case, *, channels_first: bool) -> tuple[Block, bool]:
    """What runs one step, and whether some of the trained convolutions are grouped."""
    backbone = load_backbone(case.backbone, pretrained=False)
    model = Model(
        ModelSpec("dann", {}, CLASSES, case.backbone, None, case.tune, 256, backbone.preprocess, bf16=False), backbone
    )
    convolutions = [layer for layer in model.method.modules() if isinstance(layer, nn.Conv2d)]
    if channels_first:
        for layer in convolutions:
            layer.to(memory_format=torch.contiguous_format)
    shape: tuple[int, ...] = (backbone.preprocess.channels, case.side, case.side)
    if model.frozen is not None:
        with torch.inference_mode():
            shape = tuple(model.frozen(torch.zeros(1, *shape)).shape[1:])
    inputs = ChannelsLast if case.tune == "all" and not channels_first else ArrayInputs
    data = Pair(inputs(noise(case, shape, 0)), labels(case), inputs(noise(case, shape, 1)), batch_size=case.batch)
    steps = iter(train(model.method, data, Recipe(steps=STEPS, lr=1e-5)))
    advance(steps, 2)
    return (lambda: advance(steps, 1)), any(layer.groups > 1 for layer in convolutions)


def noise(case: Case, shape: tuple[int, ...], seed: int) -> npt.NDArray[np.float32]:
    """One view of twice a batch."""
    return np.random.default_rng(seed).standard_normal((1, 2 * case.batch, *shape), dtype=np.float32)


def labels(case: Case) -> npt.NDArray[np.int64]:
    """Classes in turn."""
    return np.arange(2 * case.batch, dtype=np.int64) % len(CLASSES)


def line(case: Case, rounds: int) -> str:
    """A line of the table."""
    torch.manual_seed(0)
    first, grouped = make_side(case, channels_first=True)
    ours, _ = make_side(case, channels_first=False)
    plan = Plan(case.batch, (), 2 * case.batch, block=1, rounds=rounds, warm=2)
    times: dict[str, Times] = measure({"first": first, "ours": ours}, plan)
    a, b = times["first"].processor, times["ours"].processor
    low, middle, high = np.quantile(b / a, [0.25, 0.5, 0.75])
    what = f"images of {case.side} px" if case.tune == "all" else "cached maps"
    cells = [case.backbone, what, f"{case.batch} + {case.batch}", "yes" if grouped else "no"]
    cells += [f"{np.median(a):,.0f}", f"{np.median(b):,.0f}", f"**{middle:.2f}** ({low:.2f} to {high:.2f})"]
    return f"| {' | '.join(cells)} |"


def page(cases: list[Case], rounds: int) -> str:
    """The page: a line a case, in the order of the cases."""
    load = os.getloadavg()[0]
    lines = [
        "| network | trained on | batch | grouped convolutions | channels first, ms | as fitted, ms | ratio |",
        "|---|---|---:|---|---:|---:|---:|",
    ]
    for case in cases:
        lines.append(line(case, rounds))
        print(lines[-1], flush=True)
    return "\n\n".join(
        [
            "# Layout in memory",
            "A step of DANN on a CPU as `acclimate fit` takes it, against one where the channels of images, maps and "
            "weights come first. Images from files come channels last, which PyTorch's convolutions take up by "
            "themselves, and their weights are kept so too; for cached maps the weights are where some of a network's "
            "convolutions are grouped. Made by `python measurements/layout.py --table docs/results/layout.md`.",
            "\n".join(lines),
            f"Random weights, one thread; medians of {rounds} rounds in milliseconds of processor time, and the median "
            f"and middle half of the ratios round by round. Machine: {processor_name()}, {os.cpu_count()} cores; "
            f"PyTorch {torch.__version__}; load average before the run: {load:.1f}.",
        ]
    )


def main() -> None:
    """Measure, and print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="steps a side")
    parser.add_argument("--only", nargs="*", help="networks whose name contains one of these; all")
    parser.add_argument("--quick", action="store_true", help="try everything out with two rounds of small batches")
    parser.add_argument("--table", type=Path, help="write the page here too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as every command does
    cases = [case for case in CASES if not args.only or any(part in case.backbone for part in args.only)]
    if args.quick:
        cases = [case._replace(batch=2) for case in cases]
    put_out(page(cases, 2 if args.quick else args.rounds), args.table)


if __name__ == "__main__":
    main()
