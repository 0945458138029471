"""Backbones from outside of the package: made by a function in a file, or handed over in Python."""

from __future__ import annotations

import copy
import hashlib
import inspect
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from acclimate.data.preprocess import Preprocess
from acclimate.errors import OptionError, nearest
from acclimate.networks.backbone import Backbone
from acclimate.networks.timm_models import divided, timm_preprocess
from acclimate.networks.weights import fit_weights, read_weights
from acclimate.outside import Origin, absolute, call, run_file, split

HandedOver: TypeAlias = nn.Module | tuple[nn.Module, Preprocess]

IMAGENET = Preprocess(
    resize=256, size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bilinear"
)
"""How torchvision prepares images for networks that were trained on ImageNet."""


def backbone_of_file(name: str, weights: Path | None) -> Backbone:
    """What a function in a file makes.

    Args:
        name: `path/to/file.py:function`. The function takes no arguments and returns (module, Preprocess), or a
            `Backbone`, which also says whether its weights have to be trained from scratch.
        weights: A file of weights for what it makes.

    Raises:
        OptionError: There is no such function, an error occurs in it, or it makes something else.
    """
    file, function = split(name) or (name, "")
    path = absolute(file)
    if not function:
        raise OptionError(f"{name} names no function: write {file}:FUNCTION, for one that makes the backbone.")
    code, origin = run_file(path)
    make = getattr(code, function, None)
    if not callable(make):
        functions = [n for n, f in inspect.getmembers(code, inspect.isfunction) if f.__module__ == code.__name__]
        raise OptionError(f"{path} has no function {function!r}; {nearest(function, functions)}")
    made: Any = call(path, make)
    if isinstance(made, Backbone):
        return _adopted(made, None, f"{path}:{function}", origin, weights)
    if not _is_pair(made):
        raise OptionError(f"{name} makes {_kind(made)}: return a torch.nn.Module and a Preprocess.")
    module, preprocess = made
    return _adopted(module, preprocess, f"{path}:{function}", origin, weights)


def backbone_handed_over(given: HandedOver, weights: Path | None) -> Backbone:
    """A copy of what was handed over, as a backbone.

    Args:
        given: A `Backbone`; a module and how its images are prepared; or a module alone, whose images are prepared as
            timm says, if it is a model of timm, and else as `IMAGENET` says.
        weights: A file of weights for it.

    Raises:
        OptionError: It is something else, or makes neither a map nor a vector of images.
    """
    if isinstance(given, nn.Module):
        return _adopted(copy.deepcopy(given), None, type(given).__name__, Origin("python"), weights)
    if not _is_pair(given):
        raise OptionError(
            f"The backbone is {_kind(given)}: give a name, a torch.nn.Module, or a pair of a module and a Preprocess."
        )
    module, preprocess = given
    return _adopted(copy.deepcopy(module), preprocess, type(module).__name__, Origin("python"), weights)


def _is_pair(made: Any) -> bool:
    kinds = [type(part) for part in made] if isinstance(made, tuple) else []
    return len(kinds) == 2 and issubclass(kinds[0], nn.Module) and kinds[1] is Preprocess


def _adopted(
    module: nn.Module, preprocess: Preprocess | None, name: str, origin: Origin, weights: Path | None
) -> Backbone:
    module.cpu()
    if weights is not None:
        fit_weights(module, read_weights(weights), name, weights)
    if isinstance(module, Backbone):
        backbone, backbone.name = module, name
        backbone.pretrained |= weights is not None
    elif all(hasattr(module, part) for part in ("forward_features", "forward_head", "reset_classifier")):  # timm's
        module.reset_classifier(0)  # type: ignore[operator]
        backbone = divided(name, module, preprocess or timm_preprocess(module), pretrained=True)
    else:
        backbone = _pooled(name, module, preprocess or IMAGENET)
    backbone.origin = origin
    return backbone.eval()


def _pooled(name: str, module: nn.Module, preprocess: Preprocess) -> Backbone:
    """A module as a backbone; where it makes a map, its vector is the mean over the places."""
    side = preprocess.size
    x = torch.rand(2, preprocess.channels, side, side, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            h = module.eval()(x)
    except Exception as error:  # whatever a stranger's module may raise
        lines = str(error).splitlines() or [""]
        raise OptionError(
            f"{name} cannot take images {tuple(x.shape)} ({type(error).__name__}: {lines[0]}): give it a Preprocess "
            "with the size and the channels that it takes."
        ) from error
    if not isinstance(h, Tensor) or h.ndim not in (2, 4) or len(h) != len(x):
        raise OptionError(f"{name} makes {_kind(h)} of images: let it make a map (B, C, H, W) or a vector (B, C).")
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()) if h.ndim == 4 else nn.Identity()
    return Backbone(name, preprocess, module, pool, h.shape[1], pretrained=True)


def _kind(made: Any) -> str:
    """What something is, for a sentence."""
    if isinstance(made, Tensor):
        return f"a tensor {tuple(made.shape)}"
    if isinstance(made, tuple):
        return f"a tuple of {', '.join(type(part).__name__ for part in made) or 'nothing'}"
    return f"an object of type {type(made).__name__}"


def behaviour(module: nn.Module, preprocess: Preprocess) -> str:
    """SHA-256, in hexadecimal, of what a module makes of a fixed image on the CPU.

    Code from outside may change while its weights stay the same. The hash of its file does not tell of the code that it
    imports, and a module that is handed over has no file: what it makes tells of both.
    """
    side = preprocess.size
    x = torch.rand(1, preprocess.channels, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        h: Tensor = copy.deepcopy(module).cpu().eval()(x)
    return hashlib.sha256(h.float().contiguous().numpy().tobytes()).hexdigest()
