"""The records of benches, read and looked up by row, task and seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from msgspec import UNSET, Meta, UnsetType

from acclimate import schema
from acclimate.bench.figures import Figures
from acclimate.choices import Metric, Tune
from acclimate.datasets.catalogue import TaskNames
from acclimate.errors import DataError
from acclimate.evaluation.scores import ClassScore, DomainErrors
from acclimate.files import read_regular, write_jsonl
from acclimate.schema import Checked, Entry, Fraction, Plain, Positive
from acclimate.settings import check_recorded

SCHEMA = 1


METRICS = {
    "accuracy": "accuracy over all images in %",
    "mean_per_class": "mean of the classes' accuracies in %",
}


class CellScores(Entry, frozen=True, kw_only=True):
    """The scores of a run of a bench, as in `evaluation.scores.Scores`.

    Attributes:
        on: The images that were measured on.
        accuracy: Over all images.
        mean_per_class: Over the classes.
        n: Items that were scored.
        per_class: One entry a class.
    """

    on: Literal["the target", "its test images"]
    accuracy: Fraction
    mean_per_class: Fraction
    n: Positive
    per_class: tuple[ClassScore, ...]


class Trained(Entry, frozen=True, kw_only=True):
    """How a run of a bench was trained, every "auto" decided.

    Attributes:
        backbone: The backbone's name, as it is shown; None for feature vectors.
        tune: What was trained.
        bf16: Whether the backbone ran in bfloat16.
        selection: Which step's weights are the result.
        threads: Of PyTorch.
    """

    backbone: str | None
    tune: Tune
    bf16: bool
    selection: str
    threads: Positive


class BenchRecord(Checked, frozen=True, kw_only=True):
    """A line of records.jsonl: a cell of a grid, and the result of its run. Nothing in it depends on when and where.

    Attributes:
        schema: The number of this form of the line.
        row: The row's name.
        baselines: The rows that it is compared with.
        method: The method's name, as it is shown.
        code: Where its code is from, as `outside.Origin.as_dict` says, where that is outside of the package.
        options: Its hyper-parameters, where they differ from the defaults.
        benchmark: The benchmark's name, if the domains are one's.
        metrics: What the benchmark reports.
        source: The source's name.
        target: The target's name.
        seed: The seed.
        settings: The settings that change a result, as `Settings.as_dict` gives them, without those above.
        status: Whether the run was made.
        error: Why it failed, in a sentence; None if it did not.
        scores: The comparison with the labels; None without labels or without a result.
        domain_error: By the feature that a discriminator reads.
        terms: The objectives' terms at the last step.
        trained: How it was trained; None without a result.
    """

    schema: int = SCHEMA
    row: str
    baselines: tuple[str, ...]
    method: str
    code: dict[str, dict[str, str]] | UnsetType = UNSET
    options: dict[str, Plain]
    benchmark: str | None
    metrics: Annotated[tuple[Metric, ...], Meta(min_length=1)]
    source: str
    target: str
    seed: Annotated[int, Meta(ge=0)]
    settings: dict[str, Any]
    status: Literal["done", "failed", "missing"]
    error: str | None
    scores: CellScores | None
    domain_error: dict[str, DomainErrors]
    terms: dict[str, float]
    trained: Trained | None

    def __post_init__(self) -> None:
        """Refuse a result that does not go with the status, which is what an altered file has."""
        if (self.trained is not None) != (self.status == "done") or (self.error is not None) != (
            self.status == "failed"
        ):
            raise ValueError(f"the status {self.status} does not go with error and trained")
        if self.trained is None and (self.scores is not None or self.domain_error or self.terms):
            raise ValueError(f"the status {self.status} does not go with scores, domain_error and terms")


def read_records(paths: Sequence[Path]) -> list[BenchRecord]:
    """The records of benches, each a folder with records.jsonl or such a file.

    Raises:
        DataError: A file cannot be read, is of another schema or is damaged, or two of them have one run.
    """
    found: dict[tuple[str, str, str, int], BenchRecord] = {}
    for path in paths:
        for record in _read(path / "records.jsonl" if path.is_dir() else path):
            key = (record.row, record.source, record.target, record.seed)
            if key in found and {found[key].status, record.status} == {"done"}:
                raise DataError(
                    f"{record.row} on {record.source}-{record.target} with seed {record.seed} is recorded twice: "
                    "give one of them."
                )
            if key not in found or record.status == "done":
                found[key] = record
    if not found:
        raise DataError("There are no records: name the folder that acclimate bench wrote with --out.")
    return list(found.values())


def _read(path: Path) -> list[BenchRecord]:
    try:
        lines = read_regular(path).splitlines()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}): name the folder that acclimate bench wrote with --out."
        ) from error
    records = []
    for number, line in enumerate(lines, 1):
        with schema.told(f"Line {number} of {path}", "run the bench again, which writes its records anew"):
            record = schema.decode(line, BenchRecord, schema=SCHEMA)
            check_recorded(record.settings, needed=("steps", "batch_size"))
            records.append(record)
    return records


def write_records(path: Path, records: Sequence[BenchRecord]) -> None:
    """Write a records.jsonl, whole."""
    write_jsonl(path, map(schema.as_json, records))


class Results:
    """Records by row, task and seed. What any row has of tasks and seeds, every row should have.

    Args:
        records: As `read_records` gives them.

    Attributes:
        rows: By the row's name, one of its records.
        tasks: Source and target.
        seeds: Sorted.
        classes: The classes, in order; none while there is no score.
        without_labels: The tasks on which runs were made, and none of them has a score.
    """

    def __init__(self, records: Sequence[BenchRecord]) -> None:
        self.rows: dict[str, BenchRecord] = {}
        for record in records:
            self.rows.setdefault(record.row, record)
        self.tasks: list[TaskNames] = list(dict.fromkeys((record.source, record.target) for record in records))
        self.seeds = sorted({record.seed for record in records})
        self.done = {
            (record.row, (record.source, record.target), record.seed): record
            for record in records
            if record.status == "done"
        }
        scored = [record.scores for record in self.done.values() if record.scores is not None]
        self.classes = [score.name for score in scored[0].per_class] if scored else []
        there = {task for _, task, _ in self.done}
        labelled = {task for (_, task, _), record in self.done.items() if record.scores is not None}
        self.without_labels = [task for task in self.tasks if task in there - labelled]
        self.failed = sum(record.status == "failed" for record in records)
        self.metrics: tuple[str, ...] = records[0].metrics
        self.benchmarks = {record.benchmark for record in records}

    def values(self, row: str, of: Callable[[BenchRecord], float | None]) -> Figures:
        """What `of` finds in each run of a row (tasks, seeds), NaN where there is no run, or nothing in it."""

        def value(task: TaskNames, seed: int) -> float:
            record = self.done.get((row, task, seed))
            found = of(record) if record is not None else None
            return math.nan if found is None else found

        return np.array([[value(task, seed) for seed in self.seeds] for task in self.tasks])

    def percent(self, row: str, metric: str) -> Figures:
        """A score of each run of a row (tasks, seeds), in %."""

        def score(record: BenchRecord) -> float | None:
            scores = record.scores
            if scores is None:
                return None
            return 100 * {"accuracy": scores.accuracy, "mean_per_class": scores.mean_per_class}[metric]

        return self.values(row, score)

    def unlabelled(self, row: str) -> npt.NDArray[np.bool_]:
        """Which runs of a row (tasks, seeds) were made without labels to measure them with."""

        def without(record: BenchRecord) -> float:
            return float(record.scores is None)

        return np.asarray(self.values(row, without) == 1)

    def of_class(self, row: str, name: str) -> Figures:
        """The accuracy of a class in each run of a row (tasks, seeds), in %."""

        def accuracy(record: BenchRecord) -> float | None:
            per_class = record.scores.per_class if record.scores is not None else ()
            found = next((score for score in per_class if score.name == name), None)
            return 100 * found.correct / found.count if found is not None and found.count else None

        return self.values(row, accuracy)
