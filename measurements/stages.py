"""Which part of a network `--tune top` trains, for the smallest model of every family that timm has.

    python measurements/stages.py [--families resnet convnext ...] [--table docs/results/stages.md]

Nothing is trained and nothing timed: networks get random weights, and the compute of their parts is counted.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from acclimate.errors import OptionError
from acclimate.networks.backbones import load_backbone
from acclimate.networks.stages import split_top
from speed import put_out

LARGEST = 336  # pixels a side: what a family has for larger images only is not tried


class Split(NamedTuple):
    """How a network divides.

    Attributes:
        model: Its name.
        size: Its input's side in pixels.
        cached: KB that the cache keeps of an image, in fp16.
        parameters: Millions, of the network without its classifier.
        tuned: The trained stage's part of the parameters.
        compute: The trained stage's part of the multiplications of a forward pass.
    """

    model: str
    size: int
    cached: float
    parameters: float
    tuned: float
    compute: float


def smallest(family: str) -> str | None:
    """The model of a family with the fewest parameters, among those for images of ordinary size that are of use."""
    counts = {}
    for name in timm.list_models(module=family):
        config = timm.get_pretrained_cfg(name)
        if name.startswith("test_") or config is None or config.input_size[-1] > LARGEST or config.input_size[0] != 3:
            continue
        with torch.device("meta"):
            model: nn.Module = timm.create_model(name, num_classes=0)
        counts[name] = sum(p.numel() for p in model.parameters())
    return min(counts, key=lambda name: counts[name]) if counts else None


def split(name: str) -> Split:
    """Take a network with random weights apart.

    Raises:
        OptionError: It is refused.
    """
    torch.manual_seed(0)
    backbone = load_backbone(name, pretrained=False)
    trunk, top = split_top(backbone)
    size = backbone.preprocess.size
    x = torch.rand(1, 3, size, size)
    with torch.inference_mode():
        h: Tensor = trunk(x)
        below, above = flops(trunk, x), flops(top, h)
    whole = sum(p.numel() for p in backbone.parameters())
    tuned = sum(p.numel() for p in top.parameters())
    return Split(name, size, h[0].numel() * 2 / 1e3, whole / 1e6, tuned / whole, above / (below + above))


def flops(module: nn.Module, x: Tensor) -> int:
    """What a forward pass multiplies and adds."""
    with FlopCounterMode(display=False) as counter:
        module(x)
    return int(counter.get_total_flops())


def row(family: str) -> tuple[bool | None, str]:
    """Whether the family's smallest model divides, None where there is none to try, and its line of the table."""
    try:
        name = smallest(family)
        if name is None:
            return None, f"| {family} | - | | | | | no model for images of {LARGEST} pixels or less |"
        found = split(name)
    except OptionError as error:
        return False, f"| {family} | {name} | | | | | {error} |"
    except Exception as error:  # a model of timm may fail in any way before it gets here
        return None, f"| {family} | {name} | | | | | cannot be made ({type(error).__name__}) |"
    return True, (
        f"| {family} | {found.model} | {found.size} | {found.cached:,.0f} | {found.parameters:.1f} | "
        f"{found.tuned:.0%} of the weights, {found.compute:.0%} of the compute | |"
    )


def page(families: list[str]) -> str:
    """The table as Markdown."""
    lines, divided, tried = [], 0, 0
    for family in families:
        start = time.process_time()
        done, line = row(family)
        divided += bool(done)
        tried += done is not None
        lines.append(line)
        print(line, f"({time.process_time() - start:.0f} s)", flush=True)
    return "\n".join(
        [
            "# What `--tune top` trains",
            "",
            f"The smallest model of each of timm {timm.__version__}'s families, with random weights. Made by "
            "`python measurements/stages.py --table docs/results/stages.md`.",
            "",
            f"**{divided} of {tried} divide**: there the trained stage, on the trunk's output, gives what the whole "
            "network gives. The others are refused in a sentence.",
            "",
            "| family | model | pixels | cached, KB an image | weights, millions | trained | else |",
            "|---|---|---:|---:|---:|---|---|",
            *lines,
        ]
    )


def main() -> None:
    """Try, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="*", help="these alone")
    parser.add_argument("--table", type=Path, help="write the page here too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of timm's own making
    put_out(page(args.families or timm.list_modules()), args.table)


if __name__ == "__main__":
    main()
