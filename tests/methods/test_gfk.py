"""GFK against the geodesic as the paper prints it, with the complement R_s built, integrated numerically."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from float64 import Rows, normal
from sklearn.svm import LinearSVC
from torch import Tensor, nn
from torch.testing import assert_close

from acclimate.data.batches import Pair
from acclimate.data.inputs import ArrayInputs
from acclimate.errors import DataError, OptionError
from acclimate.estimator import AdaptiveClassifier
from acclimate.methods import gfk
from acclimate.methods.gfk import GFK, agreed_dimension, flow, principal_axes
from acclimate.model import Model
from acclimate.networks.network import Network

K = 3


def basis(D: int, d: int) -> Tensor:
    return torch.linalg.qr(normal(D, d)).Q


def domains(n_s: int = 30, n_t: int = 24, D: int = 8) -> tuple[Tensor, Tensor]:
    """Classes 0, 1, 2, 0, ... in both; the target is shifted, and each of its features has another scale."""
    centres = 3 * normal(K, D)
    x_s = centres[torch.arange(n_s) % K] + 0.5 * normal(n_s, D)
    x_t = centres[torch.arange(n_t) % K] + 0.5 * normal(n_t, D)
    return x_s, x_t * (1 + torch.rand(D, dtype=torch.float64)) + 2 * normal(D)


def fitted(x_s: Tensor, x_t: Tensor, y_s: Tensor | None = None, **options: Any) -> GFK:
    method = GFK(Network(nn.Identity(), nn.Identity(), x_s.shape[1], bottleneck=7, level="vector"), K, **options)
    y_s = torch.arange(len(x_s)) % K if y_s is None else y_s
    assert list(method.stages(Pair(Rows(x_s), y_s.numpy(), Rows(x_t)))) == []
    return method.eval()


# The reference


def kernel_by_hand(P_s: np.ndarray, P_t: np.ndarray) -> np.ndarray:
    """The integral of Phi(t) Phi(t)^T, Phi(t) = P_s U_1 cos(t theta) - R_s U_2 sin(t theta), by 60 points."""
    D, d = P_s.shape
    R_s = np.linalg.svd(P_s)[0][:, d:]
    U_1, cos, Vt = np.linalg.svd(P_s.T @ P_t)
    theta = np.arccos(np.clip(cos, -1, 1))
    U_2 = -(R_s.T @ P_t @ Vt.T) / np.sin(theta)
    G = np.zeros((D, D))
    for point, weight in zip(*np.polynomial.legendre.leggauss(60), strict=True):
        t = (point + 1) / 2
        phi = P_s @ U_1 * np.cos(t * theta) - R_s @ U_2 * np.sin(t * theta)
        G += weight / 2 * phi @ phi.T
    return G


def standardised(X: np.ndarray) -> np.ndarray:
    return (X - X.mean(0)) / X.std(0)


def axes_by_hand(X: np.ndarray) -> np.ndarray:
    return np.linalg.svd(X, full_matrices=False)[2].T


# The kernel


@pytest.mark.parametrize(("D", "d"), [(9, 1), (9, 3), (20, 7), (8, 4)])
def test_the_kernel_is_the_integral_along_the_geodesic(D: int, d: int) -> None:
    P_s, P_t = basis(D, d), basis(D, d)
    B = flow(P_s, P_t)
    assert B.shape == (D, 2 * d)
    assert_close(B @ B.T, torch.from_numpy(kernel_by_hand(P_s.numpy(), P_t.numpy())), rtol=0, atol=1e-12)


def test_of_two_lines_in_a_plane_the_kernel_is_the_textbooks() -> None:
    theta = 0.7
    P_s, P_t = torch.eye(2).double()[:, :1], torch.tensor([[math.cos(theta)], [math.sin(theta)]]).double()
    B = flow(P_s, P_t)
    both = math.sin(2 * theta) / (2 * theta)
    off = (1 - math.cos(2 * theta)) / (2 * theta)
    assert_close(B @ B.T, torch.tensor([[1 + both, off], [off, 1 - both]]).double() / 2, rtol=0, atol=1e-7)


def test_the_geodesic_takes_the_short_way() -> None:
    """With the wrong sign of Q, the kernel would favour the mirror image of the target's subspace."""
    P_s, P_t = basis(9, 2), basis(9, 2)
    B = flow(P_s, P_t)
    mirrored = 2 * P_s @ P_s.T @ P_t - P_t
    assert (B.T @ P_t).norm() > (B.T @ mirrored).norm() + 0.01


