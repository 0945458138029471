"""Layers against their equations, written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from acclimate.choices import Critic
from acclimate.methods.parts.layers import Discriminator, Discriminators, MovingCentroids, reverse
from acclimate.methods.parts.losses import domain_loss, semantic_loss

K, D = 4, 3
CRITICS: list[Critic] = ["mlp", "dropout", "linear"]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def normal(*shape: int, grad: bool = False) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=grad)


# Gradient reversal


@pytest.mark.parametrize("c", [0.0, 0.3, 1.0, 2.5])
def test_the_gradient_of_a_sum_behind_a_reversal_is_minus_c(c: float) -> None:
    x = normal(5, D, grad=True)
    reverse(x, c).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, -c))


@pytest.mark.parametrize("c", [0.0, 0.3, 1.0, 2.5])
def test_reversal_is_the_identity_forwards_and_minus_c_times_its_gradient_backwards(c: float) -> None:
    x, upstream = normal(5, D, grad=True), normal(5, D)
    y = reverse(x, c)
    assert torch.equal(y, x)
    (through_reversal,) = torch.autograd.grad(y, x, upstream)
    assert_close(through_reversal, -c * upstream, rtol=0, atol=0)


def test_two_reversals_multiply() -> None:
    x, upstream = normal(5, D, grad=True), normal(5, D)
    (got,) = torch.autograd.grad(reverse(reverse(x, 0.5), 3.0), x, upstream)
    assert_close(got, 1.5 * upstream, rtol=0, atol=0)


def test_what_stands_behind_a_reversal_learns_with_weight_1_whatever_the_coefficient() -> None:
    x, w = normal(5, D, grad=True), normal(D, grad=True)
    (reverse(x, 0.25) @ w).sum().backward()
    assert_close(w.grad, x.detach().sum(0))
    assert_close(x.grad, -0.25 * w.detach().expand(5, D))


def test_reversal_keeps_the_dtype() -> None:
    assert reverse(torch.randn(2, 2), 0.5).dtype == torch.float32
    assert reverse(normal(2, 2), 0.5).dtype == torch.float64


# Discriminator


def batch_norm(u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = u.sum(0) / len(u)
    variance = ((u - mean) ** 2).sum(0) / len(u)
    return (u - mean) / (variance + 1e-5).sqrt() * weight + bias


def mlp_logits(P: dict[str, Tensor], f: Tensor) -> Tensor:
    """Linear-BatchNorm-ReLU twice, and a linear layer."""
    for linear, norm in [(0, 1), (3, 4)]:
        f = f @ P[f"layers.{linear}.weight"].T + P[f"layers.{linear}.bias"]
        f = batch_norm(f, P[f"layers.{norm}.weight"], P[f"layers.{norm}.bias"])
        f = f * (f > 0)
    return (f @ P["layers.6.weight"].T + P["layers.6.bias"])[:, 0]


def shaken(critic: Discriminator) -> Discriminator:
    """In float64, with every parameter drawn anew, so that no weight is one and no bias is zero."""
    with torch.no_grad():
        for p in critic.double().parameters():
            p.copy_(torch.randn_like(p))
    return critic


def test_the_linear_discriminator_is_one_linear_layer() -> None:
    critic, f = shaken(Discriminator(D, kind="linear")), normal(6, D)
    P = dict(critic.named_parameters())
    assert {name: tuple(p.shape) for name, p in P.items()} == {"layers.0.weight": (1, D), "layers.0.bias": (1,)}
    assert_close(critic(f), (f * P["layers.0.weight"]).sum(1) + P["layers.0.bias"])


def test_the_mlp_discriminator_is_tlls_without_the_sigmoid() -> None:
    critic, f = shaken(Discriminator(D, hidden=5)), normal(6, D)
    assert_close(critic(f), mlp_logits(dict(critic.named_parameters()), f))


def test_the_dropout_discriminator_is_cdans() -> None:
    critic, f = Discriminator(200, kind="dropout", hidden=300), torch.randn(6, 200)
    P = {name: p.detach() for name, p in critic.named_parameters()}
    assert [tuple(p.shape) for name, p in P.items() if "weight" in name] == [(300, 200), (300, 300), (1, 300)]
    for name, p in P.items():
        if "bias" in name:
            assert not p.any()
        else:  # Glorot and Bengio's normal distribution
            assert abs(float(p.std()) * math.sqrt(sum(p.shape) / 2) - 1) < 0.2
    W_1, W_2, w_3 = (p for name, p in P.items() if "weight" in name)
    critic.eval()
    assert_close(critic(f), ((f @ W_1.T).relu() @ W_2.T).relu() @ w_3[0])
    critic.train()
    hidden = critic.layers[:3](f).detach()
    assert 0.4 < float((hidden == 0).float().mean() - (f @ W_1.T <= 0).float().mean()) * 2 < 0.6
    assert_close(hidden[hidden > 0], 2 * (f @ W_1.T)[hidden > 0])


def test_the_mlp_discriminator_is_1024_wide_unless_told_otherwise() -> None:
    shapes = [tuple(p.shape) for name, p in Discriminator(256).named_parameters() if "weight" in name and p.ndim == 2]
    assert shapes == [(1024, 256), (1024, 1024), (1, 1024)]


@pytest.mark.parametrize("kind", CRITICS)
def test_the_discriminator_emits_one_logit_a_sample_and_not_a_probability(kind: Critic) -> None:
    d = shaken(Discriminator(D, kind=kind, hidden=8))(10 * normal(50, D))
    assert d.shape == (50,)
    assert d.min() < 0
    assert d.max() > 1


@pytest.mark.parametrize("kind", CRITICS)
def test_a_batch_of_one_still_gives_a_vector(kind: Critic) -> None:
    assert Discriminator(D, kind=kind, hidden=8).eval()(torch.randn(1, D)).shape == (1,)


@pytest.mark.parametrize("kind", CRITICS)
def test_a_discriminator_trained_alone_separates_two_gaussians(kind: Critic) -> None:
    def sample(n: int) -> tuple[Tensor, Tensor]:
        return torch.randn(n, D) + 2, torch.randn(n, D) - 2

    critic = Discriminator(D, kind=kind, hidden=16)
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.1, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        domain_loss(critic, *sample(32)).backward()
        optimizer.step()
    critic.eval()
    d_s, d_t = (critic(f) for f in sample(500))
    assert (d_s > 0).float().mean() > 0.98  # source is positive
    assert (d_t < 0).float().mean() > 0.98
    assert domain_loss(critic, *sample(500)) < 0.1 * math.log(2)


# Many discriminators as one


def apart(critics: Discriminators) -> list[nn.Sequential]:
    """The same discriminators as modules of their own, each with a copy of its weights."""
    modules = []
    for g in range(critics.count):
        layers = []
        for part in critics.layers:
            if hasattr(part, "weight"):
                linear = nn.Linear(*part.weight.shape[1:], dtype=part.weight.dtype)
                with torch.no_grad():
                    linear.weight.copy_(part.weight[g].T)
                    linear.bias.copy_(part.bias[g, 0])
                layers.append(linear)
            elif isinstance(part, nn.ReLU):
                layers.append(nn.ReLU())
        modules.append(nn.Sequential(*layers))
    return modules


@pytest.mark.parametrize("layout", ["by sample", "by group", "map"])
def test_many_discriminators_are_equal_to_as_many_modules_in_values_and_gradients(layout: str) -> None:
    B, G = 6, 3
    critics = Discriminators(G, D, hidden=5).double()
    stored = normal(*{"by sample": (B, G, D), "by group": (G, B, D), "map": (B, D, G)}[layout], grad=True)
    f = {"by sample": stored, "by group": stored.transpose(0, 1), "map": stored.transpose(1, 2)}[layout]
    modules = apart(critics)
    assert [len(module) for module in modules] == [5] * G
    expected = torch.cat([module(f[:, g]) for g, module in enumerate(modules)], 1)
    logits = critics(f)
    assert logits.shape == (B, G)
    assert_close(logits, expected)

    upstream = normal(B, G)
    (wanted,) = torch.autograd.grad(expected, stored, upstream, retain_graph=True)
    (got,) = torch.autograd.grad(logits, stored, upstream, retain_graph=True)
    assert_close(got, wanted)
    parameters = [p for module in modules for p in module.parameters()]
    apart_grads = torch.autograd.grad(expected, parameters, upstream)
    together = torch.autograd.grad(logits, list(critics.parameters()), upstream)
    for i, grad in enumerate(together):  # weight, bias, weight, ...
        of_each = torch.stack(apart_grads[i :: len(together)])  # (G, out, in) or (G, out)
        assert_close(grad, of_each.mT if i % 2 == 0 else of_each.unsqueeze(1))


def test_each_of_many_discriminators_learns_from_its_own_feature_alone() -> None:
    critics = Discriminators(3, D, hidden=5).double()
    f = normal(6, 3, D, grad=True)
    critics(f)[:, 1].sum().backward()
    assert not f.grad[:, [0, 2]].any()
    assert f.grad[:, 1].any()
    for p in critics.parameters():
        assert p.grad[1].any()
        assert not p.grad[[0, 2]].any()


def test_many_discriminators_start_as_linear_layers_do_each_with_weights_of_its_own() -> None:
    critics, module = Discriminators(4, 50, hidden=40), nn.Linear(50, 40)
    first = critics.layers[0]
    assert first.weight.shape == (4, 50, 40)
    assert first.bias.shape == (4, 1, 40)
    for g in range(4):  # uniform between the same bounds: equal extremes and equal spread
        for ours, theirs in [(first.weight[g], module.weight), (first.bias[g], module.bias)]:
            assert ours.abs().max() <= 50**-0.5
            assert ours.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.1)
            assert ours.std().item() == pytest.approx(theirs.std().item(), rel=0.3 if ours.ndim == 2 else 0.05)
            assert abs(ours.mean().item()) < 0.03
        assert not torch.equal(first.weight[g], first.weight[g - 1])
    assert critics.layers[-1].weight.abs().max() <= 40**-0.5


def test_dropout_is_on_the_hidden_units_in_training_alone() -> None:
    critics, f = Discriminators(3, D, hidden=50, dropout=0.5), torch.randn(6, 3, D)
    assert not torch.allclose(critics(f), critics(f))
    critics.eval()
    assert torch.equal(critics(f), critics(f))
    expected = torch.cat([module(f[:, g]) for g, module in enumerate(apart(critics))], 1)
    assert_close(critics(f), expected)
    certain = Discriminators(3, D, hidden=50)
    assert torch.equal(certain(f), certain(f))


# Moving centroids


def centroids(theta: float = 0.7, C_s: Tensor | None = None, C_t: Tensor | None = None) -> MovingCentroids:
    module = MovingCentroids(K, D, theta).double()
    if C_s is not None and C_t is not None:
        module.C_s.copy_(C_s)
        module.C_t.copy_(C_t)
    return module


def moved_by_hand(old: list[list[float]], f: Tensor, y: Tensor, theta: float) -> list[list[float]]:
    """theta C + (1 - theta) mean, class by class and entry by entry; an absent class keeps its centroid."""
    new = []
    for k in range(K):
        members = [f[i].tolist() for i in range(len(f)) if int(y[i]) == k]
        if members:
            mean = [sum(column) / len(members) for column in zip(*members, strict=True)]
            new.append([theta * o + (1 - theta) * m for o, m in zip(old[k], mean, strict=True)])
        else:
            new.append(old[k])
    return new


def test_centroids_start_at_zero() -> None:
    module = MovingCentroids(K, D)
    assert module.theta == 0.7
    assert torch.equal(module.C_s, torch.zeros(K, D))
    assert torch.equal(module.C_t, torch.zeros(K, D))


def test_the_first_centroid_is_three_tenths_of_the_batch_mean() -> None:
    f_s, f_t = normal(5, D), normal(4, D)
    C_s, C_t = centroids()(f_s, torch.zeros(5, dtype=torch.int64), f_t, torch.full((4,), 2))
    assert_close(C_s[0], 0.3 * f_s.mean(0))
    assert_close(C_t[2], 0.3 * f_t.mean(0))
    assert not C_s[1:].any()
    assert not C_t[[0, 1, 3]].any()


@pytest.mark.parametrize("theta", [0.0, 0.5, 0.7, 0.95])
def test_centroids_over_batches_that_lack_classes_are_the_hand_computed_ones(theta: float) -> None:
    batches = [  # source labels, target pseudo-labels
        ([0, 0, 1], [3, 3, 1, 1]),
        ([2, 1, 1], [0, 3, 3, 3]),
        ([3, 3, 3], [2, 2, 2, 2]),
        ([0, 2, 0], [0, 1, 2, 3]),
    ]
    module = centroids(theta)
    hand_s = hand_t = [[0.0] * D for _ in range(K)]
    for y_s, y_t in batches:
        f_s, f_t, y_s, y_t = normal(3, D), normal(4, D), torch.tensor(y_s), torch.tensor(y_t)
        C_s, C_t = module(f_s, y_s, f_t, y_t)
        hand_s, hand_t = moved_by_hand(hand_s, f_s, y_s, theta), moved_by_hand(hand_t, f_t, y_t, theta)
        assert_close(C_s, torch.tensor(hand_s, dtype=torch.float64))
        assert_close(C_t, torch.tensor(hand_t, dtype=torch.float64))
        assert torch.equal(module.C_s, C_s)
        assert torch.equal(module.C_t, C_t)


def test_an_absent_class_keeps_its_centroid_to_the_bit() -> None:
    old_s, old_t = normal(K, D), normal(K, D)
    C_s, C_t = centroids(C_s=old_s, C_t=old_t)(
        normal(3, D), torch.tensor([0, 1, 0]), normal(2, D), torch.tensor([3, 3])
    )
    assert torch.equal(C_s[2:], old_s[2:])
    assert torch.equal(C_t[:3], old_t[:3])


def test_gradcheck_of_the_centroids() -> None:
    old_s, old_t = normal(K, D), normal(K, D)
    y_s, y_t = torch.tensor([0, 0, 2, 0, 1]), torch.tensor([3, 2, 2])

    def moved(f_s: Tensor, f_t: Tensor) -> tuple[Tensor, Tensor]:
        C_s, C_t = centroids(C_s=old_s, C_t=old_t)(f_s, y_s, f_t, y_t)
        return C_s, C_t

    assert torch.autograd.gradcheck(moved, (normal(5, D, grad=True), normal(3, D, grad=True)))


def test_gradient_of_the_semantic_loss_is_that_of_the_current_batch_over_the_count() -> None:
    f_s, f_t = normal(5, D, grad=True), normal(3, D, grad=True)
    y_s, y_t = torch.tensor([0, 0, 2, 0, 1]), torch.tensor([2, 0, 2])
    C_s, C_t = centroids()(f_s, y_s, f_t, y_t)
    semantic_loss(C_s, C_t).backward()
    difference = (C_s - C_t).detach()
    for i, k in enumerate(y_s.tolist()):
        count = y_s.tolist().count(k)
        assert_close(f_s.grad[i], 0.3 * 2 * difference[k] / (K * D) / count)
    for i, k in enumerate(y_t.tolist()):
        count = y_t.tolist().count(k)
        assert_close(f_t.grad[i], -0.3 * 2 * difference[k] / (K * D) / count)


def test_no_gradient_flows_through_earlier_batches() -> None:
    module, y = centroids(), torch.tensor([0, 1, 2, 3])
    first, second = normal(4, D, grad=True), normal(4, D, grad=True)
    module(first, y, first, y)
    assert not module.C_s.requires_grad
    assert not module.C_t.requires_grad
    C_s, C_t = module(second, y, normal(4, D), y)
    semantic_loss(C_s, C_t).backward()
    assert first.grad is None
    assert second.grad.abs().min() > 0


def test_centroids_are_saved_and_are_not_trained() -> None:
    module, y = centroids(), torch.tensor([0, 1, 2, 3])
    module(normal(4, D), y, normal(4, D), y)
    assert not list(module.parameters())
    assert set(module.state_dict()) == {"C_s", "C_t"}
    restored = centroids()
    restored.load_state_dict(module.state_dict())
    f_s, f_t = normal(4, D), normal(4, D)
    for a, b in zip(module(f_s, y, f_t, y), restored(f_s, y, f_t, y), strict=True):
        assert torch.equal(a, b)


def test_centroids_follow_the_module_to_another_dtype_after_they_have_moved() -> None:
    module, y = MovingCentroids(K, D), torch.tensor([0, 1])
    module(torch.randn(2, D), y, torch.randn(2, D), y)
    module.double()
    assert module.C_s.dtype == torch.float64
    assert module(normal(2, D), y, normal(2, D), y)[0].dtype == torch.float64
