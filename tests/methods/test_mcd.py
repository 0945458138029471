"""MCD against a reference written out by hand: steps A, B and C, an optimiser for the network and one for the heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from float64 import Rows, normal
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from acclimate.data.batches import Labelled, Pair, Unlabelled
from acclimate.errors import OptionError
from acclimate.methods.base import Objective
from acclimate.methods.mcd import MCD, discrepancy
from acclimate.networks.network import Network
from acclimate.settings import Recipe
from acclimate.training import train
from by_hand import batch_norm, copies, features, layer, softmax

K, N, B = 3, 24, 8


def build(**options: Any) -> MCD:
    net = Network(nn.Linear(6, 5), nn.Identity(), 5, bottleneck=4)
    settings = {"hidden": 7, "dropout": 0.0, "n": 2, "discrepancy_weight": 0.7, "balance_weight": 0.3} | options
    method = MCD(net, K, **settings).double()
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return method


def batch(B_s: int = 8, B_t: int = 6) -> tuple[Labelled, Unlabelled]:
    x_s, x_t = normal(B_s, 6), normal(B_t, 6) + 1
    return Labelled(x_s, torch.arange(B_s) % K, torch.arange(B_s)), Unlabelled(x_t, torch.arange(B_t))


def pair() -> Pair:
    return Pair(Rows(normal(N, 6)), np.arange(N) % K, Rows(normal(N, 6) + 1), batch_size=B, seed=3)


# The reference


def head(P: dict[str, Tensor], number: int, f: Tensor, dropout: float = 0.0) -> Tensor:
    """Two hidden layers: Dropout-Linear-BatchNorm-ReLU are entries 0 to 3 and 4 to 7, the last linear layer is 8."""
    name = f"heads.{number}.layers"
    for i in (0, 4):
        if dropout:
            f = f * torch.empty_like(f).bernoulli_(1 - dropout) / (1 - dropout)
        f = layer(P, f"{name}.{i + 1}", f)
        f = batch_norm(f, P[f"{name}.{i + 2}.weight"], P[f"{name}.{i + 2}.bias"])
        f = f * (f > 0)
    return layer(P, f"{name}.8", f)


def terms_by_hand(
    P: dict[str, Tensor],
    x_s: Tensor | None,
    y_s: Tensor | None,
    x_t: Tensor,
    dropout: float = 0.0,
    separate: bool = False,
) -> dict[str, Any]:
    """CE, balance and d, of both domains in one pass or each in its own, or of the target alone (x_s None)."""
    n_s, n_t = 0 if x_s is None else len(x_s), len(x_t)
    passes = [x_t] if x_s is None else [x_s, x_t] if separate else [torch.cat([x_s, x_t])]
    z = [[head(P, number, f, dropout) for number in (0, 1)] for f in (features(P, x) for x in passes)]
    p = [softmax(torch.cat([z_of_pass[number] for z_of_pass in z])) for number in (0, 1)]
    terms = {"d": sum((p[0][i, k] - p[1][i, k]).abs() for i in range(n_s, n_s + n_t) for k in range(K)) / n_t / K}
    if y_s is not None:
        terms["classification"] = -sum(q[i, y_s[i]].log() for q in p for i in range(n_s)) / n_s
        terms["balance"] = -sum(torch.log(q[n_s:, k].mean() + 1e-6) for q in p for k in range(K)) / K
    return terms


def objectives(method: MCD, s: Labelled, t: Unlabelled) -> list[Objective]:
    """All of a step's objectives at the same weights."""
    return list(method.step(s, t))


# The terms


