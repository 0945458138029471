"""What a training step through Acclimate costs, against a loop over bare PyTorch that does the same mathematics.

    python measurements/speed.py [--quick] [--table docs/results/speed.md]

Both sides start from the same weights and see the same batches of the same arrays, which is checked: after the first
steps their weights have to agree. The loop by hand computes the losses, the learning rates and the ramp, and nothing
else: it checks nothing, reports nothing, and can be neither interrupted nor resumed.

The sides take turns block by block, in an order that is reversed every round, and each ratio is that of two blocks of
one round. So whatever else the machine does falls on both. The processor's time is given too: it says what the step
needs where the clock on the wall also says what others took.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acclimate.data.batches import Pair
from acclimate.data.inputs import ArrayInputs
from acclimate.machine import keep_freed_memory
from acclimate.methods import registry
from acclimate.methods.base import Method
from acclimate.networks.backbones import load_backbone
from acclimate.networks.network import Network
from acclimate.settings import Recipe
from acclimate.training import train

CLASSES, WIDTH, HIDDEN, VECTOR, THETA = 7, 256, 1024, 1280, 0.7
CACHED = ("source_only", "dann", "mstn", "wemnet")
TUNED = ("dann", "wemnet")
Block = Callable[[], object]


class Plan(NamedTuple):
    """How much is measured.

    Attributes:
        batch: Samples a batch from each domain.
        shape: Shape of a sample.
        samples: Samples of each domain.
        block: Steps a block.
        rounds: Blocks a side.
        warm: Steps before the first block, after which the sides have to agree.
    """

    batch: int
    shape: tuple[int, ...]
    samples: int
    block: int
    rounds: int
    warm: int

    @property
    def steps(self) -> int:
        """The steps that each side takes."""
        return self.warm + self.block * self.rounds


# --- by hand -----------------------------------------------------------------------------------------------------


class Reverse(torch.autograd.Function):
    """Gradient reversal."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, coefficient: float) -> Tensor:
        """The input itself."""
        ctx.coefficient = coefficient
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None]:
        """The gradient turned round."""
        return -ctx.coefficient * grad[0], None


