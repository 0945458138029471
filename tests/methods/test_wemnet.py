"""WEMNet against a reference written out by hand from its equations, in every reading, and its invariants."""

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
from acclimate.methods.base import Objective
from acclimate.methods.dann import DANN
from acclimate.methods.wemnet import WEMNet
from acclimate.networks.network import Network
from acclimate.settings import Recipe
from acclimate.training import train
from by_hand import softmax

K, D, HIDDEN = 3, 8, 7
READINGS = ["linear", "mlp_first", "mlp_product", "mlp_product_bn", "mlp_penultimate"]
PROGRESS = 0.13
RAMP = 2 / (1 + math.exp(-10 * PROGRESS)) - 1

every_reading = pytest.mark.parametrize("w_d", READINGS)


def network() -> Network:
    return Network(nn.Linear(6, 5), nn.Identity(), 5, bottleneck=D)


def shake(method: nn.Module) -> None:
    """Draw all that is learnt or averaged anew, so that no weight is one, no bias and no centroid zero."""
    with torch.no_grad():
        for p in method.parameters():
            p.copy_(0.6 * torch.randn_like(p))
        for name, b in method.named_buffers():
            if "running_var" in name:
                b.uniform_(0.5, 2)
            elif "running_mean" in name or "centroids" in name:
                b.normal_()


def build(*, shaken: bool = True, **options: Any) -> WEMNet:
    method = WEMNet(network(), K, **{"hidden": HIDDEN, "w_d": "linear", **options}).double()
    if shaken:
        shake(method)
    method.progress = PROGRESS
    return method


def on_features(**options: Any) -> WEMNet:
    """WEMNet whose input is f itself."""
    net = Network(nn.Identity(), nn.Identity(), D, bottleneck=0)
    method = WEMNet(net, K, **{"hidden": HIDDEN, "w_d": "linear", **options}).double()
    shake(method)
    method.progress = PROGRESS
    return method


def batch(B_s: int = 8, B_t: int = 6, channels: int = 6) -> tuple[Labelled, Unlabelled]:
    x_s, x_t = normal(B_s, channels).requires_grad_(), (normal(B_t, channels) + 0.5).requires_grad_()
    return Labelled(x_s, torch.arange(B_s) % K, torch.arange(B_s)), Unlabelled(x_t, torch.arange(B_t))


def objective(method: WEMNet | DANN, s: Labelled, t: Unlabelled) -> Objective:
    (found,) = method.step(s, t)
    return found


Parameters = dict[str, Tensor]


def parameters(method: nn.Module) -> Parameters:
    return dict(method.named_parameters())


def copies(method: nn.Module) -> Parameters:
    """The method's parameters and buffers by name, the parameters as new leaves."""
    buffers = {name: b.detach().clone() for name, b in method.named_buffers()}
    return {name: p.detach().clone().requires_grad_() for name, p in method.named_parameters()} | buffers


def gradients(term: Tensor, of: Parameters) -> Parameters:
    """The gradient by name; zeros where there is none."""
    found = torch.autograd.grad(term, list(of.values()), retain_graph=True, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(of.items(), found, strict=True)}


def is_in(name: str, *modules: str) -> bool:
    return name.split(".")[0] in modules


# The reference: the equations, with all they need written out


def layer(P: Parameters, name: str, x: Tensor) -> Tensor:
    return x @ P[f"{name}.weight"].T + P[f"{name}.bias"]


def batch_norm(P: Parameters, name: str, u: Tensor) -> Tensor:
    mean = u.sum(0) / len(u)
    variance = ((u - mean) ** 2).sum(0) / len(u)
    return (u - mean) / (variance + 1e-5).sqrt() * P[f"{name}.weight"] + P[f"{name}.bias"]


def features(P: Parameters, x: Tensor) -> Tensor:
    u = batch_norm(P, "net.bottleneck.1", layer(P, "net.bottleneck.0", layer(P, "net.encoder", x)))
    return u * (u > 0)


def critic(P: Parameters, f: Tensor) -> Tensor:
    if "critic.layers.6.weight" not in P:
        return layer(P, "critic.layers.0", f)[:, 0]
    for linear, norm in [(0, 1), (3, 4)]:
        f = batch_norm(P, f"critic.layers.{norm}", layer(P, f"critic.layers.{linear}", f))
        f = f * (f > 0)
    return layer(P, "critic.layers.6", f)[:, 0]


def sigmoid_of_size(w: float) -> float:
    return 1 / (1 + math.exp(-abs(w)))


