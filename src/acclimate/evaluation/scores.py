"""Scores: how predictions compare with labels, and with other predictions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from acclimate.errors import DataError
from acclimate.evaluation.answers import Answers

Probabilities = npt.NDArray[np.float64]


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
    unknown = int((answers.labels < 0).sum())
    if unknown == len(answers.labels):
        raise DataError("No image of the target has a label that is a class of the source, so nothing can be scored.")
    return Scores(tuple(classes), confusion(probabilities.argmax(1), answers, len(classes)), unknown)


def confusion(predicted: npt.NDArray[np.int64], answers: Answers, num_classes: int) -> npt.NDArray[np.int64]:
    """How many of the items with a known label are of each class, and predicted to be of each.

    Args:
        predicted: (N,) positions in the classes.
        answers: The labels of the N items.
        num_classes: K.

    Returns:
        (K, K) counts: a row is a true class, a column a predicted one.
    """
    known = answers.labels >= 0
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(counts, (answers.labels[known], predicted[known]), 1)
    return counts


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


def domain_error(score_batches: Iterable[npt.ArrayLike]) -> float:
    """The mean over images of 100 |x - 0.5|: 0 when the discriminator cannot tell the domains, 50 when it is certain.

    Source: WEMNet, equation 12. The mean is of absolute values, not the absolute value of a mean.

    Args:
        score_batches: Batches (B,) of x, the discriminator's score after the sigmoid.
    """
    scores = np.concatenate([np.asarray(batch, dtype=np.float64) for batch in score_batches])
    return float(np.mean(100 * np.abs(scores - 0.5)))


def interval(correct: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval for a fraction of which `correct` of `n` random samples were found; z is 1.96 for 95 %.

    Source: Wilson, JASA 1927.
    """
    p = correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)
