"""What a step of each method costs, against source-only and against a bare loop over the method's own objectives.

    python measurements/methods.py [--quick] [--table docs/results/cost.md]

The bare loop takes the objectives that the method yields, with an optimiser for the parameters of each, and does no
more: it checks nothing, reports nothing, and can be neither interrupted nor resumed. Both sides start from the same
weights and see the same batches. `measurements/speed.py` compares four methods with losses written out by hand as well.

The sides take turns step by step, in an order that is reversed every round, and each ratio is that of two steps of one
round, so that whatever else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Callable, Iterator
from functools import reduce
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from acclimate.choices import Level
from acclimate.data.batches import Pair
from acclimate.data.inputs import ArrayInputs
from acclimate.machine import keep_freed_memory
from acclimate.methods import registry
from acclimate.methods.base import Method, Objective
from acclimate.methods.mcd import MCD, discrepancy
from acclimate.networks.backbones import load_backbone
from acclimate.networks.network import Network
from acclimate.settings import Recipe
from acclimate.training import train
from speed import processor_name, put_out

CLASSES, WIDTH, VECTOR, MAP = 31, 256, 1280, (1280, 7, 7)
CLOSED = ("gfk", "tca")
STEPS = 10_000
SHORT_FIRST_STAGE = {"adda": {"pretrain": 1 / STEPS}, "crst": {"pretrain": 1 / STEPS}}  # what is timed is adaptation
Side = Iterator[object]


class Plan(NamedTuple):
    """How much is measured.

    Attributes:
        backbone: The network whose images are trained on; None for cached vectors and maps.
        side: Pixels of the images.
        batch: Samples a batch from each domain.
        rounds: Steps a side.
    """

    backbone: str | None
    side: int
    batch: int
    rounds: int


def make_network(plan: Plan, needs: Level) -> Network:
    """A network with random weights, or none on cached features."""
    if plan.backbone is not None:
        backbone = load_backbone(plan.backbone, pretrained=False)
        with torch.inference_mode():
            C, H, W = backbone.body(torch.zeros(1, 3, plan.side, plan.side)).shape[1:]
        return Network(backbone.body, backbone.pool, backbone.channels, bottleneck=WIDTH, map_shape=(C, H, W))
    if needs == "vector":
        return Network(nn.Identity(), nn.Identity(), VECTOR, bottleneck=WIDTH, level="vector")
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Network(nn.Identity(), pool, MAP[0], bottleneck=WIDTH, level="map", map_shape=MAP)


def make_data(plan: Plan, needs: Level) -> Pair:
    """Noise, in memory."""
    n = 4 * plan.batch
    images = (3, plan.side, plan.side)
    shape: tuple[int, ...] = images if plan.backbone is not None else ((VECTOR,) if needs == "vector" else MAP)
    rng = np.random.default_rng(0)
    x_s, x_t = (rng.standard_normal((1, n, *shape), dtype=np.float32) for _ in range(2))
    return Pair(ArrayInputs(x_s), np.arange(n) % CLASSES, ArrayInputs(x_t), batch_size=plan.batch)


def make_method(name: str, plan: Plan) -> Method:
    """The method with its own options on such a network."""
    cls = registry.load(name)
    torch.manual_seed(0)
    return cls(make_network(plan, cls.needs), CLASSES, **SHORT_FIRST_STAGE.get(name, {}))


def acclimate(method: Method, data: Pair) -> Side:
    """The library's steps."""
    return iter(train(method, data, _recipe(method)))


def bare(method: Method, data: Pair) -> Side:
    """The same objectives, minimised one after the other by optimisers of their own; it pauses after every step."""
    method.train()
    optimizers: dict[tuple[nn.Module, ...], tuple[list[nn.Parameter], torch.optim.Optimizer]] = {}
    for stage in method.stages(data):
        for s, t in data.batches(round(stage.share * STEPS)):
            for objective in stage.step(s, t):
                if objective.over not in optimizers:
                    optimizers[objective.over] = _optimizer(method, objective)
                parameters, optimizer = optimizers[objective.over]
                optimizer.zero_grad()
                torch.autograd.backward(reduce(torch.add, objective.terms.values()), inputs=parameters)
                optimizer.step()
            yield None


