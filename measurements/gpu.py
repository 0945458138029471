"""What works on a GPU and how fast, in ten minutes, from one command, without a network.

    python measurements/gpu.py [--out runs/gpu] [--device cuda] [--quick] [--only PART ...]

Each part runs in a process of its own, so that neither an error nor a hang in one ends the others. Each figure is in
OUT/gpu.jsonl and OUT/gpu.md as soon as it is made, so that a machine that is taken away loses nothing. A part that is
repeated replaces its own figures. --quick tries everything out on small models, in one process, on a CPU as well.

The bare loop is that of `measurements/methods.py`: it minimises the same objectives, and checks and reports nothing.
Both sides take turns in blocks of steps, and each ratio is that of two blocks of one round.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from acclimate import testing, training
from acclimate.data.batches import Pair
from acclimate.data.domain import Indices
from acclimate.data.inputs import Inputs
from acclimate.data.read import read_target
from acclimate.errors import AcclimateError
from acclimate.evaluation.predict import predict
from acclimate.machine import fast_bf16, pick_device
from acclimate.methods import registry
from acclimate.methods.base import Method, Objective
from acclimate.methods.options import options
from acclimate.model import Model, ModelSpec
from acclimate.networks.backbones import load_backbone
from acclimate.networks.network import lay_out_convolutions
from acclimate.progress import Nobody
from acclimate.runs.fit import fit
from acclimate.settings import Recipe, Settings
from acclimate.training import Checkpoint, train
from methods import Plan, Side, acclimate, bare, make_data, make_method

SMALL = {"hidden": 32, "image_size": 16, "width": 4, "noise": 8}  # of the options that make networks large
FINE_TUNED = ("dann", "cdan", "mcd", "tada", "wemnet")
STEPS, STOP = 8, 5
Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How large all is that is measured."""

    backbone: str = "resnet50"
    side: int = 224
    batch: int = 32
    block: int = 5
    rounds: int = 5
    images: int = 1024
    methods: tuple[str, ...] = ()
    tuned: tuple[str, ...] = FINE_TUNED
    changes: tuple[str, ...] = ()
    fit_steps: int = 60


QUICK = Size("resnet10t", 32, 2, 1, 1, 12, ("crst",), ("dann",), ("no checks, bfloat16",), 6)


@dataclass
class Setup:
    """What a part is given: the device, the sizes, a folder for its files, and where its figures go."""

    device: torch.device
    size: Size
    folder: Path
    note: Callable[..., None]

    def wait(self) -> None:
        """Until the device has done what it was asked to."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def plan(self) -> Plan:
        """Fine-tuning, as `measurements/methods.py` describes it."""
        return Plan(self.size.backbone, self.size.side, self.size.batch, self.size.rounds)


# --- the parts -----------------------------------------------------------------------------------------------------


def machine(setup: Setup) -> None:
    """What it was measured on."""
    setup.note(what="processor", value=f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    setup.note(what="PyTorch", value=torch.__version__)
    if setup.device.type == "cuda":
        properties = torch.cuda.get_device_properties(setup.device)
        setup.note(what="GPU", value=f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
        setup.note(what="capability", value=f"{properties.major}.{properties.minor}")
        setup.note(what="GPUs", value=torch.cuda.device_count())
        setup.note(what="cuDNN", value=torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
    setup.note(what="bfloat16 in hardware", value=fast_bf16(setup.device))


def conformance(setup: Setup) -> None:
    """Every method: whether it trains, learns, repeats and resumes, and how far it ends from the CPU's weights."""
    for name in setup.size.methods or registry.names():
        if name != registry.CONSENSUS:
            with _guarded(setup, method=name):
                setup.note(method=name, **_conforms(name, setup))