def larger_than_mean(row: list[float]) -> list[float]:
    return [1.0 if a > sum(row) / len(row) else 0.0 for a in row]


def domain_mask_by_hand(P: Parameters, w_d: str) -> Tensor:
    """M_d (1, width) with loops over channels."""
    W = {i: P[f"critic.layers.{i}.weight"].detach().tolist() for i in (0, 3, 6) if f"critic.layers.{i}.weight" in P}
    if w_d == "linear":
        a = [sigmoid_of_size(w) for w in W[0][0]]
    elif w_d == "mlp_first":
        a = [sum(sigmoid_of_size(row[j]) for row in W[0]) / HIDDEN for j in range(D)]
    elif w_d == "mlp_penultimate":
        a = [sigmoid_of_size(w) for w in W[6][0]]
    else:
        scale = {i: [1.0] * HIDDEN for i in (1, 4)}
        if w_d == "mlp_product_bn":
            for i in scale:
                gamma, var = (P[f"critic.layers.{i}.{name}"].tolist() for name in ("weight", "running_var"))
                scale[i] = [g / math.sqrt(v + 1e-5) for g, v in zip(gamma, var, strict=True)]
        rows = range(HIDDEN)
        w_2 = [sum(W[6][0][h] * scale[4][h] * W[3][h][i] for h in rows) for i in rows]
        a = [sigmoid_of_size(sum(w_2[i] * scale[1][i] * W[0][i][j] for i in rows)) for j in range(D)]
    return torch.tensor([larger_than_mean(a)], dtype=torch.float64)


def class_masks_by_hand(P: Parameters) -> Tensor:
    rows = P["classifier.weight"].detach().tolist()
    return torch.tensor([larger_than_mean([sigmoid_of_size(w) for w in row]) for row in rows], dtype=torch.float64)


def part(P: Parameters, module: str, f: Tensor, M: Tensor, options: dict[str, Any]) -> Tensor:
    e = layer(P, f"{module}.enc", f)
    if options.get("activation") == "relu":
        e = e * (e > 0)
    return layer(P, f"{module}.dec", e * M)


def ignore_domain(P: Parameters, f: Tensor, options: dict[str, Any]) -> Tensor:
    if not options.get("dim", True):
        return f
    return f - part(P, "dim", f, domain_mask_by_hand(P, options.get("w_d", "linear")), options)


def enhance_semantics(P: Parameters, f: Tensor, q: Tensor, options: dict[str, Any]) -> Tensor:
    if not options.get("sem", True):
        return f
    return f + part(P, "sem", f, q @ class_masks_by_hand(P), options)


def inputs(P: Parameters) -> Tensor:
    return torch.cat([P["x_s"], P["x_t"]])


def classification_by_hand(P: Parameters, y: Tensor, options: dict[str, Any]) -> Tensor:
    p = softmax(layer(P, "classifier", ignore_domain(P, features(P, inputs(P)), options)))
    return -sum(p[i, y[i]].log() for i in range(len(y))) / len(y)


def scores_by_hand(P: Parameters, y: Tensor, options: dict[str, Any]) -> Tensor:
    """q: one-hot labels of the source, then the target's probabilities."""
    f = features(P, inputs(P))
    read = f if options.get("scores") == "f" else ignore_domain(P, f, options)
    p_t = softmax(layer(P, "classifier", read))[len(y) :]
    return torch.cat([torch.eye(K, dtype=p_t.dtype)[y], p_t])


def adversarial_by_hand(P: Parameters, q: Tensor, n_s: int, options: dict[str, Any]) -> Tensor:
    """lambda times the loss that the critic minimises; nothing is reversed."""
    d = critic(P, enhance_semantics(P, features(P, inputs(P)), q, options))
    source = 1 / (1 + torch.exp(-d))
    loss = -0.5 * (source[:n_s].log().sum() / n_s + (1 - source[n_s:]).log().sum() / (len(d) - n_s))
    return options.get("trade_off", 1.0) * loss


