"""CBST and CRST against the papers' formulas written out sample by sample, and a run against one by hand."""

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
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from acclimate.data.batches import Labelled, Pair, Unlabelled
from acclimate.errors import OptionError
from acclimate.methods.crst import CRST, MODEL_REGULARIZERS, class_thresholds, pseudo_labels
from acclimate.networks.network import Network
from acclimate.settings import Recipe
from acclimate.training import Checkpoint, train

K, N_S, N_T, B = 2, 24, 26, 8
SOFT, HARD = ["lrent", "mrkld+lrent"], ["none", "mrkld", "mrl2", "mrent"]


def build(seed: int = 0, **options: Any) -> CRST:
    torch.manual_seed(seed)
    method = CRST(Network(nn.Linear(6, 5), nn.Identity(), 5, bottleneck=4), K, **options).double()
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return method


def data() -> Pair:
    torch.manual_seed(7)
    y = torch.arange(N_S) % K
    x_s, x_t = normal(N_S, 6) + y[:, None], normal(N_T, 6) + torch.arange(N_T)[:, None] % K + 0.5
    return Pair(Rows(x_s), y.numpy(), Rows(x_t), batch_size=B, seed=3)


def rows(*first: float) -> Tensor:
    """Two classes, by the probability of the first."""
    p = torch.tensor(first, dtype=torch.float64)
    return torch.stack([p, 1 - p], 1)


# The reference, sample by sample


def thresholds_by_hand(p: Tensor, portion: float) -> list[float]:
    found = []
    for k in range(p.shape[1]):
        confidences = sorted((max(row) for row in p.tolist() if row.index(max(row)) == k), reverse=True)
        n = int(portion * len(confidences) + 1e-9)
        found.append(confidences[n - 1] if n > 0 else 1.0)
    return found


def label_by_hand(p: list[float], thresholds: list[float], alpha: float | None) -> list[float]:
    """Zeros where the sample is not kept."""
    ratio = [a / b for a, b in zip(p, thresholds, strict=True)]
    if alpha is None:
        best = ratio.index(max(ratio))
        return [float(k == best and ratio[best] >= 1) for k in range(len(p))]
    weight = [r ** (1 / alpha) for r in ratio]
    y = [w / sum(weight) for w in weight]
    energy = sum(-a * math.log(b) + alpha * a * math.log(a) for a, b in zip(y, p, strict=True))
    unlabelled = sum(-a * math.log(b) for a, b in zip(y, thresholds, strict=True))
    return y if energy < unlabelled else [0.0] * len(p)


def regulariser_by_hand(kind: str, p: Tensor) -> Tensor:
    return {
        "mrkld": lambda: -sum(p[k].log() for k in range(len(p))) / len(p),
        "mrl2": lambda: sum(p[k] ** 2 for k in range(len(p))),
        "mrent": lambda: sum(p[k] * p[k].log() for k in range(len(p))),
    }[kind]()


# Thresholds


def test_of_ten_samples_a_portion_of_a_fifth_keeps_two_of_each_class() -> None:
    first = [0.99, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55]
    second = [0.3, 0.32, 0.34, 0.36, 0.38, 0.4, 0.42, 0.44, 0.46, 0.48]
    p = rows(*first, *second)[torch.randperm(20)]
    thresholds = class_thresholds(p, 0.2)
    assert_close(thresholds, torch.tensor([0.95, 0.68], dtype=torch.float64))
    labels = pseudo_labels(p, thresholds, None)
    assert labels.sum(0).tolist() == [2, 2]  # one threshold for both would keep the first class alone
    assert_close(labels[p[:, 0] >= 0.95, 0], torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("portion", "n"), [(0.19, 1), (0.2, 2), (0.3, 3), (0.2 + 0.05 + 0.05, 3), (0.35, 3), (1.0, 10)]
)
def test_the_portion_of_the_samples_predicted_as_a_class_is_rounded_down(portion: float, n: int) -> None:
    p = rows(*[0.6 + 0.03 * i for i in range(10)], *[0.1] * 30)
    assert_close(class_thresholds(p, portion)[0], p[:10, 0].sort(descending=True).values[n - 1])


def test_a_portion_that_floating_point_puts_below_a_whole_number_counts_it() -> None:
    p = rows(*[0.51 + 0.004 * i for i in range(100)])
    assert 0.29 * 100 < 29
    assert_close(class_thresholds(p, 0.29)[0], p[:, 0].sort(descending=True).values[28])


