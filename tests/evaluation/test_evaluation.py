from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from torch import Tensor, nn

from acclimate.choices import Level
from acclimate.data.batches import Labelled, Unlabelled
from acclimate.data.inputs import ArrayInputs
from acclimate.data.read import read_sealed
from acclimate.errors import DataError, DivergedError
from acclimate.evaluation.answers import Answers, read_answers
from acclimate.evaluation.predict import domain_errors, predict
from acclimate.evaluation.scores import Changes, ClassScore, Scores, changes, domain_error, score
from acclimate.methods.base import Method, Objective
from acclimate.methods.source_only import SourceOnly
from acclimate.networks.network import Network

CLASSES = ("cat", "dog", "owl")


# The target's labels


def folder(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def answers_of(spec: Path, **options: bool) -> Answers | None:
    target, sealed = read_sealed(spec)
    return read_answers(sealed, target, CLASSES, **options)


def image_list(folder_: Path, *lines: str) -> Path:
    folder(folder_, *(line.split()[0] for line in lines))
    path = folder_ / "list.txt"
    path.write_text("\n".join(lines))
    return path


def test_class_folders_are_labels(tmp_path: Path) -> None:
    spec = folder(tmp_path, "owl/a.png", "cat/a.png", "dog/deeper/a.png", "dog/b.png", "loose.png")
    target, sealed = read_sealed(spec)
    answers = read_answers(sealed, target, CLASSES)
    assert answers is not None
    truth = {"owl/a.png": 2, "cat/a.png": 0, "dog/deeper/a.png": 1, "dog/b.png": 1, "loose.png": -1}
    assert dict(zip(target.names, answers.labels.tolist(), strict=True)) == truth
    assert answers.labels.dtype == np.int64


@pytest.mark.parametrize("names", [("a.png", "b.png"), ("monday/a.png", "tuesday/b.png"), ("shop/cat/a.png", "b.png")])
def test_folders_that_are_no_classes_are_no_labels(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert answers_of(folder(tmp_path, *names)) is None


def test_classes_in_another_case_are_the_same_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    answers = answers_of(folder(tmp_path, "Owl/a.png", "CAT/a.png", "dog/b.png"))
    assert answers is not None
    assert answers.labels.tolist() == [0, 2, 1]  # in the order of the names: CAT, Owl, dog
    assert "writes classes in another case than the source does: CAT for cat, Owl for owl" in caplog.text


@pytest.mark.parametrize("names", [("Owl/a.png", "OWL/a.png", "cat/a.png", "dog/a.png"), ("Owl/a.png", "owl/b.png")])
def test_two_folders_that_differ_in_case_are_not_one_class(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="has classes that the source lacks"):
        answers_of(folder(tmp_path, *names))


def test_a_list_without_labels_has_no_answers(tmp_path: Path) -> None:
    assert answers_of(image_list(tmp_path, "a.png", "b.png")) is None


def test_labels_in_a_list_and_in_arrays(tmp_path: Path) -> None:
    lines = image_list(tmp_path, "a.png owl", "b.png cat", "c.png dog", "d.png")
    np.savez(tmp_path / "t.npz", x=np.zeros((3, 5), np.float32), y=np.array(["owl", "cat", "dog"]))
    listed, arrays = answers_of(lines), answers_of(tmp_path / "t.npz")
    assert listed is not None
    assert arrays is not None
    assert listed.labels.tolist() == [2, 0, 1, -1]
    assert arrays.labels.tolist() == [2, 0, 1]


def test_labels_in_a_list_are_always_meant(tmp_path: Path) -> None:
    spec = image_list(tmp_path, "a.png 0", "b.png 10", "c.png 9")
    for allow in (False, True):
        with pytest.raises(DataError, match=r"labels in .*list\.txt \(0, 9, 10\) is a class of the source \(cat, dog"):
            answers_of(spec, allow_mismatch=allow)


def test_a_foreign_class_is_refused_or_counted(tmp_path: Path) -> None:
    spec = folder(tmp_path, "cat/a.png", "dog/a.png", "fox/a.png", "fox/b.png", "owl/a.png")
    with pytest.raises(DataError, match=r"the source lacks \(fox\); correct .*--allow-class-mismatch"):
        answers_of(spec)
    answers = answers_of(spec, allow_mismatch=True)
    assert answers is not None
    assert answers.labels.tolist() == [0, 1, -1, -1, 2]


def test_an_absent_class_is_refused_or_accepted(tmp_path: Path) -> None:
    spec = folder(tmp_path, "cat/a.png", "owl/a.png")
    with pytest.raises(DataError, match=r"no images of source classes \(dog\); correct .*--allow-class-mismatch"):
        answers_of(spec)
    answers = answers_of(spec, allow_mismatch=True)
    assert answers is not None
    assert answers.labels.tolist() == [0, 2]


def test_a_mismatch_names_five_classes_in_one_sentence(tmp_path: Path) -> None:
    spec = folder(tmp_path, "cat/a.png", *(f"new{i}/a.png" for i in range(7)))
    with pytest.raises(DataError) as raised:
        answers_of(spec)
    message = str(raised.value)
    assert "(new0, new1, new2, new3, new4 and 2 more)" in message
    assert "(dog, owl)" in message
    assert not re.search(r"\.\s", message)


def test_removed_images_take_their_labels_with_them(tmp_path: Path) -> None:
    spec = image_list(tmp_path, "a.png owl", "b.png cat", "a.png dog", "c.png dog", "d.png fox")
    answers = answers_of(spec, allow_mismatch=True)
    assert answers is not None
    assert answers.select([0, 2, 3]).labels.tolist() == [2, 1, 1]  # a.png is listed twice, with two labels
    assert answers.select(np.array([4, 1])).labels.tolist() == [-1, 0]


def test_the_labels_of_another_reading_are_refused(tmp_path: Path) -> None:
    spec = folder(tmp_path, "cat/a.png", "dog/a.png", "owl/a.png", "owl/b.png")
    before, old = read_sealed(spec)
    (spec / "owl/b.png").unlink()
    (spec / "cat/b.png").touch()
    after, new = read_sealed(spec)
    for sealed, target in ((old, after), (new, before)):
        with pytest.raises(DataError, match="are not those of its items: read both at once"):
            read_answers(sealed, target, CLASSES)
    with pytest.raises(DataError, match="are not those of its items"):
        read_answers(old, before.select([0, 1, 2]), CLASSES)


def test_sealed_labels_do_not_show_what_is_in_them(tmp_path: Path) -> None:
    _, sealed = read_sealed(folder(tmp_path, "cat/a.png", "dog/a.png"))
    assert repr(sealed) == str(sealed) == "SealedLabels of 2 items"
    assert not hasattr(sealed, "__dict__")


# Scores


def one_hot(predicted: np.ndarray, K: int) -> np.ndarray:
    return np.eye(K)[predicted] * 0.9 + 0.1 / K


def test_visda_figures_of_wemnet() -> None:
    """The printed row's mean per class is 79.62; its "Avg" of 75.4 is the overall accuracy."""
    printed = [95.4, 70.1, 84.7, 51.3, 93.2, 94.0, 89.3, 77.5, 88.1, 82.8, 84.1, 44.9]
    counts = [3646, 3475, 4690, 10401, 4691, 2075, 5796, 4000, 4549, 2281, 4236, 5548]
    truth = np.repeat(np.arange(12), counts)
    place = np.concatenate([(np.arange(n) + 0.5) / n for n in counts])
    predicted = np.where(place < np.repeat(printed, counts) / 100, truth, (truth + 1) % 12)
    scores = score(one_hot(predicted, 12), Answers(truth), tuple("abcdefghijkl"))
    assert scores.n == 55_388
    assert 100 * scores.mean_per_class == pytest.approx(79.62, abs=0.01)
    assert 100 * scores.accuracy == pytest.approx(75.41, abs=0.01)
    assert [c.accuracy for c in scores.per_class] == pytest.approx(np.array(printed) / 100, abs=5e-4)


@st.composite
def predictions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    K, n = draw(st.integers(2, 6)), draw(st.integers(1, 40))
    truth = draw(hnp.arrays(np.int64, n, elements=st.integers(-1, K - 1)))
    probabilities = draw(hnp.arrays(np.float64, (n, K), elements=st.floats(0, 1)))
    return truth, probabilities


@given(predictions())
def test_scores_agree_with_counting_by_hand(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    truth, probabilities = drawn
    K = probabilities.shape[1]
    classes = tuple(map(str, range(K)))
    known = truth >= 0
    if not known.any():
        with pytest.raises(DataError, match="nothing can be scored"):
            score(probabilities, Answers(truth), classes)
        return
    scores = score(probabilities, Answers(truth), classes)
    y, guess = truth[known], np.array([int(np.argmax(row)) for row in probabilities])[known]
    confusion = np.zeros((K, K), np.int64)
    for i, j in zip(y, guess, strict=True):
        confusion[i, j] += 1
    assert (scores.confusion == confusion).all()
    assert (scores.n, scores.n_unknown) == (known.sum(), (~known).sum())
    assert scores.accuracy == pytest.approx(np.mean(y == guess))
    of_class = [np.mean(guess[y == k] == k) if (y == k).any() else None for k in range(K)]
    assert [c.accuracy for c in scores.per_class] == of_class
    assert scores.mean_per_class == pytest.approx(np.mean([a for a in of_class if a is not None]))
    assert sum(c.count for c in scores.per_class) == scores.n
    assert sum(c.correct for c in scores.per_class) == (y == guess).sum()


def test_scores_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, probabilities = rng.integers(0, 5, 200), rng.random((200, 5))
    scores = score(probabilities, Answers(truth), tuple("abcde"))
    assert scores.accuracy == pytest.approx(accuracy_score(truth, probabilities.argmax(1)))
    assert scores.mean_per_class == pytest.approx(balanced_accuracy_score(truth, probabilities.argmax(1)))


def test_a_class_without_images_has_no_accuracy() -> None:
    scores = score(one_hot(np.array([0, 2, 1]), 3), Answers(np.array([0, 2, 2])), CLASSES)
    assert [c.accuracy for c in scores.per_class] == [1.0, None, 0.5]
    assert scores.mean_per_class == 0.75


def test_scores_survive_their_record() -> None:
    scores = Scores(CLASSES, np.array([[3, 1, 0], [0, 0, 0], [2, 0, 4]]), n_unknown=5)
    record = scores.record()
    assert record.accuracy == 0.7
    assert record.mean_per_class == pytest.approx((3 / 4 + 4 / 6) / 2)
    assert record.per_class[1] == ClassScore(name="dog", count=0, correct=0, accuracy=None)
    back = Scores.of(record)
    assert back.classes == CLASSES
    assert back.n_unknown == 5
    assert (back.confusion == scores.confusion).all()


# Changes


def test_changes() -> None:
    before = np.array([[0.8, 0.2, 0], [0.6, 0.4, 0], [0.5, 0.1, 0.4], [0.1, 0.9, 0]])
    after = np.array([[0.9, 0.1, 0], [0.3, 0.7, 0], [0.2, 0.8, 0], [0.0, 1.0, 0]])
    made = changes(before, after)
    assert made == Changes(
        n=4,
        share_changed=0.5,
        counts_before=(3, 1, 0),
        counts_after=(1, 3, 0),
        confidence_before=pytest.approx(0.7),
        confidence_after=pytest.approx(0.85),
    )


# Running a method


class Small(Method):
    """Its output differs between training and evaluation mode, and it remembers how it was asked."""

    def __init__(self, features: tuple[str, ...] = ("f", "f_hat_d"), level: Level = "vector") -> None:
        super().__init__(Network(nn.Identity(), nn.Identity(), 4, bottleneck=0, level=level), 3)
        self.classifier = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3))
        self.critic = nn.Linear(4, 1)
        self.frozen = nn.BatchNorm1d(4)
        self.frozen.eval()
        self.features = features
        self.sizes: list[int] = []

    def step(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        raise NotImplementedError

    def predict(self, x: Tensor) -> Tensor:
        assert not any(m.training for m in self.modules())
        assert not torch.is_grad_enabled()
        self.sizes.append(len(x))
        z: Tensor = self.classifier(x)
        return z

    def domain_logits(self, x: Tensor) -> dict[str, Tensor]:
        assert not any(m.training for m in self.modules())
        self.sizes.append(len(x))
        return {feature: (i + 1) * self.critic(x)[:, 0] for i, feature in enumerate(self.features)}


def inputs(n: int, seed: int = 0) -> ArrayInputs:
    """Two views: evaluation reads the first."""
    return ArrayInputs(np.random.default_rng(seed).normal(size=(2, n, 4)).astype(np.float32))


def modes(method: Method) -> dict[str, bool]:
    return {name: module.training for name, module in method.named_modules()}


@pytest.mark.parametrize("level", get_args(Level))
def test_predictions_are_the_softmax_of_the_logits_of_the_plain_view(level: Level) -> None:
    method, x = Small(level=level), inputs(10)
    mode = modes(method)
    probabilities = predict(method, x, batch_size=4)
    W, b = (p.detach().double().numpy() for p in method.classifier.parameters())
    z = np.exp(x.views[0].astype(np.float64) @ W.T + b)
    assert probabilities.dtype == np.float64
    assert probabilities == pytest.approx(z / z.sum(1, keepdims=True), abs=1e-6)
    assert probabilities.sum(1) == pytest.approx(np.ones(10), abs=1e-12)
    assert modes(method) == mode
    assert mode["frozen"] is False
    assert mode["classifier.0"] is True
    assert all(parameter.dtype == torch.float32 for parameter in method.parameters())


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_a_vector_s_prediction_does_not_depend_on_its_company(data: st.DataObject) -> None:
    torch.manual_seed(0)
    method = SourceOnly(Network(nn.Identity(), nn.Identity(), 50, bottleneck=0, level="vector"), 10)
    vectors = np.random.default_rng(0).normal(size=(1, 30, 50)).astype(np.float32)
    every = predict(method, ArrayInputs(vectors))
    rows = data.draw(st.lists(st.integers(0, 29), min_size=1, max_size=40))
    some, size = ArrayInputs(vectors[:, rows]), data.draw(st.integers(1, 50))
    np.testing.assert_allclose(predict(method, some, batch_size=size), every[rows], rtol=1e-12, atol=0)


@given(st.sets(st.integers(0, 10), max_size=10))
def test_batches_are_full_wherever_inputs_turn_out_to_be_missing(missing: set[int]) -> None:
    class Gaps(ArrayInputs):
        def batch(self, index: np.ndarray, rng: np.random.Generator | None) -> Tensor:
            return super().batch(np.array([i for i in index if i not in missing], dtype=np.int64), rng)

    sizes: list[int] = []

    class Sized(Small):
        def predict(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return super().predict(x)

    x = np.random.default_rng(0).normal(size=(1, 11, 4)).astype(np.float32)
    there = [i for i in range(11) if i not in missing]
    method = Sized()
    found = predict(method, Gaps(x), batch_size=4)
    assert sizes == [min(4, len(there) - start) for start in range(0, len(there), 4)]
    assert np.array_equal(found, predict(method, ArrayInputs(x[:, there]), batch_size=4))


def test_predictions_report_their_progress() -> None:
    seen = []

    def track(items: Iterable[object], description: str, total: int) -> Iterable[object]:
        seen.append((description, total))
        return items

    predict(Small(), inputs(10), batch_size=4, track=track)
    assert seen == [("Predicting", 3)]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_predictions_that_are_not_finite_are_refused(bad: float) -> None:
    method = Small()
    mode = modes(method)
    with torch.no_grad():
        method.classifier[1].bias[1] = bad
    with pytest.raises(DivergedError, match="not finite"):
        predict(method, inputs(3))
    assert modes(method) == mode


def test_a_method_that_fails_gets_its_mode_back() -> None:
    method = Small()
    mode = modes(method)
    with pytest.raises(RuntimeError):
        predict(method, ArrayInputs(np.zeros((1, 3, 7), np.float32)))
    assert modes(method) == mode


def test_domain_error_by_hand() -> None:
    # The mean of absolute values: the absolute value of the mean would be 0 in the first case.
    assert domain_error([torch.tensor([0.2, 0.8])]) == pytest.approx(30)
    assert domain_error([torch.tensor([0.5, 0.5]), torch.tensor([1.0])]) == pytest.approx(50 / 3)
    assert domain_error([np.full(7, 0.5)]) == 0
    assert domain_error([np.array([0.0]), np.array([1.0, 1.0])]) == 50


@given(hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1)), st.integers(1, 30))
def test_domain_error_does_not_depend_on_the_batches(x: np.ndarray, size: int) -> None:
    whole = domain_error([x])
    assert domain_error(x[i : i + size] for i in range(0, len(x), size)) == pytest.approx(whole)
    assert domain_error([1 - x]) == pytest.approx(whole)
    assert 0 <= whole <= 50


def test_domain_errors_of_each_feature_on_each_domain() -> None:
    method, source, target = Small(), inputs(9, seed=1), inputs(5, seed=2)
    mode = modes(method)
    errors = domain_errors(method, source, target, batch_size=4)
    w, b = (p.detach().double().numpy() for p in method.critic.parameters())
    for i, feature in enumerate(("f", "f_hat_d")):
        for domain, x in {"source": source, "target": target}.items():
            sigmoid = 1 / (1 + np.exp(-(i + 1) * (x.views[0].astype(np.float64) @ w[0] + b)))
            assert getattr(errors[feature], domain) == pytest.approx(np.mean(100 * abs(sigmoid - 0.5)), abs=1e-4)
    assert list(errors) == ["f", "f_hat_d"]
    assert method.sizes == [4, 4, 1, 4, 1]
    assert modes(method) == mode


def test_a_method_without_a_discriminator_has_no_domain_errors() -> None:
    method = Small(features=())
    assert domain_errors(method, inputs(9), inputs(9), batch_size=2) == {}
    assert method.sizes == [2]  # found out on the first batch
    assert method.training
