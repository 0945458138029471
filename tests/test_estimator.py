"""The estimator keeps scikit-learn's conventions, and adapts."""

from __future__ import annotations

import doctest
import inspect
import json
import pickle
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from acclimate import estimator, settings
from acclimate.data.read import domain_of
from acclimate.errors import DataError, DivergedError, OptionError
from acclimate.estimator import AdaptiveClassifier
from acclimate.settings import RECIPE, Recipe
from tiny import AtOnce, in_closed_form, on_vectors, small

QUICK: dict[str, Any] = {"steps": 15, "batch_size": 16, "bottleneck": 8, "lr": 0.1}
LENET: dict[str, Any] = {"backbone": "lenet", "method": "source_only", "steps": 3, "batch_size": 4}


def quick(method: str = "source_only", **parameters: Any) -> AdaptiveClassifier:
    return AdaptiveClassifier(**{**QUICK, "method": method, "options": small(method) or None, **parameters})


def domains(seed: int = 1, n: int = 200, n_target: int = 180) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """X, y, X_target, y_target: three columns tell two classes apart; in the target the first column has moved."""
    rng = np.random.default_rng(seed)
    y_s, y_t = np.arange(n) % 2, np.arange(n_target) % 2
    X_s = rng.normal(size=(n, 3)) + 4 * y_s[:, None] - 2
    X_t = rng.normal(size=(n_target, 3)) + 4 * y_t[:, None] - 2 + [6, 0, 0]
    return X_s, y_s, X_t, y_t


@cache
def fitted(name: str) -> AdaptiveClassifier:
    """A method on 60 samples of these domains, for tests that change nothing of it."""
    X, y, X_t, _ = domains(n=60)
    return quick(name, random_state=3).fit(X, y, X_target=X_t)


def grey_squares(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Grey images (n, 28, 28): light above, or light below."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = rng.integers(0, 60, size=(n, 28, 28), dtype=np.uint8)
    for i, below in enumerate(y):
        x[i, 14:] += np.uint8(150 * below)
        x[i, :14] += np.uint8(150 * (1 - below))
    return x, np.array(["above", "below"])[y]


def write_images(x: np.ndarray, folder: Path) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{i}.png" for i in range(len(x))]
    for path, pixels in zip(paths, x, strict=True):
        Image.fromarray(pixels).save(path)
    return paths


@pytest.fixture
def routing() -> Iterator[None]:
    with sklearn.config_context(enable_metadata_routing=True):
        yield


# --- scikit-learn's own checks -----------------------------------------------------------------------------------


@parametrize_with_checks([quick("wemnet")])
def test_it_passes_the_checks_of_scikit_learn(estimator: AdaptiveClassifier, check: Any) -> None:
    check(estimator)


def test_vectors_that_are_no_numbers_are_refused() -> None:
    # scikit-learn's check of this leaves out estimators that take texts, as this one takes paths.
    X = np.ones((4, 2), dtype=object)
    X[0, 0] = {"a": 1}
    with pytest.raises(TypeError, match="argument must be a string or a real number"):
        quick().fit(X, [0, 1, 0, 1])


# --- parameters --------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_a_run() -> None:
    of_a_run = {field.name: field.default for field in (*fields(settings.Settings), *fields(Recipe))}
    own = {name: p.default for name, p in inspect.signature(AdaptiveClassifier).parameters.items()}
    del own["options"], own["random_state"], own["verbose"]  # a mapping and None, 0 and None
    assert own == {name: None if name in RECIPE and RECIPE[name].setting.of_method else of_a_run[name] for name in own}
    assert {field.name for field in fields(Recipe)} <= set(own)


def test_get_set_and_clone() -> None:
    options = {"trade_off": 0.5}
    classifier = quick("dann", options=options)
    assert classifier.get_params()["options"] is options
    assert clone(classifier.set_params(lr=0.5)).get_params() == classifier.get_params()


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"method": "wemnett"}, "There is no method 'wemnett'; did you mean wemnet?"),
        ({"method": "dann", "options": {"tradeoff": 1.0}}, "dann has no option 'tradeoff'; did you mean trade_off?"),
        ({"steps": 0}, "steps must be a whole number from 1 to 1,000,000,000, not 0."),
        ({"steps": 20.5}, "steps must be a whole number from 1 to 1,000,000,000, not 20.5."),
        ({"lr": "fast"}, "lr must be a number from 0 up, not 'fast'."),
        ({"bottleneck": "wide"}, "bottleneck must be a whole number from 0 to 65,536, not 'wide'."),
        ({"batch_size": True}, "batch_size must be a whole number from 2 to 1,048,576, not True."),
        ({"tune": "heads"}, "tune must be auto, head, top or all, not 'heads'."),
        ({"precision": "fp64"}, "precision must be auto, fp32 or bf16, not 'fp64'."),
        ({"augment": "blur"}, "augment must be auto, none, flip, crop or crop\\+flip, not 'blur'."),
        ({"device": "abacus"}, "The device 'abacus' is not available here"),
        ({"tune": "all"}, "Feature vectors have no backbone to train"),
    ],
)
def test_a_wrong_parameter_is_named(parameters: dict[str, Any], sentence: str) -> None:
    X, y, X_t, _ = domains(n=20)
    with pytest.raises(OptionError, match=sentence):
        quick(**parameters).fit(X, y, X_target=X_t)


