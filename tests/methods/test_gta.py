"""GTA against its four objectives written out by hand, with four optimisers."""

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
from acclimate.estimator import AdaptiveClassifier
from acclimate.methods.gta import GTA
from acclimate.networks.network import Network
from acclimate.settings import Recipe
from acclimate.training import train
from by_hand import copies

K, N, B, S, NOISE, SIDE = 3, 12, 6, 16, 5, 8
PLAYERS = ("critic", "generator", "classifier", "net")


def build(channels: int = 3, **options: Any) -> GTA:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(channels * SIDE * SIDE, 5))
    net = Network(encoder, nn.Identity(), 5, bottleneck=4, mean=(0.4,) * channels, std=(0.3,) * channels)
    method = GTA(net, K, **{"image_size": S, "width": 2, "noise": NOISE, **options}).double()
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return method


def images(n: int = N, channels: int = 3) -> Tensor:
    return normal(n, channels, SIDE, SIDE)


def batch(channels: int = 3) -> tuple[Labelled, Unlabelled]:
    x_s, x_t = images(B, channels), images(B, channels) + 0.5
    return Labelled(x_s, torch.arange(B) % K, torch.arange(B)), Unlabelled(x_t, torch.arange(B))


# The reference


def batch_norm(P: dict[str, Tensor], name: str, u: Tensor) -> Tensor:
    over, shape = ((0, 2, 3), (1, -1, 1, 1)) if u.ndim == 4 else ((0,), (1, -1))
    mean = u.mean(over, keepdim=True)
    variance = ((u - mean) ** 2).mean(over, keepdim=True)
    return (u - mean) / (variance + 1e-5).sqrt() * P[f"{name}.weight"].view(shape) + P[f"{name}.bias"].view(shape)


