"""Losses against their equations, written out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from acclimate.layers import Critic, Discriminator
from acclimate.losses import domain_loss, semantic_loss

D = 3
CRITICS: list[Critic] = ["mlp", "linear"]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def normal(*shape: int, grad: bool = False) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=grad)


class FirstEntry(nn.Module):
    """A critic whose logit is the feature's first entry."""

    def forward(self, f: Tensor) -> Tensor:
        return f[:, 0]


# Domain loss


def test_domain_loss_is_the_mean_of_both_domains_cross_entropies() -> None:
    f_s, f_t = normal(6, D), normal(4, D)
    source = [-math.log(1 / (1 + math.exp(-d))) for d in f_s[:, 0].tolist()]  # -log sigmoid(d): source is 1
    target = [-math.log(1 - 1 / (1 + math.exp(-d))) for d in f_t[:, 0].tolist()]  # -log(1 - sigmoid(d)): target is 0
    expected = 0.5 * (sum(source) / 6 + sum(target) / 4)
    assert domain_loss(FirstEntry(), f_s, f_t).item() == pytest.approx(expected, rel=1e-12)


def test_gradient_of_the_domain_loss_is_the_hand_derived_one() -> None:
    f_s, f_t = normal(6, D, grad=True), normal(4, D, grad=True)
    domain_loss(FirstEntry(), f_s, f_t).backward()
    p_s, p_t = (1 / (1 + torch.exp(-f.detach()[:, 0])) for f in (f_s, f_t))
    assert_close(f_s.grad[:, 0], 0.5 * (p_s - 1) / 6)
    assert_close(f_t.grad[:, 0], 0.5 * p_t / 4)
    assert not f_s.grad[:, 1:].any()


@pytest.mark.parametrize("kind", CRITICS)
def test_gradcheck_of_the_domain_loss(kind: Critic) -> None:
    critic = Discriminator(D, kind=kind, hidden=4).double()
    parameters = dict(critic.named_parameters())

    def loss(f_s: Tensor, f_t: Tensor, *values: Tensor) -> Tensor:
        weights = dict(zip(parameters, values, strict=True))

        def stateless(f: Tensor) -> Any:
            return torch.func.functional_call(critic, weights, (f,))

        return domain_loss(stateless, f_s, f_t)

    values = [p.detach().clone().requires_grad_() for p in parameters.values()]
    assert torch.autograd.gradcheck(loss, (normal(5, D, grad=True), normal(4, D, grad=True), *values))


def test_a_critic_that_knows_nothing_loses_log_2() -> None:
    assert domain_loss(FirstEntry(), torch.zeros(3, D), torch.zeros(5, D)).item() == pytest.approx(math.log(2))


def test_a_critic_that_is_positive_on_the_source_loses_little_and_on_the_target_much() -> None:
    high, low = torch.full((3, D), 5.0), torch.full((3, D), -5.0)
    assert domain_loss(FirstEntry(), high, low) < 0.01
    assert domain_loss(FirstEntry(), low, high) > 4.9


def test_the_domain_loss_of_huge_logits_is_finite_with_a_finite_gradient() -> None:
    f_s, f_t = torch.full((2, D), -1e4, requires_grad=True), torch.full((2, D), 1e4, requires_grad=True)
    loss = domain_loss(FirstEntry(), f_s, f_t)
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    assert_close(f_s.grad[:, 0], torch.full((2,), -0.25))
    assert_close(f_t.grad[:, 0], torch.full((2,), 0.25))


def test_both_domains_weigh_a_half_whatever_the_sizes_of_their_batches() -> None:
    f_s, f_t = normal(3, D), normal(5, D)
    repeated = domain_loss(FirstEntry(), f_s.repeat(7, 1), f_t)
    assert_close(repeated, domain_loss(FirstEntry(), f_s, f_t))


def test_batch_norm_in_the_critic_sees_the_mixture_of_the_domains_in_one_pass() -> None:
    critic = nn.Sequential(nn.BatchNorm1d(1, momentum=1.0), nn.Flatten(0)).double()
    f_s, f_t = normal(6, 1) + 3, normal(4, 1) - 3
    loss = domain_loss(critic, f_s, f_t)
    f = torch.cat([f_s, f_t])[:, 0]
    d = (f - f.mean()) / (f.var(unbiased=False) + 1e-5).sqrt()
    expected = 0.5 * (torch.log1p(torch.exp(-d[:6])).mean() + torch.log1p(torch.exp(d[6:])).mean())
    assert_close(loss, expected)
    assert_close(critic[0].running_mean, f.mean()[None])
    assert critic[0].num_batches_tracked == 1


# Semantic loss


def test_semantic_loss_is_the_squared_distance_over_all_entries() -> None:
    C_s, C_t = normal(4, D), normal(4, D)
    squares = [(C_s[k, j] - C_t[k, j]).item() ** 2 for k in range(4) for j in range(D)]
    assert semantic_loss(C_s, C_t, "sum").item() == pytest.approx(sum(squares), rel=1e-12)
    assert semantic_loss(C_s, C_t, "mean").item() == pytest.approx(sum(squares) / (4 * D), rel=1e-12)


def test_semantic_loss_is_the_mean_unless_told_otherwise() -> None:
    C_s, C_t = normal(4, D), normal(4, D)
    assert torch.equal(semantic_loss(C_s, C_t), semantic_loss(C_s, C_t, "mean"))


def test_the_sum_is_classes_times_channels_the_mean() -> None:
    C_s, C_t = normal(31, 256), normal(31, 256)
    assert_close(semantic_loss(C_s, C_t, "sum"), 7936 * semantic_loss(C_s, C_t, "mean"))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradcheck_of_the_semantic_loss(reduction: Any) -> None:
    C_s, C_t = normal(4, D, grad=True), normal(4, D, grad=True)
    assert torch.autograd.gradcheck(lambda a, b: semantic_loss(a, b, reduction), (C_s, C_t))


def test_equal_centroids_cost_nothing() -> None:
    C = normal(4, D)
    assert semantic_loss(C, C.clone()).item() == 0