def test_between_identical_subspaces_the_kernel_is_the_projection() -> None:
    P = basis(9, 3)
    rotated = P @ torch.linalg.qr(normal(3, 3)).Q
    for P_t in (P, rotated, -P):
        B = flow(P, P_t)
        assert_close(B @ B.T, P @ P.T, rtol=0, atol=1e-10)
    e = torch.eye(9).double()[:, :3]  # whose angles are 0 without rounding
    assert_close(flow(e, e) @ flow(e, e).T, e @ e.T, rtol=0, atol=1e-12)


def test_subspaces_may_share_directions_and_fill_more_than_half_of_the_space() -> None:
    P = basis(6, 6)
    G = (lambda B: B @ B.T)(flow(P[:, :2], P[:, [0, 2]]))
    assert_close(P[:, 0] @ G @ P[:, 0], torch.ones(()).double())
    assert_close(P[:, 3] @ G @ P[:, 3], torch.zeros(()).double())
    assert_close(P[:, 1] @ G @ P[:, 1], torch.full((), 0.5).double())  # a right angle away from P[:, 2]
    G = (lambda B: B @ B.T)(flow(P, basis(6, 6)))
    assert_close(G, torch.eye(6).double(), rtol=0, atol=1e-10)
    B = flow(P[:, :5], basis(6, 5))
    assert B.isfinite().all()
    assert torch.linalg.eigvalsh(B @ B.T).max() < 1 + 1e-10


def test_the_kernels_eigenvalues_lie_between_0_and_1_and_a_swap_changes_nothing() -> None:
    P_s, P_t = basis(12, 4), basis(12, 4)
    there, back = flow(P_s, P_t), flow(P_t, P_s)
    values = torch.linalg.eigvalsh(there @ there.T)
    assert values.min() > -1e-12
    assert values.max() < 1 + 1e-12
    assert_close(there @ there.T, back @ back.T, rtol=0, atol=1e-12)


def test_a_tiny_angle_is_no_division_by_0() -> None:
    P_s = basis(9, 3)
    for angle in (1e-4, 1e-7, 1e-9, 1e-12):
        B = flow(P_s, torch.linalg.qr(P_s + angle * normal(9, 3)).Q)
        assert_close(B @ B.T, P_s @ P_s.T, rtol=0, atol=10 * angle + 1e-10)


# The subspaces


@pytest.mark.parametrize(("n", "D", "rank"), [(20, 6, 6), (6, 20, 5), (5, 5, 4), (1, 4, 0), (20, 30, 3)])
def test_the_axes_are_those_of_the_largest_variance_and_as_many_as_there_are(n: int, D: int, rank: int) -> None:
    x = normal(n, rank) @ normal(rank, D) if rank == 3 else normal(n, D)
    x = x - x.mean(0)
    P = principal_axes(x)
    assert P.shape == (D, rank)
    assert_close(P.T @ P, torch.eye(rank).double(), rtol=0, atol=1e-10)
    wanted = torch.from_numpy(axes_by_hand(x.numpy())[:, :rank])
    assert_close((P * wanted).sum(0).abs(), torch.ones(rank).double(), rtol=0, atol=1e-8)


