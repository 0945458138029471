"""The same features from fewer layers and casts, whatever the network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from acclimate.networks.backbones import load_backbone
from acclimate.networks.folding import cast, folded
from acclimate.networks.stages import split_top


def trained(network: nn.Module) -> nn.Module:
    """With statistics and weights of BatchNorm that are not those of the start."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
    return network.eval().requires_grad_(False)


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def check(network: nn.Module, x: Tensor, left: int) -> None:
    """The folded copy agrees on another input, has so many norms left, and the network is as it was."""
    before = copy.deepcopy(network.state_dict())
    faster = folded(network, torch.rand_like(x))
    assert norms(faster) == left
    with torch.inference_mode():
        torch.testing.assert_close(faster(x), network(x), rtol=1e-4, atol=1e-5 * float(network(x).abs().max()))
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "test_vit"])
def test_timm(name: str) -> None:
    backbone = trained(load_backbone(name, pretrained=False))
    check(backbone, torch.randn(2, 3, 64, 64) if name != "test_vit" else torch.randn(2, 3, 160, 160), 0)


def test_a_trunk_that_stops_in_the_middle() -> None:
    backbone = load_backbone("resnet18", pretrained=False)
    trained(backbone)
    trunk, _ = split_top(backbone)
    check(trunk, torch.randn(2, 3, 64, 64), 0)


class Shared(nn.Module):
    """One convolution before two normalisations."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)
        self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.convolution(x)
        out: Tensor = self.first(h) + self.second(h)
        return out


class Residual(nn.Module):
    """What is normalised is used as it was, too."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.convolution(x)
        out: Tensor = h + self.norm(h)
        return out


class Twice(nn.Module):
    """One convolution and one normalisation, called two times."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.norm(self.convolution(x))
        out: Tensor = self.norm(self.convolution(h)) * 2
        return out


@pytest.mark.parametrize("network", [Shared(), Residual(), Twice()], ids=lambda network: type(network).__name__)
def test_what_cannot_be_folded_is_left(network: nn.Module) -> None:
    check(trained(network), torch.randn(2, 3, 8, 8), norms(network))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_parts_that_may_be_missing(affine: bool, bias: bool) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, groups=1, bias=bias), nn.BatchNorm2d(4, affine=affine), nn.ReLU())
    check(trained(network), torch.randn(2, 3, 8, 8), 0)


def test_statistics_of_the_batch_are_left() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    check(network.eval(), torch.randn(2, 3, 8, 8), 1)


def under_autocast(network: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        f: Tensor = network(x)
    return f


@pytest.mark.parametrize("name", ["resnet18", "test_vit"])
def test_a_cast_network_has_the_same_features_under_autocast(name: str) -> None:
    backbone = trained(load_backbone(name, pretrained=False))
    x = torch.randn(2, 3, 64, 64) if name != "test_vit" else torch.randn(2, 3, 160, 160)
    before = copy.deepcopy(backbone.state_dict())
    faster = cast(backbone, torch.rand_like(x))
    assert torch.equal(under_autocast(faster, x), under_autocast(backbone, x))
    layers = [module for module in faster.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert layers
    assert all(layer.weight.dtype == torch.bfloat16 for layer in layers)
    assert all(torch.equal(tensor, before[key]) for key, tensor in backbone.state_dict().items())


class Scaled(nn.Conv2d):
    """Computes with its weight, which must not lose digits before that."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight / self.weight.std(), self.bias)


class Norm(nn.Module):
    """Reads the weight of a layer outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.linear.weight.square().sum().sqrt()


class Matched(nn.Module):
    """Multiplies what autocast leaves alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.take_along_dim(self.linear.weight, torch.zeros(1, 3, dtype=torch.int64), 0).lerp(x[:, 0, 0], 0.5)


def test_a_layer_that_computes_its_weight_keeps_its_digits() -> None:
    network = nn.Sequential(Scaled(3, 4, 3), nn.Conv2d(4, 4, 3)).eval().requires_grad_(False)
    faster = cast(network, torch.randn(2, 3, 7, 7))
    assert [layer.weight.dtype for layer in faster] == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("kind", [Norm, Matched])
def test_a_network_that_a_cast_changes_is_left_as_it_is(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network = kind().eval().requires_grad_(False)
    assert cast(network, torch.randn(1, 3, 3, 3)) is network
