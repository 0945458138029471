"""What a training step of a method costs here, against the same method in two other libraries of domain adaptation.

    python measurements/peers.py [--quick] [--table docs/results/peers.md]

The other side gets copies of the same networks with the same weights, the same batches, the same fused optimiser and,
where its interface allows it, the same loss; a table says how far it is the same. Nothing in a peer is changed. The
ramp is held at 1 on our side, as the coefficient of the reversal is in theirs.

A step is forward, backward and update on a batch that is drawn from arrays in memory. The sides take turns step by
step, in an order that is reversed every round, and each ratio is that of two steps of one round, so that whatever else
the machine does falls on both. A method that a peer cannot run has its error in the table.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import math
import os
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from acclimate.data.batches import Pair
from acclimate.data.inputs import ArrayInputs
from acclimate.machine import keep_freed_memory
from acclimate.methods import registry
from acclimate.methods.base import Method
from acclimate.networks.network import Network
from acclimate.settings import Recipe
from acclimate.training import train
from methods import (
    CLASSES,
    SHORT_FIRST_STAGE,
    STEPS,
    VECTOR,
    WIDTH,
    Plan,
    Side,
    make_data,
    make_network,
    measure,
    ratio,
)
from speed import advance, processor_name, put_out

PEERS = ("pytorch_adapt.hooks", "pytorch_adapt.layers", "pytorch_adapt.weighters", "skada.deep", "skada.deep.base")
INSTALL = (
    "pip install --no-deps pytorch-adapt==0.0.83 pytorch-metric-learning==1.6.3 torchmetrics==0.9.3 'setuptools<81' "
    "skada==0.6.0 skorch==1.2.0 POT tabulate"
)
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)  # the widths of DAN's kernels, in multiples of the mean distance
LR = 1e-4  # so small that a long measurement of noise does not diverge
NARROW = 8  # width of everything where the machinery alone is timed
Models = dict[str, Any]  # networks by the names that pytorch-adapt's hooks know them by
TheirSide = Iterator[Models]


class Comparison(NamedTuple):
    """A line of a table.

    Attributes:
        method: Ours, by its name.
        options: With these, so that it computes what the peer computes.
        peer: What it is called there.
        side: The peer's steps, from our method before its first step and from the data; each yields its networks.
        differs: What the peer does otherwise.
    """

    method: str
    options: dict[str, Any]
    peer: str
    side: Callable[[Method, Pair], TheirSide]
    differs: str


def sgd(*modules: nn.Module, momentum: float = 0.9, fused: bool | None = True) -> torch.optim.Optimizer:
    """The optimiser of both sides, for the parameters of these modules."""
    parameters = list(dict.fromkeys(chain.from_iterable(m.parameters() for m in modules)))
    return torch.optim.SGD(parameters, lr=LR, momentum=momentum, nesterov=momentum > 0, weight_decay=1e-3, fused=fused)


def steps(method: Method, data: Pair) -> Side:
    """Our steps, by the same optimiser."""
    return iter(train(method, data, Recipe(steps=STEPS, lr=LR, backbone_lr=1.0, schedule="constant")))


# --- pytorch-adapt -----------------------------------------------------------------------------------------------


def hooked(make_hook: Callable[[Any, Models], Any]) -> Callable[[Method, Pair], TheirSide]:
    """Steps of a hook on copies of our networks."""

    def side(method: Method, data: Pair) -> TheirSide:
        models = {name: copy.deepcopy(module).train() for name, module in named(method).items()}
        hook = make_hook(importlib.import_module("pytorch_adapt.hooks"), models)
        domains = {"src_domain": torch.ones(data.batch_size), "target_domain": torch.zeros(data.batch_size)}
        for s, t in data.batches(STEPS):
            hook({**models, **domains, "src_imgs": s.x, "src_labels": s.y, "target_imgs": t.x})
            yield models

    return side


def named(method: Method) -> Models:
    """Our networks by pytorch-adapt's names."""
    layers: Any = importlib.import_module("pytorch_adapt.layers")
    ours: dict[str, Any] = dict(method.named_children())
    found = {name: ours[key] for name, key in {"G": "net", "C": "classifier", "D": "critic"}.items() if key in ours}
    if "heads" in ours:
        found["C"] = layers.MultipleModels(*ours["heads"])
    if "target_net" in ours:
        found["T"] = ours["target_net"]
    if "residual" in ours:
        found["residual_model"] = layers.PlusResidual(ours["residual"])
    if "residual" in ours or hasattr(method, "R_f"):
        found["feature_combiner"] = layers.RandomizedDotProduct([method.net.dim, method.num_classes], 1024)
    if hasattr(method, "R_f"):
        found["feature_combiner"].set_rand_mat(0, method.R_f)
        found["feature_combiner"].set_rand_mat(1, method.R_g)
    return found