def test_the_dimension_is_the_least_at_which_the_domains_disagree_fully() -> None:
    e = torch.eye(12).double()
    assert agreed_dimension(e, e, e) == 6  # they never disagree: half the features
    # The third axis of each domain lies at a right angle to the first three of both together, the second does not.
    P = e[:, [0, 1, 2, 3, 4]]
    apart = e[:, [0, 1, 5, 3, 4]]
    assert agreed_dimension(apart, apart, P) == 3
    assert agreed_dimension(apart, P, P) == 5  # the mean of the two sines, 1/2, is not 1: the axes end at 5


def test_the_disagreement_is_the_mean_of_two_sines_rounded_to_two_digits() -> None:
    e = torch.eye(12).double()

    def turned(sine: float) -> Tensor:
        return torch.stack([math.sqrt(1 - sine**2) * e[0] + sine * e[1], e[2], e[3], e[4]], 1)

    P = e[:, [0, 2, 3, 4]]
    assert agreed_dimension(turned(0.992), turned(0.999), P) == 1
    assert agreed_dimension(turned(0.990), turned(0.999), P) == 4


def test_the_search_ends_where_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gfk, "MOST_AXES", 2)
    e = torch.eye(12).double()
    assert agreed_dimension(e, e, e) == 2
    assert agreed_dimension(e[:, :1], e, e) == 1


# The method


