"""Models of timm as backbones."""

from __future__ import annotations

import copy
import difflib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.models import PretrainedCfg
from torch import Tensor, nn

from acclimate.data.preprocess import Preprocess
from acclimate.errors import OptionError
from acclimate.networks.backbone import Backbone
from acclimate.networks.digits import DIGITS
from acclimate.networks.weights import (
    DEFAULT,
    EMBEDDED,
    TENSORFLOW,
    fit_weights,
    fit_weights_in_order,
    installed_weights,
    read_weights,
)

HUB_ANSWERS_WITHIN = 4  # seconds


class _Features(nn.Module):
    """The part of a timm model that makes the map, channels first."""

    def __init__(self, model: nn.Module, *, channels_last: bool) -> None:
        super().__init__()
        self.model = model
        self.layout: nn.Module = _Permute(0, 3, 1, 2) if channels_last else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.layout(self.model.forward_features(x))  # type: ignore[operator]
        return h


class _Pool(nn.Module):
    """The part of a timm model between the map and the classifier."""

    def __init__(self, model: nn.Module, *, channels_last: bool) -> None:
        super().__init__()
        self.model = model
        self.layout: nn.Module = _Permute(0, 2, 3, 1) if channels_last else nn.Identity()

    def forward(self, h: Tensor) -> Tensor:
        f: Tensor = self.model.forward_head(self.layout(h), pre_logits=True)  # type: ignore[operator]
        return f


class _Permute(nn.Module):
    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.dims)


def divided(name: str, model: nn.Module, preprocess: Preprocess, *, pretrained: bool) -> Backbone:
    """Divides a timm model, so that no weight is in both parts: a map's pool is trained, saved and moved by itself."""
    model.eval()
    x = torch.zeros(1, preprocess.channels, preprocess.size, preprocess.size)
    try:
        with torch.inference_mode():
            h, in_body = _children_called(model, lambda: model.forward_features(x))  # type: ignore[operator]
            f, in_pool = _children_called(
                model,
                lambda: model.forward_head(h, pre_logits=True),  # type: ignore[operator]
            )
    except Exception as error:  # a model of another interface fails in any way
        raise OptionError(f"{name} does not divide into features and a head; choose another backbone.") from error
    if not isinstance(h, Tensor) or f.ndim != 2:
        raise OptionError(f"{name} does not make one map and one vector of an image; choose another backbone.")
    channels_last = bool(h.ndim == 4 and h.shape[3] == model.num_features != h.shape[1])
    head = copy.deepcopy(model)
    _delete(head, in_body - in_pool)
    _delete(head, {n for n, _ in (*head.named_parameters(recurse=False), *head.named_buffers(recurse=False))})
    _delete(model, in_pool - in_body)
    body, pool = _Features(model, channels_last=channels_last), _Pool(head, channels_last=channels_last)
    return Backbone(name, preprocess, body, pool, f.shape[1], pretrained=pretrained).eval()


def _children_called(model: nn.Module, run: Callable[[], Any]) -> tuple[Any, set[str]]:
    """What `run` returns, and the names of the model's children that it calls, in whole or in part."""
    called: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(lambda _module, _args, child=child: called.add(child))
        for child, top in model.named_children()
        for module in top.modules()
    ]
    result = run()
    for hook in hooks:
        hook.remove()
    return result, called


def _delete(module: nn.Module, names: set[str]) -> None:
    for name in names:
        delattr(module, name)


def timm_preprocess(model: nn.Module) -> Preprocess:
    """How timm says that a model's images are prepared."""
    config = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    size = config["input_size"][-1]
    return Preprocess(
        resize=max(math.floor(size / config["crop_pct"]), size),  # a share above 1 means padding, which is left out
        size=size,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        aspect="squash" if config["crop_mode"] == "squash" else "keep",
    )


def timm_model(name: str, weights: Path | None, pretrained: bool) -> nn.Module:
    """The timm model of this name, without its classifier."""
    config = _config(name)
    if pretrained and weights is None and name not in EMBEDDED:
        return _download(name, config)
    options = TENSORFLOW if name in EMBEDDED else {}
    model: nn.Module = timm.create_model(name, num_classes=0, **options)
    if weights is not None:
        fit_weights(model, read_weights(weights), name, weights)
    elif pretrained:
        fit_weights_in_order(model, read_weights(installed_weights(name)), name)
    return model


def local_model(name: str, weights: Path | None, pretrained: bool) -> nn.Module:
    """The model that timm has saved in a folder, without its classifier.

    Args:
        name: `local-dir:` and the folder.
        weights: A file of weights to use in place of those in the folder.
        pretrained: Use the folder's weights, if no others are given.
    """
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained and weights is None, num_classes=0)
    except Exception as error:  # a description may have any mistake
        lines = str(error).splitlines() or [type(error).__name__]
        raise OptionError(
            f"timm cannot load {name} ({lines[0].rstrip('.')}): name a folder with a config.json and weights as "
            "timm saves them."
        ) from error
    if weights is not None:
        fit_weights(model, read_weights(weights), name, weights)
    return model


def _config(name: str) -> PretrainedCfg:
    """What timm knows of the model's weights and input."""
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # the model is known, the tag after its name is not
        config = None
    if config is None:
        names = [*EMBEDDED, *DIGITS, *timm.list_models(), *timm.list_pretrained()]
        model = name.partition(".")[0]
        close = difflib.get_close_matches(name, names) or difflib.get_close_matches(model, names)
        hint = f"did you mean {' or '.join(close)}?" if close else "see `acclimate backbones`."
        raise OptionError(f"There is no backbone {name!r}; {hint}")
    return config


def _download(name: str, config: PretrainedCfg) -> nn.Module:
    if not config.has_weights:
        raise OptionError(f"No weights of {name} are published; give yours with --weights FILE, or use {DEFAULT}.")
    try:
        hub = config.hf_hub_id
        file = {"file": _downloaded(hub)} if hub and not _hub_answers() else None
        model: nn.Module = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=file)
    except Exception as error:  # the errors of several HTTP clients
        raise OptionError(
            f"The weights of {name} cannot be downloaded; connect to the internet, give a file of them with "
            f"--weights FILE, or use {DEFAULT}, whose weights are installed already."
        ) from error
    return model


def _hub_answers() -> bool:
    """Whether the hub of the weights can be reached; asked once, where a download would ask again and again."""
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=HUB_ANSWERS_WITHIN)
    except Exception:  # the errors of several HTTP clients, and the hub's own where it is told to be offline
        return False
    return True


def _downloaded(repository: str) -> str:
    """The file of weights that was downloaded earlier; an error if there is none."""
    return huggingface_hub.hf_hub_download(repository, "model.safetensors", local_files_only=True)
