"""The files of a run: predictions, the images left out, and the metrics of the training."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from acclimate.files import json_line, replacing_text, write_jsonl

if TYPE_CHECKING:
    from acclimate.evaluation.scores import Probabilities


RUN_FILES = {
    "predictions.csv": "the target's images: class, confidence, probabilities",
    "skipped.csv": "images that could not be read, and why",
    "report.html": "the report",
    "record.json": "how the run was made, and its figures",
    "metrics.jsonl": "the training's terms, step by step",
    "model.safetensors": "the model's weights",
    "model.json": "what the weights need for predicting",
}


def write_predictions(path: Path, names: Sequence[str], probabilities: Probabilities, classes: Sequence[str]) -> None:
    """Write a CSV of one row an item, in the order given: path, predicted, confidence, then one column a class.

    Args:
        path: The file.
        names: N names.
        probabilities: (N, K), written with six decimals.
        classes: K names.
    """
    predicted = probabilities.argmax(1)
    _write_csv(
        path,
        ["path", "predicted", "confidence", *classes],
        (
            [name, classes[k], f"{row[k]:.6f}", *(f"{p:.6f}" for p in row.tolist())]
            for name, k, row in zip(names, predicted, probabilities, strict=True)
        ),
    )


def read_probabilities(path: Path) -> Probabilities:
    """The probabilities (N, K) in a file that `write_predictions` wrote."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file)
        next(rows)
        return np.array([[float(p) for p in row[3:]] for row in rows], dtype=np.float64)


def write_skipped(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write a CSV of the images that could not be used: path, reason."""
    _write_csv(path, ["path", "reason"], rows)


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    # The module's own line end, \r\n, makes it quote a name that holds either of them; surrogateescape gives a file
    # name that is not UTF-8 its own bytes back.
    with replacing_text(path, errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


class MetricsLog:
    """A file of one JSON object a line, which grows while a run trains.

    Args:
        path: The file; it need not exist.
        keep_until: For a run that resumes at this step: drop the lines of later steps, and a line half written. A run
            that starts anew gives -1.
    """

    def __init__(self, path: Path, keep_until: int | None = None) -> None:
        self.path = path
        if keep_until is not None:
            kept = [row for row in self.read() if row["step"] <= keep_until]
            write_jsonl(path, kept)

    def append(self, step: int, values: Mapping[str, object]) -> None:
        """Add the values of a step.

        Raises:
            ValueError: A value is NaN or infinite.
        """
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json_line({"step": step, **values}))

    def read(self) -> list[dict[str, Any]]:
        """All complete lines; none when there is no file."""
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")
        return [json.loads(line) for line in lines[:-1]]  # behind the last line end is nothing, or half a line
