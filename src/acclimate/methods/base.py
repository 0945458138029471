"""What a method is: it says what to minimise, over which modules, in which order. The trainer does the minimising."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from acclimate.choices import Family, Level, Side
from acclimate.data.batches import Labelled, Pair, Unlabelled
from acclimate.data.inputs import Inputs
from acclimate.networks.network import Network
from acclimate.parallel import world


class Objective:
    """Minimise the sum of these terms over these modules, now.

    Args:
        over: The modules whose parameters move; none means the whole method. No other parameter gets a gradient.
        terms: Scalars, by the names of the paper; they are the columns of the log.
    """

    def __init__(self, *over: nn.Module, **terms: Tensor) -> None:
        self.over = over
        self.terms = terms

    @property
    def loss(self) -> Tensor:
        """The sum of the terms, a scalar."""
        return reduce(torch.add, self.terms.values())

    def parameters(self, method: Method) -> list[nn.Parameter]:
        """What the objective trains: the trainable parameters of its modules, each once.

        Args:
            method: The method that yielded it, which it is over if it names no modules.
        """
        modules: tuple[nn.Module, ...] = self.over or (method,)
        unique = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
        return list(unique.values())


StepFunction: TypeAlias = Callable[[Labelled, Unlabelled], Iterator[Objective]]


@dataclass(frozen=True)
class Stage:
    """A part of training that repeats one step.

    Attributes:
        step: Yields the step's objectives in order.
        share: The part of the run's steps that this stage takes.
        name: For the log.
    """

    step: StepFunction
    share: float = 1.0
    name: str = "adapt"


class Method(nn.Module, ABC):
    """A method of domain adaptation: what is minimised, over which modules, in which order.

    A subclass defines `step` and `predict`. Its hyper-parameters are keyword-only arguments of `__init__`, whose
    defaults are the paper's values. Whatever must survive a restart is a parameter or a buffer.

    Args:
        net: The network from a batch to the feature f (B, d).
        num_classes: K.

    Attributes:
        paper: Authors, title, venue and year; empty where there is none.
        year: Of the publication.
        family: What kind of method it is, if it is of a known kind.
        rows: The options behind each name by which the papers' tables call it.
        good_for: What it is good for, in a few words.
        target_only: Whether `predict` passes a sample through statistics, a map or a classifier that are the target's
            own, so that what it says of held-out source images tells nothing.
        needs: The least that a batch must hold: vectors, maps or images.
        recipe: The entries of `training.Recipe` in which its paper, or TLL where that is silent, differs from the
            defaults.
        progress: The part of the run that is done, 0 to 1; set by the trainer before each step.
    """

    paper: ClassVar[str] = ""
    year: ClassVar[int | None] = None
    family: ClassVar[Family | None] = None
    rows: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    good_for: ClassVar[str] = ""
    target_only: ClassVar[bool] = False
    needs: ClassVar[Level] = "vector"
    recipe: ClassVar[Mapping[str, Any]] = {}
    progress: float = 0.0

    def __init__(self, net: Network, num_classes: int) -> None:
        super().__init__()
        self.net = net
        self.num_classes = num_classes

    @property
    def ramp(self) -> float:
        """The weight that rises from 0 to 1 over a run: 2 / (1 + exp(-10 progress)) - 1.

        Source: Ganin et al., JMLR 2016, section 5.2.2.
        """
        return 2 / (1 + math.exp(-10 * self.progress)) - 1

    @property
    def networks(self) -> tuple[Network, ...]:
        """The networks whose pretrained layers train at their own learning rate."""
        return (self.net,)

    @property
    def without_momentum(self) -> tuple[nn.Module, ...]:
        """The modules whose updates by SGD have no momentum."""
        return ()

    @abstractmethod
    def step(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        """The objectives of one training step. When the generator resumes, the weights have moved."""

    def stages(self, data: Pair) -> Iterator[Stage]:
        """The stages of training: one that repeats `step`, unless a method says otherwise.

        A method in closed form computes here and yields nothing. A run that resumes goes through the code between the
        stages again, from the first, before it restores what was saved.
        """
        yield Stage(self.step)

    @abstractmethod
    def predict(self, x: Tensor) -> Tensor:
        """Class logits (B, K) of a batch of the target."""

    def domain_logits(self, x: Tensor) -> dict[str, Tensor]:
        """What the method's discriminators make of a batch: logits (B,), source positive, by the feature they read."""
        return {}

    def feature(self, x: Tensor, domain: Side) -> Tensor:
        """The feature (B, d) of a batch in which the method compares the domains; one may have a network of its own."""
        f: Tensor = self.net(x)
        return f

    def attention(self, x: Tensor) -> dict[str, Tensor]:
        """Where the method looks in a batch: weights (B, H, W) over the regions of the map, by name."""
        return {}

    def masks(self) -> dict[str, Tensor]:
        """Which channels of the feature the method has marked: bool (1, d), or (K, d) by class, by name."""
        return {}


@contextmanager
def evaluation_mode(module: nn.Module, *, gradients: bool = False) -> Iterator[None]:
    """Every module in evaluation mode, and no gradients; afterwards each has its own mode back.

    Args:
        module: It and the modules in it.
        gradients: Leave it to the caller whether there are gradients.
    """
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with nullcontext() if gradients else torch.inference_mode():
            yield
    finally:
        for part, mode in training.items():
            part.training = mode


def over_all(
    method: Method, function: Callable[[Tensor], Tensor], inputs: Inputs, *, device: torch.device, batch_size: int = 256
) -> Tensor:
    """What `function` makes of all samples, un-augmented and with the method in evaluation mode: (N, ...).

    For what a method computes between stages: pseudo-labels, prototypes, or the whole of a closed form. Processes that
    train together share the batches out.

    Args:
        method: Its modules are put in evaluation mode, and back afterwards.
        function: From a batch (B, ...) to an array a sample.
        inputs: N samples.
        device: Where the batches are put.
        batch_size: B.
    """
    with evaluation_mode(method):
        ends = [min(i + batch_size, len(inputs)) for i in range(0, len(inputs), batch_size)]
        indices = [np.arange(batch_size * number, end) for number, end in enumerate(ends)]
        own = [function(inputs.batch(indices[i], None).to(device)) for i in world().shared_out(len(indices))]
    # Outside of inference mode, so that autograd may use it.
    return torch.cat(world().gathered(own, [len(index) for index in indices]))
