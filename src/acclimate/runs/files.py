"""The files of a run: predictions, the images left out, and the metrics of the training."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from acclimate import schema
from acclimate.errors import DataError
from acclimate.files import json_line, naming, open_no_follow, replacing_text, write_jsonl
from acclimate.runs.masks import PackedMask
from acclimate.schema import Checked, Positive, UnreadableError

if TYPE_CHECKING:
    from acclimate.data.domain import LabelledDomain
    from acclimate.evaluation.scores import Probabilities

MAKE_AGAIN = "make the run again, with --overwrite or in a new folder"  # what to do about a file that is damaged

RUN_FILES = {
    "predictions.csv": "the target's images: class, confidence, probabilities",
    "source_predictions.csv": "the same of the source's images that stayed out of training, with their labels",
    "skipped.csv": "images that could not be read, and why",
    "report.html": "the report",
    "record.json": "how the run was made, and its figures",
    "metrics.jsonl": "the training's terms, step by step",
    "model.safetensors": "the model's weights",
    "model.json": "what the weights need for predicting",
    "reference.safetensors": "a sample of the target, for acclimate watch",
}


def write_predictions(
    path: Path,
    names: Sequence[str],
    probabilities: Probabilities,
    classes: Sequence[str],
    reliability: npt.NDArray[np.float64] | None = None,
) -> None:
    """Write a CSV of one row an item, in the order given: path, predicted, confidence, then one column a class.

    Args:
        path: The file.
        names: N names.
        probabilities: (N, K), written with six decimals.
        classes: K names.
        reliability: (N,) the share of a consensus's members that agree, a column before those of the classes.
    """
    table = PredictionTable(classes, reliable=reliability is not None)
    _write_csv(path, table.header, table.rows(names, probabilities, reliability))


@dataclass(frozen=True)
class PredictionTable:
    """The form of a table of predictions.

    Attributes:
        classes: K names.
        top: How many of the most probable classes a row names; None gives every class a column of its own.
        reliable: Whether there is a column of reliability.
    """

    classes: Sequence[str]
    top: int | None = None
    reliable: bool = False

    @property
    def header(self) -> list[str]:
        """The names of the columns."""
        more = [name for i in range(2, self.named + 1) for name in (f"predicted_{i}", f"confidence_{i}")]
        rest = self.classes if self.top is None else more
        return ["path", "predicted", "confidence", *(["reliability"] if self.reliable else []), *rest]

    @property
    def named(self) -> int:
        """How many classes are named in a row."""
        return 1 if self.top is None else min(self.top, len(self.classes))

    def rows(
        self,
        names: Sequence[str],
        probabilities: Probabilities,
        reliability: npt.NDArray[np.float64] | None = None,
    ) -> Iterator[list[str]]:
        """The rows of N items, with six decimals: names (N,), probabilities (N, K), and reliability (N,)."""
        agree = [[]] * len(names) if reliability is None else [[f"{r:.3f}"] for r in reliability.tolist()]
        for name, row, share in zip(names, probabilities, agree, strict=True):
            first, *others = [(self.classes[k], f"{row[k]:.6f}") for k in most_probable(row, self.named)]
            rest = (
                [f"{p:.6f}" for p in row.tolist()] if self.top is None else [text for pair in others for text in pair]
            )
            yield [name, *first, *share, *rest]


def most_probable(row: Probabilities, count: int) -> list[int]:
    """The positions of so many classes, the most probable first, of a row (K,) of probabilities."""
    return [int(row.argmax())] if count == 1 else np.argsort(-row, kind="stable")[:count].tolist()


class Predictions(NamedTuple):
    """What `write_predictions` wrote of N items.

    Attributes:
        names: Their names.
        predicted: The names of the predicted classes.
        probabilities: (N, K).
        reliability: (N,) the share of a consensus's members that agree; None for other methods.
    """

    names: tuple[str, ...]
    predicted: tuple[str, ...]
    probabilities: Probabilities
    reliability: npt.NDArray[np.float64] | None = None


def read_predictions(path: Path, items: int, classes: int) -> Predictions:
    """Read what `write_predictions` wrote of so many items and classes.

    Raises:
        DataError: The file is not there or is damaged.
    """
    with _whole(path):
        rows = _read_csv(path)
        figures = np.array([[float(p) for p in row[3:]] for row in rows], dtype=np.float64)
        extra = figures.shape[1] - classes if figures.ndim == 2 else -1  # a column of reliability, or none
        if len(figures) != items or extra not in (0, 1) or not np.isfinite(figures).all():
            raise ValueError(f"there are not {items} rows of {classes} numbers")
        names, predicted = tuple(row[0] for row in rows), tuple(row[1] for row in rows)
        return Predictions(names, predicted, figures[:, extra:], figures[:, 0] if extra else None)


def write_source_predictions(
    path: Path, source: LabelledDomain, probabilities: Probabilities, classes: Sequence[str]
) -> None:
    """Write a CSV of the source's images that stayed out of training: path, label, predicted, confidence, the classes.

    Args:
        path: The file.
        source: The images.
        probabilities: (N, K), written with six decimals.
        classes: K names.
    """
    _write_csv(
        path,
        ["path", "label", "predicted", "confidence", *classes],
        (
            [name, classes[y], classes[row.argmax()], f"{row.max():.6f}", *(f"{p:.6f}" for p in row.tolist())]
            for name, y, row in zip(source.domain.names, source.labels.tolist(), probabilities, strict=True)
        ),
    )


class SourcePredictions(NamedTuple):
    """What `write_source_predictions` wrote of n items: their names, (n,) positions of their classes, and (n, K)."""

    names: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    probabilities: Probabilities


def read_source_predictions(path: Path, classes: Sequence[str]) -> SourcePredictions:
    """Read what `write_source_predictions` wrote of a model of these classes.

    Raises:
        DataError: The file is not there or is damaged.
    """
    with _whole(path):
        rows = _read_csv(path)
        probabilities = np.array([[float(p) for p in row[4:]] for row in rows], dtype=np.float64)
        if probabilities.shape != (len(rows), len(classes)) or not np.isfinite(probabilities).all():
            raise ValueError(f"there are not {len(classes)} numbers a row")
        labels = np.array([classes.index(row[1]) for row in rows], dtype=np.int64)
        return SourcePredictions(tuple(row[0] for row in rows), labels, probabilities)


def write_skipped(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write a CSV of the images that could not be used: path, reason."""
    _write_csv(path, ["path", "reason"], rows)


