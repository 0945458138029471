"""A backbone's last stage, apart from the trunk before it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from acclimate.errors import OptionError
from acclimate.networks.backbone import Backbone


def split_top(backbone: Backbone) -> tuple[nn.Module, nn.Module]:
    """The body of a backbone as a trunk, to be frozen, and its last stage, to be trained on the trunk's cached output.

    The top is what follows the second last entry of timm's `feature_info`: ResNet's layer4, a vision transformer's
    last block and norm. Where that has no weights, as VGG's last pooling, it begins an entry earlier. Both parts are
    copies, without a weight in common; `top(trunk(x))` equals `body(x)`.

    Raises:
        OptionError: The body is not a chain of modules there, so that its last stage does not stand alone.
    """
    side = backbone.preprocess.size
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.rand(2, backbone.preprocess.channels, side, side, generator=generator, device="cpu")
    x = x.to(next(backbone.parameters()).device)
    body = copy.deepcopy(backbone.body).eval()
    try:
        with torch.inference_mode():
            expected = body(x)
            trunk, top = _cut(body)
            found = top(trunk(x))
            # Without memory there are shapes alone to compare.
            equal = found.shape == expected.shape and (
                found.is_meta or torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
            )
    except Exception as error:  # layers given an input that is not theirs fail in any way
        raise _inseparable(backbone.name) from error
    if not equal:
        raise _inseparable(backbone.name)
    return trunk, top


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
    return any(list(part.parameters()) for *_, part in following)


def _inseparable(name: str) -> OptionError:
    return OptionError(f"{name} cannot be split; use --tune head or --tune all.")
