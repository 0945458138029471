"""The only training loop. It minimises what a method yields, and knows no method by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from acclimate.data.batches import Pair
from acclimate.errors import DivergedError, OptionError
from acclimate.methods.base import Method, Objective, Stage
from acclimate.parallel import Replicas, world
from acclimate.settings import Recipe
from acclimate.tensors import DamagedTensorsError, load_tensors, save_tensors


class Checkpoint(NamedTuple):
    """All that training needs to go on, bit for bit: tensors, and where it stood.

    Attributes:
        tensors: The method's state, the optimiser's state and the state of the random numbers.
        stage: Number of the stage.
        step: Steps done, over all stages.
        run: What tells the run that it is of from others.
    """

    tensors: dict[str, Tensor]
    stage: int
    step: int
    run: str = ""

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; a kill at any moment leaves the old one or the new one.

        Raises:
            OSError: It cannot be written.
        """
        save_tensors(Path(path), self.tensors, {"stage": self.stage, "step": self.step, "run": self.run})

    @classmethod
    def load(cls, path: str | Path) -> Checkpoint:
        """Read what `save` wrote.

        Raises:
            DamagedTensorsError: The file was altered.
            OSError: It cannot be read.
        """
        tensors, note = load_tensors(Path(path))
        try:
            return cls(tensors, **note)
        except TypeError as error:
            raise DamagedTensorsError(f"{path} is of another version") from error


@dataclass(frozen=True)
class Step:
    """Where training stands after a step.

    Attributes:
        stage: The stage's name.
        step: Steps done, over all stages.
        steps: Steps of the whole run.
        terms: The objectives' terms at this step: scalars, detached, on the device. A term that several objectives
            share has the value of the last.
        lr: Learning rate of new layers.
    """

    stage: str
    step: int
    steps: int
    terms: Mapping[str, Tensor]
    lr: float
    _state: tuple[Method, torch.optim.Optimizer, int, torch.device] = field(repr=False)

    def values(self) -> dict[str, float]:
        """The terms as numbers."""
        return {name: float(term) for name, term in self.terms.items()}

    def checkpoint(self) -> Checkpoint:
        """The state to resume from. Take it before training goes on: its tensors are the live ones."""
        method, optimizer, stage, device = self._state
        return Checkpoint(_state_tensors(method, optimizer, device), stage, self.step)


def train(method: Method, data: Pair, recipe: Recipe, resume: Checkpoint | None = None) -> Iterator[Step]:
    """Train a method, yielding after every step.

    The caller's loop evaluates, logs, checkpoints or stops. With the same seed of torch's random numbers and the same
    arguments, two runs on a CPU end with the same bits, interrupted and resumed or not. Where several processes train
    together (`parallel.py`), each of them calls this and takes a part of the batches of a step.

    Args:
        method: Trained in place, and left in training mode.
        data: Source and target.
        recipe: How.
        resume: Go on from here; the method must have been built with the same arguments.

    Yields:
        Where training stands.

    Raises:
        DivergedError: A term or a gradient is not finite. The weights are those before the step that showed it.
    """
    method.train()
    optimizer = make_optimizer(method, recipe)
    replicas = Replicas(method, world())
    done = 0
    first, start = (resume.stage, resume.step) if resume else (0, 0)
    for number, (stage, stop) in enumerate(_schedule(method.stages(data), recipe.steps)):
        if number >= first:
            if resume and number == first:
                _restore(method, optimizer, resume.tensors, data.device)
            replicas.copy_first()
            yield from _run_stage(replicas, method, data, recipe, optimizer, (number, stage), max(done, start), stop)
        done = stop
    replicas.copy_first()


def _schedule(stages: Iterator[Stage], steps: int) -> Iterator[tuple[Stage, int]]:
    """Each stage with the step at which it ends. Their shares are parts of the whole run and add up to 1."""
    share = 0.0
    for stage in stages:
        share += stage.share
        yield stage, round(min(share, 1.0) * steps)


def _run_stage(
    replicas: Replicas,
    method: Method,
    data: Pair,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    numbered: tuple[int, Stage],
    start: int,
    stop: int,
) -> Iterator[Step]:
    number, stage = numbered
    own = recipe.accumulate // replicas.size  # batches of a step in this process
    batches = data.batches(stop * recipe.accumulate, start * recipe.accumulate + replicas.rank, replicas.size)
    parameters_of: dict[tuple[nn.Module, ...], list[nn.Parameter]] = {}  # what a stage trains stays the same
    for step in range(start, stop):
        method.progress = recipe.progress(step)
        factor = recipe.lr_factor(step)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * group["multiplier"] * factor
        replicas.seed(data.seed, step)
        terms: dict[str, Tensor] = {}
        # One generator of objectives a batch, advanced in lockstep: the gradients of the same objective are averaged.
        lockstep = [stage.step(s, t) for s, t in islice(batches, own)]
        for objective in lockstep[0]:
            if objective.over not in parameters_of:
                parameters_of[objective.over] = _parameters(method, objective)
            parameters = parameters_of[objective.over]
            optimizer.zero_grad(set_to_none=True)
            terms |= _backward(objective, parameters, recipe.accumulate, step)
            for generator in lockstep[1:]:
                _backward(next(generator), parameters, recipe.accumulate, step)
            replicas.sum_gradients(parameters)
            _check_and_clip(method, parameters, recipe.clip, step)
            optimizer.step()
        for generator in lockstep[1:]:  # the code behind the last yield
            if next(generator, None) is not None:
                raise RuntimeError(f"{stage.name}: every batch of a step must yield the same number of objectives")
        replicas.average_buffers()
        yield Step(
            stage.name, step + 1, recipe.steps, terms, recipe.lr * factor, (method, optimizer, number, data.device)
        )


