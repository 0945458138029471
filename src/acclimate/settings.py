"""The settings of a run, each declared once.

A setting is a field of `Settings` or of `Recipe`. Its type, its default and what it is `told` are all that anybody has
to say of it: the options of the command line and their help, the entries of a grid, the parameters of
the estimator, the checks and their sentences, the identity of a run and the docstrings below are made of them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NamedTuple,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from acclimate.choices import Aspect, Augment, Extractor, KeepImages, Optimizer, Precision, Schedule, TrackerName, Tune
from acclimate.errors import OptionError, brief, nearest
from acclimate.methods import registry
from acclimate.methods.options import check_options
from acclimate.outside import absolute

if TYPE_CHECKING:
    from acclimate.methods.base import Method

TLL_CLOCK = 10_000

Group: TypeAlias = Literal["Data", "Method", "Network", "Training", "Machine"]

T = TypeVar("T")


@dataclass(frozen=True)
class Setting:
    """What is to be known of a setting besides its name, its type and its default.

    Attributes:
        help: What it is, in one or two sentences.
        group: Where help lists it.
        least: The smallest number that it may be.
        most: The largest.
        above: A bound that a number must exceed.
        below: A bound that a number must stay under.
        of_method: Whether a method's paper decides it, so that it is a method's own where nobody says anything.
        in_grid: Whether a grid may set it for a row; the grid itself decides the others.
        in_estimator: Whether the estimator takes it.
        changes_result: Whether a result depends on it; if not, a run goes on under another value.
        is_path: Whether it names a file or a folder.
        is_code: Whether it names code, which may lie in a file, or is an object of Python.
    """

    help: str
    group: Group
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    of_method: bool = False
    in_grid: bool = True
    in_estimator: bool = True
    changes_result: bool = True
    is_path: bool = False
    is_code: bool = False


class Declared(NamedTuple):
    """A setting as it is declared: its name, its type, its default (`MISSING` where there is none) and the rest."""

    name: str
    type: Any
    default: Any
    setting: Setting

    @property
    def optional(self) -> bool:
        """Whether it may be None."""
        return NoneType in _parts(self.type)

    @property
    def choices(self) -> tuple[Any, ...]:
        """All values that it may have, where they can be listed."""
        return tuple(choice for part in _parts(self.type) if get_origin(part) is Literal for choice in get_args(part))

    @property
    def kind(self) -> type:
        """What its values are, besides None: bool, int, float or str."""
        if self.choices:
            return str
        (kind,) = (part for part in _parts(self.type) if part not in (NoneType, Any))
        assert isinstance(kind, type)
        return kind

    @property
    def takes(self) -> str:
        """What it takes, in words that end "… must be"."""
        if self.choices:
            *most, last = self.choices
            return f"{', '.join(most)} or {last}"
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[self.kind]
        return words + _range(self.setting) + (", or none" if self.optional else "")

    def checked(self, value: Any) -> Any:
        """The same value, a whole number as a float where that is what the setting holds.

        Raises:
            OptionError: It is not of the type, not among the choices or out of range.
        """
        if self.kind is float and _is_whole(value):
            with suppress(OverflowError):  # it is refused below
                value = float(value)
        if self.kind is int and _is_whole(value):
            value = int(value)  # NumPy's are no int
        if value is None and self.optional:
            return None
        if self.setting.is_code and (callable(value) or isinstance(value, tuple)):
            return value  # whatever loads it says whether it is sound
        fits = type(value) is self.kind and (not self.choices or value in self.choices)
        if not fits or (self.kind in (int, float) and not _within(value, self.setting)):
            raise OptionError(f"{self.name} must be {self.takes}, not {brief(value)}.")
        return absolute(value) if self.setting.is_code else value


def documented(cls: type[T]) -> type[T]:
    """Add to a class's docstring an entry for each of its fields that is a setting."""
    lines = [f"        {name}: {declared.setting.help}" for name, declared in declarations(cls).items()]
    cls.__doc__ = f"{(cls.__doc__ or '').rstrip()}\n\n    Attributes:\n" + "\n".join(lines) + "\n    "
    return cls


def declarations(cls: Any) -> dict[str, Declared]:
    """The settings that a class declares, by name, in order."""
    hints = get_type_hints(cls)
    return {
        entry.name: Declared(entry.name, hints[entry.name], entry.default, entry.metadata["setting"])
        for entry in fields(cls)
        if "setting" in entry.metadata
    }


