from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from acclimate.choices import Level
from acclimate.networks.network import Network, lay_out_convolutions


class Dtypes(nn.Module):
    """A linear layer that notes the type it computes in."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_in, n_out)
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        self.seen.append(out.dtype)
        return out


def network(level: Level, bottleneck: int = 5) -> tuple[Network, tuple[int, ...]]:
    """A network of each level, and the shape of one of its samples."""
    flat = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    if level == "image":
        encoder = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
        return Network(encoder, flat, 6, bottleneck=bottleneck, level=level), (3, 8, 8)
    if level == "map":
        return Network(nn.Conv2d(4, 6, 1), flat, 6, bottleneck=bottleneck, level=level), (4, 3, 3)
    return Network(nn.Identity(), nn.Identity(), 6, bottleneck=bottleneck, level=level), (6,)


@pytest.mark.parametrize("level", ["image", "map", "vector"])
def test_shapes_of_each_level(level: Level) -> None:
    net, shape = network(level)
    h = net.map(torch.randn(7, *shape))
    assert h.shape == {"image": (7, 6, 6, 6), "map": (7, 6, 3, 3), "vector": (7, 6)}[level]
    assert net.embed(h).shape == (7, net.dim) == (7, 5)
    assert net.level == level


@pytest.mark.parametrize("level", ["image", "map", "vector"])
def test_forward_is_embed_of_map(level: Level) -> None:
    net, shape = network(level)
    x = torch.randn(7, *shape)
    net.eval()
    assert torch.equal(net(x), net.embed(net.map(x)))


@pytest.mark.parametrize("level", ["image", "map", "vector"])
def test_pair_is_one_forward_pass_of_both_domains(level: Level) -> None:
    net, shape = network(level)
    x_s, x_t = torch.randn(4, *shape), 3 * torch.randn(6, *shape) + 1
    f_s, f_t = net.pair(x_s, x_t)
    together = net(torch.cat([x_s, x_t]))
    assert torch.equal(f_s, together[:4])
    assert torch.equal(f_t, together[4:])
    assert not torch.allclose(f_s, net(x_s)), "each domain would be normalised by itself"


def test_without_a_bottleneck_the_feature_is_the_pooled_vector() -> None:
    net, shape = network("vector", bottleneck=0)
    x = torch.randn(7, *shape)
    assert net.dim == net.channels == 6
    assert torch.equal(net(x), x)
    assert not list(net.parameters())


@pytest.mark.parametrize("level", ["image", "map", "vector"])
def test_leaving_out_the_bottleneck_gives_another_network_of_the_same_weights(level: Level) -> None:
    net, shape = network(level)
    x = torch.randn(7, *shape)
    before = net.eval()(x)
    without = net.without_bottleneck()
    assert (without.dim, without.level) == (without.channels, level)
    assert torch.equal(without.eval()(x), net.pool(net.map(x)))
    assert {id(p) for p in without.parameters()} == {id(p) for p in net.encoder.parameters()}
    assert net.dim == 5
    assert torch.equal(net(x), before)


def test_the_bottleneck_is_linear_batch_norm_relu() -> None:
    net, shape = network("vector")
    x = torch.randn(64, *shape)
    linear = net.bottleneck[0](x)
    expected = (linear - linear.mean(0)) / (linear.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(net(x), expected.relu())


@pytest.mark.parametrize("bf16", [False, True])
def test_bf16_is_for_the_encoder_alone(bf16: bool) -> None:
    encoder, pool = Dtypes(4, 6), Dtypes(6, 6)
    net = Network(encoder, pool, 6, bottleneck=5, level="vector", bf16=bf16)
    h = net.map(torch.randn(7, 4))
    f = net.embed(h)
    assert encoder.seen == [torch.bfloat16 if bf16 else torch.float32]
    assert pool.seen == [torch.float32]
    assert h.dtype == f.dtype == torch.float32
    f.sum().backward()
    assert encoder.linear.weight.grad is not None
    assert encoder.linear.weight.grad.dtype == torch.float32


def test_every_part_is_trained() -> None:
    pool = nn.Sequential(nn.Flatten(), nn.Linear(6, 4))
    net = Network(nn.Conv2d(3, 6, 3), pool, 4, bottleneck=5)
    net(torch.randn(7, 3, 3, 3)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert {name.split(".")[0] for name, _ in net.named_parameters()} == {"encoder", "pool", "bottleneck"}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("images", [False, True])
def test_convolutions_are_laid_out_for_images_and_where_some_are_grouped(groups: int, images: bool) -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=groups), nn.ConvTranspose2d(4, 2, 3))
    x = torch.randn(2, 2, 7, 7)
    before = network(x)
    lay_out_convolutions(network, images=images)
    last = [layer.weight.is_contiguous(memory_format=torch.channels_last) for layer in network]
    assert last == [images or groups == 2, images or groups == 2, False]
    assert torch.allclose(network(x), before, atol=1e-6)
