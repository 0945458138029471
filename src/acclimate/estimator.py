"""The classifier for scikit-learn: feature vectors, images in arrays or image files, through the same code as a run."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import Tags, assert_all_finite, check_array, check_consistent_length, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from acclimate.data.domain import Domain, LabelledDomain, check_pair
from acclimate.data.read import domain_of
from acclimate.errors import DataError, DivergedError
from acclimate.evaluation.predict import predict
from acclimate.evaluation.scores import Probabilities
from acclimate.files import write_json
from acclimate.machine import pick_device, random_state_kept, torch_threads
from acclimate.methods import registry
from acclimate.methods.base import Method
from acclimate.methods.registry import BASELINE, CONSENSUS
from acclimate.model import Model
from acclimate.networks.backbones import BackboneSource
from acclimate.outputs import DESCRIPTION, check_output
from acclimate.progress import NOBODY, Listener
from acclimate.runs.members import FEWEST, Lesson, looks, members_of, most_agreeing, teach
from acclimate.runs.prepare import Prepared, prepare
from acclimate.runs.task import Task
from acclimate.schema import Checked, as_json, damaged, read, told
from acclimate.settings import OF_AN_ESTIMATOR, Settings
from acclimate.training import train
from acclimate.trust.estimate import Accuracy, reliability
from acclimate.trust.warnings import Findings

FAR = 10.0  # standard deviations of the source, at which most columns of a target are on another scale

Rows: TypeAlias = npt.ArrayLike | Sequence[str | Path]

# The parameters that are no settings, and what they are.
_OWN = {
    "options": "The method's hyper-parameters, where they differ from its defaults, such as `{'trade_off': 0.5}`.",
    "random_state": (
        "An int is the seed of the command line (`--seed`); a `RandomState`, or None for NumPy's global one, is what "
        "the seed is drawn from."
    ),
    "verbose": "Show a progress bar on stderr.",
}
_DEFAULTS: dict[str, Any] = {
    **{name: None if one.setting.of_method else one.default for name, one in OF_AN_ESTIMATOR.items()},
    "options": None,
    "random_state": None,
    "verbose": False,
}


ESTIMATOR = "estimator.json"  # beside the files of the model

SCHEMA = 1

_LABELS = "biufUO"  # the kinds of NumPy's types

_LABEL = bool | int | float | str


class _Saved(Checked, frozen=True, kw_only=True):
    """What estimator.json holds: the parameters that are not at their defaults, and what a fit notes of its data."""

    schema: int
    parameters: dict[str, Any]
    dtype: str
    classes: list[bool | int | float | str]
    columns: int | None
    names: list[str] | None


class AdaptiveClassifier(
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]  # scikit-learn has no types
    TransformerMixin,  # type: ignore[misc]
    ClassifierMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    """A classifier that adapts to a domain of which it is given samples without labels.

    It takes, in `fit` as in `predict`, one of

    - feature vectors (N, D): numbers, in anything that NumPy or scikit-learn reads as a matrix;
    - images in an array, uint8 (N, H, W) or (N, H, W, 1, 3 or 4), N of any size H x W;
    - image files: N paths in a list, an array or a column of a table.

    Vectors are learnt from as they are, so bring them to one scale first (`StandardScaler` in a pipeline). Images pass
    through the backbone; where it is frozen, its features are kept in the cache folder (`ACCLIMATE_CACHE`).

    Cross-validation scores the *source*, whose labels it has. What counts is the accuracy on the target, for which
    `score` takes a labelled part of it. scikit-learn's cross-validation also has a pitfall: it cuts every fit
    parameter that has as many rows as `X` into the same folds. So give an `X_target` of another number of rows, or
    each fit sees only the part of it that lies in the training fold.

    In a pipeline, `X_target` must go through the steps before. That takes metadata routing:

        sklearn.set_config(enable_metadata_routing=True)
        adapt = AdaptiveClassifier().set_fit_request(X_target=True)
        pipe = Pipeline([("scale", StandardScaler()), ("adapt", adapt)], transform_input=["X_target"])
        pipe.fit(X, y, X_target=X_target)

    PARAMETERS

    Attributes:
        classes_: (K,) the labels that occur in `y`, sorted, as they were given.
        model_: The trained `acclimate.model.Model`. `save(folder)` writes it without pickle.
        X_target_: The target of the fit as it was given, for scorers that look at it; None without one.
        estimate_: After a fit of the consensus, an `acclimate.trust.estimate.Accuracy`: an estimate of the accuracy on
            the target, with a range, from how often the members agree.
        reliability_: Likewise, the share (N_target,) of the members that agree with the result on each sample.
        findings_: Likewise, `acclimate.trust.warnings.Findings`: signs that adaptation has done harm.
        n_features_in_: D, after a fit to vectors.
        feature_names_in_: (D,) names of the columns, after a fit to a data frame of vectors.

    Examples:
        Two classes of points that all three columns tell apart; in the target the first column has moved.

        >>> import numpy as np
        >>> from acclimate.estimator import AdaptiveClassifier
        >>> rng = np.random.default_rng(1)
        >>> y = np.repeat(["healthy", "ill"], 100)
        >>> X = rng.normal(size=(200, 3)) + np.where(y == "ill", 2, -2)[:, None]
        >>> X_target = rng.normal(size=(200, 3)) + np.where(y == "ill", 2, -2)[:, None] + [6, 0, 0]
        >>> classifier = AdaptiveClassifier(method="wemnet", steps=300, bottleneck=16, random_state=1)
        >>> adapted = classifier.fit(X, y, X_target=X_target).score(X_target, y)
        >>> unadapted = classifier.set_params(method="source_only").fit(X, y).score(X_target, y)
        >>> adapted > unadapted + 0.1
        True
        >>> classifier.classes_
        array(['healthy', 'ill'], dtype='<U7')
    """

    classes_: npt.NDArray[Any]
    model_: Model
    X_target_: Rows | None
    estimate_: Accuracy
    reliability_: npt.NDArray[np.float64]
    findings_: Findings

    def __init__(self, **parameters: Any) -> None:
        for name in parameters.keys() - _DEFAULTS.keys():
            raise TypeError(f"AdaptiveClassifier has no parameter {name!r}; it has {', '.join(_DEFAULTS)}.")
        for name, value in {**_DEFAULTS, **parameters}.items():
            setattr(self, name, value)

    def fit(self, X: Rows, y: npt.ArrayLike, X_target: Rows | None = None) -> AdaptiveClassifier:
        """Train on the labelled source, and adapt to the target.

        With the same `random_state` and the same data, two fits on one machine end with the same bits, as long as no
        other thread draws from torch's random numbers meanwhile. These stay in the state in which they were.

        Args:
            X: N samples of the source.
            y: (N,) their labels.
            X_target: Samples of the target, of the same kind as `X`. Without them there is nothing to adapt to: the
                source, unlabelled, serves as its own target, and the method runs on that.

        Raises:
            DataError: The samples cannot be used as given, an image is broken, or the domains share data.
            OptionError: A parameter has a value that it cannot have.
            DivergedError: Training produced a value that is not finite.
            ValueError: scikit-learn refuses `X` or `y`.
            TypeError: `X` is sparse, or holds something else than numbers.
        """
        settings = self._settings()
        screen = self._listener()
        device = pick_device(settings.device)
        classes, task = self._task(X, y, X_target)
        for name in ("estimate_", "findings_", "reliability_"):  # of a consensus that was fitted before
            self.__dict__.pop(name, None)
        with random_state_kept(device):
            ready = prepare(settings, task, device, screen.track)
            lesson = _taught(settings, task, ready, screen) if settings.method == CONSENSUS else None
            _train(settings, ready, screen)
        self.classes_, self.model_, self.X_target_ = classes, ready.model, X_target
        if lesson is not None:
            p = predict(ready.model.method, ready.target, device=device)
            self.estimate_ = lesson.taught.estimate
            self.reliability_ = reliability(lesson.taught.members, p.argmax(1))
            self.findings_ = lesson.taught.findings(p, lesson.p_before, task.source.classes, settings.seed)
        return self

    def predict(self, X: Rows) -> npt.NDArray[Any]:
        """The most probable class of each sample, (N,), as the labels were given.

        Args:
            X: N samples, of the kind that was fitted.

        Raises:
            DataError: They cannot be used, or are of the other kind.
            ValueError: scikit-learn refuses them.
        """
        best = self.predict_proba(X).argmax(1)  # (N,)
        labels: npt.NDArray[Any] = self.classes_[best]
        return labels

    def predict_proba(self, X: Rows) -> Probabilities:
        """The class probabilities (N, K), in the order of `classes_`.

        Args:
            X: N samples, of the kind that was fitted.

        Raises:
            DataError: They cannot be used, or are of the other kind.
            ValueError: scikit-learn refuses them.
        """
        check_is_fitted(self, "model_")
        domain = self._domain(X, reset=False)
        return self.model_.predict(domain, self._listener().track).probabilities

    def predict_log_proba(self, X: Rows) -> Probabilities:
        """The logarithms (N, K) of `predict_proba`, -inf where a probability is 0. For the rest see there."""
        with np.errstate(divide="ignore"):
            logarithms: Probabilities = np.log(self.predict_proba(X))
        return logarithms

    def transform(self, X: Rows) -> npt.NDArray[np.float32]:
        """The features (N, d) in which the model compares the domains, and which its classifier reads.

        Args:
            X: N samples, of the kind that was fitted.

        Raises:
            DataError: They cannot be used, or are of the other kind.
            ValueError: scikit-learn refuses them.
        """
        check_is_fitted(self, "model_")
        return self.model_.features(self._domain(X, reset=False), self._listener().track)

    def save(self, folder: str | Path) -> None:
        """Write the model and estimator.json into a folder, made if need be, without pickle.

        The target and what a consensus says of it (`X_target_`, `estimate_`, `reliability_`, `findings_`) are not
        kept, nor a `RandomState`.

        Args:
            folder: Where to.

        Raises:
            DataError: The labels are neither numbers nor text, or the folder holds something else that would be lost.
            OSError: The folder cannot be written to.
        """
        check_is_fitted(self, "model_")
        labels = self.classes_
        if labels.dtype.kind not in _LABELS or not all(isinstance(label, _LABEL) for label in labels.tolist()):
            raise DataError(f"The labels are {labels.dtype}, which a file cannot hold: fit with numbers or text.")
        names = getattr(self, "feature_names_in_", None)
        saved = _Saved(
            schema=SCHEMA,
            parameters=_saved_parameters(self.get_params(deep=False)),
            dtype=labels.dtype.str,
            classes=labels.tolist(),
            columns=getattr(self, "n_features_in_", None),
            names=None if names is None else names.tolist(),
        )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        check_output(folder / ESTIMATOR, DESCRIPTION)
        self.model_.save(folder)
        write_json(folder / ESTIMATOR, as_json(saved))

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str = "auto",
        *,
        method: str | type[Method] | None = None,
        backbone: BackboneSource | None = None,
    ) -> AdaptiveClassifier:
        """Read what `save` wrote. It is safe to open from a stranger: nothing is unpickled, and no file is run.

        Args:
            folder: Where it lies.
            device: Where it is to run, as the parameter of this name.
            method: The method that it was fitted with, where that is a class or from a file.
            backbone: The backbone that it was fitted with, where that is a module or from a file.

        Raises:
            DataError: The folder holds no estimator, or a damaged one.
            OptionError: The device does not exist, or the method or the backbone has to be given again.
        """
        folder = Path(folder)
        missing, advice = f"{folder} holds no estimator: name the folder that save wrote.", "fit and save it again"
        saved = read(folder / ESTIMATOR, _Saved, advice, missing=missing, schema=SCHEMA)
        with told(folder / ESTIMATOR, advice):
            again = {"device": device, "method": method, "backbone": backbone}
            parameters = saved.parameters | {name: value for name, value in again.items() if value is not None}
            try:
                classifier, labels = cls(**parameters), np.array(saved.classes, np.dtype(saved.dtype))
            except (TypeError, ValueError) as error:
                raise damaged("its parameters or its classes are impossible") from error
        classifier.model_ = Model.load(folder, pick_device(device), method=method, backbone=backbone)
        if len(labels) != len(classifier.model_.spec.classes):
            raise DataError(f"{folder / ESTIMATOR} has other classes than the model beside it: fit and save it again.")
        classifier.classes_, classifier.X_target_ = labels, None
        if saved.columns is not None:
            classifier.n_features_in_ = saved.columns
        if saved.names is not None:
            classifier.feature_names_in_ = np.array(saved.names, dtype=object)
        return classifier

    @property
    def _n_features_out(self) -> int:
        """How many features `transform` gives, for the names that scikit-learn makes of them."""
        return self.model_.feature_length

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []  # features are float32 whatever they are made of
        return tags

    def _listener(self) -> Listener:
        if not self.verbose:
            return NOBODY
        from acclimate.screen import Screen

        return Screen()

    def _settings(self) -> Settings:
        given = {name: getattr(self, name) for name in OF_AN_ESTIMATOR}
        given["weights"] = os.fspath(self.weights) if self.weights is not None else None
        given["device"] = str(self.device)
        options = dict(self.options or {})
        return Settings.of(source="X", target="X_target", options=options, seed=_seed(self.random_state), **given)

    def _task(self, X: Rows, y: npt.ArrayLike, X_target: Rows | None) -> tuple[npt.NDArray[Any], Task]:
        """The classes as they were given, and the data to train on; no image may be broken, as each has its row."""
        domain = self._domain(X, reset=True)
        classes, labels = _encoded(y, len(domain))
        if X_target is None and len(classes) > 2 and -1 in classes.tolist():
            raise DataError(
                "y contains -1, which other libraries use for unlabelled samples: give the samples of the target as "
                "X_target, without labels; if -1 is one of your classes, rename it."
            )
        source = LabelledDomain(domain, labels, tuple(map(str, classes)))
        if X_target is None:
            return classes, Task(source, domain, most_broken=0)
        target = self._target(X_target)
        check_pair(source, target)
        _check_scale(domain, target)
        return classes, Task(source, target, most_broken=0)

    def _domain(self, X: Rows, *, reset: bool) -> Domain:
        """What is fitted (`reset`) or predicted."""
        if reset:  # images have no columns, so what a former fit noted must not outlive it
            self.__dict__.pop("n_features_in_", None)
            self.__dict__.pop("feature_names_in_", None)
        images = _images(X, "X")
        return domain_of(validate_data(self, X, reset=reset, dtype=np.float32) if images is None else images, "X")

    def _target(self, X_target: Rows) -> Domain:
        images = _images(X_target, "X_target")
        if images is not None:
            return domain_of(images, "X_target")
        vectors = check_array(X_target, dtype=np.float32, input_name="X_target")
        if getattr(self, "n_features_in_", None) == vectors.shape[1]:
            validate_data(self, X_target, reset=False, skip_check_array=True)  # refuses columns in another order
        return domain_of(vectors, "X_target")


class _Taught(NamedTuple):
    """What the members of a consensus say together, and the probabilities (N, K) of source-only, if it is one."""

    taught: Lesson
    p_before: Probabilities | None


def _taught(settings: Settings, task: Task, ready: Prepared, screen: Listener) -> _Taught:
    """Train the members of a consensus one after the other, and give the method their lesson.

    Raises:
        DivergedError: So many members diverged that too few are left.
    """
    votes: list[npt.NDArray[np.int64]] = []
    methods, p_before = [], None
    for member in members_of(settings, ready.model.spec.tune):
        trained = prepare(member.settings, task, ready.model.device, screen.track)
        method = trained.model.method
        try:
            with torch_threads(1):  # as in a run, so that both end with the same bits
                _train(member.settings, trained, screen)
                p = predict(method, trained.target, device=ready.model.device)
        except DivergedError as error:
            warnings.warn(f"The member {member.name} is left out: {error}", stacklevel=3)
            continue
        votes.append(p.argmax(1))
        if member.settings.method == BASELINE:
            p_before = p
        methods.append(method)
    if len(votes) < FEWEST:
        raise DivergedError(f"Fewer than {FEWEST} members of the consensus are left; use a smaller learning rate (lr).")
    members = np.stack(votes)
    return _Taught(teach(ready, members, looks(methods[most_agreeing(members)]), settings.seed), p_before)


def _saved_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """Those that differ from their defaults and that JSON has: neither a class nor a module nor a RandomState."""
    plain: dict[str, Any] = {}
    for name, value in parameters.items():
        if isinstance(value, os.PathLike | torch.device):
            plain[name] = str(value)
        elif isinstance(value, dict | str | int | float | np.generic) and value != _DEFAULTS[name]:
            plain[name] = value.item() if isinstance(value, np.generic) else value
    return plain


def _train(settings: Settings, ready: Prepared, screen: Listener) -> None:
    with screen.progress(f"Training {registry.shown(settings.method)}", settings.recipe.steps) as meter:
        for progress in train(ready.model.method, ready.pair, settings.recipe):
            meter.update(progress.step, progress.terms)


def _check_scale(source: Domain, target: Domain) -> None:
    """Warn of vectors on another scale than the source's, which is what skipping a pipeline's steps makes of them."""
    if isinstance(source.items, tuple) or isinstance(target.items, tuple) or source.kind != "vectors":
        return
    mean, length = source.items.mean(0), source.items.std(0)
    away = np.abs(target.items.mean(0) - mean) / np.where(length > 0, length, 1)
    wider = target.items.std(0) / np.where(length > 0, length, 1)
    if np.median(away) > FAR or np.median(wider) > FAR or np.median(wider) < 1 / FAR:
        warnings.warn(
            "X_target is on a different scale from X: if X went through earlier steps of a pipeline, X_target has to "
            "go through them as well, with Pipeline(..., transform_input=['X_target']).",
            stacklevel=4,
        )


def _parameters() -> str:
    """The parameters of the estimator, as its docstring lists them."""
    told = {
        name: f"{one.setting.help} None: the method's own." if one.setting.of_method else one.setting.help
        for name, one in OF_AN_ESTIMATOR.items()
    }
    return "Args:\n" + "\n".join(f"        {name}: {text}" for name, text in {**told, **_OWN}.items())


# scikit-learn, help() and editors read the parameters from here.
AdaptiveClassifier.__init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD),
        *(inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=value) for n, value in _DEFAULTS.items()),
    ]
)
AdaptiveClassifier.__doc__ = (AdaptiveClassifier.__doc__ or "").replace("PARAMETERS", _parameters())


def _images(X: Rows, origin: str) -> npt.NDArray[Any] | list[str | Path] | None:
    """The images that `X` holds: an array of them or their paths. None is left to scikit-learn's checks of vectors.

    Raises:
        DataError: It is a single path, or rows of different lengths.
    """
    if isinstance(X, str | os.PathLike):
        raise DataError(f"{origin} is the single path {os.fspath(X)!r}: give a list of image paths, one a sample.")
    try:
        array = np.asarray(X)
    except ValueError as error:
        raise DataError(
            f"{origin} holds samples of different shapes: give image files, or bring all to one."
        ) from error
    if array.ndim >= 3:
        return array
    column = array.ndim == 1 or (array.ndim == 2 and array.shape[1] == 1)
    if column and array.dtype.kind in "OUT" and any(isinstance(item, str | os.PathLike) for item in array.flat):
        return list(array.ravel())
    return None


def _encoded(y: npt.ArrayLike, n: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """The classes (K,) in `y`, sorted, and the position (N,) in them of each label.

    Raises:
        ValueError: `y` is not one label a sample, of at least two classes.
    """
    if y is None:
        raise DataError("AdaptiveClassifier requires y to be passed, but the target y is None.")
    labels = column_or_1d(y, warn=True)
    assert_all_finite(labels, input_name="y")
    check_classification_targets(labels)
    check_consistent_length(np.empty(n), labels)
    classes, positions = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"y has only 1 class, '{classes[0]}': give at least two classes.")
    return classes, positions


def _seed(random_state: int | np.random.RandomState | None) -> int:
    """The seed of a fit. An int is the seed itself, so that the command line's runs can be repeated."""
    random = check_random_state(random_state)
    return int(random_state) if isinstance(random_state, Integral) else int(random.randint(np.iinfo(np.int32).max))