def _conforms(name: str, setup: Setup) -> Row:
    method, steps = _tiny(name, setup.device)
    here = [t.device.type for t in method.state_dict().values()]
    row: Row = {"steps": steps, "all on the device": all(kind == setup.device.type for kind in here)}
    again, _ = _tiny(name, setup.device)
    row["repeats to the bit"] = _equal(method, again)
    if not row["repeats to the bit"]:
        row["furthest, repeated"] = _distance(method, again)
        with _deterministic():
            row["repeats, deterministic"] = _equal(_tiny(name, setup.device)[0], _tiny(name, setup.device)[0])
    with _deterministic():
        whole, _ = _tiny(name, setup.device)
        if steps:
            file = setup.folder / "last.safetensors"
            _tiny(name, setup.device, stop=file)
            torch.manual_seed(99)
            row["resumes to the bit"] = _equal(whole, _tiny(name, setup.device, resume=Checkpoint.load(file))[0])
    on_cpu, _ = _tiny(name, torch.device("cpu"))
    start = testing.tiny_method(registry.load(name), **_small(name))
    if steps:
        row["distance to the CPU's, of the way"] = _distance(method, on_cpu) / max(_distance(on_cpu, start), 1e-12)
    method.eval()
    x = testing.tiny_batch(type(method))
    with torch.inference_mode():
        there = method.predict(x.to(setup.device)).softmax(1).cpu()
        row["predictions off the CPU's by"] = float((there - method.cpu().predict(x).softmax(1)).abs().max())
    learned, _ = _tiny(name, setup.device, steps=testing.LONG)
    p = predict(learned.eval(), testing.tiny_pair(type(learned)).target, device=setup.device)
    row["accuracy, easy data"] = float(np.mean(p.argmax(1) == np.arange(testing.N_T) % testing.K))
    return row


def _small(name: str) -> dict[str, Any]:
    return {option: value for option, value in SMALL.items() if option in options(name)}


def _tiny(
    name: str, device: torch.device, *, steps: int = STEPS, stop: Path | None = None, resume: Checkpoint | None = None
) -> tuple[Method, int]:
    """A tiny model trained on a device, from the weights and on the batches that every device has, and its steps."""
    cls = registry.load(name)
    method = testing.tiny_method(cls, **_small(name)).to(device)
    data = testing.tiny_pair(cls)
    data.device = device
    torch.manual_seed(1)
    done = 0
    for step in train(method, data, Recipe.of(cls, steps=steps, lr=max(cls.recipe.get("lr", 0.01), 0.01)), resume):
        done = step.step
        if stop is not None and done == STOP:
            step.checkpoint().save(stop)
            break
    return method, done


def _equal(a: nn.Module, b: nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(t.cpu(), other[name].cpu()) for name, t in a.state_dict().items())


def _distance(a: nn.Module, b: nn.Module) -> float:
    """Between the parameters of two modules."""
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return math.sqrt(sum(float((p.detach().cpu() - q.detach().cpu()).double().square().sum()) for p, q in pairs))


@contextmanager
def _deterministic() -> Iterator[None]:
    """The algorithms that repeat, where there are such; no error where there are none."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = before


def step(setup: Setup) -> None:
    """A fine-tuning step of each method against the bare loop, in float32 and in bfloat16, and its peak memory."""
    for name in setup.size.tuned:
        for bf16 in (False, True):
            with _guarded(setup, method=name, bf16=bf16):
                ours = _tuned(name, setup, bf16=bf16)
                data = _data(name, setup)
                sides = {"ours": acclimate(ours, data), "bare": bare(copy.deepcopy(ours), data)}
                times, peak = _measured(sides, setup), _peak(setup)
                setup.note(method=name, bf16=bf16, ms=_ms(times["ours"]), **_ratio(times), **peak)


def _tuned(name: str, setup: Setup, *, bf16: bool) -> Method:
    method = make_method(name, setup.plan()).to(setup.device)
    for network in method.networks:
        network.bf16 = bf16
    return method


def _data(name: str, setup: Setup) -> Pair:
    """Images as a run has them: prepared ahead, channels last."""
    data = make_data(setup.plan(), registry.load(name).needs)
    data.source, data.target = (LaidOut(inputs) for inputs in (data.source, data.target))
    data.device, data.prefetch = setup.device, 2
    return data


class LaidOut:
    """Inputs whose batches have their channels last, as decoded images have."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, index: Indices, rng: np.random.Generator | None) -> Tensor:
        """The batch at `index`, (B, C, size, size)."""
        return self.inputs.batch(index, rng).contiguous(memory_format=torch.channels_last)


def _measured(sides: Mapping[str, Side], setup: Setup) -> dict[str, list[float]]:
    """Milliseconds a step of each side, block by block in turns; the first three steps are not counted."""
    for side in sides.values():
        _advance(side, 3)
    if setup.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(setup.device)
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(setup.size.rounds):
        for name, side in list(sides.items())[:: -1 if number % 2 else 1]:
            setup.wait()
            start = time.perf_counter()
            _advance(side, setup.size.block)
            setup.wait()
            taken[name].append(1000 * (time.perf_counter() - start) / setup.size.block)
    return taken


