"""The student of a consensus: the classifier that it solves for, the step that it is trained by, and its lesson."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.special import softmax
from threadpoolctl import threadpool_limits
from torch.nn.functional import cross_entropy

from acclimate.data.batches import Pair
from acclimate.data.inputs import ArrayInputs
from acclimate.errors import OptionError
from acclimate.methods.consensus import Consensus, teach
from acclimate.methods.source_only import SourceOnly
from acclimate.networks.network import Network
from acclimate.settings import Recipe
from acclimate.testing import tiny_method, tiny_pair
from acclimate.training import train
from tiny import clouds

Floats = npt.NDArray[np.float64]
Classes = npt.NDArray[np.int64]


def test_the_classifier_is_the_minimum() -> None:
    x, y = clouds(20, D=4, far=1.5)
    w = np.random.default_rng(0).random(60)
    W, b = teach(x, y, w, 3, penalty=0.1)
    mean = x.mean(0)
    scale = np.sqrt(((x - mean) ** 2).sum(1).mean())
    error = (w / w.sum())[:, None] * (softmax(x @ W + b, axis=1) - np.eye(3)[y])
    assert ((x - mean) / scale).T @ error + 0.1 * scale * W == pytest.approx(np.zeros((4, 3)), abs=1e-4)
    assert error.sum(0) == pytest.approx(np.zeros(3), abs=1e-4)


def test_neither_threads_nor_an_image_without_weight_change_it() -> None:
    x, y = clouds(40, D=300)
    w = np.ones(120)
    with threadpool_limits(1):
        W, _ = teach(x, y, w, 3)
    assert (teach(x, y, w, 3)[0] == W).all()
    doubted = np.where(np.arange(120) == 5, 1e-9, w)
    wrong = np.where(np.arange(120) == 5, 2, y)
    assert (x @ teach(x, wrong, doubted, 3)[0]).argmax(1)[5] == y[5]


def test_features_that_are_all_alike_teach_the_shares_alone() -> None:
    W, b = teach(np.ones((4, 5)), np.array([0, 0, 0, 1]), np.array([1.0, 2, 3, 4]), 2)
    assert softmax(np.ones((1, 5)) @ W + b, axis=1)[0] == pytest.approx([0.6, 0.4], abs=0.01)


def test_on_features_it_is_solved_for_without_a_step() -> None:
    x, y = clouds(30)
    inputs = ArrayInputs(x[None].astype(np.float32))
    net = Network(torch.nn.Identity(), torch.nn.Identity(), 8, bottleneck=4, level="vector")
    student = Consensus(net, 3)
    student.learn(y, np.where(np.arange(90) % 3 == 0, 0, 1.0))  # a third of the images are not in the lesson
    assert not list(train(student, Pair(inputs, y, inputs), Recipe.of(Consensus, steps=5)))
    assert "y" not in student.lesson  # nor are its labels in what is saved
    assert (student.eval().predict(torch.from_numpy(x).float()).argmax(1).numpy() == y).all()


def test_a_network_is_trained_on_both_domains() -> None:
    data = tiny_pair(SourceOnly)
    net = Network(torch.nn.Flatten(), torch.nn.Identity(), data.batch(0)[0].x[0].numel(), bottleneck=4, level="image")
    student = tiny_method(Consensus, net=net)
    rng, N = np.random.default_rng(0), len(data.target)
    y, w = rng.integers(3, size=N), rng.random(N)
    student.learn(y, w)
    s, t = data.batch(0)
    (objective,) = list(student.step(s, t))
    f_s, f_t = student.net.pair(s.x, t.x)
    each = cross_entropy(student.classifier(f_t), torch.from_numpy(y)[t.index], reduction="none")
    assert objective.terms["taught"].item() == pytest.approx((each * torch.from_numpy(w)[t.index]).mean().item())
    assert objective.terms["classification"].item() == pytest.approx(cross_entropy(student.classifier(f_s), s.y).item())


def test_without_a_lesson_it_is_refused() -> None:
    x, y = clouds(4)
    inputs = ArrayInputs(x[None].astype(np.float32))
    net = Network(torch.nn.Identity(), torch.nn.Identity(), 8, bottleneck=4, level="vector")
    with pytest.raises(OptionError, match="learns from its members"):
        list(train(Consensus(net, 3), Pair(inputs, y, inputs), Recipe()))
