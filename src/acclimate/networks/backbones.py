"""Backbones: any timm model, ImageNet weights that install with the package, digits networks, and those of others."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import NamedTuple, TypeAlias

import timm

from acclimate.data.preprocess import Preprocess
from acclimate.networks.backbone import Backbone
from acclimate.networks.digits import DIGITS, GREY, digits_network
from acclimate.networks.outside import HandedOver, backbone_handed_over, backbone_of_file
from acclimate.networks.timm_models import divided, local_model, timm_model, timm_preprocess
from acclimate.networks.weights import DEFAULT, EMBEDDED, embedded_preprocess, package
from acclimate.outside import LOCAL, Origin, absolute, check_given_again, file_origin, split

BackboneSource: TypeAlias = str | HandedOver


def load_backbone(
    backbone: BackboneSource = DEFAULT, *, weights: Path | None = None, pretrained: bool = True
) -> Backbone:
    """A backbone, in evaluation mode.

    Args:
        backbone: One of

            - a name: `efficientnet_lite0`, `efficientnet_lite1` or `efficientnet_lite2`, whose ImageNet weights are
              installed as packages; `lenet`, `lenet_bn` or `digits_cnn`, which start from random weights; or any model
              of timm, with a tag or without (`efficientnet_lite0.ra_in1k` is timm's own). The name alone decides the
              network and its preprocessing;
            - `local-dir:FOLDER`, a model that timm has saved, config.json and weights;
            - `path/to/file.py:function`, as for `networks.outside.backbone_of_file`;
            - a module, alone or with its `Preprocess`, or a `Backbone`, of which a copy is taken, as for
              `networks.outside.backbone_handed_over`.
        weights: A .safetensors file, or a .pth or .pt file that holds tensors alone, with the weights to use in place
            of the published ones. Classifier weights in it are ignored.
        pretrained: Use the published weights. False leaves random ones, drawn from torch's global generator. What a
            file's function makes, and a module, come as they are.

    Raises:
        OptionError: There is no such model, or its weights are not installed, not reachable or do not fit.
    """
    if not isinstance(backbone, str):
        return backbone_handed_over(backbone, weights)
    if split(backbone) is not None:
        return backbone_of_file(backbone, weights)
    if backbone.startswith(LOCAL):
        return _local_backbone(absolute(backbone), weights, pretrained)
    return named_backbone(backbone, weights=weights, pretrained=pretrained)


def named_backbone(name: str, *, weights: Path | None = None, pretrained: bool = True) -> Backbone:
    """A backbone of this package or of timm, by its name alone: whatever the name is, nobody else's code runs.

    Args:
        name: As for `load_backbone`.
        weights: As for `load_backbone`.
        pretrained: As for `load_backbone`.

    Raises:
        OptionError: There is no such model, or its weights are not installed, not reachable or do not fit.
    """
    if name in DIGITS:
        return digits_network(name, weights)
    model = timm_model(name, weights, pretrained)
    preprocess = embedded_preprocess(name) if name in EMBEDDED else timm_preprocess(model)
    return divided(name, model, preprocess, pretrained=pretrained or weights is not None)


def _local_backbone(name: str, weights: Path | None, pretrained: bool) -> Backbone:
    found = origin(name)  # refuses a folder without a description
    model = local_model(name, weights, pretrained)
    backbone = divided(name, model, timm_preprocess(model), pretrained=pretrained or weights is not None)
    backbone.origin = found
    return backbone


def origin(backbone: BackboneSource) -> Origin | None:
    """Where a backbone's code is from; None means from this package or from timm. Runs no code.

    Raises:
        OptionError: A file cannot be read.
    """
    if not isinstance(backbone, str):
        return Origin("python")
    if (parts := split(backbone)) is not None:
        return file_origin(absolute(parts[0]))
    if backbone.startswith(LOCAL):
        return file_origin(str(Path(absolute(backbone).removeprefix(LOCAL), "config.json")))
    return None


def given_again(
    name: str, trained_with: Origin | None, given: BackboneSource | None, preprocess: Preprocess, whose: str
) -> Backbone | None:
    """The backbone of a saved model, where that is from outside; its weights are not those of the model yet.

    Args:
        name: The name that the model's file holds.
        trained_with: The origin that it holds.
        given: What the user gives, as for `load_backbone`; None if nothing is given.
        preprocess: How the model prepares images; what is given with a module does not count.
        whose: The model, to begin a sentence with.

    Returns:
        The backbone; None where its name is enough.

    Raises:
        OptionError: The backbone has to be given again, or is another one.
    """
    given_name, given_origin = None, None
    if given is not None:
        module = given[0] if isinstance(given, tuple) else given
        given_name = absolute(module) if isinstance(module, str) else type(module).__name__
        given_origin = origin(given)
    check_given_again("backbone", name, trained_with, given_name, given_origin, whose)
    if given is None or trained_with is None:
        return None
    if isinstance(given, tuple):
        given = given[0], preprocess
    elif not isinstance(given, str | Backbone):
        given = given, preprocess
    return load_backbone(given, pretrained=False)


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
