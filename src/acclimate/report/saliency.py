"""What a model looks at."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from acclimate.methods.base import evaluation_mode
from acclimate.model import Model
from acclimate.report.embedding import Array


def attention_maps(model: Model, x: Tensor) -> dict[str, Array]:
    """Where the method attends in images (B, C, H, W): weights (B, h, w) over the regions of the map, by name.

    Source: TADA, figure 3.
    """
    with evaluation_mode(model.method):
        maps = model.method.attention(model.method_input(x))
    return {name: weights.double().cpu().numpy() for name, weights in maps.items()}


def class_activation(model: Model, x: Tensor) -> tuple[Array, npt.NDArray[np.int64]] | None:
    """What speaks for the predicted class in images (B, C, H, W), by the regions of the backbone's last map.

    The map of an image is max(0, sum over the channels of h dz/dh), where h is the last map and z the logit of the
    predicted class above the mean logit. Where the map is averaged and read by linear layers, that is Zhou et al.'s
    class activation map; unlike Grad-CAM it stays right where regions count differently, as they do under attention.
    It needs the images and `Method.predict` alone: so it holds for every method, whatever is frozen or cached. Where
    the last map consists of tokens, of which the class may be read off one, the one before the last block is taken.

    Source: Draelos and Carin, arXiv 2011.08891 (HiResCAM); Zhou et al., CVPR 2016.

    Returns:
        Maps (B, h, w) with values from 0 to 1, an image's largest being 1 unless nothing speaks for the class, and
        the predicted classes (B,). None where the method's logits have no gradient.
    """
    parts = _map_makers(model)
    found = _maps_and_gradients(model, x, parts)
    if found is not None and found[0].ndim == 3:
        found = _maps_and_gradients(model, x, [_before_last_stage(model, part) for part in parts])
    if found is None:
        return None
    h, gradient, predicted = found
    evidence = (h * gradient).double()
    if h.ndim == 3:
        tokens = evidence.sum(2)  # (B, T)
        side = math.isqrt(tokens.shape[1])
        maps = tokens[:, -side * side :].reshape(-1, side, side)  # without the class token, which comes first
    else:
        maps = evidence.sum(1)  # (B, h, w)
    maps = maps.clamp(min=0)
    largest = maps.amax((1, 2), keepdim=True)
    return (maps / torch.where(largest > 0, largest, 1)).cpu().numpy(), predicted.cpu().numpy()


def _maps_and_gradients(model: Model, x: Tensor, parts: list[nn.Module]) -> tuple[Tensor, Tensor, Tensor] | None:
    """The output of the last of `parts` to run, the gradient of the logit with respect to it, and the classes."""
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_())
        return outputs[-1]

    handles = [part.register_forward_hook(keep) for part in parts]
    try:
        with torch.enable_grad():
            z = model(x)  # (B, K)
            predicted = z.argmax(1)
            if not z.requires_grad:
                return None
            above = z.gather(1, predicted[:, None]).squeeze(1) - z.mean(1)  # (B,)
            (gradient,) = torch.autograd.grad(above.sum(), outputs[-1], materialize_grads=True)
    finally:
        for handle in handles:
            handle.remove()
    return outputs[-1].detach(), gradient, predicted


def _map_makers(model: Model) -> list[nn.Module]:
    """The modules whose output is the backbone's last map: one, or one a network of the method."""
    net = model.method.net
    if model.frozen is None or not isinstance(net.encoder, nn.Identity):
        return [network.encoder for network in model.method.networks]
    return [model.frozen.get_submodule("body") if net.level == "vector" else model.frozen]


def _before_last_stage(model: Model, part: nn.Module) -> nn.Module:
    """The module after which the last stage of a timm model begins."""
    if model.spec.tune == "top" and model.frozen is not None:
        return model.frozen
    network: Any = part.get_submodule("model")
    before: nn.Module = network.get_submodule(network.feature_info[-2]["module"])
    return before
