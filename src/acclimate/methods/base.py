"""What a method is: it says what to minimise, over which modules, in which order. The trainer does the minimising."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from torch import Tensor, nn

from acclimate.data.batches import Labelled, Pair, Unlabelled
from acclimate.features.network import Level, Network


class Objective:
    """Minimise the sum of these terms over these modules, now.

    Args:
        over: The modules whose parameters move; none means the whole method. No other parameter gets a gradient.
        terms: Scalars, by the names of the paper; they are the columns of the log.
    """

    def __init__(self, *over: nn.Module, **terms: Tensor) -> None:
        self.over = over
        self.terms = terms


Step: TypeAlias = Callable[[Labelled, Unlabelled], Iterator[Objective]]


@dataclass(frozen=True)
class Stage:
    """A part of training that repeats one step.

    Attributes:
        step: Yields the step's objectives in order.
        share: The part of the run's steps that this stage takes.
        name: For the log.
    """

    step: Step
    share: float = 1.0
    name: str = "adapt"


class Method(nn.Module, ABC):
    """A method of domain adaptation. One subclass a file; none derives from another.

    A subclass takes its hyper-parameters as keyword-only arguments whose defaults are the paper's values. Whatever
    must survive a restart is a parameter or a buffer.

    Args:
        net: The network from a batch to the feature f (B, d).
        num_classes: K.

    Attributes:
        needs: The least that a batch must hold: vectors, maps or images.
        progress: The part of the run that is done, 0 to 1; set by the trainer before each step.
    """

    needs: ClassVar[Level] = "vector"
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

    @abstractmethod
    def step(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        """The objectives of one training step. When the generator resumes, the weights have moved."""

    def stages(self, data: Pair) -> Iterator[Stage]:
        """The stages of training: one that repeats `step`, unless a method says otherwise."""
        yield Stage(self.step)

    @abstractmethod
    def predict(self, x: Tensor) -> Tensor:
        """Class logits (B, K) of a batch of the target."""

    def domain_logits(self, x: Tensor) -> dict[str, Tensor]:
        """What the method's discriminators make of a batch: logits (B,), source positive, by the feature they read."""
        return {}
