"""ADR against a reference written out by hand: its three steps with one optimiser for each of its three parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from float64 import Rows, normal
from torch import Tensor, nn
from torch.testing import assert_close

from acclimate.data.batches import Labelled, Pair, Unlabelled
from acclimate.errors import OptionError
from acclimate.methods.adr import ADR, absolute_difference, symmetric_kl
from acclimate.methods.base import Objective
from acclimate.networks.network import Network
from acclimate.settings import Recipe
from acclimate.training import train
from by_hand import batch_norm, copies, features, layer

K, N, B, DROPOUT = 3, 24, 8, 0.4
VARIANTS: list[dict[str, Any]] = [{}, {"joint_batchnorm": True}, {"divergence": "l1"}]
every_variant = pytest.mark.parametrize("options", VARIANTS, ids=str)


def build(**options: Any) -> ADR:
    net = Network(nn.Linear(6, 5), nn.Identity(), 5, bottleneck=4)
    settings = {"hidden": 7, "dropout": DROPOUT, "n": 2, "discrepancy_weight": 0.7, "balance_weight": 0.3} | options
    method = ADR(net, K, **settings).double()
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return method


def batch(B_s: int = 8, B_t: int = 6) -> tuple[Labelled, Unlabelled]:
    x_s, x_t = normal(B_s, 6), normal(B_t, 6) + 1
    return Labelled(x_s, torch.arange(B_s) % K, torch.arange(B_s)), Unlabelled(x_t, torch.arange(B_t))


# The reference


def head(P: dict[str, Tensor], name: str, f: Tensor) -> Tensor:
    """Probabilities; Dropout-Linear-BatchNorm-ReLU are entries 0 to 3 and 4 to 7, the last linear layer is 8."""
    for i in (0, 4):
        f = f * torch.empty_like(f).bernoulli_(1 - DROPOUT) / (1 - DROPOUT)
        f = layer(P, f"{name}.layers.{i + 1}", f)
        f = batch_norm(f, P[f"{name}.layers.{i + 2}.weight"], P[f"{name}.layers.{i + 2}.bias"])
        f = f * (f > 0)
    z = layer(P, f"{name}.layers.8", f)
    return z.exp() / z.exp().sum(1, keepdim=True)


def cross_entropy(p: Tensor, y: Tensor) -> Tensor:
    return -sum(p[i, y[i]].log() for i in range(len(y))) / len(y)


def balance(p: Tensor) -> Tensor:
    return -sum(torch.log(p[:, k].mean() + 1e-6) for k in range(K)) / K


def divergence(p: Tensor, q: Tensor, options: dict[str, Any]) -> Tensor:
    if options.get("divergence") == "l1":
        return sum((p[i, k] - q[i, k]).abs() for i in range(len(p)) for k in range(K)) / len(p) / K
    one = sum((p[i] * (p[i] / q[i]).log()).sum() for i in range(len(p))) / len(p)
    other = sum((q[i] * (q[i] / p[i]).log()).sum() for i in range(len(p))) / len(p)
    return (one + other) / 2 / K


def step_1(P: dict[str, Tensor], s: Labelled, t: Unlabelled) -> tuple[Tensor, Tensor, Tensor]:
    """CE and balance of the critic, CE of the classifier."""
    n_s = len(s.x)
    f = features(P, torch.cat([s.x, t.x]))
    p = head(P, "critic", f)
    return (
        cross_entropy(p[:n_s], s.y),
        balance(p[n_s:]),
        cross_entropy(head(P, "classifier", f.detach())[:n_s], s.y),
    )


def step_2(P: dict[str, Tensor], s: Labelled, t: Unlabelled, options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """CE and balance of the critic, d."""
    n_s, n_t = len(s.x), len(t.x)
    f = features(P, torch.cat([s.x, t.x]))
    p = head(P, "critic", torch.cat([f, f[n_s:]]))
    p_1, p_2 = p[n_s : n_s + n_t], p[n_s + n_t :]
    return cross_entropy(p[:n_s], s.y), balance(p_1), divergence(p_1, p_2, options)


def step_3(P: dict[str, Tensor], s: Labelled, t: Unlabelled, options: dict[str, Any]) -> Tensor:
    """d."""
    if options.get("joint_batchnorm"):
        return step_2(P, s, t, options)[2]
    f = features(P, t.x)
    p = head(P, "critic", torch.cat([f, f]))
    return divergence(p[: len(f)], p[len(f) :], options)


def objectives(method: ADR, s: Labelled, t: Unlabelled) -> list[Objective]:
    """All of a step's objectives at the same weights."""
    return list(method.step(s, t))


# The divergence


def test_the_divergence_of_equal_predictions_is_0_and_so_is_its_gradient() -> None:
    z = normal(5, K).requires_grad_()
    for function in (symmetric_kl, absolute_difference):
        assert_close(function(z, z + 3).item(), 0.0)  # a shift of the logits changes no probability
        (g,) = torch.autograd.grad(function(z, z.detach()), z)
        assert_close(g, torch.zeros_like(z))


def test_the_symmetric_kl_is_that_of_probabilities_and_its_gradient_reaches_both() -> None:
    p, q = torch.tensor([[0.5, 0.25, 0.25]]).double(), torch.tensor([[0.25, 0.5, 0.25]]).double()
    expected = 0.25 * np.log(2) / 3  # both KLs are 0.25 log 2
    assert symmetric_kl(p.log(), q.log()).item() == pytest.approx(expected, rel=1e-12)
    assert symmetric_kl(q.log() + 5, p.log()).item() == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(symmetric_kl, (normal(4, K).requires_grad_(), normal(4, K).requires_grad_()))