def test_the_nearest_neighbour_is_the_nearest_in_the_kernels_distance() -> None:
    x_s, x_t = domains()
    method = fitted(x_s, x_t, dim=3, classifier="1nn")
    X_s, X_t = standardised(x_s.numpy()), standardised(x_t.numpy())
    G = kernel_by_hand(axes_by_hand(X_s)[:, :3], axes_by_hand(X_t)[:, :3])
    logits = method.predict(x_t)
    scale = method.classifier.fitted["scale"].item()
    for i, x in enumerate(X_t):
        distance = np.array([x @ G @ x + other @ G @ other - 2 * x @ G @ other for other in X_s])
        wanted = [-scale * math.sqrt(distance[k::K].min()) for k in range(K)]
        assert_close(logits[i], torch.tensor(wanted).double(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("normalise", ["zscore", "centre"])
def test_the_svm_is_that_of_the_kernel(normalise: Any) -> None:
    x_s, x_t = domains()
    method = fitted(x_s, x_t, dim=3, normalise=normalise)
    X_s, X_t = ((x - x.mean(0)) / (x.std(0) if normalise == "zscore" else 1) for x in (x_s.numpy(), x_t.numpy()))
    values, vectors = np.linalg.eigh(kernel_by_hand(axes_by_hand(X_s)[:, :3], axes_by_hand(X_t)[:, :3]))
    root = vectors * np.sqrt(np.clip(values, 0, None))  # D features with the same inner products
    scale = math.sqrt(6 / (X_s @ root).var(0).sum())
    svm = LinearSVC(dual=False, tol=1e-8).fit(scale * X_s @ root, np.arange(30) % K)
    assert_close(method.predict(x_t), torch.from_numpy(svm.decision_function(scale * X_t @ root)), rtol=0, atol=1e-3)


def test_without_a_dimension_the_disagreement_of_the_normalised_domains_decides() -> None:
    x_s, x_t = domains(60, 50, 40)
    method = fitted(x_s, x_t)
    z_s, z_t = (torch.from_numpy(standardised(x.numpy())) for x in (x_s, x_t))
    dim = agreed_dimension(*(torch.from_numpy(axes_by_hand(z.numpy())) for z in (z_s, z_t, torch.cat([z_s, z_t]))))
    assert 1 < dim < 20
    assert method.fitted["projection"].shape == (40, 2 * dim)


def test_a_sample_is_normalised_by_the_targets_statistics() -> None:
    x_s, x_t = domains()
    method = fitted(x_s, x_t)
    assert_close(method.fitted["mean_target"], x_t.mean(0))
    assert_close(method.fitted["length_target"], x_t.std(0, correction=0))
    assert_close(method.predict(x_t[:1]), method.predict(x_t)[:1])
    # However the target is shifted and scaled, its predictions are the same.
    moved = fitted(x_s, 5 * x_t - 3)
    assert_close(moved.predict(5 * x_t - 3), method.predict(x_t), rtol=1e-5, atol=1e-7)
    assert (method.predict(x_t).argmax(1) == torch.arange(24) % K).double().mean() > 0.8


def test_it_has_nothing_to_train() -> None:
    x_s, x_t = domains()
    method = fitted(x_s, x_t)
    assert not list(method.parameters())
    s, t = Pair(Rows(x_s), np.arange(30) % K, Rows(x_t), batch_size=4).batch(0)
    assert list(method.step(s, t)) == []


def test_in_float32_predictions_are_those_of_float64_rounded() -> None:
    x_s, x_t = (x.float() for x in domains())
    exact = fitted(x_s.double(), x_t.double())
    method = GFK(Network(nn.Identity(), nn.Identity(), 8, level="vector"), K)
    list(method.stages(Pair(ArrayInputs(x_s[None].numpy()), np.arange(30) % K, ArrayInputs(x_t[None].numpy()))))
    assert {v.dtype for v in method.state_dict().values()} == {torch.float32}
    assert_close(method.predict(x_t).double(), exact.predict(x_t.double()), rtol=1e-3, atol=1e-3)


# Edges


@pytest.mark.parametrize("options", [{}, {"normalise": "centre"}, {"classifier": "logistic"}, {"classifier": "1nn"}])
@pytest.mark.parametrize(("n_t", "D"), [(5, 8), (5, 40), (2, 8)])
def test_domains_may_be_small_and_features_constant(options: dict[str, Any], n_t: int, D: int) -> None:
    x_s, x_t = domains(20, n_t, D)
    x_s[:, 0] = x_t[:, 0] = 3.0
    x_s[:, 1] = 0.1  # in one domain alone
    y_s = torch.tensor([2] + [0, 1] * 9 + [0])  # a class of one sample
    method = fitted(x_s, x_t, y_s, **options)
    assert method.fitted["projection"].shape[1] <= 2 * (n_t - 1)
    assert method.predict(x_t).shape == (n_t, K)
    assert method.predict(x_t).isfinite().all()


def test_a_dimension_above_the_rank_of_a_domain_is_refused() -> None:
    x_s, x_t = domains(30, 5, 8)
    with pytest.raises(OptionError, match=r"dim of gfk must be at most 4 here, the rank of the target, not 6\."):
        fitted(x_s, x_t, dim=6)
    with pytest.raises(OptionError, match="the rank of the source"):
        fitted(x_t, x_s, dim=6)
    assert fitted(x_s, x_t, dim=4).fitted["projection"].shape == (8, 8)


def test_a_domain_whose_samples_are_all_alike_is_refused() -> None:
    x_s, x_t = domains()
    with pytest.raises(DataError, match="samples of the target have all the same features"):
        fitted(x_s, x_t[:1])
    with pytest.raises(DataError, match="samples of the source have all the same features"):
        fitted(x_s[:1].float().double().repeat(9, 1), x_t)


def test_through_scikit_learn_and_saved(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    X = rng.normal(size=(60, 5)) + np.outer(4 * y - 2, [1, 1, 0, 0, -1])
    X_target = 2 * X[:40] + [0, 0, 3, 0, 5]
    classifier = AdaptiveClassifier(method="gfk", random_state=0).fit(X, np.array(["no", "yes"])[y], X_target=X_target)
    probabilities = classifier.predict_proba(X_target)
    assert probabilities.shape == (40, 2)
    assert_close(probabilities.sum(1), np.ones(40))
    assert (classifier.predict(X_target) == np.array(["no", "yes"])[y[:40]]).mean() > 0.9
    classifier.model_.save(tmp_path)
    saved, inputs = Model.load(tmp_path), torch.from_numpy(X_target).float()
    assert torch.equal(saved.method.predict(inputs), classifier.model_.method.predict(inputs))
