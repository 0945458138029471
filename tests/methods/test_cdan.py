"""CDAN and CDAN+E against a reference written out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from float64 import Rows, normal
from torch import Tensor, nn
from torch.testing import assert_close

from acclimate.data.batches import Labelled, Pair, Unlabelled
from acclimate.methods.cdan import CDAN
from acclimate.networks.network import Network
from acclimate.settings import Recipe
from acclimate.training import train
from by_hand import batch_norm, copies, features, gradients, layer

K, D, N, B = 3, 4, 24, 8
RAMP = 2 / (1 + math.exp(-10 * 0.13)) - 1
VARIANTS: list[dict[str, Any]] = [
    {"entropy": False},
    {},
    {"weights": "domain"},
    {"random": "on", "random_dim": 6},
    {"critic": "linear"},
]
every_variant = pytest.mark.parametrize("options", VARIANTS, ids=str)


def build(progress: float = 0.13, **options: Any) -> CDAN:
    net = Network(nn.Linear(6, 5), nn.Identity(), 5, bottleneck=D)
    method = CDAN(net, K, **{"hidden": 7, "trade_off": 0.7} | options).double()
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.3 * torch.randn_like(p))
        method.classifier.weight.mul_(3)  # predictions far from uniform, so that the weights w differ
    method.progress = progress
    return method


def batch(B_s: int = 8, B_t: int = 6) -> tuple[Labelled, Unlabelled]:
    x_s, x_t = normal(B_s, 6).requires_grad_(), (normal(B_t, 6) + 1).requires_grad_()
    return Labelled(x_s, torch.arange(B_s) % K, torch.arange(B_s)), Unlabelled(x_t, torch.arange(B_t))


# The reference


def joined(f: Tensor, g: Tensor, R: dict[str, Tensor]) -> Tensor:
    """h one sample and one class after the other."""
    n = range(len(f))
    if R:
        return torch.stack([(R["R_f"].T @ f[i]) * (R["R_g"].T @ g[i]) / math.sqrt(R["R_f"].shape[1]) for i in n])
    return torch.stack([torch.cat([g[i, k] * f[i] for k in range(K)]) for i in n])


def critic(P: dict[str, Tensor], h: Tensor) -> Tensor:
    """The probability of the source."""
    d = h
    if "critic.layers.6.weight" in P:
        for linear, norm in [(0, 1), (3, 4)]:
            d = layer(P, f"critic.layers.{linear}", d)
            d = batch_norm(d, P[f"critic.layers.{norm}.weight"], P[f"critic.layers.{norm}.bias"])
            d = d * (d > 0)
        d = layer(P, "critic.layers.6", d)[:, 0]
    else:
        d = layer(P, "critic.layers.0", d)[:, 0]
    return 1 / (1 + torch.exp(-d))


def terms_by_hand(
    P: dict[str, Tensor], R: dict[str, Tensor], x_s: Tensor, y_s: Tensor, x_t: Tensor, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """L_C and L_D as both players see them: nothing is reversed."""
    n_s, n_t = len(x_s), len(x_t)
    f = features(P, torch.cat([x_s, x_t]))
    z = layer(P, "classifier", f)
    p = z.exp() / z.exp().sum(1, keepdim=True)
    classification = -sum(p[i, y_s[i]].log() for i in range(n_s)) / n_s
    probability = critic(P, joined(f, p.detach(), R))
    bce = torch.cat([-probability[:n_s].log(), -(1 - probability[n_s:]).log()])
    w = 1 + torch.exp((p * p.log()).sum(1)) if options.get("entropy", True) else torch.ones(n_s + n_t)
    v = w.detach()
    if options.get("weights") == "domain":  # the gradient through w counts, that through its sums does not
        domain = 0.5 * (w[:n_s] @ bce[:n_s] / v[:n_s].sum() + w[n_s:] @ bce[n_s:] / v[n_s:].sum())
    else:
        domain = (v * bce).sum() / v.sum()
    return classification, domain


def matrices(method: CDAN) -> dict[str, Tensor]:
    return {name: R.clone() for name, R in method.named_buffers(recurse=False)}


# The terms


@every_variant
def test_the_terms_and_gradients_are_those_of_the_min_max(options: dict[str, Any]) -> None:
    method, (s, t) = build(**options), batch()
    (objective,) = method.step(s, t)
    assert not objective.over
    assert set(objective.terms) == {"classification", "adversarial"}
    P = copies(method) | {"x_s": s.x.detach().requires_grad_(), "x_t": t.x.detach().requires_grad_()}
    classification, domain = terms_by_hand(P, matrices(method), P["x_s"], s.y, P["x_t"], options)
    assert_close(objective.terms["classification"], classification)
    assert_close(objective.terms["adversarial"], 0.7 * domain)
    wanted_c, wanted_d = gradients(classification, P), gradients(domain, P)
    of = dict(method.named_parameters()) | {"x_s": s.x, "x_t": t.x}
    got_c, got_d = (gradients(objective.terms[name], of) for name in ("classification", "adversarial"))
    for name in P:
        # The critic descends on trade_off L_D, whatever the ramp; everything in front of it ascends on ramp times that.
        factor = 0.7 * (1.0 if name.startswith("critic") else -RAMP)
        assert_close(got_c[name], wanted_c[name], rtol=1e-8, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
        assert_close(got_d[name], factor * wanted_d[name], rtol=1e-8, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    reached = got_d["classifier.weight"].any()
    assert reached == (options.get("weights") == "domain"), "g is a constant; the authors' entropy is not"


def test_the_products_summed_over_the_classes_are_the_features() -> None:
    method, f, g = build(), normal(5, D), normal(5, K).softmax(1)
    assert_close(method.conditioned(f, g).view(5, K, D).sum(1), f)
    one_hot = torch.eye(K, dtype=torch.float64)[[0, 2]]
    h = method.conditioned(f[:2], one_hot).view(2, K, D)
    assert_close(h[0, 0], f[0])
    assert_close(h[1, 2], f[1])
    assert not h[0, 1:].any()
    assert not h[1, :2].any()


def test_the_random_maps_inner_products_are_those_of_the_full_products() -> None:
    method = build(random="on", random_dim=200_000)
    f, g = normal(2, D), normal(2, K).softmax(1)
    a, b = method.conditioned(f, g)
    assert_close(a @ b, (f[0] @ f[1]) * (g[0] @ g[1]), rtol=0, atol=0.1)
    assert_close(a @ a, (f[0] @ f[0]) * (g[0] @ g[0]), rtol=0.1, atol=0)


@pytest.mark.parametrize(
    ("random", "classes", "length"),
    [("auto", 1024, 4096), ("auto", 1025, 1024), ("off", 1025, 4100), ("on", 3, 1024), (None, 1025, 4100)],
)
def test_the_random_map_is_taken_on_request_or_for_products_longer_than_4096(
    random: Any, classes: int, length: int
) -> None:
    net = Network(nn.Linear(6, 5), nn.Identity(), 5, bottleneck=4)
    method = CDAN(net, classes, hidden=2, **({} if random is None else {"random": random}))
    assert method.critic.layers[0].in_features == length
    assert ("R_f" in method.state_dict()) == ("R_g" in method.state_dict()) == (length == 1024)


def test_the_random_matrices_are_saved_and_never_move() -> None:
    method, other = build(random="on", random_dim=6), build(random="on", random_dim=6)
    before = matrices(method)
    data = Pair(Rows(normal(N, 6)), np.arange(N) % K, Rows(normal(N, 6) + 1), batch_size=B)
    for _ in train(method, data, Recipe(steps=2, batch_size=B)):
        pass
    assert all(torch.equal(before[name], R) for name, R in matrices(method).items())
    other.load_state_dict(method.state_dict())
    x = normal(5, 6)
    assert torch.equal(method.eval().domain_logits(x)["h"], other.eval().domain_logits(x)["h"])


# The weights


def test_a_sure_sample_weighs_2_and_an_unsure_one_1_and_one_by_k() -> None:
    z = torch.tensor([[900.0, 0, 0], [1, 1, 1]], dtype=torch.float64)
    w = build().sample_weights(z, [1, 1])
    assert_close(w[0] / w[1], torch.tensor(2 / (1 + 1 / K), dtype=torch.float64))
    assert_close(w.sum(), torch.tensor(1.0, dtype=torch.float64))


def test_the_authors_weights_sum_to_a_half_in_each_domain_and_tlls_do_not() -> None:
    z = torch.cat([9 * normal(5, K), 0.1 * normal(3, K)])
    by_domain = build(weights="domain").sample_weights(z, [5, 3])
    assert_close(by_domain[:5].sum(), torch.tensor(0.5, dtype=torch.float64))
    assert_close(by_domain[5:].sum(), torch.tensor(0.5, dtype=torch.float64))
    assert build().sample_weights(z, [5, 3])[:5].sum() > 0.5


def test_the_weights_survive_predictions_that_are_certain() -> None:
    z = torch.tensor([[900.0, 0, 0], [0, -900, 0]], dtype=torch.float64, requires_grad=True)
    w = build(weights="domain").sample_weights(z, [1, 1])
    (g,) = torch.autograd.grad(w.sum(), z)
    assert g.isfinite().all()


# Training


@every_variant
def test_five_steps_of_training_are_five_steps_of_the_min_max_with_two_optimisers(options: dict[str, Any]) -> None:
    method = build(**options)
    data = Pair(Rows(normal(N, 6)), np.arange(N) % K, Rows(normal(N, 6) + 1), batch_size=B, seed=3)
    P, R = copies(method), matrices(method)
    for _ in train(method, data, Recipe(steps=5, batch_size=B, lr=0.05, backbone_lr=1.0, weight_decay=1e-2)):
        pass

    of_critic = {n: p for n, p in P.items() if n.startswith("critic")}
    of_network = {n: p for n, p in P.items() if n not in of_critic}
    shared = {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-2}
    network_optimizer = torch.optim.SGD(list(of_network.values()), lr=1.0, **shared)
    critic_optimizer = torch.optim.SGD(list(of_critic.values()), lr=1.0, **shared)
    for i in range(5):
        lr = 0.05 * (1 + 10 * i / 5) ** -0.75
        ramp = 2 / (1 + math.exp(-10 * i / 5)) - 1
        network_optimizer.param_groups[0]["lr"] = critic_optimizer.param_groups[0]["lr"] = lr
        s, t = data.batch(i)
        classification, domain = terms_by_hand(P, R, s.x, s.y, t.x, options)
        descent, ascent = gradients(classification, of_network), gradients(domain, of_network)
        for name, p in of_network.items():
            p.grad = descent[name] - ramp * 0.7 * ascent[name]
        for name, g in gradients(domain, of_critic).items():
            of_critic[name].grad = 0.7 * g
        network_optimizer.step()
        critic_optimizer.step()

    for name, p in method.named_parameters():
        assert_close(p.detach(), P[name].detach(), rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


# After training


@every_variant
def test_predictions_read_f_and_domain_logits_f_with_its_prediction(options: dict[str, Any]) -> None:
    method, x = build(**options).eval(), normal(7, 6)
    P = copies(method)
    u = layer(P, "net.bottleneck.0", layer(P, "net.encoder", x))  # at first, mean 0 and variance 1 are stored
    f = (u / (1 + 1e-5) ** 0.5 * P["net.bottleneck.1.weight"] + P["net.bottleneck.1.bias"]).relu()
    z = layer(P, "classifier", f)
    assert_close(method.predict(x), z)
    (name, logits), *others = method.domain_logits(x).items()
    assert (name, others) == ("h", [])
    assert logits.shape == (7,)
    if options.get("critic") == "linear":
        assert_close(logits, layer(P, "critic.layers.0", joined(f, z.softmax(1), {}))[:, 0])
