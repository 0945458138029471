"""TADA against a reference written out by hand: region by region, without a gradient reversal."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from float64 import Rows, normal
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from acclimate.data.batches import Labelled, Pair, Unlabelled
from acclimate.data.preprocess import Preprocess
from acclimate.errors import OptionError
from acclimate.methods.base import Objective
from acclimate.methods.tada import TADA
from acclimate.model import Model, ModelSpec
from acclimate.networks.backbone import Backbone
from acclimate.networks.backbones import load_backbone
from acclimate.networks.network import Network
from acclimate.settings import Recipe
from acclimate.training import train
from by_hand import copies, gradients, layer

K, C_IN, C, H, W, D = 3, 4, 5, 2, 3, 4
G, N, B = H * W, 16, 8
RAMP = 2 / (1 + math.exp(-10 * 0.13)) - 1
LOG2 = math.log(2)

Settings = dict[str, Any]
VARIANTS: list[Settings] = [
    {},
    {"global_attention": False},
    {"local_attention": False},
    {"trade_off": 0.3, "gamma": 0.7},
    {"local_weight": "entropy"},
    {"log_base": "2"},
    {"shared": True},
]
every_variant = pytest.mark.parametrize("options", VARIANTS, ids=str)


def network() -> Network:
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Network(nn.Conv2d(C_IN, C, 1), pool, C, bottleneck=D, level="map", map_shape=(C, H, W))


def build(*, progress: float = 0.13, **options: Any) -> TADA:
    method = TADA(network(), K, hidden=6, global_hidden=7, **options).double()
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.3 * torch.randn_like(p))
    method.progress = progress
    return method


def batch(B_s: int = 5, B_t: int = 5) -> tuple[Labelled, Unlabelled]:
    x_s, x_t = normal(B_s, C_IN, H, W).requires_grad_(), (normal(B_t, C_IN, H, W) + 1).requires_grad_()
    return Labelled(x_s, torch.arange(B_s) % K, torch.arange(B_s)), Unlabelled(x_t, torch.arange(B_t))


def objective(method: TADA, s: Labelled, t: Unlabelled) -> Objective:
    (found,) = method.step(s, t)
    return found


# The reference


def batch_norm(P: dict[str, Tensor], name: str, u: Tensor) -> Tensor:
    u = (u - u.mean(0)) / (((u - u.mean(0)) ** 2).mean(0) + 1e-5).sqrt()
    return u * P[f"{name}.weight"] + P[f"{name}.bias"]


def relu(u: Tensor) -> Tensor:
    return u * (u > 0)


def region_probability(P: dict[str, Tensor], k: int, f: Tensor) -> Tensor:
    """Of the source, by discriminator k, for region vectors (n, C)."""
    for number in (0, 3):
        f = f @ P[f"critic_local.layers.{number}.weight"][k] + P[f"critic_local.layers.{number}.bias"][k, 0]
        f = relu(f)
    return 1 / (
        1 + torch.exp(-(f @ P["critic_local.layers.6.weight"][k] + P["critic_local.layers.6.bias"][k, 0])[:, 0])
    )


def image_probability(P: dict[str, Tensor], g: Tensor) -> Tensor:
    for linear in (0, 3):
        g = relu(batch_norm(P, f"critic_global.layers.{linear + 1}", layer(P, f"critic_global.layers.{linear}", g)))
    return 1 / (1 + torch.exp(-layer(P, "critic_global.layers.6", g)[:, 0]))


def entropy(p: Tensor, base: float = math.e) -> Tensor:
    return -(p * p.log() + (1 - p) * (1 - p).log()) / math.log(base)


def cross_entropy(p: Tensor, n_s: int) -> Tensor:
    return -(p[:n_s].log().sum() + (1 - p[n_s:]).log().sum()) / p.numel()


def features(P: dict[str, Tensor], x: Tensor) -> Tensor:
    """The encoder's map, region by region: (n, G, C), row by row."""
    w, b = P["net.encoder.weight"][:, :, 0, 0], P["net.encoder.bias"]
    return torch.stack([x[:, :, i, j] @ w.T + b for i in range(H) for j in range(W)], 1)


