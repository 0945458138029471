"""SimNet against a reference written out by hand: the min-max with two optimisers, and the prototypes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from float64 import Rows, normal
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from acclimate.choices import Critic
from acclimate.data.batches import Labelled, Pair, Unlabelled
from acclimate.methods.simnet import SimNet, orthogonality
from acclimate.networks.network import Network
from acclimate.settings import Recipe
from acclimate.training import Checkpoint, train
from by_hand import copies, gradients, layer

K, D_F, N, B = 3, 4, 24, 8
CRITICS: list[Critic] = ["mlp", "linear"]
RAMP = 2 / (1 + math.exp(-10 * 0.13)) - 1


def build(critic: Critic = "linear", seed: int = 0, **options: Any) -> SimNet:
    torch.manual_seed(seed)
    net = Network(nn.Linear(6, 5), nn.Identity(), 5, bottleneck=D_F)
    method = SimNet(net, K, critic=critic, hidden=7, rank=6, **options).double()
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.3 * torch.randn_like(p))
    method.progress = 0.13
    return method


def data() -> Pair:
    torch.manual_seed(7)
    return Pair(Rows(normal(N, 6)), np.arange(N) % K, Rows(normal(N, 6) + 1), batch_size=B, seed=3)


def batch(y: Tensor | None = None) -> tuple[Labelled, Unlabelled]:
    x_s, x_t = normal(8, 6).requires_grad_(), (normal(6, 6) + 1).requires_grad_()
    y = torch.arange(8) % K if y is None else y
    return Labelled(x_s, y, torch.arange(8)), Unlabelled(x_t, torch.arange(6))


# The reference


def norm(P: dict[str, Tensor], name: str, u: Tensor) -> Tensor:
    mean = u.sum(0) / len(u)
    variance = ((u - mean) ** 2).sum(0) / len(u)
    return (u - mean) / (variance + 1e-5).sqrt() * P[f"{name}.weight"] + P[f"{name}.bias"]


def features(P: dict[str, Tensor], net: str, x: Tensor) -> Tensor:
    u = layer(P, f"{net}.bottleneck.0", layer(P, f"{net}.encoder", x))
    u = norm(P, f"{net}.bottleneck.1", u)
    return u * (u > 0)


def moved(old: Tensor, g: Tensor, y: Tensor, theta: float) -> Tensor:
    """The prototypes after a batch; a class that it lacks keeps its own."""
    mu = []
    for k in range(len(old)):
        of_class = [g[i] for i in range(len(y)) if y[i] == k]
        mu.append(theta * old[k] + (1 - theta) * sum(of_class) / len(of_class) if of_class else old[k])
    return torch.stack(mu)


def unit_rows(mu: Tensor) -> Tensor:
    return torch.stack([row / max((row**2).sum().sqrt(), 1e-12) for row in mu])


def terms_by_hand(
    P: dict[str, Tensor], old: Tensor, s: Labelled, x_t: Tensor, *, theta: float = 0.9, unit: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """CE, R, L_disc as both players see it, and the prototypes; nothing is weighted or reversed."""
    n_s = len(s.x)
    f = features(P, "net", torch.cat([s.x, x_t]))
    mu = moved(old, features(P, "prototype_net", s.x), s.y, theta)
    rows = unit_rows(mu) if unit else mu
    S = P["U.weight"].T @ P["V.weight"]  # (d, d)
    h = torch.stack([torch.stack([f[i] @ S @ rows[k] for k in range(len(mu))]) for i in range(n_s)])
    p = h.exp() / h.exp().sum(1, keepdim=True)
    classification = -torch.stack([p[i, s.y[i]].log() for i in range(n_s)]).sum() / n_s
    R = sum((rows[i] @ rows[j] - float(i == j)) ** 2 for i in range(len(mu)) for j in range(len(mu)))
    d = f
    if "critic.layers.6.weight" in P:
        for i in (0, 3):
            d = norm(P, f"critic.layers.{i + 1}", layer(P, f"critic.layers.{i}", d))
            d = d * (d > 0)
        d = layer(P, "critic.layers.6", d)[:, 0]
    else:
        d = layer(P, "critic.layers.0", d)[:, 0]
    D = 1 / (1 + torch.exp(-d))
    disc = -0.5 * (D[:n_s].log().sum() / n_s + (1 - D[n_s:]).log().sum() / len(x_t))
    return classification, R, disc, mu


# The terms


@pytest.mark.parametrize("options", [{}, {"unit": False}, {"theta": 0.3, "gamma": 0.2, "trade_off": 0.7}])
@pytest.mark.parametrize("critic", CRITICS)
def test_the_terms_and_gradients_are_those_of_the_equations(critic: Critic, options: dict[str, Any]) -> None:
    method, (s, t) = build(critic, **options), batch()
    method.prototypes = normal(K, D_F)
    old = method.prototypes.clone()
    gamma, trade_off = options.get("gamma", 0.01), options.get("trade_off", 0.5)
    (objective,) = method.step(s, t)
    assert not objective.over
    P = copies(method) | {"x_s": s.x.detach().requires_grad_(), "x_t": t.x.detach().requires_grad_()}
    classification, R, disc, mu = terms_by_hand(
        P,
        old,
        s._replace(x=P["x_s"]),
        P["x_t"],
        theta=options.get("theta", 0.9),
        unit=options.get("unit", True),
    )
    assert_close(method.prototypes, mu.detach())
    of = dict(method.named_parameters()) | {"x_s": s.x, "x_t": t.x}
    wanted = {"classification": classification, "orthogonality": gamma * R, "adversarial": trade_off * disc}
    assert objective.terms.keys() == wanted.keys()
    for term, value in wanted.items():
        assert_close(objective.terms[term], value)
        got, grads = gradients(objective.terms[term], of), gradients(value, P)
        for name in P:
            factor = 1.0 if term != "adversarial" or name.startswith("critic") else -RAMP
            assert_close(got[name], factor * grads[name], rtol=1e-8, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_each_term_reaches_what_it_should() -> None:
    method, (s, t) = build(), batch()
    (objective,) = method.step(s, t)
    of = dict(method.named_parameters())
    reaches = {
        term: {n.split(".")[0] for n, g in gradients(value, of).items() if g.abs().max() > 1e-12}
        for term, value in objective.terms.items()
    }
    assert reaches == {
        "classification": {"net", "prototype_net", "U", "V"},
        "orthogonality": {"prototype_net"},
        "adversarial": {"net", "critic"},
    }


def test_prototypes_never_see_the_target() -> None:
    method, other, (s, t) = build(), build(), batch()
    list(method.step(s, t))
    list(other.step(s, t._replace(x=t.x * 7 + 3)))
    for (name, a), b in zip(method.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b) or name.startswith("net.")  # its BatchNorm does


# Prototypes


def test_a_class_that_a_batch_lacks_keeps_its_prototype_and_it_gives_no_gradient() -> None:
    method, (s, t) = build(gamma=1.0), batch(torch.tensor([0, 0, 0, 2, 2, 0, 0, 2]))
    method.prototypes = normal(K, D_F)
    old = method.prototypes.clone()
    (objective,) = method.step(s, t)
    assert torch.equal(method.prototypes[1], old[1])
    assert not torch.equal(method.prototypes[0], old[0])
    assert not method.prototypes.requires_grad
    assert objective.terms["orthogonality"].requires_grad


def test_a_first_batch_alone_makes_the_prototypes_whatever_theta() -> None:
    """Of length 1, they do not show that they moved away from zero by a part."""
    s, t = batch()
    a, b = build(theta=0.9), build(theta=0.0)
    (first,), (second,) = a.step(s, t), b.step(s, t)
    assert_close(first.terms["classification"], second.terms["classification"])


def test_a_class_not_seen_yet_has_similarity_0() -> None:
    method, (s, t) = build(), batch(torch.zeros(8, dtype=torch.int64))
    (objective,) = method.step(s, t)
    assert objective.terms["classification"].isfinite()
    grads = gradients(sum(objective.terms.values()), dict(method.named_parameters()))
    assert all(g.isfinite().all() for g in grads.values())
    assert not method.predict(normal(5, 6))[:, 1:].any()


def test_orthogonality_is_0_for_orthonormal_rows_even_fewer_than_their_length() -> None:
    rows, _ = torch.linalg.qr(normal(7, 3))
    assert orthogonality(rows.T).item() == pytest.approx(0, abs=1e-24)
    assert orthogonality(torch.ones(3, 1, dtype=torch.float64)).item() == 6
    assert orthogonality(2 * torch.eye(3, dtype=torch.float64)).item() == 27
    assert torch.autograd.gradcheck(orthogonality, normal(3, 5).requires_grad_())


def test_after_training_the_prototypes_are_the_means_over_the_whole_source_in_evaluation_mode() -> None:
    method, pair = build(), data()
    for _ in train(method, pair, Recipe(steps=5, batch_size=B)):
        pass
    assert all(module.training for module in method.modules())
    method.eval()
    g = method.prototype_net(pair.source.rows)
    for k in range(K):
        assert_close(method.prototypes[k], g[pair.labels == k].mean(0).detach())
    assert not method.prototypes.requires_grad


def test_predictions_are_the_similarities_to_the_stored_prototypes(tmp_path: Path) -> None:
    method, x = build(), normal(7, 6)
    for _ in train(method, data(), Recipe(steps=5, batch_size=B)):
        pass
    method.eval()
    rows = unit_rows(method.prototypes)
    wanted = method.net(x) @ method.U.weight.T @ method.V.weight @ rows.T
    assert_close(method.predict(x), wanted)
    assert_close(method.domain_logits(x)["f"], method.critic(method.net(x)))
    save_file(method.state_dict(), tmp_path / "m")
    other = build(seed=1).eval()
    other.load_state_dict(load_file(tmp_path / "m"))
    assert torch.equal(other.predict(x), method.predict(x))


# Training


@pytest.mark.parametrize("critic", CRITICS)
def test_five_steps_of_training_are_five_steps_of_the_min_max_with_two_optimisers(critic: Critic) -> None:
    method = build(critic, gamma=0.05, trade_off=0.7)
    P, old = copies(method), torch.zeros(K, D_F, dtype=torch.float64)
    for _ in train(method, data(), Recipe(steps=5, batch_size=B, lr=0.05, weight_decay=1e-2)):
        pass

    of_critic = {n: p for n, p in P.items() if n.startswith("critic")}
    others = {n: p for n, p in P.items() if n not in of_critic}
    slow = [p for n, p in others.items() if ".encoder." in n]  # of both networks
    fast = [p for n, p in others.items() if ".encoder." not in n]
    shared = {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-2}
    player = torch.optim.SGD([{"params": slow}, {"params": fast}], lr=1.0, **shared)
    opponent = torch.optim.SGD(list(of_critic.values()), lr=1.0, **shared)
    pair = data()
    for i in range(5):
        lr, ramp = 0.05 * (1 + 10 * i / 5) ** -0.75, 2 / (1 + math.exp(-10 * i / 5)) - 1
        player.param_groups[0]["lr"], player.param_groups[1]["lr"] = 0.1 * lr, lr
        opponent.param_groups[0]["lr"] = lr
        s, t = pair.batch(i)
        classification, R, disc, mu = terms_by_hand(P, old, s, t.x)
        old = mu.detach()
        descent, ascent = gradients(classification + 0.05 * R, others), gradients(disc, others)
        for name, p in others.items():
            p.grad = descent[name] - ramp * 0.7 * ascent[name]
        for name, g in gradients(disc, of_critic).items():
            of_critic[name].grad = 0.7 * g
        player.step()
        opponent.step()

    for name, p in method.named_parameters():
        assert_close(p.detach(), P[name].detach(), rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("stop", [2, 5])
def test_a_resumed_run_ends_with_the_same_bits(stop: int, tmp_path: Path) -> None:
    unbroken, resumed = build(), build(seed=5)
    for progress in train(unbroken, data(), Recipe(steps=5, batch_size=B)):
        if progress.step == stop:
            progress.checkpoint().save(tmp_path / "at")
    for _ in train(resumed, data(), Recipe(steps=5, batch_size=B), Checkpoint.load(tmp_path / "at")):
        pass
    wanted = unbroken.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in resumed.state_dict().items())


def test_the_two_networks_start_alike_and_share_nothing() -> None:
    method = SimNet(Network(nn.Linear(6, 5), nn.Identity(), 5, bottleneck=D_F), K)
    assert method.networks == (method.net, method.prototype_net)
    for a, b in zip(method.net.parameters(), method.prototype_net.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.data_ptr() != b.data_ptr()
