"""Scores: how predictions compare with labels, and with other predictions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from acclimate.errors import DataError
from acclimate.evaluation.answers import Answers
from acclimate.schema import Count, Entry, Fraction, Positive

Probabilities = npt.NDArray[np.float64]


class ClassScore(Entry, frozen=True, kw_only=True):
    """One class: its images, how many of them are classified correctly, and the fraction (None without images)."""

    name: str
    count: Count
    correct: Count
    accuracy: Fraction | None

    def __post_init__(self) -> None:
        """Refuse counts that do not go together, which is what an altered file has."""
        if self.correct > self.count or (self.accuracy is None) != (self.count == 0):
            raise ValueError("count, correct and accuracy do not go together")


class ScoresRecord(Entry, frozen=True, kw_only=True):
    """Scores as a record holds them, with what follows from the confusion matrix spelt out.

    Attributes:
        accuracy: See `Scores`, like all others.
        mean_per_class: A fraction, like `accuracy`.
        n: Items that were scored, at least one.
        n_unknown: Items that could not be scored.
        per_class: One entry a class.
        confusion: K rows of K counts.
    """

    accuracy: Fraction
    mean_per_class: Fraction
    n: Positive
    n_unknown: Count
    per_class: tuple[ClassScore, ...]
    confusion: tuple[tuple[Count, ...], ...]

    def __post_init__(self) -> None:
        """Refuse counts that do not add up, which is what an altered file has."""
        K = len(self.per_class)
        rows = [(sum(row), row[i]) for i, row in enumerate(self.confusion) if len(row) == K and i < K]
        if rows != [(c.count, c.correct) for c in self.per_class] or len(self.confusion) != K:
            raise ValueError("the confusion matrix is not that of per_class")
        if sum(count for count, _ in rows) != self.n:
            raise ValueError("the images of the classes are not n in all")


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
        return tuple(
            ClassScore(name=name, count=n, correct=right, accuracy=right / n if n else None) for name, n, right in rows
        )

    def record(self) -> ScoresRecord:
        """The same as a record holds it; `of` reads it back."""
        return ScoresRecord(
            accuracy=self.accuracy,
            mean_per_class=self.mean_per_class,
            n=self.n,
            n_unknown=self.n_unknown,
            per_class=self.per_class,
            confusion=tuple(map(tuple, self.confusion.tolist())),
        )

    @classmethod
    def of(cls, record: ScoresRecord) -> Scores:
        """The scores that a record holds."""
        classes = tuple(score.name for score in record.per_class)
        return cls(classes, np.array(record.confusion, dtype=np.int64), record.n_unknown)


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


class Changes(Entry, frozen=True, kw_only=True):
    """What adaptation changed in the predictions. None of it says whether they became better.

    Attributes:
        n: Items.
        share_changed: The fraction whose predicted class differs.
        counts_before: Items predicted to be of each class, in the order of the classes.
        counts_after: The same, after adaptation.
        confidence_before: Mean probability of the predicted class.
        confidence_after: The same, after adaptation.
    """

    n: Positive
    share_changed: Fraction
    counts_before: tuple[Count, ...]
    counts_after: tuple[Count, ...]
    confidence_before: Fraction
    confidence_after: Fraction


def changes(before: Probabilities, after: Probabilities) -> Changes:
    """Compare two sets of predictions (N, K) for the same items: the unadapted classifier's and the adapted one's."""
    old, new = before.argmax(1), after.argmax(1)
    K = before.shape[1]
    return Changes(
        n=len(old),
        share_changed=float(np.mean(old != new)),
        counts_before=tuple(np.bincount(old, minlength=K).tolist()),
        counts_after=tuple(np.bincount(new, minlength=K).tolist()),
        confidence_before=float(before.max(1).mean()),
        confidence_after=float(after.max(1).mean()),
    )


class DomainErrors(Entry, frozen=True, kw_only=True):
    """The domain error of a feature, from 0 to 50: on the images of the source and on those of the target."""

    source: Annotated[float, Meta(ge=0, le=50)]
    target: Annotated[float, Meta(ge=0, le=50)]


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
