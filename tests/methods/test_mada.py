"""MADA against a reference written out by hand: one discriminator after the other, without a gradient reversal."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from float64 import Rows, normal
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from acclimate.data.batches import Labelled, Pair, Unlabelled
from acclimate.errors import OptionError
from acclimate.methods.base import Objective
from acclimate.methods.mada import MADA
from acclimate.networks.network import Network
from acclimate.settings import Recipe
from acclimate.training import train
from by_hand import copies, gradients

K, D, N, B = 3, 4, 24, 8
RAMP = 2 / (1 + math.exp(-10 * 0.13)) - 1


def build(*, progress: float = 0.13, dropout: float = 0.0, **options: Any) -> MADA:
    net = Network(nn.Linear(6, 5), nn.Identity(), 5, bottleneck=D)
    method = MADA(net, K, hidden=7, dropout=dropout, **options).double()
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.3 * torch.randn_like(p))
    method.progress = progress
    return method


def batch(B_s: int = 8, B_t: int = 6) -> tuple[Labelled, Unlabelled]:
    x_s, x_t = normal(B_s, 6).requires_grad_(), (normal(B_t, 6) + 1).requires_grad_()
    return Labelled(x_s, torch.arange(B_s) % K, torch.arange(B_s)), Unlabelled(x_t, torch.arange(B_t))


def objective(method: MADA, s: Labelled, t: Unlabelled) -> Objective:
    (found,) = method.step(s, t)
    return found


# The reference


def feature(P: dict[str, Tensor], x: Tensor) -> Tensor:
    u = x @ P["net.encoder.weight"].T + P["net.encoder.bias"]
    u = u @ P["net.bottleneck.0.weight"].T + P["net.bottleneck.0.bias"]
    u = (u - u.mean(0)) / (((u - u.mean(0)) ** 2).mean(0) + 1e-5).sqrt()
    u = u * P["net.bottleneck.1.weight"] + P["net.bottleneck.1.bias"]
    return u * (u > 0)


def scores(P: dict[str, Tensor], f: Tensor) -> Tensor:
    z = f @ P["classifier.weight"].T + P["classifier.bias"]
    return z.exp() / z.exp().sum(1, keepdim=True)


def critic(P: dict[str, Tensor], k: int, a: Tensor) -> Tensor:
    """The logits of discriminator k."""
    for number in (0, 3):
        a = a @ P[f"critics.layers.{number}.weight"][k] + P[f"critics.layers.{number}.bias"][k, 0]
        a = a * (a > 0)
    return (a @ P["critics.layers.6.weight"][k] + P["critics.layers.6.bias"][k, 0])[:, 0]


def terms_by_hand(
    P: dict[str, Tensor], x_s: Tensor, y_s: Tensor, x_t: Tensor, *, detach: bool = False
) -> tuple[Tensor, Tensor]:
    """L_y and the sum of the K domain losses as all players see them; nothing is reversed."""
    n_s, n_t = len(x_s), len(x_t)
    f = feature(P, torch.cat([x_s, x_t]))
    p = scores(P, f)
    classification = -torch.stack([p[i, y_s[i]].log() for i in range(n_s)]).sum() / n_s
    domain = torch.zeros((), dtype=torch.float64)
    for k in range(K):
        share = p[:, k].detach() if detach else p[:, k]
        source = 1 / (1 + torch.exp(-critic(P, k, torch.stack([share[i] * f[i] for i in range(n_s + n_t)]))))
        domain = domain - 0.5 * (source[:n_s].log().sum() / n_s + (1 - source[n_s:]).log().sum() / n_t)
    return classification, domain


# The terms

every_option = pytest.mark.parametrize(("trade_off", "detach"), [(1.0, False), (0.3, False), (1.0, True)])


@every_option
def test_the_terms_and_their_gradients_are_those_of_the_min_max(trade_off: float, detach: bool) -> None:
    method, (s, t) = build(trade_off=trade_off, detach=detach), batch()
    found = objective(method, s, t)
    assert not found.over
    assert set(found.terms) == {"classification", "adversarial"}
    P = copies(method) | {"x_s": s.x.detach().requires_grad_(), "x_t": t.x.detach().requires_grad_()}
    classification, domain = terms_by_hand(P, P["x_s"], s.y, P["x_t"], detach=detach)
    assert_close(found.terms["classification"], classification)
    assert_close(found.terms["adversarial"], trade_off * domain)

    wanted_c, wanted_d = gradients(classification, P), gradients(domain, P)
    of = dict(method.named_parameters()) | {"x_s": s.x, "x_t": t.x}
    got_c, got_d = (gradients(found.terms[name], of) for name in ("classification", "adversarial"))
    for name in P:
        # The discriminators descend on the sum, whatever the ramp; network and classifier ascend on ramp times it.
        factor = trade_off * (1.0 if name.startswith("critics") else -RAMP)
        assert_close(got_c[name], wanted_c[name], rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
        assert_close(got_d[name], factor * wanted_d[name], rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_the_classifier_plays_against_the_discriminators_unless_detached() -> None:
    for detach in (False, True):
        method, (s, t) = build(detach=detach), batch()
        g = gradients(objective(method, s, t).terms["adversarial"], dict(method.named_parameters()))
        assert g["classifier.weight"].any() != detach
        assert g["net.encoder.weight"].any()


def test_the_source_is_shared_out_by_predictions_and_not_by_labels() -> None:
    method, (s, t) = build(), batch()
    other = s._replace(y=(s.y + 1) % K)
    assert_close(objective(method, s, t).terms["adversarial"], objective(method, other, t).terms["adversarial"])


def test_the_shares_of_the_classes_sum_to_the_feature() -> None:
    method, f, z = build(), normal(5, D), normal(5, K)
    a = method.by_class(f, z)
    assert a.shape == (5, K, D)
    assert_close(a.sum(1), f)
    assert_close(a[2, 1], (z[2, 1].exp() / z[2].exp().sum()) * f[2])


def test_discriminators_that_know_nothing_cost_k_times_log_2() -> None:
    method, (s, t) = build(), batch()
    with torch.no_grad():
        method.critics.layers[6].weight.zero_()
        method.critics.layers[6].bias.zero_()
    assert objective(method, s, t).terms["adversarial"].item() == pytest.approx(K * math.log(2))


def test_with_one_class_it_is_dann_with_its_discriminator() -> None:
    net = Network(nn.Identity(), nn.Identity(), 6, bottleneck=0)
    method, (s, t) = MADA(net, 1, hidden=7, dropout=0.0).double(), batch()
    d = critic(copies(method), 0, torch.cat([s.x, t.x]))
    expected = -0.5 * (torch.sigmoid(d[:8]).log().mean() + (1 - torch.sigmoid(d[8:])).log().mean())
    assert_close(objective(method, s._replace(y=s.y * 0), t).terms["adversarial"], expected)


def test_dropout_is_for_training() -> None:
    method, (s, t) = build(dropout=0.5), batch()
    first = objective(method, s, t).terms
    second = objective(method, s, t).terms
    assert first["classification"] == second["classification"]
    assert first["adversarial"] != second["adversarial"]
    method.eval()
    assert objective(method, s, t).terms["adversarial"] == objective(method, s, t).terms["adversarial"]
    assert MADA(Network(nn.Identity(), nn.Identity(), 6), K).critics.layers[2].p == 0.5
    with pytest.raises(OptionError, match="dropout of mada must be below 1"):
        build(dropout=1.0)


def test_gradcheck_of_both_terms_without_the_reversal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acclimate.methods.mada.reverse", lambda x, coefficient: x)
    method, (s, t) = build(), batch(4, 3)

    def terms(x_s: Tensor, x_t: Tensor) -> tuple[Tensor, ...]:
        return tuple(objective(method, s._replace(x=x_s), t._replace(x=x_t)).terms.values())

    assert torch.autograd.gradcheck(terms, (s.x, t.x))


# Training


def test_five_steps_of_training_are_five_steps_of_the_min_max_with_two_optimisers() -> None:
    recipe = Recipe(steps=5, batch_size=B, lr=0.05, weight_decay=1e-2)
    method = build(trade_off=0.7)
    data = Pair(Rows(normal(N, 6)), np.arange(N) % K, Rows(normal(N, 6) + 1), batch_size=B, seed=3)
    P = copies(method)
    for _ in train(method, data, recipe):
        pass

    of_critics = {n: p for n, p in P.items() if n.startswith("critics")}
    of_network = {n: p for n, p in P.items() if n not in of_critics}
    encoder = [p for n, p in of_network.items() if n.startswith("net.encoder")]
    others = [p for n, p in of_network.items() if not n.startswith("net.encoder")]
    shared = {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-2}
    network_optimizer = torch.optim.SGD([{"params": encoder}, {"params": others}], lr=1.0, **shared)
    critics_optimizer = torch.optim.SGD(list(of_critics.values()), lr=1.0, **shared)
    for i in range(5):
        lr, ramp = 0.05 * (1 + 10 * i / 5) ** -0.75, 2 / (1 + math.exp(-10 * i / 5)) - 1
        network_optimizer.param_groups[0]["lr"] = 0.1 * lr
        network_optimizer.param_groups[1]["lr"] = lr
        critics_optimizer.param_groups[0]["lr"] = lr
        s, t = data.batch(i)
        classification, domain = terms_by_hand(P, s.x, s.y, t.x)
        descent, ascent = gradients(classification, of_network), gradients(domain, of_network)
        for name, p in of_network.items():
            p.grad = descent[name] - ramp * 0.7 * ascent[name]
        for name, g in gradients(domain, of_critics).items():
            of_critics[name].grad = 0.7 * g
        network_optimizer.step()
        critics_optimizer.step()
    for name, p in method.named_parameters():
        assert_close(p.detach(), P[name].detach(), rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


# After training


def test_predictions_and_domain_logits_read_f(tmp_path: Any) -> None:
    method, (s, t) = build(dropout=0.5), batch()
    objective(method, s, t)  # BatchNorm's statistics move
    save_file(method.state_dict(), tmp_path / "m.safetensors")
    other = build(dropout=0.5)
    other.load_state_dict(load_file(tmp_path / "m.safetensors"))
    method.eval()
    other.eval()
    x, P = normal(7, 6), copies(method)
    f = method.net(x)
    z = method.predict(x)
    assert_close(z, f @ P["classifier.weight"].T + P["classifier.bias"])
    (name, logits), *others = method.domain_logits(x).items()
    assert (name, others) == ("f", [])
    p = scores(P, f)
    assert_close(logits, torch.stack([p[:, k] * critic(P, k, p[:, k : k + 1] * f) for k in range(K)]).sum(0))
    assert torch.equal(other.predict(x), z)
    assert torch.equal(other.domain_logits(x)["f"], logits)


def test_separable_domains_get_logits_of_their_sign() -> None:
    torch.manual_seed(0)
    net = Network(nn.Identity(), nn.Identity(), 6, bottleneck=0)
    method = MADA(net, K, hidden=16)
    optimizer = torch.optim.SGD(method.critics.parameters(), lr=0.1, momentum=0.9)
    s = Labelled(torch.randn(64, 6) + 1.5, torch.arange(64) % K, torch.arange(64))
    t = Unlabelled(torch.randn(64, 6) - 1.5, torch.arange(64))
    for _ in range(60):
        optimizer.zero_grad()
        objective(method, s, t).terms["adversarial"].backward()
        optimizer.step()
    method.eval()
    assert (method.domain_logits(s.x)["f"] > 0).float().mean() > 0.95
    assert (method.domain_logits(t.x)["f"] < 0).float().mean() > 0.95
