"""Acclimate: unsupervised domain adaptation for image classification.

The names below are what one writes with from Python; `docs/python.md` shows them at work. The methods themselves lie in
`acclimate.methods`, one file each: `from acclimate.methods.dann import DANN`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {
    "data.batches": ("Labelled", "Pair", "Unlabelled"),
    "data.inputs": ("ArrayInputs", "DatasetInputs", "Inputs"),
    "data.preprocess": ("Preprocess",),
    "errors": ("AcclimateError", "DataError", "DivergedError", "OptionError", "RunsFailedError"),
    "estimator": ("AdaptiveClassifier",),
    "methods.base": ("Method", "Objective", "Stage", "evaluation_mode", "over_all"),
    "methods.parts.layers": ("Discriminator", "Discriminators", "Fitted", "MovingCentroids", "class_means", "reverse"),
    "methods.parts.losses": (
        "class_balance_loss",
        "domain_loss",
        "entropy",
        "gaussian_kernels",
        "mmd",
        "semantic_loss",
        "squared_distances",
    ),
    "model": ("Model",),
    "networks.backbone": ("Backbone",),
    "networks.backbones": ("load_backbone",),
    "networks.network": ("Network",),
    "runs.fit": ("fit",),
    "runs.record": ("RunRecord",),
    "runs.use": ("load",),
    "runs.watch": ("watch",),
    "settings": ("Recipe", "Settings"),
    "training": ("Checkpoint", "Step", "train"),
    "trust": ("validators",),
    "trust.validators": ("make_validator_scorer",),
}
_HOME = {name: f"acclimate.{module}" for module, names in _NAMES.items() for name in names}

if TYPE_CHECKING:  # the same names, for type checkers and editors
    from acclimate.data.batches import Labelled as Labelled
    from acclimate.data.batches import Pair as Pair
    from acclimate.data.batches import Unlabelled as Unlabelled
    from acclimate.data.inputs import ArrayInputs as ArrayInputs
    from acclimate.data.inputs import DatasetInputs as DatasetInputs
    from acclimate.data.inputs import Inputs as Inputs
    from acclimate.data.preprocess import Preprocess as Preprocess
    from acclimate.errors import AcclimateError as AcclimateError
    from acclimate.errors import DataError as DataError
    from acclimate.errors import DivergedError as DivergedError
    from acclimate.errors import OptionError as OptionError
    from acclimate.errors import RunsFailedError as RunsFailedError
    from acclimate.estimator import AdaptiveClassifier as AdaptiveClassifier
    from acclimate.methods.base import Method as Method
    from acclimate.methods.base import Objective as Objective
    from acclimate.methods.base import Stage as Stage
    from acclimate.methods.base import evaluation_mode as evaluation_mode
    from acclimate.methods.base import over_all as over_all
    from acclimate.methods.parts.layers import Discriminator as Discriminator
    from acclimate.methods.parts.layers import Discriminators as Discriminators
    from acclimate.methods.parts.layers import Fitted as Fitted
    from acclimate.methods.parts.layers import MovingCentroids as MovingCentroids
    from acclimate.methods.parts.layers import class_means as class_means
    from acclimate.methods.parts.layers import reverse as reverse
    from acclimate.methods.parts.losses import class_balance_loss as class_balance_loss
    from acclimate.methods.parts.losses import domain_loss as domain_loss
    from acclimate.methods.parts.losses import entropy as entropy
    from acclimate.methods.parts.losses import gaussian_kernels as gaussian_kernels
    from acclimate.methods.parts.losses import mmd as mmd
    from acclimate.methods.parts.losses import semantic_loss as semantic_loss
    from acclimate.methods.parts.losses import squared_distances as squared_distances
    from acclimate.model import Model as Model
    from acclimate.networks.backbone import Backbone as Backbone
    from acclimate.networks.backbones import load_backbone as load_backbone
    from acclimate.networks.network import Network as Network
    from acclimate.runs.fit import fit as fit
    from acclimate.runs.record import RunRecord as RunRecord
    from acclimate.runs.use import load as load
    from acclimate.runs.watch import watch as watch
    from acclimate.settings import Recipe as Recipe
    from acclimate.settings import Settings as Settings
    from acclimate.training import Checkpoint as Checkpoint
    from acclimate.training import Step as Step
    from acclimate.training import train as train
    from acclimate.trust import validators as validators
    from acclimate.trust.validators import make_validator_scorer as make_validator_scorer
else:  # what they must not see, or they would take any name for a public one
    __all__ = ["__version__", *_HOME]

    def __getattr__(name: str) -> Any:
        # Imported when it is asked for, so that importing the package imports no torch, and a command's help neither.
        if name == "validators":  # a module, which its package does not have before it is imported
            return import_module("acclimate.trust.validators")
        if name in _HOME:
            return getattr(import_module(_HOME[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted(__all__)