def test_divergence_is_named() -> None:
    X, y, X_t, _ = domains(n=40)
    with pytest.raises(DivergedError, match="Training diverged"):
        quick("dann", lr=1e20).fit(X, y, X_target=X_t)


# --- adaptation --------------------------------------------------------------------------------------------------


def test_adaptation_beats_source_only() -> None:
    X, y, X_t, y_t = domains()
    accuracy = {
        name: quick(name, steps=200, batch_size=32, bottleneck=16, lr=0.02, random_state=0)
        .fit(X, y, X_target=X_t)
        .score(X_t, y_t)
        for name in ("source_only", "dann", "mstn", "wemnet")
    }
    plain = accuracy.pop("source_only")
    assert min(accuracy.values()) > plain + 0.1


def test_the_target_is_used_and_by_default_is_the_source() -> None:
    X, y, X_t, _ = domains(n=60)
    adapted, alone, explicit = (
        quick("dann", random_state=0).fit(X, y, X_target=target).predict_proba(X) for target in (X_t, None, X + 1e-9)
    )
    assert not np.allclose(alone, adapted, atol=1e-3)
    np.testing.assert_allclose(alone, explicit, atol=1e-3)


# --- random numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", on_vectors())
def test_equal_fits_have_equal_bits_and_leave_torch_alone(name: str) -> None:
    X, y, X_t, _ = domains(n=60)
    one, state = fitted(name), torch.get_rng_state()
    two, other = (quick(name, random_state=seed).fit(X, y, X_target=X_t) for seed in (3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(one.predict_proba(X_t), two.predict_proba(X_t))
    if not in_closed_form(name):
        assert not np.array_equal(one.predict_proba(X_t), other.predict_proba(X_t))


@pytest.mark.parametrize("name", on_vectors())
def test_a_prediction_does_not_depend_on_its_batch(name: str) -> None:
    X_t, classifier = domains()[2][:7], fitted(name)
    singly = np.concatenate([classifier.predict_proba(x[None]) for x in X_t])
    np.testing.assert_allclose(classifier.predict_proba(X_t), singly, rtol=1e-12, atol=1e-14)


def test_it_predicts_as_its_model_does() -> None:
    X, y, X_t, _ = domains(n=60)
    classifier = quick("wemnet", random_state=0).fit(X, y, X_target=X_t)
    vectors = domain_of(X_t.astype(np.float32), "X")
    np.testing.assert_array_equal(classifier.predict_proba(X_t), classifier.model_.predict(vectors).probabilities)


def test_random_state_has_the_meaning_of_scikit_learn() -> None:
    X, y, _, _ = domains(n=40)

    def weights(random_state: Any) -> torch.Tensor:
        model = quick(random_state=random_state).fit(X, y).model_
        return model.method.net.bottleneck[0].weight

    generator = np.random.RandomState(0)
    first, second = weights(generator), weights(generator)
    assert not torch.equal(first, second)
    assert torch.equal(first, weights(np.random.RandomState(0)))
    np.random.seed(0)  # noqa: NPY002 (what None stands for)
    assert torch.equal(first, weights(None))
    assert torch.equal(weights(7), weights(np.int64(7)))


def test_an_integer_is_the_seed_of_a_run() -> None:
    assert quick(random_state=7)._settings().seed == 7


# --- the consensus -----------------------------------------------------------------------------------------------


def test_the_consensus_tells_how_far_to_trust_it() -> None:
    X, y, X_t, y_t = domains()
    classifier = quick("consensus", random_state=0, steps=40).fit(X, y, X_target=X_t)
    assert classifier.score(X_t, y_t) > quick(random_state=0, steps=40).fit(X, y).score(X_t, y_t)
    assert 0 <= classifier.estimate_.low <= classifier.estimate_.value <= classifier.estimate_.high <= 1
    assert classifier.reliability_.shape == (180,)
    assert set(np.unique(np.round(6 * classifier.reliability_))) <= set(range(7))
    changed = next(finding for finding in classifier.findings_.found if finding.check == "bound")
    before = quick(random_state=0, steps=40, hold_out=0.2).fit(X, y, X_target=X_t).predict(X_t)
    assert changed.figures["share_changed"] == pytest.approx((before != classifier.predict(X_t)).mean())
    assert not hasattr(classifier.set_params(method="source_only").fit(X, y, X_target=X_t), "estimate_")


def test_members_that_are_named_vote_alone_and_the_same_fit_has_the_same_bits() -> None:
    X, y, X_t, _ = domains(n=60)
    one, other = (
        quick("consensus", random_state=0, options={"members": "dann, source-only"}).fit(X, y, X_target=X_t)
        for _ in range(2)
    )
    assert set(np.unique(one.reliability_)) <= {0, 0.5, 1}
    np.testing.assert_array_equal(one.predict_proba(X_t), other.predict_proba(X_t))


def test_images_have_a_consensus() -> None:
    x, y = grey_squares(24)
    options = {"members": "source-only, dann"}
    classifier = AdaptiveClassifier(**{**LENET, "method": "consensus", "options": options}, random_state=0)
    assert classifier.fit(x, y, X_target=grey_squares(20, seed=1)[0]).predict(x).shape == (24,)
    assert classifier.reliability_.shape == (20,)


@pytest.mark.usefixtures("routing")
def test_the_consensus_in_a_pipeline() -> None:
    X, y, X_t, _ = domains(n=60)
    adapt = quick("consensus", random_state=0, options={"members": "gfk, source-only"}).set_fit_request(X_target=True)
    pipe = Pipeline([("scale", StandardScaler()), ("adapt", adapt)], transform_input=["X_target"])
    assert pipe.fit(1000 * X, y, X_target=1000 * X_t).predict(1000 * X_t).shape == (180,)


def test_a_target_on_another_scale_is_warned_of() -> None:
    X, y, X_t, _ = domains(n=60)
    for other in (1000 * X_t, X_t + 1000, X_t / 1000):
        with pytest.warns(UserWarning, match="X_target is on a different scale from X"):
            quick().fit(X, y, X_target=other)


def test_labels_of_unlabelled_samples_are_refused() -> None:
    X, _, X_t, _ = domains(n=60)
    y = np.resize([0, 1, -1], 60)
    with pytest.raises(DataError, match="give the samples of the target as X_target, without labels"):
        quick().fit(X, y)
    assert quick().fit(X, y, X_target=X_t).classes_.tolist() == [-1, 0, 1]  # with a target it is a class


# --- what else a classifier offers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", on_vectors())
def test_features_and_logarithms(name: str) -> None:
    X_t, classifier = domains()[2], fitted(name)
    features = classifier.transform(X_t)
    assert features.shape == (180, len(classifier.get_feature_names_out()))
    np.testing.assert_array_equal(features[:7], classifier.transform(X_t[:7]))
    with np.errstate(divide="ignore"):
        np.testing.assert_array_equal(classifier.predict_log_proba(X_t), np.log(classifier.predict_proba(X_t)))


# --- composition -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("routing")
def test_a_pipeline_scales_the_target_as_well() -> None:
    X, y, X_t, _ = domains()
    adapt = quick("dann", random_state=0).set_fit_request(X_target=True)
    pipe = Pipeline([("scale", StandardScaler()), ("adapt", adapt)], transform_input=["X_target"])
    pipe.fit(1000 * X, y, X_target=1000 * X_t)
    scale = StandardScaler().fit(1000 * X)
    by_hand = quick("dann", random_state=0).fit(scale.transform(1000 * X), y, X_target=scale.transform(1000 * X_t))
    np.testing.assert_array_equal(pipe.predict_proba(1000 * X_t), by_hand.predict_proba(scale.transform(1000 * X_t)))


@pytest.mark.usefixtures("routing")
def test_a_pipeline_is_searched_with_a_target() -> None:
    X, y, X_t, _ = domains(n=60)
    adapt = quick(random_state=0).set_fit_request(X_target=True)
    pipe = Pipeline([("scale", StandardScaler()), ("adapt", adapt)], transform_input=["X_target"])
    search = GridSearchCV(pipe, {"adapt__method": ["source_only", "wemnet"]}, cv=2, error_score="raise")
    assert search.fit(X, y, X_target=X_t).predict(X_t).shape == (180,)


def test_a_pipeline_without_a_target() -> None:
    X, y, _, _ = domains(n=60)
    assert Pipeline([("scale", StandardScaler()), ("adapt", quick())]).fit(X, y).score(X, y) > 0.9


def test_cross_validation_with_a_target() -> None:
    X, y, X_t, _ = domains(n=60)
    scores = cross_val_score(quick(), X, y, cv=3, params={"X_target": X_t}, error_score="raise")
    assert scores.mean() > 0.9


def test_grid_search_over_method_options_and_rate() -> None:
    X, y, X_t, _ = domains(n=60)
    grid = [
        {"method": ["source_only"], "lr": [0.01, 0.1]},
        {"method": ["wemnet"], "options": [None, {"trade_off": 0.1}]},
    ]
    search = GridSearchCV(quick(random_state=0), grid, cv=2, error_score="raise").fit(X, y, X_target=X_t)
    assert len(search.cv_results_["params"]) == 4
    assert search.best_estimator_.predict(X_t).shape == (180,)


@pytest.mark.parametrize("name", on_vectors())
def test_a_pickled_classifier_predicts_the_same(name: str) -> None:
    X_t, classifier = domains()[2], fitted(name)
    again = pickle.loads(pickle.dumps(classifier))  # noqa: S301 (its own)
    np.testing.assert_array_equal(again.predict_proba(X_t), classifier.predict_proba(X_t))


# --- on disk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [[10, 2], ["b", "a"], [True, False], [0.0, -1.0], np.array(["x", "y"], object)])
def test_a_saved_classifier_is_as_it_was(labels: Any, tmp_path: Path) -> None:
    X, y, X_t, _ = domains(n=40)
    classifier = quick(random_state=np.int64(3)).fit(X, np.asarray(labels)[y], X_target=X_t)
    classifier.save(tmp_path / "new" / "folder")
    again = AdaptiveClassifier.load(tmp_path / "new" / "folder", device="cpu")
    np.testing.assert_array_equal(again.predict_proba(X_t), classifier.predict_proba(X_t))
    np.testing.assert_array_equal(again.predict(X_t), classifier.predict(X_t))
    assert again.classes_.dtype == classifier.classes_.dtype
    assert again.n_features_in_ == 3
    assert again.get_params() == {**classifier.get_params(), "device": "cpu"}
    with pytest.raises(ValueError, match="X has 2 features"):
        again.predict(X_t[:, :2])
    assert clone(again).fit(X, y, X_target=X_t).score(X, y) > 0.9


def test_names_of_columns_are_saved(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    X, y, X_t, _ = domains(n=40)
    columns = list("pqr")
    frame, target = pandas.DataFrame(X, columns=columns), pandas.DataFrame(X_t, columns=columns)
    quick().fit(frame, y, X_target=target).save(tmp_path)
    again = AdaptiveClassifier.load(tmp_path)
    assert again.feature_names_in_.tolist() == columns
    again.predict(target)
    with pytest.raises(ValueError, match="feature names"):
        again.predict(target[columns[::-1]])


def test_a_folder_without_a_sound_estimator(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no estimator: name the folder that save wrote\.$"):
        AdaptiveClassifier.load(tmp_path)
    fitted("source_only").save(tmp_path)
    content = json.loads((tmp_path / "estimator.json").read_text())
    del content["checksum"]
    for changes, problem in [
        ({"schema": 2}, r"is of schema 2"),
        ({"parameters": {"stepps": 3}}, r"its parameters or its classes are impossible"),
        ({"dtype": "nonsense"}, r"its parameters or its classes are impossible"),
        ({"dtype": "<i8", "classes": ["a", "b"]}, r"its parameters or its classes are impossible"),
        ({"classes": [0, 1, 2]}, r"has other classes than the model beside it"),
    ]:
        (tmp_path / "estimator.json").write_text(json.dumps({**content, **changes}))
        with pytest.raises(DataError, match=rf"estimator\.json {problem}.*\.$|estimator\.json .*\({problem}\).*\.$"):
            AdaptiveClassifier.load(tmp_path)


# --- labels and vectors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [np.array([10, 2]), np.array(["b", "a"]), np.array([True, False]), [0.0, -1.0]])
def test_labels_come_back_as_they_were(labels: Any) -> None:
    X, y, _, _ = domains(n=40)
    named = np.asarray(labels)[y]
    classifier = quick().fit(X, named)
    np.testing.assert_array_equal(classifier.classes_, np.unique(named))
    assert classifier.predict(X).dtype == named.dtype
    assert classifier.score(X, named) > 0.9


def test_unusable_labels_are_refused() -> None:
    X, y, _, _ = domains(n=40)
    with pytest.raises(ValueError, match="y has only 1 class, '0': give at least two classes"):
        quick().fit(X, np.zeros(40, dtype=int))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        quick().fit(X, y[:-1])


def test_it_must_be_fitted() -> None:
    with pytest.raises(NotFittedError):
        quick().predict(np.ones((2, 2)))


def test_a_target_of_other_columns_is_refused() -> None:
    X, y, X_t, _ = domains(n=40)
    with pytest.raises(DataError, match="The vectors of X have 3 values and those of X_target have 2"):
        quick().fit(X, y, X_target=X_t[:, :2])
    with pytest.raises(ValueError, match="Input X_target contains NaN"):
        quick().fit(X, y, X_target=np.full_like(X_t, np.nan))
    with pytest.raises(DataError, match="items of the target X_target are also in the source X"):
        quick().fit(X, y, X_target=X)


def test_data_frames() -> None:
    pandas = pytest.importorskip("pandas")
    X, y, X_t, _ = domains(n=40)
    columns = ["a", "b", "c"]
    frame, target = pandas.DataFrame(X, columns=columns), pandas.DataFrame(X_t, columns=columns)
    classifier = quick().fit(frame, pandas.Series(y), X_target=target)
    assert list(classifier.feature_names_in_) == columns
    with pytest.raises(ValueError, match="same order"):
        quick().fit(frame, y, X_target=target[["b", "a", "c"]])


# --- images ------------------------------------------------------------------------------------------------------


def test_grey_images_in_an_array_train_lenet_from_scratch() -> None:
    x, y = grey_squares(40)
    target = grey_squares(30, seed=1)[0]
    parameters = {"steps": 40, "batch_size": 8, "bottleneck": 16, "random_state": 0}
    classifier = AdaptiveClassifier(backbone="lenet", method="dann", options={"hidden": 16}, **parameters)
    assert classifier.fit(x, y, X_target=255 - target).model_.spec.tune == "all"
    assert classifier.score(x, y) == 1
    again = clone(classifier).fit(x, y, X_target=255 - target)
    np.testing.assert_array_equal(again.predict_proba(target), classifier.predict_proba(target))
    restored = pickle.loads(pickle.dumps(classifier))  # noqa: S301 (its own)
    np.testing.assert_array_equal(restored.predict_proba(target), classifier.predict_proba(target))
    assert not hasattr(classifier, "n_features_in_")


@pytest.mark.parametrize("form", ["strings", "paths", "array", "column", "series", "frame"])
def test_image_paths(form: str, tmp_path: Path) -> None:
    x, y = grey_squares(8)
    paths = write_images(x, tmp_path / "source")
    target = write_images(grey_squares(6, seed=1)[0], tmp_path / "target")

    def given(paths: list[Path]) -> Any:
        texts = [str(path) for path in paths]
        if form in ("series", "frame"):
            pandas = pytest.importorskip("pandas")
            return pandas.Series(texts) if form == "series" else pandas.DataFrame({"path": texts})
        forms = {"strings": texts, "paths": paths, "array": np.array(texts), "column": np.array(texts)[:, None]}
        return forms[form]

    classifier = AdaptiveClassifier(**LENET, random_state=0).fit(given(paths), y, X_target=given(target))
    by_array = clone(classifier).fit(x, y)
    np.testing.assert_allclose(classifier.predict_proba(given(target)), by_array.predict_proba(target), atol=1e-6)


def test_features_of_a_frozen_backbone_on_paths(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, size=(4, 8, 8, 3), dtype=np.uint8), ["b", "a", "b", "a"]
    paths, target = write_images(x, tmp_path / "source"), write_images(255 - x, tmp_path / "target")
    classifier = AdaptiveClassifier(steps=3, batch_size=4, tune="head", random_state=0).fit(paths, y, X_target=target)
    assert classifier.predict(target).shape == (4,)
    restored = pickle.loads(pickle.dumps(classifier))  # noqa: S301 (its own)
    np.testing.assert_array_equal(restored.predict_proba(target), classifier.predict_proba(target))


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    x, y = grey_squares(12)
    paths = write_images(x, tmp_path / "source")
    whole = AdaptiveClassifier(**LENET).fit(paths, y)
    paths[3].write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 of the 12 images of X cannot be read, for example '.*3.png' \(it is not"):
        AdaptiveClassifier(**LENET).fit(paths, y)
    with pytest.raises(DataError, match=r"1 of the 12 images of X_target cannot be read"):
        AdaptiveClassifier(**LENET).fit(x, y, X_target=paths)
    with pytest.raises(DataError, match=r"3\.png cannot be read as an image"):
        whole.predict(paths)


def test_unusable_images_are_refused(tmp_path: Path) -> None:
    x, y = grey_squares(8)
    paths = write_images(x, tmp_path / "source")
    lenet = AdaptiveClassifier(**LENET)
    with pytest.raises(DataError, match="X is the single path"):
        lenet.fit(str(tmp_path), y)
    with pytest.raises(DataError, match="cannot be found"):
        lenet.fit([*paths[:-1], tmp_path / "gone.png"], y)
    with pytest.raises(DataError, match="holds neither paths nor arrays that fit"):
        lenet.fit([*paths[:-1], None], y)
    with pytest.raises(DataError, match="give uint8 images"):
        lenet.fit(x / 255, y)
    with pytest.raises(DataError, match="X holds samples of different shapes"):
        lenet.fit([x[0], x[1, :20]], y[:2])
    with pytest.raises(DataError, match="X_target holds feature vectors but X holds images"):
        lenet.fit(x, y, X_target=np.ones((3, 2)))
    with pytest.raises(DataError, match="also in the source"):
        lenet.fit(paths, y, X_target=paths[:2])


def test_a_model_of_one_kind_refuses_the_other() -> None:
    x, y = grey_squares(8)
    X, labels, _, _ = domains(n=20)
    of_images, of_vectors = AdaptiveClassifier(**LENET).fit(x, y), quick().fit(X, labels)
    with pytest.raises(DataError, match="holds feature vectors, but the model reads images"):
        of_images.predict(X)
    with pytest.raises(DataError, match="holds images, but the model reads feature vectors"):
        of_vectors.predict(x)


def test_a_second_fit_forgets_the_first() -> None:
    x, y = grey_squares(8)
    X, labels, _, _ = domains(n=20)
    classifier = AdaptiveClassifier(**LENET).fit(X, labels)
    assert classifier.n_features_in_ == 3
    classifier.fit(x, y)
    assert not hasattr(classifier, "n_features_in_")
    assert classifier.predict(x).dtype == y.dtype


# --- what is shown -----------------------------------------------------------------------------------------------


def test_progress_is_shown_when_asked_for(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acclimate.screen.Timer", AtOnce)
    X, y, _, _ = domains(n=20)
    quick().fit(X, y)
    assert capsys.readouterr() == ("", "")
    quick(verbose=True).fit(X, y)
    out, err = capsys.readouterr()
    assert not out
    assert "Training source_only" in err


def test_the_example_of_the_documentation_runs() -> None:
    result = doctest.testmod(estimator)
    assert result.attempted > 5
    assert result.failed == 0