def _optimizer(method: Method, objective: Objective) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    modules = objective.over or (method,)
    parameters = list(dict.fromkeys(chain.from_iterable(m.parameters() for m in modules)))
    if _recipe(method).optimizer == "adam":
        return parameters, torch.optim.Adam(parameters, lr=1e-5, fused=True)
    return parameters, torch.optim.SGD(parameters, lr=1e-5, momentum=0.9, nesterov=True, weight_decay=1e-3, fused=True)


def _recipe(method: Method) -> Recipe:
    """A step so small that a long measurement of noise does not diverge."""
    return Recipe.of(type(method), steps=STEPS, lr=1e-5)


def literal_mcd(method: MCD, data: Pair) -> Side:
    """MCD's steps A, B and C as they are printed: both domains through the network, with its graph, in every step."""
    heads = list(method.heads.parameters())
    net = list(method.net.parameters())
    of_net = torch.optim.SGD(net, lr=1e-5, weight_decay=5e-4, fused=True)
    of_heads = torch.optim.SGD(heads, lr=1e-5, momentum=0.9, weight_decay=5e-4, fused=True)
    method.train()

    def logits(x: Tensor, n: int) -> tuple[Tensor, Tensor]:
        z = method.logits(method.net(x))
        return z[:, :n], z[:, n:]

    for s, t in data.batches(STEPS):
        x, n = torch.cat([s.x, t.x]), len(s.x)
        for step in range(2 + method.n):
            z_s, z_t = logits(x, n)
            source = cross_entropy(z_s[0], s.y) + cross_entropy(z_s[1], s.y)
            loss = (source, source - discrepancy(z_t), discrepancy(z_t))[min(step, 2)]
            of_net.zero_grad()
            of_heads.zero_grad()
            torch.autograd.backward(loss)
            if step != 1:
                of_net.step()
            if step < 2:
                of_heads.step()
        yield None


Times = dict[str, npt.NDArray[np.float64]]


