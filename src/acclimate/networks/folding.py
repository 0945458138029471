"""A frozen network made faster: the same features from fewer operations."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

Pairs = list[tuple[str, str]]


def folded(network: nn.Module, x: Tensor) -> nn.Module:
    """A network for inference alone, with batch normalisation folded into the convolutions before it.

    It is a copy with its weights channels last, as convolutions on a CPU want them, whose features differ from the
    network's own by rounding; or the network itself, if there is nothing in it to fold.

    Args:
        network: In evaluation mode.
        x: An input (B, C, H, W) to try it on.
    """
    with torch.no_grad():
        pairs, expected = _convolutions_and_norms(network, x)
        if not pairs:
            return network
        faster = copy.deepcopy(network).to(memory_format=torch.channels_last)
        for convolution, norm in pairs:
            _fold(faster, convolution, norm)
        # It disagrees where a convolution's output is used elsewhere too.
        return faster if _agrees(faster, x, expected) else network


def cast(network: nn.Module, x: Tensor) -> nn.Module:
    """A network for inference under autocast alone, whose convolutions and linear layers are bfloat16 already.

    Autocast casts them anew for every batch, since it keeps only those that need a gradient. It is a copy with the
    same features, or the network itself where some layer's weight is used in another way too.

    Args:
        network: In evaluation mode.
        x: An input (B, C, H, W) to try it on.
    """
    faster = copy.deepcopy(network)
    for module in faster.modules():
        if type(module) in (nn.Conv2d, nn.Linear):  # a subclass may compute its weight
            module.to(torch.bfloat16)
    with torch.inference_mode(), torch.autocast(x.device.type, dtype=torch.bfloat16):
        expected = network(x)
        try:
            return faster if torch.equal(faster(x), expected) else network
        except RuntimeError:  # types that do not go together
            return network


def _convolutions_and_norms(network: nn.Module, x: Tensor) -> tuple[Pairs, Tensor]:
    """The names of each convolution and of the normalisation that reads its output, and what the network returns."""
    made: dict[int, tuple[str, Tensor]] = {}  # by the tensor's id, which is its own as long as it is kept here
    pairs: Pairs = []
    calls: Counter[str] = Counter()
    hooks = []

    def note_output(name: str) -> None:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            calls[name] += 1
            made[id(output)] = name, output

        hooks.append(network.get_submodule(name).register_forward_hook(hook))

    def note_input(name: str) -> None:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            calls[name] += 1
            if id(args[0]) in made:
                pairs.append((made[id(args[0])][0], name))

        hooks.append(network.get_submodule(name).register_forward_pre_hook(hook))

    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            note_output(name)
        elif isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            note_input(name)
    try:
        expected: Tensor = network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return [pair for pair in pairs if calls[pair[0]] == calls[pair[1]] == 1], expected


def _fold(network: nn.Module, convolution: str, norm: str) -> None:
    before, old = network.get_submodule(convolution), network.get_submodule(norm)
    assert isinstance(before, nn.Conv2d)
    assert isinstance(old, nn.BatchNorm2d)
    network.set_submodule(convolution, fuse_conv_bn_eval(before, old))
    # timm's BatchNormAct2d holds what comes behind it: a DropBlock, which is off, and the activation.
    rest = [child for child in old.children() if not isinstance(child, nn.Identity)]
    network.set_submodule(norm, nn.Sequential(*rest).eval())


def _agrees(network: nn.Module, x: Tensor, expected: Tensor) -> bool:
    try:
        scale = float(expected.abs().max())
        return bool(torch.allclose(network(x), expected, rtol=1e-3, atol=1e-4 * scale))
    except (RuntimeError, TypeError, ValueError, AttributeError):  # a module that was looked into is another one now
        return False