def attention_by_hand(P: dict[str, Tensor], f: Tensor, options: Settings) -> tuple[Tensor, Tensor]:
    """The regions' probabilities of the source and their weights w, both (n, G)."""
    p = torch.stack([region_probability(P, 0 if options.get("shared") else k, f[:, k]) for k in range(G)], 1)
    H_p = entropy(p, 2 if options.get("log_base") == "2" else math.e)
    return p, H_p if options.get("local_weight") == "entropy" else 1 - H_p


def terms_by_hand(P: dict[str, Tensor], x_s: Tensor, y_s: Tensor, x_t: Tensor, options: Settings) -> dict[str, Tensor]:
    """The terms with their weights, as all players see them; nothing is reversed."""
    n_s, trade_off = len(x_s), options.get("trade_off", 1.0)
    base = 2 if options.get("log_base") == "2" else math.e
    f = features(P, torch.cat([x_s, x_t]))
    terms = {}
    if options.get("local_attention", True):
        p, w = attention_by_hand(P, f, options)
        terms["adversarial_local"] = trade_off * cross_entropy(p, n_s)
        w = w if options.get("attn_grad") else w.detach()
        f = torch.stack([(1 + w[:, k : k + 1]) * f[:, k] for k in range(G)], 1)
    g = relu(batch_norm(P, "net.bottleneck.1", layer(P, "net.bottleneck.0", f.sum(1) / G)))
    z = layer(P, "classifier", g)
    q = z.exp() / z.exp().sum(1, keepdim=True)
    terms["classification"] = -torch.stack([q[i, y_s[i]].log() for i in range(n_s)]).sum() / n_s
    if options.get("global_attention", True):
        p = image_probability(P, g)
        m = 1 + entropy(p, base)
        m = m if options.get("attn_grad") else m.detach()
        terms["adversarial_global"] = trade_off * cross_entropy(p, n_s)
        terms["attentive_entropy"] = -options.get("gamma", 0.1) * (m * (q * q.log()).sum(1)).sum() / len(m)
    return terms


# The terms


@every_variant
def test_the_terms_and_their_gradients_are_those_of_the_min_max(options: Settings) -> None:
    method, (s, t) = build(**options), batch()
    found = objective(method, s, t)
    assert not found.over
    P = copies(method) | {"x_s": s.x.detach().requires_grad_(), "x_t": t.x.detach().requires_grad_()}
    wanted = terms_by_hand(P, P["x_s"], s.y, P["x_t"], options)
    assert found.terms.keys() == wanted.keys()
    of = dict(method.named_parameters()) | {"x_s": s.x, "x_t": t.x}
    assert of.keys() == P.keys()
    for term in wanted:
        assert_close(found.terms[term], wanted[term], msg=lambda m, n=term: f"{n}: {m}")
        got_g, wanted_g = gradients(found.terms[term], of), gradients(wanted[term], P)
        for name in P:
            # Discriminators descend on their loss whatever the ramp; what stands before them ascends on ramp times it.
            factor = -RAMP if term.startswith("adversarial") and not name.startswith("critic") else 1.0
            assert_close(
                got_g[name],
                factor * wanted_g[name],
                rtol=1e-9,
                atol=1e-12,
                msg=lambda m, n=f"{term}, {name}": f"{n}: {m}",
            )


def test_domains_of_other_sizes_weigh_by_their_images() -> None:
    method, (s, t) = build(), batch(6, 3)
    wanted = terms_by_hand(copies(method), s.x, s.y, t.x, {})
    for name, term in objective(method, s, t).terms.items():
        assert_close(term, wanted[name])