def semantic_by_hand(
    P: Parameters, y: Tensor, q: Tensor, options: dict[str, Any]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The ramped distance, and the centroids that it leaves behind."""
    f = features(P, inputs(P))
    f_hat_d = ignore_domain(P, f, options)
    which = options.get("centroids", "f")
    h = {"f": f, "f_hat_d": f_hat_d, "f_hat_c": enhance_semantics(P, f, q, options)}[which]
    y_t = layer(P, "classifier", f_hat_d)[len(y) :].max(1).indices
    theta = options.get("theta", 0.7)

    def moved(C: Tensor, h: Tensor, y: Tensor) -> Tensor:
        rows = []
        for k in range(K):
            members = [h[i] for i in range(len(h)) if int(y[i]) == k]
            rows.append(theta * C[k] + (1 - theta) * sum(members) / len(members) if members else C[k])
        return torch.stack(rows)

    C_s, C_t = moved(P["centroids.C_s"], h[: len(y)], y), moved(P["centroids.C_t"], h[len(y) :], y_t)
    loss = RAMP * options.get("semantic_weight", 1.0) * ((C_s - C_t) ** 2).sum()
    return loss / (1 if options.get("reduction") == "sum" else K * D), (C_s.detach(), C_t.detach())


VARIANTS: list[dict[str, Any]] = [
    *({"w_d": w_d} for w_d in READINGS),
    *({"w_d": w_d, "activation": "relu", "grl": "after_sem", "trade_off": 0.3} for w_d in READINGS),
    {"scores": "f"},
    {"detach_scores": False},
    {"detach_scores": False, "scores": "f", "grl": "after_sem"},
    {"detach_scores": False, "grl": "after_sem", "w_d": "mlp_first", "trade_off": 0.3},
    {"dim": False},
    {"sem": False},
    {"sem": False, "w_d": "mlp_first", "grl": "after_sem"},
    {"dim": False, "sem": False},
    {"mstn": True},
    {"mstn": True, "centroids": "f_hat_d", "reduction": "sum"},
    {"mstn": True, "centroids": "f_hat_c", "semantic_weight": 0.2, "theta": 0.9},
    {"mstn": True, "centroids": "f_hat_c", "detach_scores": False, "grl": "after_sem"},
    {"mstn": True, "centroids": "f_hat_d", "dim": False, "sem": False},
]
every_variant = pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items()))


class Compared:
    """A step of the method, and what the reference needs to repeat it."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.method = build(**options)
        self.s, self.t = batch()
        self.P, self.Q = self.reference(), self.reference()
        self.q = scores_by_hand(self.Q, self.s.y, options)
        self.terms = objective(self.method, self.s, self.t).terms

    def reference(self) -> Parameters:
        """Copies of the weights and of the inputs."""
        x = {"x_s": self.s.x.detach().clone().requires_grad_(), "x_t": self.t.x.detach().clone().requires_grad_()}
        return copies(self.method) | x

    @property
    def leaves(self) -> list[str]:
        return [name for name, p in self.P.items() if p.requires_grad]

    def got(self, term: str) -> Parameters:
        """The method's gradient of a term by parameter and input."""
        return gradients(self.terms[term], parameters(self.method) | {"x_s": self.s.x, "x_t": self.t.x})

    def wanted(self, loss: Tensor, of: Parameters) -> Parameters:
        return gradients(loss, {name: of[name] for name in self.leaves})

    def assert_equal(self, got: Parameters, wanted: Parameters) -> None:
        assert got.keys() == wanted.keys()
        for name in wanted:
            assert_close(got[name], wanted[name], rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


@every_variant
def test_the_classification_loss_and_its_gradients_are_those_of_the_equations(options: dict[str, Any]) -> None:
    c = Compared(options)
    expected = classification_by_hand(c.P, c.s.y, options)
    assert_close(c.terms["classification"], expected)
    c.assert_equal(c.got("classification"), c.wanted(expected, c.P))


@every_variant
def test_the_adversarial_loss_and_its_gradients_are_those_of_the_min_max(options: dict[str, Any]) -> None:
    c = Compared(options)
    expected = adversarial_by_hand(c.P, c.q, len(c.s.y), options)
    assert_close(c.terms["adversarial"], expected)
    by_feature, by_scores = c.wanted(expected, c.P), c.wanted(expected, c.Q)
    reversed_modules = ["net", "x_s", "x_t", *(["sem"] if options.get("grl") == "after_sem" else [])]
    wanted = {}
    for name in c.leaves:
        wanted[name] = by_feature[name] * (-RAMP if is_in(name, *reversed_modules) else 1.0)
        if not options.get("detach_scores", True):  # q reaches SEM beside the reversal, or before it
            wanted[name] = wanted[name] + by_scores[name] * (-RAMP if options.get("grl") == "after_sem" else 1.0)
    c.assert_equal(c.got("adversarial"), wanted)


@pytest.mark.parametrize(
    "options", [o for o in VARIANTS if "mstn" in o], ids=lambda o: "-".join(f"{k}={v}" for k, v in o.items())
)
def test_the_semantic_loss_its_gradients_and_the_centroids_are_those_of_the_equations(options: dict[str, Any]) -> None:
    c = Compared(options)
    q = scores_by_hand(c.P, c.s.y, options)
    expected, (C_s, C_t) = semantic_by_hand(
        c.P, c.s.y, q.detach() if options.get("detach_scores", True) else q, options
    )
    assert_close(c.terms["semantic"], expected)
    assert_close(c.method.centroids.C_s, C_s)
    assert_close(c.method.centroids.C_t, C_t)
    c.assert_equal(c.got("semantic"), c.wanted(expected, c.P))


@every_variant
def test_predictions_are_the_classifiers_on_f_hat_d_and_domain_logits_the_critics_on_each_feature(
    options: dict[str, Any],
) -> None:
    method, x = build(**options).eval(), normal(5, 6)
    P = copies(method)
    f = method.net(x)
    f_hat_d = ignore_domain(P, f, options)
    z = layer(P, "classifier", f_hat_d)
    assert_close(method.predict(x), z)
    logits = method.domain_logits(x)
    read = {"f": f, "f_hat_d": f_hat_d, "f_hat_c": enhance_semantics(P, f, softmax(z), options)}
    assert logits.keys() == read.keys()
    for name, feature in read.items():
        assert_close(logits[name], method.critic(feature))


# Masks


def width(w_d: str) -> int:
    return HIDDEN if w_d == "mlp_penultimate" else D


def W_d(method: WEMNet) -> Tensor:
    """The weight whose entries or columns M_d is about; the first layer for the readings of the whole MLP."""
    layers = method.critic.layers
    return layers[-1].weight if method.w_d == "mlp_penultimate" else layers[0].weight


@every_reading
@pytest.mark.parametrize("seed", range(5))
def test_the_domain_mask_is_binary_of_its_reading_and_the_hand_computed_one(w_d: str, seed: int) -> None:
    torch.manual_seed(seed)
    method = build(w_d=w_d)
    M_d = method.domain_mask()
    assert M_d.shape == (1, width(w_d))
    assert set(M_d.unique().tolist()) == {0.0, 1.0}
    assert not M_d.requires_grad
    assert torch.equal(M_d.double(), domain_mask_by_hand(copies(method), w_d))


@every_reading
def test_the_domain_mask_ignores_signs(w_d: str) -> None:
    method = build(w_d=w_d)
    before = method.domain_mask()
    with torch.no_grad():
        W = W_d(method)
        signs = normal(*W.shape).sign() if "product" not in w_d else normal(1, D).sign()  # a channel as a whole
        W.mul_(signs)
    assert (signs < 0).any()
    assert torch.equal(method.domain_mask(), before)
    with torch.no_grad():
        method.critic.layers[-1].weight.neg_()
    assert torch.equal(method.domain_mask(), before)


@every_reading
def test_biases_play_no_part_in_masks(w_d: str) -> None:
    method = build(w_d=w_d)
    M_d, M_c = method.domain_mask(), method.class_masks()
    with torch.no_grad():
        for name, p in method.named_parameters():
            if name.endswith("bias"):
                p.add_(100)
    assert torch.equal(method.domain_mask(), M_d)
    assert torch.equal(method.class_masks(), M_c)


def test_the_thresholds_of_the_class_masks_are_those_of_their_rows() -> None:
    method = build()
    with torch.no_grad():
        method.classifier.weight.copy_(torch.tensor([[0.01, -0.02], [1.0, 0.5], [-3.0, -9.0]]).repeat(1, D // 2))
    # A threshold for the whole matrix would keep nothing of the first row.
    assert method.class_masks().tolist() == [[0.0, 1.0] * (D // 2), [1.0, 0.0] * (D // 2), [0.0, 1.0] * (D // 2)]
    assert torch.equal(method.class_masks(), class_masks_by_hand(copies(method)))


def test_the_threshold_is_the_mean_of_the_sigmoids_and_not_of_the_sizes() -> None:
    method = build()
    W = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.6, 10.0]])  # mean size 1.58, mean sigmoid that of 0.49
    with torch.no_grad():
        method.critic.layers[0].weight.copy_(W)
        method.critic.layers[0].weight[0, 0] = 1.0  # below the mean size, above the size of the mean sigmoid
    assert method.domain_mask().tolist() == [[1.0, 0, 0, 0, 0, 0, 1, 1]]


def test_class_masks_ignore_signs_and_carry_no_gradient() -> None:
    method = build()
    before = method.class_masks()
    with torch.no_grad():
        method.classifier.weight.mul_(normal(K, D).sign())
    assert torch.equal(method.class_masks(), before)
    assert not before.requires_grad


def test_a_one_hot_score_picks_the_mask_of_its_class() -> None:
    method, y = build(), torch.tensor([2, 0, 1, 1, 2])
    M_c = method.class_masks()
    assert not torch.equal(M_c[0], M_c[1])
    assert torch.equal(torch.eye(K, dtype=torch.float64)[y] @ M_c, M_c[y])


def test_the_sources_part_of_f_hat_c_uses_the_mask_of_the_label() -> None:
    method, y, f = build(), torch.tensor([2, 0, 1, 1, 2]), normal(5, D)
    P, M_c = copies(method), class_masks_by_hand(copies(method))
    expected = f + torch.stack([part(P, "sem", f[i : i + 1], M_c[y[i]], {})[0] for i in range(5)])
    assert_close(method.enhance_semantics(f, torch.eye(K, dtype=torch.float64)[y]), expected)


@every_reading
def test_a_constant_weight_makes_a_mask_of_zeros(w_d: str) -> None:
    method = build(w_d=w_d)
    with torch.no_grad():
        for value in (0.0, 0.01, -0.3, 1 / 3):
            for p in method.critic.parameters():
                p.fill_(value)
            method.classifier.weight.fill_(value)
            assert not method.domain_mask().any()
            assert not method.class_masks().any()


@pytest.mark.parametrize("channels", [3, 7, 10, 100, 256])
def test_rounding_of_the_mean_does_not_unmask_a_constant_weight(channels: int) -> None:
    method = WEMNet(Network(nn.Identity(), nn.Identity(), channels, bottleneck=0), 2, dim=False, sem=False)
    with torch.no_grad():
        for value in torch.linspace(0.01, 2, 50).tolist():
            method.critic.layers[0].weight.fill_(value)
            method.classifier.weight.fill_(-value)
            assert not method.domain_mask().any()
            assert not method.class_masks().any()


def test_behind_a_mask_of_zeros_dim_subtracts_its_bias_alone() -> None:
    method, f = build(), normal(5, D)
    with torch.no_grad():
        method.critic.layers[0].weight.fill_(0.2)
    assert_close(method.ignore_domain(f), f - method.dim.dec.bias)


def test_the_bias_of_enc_is_masked_too() -> None:
    method, f = build(), normal(5, D)
    masked_out = method.domain_mask()[0] == 0
    before = method.ignore_domain(f)
    with torch.no_grad():
        method.dim.enc.bias[masked_out] += 100
    assert_close(method.ignore_domain(f), before)


@every_reading
def test_after_every_step_of_training_the_masks_are_those_of_the_new_weights(w_d: str) -> None:
    method = build(w_d=w_d)
    data = Pair(Rows(normal(24, 6)), np.arange(24) % K, Rows(normal(24, 6)), batch_size=8)
    for _ in train(method, data, Recipe(steps=5, batch_size=8, lr=0.5)):
        assert torch.equal(method.domain_mask().double(), domain_mask_by_hand(copies(method), w_d))
        assert torch.equal(method.class_masks(), class_masks_by_hand(copies(method)))


@every_reading
def test_the_masks_of_the_next_step_follow_weights_that_have_moved(w_d: str) -> None:
    method, (s, t) = build(w_d=w_d), batch()
    objective(method, s, t)
    M_d, M_c = method.domain_mask(), method.class_masks()
    with torch.no_grad():
        W_d(method).copy_(W_d(method).roll(1, dims=1))
        method.classifier.weight.copy_(method.classifier.weight.roll(1, dims=1))
    assert not torch.equal(method.domain_mask(), M_d)
    assert not torch.equal(method.class_masks(), M_c)
    P = copies(method) | {"x_s": s.x, "x_t": t.x}
    terms, options = objective(method, s, t).terms, {"w_d": w_d}
    assert_close(terms["classification"], classification_by_hand(P, s.y, options))
    assert_close(terms["adversarial"], adversarial_by_hand(P, scores_by_hand(P, s.y, options), len(s.y), options))


@pytest.mark.parametrize(
    ("weights", "kept"),  # the part of |W| above the logit of the mean of sigmoid(|W|), by quadrature
    [
        (lambda *shape: 0.05 * torch.randn(*shape), 0.425),
        (lambda *shape: 0.5 * torch.randn(*shape), 0.437),
        (lambda *shape: (2 * torch.rand(*shape) - 1) / 16, 0.500),
        (lambda *shape: 2 * torch.rand(*shape) - 1, 0.510),
    ],
    ids=["gaussian 0.05", "gaussian 0.5", "uniform 1/16", "uniform 1"],
)
def test_the_kept_fraction_of_a_wide_random_weight(weights: Any, kept: float) -> None:
    channels = 200_000
    net = Network(nn.Identity(), nn.Identity(), channels, bottleneck=0)
    method = WEMNet(net, 2, dim=False, sem=False, w_d="linear")
    with torch.no_grad():
        method.critic.layers[0].weight.copy_(weights(1, channels))
        method.classifier.weight.copy_(weights(2, channels))
    for M in (method.domain_mask()[0], *method.class_masks()):
        assert M.mean().item() == pytest.approx(kept, abs=0.005)


# The random masks of the control


@every_reading
def test_a_random_mask_keeps_the_number_of_channels_of_the_weights_mask_and_other_ones(w_d: str) -> None:
    method = build(w_d=w_d, mask="random")
    P = copies(method)
    of_weights, M_d, M_c = domain_mask_by_hand(P, w_d), method.domain_mask().double(), method.class_masks()
    assert M_d.shape == of_weights.shape
    assert M_d.sum() == of_weights.sum()
    assert torch.equal(M_c.sum(1), class_masks_by_hand(P).sum(1))
    assert set(M_d.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(torch.cat([M_d[0], *M_c]), torch.cat([of_weights[0], *class_masks_by_hand(P)]))


@every_reading
def test_a_random_mask_stays_where_it_is_though_the_weights_move(w_d: str) -> None:
    method = build(w_d=w_d, mask="random")
    M_d, M_c = method.domain_mask(), method.class_masks()
    with torch.no_grad():  # the same sizes at other channels, so the number of channels stays too
        W_d(method).copy_(W_d(method).roll(1, dims=1))
        method.classifier.weight.copy_(method.classifier.weight.roll(1, dims=1))
    assert torch.equal(method.domain_mask(), M_d)
    assert torch.equal(method.class_masks(), M_c)


def test_a_run_with_random_masks_starts_from_the_weights_of_one_without() -> None:
    states = []
    for mask in ("weight", "random"):
        torch.manual_seed(5)
        states.append(parameters(build(mask=mask, shaken=False)))
    for name, p in states[0].items():
        assert torch.equal(p, states[1][name])


def test_random_masks_differ_between_seeds() -> None:
    masks = set()
    for seed in range(5):
        torch.manual_seed(seed)
        method = build(mask="random", shaken=False)
        with torch.no_grad():
            method.critic.layers[0].weight.copy_(torch.arange(D))
        masks.add(tuple(method.domain_mask()[0].tolist()))
    assert len(masks) > 1


# Who learns from what


@every_reading
def test_the_adversarial_loss_does_not_touch_the_classifier_nor_dim(w_d: str) -> None:
    method = build(w_d=w_d)
    terms = objective(method, *batch()).terms
    got = gradients(terms["adversarial"], parameters(method))
    for name, g in got.items():
        assert not (is_in(name, "classifier", "dim") and g.any()), name
    assert got["sem.enc.weight"].any()
    assert got["sem.dec.weight"].any()
    assert got["critic.layers.0.weight"].any()
    assert got["net.encoder.weight"].any()


@every_reading
def test_the_classification_loss_does_not_touch_the_critic_nor_sem(w_d: str) -> None:
    method = build(w_d=w_d)
    terms = objective(method, *batch()).terms
    got = gradients(terms["classification"], parameters(method))
    for name, g in got.items():
        assert not (is_in(name, "critic", "sem") and g.any()), name
    assert got["dim.enc.weight"].any()
    assert got["dim.dec.weight"].any()
    assert got["classifier.weight"].any()
    assert got["net.encoder.weight"].any()


@every_reading
@pytest.mark.parametrize("grl", ["before_sem", "after_sem"])
@pytest.mark.parametrize("progress", [0.0, 0.05, PROGRESS, 1.0])
def test_the_gradient_by_f_is_minus_c_times_the_unreversed_one(w_d: str, grl: str, progress: float) -> None:
    method, (s, t) = on_features(w_d=w_d, grl=grl), batch(channels=D)
    method.progress = progress
    P, f = copies(method), torch.cat([s.x, t.x]).detach().requires_grad_()
    z_t = layer(P, "classifier", ignore_domain(P, f, {"w_d": w_d}))[len(s.y) :]
    q = torch.cat([torch.eye(K, dtype=torch.float64)[s.y], softmax(z_t)]).detach()
    d = critic(P, enhance_semantics(P, f, q, {}))
    unreversed = 0.5 * (torch.log1p(torch.exp(-d[:8])).mean() + torch.log1p(torch.exp(d[8:])).mean())
    (wanted,) = torch.autograd.grad(unreversed, f)
    terms = objective(method, s, t).terms
    got = torch.cat(torch.autograd.grad(terms["adversarial"], [s.x, t.x]))
    c = 2 / (1 + math.exp(-10 * progress)) - 1
    assert wanted.abs().max() > 1e-3
    assert_close(got, -c * wanted, rtol=1e-9, atol=1e-13)


@every_reading
def test_at_the_start_the_encoder_gets_no_adversarial_gradient(w_d: str) -> None:
    method = build(w_d=w_d, mstn=True)
    method.progress = 0.0
    terms = objective(method, *batch()).terms
    for term in ("adversarial", "semantic"):
        for name, g in gradients(terms[term], parameters(method)).items():
            assert not (is_in(name, "net") and g.any()), name
    assert gradients(terms["adversarial"], parameters(method))["critic.layers.0.weight"].any()


@every_reading
def test_with_decoders_of_zeros_the_terms_and_the_networks_gradients_are_danns(w_d: str) -> None:
    wemnet = build(w_d=w_d, dec_init="zero", shaken=False)
    kind: Critic = "linear" if w_d == "linear" else "mlp"
    dann = DANN(network(), K, critic=kind, hidden=HIDDEN).double()
    dann.load_state_dict({n: v for n, v in wemnet.state_dict().items() if is_in(n, "net", "classifier", "critic")})
    dann.progress = wemnet.progress
    s, t = batch()
    of_wemnet, of_dann = objective(wemnet, s, t).terms, objective(dann, s, t).terms
    assert of_wemnet.keys() == of_dann.keys()
    for term in of_dann:
        assert_close(of_wemnet[term], of_dann[term], rtol=1e-12, atol=0)
        got = gradients(of_wemnet[term], parameters(wemnet) | {"x_s": s.x, "x_t": t.x})
        for name, g in gradients(of_dann[term], parameters(dann) | {"x_s": s.x, "x_t": t.x}).items():
            assert_close(got[name], g, rtol=1e-12, atol=1e-14, msg=lambda m, n=name: f"{n}: {m}")
    x = normal(5, 6)
    assert_close(wemnet.eval().predict(x), dann.eval().predict(x), rtol=1e-12, atol=1e-14)


def test_decoders_that_start_at_zero_learn_all_the_same() -> None:
    method = build(dec_init="zero", shaken=False)
    terms = objective(method, *batch()).terms
    assert gradients(terms["classification"], parameters(method))["dim.dec.weight"].any()
    assert gradients(terms["adversarial"], parameters(method))["sem.dec.weight"].any()


@pytest.mark.parametrize("scores", ["f_hat_d", "f"])
def test_scores_that_are_not_detached_let_the_adversarial_gradient_reach_the_classifier(scores: str) -> None:
    method = build(detach_scores=False, scores=scores)
    got = gradients(objective(method, *batch()).terms["adversarial"], parameters(method))
    assert got["classifier.weight"].any()
    assert bool(got["dim.dec.weight"].any()) == (scores == "f_hat_d")


@every_reading
def test_behind_the_reversal_sem_learns_the_opposite_times_c(w_d: str) -> None:
    before, after = build(w_d=w_d), build(w_d=w_d, grl="after_sem")
    after.load_state_dict(before.state_dict())
    s, t = batch()
    of_before = gradients(objective(before, s, t).terms["adversarial"], parameters(before))
    of_after = gradients(objective(after, s, t).terms["adversarial"], parameters(after))
    for name, g in of_before.items():
        assert_close(of_after[name], (-RAMP if is_in(name, "sem") else 1.0) * g, rtol=1e-9, atol=1e-14)


# Flags and the saved state


@pytest.mark.parametrize(("flag", "module"), [("dim", "dim"), ("sem", "sem"), ("mstn", "centroids")])
@every_reading
def test_a_flag_removes_exactly_its_modules_state_and_terms(w_d: str, flag: str, module: str) -> None:
    full = build(w_d=w_d, mstn=True)
    less = build(w_d=w_d, **{"mstn": True, flag: False})
    assert set(full.state_dict()) - set(less.state_dict()) == {n for n in full.state_dict() if is_in(n, module)}
    assert set(less.state_dict()) <= set(full.state_dict())
    shapes = {name: v.shape for name, v in full.state_dict().items()}
    assert all(v.shape == shapes[name] for name, v in less.state_dict().items())
    terms = {"classification", "adversarial", "semantic"}
    assert set(objective(full, *batch()).terms) == terms
    assert set(objective(less, *batch()).terms) == (terms - {"semantic"} if flag == "mstn" else terms)


def test_dim_and_sem_have_a_pair_of_layers_each_and_mstn_no_parameters() -> None:
    shapes = {n: tuple(p.shape) for n, p in parameters(build(mstn=True)).items() if is_in(n, "dim", "sem", "centroids")}
    assert shapes == {
        f"{module}.{linear}.{name}": shape
        for module in ("dim", "sem")
        for linear in ("enc", "dec")
        for name, shape in [("weight", (D, D)), ("bias", (D,))]
    }


def test_the_default_reads_the_product_of_danns_own_discriminator() -> None:
    method = WEMNet(network(), K, hidden=HIDDEN)
    assert method.w_d == "mlp_product"
    ours, danns = (m.critic.state_dict() for m in (method, DANN(network(), K, hidden=HIDDEN)))
    assert {n: p.shape for n, p in ours.items()} == {n: p.shape for n, p in danns.items()}
    assert method.domain_mask().shape == (1, D)


@pytest.mark.parametrize(("w_d", "critic"), [("linear", "linear"), ("mlp_product", "mlp")])
def test_without_dim_and_sem_it_is_dann(w_d: str, critic: Critic) -> None:
    wemnet = build(dim=False, sem=False, w_d=w_d)
    dann = DANN(network(), K, critic=critic, hidden=HIDDEN).double()
    dann.load_state_dict({n: v for n, v in wemnet.state_dict().items() if is_in(n, "net", "classifier", "critic")})
    data = Pair(Rows(normal(24, 6)), np.arange(24) % K, Rows(normal(24, 6)), batch_size=8)
    for method in (wemnet, dann):
        for _ in train(method, data, Recipe(steps=5, batch_size=8)):
            pass
    for name, p in dann.named_parameters():
        assert_close(wemnet.get_parameter(name), p, rtol=0, atol=1e-12)


@every_reading
@pytest.mark.parametrize("mask", ["weight", "random"])
def test_a_restored_method_has_the_same_masks_and_predictions(w_d: str, mask: str) -> None:
    method = build(w_d=w_d, mask=mask, mstn=True)
    data = Pair(Rows(normal(24, 6)), np.arange(24) % K, Rows(normal(24, 6)), batch_size=8)
    for _ in train(method, data, Recipe(steps=3, batch_size=8)):
        pass
    restored = build(w_d=w_d, mask=mask, mstn=True)
    x = normal(5, 6)
    assert not torch.equal(restored.eval().predict(x), method.eval().predict(x))
    restored.load_state_dict(method.state_dict())
    assert torch.equal(restored.domain_mask(), method.domain_mask())
    assert torch.equal(restored.class_masks(), method.class_masks())
    assert torch.equal(restored.predict(x), method.predict(x))
    for name, logits in method.domain_logits(x).items():
        assert torch.equal(restored.domain_logits(x)[name], logits)


def test_predictions_depend_on_the_discriminators_weight() -> None:
    method, x = build().eval(), normal(5, 6)
    before = method.predict(x)
    with torch.no_grad():
        method.critic.layers[0].weight.copy_(method.critic.layers[0].weight.roll(1, dims=1))
    assert not torch.allclose(method.predict(x), before)


@every_reading
def test_its_terms_are_float32_on_an_unchanged_network(w_d: Any) -> None:
    net = Network(nn.Linear(6, 5), nn.Identity(), 5, bottleneck=D)
    method = WEMNet(net, K, w_d=w_d, mstn=True, hidden=HIDDEN)
    s, t = (
        Labelled(torch.randn(8, 6), torch.arange(8) % K, torch.arange(8)),
        Unlabelled(torch.randn(6, 6), torch.arange(6)),
    )
    for term in objective(method, s, t).terms.values():
        assert term.dtype == torch.float32
        assert term.isfinite()
    assert method.predict(t.x).shape == (6, K)
