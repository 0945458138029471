"""JAN against sums over pairs of samples, written out by hand."""

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
from acclimate.methods import jan
from acclimate.methods.jan import JAN
from acclimate.methods.parts.losses import gaussian_kernels, squared_distances
from acclimate.networks.network import Network
from by_hand import copies, cross_entropy, distance, features, gaussians, gradients, layer, mmd, softmax

K = 3
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
RAMP = 2 / (1 + math.exp(-10 * 0.13)) - 1


def build(**options: Any) -> JAN:
    net = Network(nn.Linear(6, 5), nn.Identity(), 5, bottleneck=4, level="vector")
    method = JAN(net, K, **options).double()
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.3 * torch.randn_like(p))
    method.progress = 0.13
    return method


def batch(B_s: int = 6, B_t: int = 4) -> tuple[Labelled, Unlabelled]:
    x_s, x_t = normal(B_s, 6).requires_grad_(), (normal(B_t, 6) + 1).requires_grad_()
    return Labelled(x_s, torch.arange(B_s) % K, torch.arange(B_s)), Unlabelled(x_t, torch.arange(B_t))


def terms_by_hand(
    P: dict[str, Tensor], x_s: Tensor, y_s: Tensor, x_t: Tensor, estimator: Estimator
) -> dict[str, Tensor]:
    f = features(P, torch.cat([x_s, x_t]))
    z = layer(P, "classifier", f)
    p = softmax(z)
    labels = torch.stack([torch.stack([torch.exp(-distance(a, b) / 1.68) for b in p]) for a in p])
    return {
        "classification": cross_entropy(z[: len(x_s)], y_s),
        "jmmd": mmd(gaussians(f) * labels, len(x_s), estimator),
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
    for term, weight in {"classification": 1.0, "jmmd": 0.7 * RAMP}.items():
        assert_close(objective.terms[term], weight * wanted[term], rtol=1e-9, atol=1e-12)
        got, expected = gradients(objective.terms[term], of), gradients(wanted[term], P)
        for name in P:
            assert_close(got[name], weight * expected[name], rtol=1e-8, atol=1e-11, msg=f"{term}, {name}")


def test_the_joint_discrepancy_trains_the_classifier_too() -> None:
    method, (s, t) = build(), batch()
    (objective,) = method.step(s, t)
    assert gradients(objective.terms["jmmd"], {"w": method.classifier.weight})["w"].any()


def test_the_default_is_the_unbiased_estimate_with_the_ramp() -> None:
    method, (s, t) = build(), batch()
    wanted = terms_by_hand(copies(method), s.x, s.y, t.x, "unbiased")["jmmd"]
    for progress, ramp in [(0.0, 0.0), (0.1, 0.46212), (0.5, 0.98661)]:
        method.progress = progress
        (objective,) = method.step(s, t)
        assert_close(objective.terms["jmmd"], ramp * wanted, rtol=1e-4, atol=0)


def test_without_the_ramp_the_weight_is_constant() -> None:
    method, (s, t) = build(ramped=False, trade_off=0.3), batch()
    wanted = terms_by_hand(copies(method), s.x, s.y, t.x, "unbiased")["jmmd"]
    for method.progress in (0.0, 0.5):
        (objective,) = method.step(s, t)
        assert_close(objective.terms["jmmd"], 0.3 * wanted)


def test_certain_predictions_of_different_classes_have_a_label_kernel_of_0_3041() -> None:
    certain = torch.eye(2)
    label_kernel = torch.exp(-squared_distances(certain) / jan.LABEL_BANDWIDTH)
    assert label_kernel[0, 1].item() == pytest.approx(0.3041, abs=5e-5)


def test_the_label_kernel_multiplies_and_reads_probabilities_not_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """With huge logits the predictions are certain: the features' kernel is kept, or multiplied by 0.3041."""
    kernels: list[Tensor] = []
    monkeypatch.setattr(jan, "mmd", lambda k, n_s, estimator: kernels.append(k) or k.sum())
    method, (s, t) = build(), batch()
    with torch.no_grad():
        method.classifier.weight *= 1e6
        f = torch.cat(method.net.pair(s.x, t.x))
        y = method.classifier(f).argmax(1)
        list(method.step(s, t))
    same = y[:, None] == y
    assert same.any()
    assert not same.all()
    factor = torch.where(same, 1.0, math.exp(-2 / 1.68))
    assert_close(kernels[0], factor * gaussian_kernels(squared_distances(f)))


def test_identical_batches_have_no_biased_discrepancy() -> None:
    method, (s, _) = build(estimator="biased"), batch()
    (objective,) = method.step(s, Unlabelled(s.x, s.index))
    assert objective.terms["jmmd"].item() == pytest.approx(0, abs=1e-12)


def test_swapping_the_inputs_of_the_domains_leaves_the_discrepancy() -> None:
    method, (s, t) = build(), batch(6, 6)
    (one,) = method.step(s, t)
    (other,) = method.step(s._replace(x=t.x), t._replace(x=s.x))
    assert_close(one.terms["jmmd"], other.terms["jmmd"])


def test_predictions_are_the_classifiers() -> None:
    method, x = build().eval(), normal(7, 6)
    assert torch.equal(method.predict(x), method.classifier(method.net(x)))


def test_its_recipe_is_tlls() -> None:
    assert JAN.recipe == {"lr": 0.003, "decay": 3.0, "weight_decay": 5e-4}