def measure(sides: dict[str, Side], rounds: int) -> Times:
    """Milliseconds of each step; the first two of each side, one of them a first stage's, are not counted."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        next(side)
        next(side)
    for number in range(rounds):
        for name, side in list(sides.items())[:: -1 if number % 2 else 1]:
            start = time.perf_counter()
            next(side)
            taken[name].append(1000 * (time.perf_counter() - start))
    return {name: np.array(times) for name, times in taken.items()}


def ratio(this: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> str:
    """The median, and the middle half, of the ratios round by round."""
    low, middle, high = np.quantile(this / other, [0.25, 0.5, 0.75])
    return f"**{middle:.2f}** ({low:.2f} to {high:.2f})"


def table(plan: Plan, names: list[str]) -> str:
    """Markdown: each method against source-only and against its bare loop, a few at a time."""
    lines = ["| method | ms a step | to source-only | to its bare loop |", "|---|---:|---:|---:|"]
    for name in names:
        method = make_method(name, plan)
        data = make_data(plan, method.needs)
        other = make_method("source_only", plan)
        sides = {
            "source_only": acclimate(other, make_data(plan, "vector")),
            "this": acclimate(method, data),
            "bare": bare(copy.deepcopy(method), data),
        }
        times = measure(sides, plan.rounds)
        to_source, to_bare = ratio(times["this"], times["source_only"]), ratio(times["this"], times["bare"])
        lines.append(f"| {name} | {np.median(times['this']):.3g} | {to_source} | {to_bare} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def particular(tuning: Plan, large: Plan) -> str:
    """Markdown: the comparisons that have an aim of their own."""
    lines = ["| this | other | ratio | aim |", "|---|---|---:|---:|"]
    mcd = make_method("mcd", tuning)
    assert isinstance(mcd, MCD)
    data = make_data(tuning, "vector")
    sides = {"ours": acclimate(mcd, data), "literal": literal_mcd(copy.deepcopy(mcd), data)}
    times = measure(sides, tuning.rounds)
    mcd_ratio = ratio(times["ours"], times["literal"])
    lines.append(f"| MCD | both domains through every step A, B, C | {mcd_ratio} | ≤ 0.6 |")
    data = make_data(large, "vector")
    times = measure({name: acclimate(make_method(name, large), data) for name in ("tada", "dann")}, large.rounds)
    lines.append(
        f"| TADA, {large.backbone} at {large.side} px | DANN | {ratio(times['tada'], times['dann'])} | ≤ 1.2 |"
    )
    return "\n".join(lines)


def closed_forms(n: int) -> str:
    """Markdown: seconds of the closed forms."""
    lines = ["| method | seconds |", "|---|---:|"]
    rng = np.random.default_rng(0)
    x_s, x_t = (rng.standard_normal((1, n, VECTOR), dtype=np.float32) for _ in range(2))
    x_s[0, np.arange(n), np.arange(n) % 7] += 5  # classes that can be told apart, or the classifier fits noise
    x_t[0, np.arange(n), np.arange(n) % 7] += 5
    for name in CLOSED:
        net = Network(nn.Identity(), nn.Identity(), VECTOR, level="vector")
        method = registry.load(name)(net, 7)
        start = time.perf_counter()
        list(train(method, Pair(ArrayInputs(x_s), np.arange(n) % 7, ArrayInputs(x_t)), Recipe()))
        lines.append(f"| {name} | {time.perf_counter() - start:.1f} |")
    return "\n".join(lines)


def page(args: argparse.Namespace) -> str:
    """All that is measured, as Markdown."""
    load = os.getloadavg()[0]
    small: Callable[[Plan], Plan] = (lambda p: p._replace(batch=4, rounds=2)) if args.quick else (lambda p: p)
    tuning = small(Plan("resnet18", 64, 32, args.rounds))
    cached = small(Plan(None, 0, 32, 10 * args.rounds))
    large = small(Plan("resnet50", 224, args.large_batch, args.large_rounds))
    iterative = [name for name in args.methods or registry.names() if name not in CLOSED]
    on_features = [name for name in iterative if registry.load(name).needs != "image"]
    return "\n\n".join(
        [
            "# Cost of a step",
            "Made by `python measurements/methods.py --table docs/results/cost.md`.",
            f"## Fine-tuning {tuning.backbone} at {tuning.side} px, {tuning.batch} + {tuning.batch} images",
            "The aim is 1.1 of the bare loop.",
            table(tuning, iterative),
            f"## On cached features, {cached.batch} + {cached.batch}",
            f"Vectors of {VECTOR} numbers; maps of {' x '.join(map(str, MAP))} for TADA.",
            table(cached, on_features),
            "## Comparisons of their own",
            particular(tuning, large),
            f"## Closed forms, {args.closed:,} + {args.closed:,} vectors of {VECTOR} numbers",
            closed_forms(args.closed),
            f"- Machine: {processor_name()}, {os.cpu_count()} cores; PyTorch {torch.__version__} on "
            f"{torch.get_num_threads()} of them. Load average before the run: {load:.1f}"
            + ("; other work shared the machine." if load > 0.5 else "; the machine was idle.")
            + f"\n- {tuning.rounds} rounds when fine-tuning, {cached.rounds} on cached features, {large.rounds} with "
            f"{large.batch} + {large.batch} images of {large.backbone}. {CLASSES} classes, bottleneck {WIDTH}.\n- "
            "Times are medians. Ratios are the median, and the range of the middle half, of the ratios round by round.",
        ]
    )


def main() -> None:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="rounds when fine-tuning; ten times as many on features")
    parser.add_argument("--large-batch", type=int, default=8, help="images a batch from each domain for ResNet-50")
    parser.add_argument("--large-rounds", type=int, default=4, help="rounds with ResNet-50")
    parser.add_argument("--closed", type=int, default=2000, help="samples of each domain for the closed forms")
    parser.add_argument("--methods", nargs="*", help="these alone")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's")
    parser.add_argument("--quick", action="store_true", help="try everything out")
    parser.add_argument("--table", type=Path, help="write the page here too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as every command does
    text = page(args)
    put_out(text, args.table)


if __name__ == "__main__":
    main()