def _advance(side: Side, steps: int) -> None:
    for _ in islice(side, steps):
        pass


def _ratio(times: Mapping[str, list[float]], this: str = "ours", other: str = "bare") -> Row:
    """How the time of one side is to that of another: the median over the rounds, and the middle half."""
    ratios = np.array(times[this]) / np.array(times[other])
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return {f"time to {other}": _short(middle), "from": _short(low), "to": _short(high)}


def _ms(times: list[float]) -> float:
    return _short(float(np.median(times)))


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _peak(setup: Setup) -> Row:
    """The most memory since the measurement began, both sides' models included."""
    if setup.device.type != "cuda":
        return {}
    return {"peak GiB, both": _short(torch.cuda.max_memory_allocated(setup.device) / 2**30)}


def settings(setup: Setup) -> None:
    """DANN's step with one thing changed: precision, layout, cuDNN's search, the compiler, without checks."""
    for what in setup.size.changes or VARIANTS:
        change = VARIANTS[what]
        with _guarded(setup, step=what):
            plain, changed = (_tuned("dann", setup, bf16="bfloat16" in what) for _ in range(2))
            data = _data("dann", setup)
            start = time.perf_counter()
            sides = {"plain": acclimate(plain, data), "changed": _within(change(changed), acclimate(changed, data))}
            times = _measured(sides, setup)
            ratio = _ratio(times, "changed", "plain")
            setup.note(step=what, ms=_ms(times["changed"]), **ratio, seconds=_short(time.perf_counter() - start))


Change: TypeAlias = Callable[[], Any]


def _within(change: Change, side: Side) -> Side:
    """A side each of whose steps is taken within a change of PyTorch's state."""
    while True:
        with change():
            made = next(side, None)
        if made is None:
            return
        yield made


@contextmanager
def _flags(**flags: Any) -> Iterator[None]:
    """Other values of these attributes of `torch.backends.cudnn`, or the precision of matrix products."""
    precision = torch.get_float32_matmul_precision()
    before = {name: getattr(torch.backends.cudnn, name) for name in flags if name != "matmul"}
    try:
        torch.set_float32_matmul_precision(flags.get("matmul", precision))
        for name in before:
            setattr(torch.backends.cudnn, name, flags[name])
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        for name, value in before.items():
            setattr(torch.backends.cudnn, name, value)


def _always(**flags: Any) -> Callable[[Method], Change]:
    return lambda method: lambda: _flags(**flags)


def _channels_last(method: Method) -> Change:
    lay_out_convolutions(method, images=True)
    return _flags


def _compiled(**how: Any) -> Callable[[Method], Change]:
    def change(method: Method) -> Change:
        method.net.encoder.compile(**how)
        return _flags

    return change


def _unchecked(method: Method) -> Change:
    """The trainer without its two looks at values, each of which waits for the GPU."""

    def backward(objective: Objective, parameters: list[nn.Parameter], parts: int, step: int) -> dict[str, Tensor]:
        torch.autograd.backward(objective.loss / parts if parts > 1 else objective.loss, inputs=parameters)
        return {name: term.detach() for name, term in objective.terms.items()}

    return lambda: mock.patch.multiple(training, _backward=backward, _check_and_clip=lambda *_: None)


VARIANTS: dict[str, Callable[[Method], Change]] = {
    "nothing changed": _always(),
    "convolutions in float32, not TF32": _always(allow_tf32=False),
    "matrix products in TF32 too": _always(matmul="high"),
    "weights channels last": _channels_last,
    "weights channels last, bfloat16": _channels_last,
    "cuDNN tries its algorithms": _always(benchmark=True),
    "cuDNN tries its algorithms, bfloat16": _always(benchmark=True),
    "deterministic convolutions": _always(deterministic=True),
    "no checks": _unchecked,
    "no checks, bfloat16": _unchecked,
    "compiled": _compiled(),
    "compiled, bfloat16": _compiled(),
    "compiled into CUDA graphs, bfloat16": _compiled(mode="reduce-overhead"),
}