def summed(**weights: float) -> Any:
    """A weighter that adds the losses up, as we do; the default one takes their mean."""
    weighters: Any = importlib.import_module("pytorch_adapt.weighters")
    return weighters.SumWeighter(weights=weights)


def kernels(mmd_type: str) -> Any:
    """The discrepancy with our five kernels, whose mean it takes where we have their sum."""
    layers: Any = importlib.import_module("pytorch_adapt.layers")
    return layers.MMDLoss(kernel_scales=1 / torch.tensor(SCALES), mmd_type=mmd_type)


def source_only(hooks: Any, models: Models) -> Any:
    """Classification of the source."""
    return hooks.ClassifierHook(opts=[sgd(models["G"], models["C"])])


def dan(hooks: Any, models: Models) -> Any:
    """One kernel on the features."""
    aligner = hooks.AlignerHook(loss_fn=kernels("linear"))
    opts = [sgd(models["G"], models["C"])]
    return hooks.AlignerPlusCHook(
        opts=opts, aligner_hook=aligner, softmax=False, weighter=summed(features_confusion_loss=5)
    )


def jan(hooks: Any, models: Models) -> Any:
    """A product of kernels on features and predictions."""
    aligner = hooks.JointAlignerHook(loss_fn=kernels("quadratic"))
    opts = [sgd(models["G"], models["C"])]
    return hooks.AlignerPlusCHook(
        opts=opts, aligner_hook=aligner, softmax=True, weighter=summed(joint_confusion_loss=5)
    )


def rtn(hooks: Any, models: Models) -> Any:
    """A kernel on features times predictions, and a residual layer."""
    opts = [sgd(models["G"], models["C"], models["residual_model"])]
    return hooks.RTNHook(
        opts=opts, aligner_loss_fn=kernels("quadratic"), weighter=summed(features_confusion_loss=1.5, entropy_loss=0.3)
    )


def dann(hooks: Any, models: Models) -> Any:
    """Gradient reversal."""
    opts = [sgd(models["G"], models["C"], models["D"])]
    return hooks.DANNHook(opts=opts, weighter=summed(src_domain_loss=0.5, target_domain_loss=0.5))


def cdan(hooks: Any, models: Models) -> Any:
    """Discriminator and network in turns."""
    return hooks.CDANHook(
        d_opts=[sgd(models["D"])],
        g_opts=[sgd(models["G"], models["C"])],
        d_weighter=summed(d_src_domain_loss=0.5, d_target_domain_loss=0.5),
        g_weighter=summed(g_src_domain_loss=0.5, g_target_domain_loss=0.5),
    )


def cdan_e(hooks: Any, models: Models) -> Any:
    """Gradient reversal, weighted by entropy."""
    opts = [sgd(models["G"], models["C"], models["D"])]
    return hooks.CDANNEHook(opts=opts, weighter=summed(src_domain_loss=0.5, target_domain_loss=0.5))