def read_skipped(path: Path) -> list[tuple[str, str]]:
    """Read what `write_skipped` wrote.

    Raises:
        DataError: The file is not there or is damaged.
    """
    with _whole(path):
        return [(name, reason) for name, reason in _read_csv(path)]


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Tell of a table that is not as it was written."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: {MAKE_AGAIN}.") from error
    except (ValueError, IndexError, csv.Error) as error:
        raise DataError(f"{path} is damaged or was altered: {MAKE_AGAIN}.") from error


def _read_csv(path: Path) -> list[list[str]]:
    """The rows of a table below its heading."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        _, *rows = csv.reader(file)
        return rows


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    # The module's own line end, \r\n, makes it quote a name that holds either of them; surrogateescape gives a file
    # name that is not UTF-8 its own bytes back.
    with replacing_text(path, errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


class Metrics(Checked, frozen=True, kw_only=True):
    """A line of metrics.jsonl: what a step of the training was like.

    Attributes:
        step: Steps done, over all stages.
        stage: The stage's name.
        lr: Learning rate of new layers.
        terms: The objectives' terms, by name.
        masks: What the method's masks mark, by name.
    """

    step: Positive
    stage: str
    lr: float
    terms: dict[str, float]
    masks: dict[str, PackedMask]


class MetricsLog:
    """A file of one JSON object a line, which grows while a run trains.

    Args:
        path: The file; it need not exist.
        keep_until: For a run that resumes at this step: drop the lines of later steps, and what a kill or a crash left
            unreadable behind the others. A run that starts anew gives -1.

    Raises:
        DataError: A line that the run would keep is damaged.
    """

    def __init__(self, path: Path, keep_until: int | None = None) -> None:
        self.path = path
        if keep_until is not None:
            lines = self._lines()
            while lines and not _is_up_to(keep_until, lines[-1]):
                lines.pop()
            write_jsonl(path, map(schema.as_json, self._decoded(lines)))

    def append(self, line: Metrics) -> None:
        """Add a line.

        Raises:
            OSError: It cannot be written.
            ValueError: A value is NaN or infinite.
        """
        options = {"encoding": "utf-8", "errors": "backslashreplace"}
        with naming(self.path), open_no_follow(self.path, "a", **options) as file:
            file.write(json_line(schema.as_json(line)))

    def holds(self, steps: Sequence[int]) -> bool:
        """Whether it begins with the lines of these steps, undamaged."""
        try:
            lines = self._decoded(self._lines()[: len(steps)])
        except DataError:
            return False
        return [line.step for line in lines] == list(steps)

    def sync(self) -> None:
        """Wait until the lines would outlast a power failure."""
        with naming(self.path), open_no_follow(self.path, "ab") as file:
            os.fsync(file.fileno())

    def read(self) -> list[Metrics]:
        """All complete lines; none when there is no file.

        Raises:
            DataError: A line is damaged.
        """
        return self._decoded(self._lines())

    def _lines(self) -> list[bytes]:
        """The complete lines: behind the last line end is nothing, or half a line."""
        return self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []

    def _decoded(self, lines: Sequence[bytes]) -> list[Metrics]:
        decoded = []
        for number, line in enumerate(lines, 1):
            with schema.told(f"Line {number} of {self.path}", f"delete that line, or {MAKE_AGAIN}"):
                decoded.append(schema.decode(line, Metrics))
        return decoded


def _is_up_to(step: int, line: bytes) -> bool:
    """Whether a line can be read, and is of this step or an earlier one."""
    try:
        return schema.decode(line, Metrics).step <= step
    except UnreadableError:
        return False
