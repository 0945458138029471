"""TCA against the eigenproblem as the paper prints it: n x n matrices and an eigensolver that knows no symmetry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from float64 import Rows, normal
from torch import Tensor, nn
from torch.testing import assert_close

from acclimate.data.batches import Pair
from acclimate.data.inputs import ArrayInputs
from acclimate.errors import DataError, OptionError
from acclimate.estimator import AdaptiveClassifier
from acclimate.methods import tca
from acclimate.methods.tca import TCA
from acclimate.model import Model
from acclimate.networks.network import Network

K = 3
TALL, WIDE = (14, 12, 5), (6, 5, 17)  # n_s, n_t, D


def domains(n_s: int, n_t: int, D: int) -> tuple[Tensor, Tensor]:
    """Classes 0, 1, 2, 0, ... in both; the target is shifted."""
    centres = 2 * normal(K, D)
    x_s = centres[torch.arange(n_s) % K] + 0.5 * normal(n_s, D)
    return x_s, centres[torch.arange(n_t) % K] + 0.5 * normal(n_t, D) + 0.7 * normal(D)


def fitted(x_s: Tensor, x_t: Tensor, y_s: Tensor | None = None, **options: Any) -> TCA:
    method = TCA(Network(nn.Identity(), nn.Identity(), x_s.shape[1], bottleneck=7, level="vector"), K, **options)
    y_s = torch.arange(len(x_s)) % K if y_s is None else y_s
    assert list(method.stages(Pair(Rows(x_s), y_s.numpy(), Rows(x_t)))) == []
    return method.eval()


def same_up_to_sign(Z: Tensor, wanted: Tensor, atol: float = 1e-7) -> None:
    assert Z.shape == wanted.shape
    assert_close(Z * (Z * wanted).sum(0).sign(), wanted, rtol=0, atol=atol)


# The reference


def normalised(X: np.ndarray, how: str) -> np.ndarray:
    if how == "l2":
        return X / np.sqrt((X**2).sum(1, keepdims=True))
    if how == "zscore":
        return (X - X.mean(0)) / X.std(0) / np.sqrt(X.shape[1])
    return X


def kernel_by_hand(X: np.ndarray, kernel: str) -> np.ndarray:
    if kernel == "linear":
        return X @ X.T
    n = len(X)
    squared = np.array([[((a - b) ** 2).sum() for b in X] for a in X])
    return np.exp(-squared / (2 * np.sort(squared[np.triu_indices(n, 1)])[(n * (n - 1) // 2 - 1) // 2]))


def embedding_by_hand(X: np.ndarray, n_s: int, kernel: str, mu: float, m: int) -> Tensor:
    n = len(X)
    gram = kernel_by_hand(X, kernel)
    L = np.empty((n, n))
    L[:n_s, :n_s], L[n_s:, n_s:] = 1 / n_s**2, 1 / (n - n_s) ** 2
    L[:n_s, n_s:] = L[n_s:, :n_s] = -1 / (n_s * (n - n_s))
    H = np.eye(n) - np.ones((n, n)) / n
    values, vectors = np.linalg.eig(np.linalg.inv(gram @ L @ gram + mu * np.eye(n)) @ gram @ H @ gram)
    W = vectors[:, np.argsort(-values.real)[:m]].real
    W = W / np.sqrt(np.diag(W.T @ gram @ H @ gram @ W))
    return torch.from_numpy(gram @ W)


# The embedding


@pytest.mark.parametrize("shape", [TALL, WIDE])
@pytest.mark.parametrize("normalise", ["l2", "zscore", "none"])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("mu", [1.0, 0.05])
def test_the_embedding_is_that_of_the_printed_eigenproblem(
    kernel: str, normalise: str, mu: float, shape: tuple[int, int, int]
) -> None:
    x_s, x_t = domains(*shape)
    X = torch.cat([x_s, x_t])
    method = fitted(x_s, x_t, kernel=kernel, normalise=normalise, mu=mu, dim=4)
    wanted = embedding_by_hand(normalised(X.numpy(), normalise), len(x_s), kernel, mu, 4)
    same_up_to_sign(method.embedding(X), wanted)


def test_the_linear_kernels_small_problem_gives_the_embedding_of_the_large_one() -> None:
    x_s, x_t = domains(*TALL)
    X = torch.cat([x_s, x_t])
    e = torch.cat([torch.full((14,), 1 / 14.0).double(), torch.full((12,), -1 / 12.0).double()])
    dual = X @ X.T @ tca.components(X @ X.T, e, 1.0, 5)
    root = tca.root_of_gram(X)
    assert root.shape == (5, 5)
    assert_close(root @ root.T, X.T @ X)
    primal = X @ root @ tca.components(X @ root, e, 1.0, 5)
    same_up_to_sign(primal, dual)
    # A penalty on the projection itself, tr(P^T P), would be another problem.
    other = X @ tca.components(X, e, 1.0, 5)
    assert not torch.allclose(other.abs(), dual.abs(), atol=1e-3)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("shape", [TALL, WIDE])
def test_components_are_uncorrelated_and_have_the_scatter_1(kernel: str, shape: tuple[int, int, int]) -> None:
    x_s, x_t = domains(*shape)
    Z = fitted(x_s, x_t, kernel=kernel, dim=4).embedding(torch.cat([x_s, x_t]))
    H_Z = Z - Z.mean(0)
    assert_close(H_Z.T @ H_Z, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-9)  # W^T K H K W = I


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_of_identical_domains_the_embeddings_have_the_same_mean(kernel: str) -> None:
    x_s, _ = domains(*TALL)
    method = fitted(x_s, x_s.flip(0), kernel=kernel, dim=4)
    Z_s, Z_t = method.embedding(x_s), method.embedding(x_s.flip(0))
    assert_close(Z_s.mean(0), Z_t.mean(0), rtol=0, atol=1e-12)


def test_the_less_the_penalty_weighs_the_closer_the_means() -> None:
    x_s, x_t = domains(30, 30, 10)
    x_t = x_t + 3
    gap = [
        (method.embedding(x_s).mean(0) - method.embedding(x_t).mean(0)).norm()
        for method in (fitted(x_s, x_t, mu=mu, dim=5, normalise="none") for mu in (1.0, 1e-2, 1e-4))
    ]
    assert gap[0] > 10 * gap[1] > 100 * gap[2] > 0


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("normalise", ["l2", "zscore"])
def test_source_and_target_may_change_places(kernel: str, normalise: str) -> None:
    x_s, x_t = domains(*TALL)
    there, back = (fitted(a, b, kernel=kernel, normalise=normalise, dim=4) for a, b in ((x_s, x_t), (x_t, x_s)))
    same_up_to_sign(back.embedding(x_t), there.embedding(x_t))


def test_a_sample_that_was_not_there_is_compared_with_those_that_were() -> None:
    x_s, x_t = domains(*TALL)
    method, x = fitted(x_s, x_t, kernel="rbf", normalise="none", dim=4), normal(3, 5)
    X = torch.cat([x_s, x_t])
    for i in range(3):
        k = torch.stack([torch.exp(-((x[i] - other) ** 2).sum() / (2 * method.fitted["sigma2"])) for other in X])
        assert_close(method.embedding(x)[i], k @ method.fitted["W"])


def test_zscoring_keeps_the_statistics_of_both_domains_together() -> None:
    x_s, x_t = domains(*TALL)
    method = fitted(x_s, x_t, normalise="zscore")
    X = torch.cat([x_s, x_t])
    assert_close(method.fitted["mean"], X.mean(0))
    assert_close(method.fitted["length"], X.std(0, correction=0) * 5**0.5)
    assert_close(method.embedding(x_t[:1]), method.embedding(x_t)[:1])


def test_there_are_no_more_components_than_the_samples_span() -> None:
    x_s, x_t = domains(*TALL)
    assert fitted(x_s, x_t, dim=50, normalise="none").embedding(x_s).shape == (14, 5)
    assert fitted(x_s, x_t, dim=4).embedding(x_s).shape == (14, 4)
    assert fitted(x_s, x_t).embedding(x_s).shape == (14, 2)  # half the features
    x_s, x_t = domains(*WIDE)
    assert fitted(x_s, x_t, dim=50, normalise="none").embedding(x_s).shape == (6, 10)  # n - 1


# The classifier


@pytest.mark.parametrize("classifier", ["svm", "logistic", "1nn"])
def test_the_classifier_reads_the_embedding_and_the_sources_labels(classifier: Any) -> None:
    x_s, x_t = domains(*TALL)
    method = fitted(x_s, x_t, classifier=classifier)
    assert_close(method.predict(x_t), method.classifier(method.embedding(x_t)))
    assert (method.predict(x_s).argmax(1) == torch.arange(14) % K).all()
    assert (method.predict(x_t).argmax(1) == torch.arange(12) % K).double().mean() > 0.8


def test_it_has_nothing_to_train() -> None:
    x_s, x_t = domains(*TALL)
    method = fitted(x_s, x_t)
    assert not list(method.parameters())  # the bottleneck is left out
    s, t = Pair(Rows(x_s), np.arange(14) % K, Rows(x_t), batch_size=4).batch(0)
    assert list(method.step(s, t)) == []


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_in_float32_predictions_are_those_of_float64_rounded(kernel: str) -> None:
    x_s, x_t = domains(*TALL)
    x_s, x_t = x_s.float(), x_t.float()
    exact = fitted(x_s.double(), x_t.double(), kernel=kernel)
    method = TCA(Network(nn.Identity(), nn.Identity(), 5, level="vector"), K, kernel=kernel)
    list(method.stages(Pair(ArrayInputs(x_s[None].numpy()), np.arange(14) % K, ArrayInputs(x_t[None].numpy()))))
    assert {v.dtype for v in method.state_dict().values()} == {torch.float32}
    assert_close(method.predict(x_t).double(), exact.predict(x_t.double()), rtol=1e-3, atol=1e-3)


# Edges


@pytest.mark.parametrize("options", [{}, {"normalise": "zscore"}, {"kernel": "rbf"}, {"classifier": "1nn"}])
@pytest.mark.parametrize("shape", [(20, 5, 8), (20, 5, 40), (20, 1, 8)])
def test_domains_may_be_small_and_features_constant(options: dict[str, Any], shape: tuple[int, int, int]) -> None:
    x_s, x_t = domains(*shape)
    x_s[:, 0] = x_t[:, 0] = 3.0
    x_s[:, 1] = 0.0  # in one domain alone
    y_s = torch.tensor([2] + [0, 1] * 9 + [0])  # a class of one sample
    method = fitted(x_s, x_t, y_s, **options)
    assert method.predict(x_t).shape == (shape[1], K)
    assert method.predict(x_t).isfinite().all()


def test_samples_that_are_all_alike_are_refused() -> None:
    x = torch.ones(9, 4, dtype=torch.float64) * 0.3
    for options in ({}, {"kernel": "rbf"}, {"normalise": "zscore"}):
        with pytest.raises(DataError, match="same features"):
            fitted(x, x[:5], **options)


def test_samples_that_occur_often_do_not_make_the_kernels_width_0() -> None:
    x_s, x_t = domains(*TALL)
    x_s[2:] = x_s[0]
    method = fitted(x_s, x_s[:1].repeat(12, 1), torch.tensor([0, 1] + 12 * [0]), kernel="rbf", normalise="none")
    assert_close(method.fitted["sigma2"], ((x_s[0] - x_s[1]) ** 2).sum())
    assert method.predict(x_t).softmax(1).isfinite().all()  # the third class has no sample, and so the logit -inf


def test_too_many_samples_for_a_kernel_are_refused_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tca, "MOST_SAMPLES", 25)
    x_s, x_t = domains(*TALL)
    with pytest.raises(OptionError, match=r"takes 25 at most, not 26: use kernel=linear"):
        fitted(x_s, x_t, kernel="rbf")
    fitted(x_s, x_t)


def test_a_penalty_of_0_is_refused() -> None:
    with pytest.raises(OptionError, match="mu of tca must be above 0"):
        TCA(Network(nn.Identity(), nn.Identity(), 4, level="vector"), K, mu=0.0)


def test_through_scikit_learn_and_saved(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    X = rng.normal(size=(60, 5)) + np.outer(4 * y - 2, [1, 1, 0, 0, -1])
    X_target = X[:40] + np.array([0, 0, 3, 0, 0])
    classifier = AdaptiveClassifier(method="tca", random_state=0).fit(X, np.array(["no", "yes"])[y], X_target=X_target)
    probabilities = classifier.predict_proba(X_target)
    assert probabilities.shape == (40, 2)
    assert_close(probabilities.sum(1), np.ones(40))
    assert (classifier.predict(X_target) == np.array(["no", "yes"])[y[:40]]).mean() > 0.9
    classifier.model_.save(tmp_path)
    saved, inputs = Model.load(tmp_path), torch.from_numpy(X_target).float()
    assert torch.equal(saved.method.predict(inputs), classifier.model_.method.predict(inputs))