def make_optimizer(method: Method, recipe: Recipe) -> torch.optim.Optimizer:
    """One optimiser over every trainable parameter; pretrained layers have their own learning rate.

    A parameter moves only in the steps whose objective gives it a gradient. The learning rates are those of the start,
    and each group has the `multiplier` of its own, for schedules.
    """
    pretrained = [m for net in method.networks if net.pretrained for m in (net.encoder, net.pool)]
    slow, plain = _identities(pretrained), _identities(method.without_momentum)
    trainable = [p for p in method.parameters() if p.requires_grad]
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for p in trainable:
        groups.setdefault((id(p) in slow, id(p) in plain), []).append(p)
    settings: list[dict[str, Any]] = []
    for (is_slow, is_plain), parameters in groups.items():
        multiplier = recipe.backbone_lr if is_slow else 1.0
        rate = {"lr": recipe.lr * multiplier, "multiplier": multiplier}
        settings.append({"params": parameters, **rate, **_momentum(recipe, is_plain)})
    if not settings:  # as of a closed form; torch refuses an optimiser of no group
        settings = [{"params": [], "multiplier": 1.0}]
    if recipe.optimizer == "adam":
        return torch.optim.Adam(settings, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    optimizer = torch.optim.SGD(settings, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    for group in optimizer.param_groups:
        if group["momentum"]:  # the fused step takes all buffers of a group or none, and objectives move a part of them
            for p in group["params"]:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimizer


def _identities(modules: Iterable[nn.Module]) -> set[int]:
    return {id(p) for module in modules for p in module.parameters()}


def _momentum(recipe: Recipe, is_plain: bool) -> dict[str, Any]:
    """A group's entries for momentum; Adam is the same for all, as where the papers that leave it out use Adam."""
    if recipe.optimizer == "adam":
        return {"betas": (recipe.momentum, 0.999)}
    return {"momentum": 0.0 if is_plain else recipe.momentum, "nesterov": not is_plain and recipe.momentum > 0}


def _parameters(method: Method, objective: Objective) -> list[nn.Parameter]:
    parameters = objective.parameters(method)
    if not parameters:
        raise OptionError(
            "The method trains a network that has nothing to train here: keep a bottleneck, or use --tune top."
        )
    return parameters


def _backward(objective: Objective, parameters: list[nn.Parameter], parts: int, step: int) -> dict[str, Tensor]:
    """Add the objective's gradient to these parameters alone; returns its terms, detached."""
    terms = {name: term.detach() for name, term in objective.terms.items()}
    loss = objective.loss
    if not math.isfinite(loss.item()):
        bad = [name for name, term in terms.items() if not torch.isfinite(term)]
        raise DivergedError(
            f"Training diverged at step {step + 1}: {' and '.join(bad) or 'the sum of the terms'} is not finite; "
            "try a smaller learning rate (--lr) or gradient clipping (--clip 1)."
        )
    torch.autograd.backward(loss / parts if parts > 1 else loss, inputs=parameters)
    return terms


def _check_and_clip(method: Method, parameters: list[nn.Parameter], clip: float | None, step: int) -> None:
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(grads)
    if not math.isfinite(norm.item()):
        bad = [name for name, p in method.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        what = f"gradient of {bad[0]}" if bad else "norm of the gradient"
        raise DivergedError(
            f"Training diverged at step {step + 1}: the {what} is not finite; "
            "try a smaller learning rate (--lr) or gradient clipping (--clip 1)."
        )
    if clip is not None:
        nn.utils.clip_grads_with_norm_(parameters, clip, norm)


def _state_tensors(method: Method, optimizer: torch.optim.Optimizer, device: torch.device) -> dict[str, Tensor]:
    names = {id(p): name for name, p in method.named_parameters()}
    tensors = {f"method/{name}": tensor for name, tensor in method.state_dict().items()}
    for parameter, state in optimizer.state.items():
        tensors |= {f"optimizer/{names[id(parameter)]}/{k}": v for k, v in state.items() if isinstance(v, Tensor)}
    tensors["random/cpu"] = torch.get_rng_state()
    if device.type == "cuda":
        tensors["random/cuda"] = torch.cuda.get_rng_state(device)
    return tensors


def _restore(
    method: Method, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], device: torch.device
) -> None:
    method.load_state_dict({k.removeprefix("method/"): v for k, v in tensors.items() if k.startswith("method/")})
    parameters: Mapping[str, Any] = dict(method.named_parameters())
    for key, tensor in tensors.items():
        if key.startswith("optimizer/"):
            name, entry = key.removeprefix("optimizer/").rsplit("/", 1)
            optimizer.state[parameters[name]][entry] = _like(parameters[name], tensor)
    torch.set_rng_state(tensors["random/cpu"])
    if device.type == "cuda" and "random/cuda" in tensors:  # it may have begun on a CPU
        torch.cuda.set_rng_state(tensors["random/cuda"], device)


def _like(parameter: nn.Parameter, tensor: Tensor) -> Tensor:
    """A tensor of the optimiser's on the parameter's device and in its layout, which the fused step takes for given."""
    return torch.empty_like(parameter).copy_(tensor) if tensor.ndim else tensor.to(parameter.device)
