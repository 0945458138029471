"""The classifier of the closed forms against scikit-learn and against loops."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from torch import Tensor
from torch.testing import assert_close

from acclimate.choices import Shallow
from acclimate.errors import DataError
from acclimate.methods.parts.layers import ShallowClassifier, deviation

KINDS: list[Shallow] = ["svm", "logistic", "1nn"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def blobs(K: int, n: int = 30, d: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(K)
    y = torch.arange(n) % K
    centres = 2 * torch.randn(K, d, generator=generator, dtype=torch.float64)
    return centres[y] + torch.randn(n, d, generator=generator, dtype=torch.float64), y


def fitted(kind: Shallow, z: Tensor, y: Tensor, K: int) -> ShallowClassifier:
    classifier = ShallowClassifier(K, kind=kind)
    classifier.fit(z, y)
    return classifier


def scale(z: Tensor) -> float:
    """What gives the features a mean variance of 1."""
    return float((((z - z.mean(0)) ** 2).sum() / z.numel()) ** -0.5)


def test_with_three_classes_the_logits_are_scikit_learns_decision_values() -> None:
    z, y = blobs(3)
    c = scale(z)
    svm = LinearSVC(dual=False).fit(c * z.numpy(), y.numpy()).decision_function(c * z.numpy())
    assert_close(fitted("svm", z, y, 3)(z), torch.from_numpy(svm))
    logistic = LogisticRegression(max_iter=10_000).fit(c * z.numpy(), y.numpy()).decision_function(c * z.numpy())
    assert_close(fitted("logistic", z, y, 3)(z), torch.from_numpy(logistic))


def test_with_two_classes_the_difference_of_the_logits_is_scikit_learns_decision_value() -> None:
    z, y = blobs(2)
    c = scale(z)
    svm = LinearSVC(dual=False).fit(c * z.numpy(), y.numpy()).decision_function(c * z.numpy())
    logits = fitted("svm", z, y, 2)(z)
    assert logits.shape == (30, 2)
    assert_close(logits[:, 1] - logits[:, 0], torch.from_numpy(svm))
    logistic = LogisticRegression(max_iter=10_000).fit(c * z.numpy(), y.numpy()).predict_proba(c * z.numpy())
    assert_close(fitted("logistic", z, y, 2)(z).softmax(1), torch.from_numpy(logistic))


def test_the_nearest_neighbours_logits_are_minus_the_distance_to_the_nearest_of_each_class() -> None:
    z, y = blobs(3)
    x = z[:5] + 0.4
    logits = fitted("1nn", z, y, 3)(x)
    for i in range(5):
        distance = [float(((x[i] - other) ** 2).sum() ** 0.5) for other in z]
        nearest = [min(d for d, label in zip(distance, y, strict=True) if label == k) for k in range(3)]
        assert_close(logits[i], -scale(z) * torch.tensor(nearest, dtype=torch.float64))
        assert logits[i].argmax() == y[distance.index(min(distance))]


@every_kind
def test_the_scale_of_the_features_does_not_matter(kind: Shallow) -> None:
    z, y = blobs(3)
    assert_close(fitted(kind, 1000 * z, y, 3)(1000 * z), fitted(kind, z, y, 3)(z))


@every_kind
def test_a_class_without_a_sample_is_never_predicted(kind: Shallow) -> None:
    z, y = blobs(2)
    probabilities = fitted(kind, z, torch.where(y == 1, 3, 1), 4)(z).softmax(1)
    assert probabilities.isfinite().all()
    assert not probabilities[:, [0, 2]].any()
    assert (probabilities.argmax(1) == torch.where(y == 1, 3, 1)).double().mean() > 0.9


@every_kind
def test_a_class_may_have_one_sample(kind: Shallow) -> None:
    z, y = blobs(3)
    keep = torch.cat([torch.arange(3), torch.nonzero(y != 0).squeeze(1)])
    assert fitted(kind, z[keep], y[keep], 3)(z[:1]).argmax() == 0


@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_linear_classifier_of_one_class_is_refused(kind: Shallow) -> None:
    with pytest.raises(DataError, match="one class alone"):
        fitted(kind, blobs(2)[0], torch.zeros(30, dtype=torch.int64), 2)


@every_kind
def test_it_is_saved_as_tensors(kind: Shallow) -> None:
    z, y = blobs(3)
    classifier, other = fitted(kind, z, y, 3), ShallowClassifier(3, kind=kind)
    other.load_state_dict(load(save(classifier.state_dict())))
    assert torch.equal(other(z), classifier(z))


def test_the_deviation_of_a_constant_feature_is_1() -> None:
    f = torch.tensor([[1.0, 5.0, 1e4], [3.0, 5.0, 1e4 + 1e-3], [5.0, 5.0, 1e4]], dtype=torch.float64)
    assert_close(deviation(f), torch.tensor([(8 / 3) ** 0.5, 1.0, 1.0], dtype=torch.float64))
    assert_close(deviation(f[:1]), torch.ones(3, dtype=torch.float64))
