"""Losses against their equations, written out by hand."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import by_hand
from acclimate.choices import Critic, Estimator
from acclimate.methods.parts import losses
from acclimate.methods.parts.layers import Discriminator
from acclimate.methods.parts.losses import (
    distances_from_gram,
    domain_loss,
    entropy,
    gaussian_kernels,
    mmd,
    semantic_loss,
    squared_distances,
)

D = 3
CRITICS: list[Critic] = ["mlp", "linear"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)


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


# Entropy


def test_entropy_is_minus_the_sum_of_p_log_p() -> None:
    z = normal(5, 4)
    p = [[math.exp(v) / sum(math.exp(w) for w in row) for v in row] for row in z.tolist()]
    assert entropy(z).tolist() == pytest.approx([-sum(v * math.log(v) for v in row) for row in p], rel=1e-12)


def test_entropy_is_log_k_where_all_classes_are_equal_and_nothing_where_one_is_certain() -> None:
    z = torch.tensor([[3.0, 3, 3, 3], [1000, 0, 0, 0]], requires_grad=True)
    H = entropy(z)
    H.sum().backward()
    assert H.tolist() == pytest.approx([math.log(4), 0], abs=1e-6)
    assert z.grad.isfinite().all()


# Distances


def test_squared_distances_are_sums_over_the_entries() -> None:
    f = normal(6, D)
    expected = [[sum((f[i, c] - f[j, c]).item() ** 2 for c in range(D)) for j in range(6)] for i in range(6)]
    assert_close(squared_distances(f), torch.tensor(expected, dtype=torch.float64))
    assert_close(distances_from_gram(f @ f.T), torch.tensor(expected, dtype=torch.float64))


def test_features_far_from_the_origin_keep_the_digits_of_their_distances() -> None:
    f = torch.randn(64, 256) + 1000
    exact = (f.double()[:, None] - f.double()).square().sum(-1)
    assert_close(squared_distances(f).double(), exact, rtol=1e-5, atol=0)
    assert not squared_distances(f).diagonal().any()


def test_no_distance_is_negative() -> None:
    G = torch.tensor([[1.0, 1.0 + 1e-6], [1.0 + 1e-6, 1.0]])
    assert torch.equal(distances_from_gram(G), torch.zeros(2, 2))
    f = torch.randn(16, 256).repeat(4, 1)
    assert (squared_distances(f) >= 0).all()


# Kernels


def test_the_kernel_is_the_sum_of_five_gaussians_around_the_mean_distance() -> None:
    f = normal(7, D)
    assert_close(gaussian_kernels(squared_distances(f)), by_hand.gaussians(f))


def test_the_kernel_is_5_where_the_distance_is_0_and_symmetric() -> None:
    k = gaussian_kernels(squared_distances(normal(7, D)))
    assert torch.equal(k.diagonal(), torch.full((7,), 5.0, dtype=torch.float64))
    assert_close(k, k.T)


def test_the_kernel_at_the_mean_distance_is_that_of_one_unit() -> None:
    d2 = torch.full((4, 4), 3.7, dtype=torch.float64).fill_diagonal_(0)
    expected = sum(math.exp(-x) for x in (4, 2, 1, 0.5, 0.25))
    assert gaussian_kernels(d2)[0, 1].item() == pytest.approx(expected, rel=1e-12)


def test_the_kernel_does_not_depend_on_the_scale_of_the_features() -> None:
    f = normal(7, D)
    assert_close(gaussian_kernels(squared_distances(1000 * f)), gaussian_kernels(squared_distances(f)))


def test_the_bandwidth_carries_no_gradient() -> None:
    f, weights = normal(6, D, grad=True), normal(6, 6)
    (got,) = torch.autograd.grad((weights * gaussian_kernels(squared_distances(f))).sum(), f)
    (fixed,) = torch.autograd.grad((weights * by_hand.gaussians(f)).sum(), f)
    (moving,) = torch.autograd.grad((weights * by_hand.gaussians(f, by_hand.mean_distance(f))).sum(), f)
    assert_close(got, fixed)
    assert not torch.allclose(got, moving, rtol=1e-2)


def test_gradcheck_of_the_kernel_with_a_fixed_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_mean_off_diagonal", lambda d2: torch.tensor(2.3, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda f: gaussian_kernels(squared_distances(f)), normal(5, D, grad=True))
    assert torch.autograd.gradcheck(lambda f: gaussian_kernels(distances_from_gram(f @ f.T)), normal(5, D, grad=True))


def test_features_that_are_all_equal_have_no_discrepancy_and_no_gradient() -> None:
    f = torch.full((8, D), 0.7, requires_grad=True)
    k = gaussian_kernels(squared_distances(f))
    assert torch.equal(k, torch.full((8, 8), 5.0))
    for estimator in ESTIMATORS:
        loss = mmd(k, 5, estimator)
        (grad,) = torch.autograd.grad(loss, f, retain_graph=True)
        assert loss.item() == pytest.approx(0, abs=1e-5)
        assert torch.equal(grad, torch.zeros_like(f))


# Maximum mean discrepancy


@pytest.mark.parametrize("sizes", [(6, 6), (7, 7), (6, 4), (3, 8), (2, 2)])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_each_estimate_is_its_sum_over_pairs(estimator: Estimator, sizes: tuple[int, int]) -> None:
    k = normal(sum(sizes), sum(sizes))
    k = k + k.T
    assert_close(mmd(k, sizes[0], estimator), by_hand.mmd(k, sizes[0], estimator))


def test_the_estimate_is_over_all_pairs_but_a_sample_with_itself_unless_told_otherwise() -> None:
    k = gaussian_kernels(squared_distances(normal(9, D)))
    assert torch.equal(mmd(k, 5), mmd(k, 5, "unbiased"))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_swapping_the_domains_changes_nothing(estimator: Estimator) -> None:
    f_s, f_t = normal(6, D), normal(4, D) + 1
    one = mmd(gaussian_kernels(squared_distances(torch.cat([f_s, f_t]))), 6, estimator)
    other = mmd(gaussian_kernels(squared_distances(torch.cat([f_t, f_s]))), 4, estimator)
    assert_close(one, other)


def test_identical_samples_have_a_biased_discrepancy_of_zero_and_an_unbiased_one_below() -> None:
    f = normal(6, D)
    k = gaussian_kernels(squared_distances(torch.cat([f, f])))
    assert mmd(k, 6, "biased").item() == pytest.approx(0, abs=1e-12)
    assert mmd(k, 6, "unbiased") < 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_discrepancy_of_domains_far_apart_is_twice_the_kernel_within_them(estimator: Estimator) -> None:
    f_s, f_t = torch.zeros(6, D), torch.full((4, D), 1e3)
    k = gaussian_kernels(squared_distances(torch.cat([f_s, f_t])))
    assert_close(mmd(k, 6, estimator), 2 * (5 - k[0, -1]))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_too_few_samples_are_refused(estimator: Estimator) -> None:
    k = torch.ones(4, 4)
    for n_s in (0, 4) if estimator == "biased" else (0, 1, 3, 4):
        with pytest.raises(ValueError, match=f"the {estimator} estimate of the MMD needs"):
            mmd(k, n_s, estimator)
    assert mmd(k, 2, estimator) == 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradcheck_of_the_discrepancy(estimator: Estimator) -> None:
    assert torch.autograd.gradcheck(lambda k: mmd(k, 5, estimator), normal(9, 9, grad=True))
