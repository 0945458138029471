"""RTN against the outer products and sums over pairs of samples, written out by hand."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from float64 import normal
from torch import Tensor, nn
from torch.testing import assert_close

from acclimate.choices import Estimator
from acclimate.data.batches import Labelled, Unlabelled
from acclimate.methods.parts.losses import distances_from_gram, gaussian_kernels, squared_distances
from acclimate.methods.rtn import RTN
from acclimate.networks.network import Network
from by_hand import copies, cross_entropy, features, gaussians, gradients, layer, mmd, softmax

K = 3
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
RAMP = 2 / (1 + math.exp(-10 * 0.13)) - 1


def build(**options: Any) -> RTN:
    net = Network(nn.Linear(6, 5), nn.Identity(), 5, bottleneck=4, level="vector")
    method = RTN(net, K, **options).double()
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.3 * torch.randn_like(p))
    method.progress = 0.13
    return method


def batch(B_s: int = 6, B_t: int = 4) -> tuple[Labelled, Unlabelled]:
    x_s, x_t = normal(B_s, 6).requires_grad_(), (normal(B_t, 6) + 1).requires_grad_()
    return Labelled(x_s, torch.arange(B_s) % K, torch.arange(B_s)), Unlabelled(x_t, torch.arange(B_t))


def outer_products(f: Tensor, z: Tensor) -> Tensor:
    """(N, d K), one entry for each channel and class."""
    return torch.stack([torch.stack([f_c * z_k for f_c in f_i for z_k in z_i]) for f_i, z_i in zip(f, z, strict=True)])


def terms_by_hand(
    P: dict[str, Tensor], x_s: Tensor, y_s: Tensor, x_t: Tensor, estimator: Estimator
) -> dict[str, Tensor]:
    n = len(x_s)
    f = features(P, torch.cat([x_s, x_t]))
    z = layer(P, "classifier", f)
    hidden = layer(P, "residual.0", z[:n])
    z_source = z[:n] + layer(P, "residual.2", hidden * (hidden > 0))
    p_t = softmax(z[n:])
    return {
        "classification": cross_entropy(z_source, y_s),
        "mmd": mmd(gaussians(outer_products(f, z)), n, estimator),
        "entropy": -(p_t * p_t.log()).sum() / len(x_t),
    }


@pytest.mark.parametrize("sizes", [(6, 4), (3, 6)])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_terms_and_gradients_are_those_of_the_equations(estimator: Estimator, sizes: tuple[int, int]) -> None:
    method, (s, t) = build(estimator=estimator, trade_off=0.7, entropy_weight=0.2), batch(*sizes)
    (objective,) = method.step(s, t)
    P = copies(method) | {"x_s": s.x.detach().requires_grad_(), "x_t": t.x.detach().requires_grad_()}
    wanted = terms_by_hand(P, P["x_s"], s.y, P["x_t"], estimator)
    of = dict(method.named_parameters()) | {"x_s": s.x, "x_t": t.x}
    assert not objective.over
    assert objective.terms.keys() == wanted.keys()
    for term, weight in {"classification": 1.0, "mmd": 0.7, "entropy": 0.2 * RAMP}.items():
        assert_close(objective.terms[term], weight * wanted[term], rtol=1e-9, atol=1e-12)
        got, expected = gradients(objective.terms[term], of), gradients(wanted[term], P)
        for name in P:
            assert_close(got[name], weight * expected[name], rtol=1e-8, atol=1e-11, msg=f"{term}, {name}")


def test_the_product_of_gram_matrices_is_that_of_the_outer_products() -> None:
    f, z = normal(9, 4), normal(9, K)
    explicit = squared_distances(outer_products(f, z))
    assert_close(distances_from_gram((f @ f.T) * (z @ z.T)), explicit)


def test_in_single_precision_the_product_of_gram_matrices_keeps_the_kernels_digits() -> None:
    f, z = torch.randn(64, 256).relu(), 3 * torch.randn(64, 65)
    fused = (f.double()[:, :, None] * z.double()[:, None]).flatten(1)
    exact = gaussian_kernels(squared_distances(fused))
    assert_close(gaussian_kernels(distances_from_gram((f @ f.T) * (z @ z.T))).double(), exact, rtol=1e-4, atol=1e-5)


def test_the_defaults_are_the_papers_weights_with_the_entropy_ramped() -> None:
    method, (s, t) = build(), batch()
    wanted = terms_by_hand(copies(method), s.x, s.y, t.x, "unbiased")
    for progress, ramp in [(0.0, 0.0), (0.1, 0.46212), (0.5, 0.98661)]:
        method.progress = progress
        (objective,) = method.step(s, t)
        assert_close(objective.terms["mmd"], 0.3 * wanted["mmd"])
        assert_close(objective.terms["entropy"], 0.3 * ramp * wanted["entropy"], rtol=1e-4, atol=0)


def test_without_the_ramp_the_weights_are_constant() -> None:
    method, (s, t) = build(ramped=False), batch()
    wanted = terms_by_hand(copies(method), s.x, s.y, t.x, "unbiased")
    for method.progress in (0.0, 0.5):
        (objective,) = method.step(s, t)
        assert_close(objective.terms["mmd"], 0.3 * wanted["mmd"])
        assert_close(objective.terms["entropy"], 0.3 * wanted["entropy"])


def test_the_residual_learns_from_the_sources_labels_alone() -> None:
    method, (s, t) = build(), batch()
    (objective,) = method.step(s, t)
    residual = {n: p for n, p in method.named_parameters() if n.startswith("residual")}
    assert all(g.any() for g in gradients(objective.terms["classification"], residual).values())
    for term in ("mmd", "entropy"):
        assert not any(g.any() for g in gradients(objective.terms[term], residual).values())


def test_the_target_never_passes_through_the_residual() -> None:
    method, (s, t), x = build(), batch(), normal(7, 6)
    (before,) = method.step(s, t)
    predicted = method.eval().predict(x)
    assert torch.equal(predicted, method.classifier(method.net(x)))
    with torch.no_grad():
        for p in method.residual.parameters():
            p += 1
    assert torch.equal(predicted, method.predict(x))
    (after,) = method.train().step(s, t)
    assert not torch.equal(before.terms["classification"], after.terms["classification"])
    assert torch.equal(before.terms["entropy"], after.terms["entropy"])
    assert torch.equal(before.terms["mmd"], after.terms["mmd"])


def test_a_residual_of_zero_leaves_the_targets_classifier() -> None:
    method, (s, t) = build(), batch()
    with torch.no_grad():
        method.residual[2].weight.zero_()
        method.residual[2].bias.zero_()
    (objective,) = method.step(s, t)
    P = copies(method)
    f = features(P, torch.cat([s.x, t.x]))[: len(s.x)]
    assert_close(objective.terms["classification"], cross_entropy(layer(P, "classifier", f), s.y))


def test_descending_on_the_entropy_makes_the_targets_predictions_certain() -> None:
    method, (s, t) = build(ramped=False), batch()
    optimizer = torch.optim.SGD(method.classifier.parameters(), lr=1.0)
    seen = []
    for _ in range(20):
        (objective,) = method.step(s, t)
        seen.append(objective.terms["entropy"].item())
        optimizer.zero_grad()
        objective.terms["entropy"].backward()
        optimizer.step()
    assert seen[-1] < 0.7 * seen[0]


def test_identical_batches_have_no_biased_discrepancy() -> None:
    method, (s, _) = build(estimator="biased"), batch()
    (objective,) = method.step(s, Unlabelled(s.x, s.index))
    assert objective.terms["mmd"].item() == pytest.approx(0, abs=1e-12)