def adda(hooks: Any, models: Models) -> Any:
    """The target's network moves in every step, as ours does, however good the discriminator is."""
    models["T"].load_state_dict(models["G"].state_dict())
    return hooks.ADDAHook(
        threshold=-1,
        d_opts=[sgd(models["D"])],
        g_opts=[sgd(models["T"])],
        d_weighter=summed(d_src_domain_loss=0.5, d_target_domain_loss=0.5),
    )


def mcd(hooks: Any, models: Models) -> Any:
    """Steps A, B and four times C."""
    return hooks.MCDHook(
        g_opts=[sgd(models["G"], momentum=0)],
        c_opts=[sgd(models["C"])],
        x_weighter=summed(),
        y_weighter=summed(),
    )


ADAPT = [
    Comparison("source_only", {}, "ClassifierHook", hooked(source_only), "nothing else"),
    Comparison(
        "dan",
        {"estimator": "pairs"},
        'AlignerPlusCHook, MMDLoss("linear")',
        hooked(dan),
        "width of the kernels by the median distance in the source",
    ),
    Comparison(
        "jan",
        {"estimator": "unbiased"},
        'JointAlignerHook, MMDLoss("quadratic")',
        hooked(jan),
        "five kernels on the predictions too, where we have one",
    ),
    Comparison(
        "rtn",
        {"estimator": "unbiased"},
        'RTNHook, MMDLoss("quadratic")',
        hooked(rtn),
        "a random map to 1,024 numbers in place of the whole product",
    ),
    Comparison("dann", {}, "DANNHook", hooked(dann), "nothing else"),
    Comparison("adda", {}, "ADDAHook", hooked(adda), "the target alone in the discriminator's second pass"),
    Comparison(
        "cdan",
        {"entropy": False, "random": "on"},
        "CDANHook",
        hooked(cdan),
        "an update of the discriminator, then one of the network",
    ),
    Comparison(
        "cdan",
        {"entropy": True, "random": "on"},
        "CDANNEHook",
        hooked(cdan_e),
        "weights divided by a domain's largest; predictions with a gradient",
    ),
    Comparison("mcd", {"balance_weight": 0.0}, "MCDHook", hooked(mcd), "the source alone in step A; no balance term"),
]


# --- skada -------------------------------------------------------------------------------------------------------


