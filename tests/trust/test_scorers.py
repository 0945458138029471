"""Validators as scorers: they see the target through the fitted estimator."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import sklearn
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from acclimate.errors import DataError, OptionError
from acclimate.estimator import AdaptiveClassifier
from acclimate.trust.validators import VALIDATORS, Evidence, make_validator_scorer

LABELS = np.array(["ill", "well"])


def domains() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X, y, X_target: two classes, the target moved, and one of the halves of the first column turned over."""
    rng = np.random.default_rng(0)
    y = np.arange(80) % 2
    X = rng.normal(size=(80, 3)) + 3 * y[:, None] * [1, 1, 0]
    X_target = rng.normal(size=(50, 3)) + 3 * (np.arange(50) % 2)[:, None] * [1, 1, 0] + 0.5
    return X, LABELS[y], X_target


class Toy(ClassifierMixin, BaseEstimator):
    """An estimator that keeps its target, as AdaptiveClassifier does, and can be told to say one class everywhere."""

    def __init__(self, collapsed: bool = False) -> None:
        self.collapsed = collapsed

    def fit(self, X: Any, y: Any, X_target: Any = None) -> Toy:
        self.inner_ = LogisticRegression().fit(X, y)
        self.classes_, self.X_target_ = self.inner_.classes_, X_target
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        p = self.inner_.predict_proba(X)
        return np.tile([0.99, 0.01], (len(p), 1)) if self.collapsed else p

    def predict(self, X: Any) -> np.ndarray:
        return self.classes_[self.predict_proba(X).argmax(1)]


def test_it_is_the_validator_of_what_the_estimator_says() -> None:
    X, y, X_target = domains()
    fitted = Toy().fit(X, y, X_target=X_target)
    p = fitted.predict_proba(X_target)
    assert make_validator_scorer("im")(fitted) == VALIDATORS["im"](Evidence(p_target=p))
    assert make_validator_scorer("source_accuracy")(fitted, X[:20], y[:20]) == fitted.score(X[:20], y[:20])
    shares = make_validator_scorer("im_shares", shares=[0.3, 0.7])
    assert shares(fitted) == VALIDATORS["im_shares"](Evidence(p_target=p, shares=np.array([0.3, 0.7])))
    vectors = Evidence(p_target=p, frozen_target=X_target, frozen_source=X, y_source=(y == "well").astype(int))
    reverse = make_validator_scorer("frozen_reverse_accuracy")
    assert reverse(fitted, X, y) == VALIDATORS["frozen_reverse_accuracy"](vectors) > 0.9


def test_a_grid_search_without_labels_of_the_target_leaves_the_collapsed_model() -> None:
    X, y, X_target = domains()
    for name, collapsed in {"im": False, "source_accuracy": False, "entropy": True}.items():
        search = GridSearchCV(Toy(), {"collapsed": [False, True]}, scoring=make_validator_scorer(name), cv=2)
        search.fit(X, y, X_target=X_target)
        assert search.best_params_ == {"collapsed": collapsed}


def test_it_scores_the_estimator_alone_and_at_the_end_of_a_pipeline() -> None:
    X, y, X_target = domains()
    model = AdaptiveClassifier(method="source_only", steps=5, batch_size=8, bottleneck=4, random_state=0)
    scorer = make_validator_scorer("im")
    alone = model.fit(X, y, X_target=X_target)
    assert alone.X_target_ is X_target
    assert scorer(alone) == VALIDATORS["im"](Evidence(p_target=alone.predict_proba(X_target)))
    with sklearn.config_context(enable_metadata_routing=True):
        step = AdaptiveClassifier(**model.get_params()).set_fit_request(X_target=True)
        pipe = make_pipeline(StandardScaler(), step, transform_input=["X_target"]).fit(X, y, X_target=X_target)
    assert scorer(pipe, X, y) == VALIDATORS["im"](Evidence(p_target=pipe.predict_proba(X_target)))
    assert make_validator_scorer("source_accuracy")(pipe, X, y) == pipe.score(X, y)


def test_a_grid_search_over_a_pipeline_scores_the_target_as_its_steps_made_it() -> None:
    X, y, X_target = domains()
    scorer = make_validator_scorer("im")
    with sklearn.config_context(enable_metadata_routing=True):
        model = AdaptiveClassifier(method="source_only", batch_size=8, bottleneck=4, random_state=0)
        pipe = make_pipeline(StandardScaler(), model.set_fit_request(X_target=True), transform_input=["X_target"])
        grid = {"adaptiveclassifier__steps": [1, 40]}
        search = GridSearchCV(pipe, grid, scoring=scorer, cv=2).fit(X, y, X_target=X_target)
    assert search.best_params_ == {"adaptiveclassifier__steps": 40}
    best = search.best_estimator_
    scaled = best[0].transform(X_target)
    assert np.allclose(best[-1].X_target_, scaled)
    assert scorer(best) == VALIDATORS["im"](Evidence(p_target=best[-1].predict_proba(scaled)))


def test_a_scorer_can_be_sent_to_another_process() -> None:
    scorer = make_validator_scorer("im_shares", shares=[0.5, 0.5], seed=3)
    assert pickle.loads(pickle.dumps(scorer)) == scorer  # noqa: S301


def test_refusals() -> None:
    X, y, X_target = domains()
    with pytest.raises(OptionError, match="There is no validator 'accuracy'"):
        make_validator_scorer("accuracy")
    scorer = make_validator_scorer("source_accuracy")
    with pytest.raises(DataError, match="fitted without a target: give X_target to fit"):
        scorer(Toy().fit(X, y), X, y)
    with pytest.raises(DataError, match="needs the class probabilities of a held-out part of the source"):
        scorer(Toy().fit(X, y, X_target=X_target))
    with pytest.raises(DataError, match="classes that were not fitted"):
        scorer(Toy().fit(X, y, X_target=X_target), X[:1], ["dead"])