def told(text: str, group: Group, **more: Any) -> dict[str, Setting]:
    """The metadata of a field that is a setting; for the arguments see `Setting`."""
    return {"setting": Setting(text, group, **more)}


def _parts(hint: Any) -> tuple[Any, ...]:
    """The types that a hint joins by |; a Literal counts as one."""
    if get_origin(hint) in (Union, UnionType):
        return tuple(part for joined in get_args(hint) for part in _parts(joined))
    return (hint,)


def _range(setting: Setting) -> str:
    """The range of a number in words."""
    low, high = setting.least, setting.most
    if low is not None and high is not None:
        return f" from {low:,} to {high:,}"
    if low is not None and setting.below is not None:
        return f" from {low:,} to below {setting.below:,}"
    if low is not None:
        return f" from {low:,} up"
    if setting.above is not None:
        return f" above {setting.above:,}"
    return ""


def _within(value: float, setting: Setting) -> bool:
    """Whether a number is finite and in the range."""
    return (
        (isinstance(value, int) or math.isfinite(value))
        and (setting.least is None or value >= setting.least)
        and (setting.most is None or value <= setting.most)
        and (setting.above is None or value > setting.above)
        and (setting.below is None or value < setting.below)
    )


def _is_whole(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


# --- the settings ------------------------------------------------------------------------------------------------


@documented
@dataclass(frozen=True)
class Recipe:
    """How a method's objectives are minimised. The defaults are TLL's DANN, with the papers' schedules.

    Both forms of the schedules read one clock, `progress`: in the papers' form it runs from 0 to 1 over the run, in
    TLL's form it is the step divided by 10,000 however long the run is. So the learning rate
    lr (1 + decay progress)^-0.75 is lr (1 + 0.001 step)^-0.75 there, and the ramp 2 / (1 + exp(-step / 1000)) - 1.

    Raises:
        OptionError: A value is not of its type, unknown or out of range.
    """

    steps: int = field(default=1500, metadata=told("Steps of training.", "Training", least=1, most=10**9))
    batch_size: int = field(
        default=32, metadata=told("Images from each domain in a step.", "Training", least=2, most=2**20)
    )
    optimizer: Optimizer = field(
        default="sgd", metadata=told("SGD with Nesterov momentum, or Adam.", "Training", of_method=True)
    )
    lr: float = field(default=0.01, metadata=told("Learning rate of new layers.", "Training", least=0, of_method=True))
    backbone_lr: float = field(
        default=0.1,
        metadata=told("Factor of the learning rate for pretrained layers.", "Training", least=0, of_method=True),
    )
    momentum: float = field(
        default=0.9, metadata=told("Momentum, or Adam's beta 1.", "Training", least=0, below=1, of_method=True)
    )
    weight_decay: float = field(default=1e-3, metadata=told("Weight decay.", "Training", least=0, of_method=True))
    schedule: Schedule = field(
        default="paper",
        metadata=told(
            "How the learning rate falls and adaptation sets in: over the run (paper), over a fixed number of steps as "
            "in Transfer-Learning-Library (tll), or with a constant rate.",
            "Training",
            of_method=True,
        ),
    )
    decay: float = field(
        default=10.0,
        metadata=told("a of the learning rate lr (1 + a progress)^-0.75.", "Training", least=0, of_method=True),
    )
    clip: float | None = field(default=None, metadata=told("Largest norm of a gradient.", "Training", above=0))
    accumulate: int = field(
        default=1, metadata=told("Batches whose gradients are averaged into a step.", "Training", least=1, most=2**16)
    )
    hold_out: float = field(
        default=0.0,
        metadata=told(
            "Share of each source class to keep out of training, to judge the result by.",
            "Training",
            least=0,
            below=1,
            of_method=True,
        ),
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with."""
        _check(self)

    @classmethod
    def of(cls, method: type[Method], **given: Any) -> Recipe:
        """The recipe of a method's paper, but for what is given; None gives nothing.

        Raises:
            OptionError: The method's recipe has an entry that is not a method's own, or a value is impossible.
        """
        own = [name for name, one in declarations(cls).items() if one.setting.of_method]
        for name in method.recipe.keys() - own:
            raise OptionError(
                f"The recipe of {method.__name__} has an entry {name!r}: a method may set {', '.join(own)}."
            )
        return cls(**{**method.recipe, **{name: value for name, value in given.items() if value is not None}})

    def progress(self, step: int) -> float:
        """The clock that the schedules read, before step number `step` (from 0)."""
        return step / (TLL_CLOCK if self.schedule == "tll" else self.steps)

    def lr_factor(self, step: int) -> float:
        """What step number `step` multiplies every learning rate by."""
        return 1.0 if self.schedule == "constant" else float((1 + self.decay * self.progress(step)) ** -0.75)


DATA_FORMS = (
    "a folder of class folders, an image list (.txt, a line each: path label), a CSV with the columns path and label, "
    "or an .npz with x and y"
)


@documented
@dataclass(frozen=True)
class Settings:
    """What a run is asked to do. Two runs with equal settings and data end with equal bits on the same machine.

    `options` are the method's hyper-parameters, where they differ from its defaults; `recipe` is how it is trained.

    Raises:
        OptionError: A value is not of its type, unknown or out of range, or the method does not take an option.
    """

    source: str = field(
        metadata=told(f"Labelled images: {DATA_FORMS}.", "Data", in_grid=False, in_estimator=False, is_path=True)
    )
    target: str = field(
        metadata=told(
            "Images of the domain to adapt to, in the same forms or as a flat folder. Labels in it, if any, only "
            "measure the result.",
            "Data",
            in_grid=False,
            in_estimator=False,
            is_path=True,
        )
    )
    test: str | None = field(
        default=None,
        metadata=told(
            "Labelled images of the target's domain that stay out of training and are measured instead of the target.",
            "Data",
            in_grid=False,
            in_estimator=False,
            is_path=True,
        ),
    )
    method: str | Any = field(
        default="consensus",
        metadata=told(
            "The method: one that acclimate methods lists, or path/to/file.py:Class; in Python, the class as well.",
            "Method",
            in_grid=False,
            is_code=True,
        ),
    )
    options: Mapping[str, Any] = field(default_factory=dict)
    backbone: str | Any = field(
        default="efficientnet_lite0",
        metadata=told(
            "The network: one that acclimate backbones lists, path/to/file.py:function, or timm's local-dir:FOLDER; in "
            "Python, a module as well.",
            "Network",
            is_code=True,
        ),
    )
    weights: str | None = field(
        default=None,
        metadata=told("A file of weights for the backbone: .safetensors, .pth or .pt.", "Network", is_path=True),
    )
    tune: Literal["auto"] | Tune = field(
        default="auto",
        metadata=told(
            "What to train: the head, on frozen features that are computed once; the backbone's top stage as well; or "
            "all of it. auto: head on a CPU and for the consensus, all on a GPU and for networks without pretrained "
            "weights.",
            "Network",
        ),
    )
    bottleneck: int = field(
        default=256,
        metadata=told(
            "Length of the feature that methods work on; 0: the backbone's own.", "Network", least=0, most=2**16
        ),
    )
    resize: Literal["auto"] | Aspect = field(
        default="auto",
        metadata=told(
            "Keep an image's aspect ratio when resizing it, so that the crop cuts off more of a long image, or squash "
            "it to a square, as Transfer-Learning-Library does. auto: as the backbone was trained.",
            "Network",
        ),
    )
    augment: Literal["auto"] | Augment = field(
        default="auto",
        metadata=told(
            "Random views in training. Cached features allow only flips. auto: crop+flip if a pretrained backbone is "
            "trained, else none.",
            "Network",
        ),
    )
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = field(
        default=0,
        metadata=told(
            "Seed for everything random.", "Training", least=0, most=2**64 - 1, in_grid=False, in_estimator=False
        ),
    )
    device: str = field(default="auto", metadata=told("cpu, cuda, or auto: a GPU if there is one.", "Machine"))
    precision: Literal["auto", "fp32", "bf16"] = field(
        default="auto",
        metadata=told("Precision of the backbone. auto: bf16 if the hardware is fast at it.", "Machine"),
    )
    cache_precision: Precision = field(
        default="fp16", metadata=told("Precision of cached features; fp32 takes twice the space.", "Machine")
    )
    extractor: Literal["auto"] | Extractor = field(
        default="auto",
        metadata=told(
            "What computes the features of a frozen backbone on a CPU. auto: openvino for 1,000 images or more, if it "
            "is installed (pip install acclimate[fast]), else torch.",
            "Machine",
        ),
    )
    allow_class_mismatch: bool = field(
        default=False,
        metadata=told("Accept a labelled target whose classes are not the source's.", "Data", in_estimator=False),
    )
    keep_images: KeepImages = field(
        default="auto",
        metadata=told(
            "Where images are kept, resized, when they are trained on.",
            "Machine",
            in_estimator=False,
            changes_result=False,
        ),
    )
    checkpoint_seconds: float = field(
        default=10.0,
        metadata=told("Seconds between checkpoints.", "Machine", least=0, in_estimator=False, changes_result=False),
    )
    tracker: TrackerName = field(
        default="none",
        metadata=told(
            "Show the training in this tracker as well.", "Machine", in_estimator=False, changes_result=False
        ),
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        _check(self)
        found = registry.find(self.method)  # refuses an unknown name
        if isinstance(self.method, str) or found.origin is None:
            object.__setattr__(self, "method", found.name)  # the same, however it is written
        check_options(self.method, dict(self.options))

    @classmethod
    def of(cls, **given: Any) -> Settings:
        """The settings with these entries, those of the recipe included.

        An entry of the recipe that is not given, or None, is the method's own, or else the default.
        """
        recipe = {name: given.pop(name) for name in RECIPE if name in given}
        method = registry.load(given.get("method", SETTINGS["method"].default))
        return cls(recipe=Recipe.of(method, **recipe), **given)

    def as_dict(self) -> dict[str, Any]:
        """Everything on one level, the recipe's entries included, for JSON; code by its name."""
        entries = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "recipe"}
        named = {"method": _name_of(self.method), "backbone": _name_of(self.backbone)}
        return {**entries, **named, "options": dict(self.options), **asdict(self.recipe)}


def _name_of(code: Any) -> str:
    """A name, or that of a class or of an object's class."""
    if isinstance(code, str):
        return code
    return code.__name__ if isinstance(code, type) else type(code).__name__


def _check(settings: Recipe | Settings) -> None:
    """Check every setting of an instance, and put what it is checked to in its place."""
    for name, declared in declarations(type(settings)).items():
        object.__setattr__(settings, name, declared.checked(getattr(settings, name)))


RECIPE: Mapping[str, Declared] = declarations(Recipe)
"""The settings of a recipe, by name."""

SETTINGS: Mapping[str, Declared] = {**declarations(Settings), **RECIPE}
"""All settings, by name."""

OF_A_ROW: Mapping[str, Declared] = {name: one for name, one in SETTINGS.items() if one.setting.in_grid}
"""The settings that a grid may set for a row; the others are those of a task, or the grid's own."""

_FEATURES = ("backbone", "weights", "tune", "resize", "augment", "device", "precision", "cache_precision", "extractor")

OF_FEATURES: Mapping[str, Declared] = {name: SETTINGS[name] for name in ("method", *_FEATURES)}
"""The settings that frozen features depend on; of the method, whether it needs vectors or maps."""

OF_AN_ESTIMATOR: Mapping[str, Declared] = {name: one for name, one in SETTINGS.items() if one.setting.in_estimator}
"""The settings that are parameters of the estimator."""


def comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a result depends on, of those that `Settings.as_dict` gives; a path is the same however it is
    written.
    """
    return {name: _resolved(name, value) for name, value in settings.items() if _changes_result(name)}


def _resolved(name: str, value: Any) -> Any:
    is_path = name in SETTINGS and SETTINGS[name].setting.is_path
    return str(Path(value).resolve()) if is_path and value is not None else value


def _changes_result(name: str) -> bool:
    return name not in SETTINGS or SETTINGS[name].setting.changes_result


def setting(name: str, among: Mapping[str, Declared] = SETTINGS, where: str = "A run") -> Declared:
    """The setting of this name.

    Raises:
        OptionError: There is none, or not among these.
    """
    if name not in among:
        raise OptionError(f"{where} has no setting {name!r}; {nearest(name, among)}")
    return among[name]


def check_recorded(settings: Mapping[str, Any], needed: Collection[str]) -> None:
    """Check settings, or a part of them, that a file holds. Those of another version may have other entries.

    Args:
        settings: As `Settings.as_dict` makes them.
        needed: The entries that must be there.

    Raises:
        UnreadableError: One of these is missing, or an entry is not of its type.
    """
    from acclimate import schema

    for name in needed:
        if name not in settings:
            raise schema.damaged(f"the entry settings.{name} is missing")
    types = {name: str if one.setting.is_code else one.type for name, one in SETTINGS.items()}
    types |= {"options": dict[str, schema.Plain]}
    for name, value in settings.items():
        if name in types:
            schema.convert(value, types[name], f"settings.{name}")