def test_each_term_trains_what_the_paper_says() -> None:
    method, (s, t) = build(), batch()
    of = dict(method.named_parameters())
    parts = {
        "classification": {"net", "classifier"},
        "adversarial_local": {"net.encoder", "critic_local"},
        "adversarial_global": {"net", "critic_global"},
        "attentive_entropy": {"net", "classifier"},
    }
    for term, reached in parts.items():
        for name, g in gradients(objective(method, s, t).terms[term], of).items():
            exact_zero = name.endswith(("bottleneck.0.bias", "layers.0.bias", "layers.3.bias"))  # before BatchNorm
            if not exact_zero or name.startswith("critic_local"):
                assert bool(g.any()) == name.startswith(tuple(reached)), (term, name)


@pytest.mark.parametrize(
    ("term", "critic", "options"),
    [
        ("classification", "critic_local", {"global_attention": False}),
        ("attentive_entropy", "critic_global", {"local_attention": False}),
    ],
)
def test_a_gradient_through_the_attention_trains_its_discriminator_and_comes_back_reversed(
    term: str, critic: str, options: Settings
) -> None:
    method, (s, t) = build(attn_grad=True, **options), batch()
    P = copies(method)
    constant, through = (
        gradients(terms_by_hand(P, s.x, s.y, t.x, options | {"attn_grad": attn_grad})[term], P)
        for attn_grad in (False, True)
    )
    assert through[f"{critic}.layers.6.weight"].any()
    for name, got in gradients(objective(method, s, t).terms[term], dict(method.named_parameters())).items():
        factor = 1.0 if name.startswith("critic") else -RAMP
        wanted = constant[name] + factor * (through[name] - constant[name])
        assert_close(got, wanted, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_at_the_start_the_network_gets_no_adversarial_gradient_and_the_discriminators_do() -> None:
    method, (s, t) = build(progress=0.0), batch()
    terms = objective(method, s, t).terms
    for kind in ("local", "global"):
        g = gradients(terms[f"adversarial_{kind}"], dict(method.named_parameters()))
        assert not any(g[name].any() for name in g if name.startswith(("net", "classifier")))
        assert g[f"critic_{kind}.layers.6.weight"].any()


def test_gradcheck_of_the_terms_without_the_reversal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acclimate.methods.tada.reverse", lambda x, coefficient: x)
    method, (s, t) = build(attn_grad=True), batch(3, 3)

    def terms(x_s: Tensor, x_t: Tensor) -> tuple[Tensor, ...]:
        return tuple(objective(method, s._replace(x=x_s), t._replace(x=x_t)).terms.values())

    assert torch.autograd.gradcheck(terms, (s.x, t.x))


# The attention


def silence(critic: Any) -> None:
    """Makes a discriminator's logit 0, which is a probability of a half."""
    with torch.no_grad():
        critic.layers[6].weight.zero_()
        critic.layers[6].bias.zero_()


def test_where_the_discriminators_know_nothing_all_regions_weigh_the_least() -> None:
    method, (s, _) = build(), batch()
    silence(method.critic_local)
    f = method.net.map(s.x)
    h, d_l = method.attend(f)
    assert d_l is not None
    assert_close(method.weight(d_l), torch.full_like(d_l, 0.3069), rtol=0, atol=1e-4)
    assert_close(h, (2 - LOG2) * f)  # 1.307
    method.log_base = "2"
    assert_close(method.attend(f)[0], f)
    method.local_weight = "entropy"
    assert_close(method.attend(f)[0], 2 * f)


def test_the_weights_of_regions_and_images_at_known_probabilities() -> None:
    method = build()
    d = torch.tensor([0.0, 1.0, -1.0, 3.0, 40.0, -40.0, 1000.0, -1000.0], dtype=torch.float64)
    H = method.uncertainty(d)
    assert H[0].item() == pytest.approx(LOG2)  # m = 1.693
    p = 1 / (1 + math.exp(-1))
    assert H[1].item() == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p))
    assert torch.equal(H[1], H[2])
    assert_close(H[4:], torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-15)
    assert (H >= 0).all()
    assert_close(method.weight(d), 1 - H)
    method.log_base = "2"
    assert method.uncertainty(d)[0].item() == pytest.approx(1)


def test_the_gradient_of_the_weight_of_a_certain_region_is_finite() -> None:
    method = build(attn_grad=True)
    d = torch.tensor([0.0, 100.0, -100.0, 1e4], requires_grad=True)
    method.weight(d).sum().backward()
    assert d.grad is not None
    assert d.grad.isfinite().all()