def test_a_class_with_too_few_samples_or_none_keeps_nothing() -> None:
    p = torch.tensor([[0.9, 0.06, 0.04]] * 4 + [[0.1, 0.6, 0.3]] * 9, dtype=torch.float64)
    thresholds = class_thresholds(p, 0.2)  # 0.8 samples of the first, 1.8 of the second, none of the third
    assert_close(thresholds, torch.tensor([1.0, 0.6, 1.0], dtype=torch.float64))
    assert not pseudo_labels(p, thresholds, None)[:4].any()


@pytest.mark.parametrize("portion", [0.05, 0.2, 0.5, 1.0])
def test_thresholds_are_those_of_the_definition(portion: float) -> None:
    p = (2 * normal(40, 5)).softmax(1)
    assert_close(class_thresholds(p, portion), torch.tensor(thresholds_by_hand(p, portion), dtype=torch.float64))


# Labels


def test_a_sample_gets_the_class_whose_threshold_it_exceeds_most_not_the_one_it_is_predicted_as() -> None:
    p, thresholds = rows(0.6, 0.6, 0.9), torch.tensor([0.9, 0.3], dtype=torch.float64)
    assert pseudo_labels(p, thresholds, None).tolist() == [[0, 1], [0, 1], [1, 0]]


@pytest.mark.parametrize("alpha", [None, 0.1, 0.25, 1.0])
def test_labels_are_those_of_the_definition(alpha: float | None) -> None:
    p = (2 * normal(60, 4)).softmax(1)
    thresholds = thresholds_by_hand(p, 0.4)
    wanted = [label_by_hand(row, thresholds, alpha) for row in p.tolist()]
    labels = pseudo_labels(p, torch.tensor(thresholds, dtype=torch.float64), alpha)
    assert labels.any()
    assert labels.any(1).all() == (alpha == 1)  # where the sum of p / lambda is at least 1 for all
    assert_close(labels, torch.tensor(wanted, dtype=torch.float64))


def test_soft_labels_with_alpha_1_and_equal_thresholds_are_the_prediction_and_with_alpha_near_0_one_hot() -> None:
    p, thresholds = (2 * normal(30, 4)).softmax(1), torch.full((4,), 0.25, dtype=torch.float64)
    assert_close(pseudo_labels(p, thresholds, 1.0 - 1e-12), p)
    clear = p.amax(1) > 0.4
    assert_close(pseudo_labels(p, thresholds, 1e-6)[clear], pseudo_labels(p, thresholds, None)[clear])


def test_saturated_predictions_leave_finite_labels() -> None:
    p = torch.tensor([[1.0, 0.0], [1 - 1e-300, 1e-300], [0.5, 0.5]], dtype=torch.float64)
    for alpha in (None, 0.25):
        labels = pseudo_labels(p, class_thresholds(p, 0.7), alpha)
        assert labels.isfinite().all()
        assert labels.any(1).tolist() == [True, True, False]


# Regularisers


@pytest.mark.parametrize("kind", ["mrkld", "mrl2", "mrent"])
def test_model_regularisers_are_those_of_the_paper(kind: str) -> None:
    z = normal(5, 4).requires_grad_()
    r = MODEL_REGULARIZERS[kind](z.log_softmax(1))
    p = z.exp() / z.exp().sum(1, keepdim=True)
    assert_close(r, torch.stack([regulariser_by_hand(kind, row) for row in p]))
    assert torch.autograd.gradcheck(lambda z: MODEL_REGULARIZERS[kind](z.log_softmax(1)), z)
    uniform = MODEL_REGULARIZERS[kind](torch.zeros(1, 4, dtype=torch.float64).log_softmax(1)).item()
    assert uniform == pytest.approx({"mrkld": math.log(4), "mrl2": 1 / 4, "mrent": -math.log(4)}[kind])
    assert (r > uniform).all()  # what is uniform is least confident


def test_mrkld_is_label_smoothing() -> None:
    z, y, alpha = normal(6, 5), torch.arange(6) % 5, 0.1
    mine = cross_entropy(z, y) + alpha * MODEL_REGULARIZERS["mrkld"](z.log_softmax(1)).mean()
    smoothing = alpha * (5 - 1) / (5 * (1 + alpha)) * 5 / (5 - 1)  # of torch, which also smooths over the label itself
    assert_close(mine, (1 + alpha) * cross_entropy(z, y, label_smoothing=smoothing))


