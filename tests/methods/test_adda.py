"""ADDA against a reference written out by hand: two stages, and in the second two players with an optimiser each."""

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
from acclimate.errors import OptionError
from acclimate.methods.adda import ADDA
from acclimate.methods.base import Stage
from acclimate.networks.network import Network
from acclimate.settings import Recipe
from acclimate.training import Checkpoint, train
from by_hand import copies, layer

K, N, B = 3, 24, 8
CRITICS: list[Critic] = ["mlp", "linear"]
MAPPINGS = ["inverted", "minimax"]
READS = ["feature", "logits"]
RAMP = 2 / (1 + math.exp(-10 * 0.13)) - 1


def build(critic: Critic = "mlp", seed: int = 0, **options: Any) -> ADDA:
    torch.manual_seed(seed)
    net = Network(nn.Linear(6, 5), nn.Identity(), 5, bottleneck=4)
    method = ADDA(net, K, critic=critic, hidden=7, **options).double()
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.3 * torch.randn_like(p))
    method.progress = 0.13
    return method


def data() -> Pair:
    torch.manual_seed(7)
    return Pair(Rows(normal(N, 6)), np.arange(N) % K, Rows(normal(N, 6) + 1), batch_size=B, seed=3)


def batch(B_s: int = 8, B_t: int = 6) -> tuple[Labelled, Unlabelled]:
    x_s, x_t = normal(B_s, 6).requires_grad_(), (normal(B_t, 6) + 1).requires_grad_()
    return Labelled(x_s, torch.arange(B_s) % K, torch.arange(B_s)), Unlabelled(x_t, torch.arange(B_t))


def in_adapt_stage(method: ADDA) -> Stage:
    """As training finds it: M_s in evaluation mode, M_t its copy."""
    method.train()
    return list(method.stages(data()))[1]


# The reference


def moments(u: Tensor) -> tuple[Tensor, Tensor]:
    mean = u.sum(0) / len(u)
    return mean, ((u - mean) ** 2).sum(0) / len(u)


