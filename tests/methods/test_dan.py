"""DAN against sums over pairs of samples, written out by hand."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from float64 import Rows, normal
from torch import Tensor, nn
from torch.testing import assert_close

from acclimate.choices import Estimator
from acclimate.data.batches import Labelled, Pair, Unlabelled
from acclimate.methods.dan import DAN
from acclimate.methods.parts import losses
from acclimate.networks.network import Network
from acclimate.settings import Recipe
from acclimate.training import train
from by_hand import copies, cross_entropy, features, gaussians, gradients, layer, mmd

K = 3
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)


def build(**options: Any) -> DAN:
    net = Network(nn.Linear(6, 5), nn.Identity(), 5, bottleneck=4, level="vector")
    method = DAN(net, K, **options).double()
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return method


def batch(B_s: int = 6, B_t: int = 4) -> tuple[Labelled, Unlabelled]:
    x_s, x_t = normal(B_s, 6).requires_grad_(), (normal(B_t, 6) + 1).requires_grad_()
    return Labelled(x_s, torch.arange(B_s) % K, torch.arange(B_s)), Unlabelled(x_t, torch.arange(B_t))


def terms_by_hand(
    P: dict[str, Tensor], x_s: Tensor, y_s: Tensor, x_t: Tensor, estimator: Estimator
) -> dict[str, Tensor]:
    f = features(P, torch.cat([x_s, x_t]))
    return {
        "classification": cross_entropy(layer(P, "classifier", f[: len(x_s)]), y_s),
        "mmd": mmd(gaussians(f), len(x_s), estimator),
    }


@pytest.mark.parametrize("sizes", [(6, 4), (3, 6)])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_terms_and_gradients_are_those_of_the_equations(estimator: Estimator, sizes: tuple[int, int]) -> None:
    method, (s, t) = build(estimator=estimator, trade_off=0.7), batch(*sizes)
    (objective,) = method.step(s, t)
    P = copies(method) | {"x_s": s.x.detach().requires_grad_(), "x_t": t.x.detach().requires_grad_()}
    wanted = terms_by_hand(P, P["x_s"], s.y, P["x_t"], estimator)
    of = dict(method.named_parameters()) | {"x_s": s.x, "x_t": t.x}
    assert not objective.over
    assert objective.terms.keys() == wanted.keys()
    for term, weight in {"classification": 1.0, "mmd": 0.7}.items():
        assert_close(objective.terms[term], weight * wanted[term], rtol=1e-9, atol=1e-12)
        got, expected = gradients(objective.terms[term], of), gradients(wanted[term], P)
        for name in P:
            assert_close(got[name], weight * expected[name], rtol=1e-8, atol=1e-11, msg=f"{term}, {name}")


def test_the_default_is_the_linear_estimate_with_a_constant_weight_of_one() -> None:
    method, (s, t) = build(), batch()
    wanted = terms_by_hand(copies(method), s.x, s.y, t.x, "linear")["mmd"]
    for method.progress in (0.0, 0.5, 1.0):
        (objective,) = method.step(s, t)
        assert_close(objective.terms["mmd"], wanted)


def test_the_discrepancy_leaves_the_classifier_alone() -> None:
    method, (s, t) = build(), batch()
    (objective,) = method.step(s, t)
    for name, g in gradients(objective.terms["mmd"], dict(method.named_parameters())).items():
        assert not (name.startswith("classifier") and g.any()), name


def test_identical_batches_have_no_biased_discrepancy() -> None:
    method, (s, _) = build(estimator="biased"), batch()
    (objective,) = method.step(s, Unlabelled(s.x, s.index))
    assert objective.terms["mmd"].item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("estimator", ["linear", "unbiased"])
def test_training_draws_the_features_of_the_domains_together(estimator: Estimator) -> None:
    data = Pair(Rows(normal(24, 6)), np.arange(24) % K, Rows(normal(24, 6) + 1), batch_size=16)

    def discrepancy(trade_off: float) -> float:
        torch.manual_seed(1)
        method = build(estimator=estimator, trade_off=trade_off)
        for _ in train(method, data, Recipe(steps=40, batch_size=16)):
            pass
        with torch.no_grad():
            f = method.net(torch.cat([data.source.rows, data.target.rows]))
        return losses.mmd(losses.gaussian_kernels(losses.squared_distances(f)), 24).item()

    assert discrepancy(1.0) < 0.5 * discrepancy(0.0)


def test_predictions_are_the_classifiers() -> None:
    method, x = build().eval(), normal(7, 6)
    assert torch.equal(method.predict(x), method.classifier(method.net(x)))
    assert method.domain_logits(x) == {}


def test_its_recipe_is_tlls() -> None:
    assert DAN.recipe == {"lr": 0.003, "decay": 3.0, "weight_decay": 5e-4}
    recipe = Recipe(steps=20_000, schedule="tll", **DAN.recipe)
    assert recipe.lr * recipe.lr_factor(5000) == pytest.approx(0.003 * (1 + 0.0003 * 5000) ** -0.75)