# The objective


def a_round(method: CRST, labels: Tensor) -> tuple[Labelled, Unlabelled]:
    method.pseudo.put(labels=labels)
    s = Labelled(normal(8, 6).requires_grad_(), torch.arange(8) % K, torch.arange(8))
    return s, Unlabelled(normal(4, 6).requires_grad_(), torch.tensor([5, 0, 3, 1]))


@pytest.mark.parametrize("regularizer", HARD + SOFT)
def test_the_loss_is_over_the_kept_samples_of_the_batch_by_their_place_in_the_target(regularizer: Any) -> None:
    method = build(regularizer=regularizer, alpha=0.3)
    table = torch.zeros(6, K, dtype=torch.float64)
    table[0], table[1], table[4] = torch.tensor([0.25, 0.75]), torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])
    s, t = a_round(method, table)
    (objective,) = method.adapt(s, t)
    assert not objective.over
    f_s, f_t = method.net.pair(s.x, t.x)
    p = method.classifier(f_t).softmax(1)
    # rows 5 and 3 are not kept; row 4 is not in the batch
    terms = {
        "classification": cross_entropy(method.classifier(f_s), s.y),
        "self_training": -(0.25 * p[1, 0].log() + 0.75 * p[1, 1].log() + p[3, 0].log()) / 2,
    }
    if kind := next((kind for kind in MODEL_REGULARIZERS if kind in regularizer), None):
        terms["regularizer"] = 0.3 * (regulariser_by_hand(kind, p[1]) + regulariser_by_hand(kind, p[3])) / 2
    assert objective.terms.keys() == terms.keys()
    parameters = [*method.parameters(), s.x, t.x]
    for name, wanted in terms.items():
        got = objective.terms[name]
        assert_close(got, wanted)
        for a, b in zip(
            torch.autograd.grad(got, parameters, retain_graph=True, allow_unused=True),
            torch.autograd.grad(wanted, parameters, retain_graph=True, allow_unused=True),
            strict=True,
        ):
            assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_batch_without_a_kept_sample_trains_on_the_source() -> None:
    method = build()
    s, t = a_round(method, torch.zeros(6, K, dtype=torch.float64))
    (objective,) = method.adapt(s, t)
    for name in ("self_training", "regularizer"):
        assert objective.terms[name].item() == 0
        grads = torch.autograd.grad(objective.terms[name], list(method.parameters()), retain_graph=True)
        assert not any(g.any() for g in grads)
    assert objective.terms["classification"] > 0


def test_the_source_stage_never_sees_the_target() -> None:
    method = build()
    s, t = next(data().batches(1))
    (objective,) = method.step(s, Unlabelled(t.x * float("nan"), t.index))
    assert set(objective.terms) == {"classification"}
    assert objective.terms["classification"].isfinite()
    assert method.net.bottleneck[1].running_mean.isfinite().all()


# Training


def run(method: CRST, steps: int = 10, **recipe: Any) -> list[str]:
    return [p.stage for p in train(method, data(), Recipe(steps=steps, batch_size=B, **recipe))]


def softmax_in_evaluation_mode(method: CRST, x: Tensor) -> Tensor:
    method.eval()
    with torch.no_grad():
        p = method.predict(x).softmax(1)
    method.train()
    return p