def test_d_of_opposite_certainties_is_2_over_k_whatever_the_batch() -> None:
    for classes, expected in [(2, 1.0), (31, 2 / 31)]:
        sure = 1000 * torch.eye(classes, dtype=torch.float64)
        z = torch.stack([sure[[0, 0, 0]], sure[[1, 1, 1]]])
        assert_close(discrepancy(z), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(("joint", "separate"), [(False, False), (True, False), (False, True)])
def test_the_terms_and_the_gradients_are_those_of_steps_a_b_and_c(joint: bool, separate: bool) -> None:
    method, (s, t) = build(joint_batchnorm=joint, separate_batchnorm=separate), batch()
    A, B_, *C = objectives(method, s, t)
    P = copies(method)
    both = terms_by_hand(P, s.x, s.y, t.x, separate=separate)
    d_c = terms_by_hand(P, s.x if joint else None, None, t.x)["d"]
    wanted = {"classification": both["classification"], "balance": 0.3 * both["balance"]}
    assert (A.over, B_.over) == ((), (method.heads,))
    assert [c.over for c in C] == [(method.net,)] * 2
    assert set(A.terms) == set(wanted)
    assert set(B_.terms) == {*wanted, "discrepancy"}
    for name, term in wanted.items():
        assert_close(A.terms[name], term)
        assert_close(B_.terms[name], term)
    assert_close(B_.terms["discrepancy"], -0.7 * both["d"])
    for c in C:
        assert set(c.terms) == {"discrepancy"}
        assert_close(c.terms["discrepancy"], 0.7 * d_c)

    heads = {n: p for n, p in method.named_parameters() if n.startswith("heads")}
    net = {n: p for n, p in method.named_parameters() if n.startswith("net")}
    for objective, of, term in [
        (A, net | heads, sum(wanted.values())),
        (B_, heads, sum(wanted.values()) - 0.7 * both["d"]),
        (C[0], net, 0.7 * d_c),
    ]:
        got = torch.autograd.grad(sum(objective.terms.values()), list(of.values()))
        expected = torch.autograd.grad(term, [P[n] for n in of], retain_graph=True)
        for name, a, b in zip(of, got, expected, strict=True):
            assert_close(a, b, rtol=1e-8, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("separate", [False, True])
def test_step_b_holds_no_graph_of_the_network(separate: bool) -> None:
    method = build(separate_batchnorm=separate)
    _, B_, *_ = objectives(method, *batch())
    reached = torch.autograd.grad(sum(B_.terms.values()), list(method.net.parameters()), allow_unused=True)
    assert all(g is None for g in reached)


@pytest.mark.parametrize(
    ("options", "samples"),
    [
        ({}, [14, 14, 6, 6]),
        ({"joint_batchnorm": True}, [14, 14, 14, 14]),
        ({"separate_batchnorm": True}, [8, 6, 8, 6, 6, 6]),
    ],
)
def test_which_domains_share_a_pass(options: dict[str, Any], samples: list[int]) -> None:
    method, seen = build(**options), []
    method.net.encoder.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    objectives(method, *batch())
    assert seen == samples


def test_heads_that_start_alike_differ_by_dropout_alone() -> None:
    for dropout in (0.0, 0.5):
        method = build(dropout=dropout)
        method.heads[1].load_state_dict(method.heads[0].state_dict())
        d = objectives(method, *batch())[-1].terms["discrepancy"]
        assert (d > 0) == (dropout > 0)


@pytest.mark.parametrize("dropout", [1.0, 1.5])
def test_dropping_everything_is_refused(dropout: float) -> None:
    with pytest.raises(OptionError, match="dropout must be below 1"):
        build(dropout=dropout)


def test_passes_that_are_joint_and_separate_are_refused() -> None:
    with pytest.raises(OptionError, match="Set joint_batchnorm or separate_batchnorm of mcd, not both"):
        build(joint_batchnorm=True, separate_batchnorm=True)


# Training


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize(("joint", "separate"), [(False, False), (True, False), (False, True)])
def test_five_steps_of_training_are_five_steps_with_two_optimisers(joint: bool, separate: bool, dropout: float) -> None:
    method = build(joint_batchnorm=joint, separate_batchnorm=separate, dropout=dropout)
    data, P = pair(), copies(method)
    recipe = Recipe(steps=5, batch_size=B, **{**MCD.recipe, "lr": 0.05, "weight_decay": 1e-2})
    torch.manual_seed(7)  # dropout draws from here
    for _ in train(method, data, recipe):
        pass

    G = [p for n, p in P.items() if n.startswith("net")]
    F12 = [p for n, p in P.items() if n.startswith("heads")]
    optimizer_g = torch.optim.SGD(G, lr=0.05, weight_decay=1e-2)
    optimizer_f = torch.optim.SGD(F12, lr=0.05, weight_decay=1e-2, momentum=0.9, nesterov=True)

    def minimise(loss: Tensor, *optimizers: torch.optim.Optimizer) -> None:
        optimizer_g.zero_grad()
        optimizer_f.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    torch.manual_seed(7)
    for i in range(5):
        s, t = data.batch(i)
        v = terms_by_hand(P, s.x, s.y, t.x, dropout, separate)
        minimise(v["classification"] + 0.3 * v["balance"], optimizer_g, optimizer_f)
        v = terms_by_hand(P, s.x, s.y, t.x, dropout, separate)
        minimise(v["classification"] + 0.3 * v["balance"] - 0.7 * v["d"], optimizer_f)
        for _ in range(2):
            v = terms_by_hand(P, s.x if joint else None, None, t.x, dropout)
            minimise(0.7 * v["d"], optimizer_g)

    for name, p in method.named_parameters():
        assert_close(p.detach(), P[name].detach(), rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_step_b_parts_the_heads_and_step_c_brings_them_together() -> None:
    method, (s, t) = build(), batch()
    d = []
    for objective in method.step(s, t):
        d.append(terms_by_hand(copies(method), None, None, t.x)["d"].item())
        parameters = list(objective.over[0].parameters()) if objective.over else list(method.parameters())
        grads = torch.autograd.grad(objective.terms.get("discrepancy", sum(objective.terms.values())), parameters)
        with torch.no_grad():
            for p, g in zip(parameters, grads, strict=True):
                p -= 0.02 * g
    d.append(terms_by_hand(copies(method), None, None, t.x)["d"].item())
    before_b, before_c, *_, after = d[1:]
    assert before_b < before_c
    assert after < before_c


# After training


def test_predictions_are_the_mean_of_both_heads_without_dropout() -> None:
    method, x = build(dropout=0.5).eval(), normal(7, 6)
    f = method.net(x)
    one, two = (F.softmax(h(f), dim=1) for h in method.heads)
    assert not torch.allclose(one, two)
    assert_close(method.predict(x), (method.heads[0](f) + method.heads[1](f)) / 2)
    assert_close(method.predict(x), method.predict(x))


def test_one_hidden_layer_is_the_head_for_office() -> None:
    method = build(hidden_layers=1, hidden=256)
    assert [m.out_features for m in method.heads[0].layers if isinstance(m, nn.Linear)] == [256, K]
