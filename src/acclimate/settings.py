"""The settings of a run, each declared once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from acclimate.choices import Augment, KeepImages, Precision, TrackerName, Tune
from acclimate.errors import OptionError
from acclimate.methods import registry
from acclimate.methods.base import Method
from acclimate.methods.options import check_options

TLL_CLOCK = 10_000

METHODS_OWN = ("optimizer", "lr", "backbone_lr", "momentum", "weight_decay", "schedule", "decay")
"""The entries of a recipe that a method's paper decides; the others are the user's budget."""


@dataclass(frozen=True)
class Recipe:
    """How a method's objectives are minimised. The defaults are TLL's DANN, with the papers' schedules.

    Both forms of the schedules read one clock, `progress`: in the papers' form it runs from 0 to 1 over the run, in
    TLL's form it is the step divided by 10,000 however long the run is. So the learning rate
    lr (1 + decay progress)^-0.75 is lr (1 + 0.001 step)^-0.75 there, and the ramp 2 / (1 + exp(-step / 1000)) - 1.

    Attributes:
        steps: Steps of the run, over all stages.
        batch_size: Samples a batch from each domain.
        optimizer: "sgd" with Nesterov momentum, or "adam".
        lr: Learning rate of new layers.
        backbone_lr: Multiplier of the learning rate of pretrained layers.
        momentum: Nesterov momentum; with Adam the decay of the first moment, beta_1.
        weight_decay: L2 penalty, on every parameter.
        schedule: "paper", "tll", or "constant" (the learning rate; the ramp is the paper's).
        decay: See above; 10 is the papers' and TLL's for adversarial methods.
        clip: Largest norm of an objective's gradient; None leaves it alone.
        accumulate: Batches whose gradients are averaged into one step.
    """

    steps: int = 1500
    batch_size: int = 32
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = 0.01
    backbone_lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-3
    schedule: Literal["paper", "tll", "constant"] = "paper"
    decay: float = 10.0
    clip: float | None = None
    accumulate: int = 1

    @classmethod
    def of(cls, method: type[Method], **given: Any) -> Recipe:
        """The recipe of a method's paper, but for what is given; None gives nothing."""
        return cls(**{**method.recipe, **{name: value for name, value in given.items() if value is not None}})

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with."""
        for name, least in {"steps": 1, "batch_size": 2, "accumulate": 1}.items():
            if getattr(self, name) < least:
                raise OptionError(f"{name} must be at least {least}, not {getattr(self, name)}.")
        for name in ("lr", "backbone_lr", "momentum", "weight_decay", "decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise OptionError(f"{name} must be a number from 0 up, not {getattr(self, name)}.")
        if self.momentum >= 1:
            raise OptionError(f"momentum must be below 1, not {self.momentum}.")
        if self.clip is not None and not self.clip > 0:
            raise OptionError(f"clip must be above 0, not {self.clip}.")
        if self.optimizer not in ("sgd", "adam"):
            raise OptionError(f"optimizer must be sgd or adam, not {self.optimizer!r}.")
        if self.schedule not in ("paper", "tll", "constant"):
            raise OptionError(f"schedule must be paper, tll or constant, not {self.schedule!r}.")

    def progress(self, step: int) -> float:
        """The clock that the schedules read, before step number `step` (from 0)."""
        return step / (TLL_CLOCK if self.schedule == "tll" else self.steps)

    def lr_factor(self, step: int) -> float:
        """What step number `step` multiplies every learning rate by."""
        return 1.0 if self.schedule == "constant" else float((1 + self.decay * self.progress(step)) ** -0.75)


PRECISIONS = ("auto", "fp32", "bf16")


@dataclass(frozen=True)
class Settings:
    """What a run is asked to do. Two runs with equal settings and data end with equal bits on the same machine.

    Attributes:
        source: Labelled images: a folder of class folders, an image list, a CSV, or an .npz.
        target: Images of the domain to adapt to; labels in it are used for evaluation alone.
        test: Labelled images of that domain which stay out of training, to measure on; None measures on the target.
        method: The method's name.
        options: Its hyper-parameters, where they differ from the defaults.
        backbone: The backbone's name.
        weights: A file of weights to use in place of the published ones.
        tune: What is trained; "auto" is the head on a CPU and all on a GPU, and all of a network from scratch.
        bottleneck: Length d of the feature that methods work on; None leaves the backbone's own.
        augment: The random views of training; "auto" is none on cached features and on networks from scratch, random
            crops and flips where a pretrained backbone is trained on images.
        recipe: How the method is trained.
        seed: Seed of the initial weights, the order of the samples and their augmentation.
        device: "auto", "cpu", "cuda", or any that torch knows.
        precision: Of the backbone: "auto" is bfloat16 where the hardware has units for it.
        cache_precision: Of the features on the disk, "fp16", "bf16" or "fp32".
        allow_class_mismatch: Accept a labelled target whose classes are not the source's.
        keep_images: Where resized images are kept when they are trained on: "memory", "disk", or "auto", which is the
            memory for as many as 1 GiB holds, and the disk for more; it does not change the result.
        checkpoint_seconds: Seconds between checkpoints; they do not change the result.
        track: The tracker that is shown the training as well: "tensorboard", "mlflow", "wandb", or "none".
    """

    source: str
    target: str
    test: str | None = None
    method: str = "wemnet"
    options: Mapping[str, Any] = field(default_factory=dict)
    backbone: str = "efficientnet_lite0"
    weights: str | None = None
    tune: Tune | Literal["auto"] = "auto"
    bottleneck: int | None = 256
    augment: Augment | Literal["auto"] = "auto"
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    cache_precision: Precision = "fp16"
    allow_class_mismatch: bool = False
    keep_images: KeepImages = "auto"
    checkpoint_seconds: float = 10.0
    track: TrackerName = "none"

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        registry.load(self.method)  # refuses an unknown name
        check_options(self.method, dict(self.options))
        choices = {"tune": ("auto", *get_args(Tune)), "augment": ("auto", *get_args(Augment)), "precision": PRECISIONS}
        choices |= {
            "cache_precision": get_args(Precision),
            "keep_images": get_args(KeepImages),
            "track": get_args(TrackerName),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise OptionError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}.")
        if self.bottleneck is not None and self.bottleneck < 1:
            raise OptionError(f"bottleneck must be at least 1, or none, not {self.bottleneck}.")
        if not 0 <= self.seed < 2**64:
            raise OptionError(f"seed must be a whole number from 0 to 2^64 - 1, not {self.seed}.")
        if not self.checkpoint_seconds >= 0:
            raise OptionError(f"checkpoint_seconds must be a number from 0 up, not {self.checkpoint_seconds}.")

    def as_dict(self) -> dict[str, Any]:
        """Everything on one level, the recipe's entries included, for JSON."""
        entries = {**asdict(self), "options": dict(self.options)}
        recipe: dict[str, Any] = entries.pop("recipe")
        return {**entries, **recipe}