@pytest.mark.parametrize("regularizer", ["none", "mrl2", "lrent", "mrkld+lrent"])
def test_a_run_of_two_rounds_is_the_one_by_hand(regularizer: Any) -> None:
    options = {"regularizer": regularizer, "pretrain": 0.5, "rounds": 2, "portion": 0.3, "portion_step": 0.2}
    method, by_hand = build(**options), build(**options)
    assert run(method, lr=0.05, weight_decay=1e-2) == ["source"] * 5 + ["round 1"] * 3 + ["round 2"] * 2

    slow = list(by_hand.net.encoder.parameters())
    others = [p for p in by_hand.parameters() if all(p is not q for q in slow)]
    optimizer = torch.optim.SGD(
        [{"params": slow, "factor": 0.1}, {"params": others, "factor": 1.0}],
        lr=0.05,
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-2,
    )
    pair, alpha = data(), 0.25 if "lrent" in regularizer else None
    kind = next((kind for kind in MODEL_REGULARIZERS if kind in regularizer), None)
    by_hand.train()
    for i in range(10):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * group["factor"] * (1 + i) ** -0.75
        if i in (5, 8):
            p = softmax_in_evaluation_mode(by_hand, pair.target.rows)
            thresholds = thresholds_by_hand(p, {5: 0.3, 8: 0.5}[i])
            table = torch.tensor([label_by_hand(row, thresholds, alpha) for row in p.tolist()], dtype=torch.float64)
        s, t = pair.batch(i)
        if i < 5:
            loss = cross_entropy(by_hand.predict(s.x), s.y)
        else:
            z_s, z_t = by_hand.classifier(by_hand.net(torch.cat([s.x, t.x]))).split(B)
            kept = [j for j in range(B) if any(table[t.index[j]])]
            losses = [-(table[t.index[j]] * z_t[j].log_softmax(0)).sum() for j in kept]
            if kind:
                losses = [
                    loss + 0.1 * regulariser_by_hand(kind, z_t[j].softmax(0))
                    for loss, j in zip(losses, kept, strict=True)
                ]
            loss = cross_entropy(z_s, s.y) + (torch.stack(losses).mean() if kept else 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    wanted = by_hand.state_dict()
    for name, tensor in method.state_dict().items():
        assert_close(tensor, wanted[name], rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_each_round_keeps_more_up_to_the_most() -> None:
    method = build(rounds=5, portion=0.2, portion_step=0.2, portion_max=0.5, regularizer="none")
    method.train()
    stages = method.stages(data())
    next(stages)
    kept = [int(method.pseudo["labels"].any(1).sum()) for _ in stages]
    p = softmax_in_evaluation_mode(method, data().target.rows)
    counts = [int((p.argmax(1) == k).sum()) for k in range(K)]
    assert kept == [sum(int(portion * n + 1e-9) for n in counts) for portion in (0.2, 0.4, 0.5, 0.5, 0.5)]


def test_the_target_is_labelled_in_evaluation_mode_and_training_mode_comes_back() -> None:
    method = build()
    method.train()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    stages = method.stages(data())
    next(stages), next(stages)
    assert all(module.training for module in method.modules())
    assert all(torch.equal(tensor, method.state_dict()[name]) for name, tensor in before.items())
    assert method.pseudo["labels"].shape == (N_T, K)


@pytest.mark.parametrize("stop", [3, 5, 6, 9, 10])
def test_a_run_resumed_at_any_step_ends_with_the_same_bits(stop: int, tmp_path: Path) -> None:
    options = {"pretrain": 0.5, "rounds": 3}
    unbroken = build(**options)
    for progress in train(unbroken, data(), Recipe(steps=10, batch_size=B)):
        if progress.step == stop:
            progress.checkpoint().save(tmp_path / "at")
    resumed = build(seed=5, **options)
    for _ in train(resumed, data(), Recipe(steps=10, batch_size=B), Checkpoint.load(tmp_path / "at")):
        pass
    wanted = unbroken.state_dict()
    assert resumed.state_dict().keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in resumed.state_dict().items())


def test_the_model_does_not_carry_the_pseudo_labels(tmp_path: Path) -> None:
    method = build(rounds=2)
    run(method)
    assert method.state_dict().keys() == build().state_dict().keys()
    save_file(method.state_dict(), tmp_path / "m")
    other = build(seed=1)
    other.load_state_dict(load_file(tmp_path / "m"))
    x = normal(7, 6)
    assert torch.equal(other.eval().predict(x), method.eval().predict(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretrain": 0.0}, "pretrain of crst must lie between 0 and 1"),
        ({"pretrain": 1.0}, "pretrain of crst must lie between 0 and 1"),
        ({"portion_max": 1.5}, "portion_max of crst must be at most 1"),
        ({"alpha_lrent": 0.0}, "alpha_lrent of crst must be above 0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build(**options)


def test_alpha_lrent_is_free_where_it_is_not_used() -> None:
    assert build(regularizer="mrkld", alpha_lrent=0.0).softness is None


def test_the_portion_is_bounded_by_the_most_from_the_start() -> None:
    method = build(portion=0.9, portion_max=0.1, rounds=1, regularizer="none")
    list(method.stages(data()))
    assert "labels" not in method.pseudo
    assert np.isclose(sum(stage.share for stage in method.stages(data())), 1)
