"""DANN against a reference written out by hand, without a gradient reversal: the min-max with two optimisers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from float64 import Rows, normal
from torch import Tensor, nn
from torch.testing import assert_close

from acclimate.choices import Critic
from acclimate.data.batches import Labelled, Pair, Unlabelled
from acclimate.methods.dann import DANN
from acclimate.networks.network import Network
from acclimate.settings import Recipe
from acclimate.training import train
from by_hand import batch_norm, copies, gradients, layer

K, N, B = 3, 24, 8
CRITICS: list[Critic] = ["mlp", "linear"]
RAMP = 2 / (1 + math.exp(-10 * 0.13)) - 1


def build(critic: Critic = "mlp", *, trade_off: float = 1.0, progress: float = 0.13) -> DANN:
    net = Network(nn.Linear(6, 5), nn.Identity(), 5, bottleneck=4)
    method = DANN(net, K, critic=critic, hidden=7, trade_off=trade_off).double()
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.3 * torch.randn_like(p))
    method.progress = progress
    return method


def batch(B_s: int = 8, B_t: int = 6) -> tuple[Labelled, Unlabelled]:
    x_s, x_t = normal(B_s, 6).requires_grad_(), (normal(B_t, 6) + 1).requires_grad_()
    return Labelled(x_s, torch.arange(B_s) % K, torch.arange(B_s)), Unlabelled(x_t, torch.arange(B_t))


# The reference


def terms_by_hand(P: dict[str, Tensor], x_s: Tensor, y_s: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
    """L_C and L_D as both players see them; nothing is reversed."""
    n_s, n_t = len(x_s), len(x_t)
    u = layer(P, "net.bottleneck.0", layer(P, "net.encoder", torch.cat([x_s, x_t])))
    u = batch_norm(u, P["net.bottleneck.1.weight"], P["net.bottleneck.1.bias"])
    f = u * (u > 0)
    z = layer(P, "classifier", f[:n_s])
    p = z.exp() / z.exp().sum(1, keepdim=True)
    classification = -torch.stack([p[i, y_s[i]].log() for i in range(n_s)]).sum() / n_s
    d = f
    if "critic.layers.6.weight" in P:
        for linear, norm in [(0, 1), (3, 4)]:
            d = layer(P, f"critic.layers.{linear}", d)
            d = batch_norm(d, P[f"critic.layers.{norm}.weight"], P[f"critic.layers.{norm}.bias"])
            d = d * (d > 0)
        d = layer(P, "critic.layers.6", d)[:, 0]
    else:
        d = layer(P, "critic.layers.0", d)[:, 0]
    probability = 1 / (1 + torch.exp(-d))  # of the source
    domain = -0.5 * (probability[:n_s].log().sum() / n_s + (1 - probability[n_s:]).log().sum() / n_t)
    return classification, domain


# The terms


@pytest.mark.parametrize("trade_off", [1.0, 0.1])
@pytest.mark.parametrize("critic", CRITICS)
def test_the_terms_are_those_of_the_equations(critic: Critic, trade_off: float) -> None:
    method, (s, t) = build(critic, trade_off=trade_off), batch()
    (objective,) = method.step(s, t)
    classification, domain = terms_by_hand(copies(method), s.x, s.y, t.x)
    assert not objective.over
    assert set(objective.terms) == {"classification", "adversarial"}
    assert_close(objective.terms["classification"], classification)
    assert_close(objective.terms["adversarial"], trade_off * domain)


@pytest.mark.parametrize("trade_off", [1.0, 0.1])
@pytest.mark.parametrize("critic", CRITICS)
def test_the_gradients_are_those_of_the_min_max(critic: Critic, trade_off: float) -> None:
    method, (s, t) = build(critic, trade_off=trade_off), batch()
    (objective,) = method.step(s, t)
    P = copies(method) | {"x_s": s.x.detach().requires_grad_(), "x_t": t.x.detach().requires_grad_()}
    classification, domain = terms_by_hand(P, P["x_s"], s.y, P["x_t"])
    wanted_c, wanted_d = gradients(classification, P), gradients(domain, P)
    of = dict(method.named_parameters()) | {"x_s": s.x, "x_t": t.x}
    got_c, got_d = (gradients(objective.terms[name], of) for name in ("classification", "adversarial"))
    for name in P:
        # The critic descends on trade_off L_D, whatever the ramp; the network ascends on ramp trade_off L_D.
        factor = trade_off * (1.0 if name.startswith("critic") else -RAMP)
        assert_close(got_c[name], wanted_c[name], rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
        assert_close(got_d[name], factor * wanted_d[name], rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("critic", CRITICS)
def test_each_term_leaves_the_other_terms_head_alone(critic: Critic) -> None:
    method, (s, t) = build(critic), batch()
    (objective,) = method.step(s, t)
    of = dict(method.named_parameters())
    for name, g in gradients(objective.terms["classification"], of).items():
        assert g.any() != name.startswith("critic"), name
    for name, g in gradients(objective.terms["adversarial"], of).items():
        assert not (name.startswith("classifier") and g.any()), name


def test_at_the_start_the_network_gets_no_adversarial_gradient_and_the_critic_does() -> None:
    method, (s, t) = build(progress=0.0), batch()
    (objective,) = method.step(s, t)
    for name, g in gradients(objective.terms["adversarial"], dict(method.named_parameters())).items():
        if name.startswith("net"):
            assert not g.any(), name
    assert method.critic.layers[0].weight.requires_grad
    assert gradients(objective.terms["adversarial"], {"w": method.critic.layers[0].weight})["w"].any()


def test_both_domains_share_the_networks_batch_norm_statistics() -> None:
    method, (s, t) = build(), batch()
    P = copies(method)
    list(method.step(s, t))
    u = layer(P, "net.bottleneck.0", layer(P, "net.encoder", torch.cat([s.x, t.x]))).detach()
    norm = method.net.bottleneck[1]
    assert norm.num_batches_tracked == 1
    assert_close(norm.running_mean, 0.1 * u.mean(0))
    assert_close(norm.running_var, 0.9 + 0.1 * u.var(0, unbiased=True))


# Training


@pytest.mark.parametrize("schedule", ["paper", "tll", "constant"])
@pytest.mark.parametrize("critic", CRITICS)
def test_five_steps_of_training_are_five_steps_of_the_min_max_with_two_optimisers(
    critic: Critic, schedule: Any
) -> None:
    recipe = Recipe(steps=5, batch_size=B, lr=0.05, weight_decay=1e-2, schedule=schedule)
    method = build(critic, trade_off=0.7)
    data = Pair(Rows(normal(N, 6)), np.arange(N) % K, Rows(normal(N, 6) + 1), batch_size=B, seed=3)
    P = copies(method)
    for _ in train(method, data, recipe):
        pass

    of_critic = {n: p for n, p in P.items() if n.startswith("critic")}
    of_network = {n: p for n, p in P.items() if n not in of_critic}
    encoder = [p for n, p in of_network.items() if n.startswith("net.encoder")]
    others = [p for n, p in of_network.items() if not n.startswith("net.encoder")]
    shared = {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-2}
    network_optimizer = torch.optim.SGD([{"params": encoder}, {"params": others}], lr=1.0, **shared)
    critic_optimizer = torch.optim.SGD(list(of_critic.values()), lr=1.0, **shared)
    for i in range(5):
        clock = i / 10_000 if schedule == "tll" else i / 5
        lr = 0.05 * (1.0 if schedule == "constant" else (1 + 10 * clock) ** -0.75)
        ramp = 2 / (1 + math.exp(-10 * clock)) - 1
        network_optimizer.param_groups[0]["lr"] = 0.1 * lr  # the pretrained encoder
        network_optimizer.param_groups[1]["lr"] = lr
        critic_optimizer.param_groups[0]["lr"] = lr
        s, t = data.batch(i)
        classification, domain = terms_by_hand(P, s.x, s.y, t.x)
        descent, ascent = gradients(classification, of_network), gradients(domain, of_network)
        for name, p in of_network.items():
            p.grad = descent[name] - ramp * 0.7 * ascent[name]
        for name, g in gradients(domain, of_critic).items():
            of_critic[name].grad = 0.7 * g
        network_optimizer.step()
        critic_optimizer.step()

    for name, p in method.named_parameters():
        assert_close(p.detach(), P[name].detach(), rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


# Schedules


@pytest.mark.parametrize(("step", "ramp"), [(0, 0.0), (1000, 0.4621), (2000, 0.762), (5000, 0.9866), (10_000, 0.9999)])
@pytest.mark.parametrize("steps", [100, 1500, 20_000])
def test_on_tlls_clock_the_ramp_depends_on_the_step_alone(step: int, ramp: float, steps: int) -> None:
    method = build(progress=Recipe(steps=steps, schedule="tll").progress(step))
    assert method.progress == step / 10_000
    assert method.ramp == pytest.approx(ramp, abs=5e-4 if step == 2000 else 6e-5)


@pytest.mark.parametrize(("done", "ramp"), [(0.0, 0.0), (0.1, 0.4621), (0.5, 0.9866), (1.0, 0.9999)])
@pytest.mark.parametrize("steps", [100, 1500, 20_000])
def test_on_the_papers_clock_the_ramp_depends_on_the_part_of_the_run(done: float, ramp: float, steps: int) -> None:
    method = build(progress=Recipe(steps=steps, schedule="paper").progress(round(done * steps)))
    assert method.ramp == pytest.approx(ramp, abs=6e-5)


def test_the_ramp_reads_the_counter_before_it_is_incremented() -> None:
    method = build()
    data = Pair(Rows(normal(N, 6)), np.arange(N) % K, Rows(normal(N, 6)), batch_size=B)
    seen = [method.progress for _ in train(method, data, Recipe(steps=4, batch_size=B))]
    assert seen == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize("schedule", ["paper", "tll"])
def test_half_way_through_10_000_steps_the_learning_rate_is_the_published_one(schedule: Any) -> None:
    recipe = Recipe(steps=10_000, lr=0.01, schedule=schedule)
    assert recipe.lr * recipe.lr_factor(5000) == pytest.approx(0.002608, abs=5e-7)


@pytest.mark.parametrize(
    ("step", "lr"), [(0, 0.01), (1000, 0.00595), (5000, 0.00261), (10_000, 0.00166), (20_000, 0.00102)]
)
def test_tlls_learning_rate_depends_on_the_step_alone(step: int, lr: float) -> None:
    recipe = Recipe(steps=20_000, lr=0.01, schedule="tll")
    assert recipe.lr * recipe.lr_factor(step) == pytest.approx(lr, abs=5e-6)


# After training


@pytest.mark.parametrize("critic", CRITICS)
def test_predictions_and_domain_logits_read_f(critic: Critic) -> None:
    method, x = build(critic).eval(), normal(7, 6)
    P = copies(method)
    u = layer(P, "net.bottleneck.0", layer(P, "net.encoder", x))  # at first, mean 0 and variance 1 are stored
    f = (u / (1 + 1e-5) ** 0.5 * P["net.bottleneck.1.weight"] + P["net.bottleneck.1.bias"]).relu()
    assert_close(method.predict(x), layer(P, "classifier", f))
    (name, logits), *others = method.domain_logits(x).items()
    assert (name, others) == ("f", [])
    assert logits.shape == (7,)
    if critic == "linear":
        assert_close(logits, layer(P, "critic.layers.0", f)[:, 0])