def test_the_weights_of_regions_are_not_normalised() -> None:
    method, (s, _) = build(), batch()
    w = method.attention(s.x)["local"]
    assert w.shape == (5, H, W)
    assert (w.sum((1, 2)) - 1).abs().min() > 0.1
    assert 1 - LOG2 - 1e-9 <= w.min() < w.max() <= 1


def test_each_region_of_the_map_is_weighed_by_its_own_discriminator() -> None:
    method, x = build().eval(), normal(5, C_IN, H, W)
    P = copies(method)
    _, w = attention_by_hand(P, features(P, x), {})
    before = method.attention(x)["local"]
    assert_close(before, w.reshape(5, H, W))
    with torch.no_grad():
        method.critic_local.layers[6].bias[4] += 1  # of row 1, column 1
    moved = method.attention(x)["local"] != before
    assert moved.any(0).nonzero().tolist() == [[1, 1]]


def test_a_shared_discriminator_is_one_and_weighs_a_region_alike_wherever_it_lies() -> None:
    x = normal(5, C_IN, H, W)
    for shared in (True, False):
        method = build(shared=shared)
        assert {p.shape[0] for p in method.critic_local.parameters()} == {1 if shared else G}
        turned = method.attention(x.flip(2, 3))["local"].flip(1, 2)
        assert torch.allclose(turned, method.attention(x)["local"]) == shared


def test_with_one_region_the_local_loss_is_danns() -> None:
    pool = nn.Flatten()
    net = Network(nn.Identity(), pool, C, bottleneck=D, level="map", map_shape=(C, 1, 1))
    method = TADA(net, K, hidden=6).double()
    s = Labelled(normal(8, C, 1, 1), torch.arange(8) % K, torch.arange(8))
    t = Unlabelled(normal(8, C, 1, 1), torch.arange(8))
    p = region_probability(copies(method), 0, torch.cat([s.x, t.x])[:, :, 0, 0])
    dann = -0.5 * (p[:8].log().mean() + (1 - p[8:]).log().mean())
    assert_close(objective(method, s, t).terms["adversarial_local"], dann)


# Training


