"""Source-only against a reference written out by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from float64 import Rows, normal
from torch import Tensor, nn
from torch.testing import assert_close

from acclimate.data.batches import Labelled, Pair, Unlabelled
from acclimate.methods.source_only import SourceOnly
from acclimate.networks.network import Network
from acclimate.settings import Recipe
from acclimate.training import train
from by_hand import copies

K, N, B = 3, 24, 8


def build() -> SourceOnly:
    net = Network(nn.Linear(6, 5), nn.Identity(), 5, bottleneck=4)
    method = SourceOnly(net, K).double()
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return method


def labels(n: int) -> npt.NDArray[np.int64]:
    return np.arange(n, dtype=np.int64) % K


def pair(source: Tensor, target: Tensor) -> Pair:
    return Pair(Rows(source), labels(len(source)), Rows(target), batch_size=B, seed=3)


def batch(x_s: Tensor, x_t: Tensor) -> tuple[Labelled, Unlabelled]:
    y = torch.from_numpy(labels(len(x_s)))
    return Labelled(x_s, y, torch.arange(len(x_s))), Unlabelled(x_t, torch.arange(len(x_t)))


def cross_entropy_by_hand(P: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Linear, Linear-BatchNorm-ReLU, Linear, and -log of the softmax at the label."""
    h = x @ P["net.encoder.weight"].T + P["net.encoder.bias"]
    u = h @ P["net.bottleneck.0.weight"].T + P["net.bottleneck.0.bias"]
    mean = u.sum(0) / len(u)
    variance = ((u - mean) ** 2).sum(0) / len(u)
    u = (u - mean) / (variance + 1e-5).sqrt() * P["net.bottleneck.1.weight"] + P["net.bottleneck.1.bias"]
    f = u * (u > 0)
    z = f @ P["classifier.weight"].T + P["classifier.bias"]
    p = z.exp() / z.exp().sum(1, keepdim=True)
    return -torch.stack([p[i, y[i]].log() for i in range(len(y))]).sum() / len(y)


def test_the_loss_and_its_gradients_are_those_of_the_equation() -> None:
    method, x_s = build(), normal(B, 6).requires_grad_()
    s, t = batch(x_s, normal(B, 6))
    (objective,) = method.step(s, t)
    assert not objective.over
    assert set(objective.terms) == {"classification"}

    P, x = copies(method), x_s.detach().clone().requires_grad_()
    expected = cross_entropy_by_hand(P, x, s.y)
    assert_close(objective.terms["classification"], expected)
    wanted = torch.autograd.grad(expected, [x, *P.values()])
    got = torch.autograd.grad(objective.terms["classification"], [x_s, *method.parameters()])
    for g, w in zip(got, wanted, strict=True):
        assert_close(g, w, rtol=1e-9, atol=1e-12)


def test_five_steps_of_training_are_five_steps_by_hand() -> None:
    recipe = Recipe(steps=5, batch_size=B, lr=0.05, weight_decay=1e-2)
    method, data = build(), pair(normal(N, 6), normal(N, 6))
    P = copies(method)
    velocity = {name: torch.zeros_like(p) for name, p in P.items()}
    for _ in train(method, data, recipe):
        pass

    for i in range(5):
        s, _ = data.batch(i)
        gradients = torch.autograd.grad(cross_entropy_by_hand(P, s.x, s.y), list(P.values()))
        lr = 0.05 * (1 + 10 * i / 5) ** -0.75
        for (name, p), gradient in zip(P.items(), gradients, strict=True):
            with torch.no_grad():  # SGD with Nesterov momentum 0.9; the pretrained encoder learns at a tenth
                g = gradient + 1e-2 * p
                velocity[name] = 0.9 * velocity[name] + g
                p -= lr * (0.1 if "encoder" in name else 1.0) * (g + 0.9 * velocity[name])
    for name, p in method.named_parameters():
        assert_close(p.detach(), P[name].detach(), rtol=0, atol=1e-10)


def test_the_contents_of_the_target_change_nothing() -> None:
    source, recipe = normal(N, 6), Recipe(steps=6, batch_size=B)
    states = []
    for target in (normal(N, 6), 100 + normal(N, 6), torch.full((N, 6), torch.nan)):
        torch.manual_seed(1)
        method = build()
        for _ in train(method, pair(source, target), recipe):
            pass
        states.append(method.state_dict())
    for state in states[1:]:
        for name, tensor in states[0].items():
            assert torch.equal(tensor, state[name]), name


def test_batch_norm_statistics_come_from_the_source_alone() -> None:
    method, x_s = build(), normal(B, 6)
    s, t = batch(x_s, 50 + normal(B, 6))
    P = copies(method)
    list(method.step(s, t))
    with torch.no_grad():
        h = x_s @ P["net.encoder.weight"].T + P["net.encoder.bias"]
        u = h @ P["net.bottleneck.0.weight"].T + P["net.bottleneck.0.bias"]
    norm = method.net.bottleneck[1]
    assert norm.num_batches_tracked == 1
    assert_close(norm.running_mean, 0.1 * u.mean(0))
    assert_close(norm.running_var, 0.9 + 0.1 * u.var(0, unbiased=True))


def test_a_prediction_is_the_classifiers_logits() -> None:
    method, x = build().eval(), normal(7, 6)
    P = copies(method)
    h = x @ P["net.encoder.weight"].T + P["net.encoder.bias"]
    u = h @ P["net.bottleneck.0.weight"].T + P["net.bottleneck.0.bias"]  # at first, mean 0 and variance 1 are stored
    u = u / (1 + 1e-5) ** 0.5 * P["net.bottleneck.1.weight"] + P["net.bottleneck.1.bias"]
    assert_close(method.predict(x), (u * (u > 0)) @ P["classifier.weight"].T + P["classifier.bias"])


def test_there_is_no_discriminator() -> None:
    assert build().domain_logits(normal(3, 6)) == {}