def cached(setup: Setup) -> None:
    """A step on cached vectors against the bare loop, and DANN's bare loop as one CUDA graph."""
    plan = Plan(None, 0, setup.size.batch, setup.size.rounds)
    names = setup.size.methods or ("source_only", "dann", "cdan", "mstn", "wemnet", "mcd")
    for name in names:
        with _guarded(setup, method=name):
            method = make_method(name, plan).to(setup.device)
            data = make_data(plan, method.needs)
            data.device = setup.device
            sides = {"ours": acclimate(method, data), "bare": bare(copy.deepcopy(method), data)}
            times = _measured(sides, setup)
            setup.note(method=name, ms=_ms(times["ours"]), **_ratio(times))
    if setup.device.type == "cuda":
        with _guarded(setup, method="dann, bare, as a CUDA graph"):
            setup.note(method="dann, bare, as a CUDA graph", ms=_graphed(plan, setup))


def _graphed(plan: Plan, setup: Setup) -> float:
    """Milliseconds of a step of DANN that is recorded once and then replayed, on one and the same batch."""
    method = make_method("dann", plan).to(setup.device).train()
    data = make_data(plan, "vector")
    data.device = setup.device
    method.progress = 0.5
    s, t = data.batch(0)
    parameters = list(method.parameters())
    optimizer = torch.optim.SGD(parameters, lr=1e-5, momentum=0.9, fused=True)

    def one() -> None:
        for objective in method.step(s, t):
            optimizer.zero_grad(set_to_none=False)
            torch.autograd.backward(objective.loss, inputs=parameters)
            optimizer.step()

    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            one()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        one()
    setup.wait()
    start = time.perf_counter()
    for _ in range(100):
        graph.replay()
    setup.wait()
    return _short(10 * (time.perf_counter() - start))


def extraction(setup: Setup) -> None:
    """Features from image files through the cache, against the network alone, and how far they are from the CPU's."""
    folder = setup.folder / "images"
    _pictures(folder, ("",), setup.size.images, side=256)
    domain = read_target(folder)
    for bf16 in (False, True):
        with _guarded(setup, bf16=bf16):
            model = _frozen(setup, setup.device, bf16=bf16)
            os.environ["ACCLIMATE_CACHE"] = str(setup.folder / f"cache-{bf16}")
            first = read_target(_pictures(setup.folder / "first", ("",), 4, side=256))
            model.inputs(first)  # the network is prepared, and cuDNN has begun
            setup.wait()
            start = time.perf_counter()
            rows = model.inputs(domain)
            whole = len(domain) / (time.perf_counter() - start)
            few = rows.batch(np.arange(4), None)
            os.environ["ACCLIMATE_CACHE"] = str(setup.folder / "cache-cpu")
            on_cpu = _frozen(setup, torch.device("cpu"), bf16=False).inputs(domain.select(np.arange(4)))
            expected = on_cpu.batch(np.arange(4), None)
            off = float((few - expected).norm() / expected.norm())
            alone = _alone(model, setup)
            setup.note(bf16=bf16, **{"images/s": _short(whole), "network alone": _short(alone), "off the CPU's": off})


def _frozen(setup: Setup, device: torch.device, *, bf16: bool) -> Model:
    torch.manual_seed(0)
    backbone = load_backbone(setup.size.backbone, pretrained=False)
    spec = ModelSpec(
        method="source_only",
        options={},
        classes=("a", "b"),
        backbone=backbone.name,
        vector=None,
        tune="head",
        bottleneck=256,
        preprocess=backbone.preprocess,
        bf16=bf16,
    )
    return Model(spec, backbone, device)


@torch.inference_mode()
def _alone(model: Model, setup: Setup) -> float:
    """Images a second of the frozen network on batches that are on the device already."""
    assert model.spec.preprocess is not None
    side, n = model.spec.preprocess.size, min(64, setup.size.images)
    x = torch.rand(n, 3, side, side, device=setup.device).to(memory_format=torch.channels_last)
    repeats = setup.size.rounds
    with torch.autocast(setup.device.type, dtype=torch.bfloat16, enabled=model.spec.bf16):
        model._extractor(x)
        setup.wait()
        start = time.perf_counter()
        for _ in range(repeats):
            model._extractor(x)
        setup.wait()
    return repeats * n / (time.perf_counter() - start)