def test_the_divergence_survives_certain_predictions() -> None:
    z = torch.tensor([[400.0, 0, 0], [0, 400, 0]], requires_grad=True)
    d = symmetric_kl(z, z.detach().flip(0))
    (g,) = torch.autograd.grad(d, z)
    assert d.isfinite()
    assert g.isfinite().all()


# The terms


@every_variant
def test_the_terms_are_those_of_the_three_steps(options: dict[str, Any]) -> None:
    method, (s, t) = build(**options), batch()
    P = copies(method)
    torch.manual_seed(7)  # dropout draws from here
    first, second, *third = objectives(method, s, t)
    torch.manual_seed(7)
    assert [first.over, second.over, *(c.over for c in third)] == [(), (method.critic,), (method.net,), (method.net,)]
    a, b, c = step_1(P, s, t)
    assert list(first.terms) == ["classification", "balance", "evaluation"]
    assert_close(list(first.terms.values()), [a, 0.3 * b, c])
    a, b, d = step_2(P, s, t, options)
    assert list(second.terms) == ["classification", "balance", "discrepancy"]
    assert_close(list(second.terms.values()), [a, 0.3 * b, -0.7 * d])
    assert d > 0
    for objective in third:
        assert list(objective.terms) == ["discrepancy"]
        assert_close(objective.terms["discrepancy"], 0.7 * step_3(P, s, t, options))


def test_the_classifier_learns_from_the_source_alone_and_the_network_not_from_it() -> None:
    method, (s, t) = build(), batch()
    first, second, *third = objectives(method, s, t)

    def reached(terms: dict[str, Tensor]) -> set[str]:
        parameters = dict(method.named_parameters())
        grads = torch.autograd.grad(sum(terms.values()), list(parameters.values()), allow_unused=True)
        return {name.split(".")[0] for name, g in zip(parameters, grads, strict=True) if g is not None}

    assert reached({"evaluation": first.terms.pop("evaluation")}) == {"classifier"}
    assert reached(first.terms) == {"net", "critic"}
    assert reached(second.terms) == {"critic"}
    assert all(reached(objective.terms) == {"net", "critic"} for objective in third)


def test_two_draws_that_are_equal_do_not_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    class Alternating(nn.Dropout):
        """Drops the second entry of every sample."""

        def forward(self, f: Tensor) -> Tensor:
            return f * (torch.arange(f.shape[1]) != 1)

    method = build()
    for i in (0, 4):
        method.critic.layers[i] = Alternating()
    _, *others = objectives(method, *batch())
    for objective in others:
        assert_close(objective.terms["discrepancy"].item(), 0.0)
    _, *others = objectives(build(), *batch())
    assert all(abs(objective.terms["discrepancy"]) > 1e-4 for objective in others)


@pytest.mark.parametrize(("joint", "samples"), [(False, [14, 14, 6, 6]), (True, [14, 14, 14, 14])])
def test_only_step_3_leaves_the_source_out(joint: bool, samples: list[int]) -> None:
    method, seen = build(joint_batchnorm=joint), []
    method.net.encoder.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    objectives(method, *batch())
    assert seen == samples


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_dropout_that_draws_nothing_is_refused(dropout: float) -> None:
    with pytest.raises(OptionError, match="dropout must be between 0 and 1"):
        build(dropout=dropout)


# Training


@every_variant
def test_five_steps_of_training_are_five_steps_with_three_optimisers(options: dict[str, Any]) -> None:
    method = build(**options)
    data = Pair(Rows(normal(N, 6)), np.arange(N) % K, Rows(normal(N, 6) + 1), batch_size=B, seed=3)
    P = copies(method)
    recipe = Recipe(steps=5, batch_size=B, **{**ADR.recipe, "lr": 0.05, "weight_decay": 1e-2})
    torch.manual_seed(7)
    for _ in train(method, data, recipe):
        pass

    shared = {"lr": 0.05, "weight_decay": 1e-2}
    parts = {name: [p for n, p in P.items() if n.startswith(name)] for name in ("net", "critic", "classifier")}
    G = torch.optim.SGD(parts["net"], **shared)
    C = torch.optim.SGD(parts["critic"], **shared, momentum=0.9, nesterov=True)
    C_prime = torch.optim.SGD(parts["classifier"], **shared, momentum=0.9, nesterov=True)

    def minimise(loss: Tensor, *optimizers: torch.optim.Optimizer) -> None:
        for optimizer in (G, C, C_prime):
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    torch.manual_seed(7)
    for i in range(5):
        s, t = data.batch(i)
        a, b, c = step_1(P, s, t)
        minimise(a + 0.3 * b + c, G, C, C_prime)
        a, b, d = step_2(P, s, t, options)
        minimise(a + 0.3 * b - 0.7 * d, C)
        for _ in range(2):
            minimise(0.7 * step_3(P, s, t, options), G)

    for name, p in method.named_parameters():
        assert_close(p.detach(), P[name].detach(), rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


# After training


def test_predictions_are_the_classifiers_without_dropout() -> None:
    method, x = build().eval(), normal(7, 6)
    assert_close(method.predict(x), method.classifier(method.net(x)))
    assert_close(method.predict(x), method.predict(x))
    assert not torch.allclose(method.predict(x), method.critic(method.net(x)))