class Reversed(nn.Module):
    """Our discriminator behind skada's reversal, in place of skada's own; the source is negative there."""

    def __init__(self, critic: nn.Module) -> None:
        super().__init__()
        self.critic = copy.deepcopy(critic)
        self.reversal: Any = importlib.import_module("skada.deep.modules").GradientReversalLayer

    def forward(self, x: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Logits (B,)."""
        logits: Tensor = self.critic(self.reversal.apply(x, 1.0))
        return -logits


def estimator(name: str, method: Method, data: Pair) -> Any:
    """The estimator of that name in skada, on copies of our networks."""
    deep: Any = importlib.import_module("skada.deep")
    module = nn.Sequential()
    module.add_module("f", copy.deepcopy(method.net))
    module.add_module("z", copy.deepcopy(method.get_submodule("classifier")))
    given: dict[str, dict[str, Any]] = {"DAN": {"sigmas": [16 * c for c in SCALES]}, "CDAN": {"max_features": 1024}}
    own = given.get(name, {})
    if name in ("DANN", "CDAN"):
        own["domain_classifier"] = Reversed(method.get_submodule("critic"))
        own |= {"domain_criterion": nn.BCEWithLogitsLoss(), "reg": 0.5}
    settings = {"lr": LR, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3, "fused": True}
    net = getattr(deep, name)(
        **{"module": module, "layer_name": "f", **own},
        **{f"optimizer__{key}": value for key, value in settings.items()},
        optimizer=torch.optim.SGD,
        batch_size=data.batch_size,
        train_split=None,
        verbose=0,
    )
    return net.initialize()


def parts_of(net: Any) -> Models:
    """The networks of an estimator."""
    module = net.module_
    found = {"G": module.base_module_.f, "C": module.base_module_.z}
    return found if module.domain_classifier_ is None else {**found, "D": module.domain_classifier_.critic}


def by_step(name: str) -> Callable[[Method, Pair], TheirSide]:
    """Steps of the estimator on our batches."""

    def side(method: Method, data: Pair) -> TheirSide:
        net = estimator(name, method, data)
        domain = torch.cat([torch.ones(data.batch_size), -2 * torch.ones(data.batch_size)]).long()
        unknown = torch.full((data.batch_size,), -1)
        n = data.batch_size if name == "SourceOnly" else 2 * data.batch_size
        for s, t in data.batches(STEPS):
            X = s.x if name == "SourceOnly" else torch.cat([s.x, t.x])
            net.train_step(({"X": X, "sample_domain": domain[:n]}, torch.cat([s.y, unknown])[:n]))
            yield parts_of(net)

    return side


def by_epoch(name: str) -> Callable[[Method, Pair], TheirSide]:
    """Epochs of the estimator with its own loader, over the same arrays."""

    def side(method: Method, data: Pair) -> TheirSide:
        net = estimator(name, method, data)
        dataset = importlib.import_module("skada.deep.base").DeepDADataset(*labelled_arrays(data))
        iterator = net.get_iterator(dataset, training=True)
        while True:
            net.notify("on_epoch_begin", dataset_train=dataset, dataset_valid=None)
            net.run_single_epoch(iterator, training=True, prefix="train", step_fn=net.train_step)
            yield parts_of(net)

    return side


def labelled_arrays(data: Pair) -> tuple[Any, Any, Any]:
    """Both domains as skada takes them: samples, labels with -1 for unknown, and domains with the target negative."""
    assert isinstance(data.source, ArrayInputs)
    assert isinstance(data.target, ArrayInputs)
    x_s, x_t = data.source.views[0], data.target.views[0]
    y = np.concatenate([data.labels.numpy(), np.full(len(x_t), -1)])
    return np.concatenate([x_s, x_t]), y, np.concatenate([np.ones(len(x_s), int), np.full(len(x_t), -2)])


def epochs(method: Method, data: Pair) -> Side:
    """Our steps, as many at a time as an epoch of the data has."""
    ours = steps(method, data)
    while True:
        advance(ours, len(data.source) // data.batch_size)
        yield None


SKADA = [
    Comparison("source_only", {}, "SourceOnly", by_step("SourceOnly"), "nothing"),
    Comparison(
        "dan",
        {"estimator": "biased"},
        "DAN",
        by_step("DAN"),
        "kernels of the distance, not of its square, and of a constant width",
    ),
    Comparison("dann", {}, "DANN", by_step("DANN"), "nothing"),
    Comparison(
        "cdan",
        {"entropy": False, "random": "on"},
        "CDAN",
        by_step("CDAN"),
        "logits, with a gradient, for predictions; the random map drawn anew in every step",
    ),
]
LOADED = [row._replace(side=by_epoch(row.peer)) for row in SKADA]


def default_discriminators() -> str:
    """What the discriminators that skada makes by default say of random features, and what they teach."""
    deep: Any = importlib.import_module("skada.deep")
    lines = []
    for name, length in {"DANN": WIDTH, "CDAN": 2 * WIDTH}.items():
        net = getattr(deep, name)(
            nn.Identity(), "f", num_features=WIDTH, **({} if name == "DANN" else {"n_classes": 2})
        )
        discriminator = net.module__domain_classifier
        f = torch.randn(64, length, requires_grad=True)
        d: Tensor = discriminator(f)
        loss: Tensor = net.criterion__adapt_criterion(
            domain_pred_s=d[:32], domain_pred_t=d[32:], features_s=f[:32], features_t=f[32:]
        )
        torch.autograd.backward(loss)
        assert f.grad is not None
        own = max(float(p.grad.abs().max()) for p in discriminator.parameters())
        lines.append(
            f"- {name}: outputs from {float(d.min()):g} to {float(d.max()):g}; domain loss {float(loss.detach()):g}; "
            f"largest gradient {float(f.grad.abs().max()):g} on the features, {own:g} on its own weights."
        )
    return "\n".join(lines)


# --- parts -------------------------------------------------------------------------------------------------------


def passes(network: nn.Module, x: Tensor, parts: int) -> Side:
    """Forward and backward of a batch in so many parts, without an update."""
    network = copy.deepcopy(network).train()
    while True:
        network.zero_grad()
        torch.autograd.backward(torch.cat([network(part) for part in x.chunk(parts)]).square().mean())
        yield None


def updates(network: nn.Module, fused: bool | None) -> Side:
    """Updates by constant gradients."""
    optimizer = with_gradients(network, fused)
    while True:
        optimizer.step()
        yield None


def norms(network: nn.Module) -> Side:
    """What the trainer does to find out whether a gradient is finite."""
    with_gradients(network, None)
    while True:
        nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None]).item()
        yield None


def with_gradients(network: nn.Module, fused: bool | None) -> torch.optim.Optimizer:
    """An optimiser of a network whose gradients are there."""
    for p in network.parameters():
        p.grad = torch.full_like(p, 1e-3)
    return sgd(network, fused=fused)


def parts(tuning: Plan, cached: Plan) -> str:
    """Markdown: pieces of a step, each in the two forms that the libraries have."""
    lines = ["| piece | this, ms | other, ms | ratio |", "|---|---:|---:|---:|"]
    critic = make("dann", {}, cached)[0].get_submodule("critic")
    one = {
        f"{tuning.backbone}: one pass for both domains / one each": (tuning, make("dann", {}, tuning)[0].net),
        "bottleneck: one pass for both domains / one each": (cached, make("dann", {}, cached)[0].net),
        "discriminator: one pass for both domains / one each": (cached, critic),
    }
    for what, (plan, network) in one.items():
        shape = (3, plan.side, plan.side) if plan.backbone else (WIDTH,) if network is critic else (VECTOR,)
        x = torch.randn(2 * plan.batch, *shape)
        lines.append(line(what, {"ours": passes(network, x, 1), "theirs": passes(network, x, 2)}, plan))
    head: nn.Module = make("mcd", {}, cached)[0].get_submodule("heads.0")
    f = torch.randn(cached.batch, WIDTH, requires_grad=True)
    frozen = copy.deepcopy(head).requires_grad_(False)
    lines.append(
        line(
            "MCD's head: gradient for the feature alone / for its weights too",
            {"ours": passes(frozen, f, 1), "theirs": passes(head, f, 1)},
            cached,
        )
    )
    update = {"ours": updates(copy.deepcopy(critic), True), "theirs": updates(copy.deepcopy(critic), None)}
    lines.append(line("discriminator: update by fused SGD / by SGD's default", update, cached))
    norm = {"ours": norms(copy.deepcopy(critic)), "theirs": updates(copy.deepcopy(critic), True)}
    lines.append(line("discriminator: norm of the gradient / update by fused SGD", norm, cached))
    return "\n".join(lines)


# --- the tables --------------------------------------------------------------------------------------------------


def constant(name: str) -> Callable[..., Method]:
    """Our method with a ramp of 1 from the first step on."""
    return type(name, (registry.load(name),), {"ramp": 1.0})


def make(name: str, options: dict[str, Any], plan: Plan) -> tuple[Method, Pair]:
    """Our method and its data."""
    torch.manual_seed(0)
    network = make_network(plan, "vector")
    method = constant(name)(network, CLASSES, **SHORT_FIRST_STAGE.get(name, {}), **options)
    return method, make_data(plan, "vector")


def make_narrow(name: str, options: dict[str, Any], plan: Plan) -> tuple[Method, Pair]:
    """The same with so little to compute that what is left is the machinery."""
    torch.manual_seed(0)
    network = Network(nn.Identity(), nn.Identity(), NARROW, bottleneck=NARROW, level="vector")
    narrow = {} if name == "source_only" else {"hidden": NARROW}
    x_s, x_t = np.random.default_rng(0).standard_normal((2, 1, 4 * plan.batch, NARROW), dtype=np.float32)
    data = Pair(ArrayInputs(x_s), np.arange(4 * plan.batch) % 2, ArrayInputs(x_t), batch_size=plan.batch)
    return constant(name)(network, 2, **narrow, **options), data


Make = Callable[[str, dict[str, Any], Plan], tuple[Method, Pair]]
HEAD = [
    "| ours | theirs | ours, ms | theirs, ms | ours / theirs | what theirs has otherwise |",
    "|---|---|---:|---:|---:|---|",
]


def table(rows: list[Comparison], plan: Plan, make: Make = make, ours: Callable[[Method, Pair], Side] = steps) -> str:
    """Markdown: our steps against theirs."""
    lines = [*HEAD]
    for row in rows:
        method, data = make(row.method, row.options, plan)
        options = ", ".join(f"{key}={value}" for key, value in row.options.items())
        what = f"{row.method}{f' ({options})' if options else ''} | {row.peer}"
        try:
            theirs = row.side(method, data)
            next(theirs)
        except Exception as error:  # whatever a peer raises is its result
            lines.append(f"| {what} | | | | {failure(error)} |")
        else:
            lines.append(f"{line(what, {'ours': ours(method, data), 'theirs': theirs}, plan)} {row.differs} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def failure(error: Exception) -> str:
    """An error in a cell of a table: its type and its last line."""
    last = (str(error).strip().splitlines() or [""])[-1]
    return f"{type(error).__name__}: {last}".replace("|", "/")


def line(what: str, sides: dict[str, Side], plan: Plan) -> str:
    """The times of two sides and their ratio."""
    times = measure(sides, plan.rounds)
    ours, theirs = (f"{float(f'{np.median(times[name]):.3g}'):,g}" for name in ("ours", "theirs"))
    return f"| {what} | {ours} | {theirs} | {ratio(times['ours'], times['theirs'])} |"


def agreement(rows: list[Comparison]) -> str:
    """Markdown: whether the peers move the weights as we do, in networks without BatchNorm and dropout."""
    lines = ["| ours | theirs | apart |", "|---|---|---:|"]
    for row in rows:
        try:
            result = f"{apart(row):.1g}"
        except Exception as error:  # as in the other tables
            result = failure(error)
        lines.append(f"| {row.method} | {row.peer} | {result} |")
    return "\n".join(lines)


def apart(row: Comparison) -> float:
    """How far both sides' weights are from each other after three steps, as a part of the way ours went."""
    method, data = make(row.method, row.options, Plan(None, 0, 8, 3))
    strip(method)
    data.batch_size = len(data.source)  # every batch is the whole, so that ours may be a first stage ahead
    ours, theirs = steps(method, data), row.side(method, data)
    if row.method in SHORT_FIRST_STAGE:
        next(ours)
    first = named(copy.deepcopy(method))
    for _ in range(2):
        next(theirs)
        next(ours)
    models = next(theirs)
    next(ours)
    pairs = {name: (module, models[name]) for name, module in named(method).items() if name in models}
    ways = {name: distance(module, first[name]) for name, (module, _) in pairs.items()}
    return max(distance(*pairs[name]) / way for name, way in ways.items() if way)


def distance(a: nn.Module, b: nn.Module) -> float:
    """Between the weights of two modules of one form."""
    return math.sqrt(
        sum(float((p - q).detach().square().sum()) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    )


def strip(module: nn.Module) -> None:
    """Take out what treats a batch of both domains unlike one of each, or draws random numbers."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.Dropout):
            setattr(module, name, nn.Identity())
        strip(child)


def seed_after_step() -> int:
    """The seed of torch's generator, 0 at first, after a step of skada's CDAN."""
    method, data = make("cdan", {"random": "on"}, Plan(None, 0, 8, 1))
    next(by_step("CDAN")(method, data))
    return torch.initial_seed()


def page(args: argparse.Namespace) -> str:
    """All that is measured, as Markdown."""
    load = os.getloadavg()[0]
    tuning, cached = Plan("resnet18", 64, 32, args.rounds), Plan(None, 0, 32, 10 * args.rounds)
    if args.quick:
        tuning, cached = tuning._replace(batch=4, rounds=2), cached._replace(batch=8, rounds=2)
    both = f"{tuning.batch} + {tuning.batch}"
    return "\n\n".join(
        [
            "# Beside other libraries",
            "A training step of the same method here and there. Made by "
            "`python measurements/peers.py --table docs/results/peers.md`.",
            f"## pytorch-adapt {version('pytorch-adapt')}: fine-tuning {tuning.backbone} at {tuning.side} px, {both} "
            "images",
            "Everywhere it passes each domain by itself through the network and the discriminator, where we pass both "
            "together.",
            table(ADAPT, tuning),
            f"## pytorch-adapt: cached vectors of {VECTOR} numbers, {cached.batch} + {cached.batch}",
            table(ADAPT, cached),
            f"## pytorch-adapt: networks of width {NARROW}, so that the machinery is what costs",
            table([row for row in ADAPT if row.method in ("source_only", "dann", "mcd")], cached, make_narrow),
            f"## skada {version('skada')}: cached vectors of {VECTOR} numbers, {cached.batch} + {cached.batch}",
            "Its `train_step` on our batches. DANN and CDAN get our discriminator, by the estimator's own parameters, "
            "in place of theirs, from which nothing is learnt (below).",
            table(SKADA, cached),
            "Epochs of four steps, with the loader of each library.",
            table(LOADED, cached._replace(rounds=max(2, cached.rounds // 4)), ours=epochs),
            "## The discriminators that skada makes by default",
            default_discriminators()
            + "\n- A step of CDAN with its random map leaves the seed of torch's global generator at "
            f"{seed_after_step()}; it was 0.",
            "## Whether both compute the same",
            "How far the weights are apart after three steps on cached vectors, as a part of the way that ours went "
            "(of the module in which that is most), in networks without BatchNorm and dropout.",
            agreement([*ADAPT, *SKADA]),
            "## Pieces of a step",
            parts(tuning, cached),
            f"- Machine: {processor_name()}, {os.cpu_count()} cores; PyTorch {torch.__version__} on "
            f"{torch.get_num_threads()} of them. Load average before the run: {load:.1f}"
            + ("; other work shared the machine." if load > 0.5 else "; the machine was idle.")
            + f"\n- {tuning.rounds} rounds when fine-tuning, {cached.rounds} on cached features, "
            f"{max(2, cached.rounds // 4)} of epochs. {CLASSES} classes, bottleneck {WIDTH}; every side has "
            f"fused SGD with Nesterov momentum.\n- With skorch {version('skorch')}, NumPy {np.__version__}.\n"
            "- Times are medians. Ratios are the median, and the range of the middle half, of the ratios round by "
            "round.",
        ]
    )


def require_peers() -> None:
    """Say what to install if a peer is missing."""
    try:
        for name in PEERS:
            importlib.import_module(name)
    except ImportError as error:
        raise SystemExit(f"This measurement needs both peers ({error}); install them with `{INSTALL}`.") from None


def main() -> None:
    """Measure, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds when fine-tuning; ten times as many on features")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's")
    parser.add_argument("--quick", action="store_true", help="try everything out")
    parser.add_argument("--table", type=Path, help="write the page here too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as every command does
    require_peers()
    put_out(page(args), args.table)


if __name__ == "__main__":
    main()