def linear(P: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ P[f"{name}.weight"].T + P[f"{name}.bias"]


def features(P: dict[str, Tensor], x_s: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
    u = linear(P, "net.encoder.1", torch.cat([x_s, x_t]).flatten(1))
    f = batch_norm(P, "net.bottleneck.1", linear(P, "net.bottleneck.0", u)).clamp(min=0)
    return f[: len(x_s)], f[len(x_s) :]


def generated(P: dict[str, Tensor], f: Tensor, z: Tensor, labels: list[int]) -> Tensor:
    one_hot = torch.zeros(len(f), K + 1, dtype=torch.float64)
    for i, label in enumerate(labels):
        one_hot[i, label] = 1
    h = torch.cat([f, z, one_hot], 1)[:, :, None, None]
    project = P["generator.layers.0.weight"]  # (channels x 4 x 4, code)
    h = F.conv_transpose2d(h, project.T.reshape(project.shape[1], -1, 4, 4))
    h = batch_norm(P, "generator.layers.2", h).clamp(min=0)
    h = F.conv_transpose2d(h, P["generator.layers.4.weight"], stride=2, padding=1)
    h = batch_norm(P, "generator.layers.5", h).clamp(min=0)
    h = F.conv_transpose2d(h, P["generator.layers.7.weight"], P["generator.layers.7.bias"], stride=2, padding=1)
    return (h.exp() - (-h).exp()) / (h.exp() + (-h).exp())


def judged(P: dict[str, Tensor], image: Tensor) -> tuple[Tensor, Tensor]:
    """Class probabilities (B, K), and the probability of being real (B,)."""
    h = F.conv2d(image, P["critic.layers.0.weight"], P["critic.layers.0.bias"], stride=2, padding=1)
    h = torch.where(h > 0, h, 0.2 * h)
    h = batch_norm(P, "critic.layers.3", F.conv2d(h, P["critic.layers.2.weight"], stride=2, padding=1))
    h = torch.where(h > 0, h, 0.2 * h).flatten(1)
    v = linear(P, "critic.classes", h).exp()
    return v / v.sum(1, keepdim=True), 1 / (1 + (-linear(P, "critic.real", h)[:, 0]).exp())


def ce(p: Tensor, y: Tensor) -> Tensor:
    return -torch.stack([p[i, y[i]].log() for i in range(len(y))]).mean()


def bce(p: Tensor, label: int) -> Tensor:
    return -(p if label else 1 - p).log().mean()


def real_images(x: Tensor) -> Tensor:
    pixels = x * 0.3 + 0.4
    return F.interpolate(2 * pixels - 1, size=(S, S), mode="bilinear", antialias=True)


def noise() -> tuple[Tensor, Tensor]:
    """The step's, in the order in which it draws."""
    return torch.randn(B, NOISE).double(), torch.randn(B, NOISE).double()


def objective_by_hand(
    player: str, P: dict[str, Tensor], s: Labelled, t: Unlabelled, z: tuple[Tensor, Tensor], a: float, b: float
) -> dict[str, Tensor]:
    """The terms of one player's objective, all computed from the weights as they are now."""
    f_s, f_t = features(P, s.x, t.x)
    g_s, g_t = generated(P, f_s, z[0], s.y.tolist()), generated(P, f_t, z[1], [K] * B)
    (v_x, d_x), (v_s, d_s), (_, d_t) = judged(P, real_images(s.x)), judged(P, g_s), judged(P, g_t)
    h = linear(P, "classifier", f_s).exp()
    classification = ce(h / h.sum(1, keepdim=True), s.y)
    return {
        "critic": {
            "critic_class": ce(v_x, s.y),
            "critic_real": bce(d_x, 1),
            "critic_fake_s": bce(d_s, 0),
            "critic_fake_t": bce(d_t, 0),
        },
        "generator": {"generator_class": ce(v_s, s.y), "generator_real": bce(d_s, 1)},
        "classifier": {"classification": classification},
        "net": {
            "classification": classification,
            "generated_class": a * ce(v_s, s.y),
            "adversarial": b * bce(d_t, 1),
        },
    }[player]


def of(player: str, P: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: p for name, p in P.items() if name.startswith(f"{player}.")}


# The objectives


@pytest.mark.parametrize(("alpha", "beta", "channels"), [(0.1, 0.03, 3), (0.7, 2.0, 1)])
def test_the_terms_and_their_gradients_are_those_of_the_equations(alpha: float, beta: float, channels: int) -> None:
    method, (s, t) = build(channels, alpha=alpha, beta=beta), batch(channels)
    P = copies(method)
    torch.manual_seed(5)
    z = noise()
    torch.manual_seed(5)
    objectives = list(method.step(s, t))
    parameters = dict(method.named_parameters())
    for player, objective in zip(PLAYERS, objectives, strict=True):
        assert objective.over == (getattr(method, player),)
        wanted = objective_by_hand(player, P, s, t, z, alpha, beta)
        assert objective.terms.keys() == wanted.keys()
        for name, term in objective.terms.items():
            assert_close(term, wanted[name], msg=lambda m, n=name: f"{n}: {m}")
            got = torch.autograd.grad(term, of(player, parameters).values(), retain_graph=True, allow_unused=True)
            grads = torch.autograd.grad(
                wanted[name], of(player, P).values(), retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for g, w, p in zip(got, grads, of(player, P), strict=True):
                assert_close(torch.zeros_like(w) if g is None else g, w, rtol=1e-8, atol=1e-12, msg=f"{name}, {p}")


def test_the_network_learns_from_generated_images_of_both_domains() -> None:
    method, (s, t) = build(), batch()
    *_, objective = method.step(s, t)
    weight = method.net.encoder[1].weight
    for term in ("generated_class", "adversarial"):
        (g,) = torch.autograd.grad(objective.terms[term], weight, retain_graph=True)
        assert g.abs().max() > 1e-8, term


def test_each_objective_reads_the_weights_that_the_ones_before_it_have_moved() -> None:
    method, (s, t) = build(), batch()
    torch.manual_seed(5)
    z = noise()
    torch.manual_seed(5)
    for player, objective in zip(PLAYERS, method.step(s, t), strict=True):
        wanted = objective_by_hand(player, copies(method), s, t, z, 0.1, 0.03)
        for name, term in objective.terms.items():
            assert_close(term, wanted[name], msg=lambda m, n=f"{player}, {name}": f"{n}: {m}")
        with torch.no_grad():
            for p in getattr(method, player).parameters():
                p.add_(0.1 * torch.cos(torch.arange(p.numel(), dtype=torch.float64)).view_as(p))


def test_five_steps_of_training_are_five_steps_of_four_optimisers() -> None:
    recipe = Recipe.of(GTA, steps=5, batch_size=B, lr=0.01)
    method = build()
    data = Pair(Rows(images()), np.arange(N) % K, Rows(images() + 0.5), batch_size=B, seed=3)
    P = copies(method)
    torch.manual_seed(5)
    for _ in train(method, data, recipe):
        pass

    optimizers = {}
    for player in PLAYERS:
        slow = [p for name, p in of(player, P).items() if name.startswith("net.encoder")]
        fast = [p for name, p in of(player, P).items() if not name.startswith("net.encoder")]
        groups = [{"params": p, "factor": c} for p, c in ((slow, 0.1), (fast, 1.0)) if p]
        optimizers[player] = torch.optim.Adam(groups, lr=1.0, betas=(0.8, 0.999))
    torch.manual_seed(5)
    for i in range(5):
        s, t = data.batch(i)
        z = noise()
        for player, optimizer in optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * group["factor"] * (1 + 1.5 * i / 10_000) ** -0.75
            loss = sum(objective_by_hand(player, P, s, t, z, 0.1, 0.03).values())
            grads = torch.autograd.grad(loss, of(player, P).values())
            for p, g in zip(of(player, P).values(), grads, strict=True):
                p.grad = g
            optimizer.step()

    for name, p in method.named_parameters():
        if name == "net.bottleneck.0.bias":  # BatchNorm takes it away: Adam scales its gradient, rounding, up to 1
            continue
        assert_close(p.detach(), P[name].detach(), rtol=0, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


# The networks


def test_the_critic_tells_k_classes_and_the_generator_is_told_one_more() -> None:
    method = GTA(Network(nn.Identity(), nn.Identity(), 7, bottleneck=0), K, image_size=S, width=2)
    v, d = method.critic(torch.zeros(B, 3, S, S))
    assert v.shape == (B, K)
    assert d.shape == (B,)
    assert method.generator.layers[0].in_features == 7 + 512 + K + 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", [16, 32, 64])
def test_images_of_each_size_are_generated_and_judged(image_size: int, channels: int) -> None:
    method = build(channels, image_size=image_size).float()
    g = method.generator(torch.randn(B, 4), torch.randn(B, NOISE + K + 1))
    assert g.shape == (B, channels, image_size, image_size)
    assert g.abs().max() <= 1
    assert method.critic(g)[0].shape == (B, K)
    deepest = [m for m in method.critic.layers if isinstance(m, nn.Conv2d)][-1]
    assert deepest.out_channels == 2 * image_size // 8  # at 4 pixels, twice as many for each halving


def test_the_sources_images_are_scaled_to_the_generators_range() -> None:
    method = build()
    black, white = (torch.full((2, 3, 40, 24), (value - 0.4) / 0.3, dtype=torch.float64) for value in (0.0, 1.0))
    assert_close(method._images(black), torch.full((2, 3, S, S), -1.0, dtype=torch.float64))
    assert_close(method._images(white), torch.full((2, 3, S, S), 1.0, dtype=torch.float64))


def test_weights_start_small() -> None:
    method = GTA(Network(nn.Identity(), nn.Identity(), 7, bottleneck=0), K, image_size=S, width=8)
    for module in (method.generator, method.critic):
        for name, p in module.named_parameters():
            if p.ndim > 1:
                assert 0.015 < p.std() < 0.025, name


@pytest.mark.parametrize("image_size", [8, 24, 48, 65])
def test_a_size_that_is_no_power_of_two_is_refused(image_size: int) -> None:
    with pytest.raises(OptionError, match=f"power of two from 16 up, such as 32 or 64, not {image_size}"):
        build(image_size=image_size)


# The recipe and the end


def test_the_learning_rate_stays_near_that_of_the_authors_code() -> None:
    recipe = Recipe.of(GTA, steps=20_000)
    for step in range(0, 20_001, 500):
        code = 1 / (1 + 1e-4 * step)
        assert recipe.lr_factor(step) == pytest.approx(code, rel=0.02 if step <= 10_000 else 0.062)


def test_predictions_need_neither_the_generator_nor_the_critic() -> None:
    method = build().eval()
    x = images(4)
    before = method.predict(x)
    assert_close(before, method.classifier(method.net(x)))
    with torch.no_grad():
        for p in (*method.generator.parameters(), *method.critic.parameters()):
            p.fill_(torch.nan)
    assert torch.equal(method.predict(x), before)


def test_through_scikit_learn_on_grey_images() -> None:
    rng = np.random.default_rng(0)
    X = rng.integers(0, 255, (8, 28, 28), dtype=np.uint8)
    options = {"image_size": 16, "width": 2, "noise": 3}
    classifier = AdaptiveClassifier(method="gta", options=options, backbone="lenet", steps=2, batch_size=4)
    classifier.fit(X, np.arange(8) % 2, X_target=255 - X[:6])
    assert classifier.model_.method.generator.layers[-2].out_channels == 1
    assert classifier.predict_proba(X).shape == (8, 2)
