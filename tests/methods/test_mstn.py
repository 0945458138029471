"""MSTN: its centroids and semantic loss against a reference written out by hand, its other terms against DANN's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from float64 import Rows, normal
from torch import Tensor, nn
from torch.testing import assert_close

from acclimate.choices import Critic, Reduction
from acclimate.data.batches import Labelled, Pair, Unlabelled
from acclimate.methods.dann import DANN
from acclimate.methods.mstn import MSTN
from acclimate.networks.network import Network
from acclimate.settings import Recipe
from acclimate.training import train
from by_hand import copies, gradients

K, D = 4, 5
CRITICS: list[Critic] = ["mlp", "linear"]
REDUCTIONS: list[Reduction] = ["mean", "sum"]
RAMP = 2 / (1 + math.exp(-10 * 0.13)) - 1


def network() -> Network:
    return Network(nn.Linear(6, 3), nn.Identity(), 3, bottleneck=D)


def build(
    critic: Critic = "linear",
    *,
    trade_off: float = 1.0,
    semantic_weight: float = 1.0,
    theta: float = 0.7,
    reduction: Reduction = "mean",
    progress: float = 0.13,
) -> MSTN:
    method = MSTN(
        network(),
        K,
        critic=critic,
        hidden=7,
        trade_off=trade_off,
        semantic_weight=semantic_weight,
        theta=theta,
        reduction=reduction,
    ).double()
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.5 * torch.randn_like(p))
    method.progress = progress
    return method


def batch(y_s: list[int], B_t: int = 6) -> tuple[Labelled, Unlabelled]:
    x_s, x_t = normal(len(y_s), 6).requires_grad_(), (normal(B_t, 6) + 0.5).requires_grad_()
    return Labelled(x_s, torch.tensor(y_s), torch.arange(len(y_s))), Unlabelled(x_t, torch.arange(B_t))


def remembering(method: MSTN) -> MSTN:
    """With centroids of earlier batches."""
    method.centroids.C_s.normal_()
    method.centroids.C_t.normal_()
    return method


# The reference


def features(P: dict[str, Tensor], x: Tensor) -> Tensor:
    h = x @ P["net.encoder.weight"].T + P["net.encoder.bias"]
    u = h @ P["net.bottleneck.0.weight"].T + P["net.bottleneck.0.bias"]
    mean = u.sum(0) / len(u)
    variance = ((u - mean) ** 2).sum(0) / len(u)
    u = (u - mean) / (variance + 1e-5).sqrt() * P["net.bottleneck.1.weight"] + P["net.bottleneck.1.bias"]
    return u * (u > 0)


def centroids_by_hand(
    P: dict[str, Tensor], s: Labelled, x_s: Tensor, x_t: Tensor, old: tuple[Tensor, Tensor], theta: float
) -> tuple[Tensor, Tensor]:
    """Class by class: theta C + (1 - theta) mean of f with this label, or this pseudo-label; else C."""
    f = features(P, torch.cat([x_s, x_t]))
    f_s, f_t = f[: len(x_s)], f[len(x_s) :]
    y_t = (f_t @ P["classifier.weight"].T + P["classifier.bias"]).max(1).indices

    def moved(C: Tensor, f: Tensor, y: Tensor) -> Tensor:
        rows = []
        for k in range(K):
            members = [f[i] for i in range(len(f)) if int(y[i]) == k]
            rows.append(theta * C[k] + (1 - theta) * sum(members) / len(members) if members else C[k])
        return torch.stack(rows)

    return moved(old[0], f_s, s.y), moved(old[1], f_t, y_t)


# The semantic loss


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("theta", [0.7, 0.9])
def test_the_semantic_loss_and_its_gradients_are_those_of_the_equations(theta: float, reduction: Reduction) -> None:
    method = remembering(build(theta=theta, reduction=reduction, semantic_weight=0.4))
    old = method.centroids.C_s.clone(), method.centroids.C_t.clone()
    s, t = batch([0, 1, 1, 3, 0, 1, 0])  # no class 2
    P = copies(method) | {"x_s": s.x.detach().requires_grad_(), "x_t": t.x.detach().requires_grad_()}
    C_s, C_t = centroids_by_hand(P, s, P["x_s"], P["x_t"], old, theta)
    distance = sum((C_s[k, j] - C_t[k, j]) ** 2 for k in range(K) for j in range(D))
    expected = RAMP * 0.4 * distance / (K * D if reduction == "mean" else 1)

    (objective,) = method.step(s, t)
    assert not objective.over
    assert set(objective.terms) == {"classification", "adversarial", "semantic"}
    assert_close(objective.terms["semantic"], expected)
    wanted = gradients(expected, P)
    got = gradients(objective.terms["semantic"], dict(method.named_parameters()) | {"x_s": s.x, "x_t": t.x})
    for name in wanted:
        assert_close(got[name], wanted[name], rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    assert got["net.encoder.weight"].any()
    assert not any(got[name].any() for name in got if name.startswith(("classifier", "critic")))


def test_the_sum_is_classes_times_channels_the_mean_in_value_and_gradient() -> None:
    mean, total = remembering(build()), remembering(build(reduction="sum"))
    total.load_state_dict(mean.state_dict())
    s, t = batch([0, 1, 2, 3, 0])
    (a,), (b,) = mean.step(s, t), total.step(s, t)
    assert_close(b.terms["semantic"], K * D * a.terms["semantic"])
    of_mean = gradients(a.terms["semantic"], dict(mean.named_parameters()))
    of_sum = gradients(b.terms["semantic"], dict(total.named_parameters()))
    for name in of_mean:
        assert_close(of_sum[name], K * D * of_mean[name])


def test_at_the_start_the_semantic_loss_weighs_nothing_yet_the_centroids_move() -> None:
    method, (s, t) = build(progress=0.0), batch([0, 1, 2, 3])
    (objective,) = method.step(s, t)
    assert objective.terms["semantic"].item() == 0
    assert method.centroids.C_s.any()
    assert method.centroids.C_t.any()


def test_the_first_source_centroid_is_three_tenths_of_the_batch_mean() -> None:
    method, (s, t) = build(), batch([2, 2, 2])
    f = features(copies(method), torch.cat([s.x, t.x])).detach()
    list(method.step(s, t))
    assert_close(method.centroids.C_s[2], 0.3 * f[:3].mean(0))
    assert not method.centroids.C_s[[0, 1, 3]].any()


def test_centroids_over_several_batches_that_lack_classes_are_the_hand_computed_ones() -> None:
    method = build()
    P, C = copies(method), (torch.zeros(K, D).double(), torch.zeros(K, D).double())
    seen_pseudo_labels = set()
    for y_s in ([0, 0, 1], [2, 1, 1], [3, 3, 3], [0, 2, 0]):
        s, t = batch(y_s)
        old = C
        C_s, C_t = centroids_by_hand(P, s, s.x, t.x, C, 0.7)
        C = C_s.detach(), C_t.detach()
        seen_pseudo_labels.add(tuple((C[1] != old[1]).any(1).tolist()))
        list(method.step(s, t))
        assert_close(method.centroids.C_s, C[0])
        assert_close(method.centroids.C_t, C[1])
    assert not all(all(present) for present in seen_pseudo_labels)  # the target lacked classes as well


def test_the_gradient_flows_through_the_current_batch_alone() -> None:
    method = build()
    first, second = batch([0, 1, 2, 3]), batch([0, 1, 2, 3])
    list(method.step(*first))
    assert not method.centroids.C_s.requires_grad
    assert not method.centroids.C_t.requires_grad
    (objective,) = method.step(*second)
    of = {"first s": first[0].x, "first t": first[1].x, "second s": second[0].x, "second t": second[1].x}
    got = gradients(objective.terms["semantic"], of)
    assert {name for name in got if got[name].any()} == {"second s", "second t"}


def test_the_centroids_are_saved_and_restored() -> None:
    method = build()
    for _ in range(3):
        list(method.step(*batch([0, 1, 2, 3])))
    assert {"centroids.C_s", "centroids.C_t"} <= set(method.state_dict())
    restored = build()
    restored.load_state_dict(method.state_dict())
    s, t = batch([0, 1, 2, 3])
    (a,), (b,) = method.step(s, t), restored.step(s, t)
    assert a.terms["semantic"] > 0
    for name in a.terms:
        assert torch.equal(a.terms[name], b.terms[name])
    assert torch.equal(method.centroids.C_t, restored.centroids.C_t)


# The terms it shares with DANN


@pytest.mark.parametrize("trade_off", [1.0, 0.1])
@pytest.mark.parametrize("critic", CRITICS)
def test_the_classification_and_adversarial_terms_are_danns_in_value_and_gradient(
    critic: Critic, trade_off: float
) -> None:
    mstn = remembering(build(critic, trade_off=trade_off))
    dann = DANN(network(), K, critic=critic, hidden=7, trade_off=trade_off).double()
    dann.progress = mstn.progress
    dann.load_state_dict({name: v for name, v in mstn.state_dict().items() if not name.startswith("centroids")})
    s, t = batch([0, 1, 2, 3, 0])
    (of_mstn,), (of_dann,) = mstn.step(s, t), dann.step(s, t)
    for name in ("classification", "adversarial"):
        assert_close(of_mstn.terms[name], of_dann.terms[name], rtol=1e-12, atol=0)
        got = gradients(of_mstn.terms[name], dict(mstn.named_parameters()) | {"x_s": s.x, "x_t": t.x})
        wanted = gradients(of_dann.terms[name], dict(dann.named_parameters()) | {"x_s": s.x, "x_t": t.x})
        assert got.keys() == wanted.keys()
        for n in wanted:
            assert_close(got[n], wanted[n], rtol=1e-12, atol=1e-14)


def test_without_the_semantic_loss_training_is_danns() -> None:
    mstn = build(semantic_weight=0.0)
    dann = DANN(network(), K, critic="linear").double()
    dann.load_state_dict({name: v for name, v in mstn.state_dict().items() if not name.startswith("centroids")})
    data = Pair(Rows(normal(24, 6)), np.arange(24) % K, Rows(normal(24, 6)), batch_size=8)
    for method in (mstn, dann):
        for _ in train(method, data, Recipe(steps=5, batch_size=8)):
            pass
    for name, p in dann.named_parameters():
        assert_close(mstn.get_parameter(name), p, rtol=0, atol=1e-12)


@pytest.mark.parametrize("critic", CRITICS)
def test_predictions_and_domain_logits_read_f(critic: Critic) -> None:
    method, x = build(critic).eval(), normal(7, 6)
    f = method.net(x)
    P = copies(method)
    assert_close(method.predict(x), f @ P["classifier.weight"].T + P["classifier.bias"])
    logits = method.domain_logits(x)
    assert set(logits) == {"f"}
    assert logits["f"].shape == (7,)
    if critic == "linear":
        assert_close(logits["f"], (f @ P["critic.layers.0.weight"].T + P["critic.layers.0.bias"])[:, 0])
