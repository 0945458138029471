"""How good a classifier is on the target. Target labels exist in this file alone, and nothing here trains."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from acclimate.data.domain import Domain, sorted_classes
from acclimate.data.read import class_names, read_target
from acclimate.errors import DataError, DivergedError
from acclimate.methods.base import evaluation_mode
from acclimate.progress import Track, silent

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from acclimate.data.inputs import Inputs
    from acclimate.methods.base import Method


Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Answers:
    """The labels of a target.

    Attributes:
        labels: (N,) int64, positions in the source's classes; -1 where the item has no label or a foreign one.
        foreign: Classes that the source does not have, and how many items each has.
    """

    labels: npt.NDArray[np.int64]
    foreign: Mapping[str, int]


def read_answers(
    spec: str | Path, target: Domain, classes: Sequence[str], *, allow_mismatch: bool = False
) -> Answers | None:
    """Read the labels of a target, where it has any. Opens no image, so it can run before any computing.

    Folders of a target count as labels when one of them has the name of a source class; otherwise they are taken for
    mere storage. Labels written in a list, a table or an archive are always meant.

    Args:
        spec: What the user named as the target.
        target: What `read_target` made of it, or a part of that in the same order (broken images left out).
        classes: The source's classes.
        allow_mismatch: Accept classes that only one of the domains has.

    Returns:
        The labels of `target`'s items, or None when it has none.

    Raises:
        DataError: The classes of the target are not those of the source.
    """
    given = class_names(spec)
    found = {name for name in given if name is not None}
    if not found or (Path(spec).is_dir() and found.isdisjoint(classes)):
        return None
    if found.isdisjoint(classes):
        raise DataError(
            f"None of the labels in {target.origin} ({_some(found)}) is a class of the source ({_some(classes)}); "
            "correct them, or leave them out to use the target unlabelled."
        )
    if not allow_mismatch:
        _check_same_classes(target.origin, found, classes)
    position = {name: i for i, name in enumerate(classes)}
    kept = _of_items(target, spec, given)
    labels = np.array([position.get(name, -1) if name is not None else -1 for name in kept], dtype=np.int64)
    return Answers(labels, Counter(name for name in kept if name is not None and name not in position))


def _check_same_classes(origin: str, found: set[str], classes: Sequence[str]) -> None:
    foreign, absent = found.difference(classes), set(classes) - found
    problems = []
    if foreign:
        problems.append(f"has classes that the source lacks ({_some(foreign)})")
    if absent:
        problems.append(f"has no images of source classes ({_some(absent)})")
    if problems:
        raise DataError(
            f"The labelled target {origin} {' and '.join(problems)}; correct the names, "
            "or use --allow-class-mismatch to score only the classes that both have."
        )


def _of_items(target: Domain, spec: str | Path, given: Sequence[str | None]) -> Sequence[str | None]:
    """The labels of the target's items, where some of the items that `spec` lists may have been left out."""
    if len(target) == len(given):
        return given
    listed = iter(zip(read_target(spec).names, given, strict=True))
    found = (next((pair for pair in listed if pair[0] == name), None) for name in target.names)
    kept = [pair[1] for pair in found if pair]
    if len(kept) < len(target):
        raise DataError(f"{target.origin} has changed since it was read: start again.")
    return kept


def _some(names: Iterable[str], most: int = 5) -> str:
    ordered = sorted_classes(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more


@dataclass(frozen=True)
class ClassScore:
    """One class: its images, how many of them are classified correctly, and the fraction (None without images)."""

    name: str
    count: int
    correct: int
    accuracy: float | None


@dataclass(frozen=True, eq=False)
class Scores:
    """How predictions compare with labels. Everything follows from the confusion matrix.

    Attributes:
        classes: K names.
        confusion: (K, K) int64 counts: a row is a true class, a column a predicted one.
        n_unknown: Items that could not be scored: without a label, or of a class that the source lacks.
    """

    classes: tuple[str, ...]
    confusion: npt.NDArray[np.int64]
    n_unknown: int = 0

    @property
    def n(self) -> int:
        """Items that were scored."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """The fraction of the items that is classified correctly: "overall"."""
        return float(self.confusion.trace() / self.n)

    @property
    def mean_per_class(self) -> float:
        """The mean of the classes' accuracies, over the classes that have images: the literature's VisDA-2017 figure.

        It is scikit-learn's balanced accuracy, and differs from `accuracy` where classes differ in size.
        """
        return float(np.mean([c.accuracy for c in self.per_class if c.accuracy is not None]))

    @property
    def per_class(self) -> tuple[ClassScore, ...]:
        """One entry a class, in the order of `classes`."""
        counts, correct = self.confusion.sum(1).tolist(), self.confusion.diagonal().tolist()
        rows = zip(self.classes, counts, correct, strict=True)
        return tuple(ClassScore(name, n, right, right / n if n else None) for name, n, right in rows)

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON; `from_dict` reads it back."""
        return {
            "accuracy": self.accuracy,
            "mean_per_class": self.mean_per_class,
            "n": self.n,
            "n_unknown": self.n_unknown,
            "per_class": [asdict(score) for score in self.per_class],
            "confusion": self.confusion.tolist(),
        }

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Scores:
        """Read what `as_dict` made."""
        classes = tuple(score["name"] for score in entry["per_class"])
        return cls(classes, np.array(entry["confusion"], dtype=np.int64), entry["n_unknown"])


def score(probabilities: Probabilities, answers: Answers, classes: Sequence[str]) -> Scores:
    """Compare predictions with labels.

    Args:
        probabilities: (N, K); the prediction is the largest of a row.
        answers: The labels of the N items.
        classes: K names.

    Raises:
        DataError: No item has a label.
    """
    known = answers.labels >= 0
    if not known.any():
        raise DataError("No image of the target has a label that is a class of the source, so nothing can be scored.")
    truth, predicted = answers.labels[known], probabilities.argmax(1)[known]
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (truth, predicted), 1)
    return Scores(tuple(classes), confusion, int((~known).sum()))