def norm(P: dict[str, Tensor], name: str, u: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return (u - mean) / (variance + 1e-5).sqrt() * P[f"{name}.weight"] + P[f"{name}.bias"]


def hidden(P: dict[str, Tensor], net: str, x: Tensor) -> Tensor:
    """What BatchNorm sees."""
    return layer(P, f"{net}.bottleneck.0", layer(P, f"{net}.encoder", x))


def features(P: dict[str, Tensor], net: str, x: Tensor, stored: tuple[Tensor, Tensor] | None = None) -> Tensor:
    u = hidden(P, net, x)
    u = norm(P, f"{net}.bottleneck.1", u, *(stored or moments(u)))
    return u * (u > 0)


def source_loss(P: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    z = layer(P, "classifier", features(P, "net", x))
    p = z.exp() / z.exp().sum(1, keepdim=True)
    return -torch.stack([p[i, y[i]].log() for i in range(len(y))]).sum() / len(y)


def source_probability(P: dict[str, Tensor], f_s: Tensor, f_t: Tensor) -> tuple[Tensor, Tensor]:
    """D(M_s(x_s)) and D(M_t(x_t)), where BatchNorm in D sees both."""
    d = torch.cat([f_s, f_t])
    linear = sorted({k.split(".")[2] for k in P if k.startswith("critic.layers")}, key=int)
    if len(linear) > 1:
        for i in (0, 3):
            d = layer(P, f"critic.layers.{i}", d)
            d = norm(P, f"critic.layers.{i + 1}", d, *moments(d))
            d = d * (d > 0)
    probability = 1 / (1 + torch.exp(-layer(P, f"critic.layers.{linear[-1]}", d)[:, 0]))
    return probability[: len(f_s)], probability[len(f_s) :]


def critic_loss(P: dict[str, Tensor], f_s: Tensor, f_t: Tensor) -> Tensor:
    D_s, D_t = source_probability(P, f_s, f_t)
    return -0.5 * (D_s.log().sum() / len(D_s) + (1 - D_t).log().sum() / len(D_t))


def mapping_loss(P: dict[str, Tensor], f_s: Tensor, f_t: Tensor, mapping: str, ramp: float) -> Tensor:
    if mapping == "minimax":  # M_t does what the critic does not want, with TLL's coefficient, which rises to 2
        return -2 * ramp * critic_loss(P, f_s, f_t)
    _, D_t = source_probability(P, f_s, f_t)
    return -D_t.log().sum() / len(D_t)


def of(P: dict[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {n: p for n, p in P.items() if n.startswith(prefixes)}


def gradients(term: Tensor, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(term, list(wanted.values()), retain_graph=True, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(wanted.items(), found, strict=True)}


# The source stage


def test_the_source_stage_trains_m_s_and_the_classifier_on_the_source_alone() -> None:
    method, (s, t) = build(), batch()
    P = copies(method)
    (objective,) = method.step(s, t)
    assert objective.over == (method.net, method.classifier)
    assert set(objective.terms) == {"classification"}
    loss = objective.terms["classification"]
    assert_close(loss, source_loss(P, s.x, s.y))
    got, wanted = gradients(loss, dict(method.named_parameters())), gradients(source_loss(P, s.x, s.y), P)
    for name in P:
        assert_close(got[name], wanted[name], rtol=1e-9, atol=1e-12)
        assert name.startswith(("net.", "classifier.")) or not got[name].any()
    assert not gradients(loss, {"x_t": t.x})["x_t"].any()
    mean, variance = moments(hidden(P, "net", s.x))
    assert_close(method.net.bottleneck[1].running_mean, 0.1 * mean)
    assert_close(method.net.bottleneck[1].running_var, 0.9 + 0.1 * variance * 8 / 7)


# The adapt stage


def test_m_t_starts_as_a_copy_of_the_trained_m_s_batch_norm_included() -> None:
    method = build()
    stages = method.stages(data())
    next(stages)
    with torch.no_grad():
        for p in method.net.parameters():
            p.add_(1.0)
    method.net(normal(9, 6))  # moves BatchNorm's statistics
    next(stages)
    assert method.target_net is not method.net
    for name, tensor in method.net.state_dict().items():
        copied = method.target_net.state_dict()[name]
        assert torch.equal(tensor, copied), name
        assert tensor.data_ptr() != copied.data_ptr()
    assert not method.net.training
    assert not method.net.bottleneck[1].training
    assert method.target_net.training


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("reads", READS)
def test_the_two_objectives_and_their_gradients_are_those_of_the_equations(
    reads: str, critic: Critic, mapping: str
) -> None:
    method, (s, t) = build(critic, mapping=mapping, reads=reads), batch()
    stage = in_adapt_stage(method)
    with torch.no_grad():
        for p in (*method.target_net.parameters(), *method.target_classifier.parameters()):
            p.add_(0.3 * torch.randn_like(p))
    P = copies(method)
    stored = (torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64))
    f_s, f_t = features(P, "net", s.x, stored), features(P, "target_net", t.x)
    M_t: tuple[nn.Module, ...] = (method.target_net,)
    if reads == "logits":
        f_s, f_t = layer(P, "classifier", f_s), layer(P, "target_classifier", f_t)
        M_t = (method.target_net, method.target_classifier)
    first, second = stage.step(s, t)
    assert (first.over, second.over) == ((method.critic,), M_t)
    assert (set(first.terms), set(second.terms)) == ({"adversarial"}, {"adversarial_mapping"})
    parameters = dict(method.named_parameters())

    wanted = critic_loss(P, f_s, f_t)
    assert_close(first.terms["adversarial"], wanted)
    got = gradients(first.terms["adversarial"], parameters)
    for name, g in gradients(wanted, of(P, "critic")).items():
        assert_close(got[name], g, rtol=1e-9, atol=1e-12)
    assert not any(g.any() for name, g in got.items() if not name.startswith("critic"))

    wanted = mapping_loss(P, f_s, f_t, mapping, RAMP)
    assert_close(second.terms["adversarial_mapping"], wanted)
    got = gradients(second.terms["adversarial_mapping"], parameters)
    for name, g in gradients(wanted, of(P, *["target_net", "target_classifier"][: len(M_t)])).items():
        assert_close(got[name], g, rtol=1e-9, atol=1e-12)
        assert g.abs().max() > 1e-6 or name.endswith(("encoder.bias", "bottleneck.0.bias"))
    assert not any(g.any() for name, g in got.items() if name.startswith(("net.", "classifier.")))
    assert got["target_classifier.weight"].any() == (reads == "logits")


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_m_t_moves_towards_being_taken_for_the_source_and_the_critic_away_from_it(mapping: str) -> None:
    method, (s, t) = build("linear", mapping=mapping), batch()
    stage = in_adapt_stage(method)

    def target_logit() -> float:
        with torch.no_grad():
            return float(method.critic(method.target_net(t.x)).mean())

    for objective in stage.step(s, t):
        before = target_logit()
        parameters = [p for m in objective.over for p in m.parameters()]
        (loss,) = objective.terms.values()
        for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            p.data -= 0.01 * g
        assert (target_logit() > before) == (objective.over == (method.target_net,))


def test_m_ts_batch_norm_sees_each_target_batch_once_and_m_ss_none() -> None:
    method, (s, t) = build(), batch()
    stage = in_adapt_stage(method)
    before = {k: v.clone() for k, v in method.net.state_dict().items()}
    P = copies(method)
    list(stage.step(s, t))
    assert all(torch.equal(v, before[k]) for k, v in method.net.state_dict().items())
    mean, _ = moments(hidden(P, "target_net", t.x))
    assert method.target_net.bottleneck[1].num_batches_tracked == 1
    assert_close(method.target_net.bottleneck[1].running_mean, 0.1 * mean)


# Training


def test_dropout_acts_in_the_source_stage_alone() -> None:
    body = nn.Sequential(nn.Linear(6, 5), nn.Dropout(), nn.Unflatten(1, (5, 1, 1)), nn.Dropout2d(), nn.Flatten())
    method = ADDA(Network(body, nn.Identity(), 5, bottleneck=4), K, hidden=7).double().train()
    stages = method.stages(data())
    next(stages)
    drops = [m for net in method.networks for m in net.modules() if isinstance(m, nn.Dropout | nn.Dropout2d)]
    assert len(drops) == 4
    assert all(m.training for m in drops)
    next(stages)
    assert not any(m.training for m in drops)
    assert all(m.training for m in method.target_net.modules() if isinstance(m, nn.BatchNorm1d))
    x = normal(8, 6)
    assert_close(method.target_net(x), method.target_net(x))


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("reads", READS)
def test_five_steps_of_each_stage_are_those_of_three_optimisers(reads: str, critic: Critic, mapping: str) -> None:
    method = build(critic, pretrain=0.5, mapping=mapping, reads=reads)
    P = copies(method)
    for _ in train(method, data(), Recipe(steps=10, batch_size=B, lr=0.05, weight_decay=1e-2, decay=3.0)):
        pass

    def sgd(*prefixes: str) -> torch.optim.SGD:
        groups = [
            {"params": [p for n, p in of(P, *prefixes).items() if (".encoder" in n) == slow], "lr": 0, "slow": slow}
            for slow in (True, False)
        ]
        return torch.optim.SGD([g for g in groups if g["params"]], momentum=0.9, nesterov=True, weight_decay=1e-2)

    def update(optimizer: torch.optim.SGD, loss: Tensor, i: int, *prefixes: str) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 + 3 * i / 10) ** -0.75 * (0.1 if group["slow"] else 1.0)
        for name, g in gradients(loss, of(P, *prefixes)).items():
            P[name].grad = g
        optimizer.step()

    pair = data()
    source = sgd("net.", "classifier.")
    running = [torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)]
    for i in range(5):
        s, _ = pair.batch(i)
        mean, variance = moments(hidden(P, "net", s.x).detach())
        running = [0.9 * running[0] + 0.1 * mean, 0.9 * running[1] + 0.1 * variance * B / (B - 1)]
        update(source, source_loss(P, s.x, s.y), i, "net.", "classifier.")
    for name, p in of(P, "net.", "classifier.").items():
        P[f"target_{name}"].data.copy_(p.detach())
    M_t = "target_" if reads == "logits" else "target_net"
    player_d, player_m = sgd("critic"), sgd(M_t)

    def mapped(f: Tensor, classifier: str) -> Tensor:
        return layer(P, classifier, f) if reads == "logits" else f

    for i in range(5, 10):
        s, t = pair.batch(i)
        m_s = mapped(features(P, "net", s.x, (running[0], running[1])), "classifier").detach()
        m_t = mapped(features(P, "target_net", t.x), "target_classifier")
        update(player_d, critic_loss(P, m_s, m_t.detach()), i, "critic")
        ramp = 2 / (1 + math.exp(-i)) - 1
        update(player_m, mapping_loss(P, m_s, m_t, mapping, ramp), i, M_t)

    for name, p in method.named_parameters():
        assert_close(p.detach(), P[name].detach(), rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
    assert_close(method.net.bottleneck[1].running_mean, running[0])
    assert_close(method.net.bottleneck[1].running_var, running[1])


@pytest.mark.parametrize("stop", [3, 4, 8, 10])
def test_a_run_resumed_in_either_stage_goes_on_with_m_s_in_evaluation_mode(stop: int, tmp_path: Path) -> None:
    recipe = Recipe(steps=10, batch_size=B)
    unbroken = build(pretrain=0.4)
    for progress in train(unbroken, data(), recipe):
        if progress.step == stop:
            progress.checkpoint().save(tmp_path / "at")
    resumed = build(pretrain=0.4, seed=5)
    for progress in train(resumed, data(), recipe, Checkpoint.load(tmp_path / "at")):
        assert resumed.net.training == (progress.stage == "source")
    wanted = unbroken.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in resumed.state_dict().items())


def test_both_networks_pretrained_layers_train_at_the_reduced_rate() -> None:
    method = build()
    assert method.networks == (method.net, method.target_net)


# After training


@pytest.mark.parametrize("reads", READS)
def test_predictions_go_through_m_t_and_domain_logits_through_both(reads: str, tmp_path: Path) -> None:
    method, x = build("linear", reads=reads), normal(7, 6)
    for _ in train(method, data(), Recipe(steps=6, batch_size=B)):
        pass
    method.eval()
    assert not torch.equal(method.net(x), method.target_net(x))
    f_s, f_t = method.net(x), method.target_net(x)
    z_s, z_t = method.classifier(f_s), method.target_classifier(f_t)
    assert_close(method.predict(x), z_t)
    assert torch.equal(z_t, method.classifier(f_t)) == (reads == "feature")  # the classifier is M_t's own, or a copy
    logits = method.domain_logits(x)
    assert_close(logits["M_s"], method.critic(z_s if reads == "logits" else f_s))
    assert_close(logits["M_t"], method.critic(z_t if reads == "logits" else f_t))
    save_file(method.state_dict(), tmp_path / "m")
    other = build("linear", seed=1, reads=reads).eval()
    other.load_state_dict(load_file(tmp_path / "m"))
    assert torch.equal(other.predict(x), method.predict(x))


@pytest.mark.parametrize("pretrain", [0.0, 1.0, 2.0])
def test_a_stage_without_steps_is_refused(pretrain: float) -> None:
    with pytest.raises(OptionError, match="pretrain of adda must lie between 0 and 1"):
        build(pretrain=pretrain)
