"""The records of benches, read and looked up by row, task and seed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from acclimate.bench.figures import Figures
from acclimate.datasets.catalogue import TaskNames
from acclimate.errors import DataError

Record: TypeAlias = Mapping[str, Any]

METRICS = {
    "accuracy": "accuracy over all images in %",
    "mean_per_class": "mean of the classes' accuracies in %",
}


def read_records(paths: Sequence[Path]) -> list[Record]:
    """The records of benches, each a folder with records.jsonl or such a file.

    Raises:
        DataError: A file cannot be read, or two of them have one run.
    """
    found: dict[tuple[Any, ...], Record] = {}
    for path in paths:
        for record in _read(path / "records.jsonl" if path.is_dir() else path):
            key = tuple(record[name] for name in ("row", "source", "target", "seed"))
            if key in found and {found[key]["status"], record["status"]} == {"done"}:
                raise DataError(
                    f"{key[0]} on {key[1]}-{key[2]} with seed {key[3]} is recorded twice: give one of them."
                )
            if key not in found or record["status"] == "done":
                found[key] = record
    if not found:
        raise DataError("There are no records: name the folder that acclimate bench wrote with --out.")
    return list(found.values())


def _read(path: Path) -> list[Record]:
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}): name the folder that acclimate bench wrote with --out."
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is not a bench's records.jsonl: its lines are not JSON.") from error
    needed = {"row", "source", "target", "seed", "status", "scores", "metrics"}
    if not all(isinstance(record, dict) and needed <= record.keys() for record in records):
        raise DataError(f"{path} is not a bench's records.jsonl: its lines lack {', '.join(sorted(needed))}.")
    return records


class Results:
    """Records by row, task and seed. What any row has of tasks and seeds, every row should have.

    Args:
        records: As `read_records` gives them.

    Attributes:
        rows: By the row's name, one of its records.
        tasks: Source and target.
        seeds: Sorted.
        classes: The classes, in order; none while there is no score.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        rows: dict[str, Record] = {record["row"]: record for record in reversed(records)}
        self.rows: dict[str, Record] = {name: rows[name] for name in dict.fromkeys(record["row"] for record in records)}
        self.tasks: list[TaskNames] = list(dict.fromkeys((record["source"], record["target"]) for record in records))
        self.seeds = sorted({record["seed"] for record in records})
        self.done = {
            (record["row"], (record["source"], record["target"]), record["seed"]): record
            for record in records
            if record["status"] == "done"
        }
        scored = [record["scores"]["per_class"] for record in self.done.values() if record["scores"]]
        self.classes = list(scored[0]) if scored else []
        self.failed = sum(record["status"] == "failed" for record in records)
        self.metrics: list[str] = list(records[0]["metrics"])
        self.benchmarks = {record.get("benchmark") for record in records}

    def values(self, row: str, of: Callable[[Record], float | None]) -> Figures:
        """What `of` finds in each run of a row (tasks, seeds), NaN where there is no run, or nothing in it."""

        def value(task: TaskNames, seed: int) -> float:
            record = self.done.get((row, task, seed))
            found = of(record) if record is not None else None
            return math.nan if found is None else found

        return np.array([[value(task, seed) for seed in self.seeds] for task in self.tasks])

    def percent(self, row: str, metric: str) -> Figures:
        """A score of each run of a row (tasks, seeds), in %."""
        return self.values(row, lambda record: 100 * record["scores"][metric] if record["scores"] else None)

    def of_class(self, row: str, name: str) -> Figures:
        """The accuracy of a class in each run of a row (tasks, seeds), in %."""

        def accuracy(record: Record) -> float | None:
            correct, count = (record["scores"] or {"per_class": {}})["per_class"].get(name, (0, 0))
            return 100 * correct / count if count else None

        return self.values(row, accuracy)
