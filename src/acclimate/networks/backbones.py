"""Backbones: any timm model, ImageNet weights that install with the package, and small networks for digits."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import NamedTuple

import timm

from acclimate.networks.backbone import Backbone
from acclimate.networks.digits import DIGITS, GREY, digits_network
from acclimate.networks.timm_models import divided, timm_model, timm_preprocess
from acclimate.networks.weights import DEFAULT, EMBEDDED, embedded_preprocess, package


def load_backbone(name: str = DEFAULT, *, weights: Path | None = None, pretrained: bool = True) -> Backbone:
    """The backbone called `name`, in evaluation mode.

    Args:
        name: `efficientnet_lite0`, `efficientnet_lite1` or `efficientnet_lite2`, whose ImageNet weights are installed
            as packages; `lenet`, `lenet_bn` or `digits_cnn`, which start from random weights; or any model of timm,
            with a tag or without (`efficientnet_lite0.ra_in1k` is timm's own). The name alone decides the network and
            its preprocessing.
        weights: A .safetensors file, or a .pth or .pt file that holds tensors alone, with the weights to use in place
            of the published ones. Classifier weights in it are ignored.
        pretrained: Use the published weights. False leaves random ones, drawn from torch's global generator.

    Raises:
        OptionError: There is no such model, or its weights are not installed, not reachable or do not fit.
    """
    if name in DIGITS:
        return digits_network(name, weights)
    model = timm_model(name, weights, pretrained)
    preprocess = embedded_preprocess(name) if name in EMBEDDED else timm_preprocess(model)
    return divided(name, model, preprocess, pretrained=pretrained or weights is not None)


class BackboneInfo(NamedTuple):
    """One line of the list of backbones.

    Attributes:
        name: What `load_backbone` takes.
        weights: Where its weights come from, in a few words.
        size: Its input's side in pixels.
        downloads: Whether its weights still have to be fetched, by timm or by the user.
    """

    name: str
    weights: str
    size: int
    downloads: bool


def list_backbones(pattern: str = "") -> list[BackboneInfo]:
    """The backbones whose name contains `pattern` (shell wildcards allowed); those that need no download come first."""
    found = [BackboneInfo(name, f"package {package(name)}", size, False) for name, size in EMBEDDED.items()]
    found += [BackboneInfo(name, "none, trained from scratch", GREY.size, False) for name in DIGITS]
    for name in timm.list_models():
        config = timm.get_pretrained_cfg(name)
        if config is not None and name not in EMBEDDED:
            weights = "timm's hub, downloaded once" if config.has_weights else "none published, give --weights FILE"
            found.append(BackboneInfo(name, weights, config.input_size[-1], True))
    return [info for info in found if fnmatch.fnmatchcase(info.name, f"*{pattern}*")]