class Bare(nn.Module):
    """The layers of one method, in the order in which Acclimate makes them."""

    def __init__(self, name: str, encoder: nn.Module, channels: int, batch: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.bottleneck = nn.Sequential(nn.Linear(channels, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU())
        self.classifier = nn.Linear(WIDTH, CLASSES)
        if name == "wemnet":
            self.critic: nn.Module = nn.Linear(WIDTH, 1)
            self.enc_d, self.dec_d, self.enc_c, self.dec_c = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        elif name != "source_only":
            self.critic = nn.Sequential(
                *(nn.Linear(WIDTH, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU()),
                *(nn.Linear(HIDDEN, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU()),
                nn.Linear(HIDDEN, 1),
            )
        self.C_s, self.C_t = torch.zeros(2, CLASSES, WIDTH)
        self.domain = torch.cat([torch.ones(batch), torch.zeros(batch)])

    def features(self, x: Tensor) -> Tensor:
        """What the classifier and the discriminator read."""
        f: Tensor = self.bottleneck(self.encoder(x))
        return f

    def domain_loss(self, f: Tensor) -> Tensor:
        """The discriminator's cross-entropy on a batch of the source and one of the target."""
        return F.binary_cross_entropy_with_logits(self.critic(f).squeeze(1), self.domain)


def source_only(m: Bare, x_s: Tensor, y: Tensor, x_t: Tensor, ramp: float) -> Tensor:
    """The source's classification."""
    return F.cross_entropy(m.classifier(m.features(x_s)), y)


def dann(m: Bare, x_s: Tensor, y: Tensor, x_t: Tensor, ramp: float) -> Tensor:
    """Ganin et al.'s loss."""
    f = m.features(torch.cat([x_s, x_t]))
    return F.cross_entropy(m.classifier(f[: len(y)]), y) + m.domain_loss(Reverse.apply(f, ramp))


def mstn(m: Bare, x_s: Tensor, y: Tensor, x_t: Tensor, ramp: float) -> Tensor:
    """Xie et al.'s loss."""
    f = m.features(torch.cat([x_s, x_t]))
    f_s, f_t = f.chunk(2)
    z_s, z_t = m.classifier(f).chunk(2)
    C_s, C_t = moved(m.C_s, f_s, y), moved(m.C_t, f_t, z_t.argmax(1))
    m.C_s, m.C_t = C_s.detach(), C_t.detach()
    return F.cross_entropy(z_s, y) + m.domain_loss(Reverse.apply(f, ramp)) + ramp * F.mse_loss(C_s, C_t)


def moved(old: Tensor, f: Tensor, y: Tensor) -> Tensor:
    """Moving centroids."""
    members = F.one_hot(y, CLASSES).float()
    count = members.sum(0).unsqueeze(1)
    return torch.where(count > 0, THETA * old + (1 - THETA) * (members.T @ f / count.clamp(min=1)), old)


def wemnet(m: Bare, x_s: Tensor, y: Tensor, x_t: Tensor, ramp: float) -> Tensor:
    """Lee, Kim and Kim's loss."""
    f = m.features(torch.cat([x_s, x_t]))
    z_s, z_t = m.classifier(f - m.dec_d(m.enc_d(f) * mask(m.critic.weight))).chunk(2)
    q = torch.cat([F.one_hot(y, CLASSES), z_t.detach().softmax(1)])
    r = Reverse.apply(f, ramp)
    return F.cross_entropy(z_s, y) + m.domain_loss(r + m.dec_c(m.enc_c(r) * (q @ mask(m.classifier.weight))))


def mask(weight: Tensor | nn.Module) -> Tensor:
    """1 where a weight is larger than its row's mean."""
    assert isinstance(weight, Tensor)
    a = weight.detach().double().abs().sigmoid()
    return (a > a.mean(1, keepdim=True)).float()


LOSSES = {"source_only": source_only, "dann": dann, "mstn": mstn, "wemnet": wemnet}


def by_hand(name: str, model: Bare, data: Pair, plan: Plan) -> Iterator[None]:
    """The loop; it pauses after the warm-up and after every block."""
    assert isinstance(data.source, ArrayInputs)
    assert isinstance(data.target, ArrayInputs)
    x_s, x_t = (torch.from_numpy(inputs.views[0]) for inputs in (data.source, data.target))
    order = [(s.index, t.index) for s, t in data.batches(plan.steps)]
    encoder = list(model.encoder.parameters())
    new = list(model.parameters())[len(encoder) :]
    groups: list[dict[str, Any]] = [{"params": encoder, "lr": 0.001}] if encoder else []
    optimizer = torch.optim.SGD(
        [*groups, {"params": new, "lr": 0.01}], momentum=0.9, nesterov=True, weight_decay=1e-3, fused=True
    )
    initial = [group["lr"] for group in optimizer.param_groups]
    loss_of = LOSSES[name]
    model.train()
    for step, (i_s, i_t) in enumerate(order):
        if step >= plan.warm and (step - plan.warm) % plan.block == 0:
            yield
        progress = step / plan.steps
        for lr, group in zip(initial, optimizer.param_groups, strict=True):
            group["lr"] = lr * (1 + 10 * progress) ** -0.75
        optimizer.zero_grad()
        loss = loss_of(
            model,
            x_s.index_select(0, i_s),
            data.labels[i_s],
            x_t.index_select(0, i_t),
            2 / (1 + math.exp(-10 * progress)) - 1,
        )
        torch.autograd.backward(loss)
        optimizer.step()
    yield


# --- both sides --------------------------------------------------------------------------------------------------


def make_data(plan: Plan) -> Pair:
    """Noise around a point a class, shifted in the target."""
    rng = np.random.default_rng(0)
    labels = np.arange(plan.samples) % CLASSES
    centres = rng.normal(size=(CLASSES, plan.shape[0])).astype(np.float32)

    def inputs(shift: float) -> ArrayInputs:
        x: npt.NDArray[np.float32] = rng.standard_normal((plan.samples, *plan.shape), dtype=np.float32)
        x += (centres[labels] + shift).reshape(plan.samples, -1, *[1] * (len(plan.shape) - 1))
        return ArrayInputs(x[None])

    return Pair(inputs(0), labels, inputs(0.5), batch_size=plan.batch)


def make_method(name: str, *, images: bool) -> Method:
    """A method on a ResNet-50 or on vectors, with random weights."""
    if not images:
        network = Network(nn.Identity(), nn.Identity(), VECTOR, bottleneck=WIDTH, level="vector")
    else:
        backbone = load_backbone("resnet50", pretrained=False)
        network = Network(backbone.body, backbone.pool, backbone.channels, bottleneck=WIDTH, level="image")
    options = {"w_d": "linear"} if name == "wemnet" else {}  # the form that is written out by hand
    return registry.load(name)(network, CLASSES, **options)


def make_sides(name: str, data: Pair, plan: Plan) -> tuple[Block, Block]:
    """The loop by hand and Acclimate's, each as what runs one block; they have agreed in the warm-up."""
    images = len(plan.shape) > 1
    method = make_method(name, images=images)
    encoder = timm.create_model("resnet50", pretrained=False, num_classes=0) if images else nn.Identity()
    model = Bare(name, encoder, method.net.channels, plan.batch)
    first = [p.detach().clone() for p in method.parameters()]
    with torch.no_grad():
        for ours, theirs in zip(method.parameters(), model.parameters(), strict=True):
            theirs.copy_(ours)
    loop = by_hand(name, model, data, plan)
    steps = iter(train(method, data, Recipe(steps=plan.steps, batch_size=plan.batch)))
    next(loop)
    advance(steps, plan.warm)
    check(name, first, list(method.parameters()), list(model.parameters()))
    return lambda: next(loop), lambda: advance(steps, plan.block)


def advance(steps: Iterator[object], number: int) -> None:
    """Take so many steps."""
    deque(islice(steps, number), maxlen=0)


@torch.no_grad()
def check(name: str, first: list[Tensor], ours: list[nn.Parameter], theirs: list[nn.Parameter]) -> None:
    """Refuse to time two loops that do not move the weights alike."""
    apart = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(ours, theirs, strict=True)))
    way = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(ours, first, strict=True)))
    if not apart <= 0.01 * way:
        raise SystemExit(f"{name}: the weights are {apart:.2g} apart after a way of {way:.2g}: no comparison.")