def runs(setup: Setup) -> None:
    """Whole runs on made images: every --tune, both precisions; one that is interrupted goes on to the same bits."""
    _pictures(setup.folder / "source", ("a", "b", "c"), setup.size.images // 6)
    _pictures(setup.folder / "target", ("a", "b", "c"), setup.size.images // 6, shade=30)
    os.environ["ACCLIMATE_CACHE"] = str(setup.folder / "cache")
    for tune in ("all", "top", "head"):
        for precision in ("fp32", "bf16"):
            if setup.size == QUICK and (tune, precision) != ("all", "fp32"):
                continue
            with _guarded(setup, tune=tune, precision=precision):
                setup.note(tune=tune, precision=precision, **_run(tune, precision, setup))


def _run(tune: str, precision: str, setup: Setup) -> Row:
    asked = _asked(tune, precision, setup)
    with _deterministic():
        record = fit(asked, setup.folder / f"{tune}-{precision}")
        row: Row = {"features s": record.seconds.features, "training s": record.seconds.training}
        row = {name: _short(value) for name, value in row.items()}
        row["steps/s"] = _short(record.steps / record.seconds.training)
        row["accuracy"] = record.scores.accuracy if record.scores is not None else None
        out = setup.folder / f"{tune}-{precision}-resumed"
        try:
            fit(asked, out, _Interrupting(record.steps // 2))
        except KeyboardInterrupt:
            row["resumed at"] = fit(asked, out).resumed_at
    one, two = (load_file(folder / "model.safetensors") for folder in (out, setup.folder / f"{tune}-{precision}"))
    row["resumes to the bit"] = all(torch.equal(one[name], two[name]) for name in one)
    target = read_target(setup.folder / "target")
    there, here = (Model.load(out, device).predict(target).probabilities for device in (setup.device, "cpu"))
    row["other classes on the CPU"] = float(np.mean(there.argmax(1) != here.argmax(1)))
    return row


def _asked(tune: str, precision: str, setup: Setup) -> Settings:
    """DANN on a network with random weights that count as pretrained; in the quick form a small one from scratch."""
    given: dict[str, Any] = {"backbone": "digits_cnn"}
    if setup.size != QUICK:
        weights = setup.folder / "weights.safetensors"
        if not weights.exists():
            torch.manual_seed(0)
            save_file(timm.create_model(setup.size.backbone).state_dict(), weights)
        given = {"backbone": setup.size.backbone, "weights": str(weights)}
    return Settings.of(
        source=str(setup.folder / "source"),
        target=str(setup.folder / "target"),
        method="dann",
        tune=tune,
        precision=precision,
        device=str(setup.device),
        steps=setup.size.fit_steps,
        batch_size=min(setup.size.batch, setup.size.images // 6),
        checkpoint_seconds=0.0 if setup.size == QUICK else 1.0,
        **given,
    )


class _Interrupting(Nobody):
    """Interrupts a training at a step, behind which there has been a checkpoint."""

    def __init__(self, at: int) -> None:
        self.at = at

    def progress(self, description: str, total: int, start: int = 0) -> Any:
        """A meter that does it."""
        return self if description.startswith("Training") else super().progress(description, total, start)

    def __enter__(self) -> _Interrupting:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing."""

    def update(self, done: int, terms: object = None) -> None:
        """Interrupt, once it is time and a checkpoint's second has passed."""
        if done == self.at:
            time.sleep(0 if done < 10 else 1.1)
        if done == self.at + 1:
            raise KeyboardInterrupt


def _pictures(folder: Path, classes: tuple[str, ...], each: int, *, side: int = 64, shade: int = 0) -> Path:
    """A folder of class folders with images whose classes differ in their shade."""
    rng = np.random.default_rng(shade)
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            pixels = rng.integers(0, 60, (side, side, 3)) + 60 * k + shade
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.jpg")
    return folder


def several(setup: Setup) -> None:
    """A run by torchrun on two GPUs against one GPU that accumulates two batches."""
    if setup.device.type != "cuda" or torch.cuda.device_count() < 2:
        setup.note(processes=2, why="left out: there are no two GPUs")
        return
    _pictures(setup.folder / "source", ("a", "b", "c"), setup.size.images // 6)
    _pictures(setup.folder / "target", ("a", "b", "c"), setup.size.images // 6, shade=30)
    asked = _asked("all", "fp32", setup)
    command = [
        *("-m", "acclimate", "fit", asked.source, asked.target, "--method", "dann", "--tune", "all"),
        *("--backbone", asked.backbone, "--weights", str(asked.weights), "--steps", str(asked.recipe.steps)),
        *("--batch-size", str(asked.recipe.batch_size), "--precision", "fp32", "--no-report"),
    ]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    os.environ["ACCLIMATE_CACHE"] = str(setup.folder / "cache")
    two, one = setup.folder / "two", setup.folder / "one"
    subprocess.run([sys.executable, *torchrun, *command, "--out", str(two)], check=True, timeout=200)
    subprocess.run([sys.executable, *command, "--accumulate", "2", "--out", str(one)], check=True, timeout=200)
    seconds = [json.loads((out / "record.json").read_text())["seconds"]["training"] for out in (two, one)]
    a, b = (load_file(out / "model.safetensors") for out in (two, one))
    learned = [name for name in a if "running_" not in name and "num_batches" not in name]
    off = max(float((a[name].double() - b[name].double()).abs().max()) for name in learned)
    setup.note(processes=2, seconds=_short(seconds[0]), **{"one GPU, both batches": _short(seconds[1]), "off by": off})


PARTS: dict[str, Callable[[Setup], None]] = {
    part.__name__: part for part in (machine, conformance, step, runs, extraction, cached, several, settings)
}


# --- keeping the figures -------------------------------------------------------------------------------------------


@contextmanager
def _guarded(setup: Setup, **which: Any) -> Iterator[None]:
    """Notes what goes wrong with one figure, so that the next ones are made."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        line = (str(error).splitlines() or [""])[0]
        setup.note(**which, failed=line if isinstance(error, AcclimateError) else f"{type(error).__name__}: {line}")


class Figures:
    """The files of the figures; each is written anew with every figure.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.lines, self.page = folder / "gpu.jsonl", folder / "gpu.md"

    def rows(self) -> list[tuple[str, Row]]:
        """The part and the figures of each line."""
        if not self.lines.exists():
            return []
        lines = [json.loads(line) for line in self.lines.read_text(encoding="utf-8").splitlines()]
        return [(line.pop("part"), line) for line in lines]

    def forget(self, part: str) -> None:
        """Drop the figures of a part that begins anew."""
        kept = [json.dumps({"part": of, **row}) + "\n" for of, row in self.rows() if of != part]
        self.lines.write_text("".join(kept), encoding="utf-8")

    def add(self, part: str, row: Row) -> None:
        """Keep a row, and show it."""
        with self.lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"part": part, **row}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(part, row, flush=True)
        self.page.write_text(self.markdown(), encoding="utf-8")

    def markdown(self) -> str:
        """All figures, a table for each part."""
        found = self.rows()
        sections = ["# On a GPU", "Made by `python measurements/gpu.py`."]
        for part in PARTS:
            rows = [row for of, row in found if of == part]
            columns = list(dict.fromkeys(name for row in rows for name in row))
            if rows:
                table = [columns, ["---"] * len(columns), *([_cell(row.get(c)) for c in columns] for row in rows)]
                lines = "\n".join(f"| {' | '.join(cells)} |" for cells in table)
                sections += [f"## {part.capitalize()}", str(PARTS[part].__doc__), lines]
        return "\n\n".join(sections) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value).replace("|", "/")


def run_part(part: str, args: argparse.Namespace) -> None:
    """Make the figures of one part in this process."""
    figures = Figures(args.out)
    figures.forget(part)
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ):

        def note(**row: Any) -> None:
            figures.add(part, row)

        setup = Setup(pick_device(args.device), QUICK if args.quick else Size(), Path(folder), note)
        with _guarded(setup):
            PARTS[part](setup)


def main(given: list[str] | None = None) -> None:
    """Make the figures of all parts, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="where the figures are written")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=10, help="for all parts; what does not fit is left out")
    parser.add_argument("--quick", action="store_true", help="try everything out on small models, in one process")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS), help="these parts")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(given)
    end = time.monotonic() + 60 * args.minutes
    for part in args.only:
        if args.quick or args.here:
            run_part(part, args)
            continue
        left = end - time.monotonic()
        again = [__file__, "--here", "--only", part, "--out", str(args.out), "--device", args.device]
        environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # or its products may not repeat
        try:
            if left <= 0:
                raise subprocess.TimeoutExpired(part, 0)
            code = subprocess.run([sys.executable, *again], check=False, timeout=left, env=environment).returncode
            if code:
                Figures(args.out).add(part, {"failed": f"the process ended with {code}"})
        except subprocess.TimeoutExpired:
            Figures(args.out).add(part, {"failed": f"it was left out or cut off: {args.minutes:g} minutes were over"})


if __name__ == "__main__":
    main()