@dataclass(frozen=True)
class Changes:
    """What adaptation changed in the predictions. None of it says whether they became better.

    Attributes:
        n: Items.
        share_changed: The fraction whose predicted class differs.
        counts_before: Items predicted to be of each class, in the order of the classes.
        counts_after: The same, after adaptation.
        confidence_before: Mean probability of the predicted class.
        confidence_after: The same, after adaptation.
    """

    n: int
    share_changed: float
    counts_before: list[int]
    counts_after: list[int]
    confidence_before: float
    confidence_after: float

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON; `Changes(**entry)` reads it back."""
        return asdict(self)


def changes(before: Probabilities, after: Probabilities) -> Changes:
    """Compare two sets of predictions (N, K) for the same items: the unadapted classifier's and the adapted one's."""
    old, new = before.argmax(1), after.argmax(1)
    K = before.shape[1]
    return Changes(
        n=len(old),
        share_changed=float(np.mean(old != new)),
        counts_before=np.bincount(old, minlength=K).tolist(),
        counts_after=np.bincount(new, minlength=K).tolist(),
        confidence_before=float(before.max(1).mean()),
        confidence_after=float(after.max(1).mean()),
    )


def predict(
    method: Method,
    inputs: Inputs,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    track: Track = silent,
) -> Probabilities:
    """The class probabilities (N, K) of all inputs, un-augmented, in evaluation mode.

    Raises:
        DivergedError: The method's logits are not finite.
    """
    with evaluation_mode(method):
        batches = _batches(inputs, batch_size, device, track, "Predicting")
        probabilities = [method.predict(x).cpu().double().softmax(1).numpy() for x in batches]
    if not all(np.isfinite(p).all() for p in probabilities):
        raise DivergedError("The method's predictions are not finite; train again with a smaller learning rate (--lr).")
    return np.concatenate(probabilities)


def domain_error(score_batches: Iterable[npt.ArrayLike]) -> float:
    """The mean over images of 100 |x - 0.5|: 0 when the discriminator cannot tell the domains, 50 when it is certain.

    Source: WEMNet, equation 12. The mean is of absolute values, not the absolute value of a mean.

    Args:
        score_batches: Batches (B,) of x, the discriminator's score after the sigmoid.
    """
    scores = np.concatenate([np.asarray(batch, dtype=np.float64) for batch in score_batches])
    return float(np.mean(100 * np.abs(scores - 0.5)))


def domain_errors(
    method: Method,
    source: Inputs,
    target: Inputs,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    track: Track = silent,
) -> dict[str, dict[str, float]]:
    """The domain error of each feature that the method's discriminators read, un-augmented, in evaluation mode.

    Returns:
        By feature, as in `Method.domain_logits`: the error on the "source" and on the "target". Empty when the
        method has no discriminator.
    """
    errors: dict[str, dict[str, float]] = defaultdict(dict)
    with evaluation_mode(method):
        for domain, inputs in {"source": source, "target": target}.items():
            scores: dict[str, list[npt.NDArray[np.float64]]] = defaultdict(list)
            for x in _batches(inputs, batch_size, device, track, f"Domain error of the {domain}"):
                logits = method.domain_logits(x)
                if not logits:
                    return {}
                for feature, z in logits.items():
                    scores[feature].append(z.cpu().double().sigmoid().numpy())
            for feature, batches in scores.items():
                errors[feature][domain] = domain_error(batches)
    return dict(errors)


def _batches(
    inputs: Inputs, batch_size: int, device: torch.device | str, track: Track, description: str
) -> Iterator[Tensor]:
    index = np.arange(len(inputs))
    parts = [index[start : start + batch_size] for start in range(0, len(index), batch_size)]
    for part in track(parts, description, len(parts)):
        yield inputs.batch(part, None).to(device)