# --- measurement -------------------------------------------------------------------------------------------------


class Times(NamedTuple):
    """Milliseconds a step, one entry a round."""

    wall: npt.NDArray[np.float64]
    processor: npt.NDArray[np.float64]


def measure(sides: dict[str, Block], plan: Plan) -> dict[str, Times]:
    """Let the sides take turns."""
    taken: dict[str, list[tuple[float, float]]] = {key: [] for key in sides}
    for number in range(plan.rounds):
        for key, block in list(sides.items())[:: -1 if number % 2 else 1]:
            wall, processor = time.perf_counter(), time.process_time()
            block()
            taken[key].append((time.perf_counter() - wall, time.process_time() - processor))
    return {key: Times(*(1000 / plan.block * np.array(rows).T)) for key, rows in taken.items()}


def run(names: tuple[str, ...], plan: Plan) -> dict[str, Times]:
    """The times of each method, by its name, and of its loop by hand, by its name with "bare"."""
    torch.manual_seed(0)
    data = make_data(plan)
    sides: dict[str, Block] = {}
    for name in names:
        sides[f"bare {name}"], sides[name] = make_sides(name, data, plan)
    return measure(sides, plan)


# --- the table ---------------------------------------------------------------------------------------------------


def line(what: str, this: Times, other: Times, aim: float | None) -> str:
    """A line of the table: this against other."""
    cells = [f"{np.median(other.wall):.3g}", f"{np.median(this.wall):.3g}"]
    for a, b in ((this.wall, other.wall), (this.processor, other.processor)):
        low, middle, high = np.quantile(a / b, [0.25, 0.5, 0.75])
        cells.append(f"**{middle:.2f}** ({low:.2f} to {high:.2f})")
    return f"| {what} | {' | '.join(cells)} | {f'≤ {aim}' if aim else ''} |"


