"""The head with dropout and the loss that keeps classes balanced, which MCD and ADR share."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from acclimate.methods.adr import ADR
from acclimate.methods.mcd import MCD
from acclimate.methods.parts.layers import DropoutHead
from acclimate.methods.parts.losses import class_balance_loss
from acclimate.networks.network import Network


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("hidden_layers", [1, 2, 3])
def test_a_head_is_dropout_linear_batch_norm_relu_and_a_linear_layer(hidden_layers: int) -> None:
    head = DropoutHead(5, 3, hidden=8, hidden_layers=hidden_layers, dropout=0.3)
    block = [nn.Dropout, nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert [type(layer) for layer in head.layers] == [*block * hidden_layers, nn.Linear]
    assert all(layer.p == 0.3 for layer in head.layers if isinstance(layer, nn.Dropout))
    widths = [(layer.in_features, layer.out_features) for layer in head.layers if isinstance(layer, nn.Linear)]
    assert widths == [(5, 8), *[(8, 8)] * (hidden_layers - 1), (8, 3)]
    assert head(torch.randn(6, 5)).shape == (6, 3)


def test_a_head_may_drop_a_part_of_its_last_layers_input_too() -> None:
    head = DropoutHead(5, 3, hidden=4000, hidden_layers=1, dropout=0.3, last_dropout=True)
    seen: list[Tensor] = []
    head.layers[-1].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    head.layers[-2].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    head(torch.randn(6, 5))
    hidden, dropped = seen
    assert dropped[hidden > 0].eq(0).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert_close(dropped[dropped > 0], (hidden / 0.7)[dropped > 0])


@pytest.mark.parametrize("method", [MCD, ADR])
def test_a_head_may_start_from_pytorchs_weights(method: type[MCD | ADR]) -> None:
    net = Network(nn.Identity(), nn.Identity(), 300, bottleneck=0)
    options: dict[str, Any] = {"init": "pytorch", "last_dropout": True, "hidden_layers": 1}
    linear = [m for m in method(net, 200, **options).modules() if isinstance(m, nn.Linear)]
    assert len(linear) == 4
    for layer in linear:
        bound = layer.in_features**-0.5  # of a uniform distribution, in which nn.Linear draws
        assert 0.95 * bound < layer.weight.abs().max() <= bound
    assert [m.p for m in method(net, 200, **options).modules() if isinstance(m, nn.Dropout)] == [0.5] * 4


def test_a_heads_linear_layers_start_from_a_normal_of_a_hundredth() -> None:
    head = DropoutHead(300, 200)
    for layer in head.layers:
        if isinstance(layer, nn.Linear):
            for p in (layer.weight, layer.bias):
                assert p.std().item() == pytest.approx(0.01, rel=0.2)
                assert abs(p.mean().item()) < 2e-3
    assert [layer.out_features for layer in head.layers if isinstance(layer, nn.Linear)] == [1000, 1000, 200]


def test_a_head_drops_in_training_alone_and_half_of_the_feature_first() -> None:
    head = DropoutHead(4000, 3, hidden=8)
    seen: list[Tensor] = []
    head.layers[1].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    f = torch.ones(4, 4000)
    head(f)
    assert set(seen[0].unique().tolist()) == {0.0, 2.0}
    assert seen[0].eq(0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    head.eval()
    assert torch.equal(head(f), head(f))
    assert torch.equal(seen[-1], f)


def test_a_batch_of_all_classes_equally_often_is_balanced_and_one_class_alone_is_not() -> None:
    sure = 100 * torch.eye(4, dtype=torch.float64)
    value = class_balance_loss(sure).item()
    assert value == pytest.approx(-math.log(0.25 + 1e-6), rel=1e-12)  # every sample may be certain
    assert class_balance_loss(torch.zeros(3, 4, dtype=torch.float64)).item() == pytest.approx(value, rel=1e-12)
    one = class_balance_loss(sure[[2, 2, 2]]).item()
    assert one == pytest.approx(-(math.log(1 + 1e-6) + 3 * math.log(1e-6)) / 4, rel=1e-6)


def test_class_balance_is_the_mean_over_classes_of_the_log_of_the_mean_over_samples() -> None:
    z = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    p = [[math.exp(a) / sum(math.exp(b) for b in row) for a in row] for row in z.tolist()]
    expected = -sum(math.log(sum(row[k] for row in p) / 5 + 1e-6) for k in range(3)) / 3
    assert class_balance_loss(z).item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(class_balance_loss, (z,))
    assert_close(class_balance_loss(z + 7), class_balance_loss(z))