@pytest.mark.parametrize(
    "options", [{"trade_off": 0.7}, {"local_attention": False}, {"global_attention": False}], ids=str
)
def test_five_steps_of_training_are_five_steps_of_the_min_max_with_two_optimisers(options: Settings) -> None:
    recipe = Recipe(steps=5, batch_size=B, lr=0.05, weight_decay=1e-2)
    method = build(**options)
    data = Pair(Rows(normal(N, C_IN, H, W)), np.arange(N) % K, Rows(normal(N, C_IN, H, W) + 1), batch_size=B, seed=3)
    P = copies(method)
    for _ in train(method, data, recipe):
        pass

    of_critics = {n: p for n, p in P.items() if n.startswith("critic")}
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
        terms = terms_by_hand(P, s.x, s.y, t.x, options)
        domain = torch.stack([term for n, term in terms.items() if n.startswith("adversarial")]).sum()
        useful = torch.stack([term for n, term in terms.items() if not n.startswith("adversarial")]).sum()
        descent, ascent = gradients(useful, of_network), gradients(domain, of_network)
        for name, p in of_network.items():
            p.grad = descent[name] - ramp * ascent[name]
        for name, g in gradients(domain, of_critics).items():
            of_critics[name].grad = g
        network_optimizer.step()
        critics_optimizer.step()
    for name, p in method.named_parameters():
        assert_close(p.detach(), P[name].detach(), rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


# After training


@every_variant
def test_prediction_attends_and_the_state_holds_what_it_needs(options: Settings, tmp_path: Path) -> None:
    method, (s, t) = build(**options), batch()
    objective(method, s, t)  # BatchNorm's statistics move
    save_file(method.state_dict(), tmp_path / "m.safetensors")
    other = build(**options)
    other.load_state_dict(load_file(tmp_path / "m.safetensors"))
    method.eval()
    other.eval()
    x, P = normal(7, C_IN, H, W), copies(method)
    f = features(P, x)
    local, whole = options.get("local_attention", True), options.get("global_attention", True)
    if local:
        p, w = attention_by_hand(P, f, options)
        f = (1 + w)[:, :, None] * f
    g = method.net.bottleneck(f.mean(1))
    assert_close(method.predict(x), layer(P, "classifier", g))
    logits = method.domain_logits(x)
    assert logits.keys() == ({"f"} if whole else set()) | ({"regions"} if local else set())
    if whole:
        assert_close(logits["f"], method.critic_global(g))
    if local:
        assert_close(logits["regions"], (p / (1 - p)).log().mean(1))
    assert set(method.attention(x)) == ({"local"} if local else set())
    assert torch.equal(other.predict(x), method.predict(x))
    assert all(torch.equal(other.domain_logits(x)[name], logits[name]) for name in logits)


def test_prediction_depends_on_the_local_discriminators() -> None:
    method, x = build().eval(), normal(7, C_IN, H, W)
    before = method.predict(x)
    silence(method.critic_local)
    assert not torch.allclose(method.predict(x), before)
    before = method.predict(x)
    silence(method.critic_global)
    assert torch.equal(method.predict(x), before)


# What it works on


def test_a_network_without_a_map_is_refused_unless_the_regions_are_left_out() -> None:
    net = Network(nn.Identity(), nn.Identity(), C, level="vector")
    with pytest.raises(OptionError, match=r"this network makes none; choose a convolutional .*local_attention=false"):
        TADA(net, K)
    method = TADA(net, K, local_attention=False).eval()
    assert method.predict(torch.randn(4, C)).shape == (4, K)


def test_without_any_attention_it_is_refused() -> None:
    with pytest.raises(OptionError, match="use source_only"):
        TADA(network(), K, local_attention=False, global_attention=False)


def spec(backbone: Backbone, **options: Any) -> ModelSpec:
    return ModelSpec(
        method="tada",
        options=options,
        classes=("a", "b", "c"),
        backbone=backbone.name,
        vector=None,
        tune="head",
        bottleneck=16,
        preprocess=backbone.preprocess,
        bf16=False,
    )


class Tokens(nn.Module):
    """A transformer's outline: 9 tokens of 8 numbers an image."""

    def __init__(self) -> None:
        super().__init__()
        self.grid = nn.Conv2d(3, 8, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.grid(x).flatten(2).mT
        return found


class TokenMean(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h.mean(1)


def tokens() -> Backbone:
    preprocess = Preprocess(resize=12, size=12, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear")
    return Backbone("tokens", preprocess, Tokens(), TokenMean(), 8, pretrained=True)


@pytest.mark.parametrize("tune", ["head", "all"])
def test_a_model_reads_the_number_of_regions_off_its_backbone_and_leaves_the_backbone_as_it_was(tune: Any) -> None:
    backbone = load_backbone("digits_cnn")  # 48 channels of 4 by 4, flattened to 768
    backbone.train()
    model = Model(replace(spec(backbone), tune=tune), backbone)
    assert model.method.net.map_shape == (48, 4, 4)
    assert model.method.critic_local.layers[0].weight.shape == (16, 48, 256)
    assert backbone.body.training == (tune == "all")  # a frozen part is for evaluation
    assert backbone.body[1].num_batches_tracked == 0
    x = torch.randn(5, 48, 4, 4) if tune == "head" else torch.randn(5, 1, 28, 28)
    model.method.eval()
    assert model.method.attention(x)["local"].shape == (5, 4, 4)
    assert model.method.predict(x).shape == (5, 3)


def test_a_transformers_tokens_are_refused_unless_the_regions_are_left_out() -> None:
    with pytest.raises(OptionError, match="choose a convolutional backbone"):
        Model(spec(tokens()), tokens())
    model = Model(spec(tokens(), local_attention=False), tokens())
    assert model.method.eval().predict(torch.randn(2, 9, 8)).shape == (2, 3)