def table(tuned: dict[str, Times], cached: dict[str, Times]) -> str:
    """Markdown: every comparison of the run."""
    lines = [
        "| step | other, ms | this, ms | ratio of wall time | ratio of processor time | aim |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [line(f"fine-tuning, {n}: Acclimate / by hand", tuned[n], tuned[f"bare {n}"], 1.05) for n in TUNED]
    lines.append(line("fine-tuning: WEMNet / DANN, both Acclimate", tuned["wemnet"], tuned["dann"], 1.05))
    lines += [line(f"cached features, {n}: Acclimate / by hand", cached[n], cached[f"bare {n}"], 1.3) for n in CACHED]
    lines.append(line("cached features: WEMNet / DANN, both Acclimate", cached["wemnet"], cached["dann"], None))
    return "\n".join(lines)


def describe(tuning: Plan, caching: Plan, load: float) -> str:
    """Where and how the figures were measured."""
    side = tuning.shape[-1]
    return "\n".join(
        [
            f"- Machine: {processor_name()}, {os.cpu_count()} cores; PyTorch "
            f"{torch.__version__} on {torch.get_num_threads()} of them. Load average before the run: {load:.1f}, so "
            + ("other work shared the machine." if load > 0.5 else "the machine was idle."),
            f"- Fine-tuning: ResNet-50 with random weights, {tuning.batch}+{tuning.batch} images of {side}x{side} from "
            f"memory, bottleneck {WIDTH}; {tuning.rounds} rounds of {tuning.block} step a side.",
            f"- Cached features: vectors of {VECTOR} numbers, {caching.batch}+{caching.batch} from memory, bottleneck "
            f"{WIDTH}; {caching.rounds} rounds of {caching.block} steps a side.",
            "- Times are medians a step. Ratios are the median, and the range of the middle half, of the ratios round "
            "by round.",
        ]
    )


def processor_name() -> str:
    """The processor's name as the system gives it."""
    try:
        entries = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        entries = []
    names = [entry.partition(":")[2].strip() for entry in entries if entry.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]


def put_out(text: str, file: Path | None) -> None:
    """Print a page, and write it to a file if one is named."""
    print(text)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="images a batch from each domain when fine-tuning")
    parser.add_argument("--rounds", type=int, default=6, help="rounds when fine-tuning")
    parser.add_argument(
        "--threads", type=int, default=1, help="PyTorch's; several wait for each other on a shared machine"
    )
    parser.add_argument("--quick", action="store_true", help="try everything out on small images, in seconds")
    parser.add_argument("--table", type=Path, help="write the table here too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as every command does
    load = os.getloadavg()[0]
    tuning = Plan(args.batch, (3, 224, 224), 8 * args.batch, block=1, rounds=args.rounds, warm=2)
    caching = Plan(32, (VECTOR,), 2000, block=10, rounds=60, warm=20)
    if args.quick:
        tuning = tuning._replace(batch=2, shape=(3, 64, 64), rounds=2, warm=1)
        caching = caching._replace(rounds=3, warm=10)
    text = "\n\n".join(
        [
            "# Speed",
            "A training step of `acclimate.training.train` against the loop over bare PyTorch in "
            "`measurements/speed.py` that moves the same weights alike. Made by "
            "`python measurements/speed.py --table docs/results/speed.md`.",
            table(run(TUNED, tuning), run(CACHED, caching)),
            describe(tuning, caching, load),
        ]
    )
    put_out(text, args.table)


if __name__ == "__main__":
    main()
