"""The runs of a grid, each in a folder that is named by its content."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from acclimate.bench.grid import Grid, Row, settings_of
from acclimate.datasets.catalogue import TaskNames
from acclimate.errors import DataError
from acclimate.methods import registry
from acclimate.runs import task as fit
from acclimate.runs.record import RunRecord, read_record, verify
from acclimate.runs.task import Task, Tasks
from acclimate.settings import Settings

DIGITS = 12  # of a run's identity, in the name of its folder


class PlannedRun(NamedTuple):
    """A run of a grid, or of several rows with the same settings.

    Attributes:
        settings: Of the run.
        folder: Named by its content.
        code: The origins of the code from outside of the package that it runs, for its record.
    """

    settings: Settings
    folder: Path
    code: Mapping[str, Mapping[str, str]] = {}

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do; reads all that the run has written."""
        return self.record() is not None

    def record(self) -> RunRecord | None:
        """The record, if there is nothing left to do, not even to tidy up after a kill; the weights may be deleted."""
        if (self.folder / "checkpoint").exists():
            return None
        try:
            record = read_record(self.folder / "record.json")
            verify(self.folder, record, *(name for name in record.files if name != "model.safetensors"))
        except DataError:
            return None
        return record

    @property
    def content(self) -> str:
        """What tells it from every other run: the first digits of its identity, in hexadecimal."""
        return self.folder.name[-DIGITS:]

    def check(self, task: Task) -> None:
        """Check that the run is still what the folder is named by.

        Raises:
            DataError: It is not.
        """
        if not self.folder.name.endswith(fit.identity(self.settings, task)[:DIGITS]):
            raise DataError("The data, or the code from a file, have changed since the bench began: begin it again.")


class Cell(NamedTuple):
    """A run's place in the grid."""

    row: Row
    task: TaskNames
    seed: int
    run: PlannedRun


def plan(grid: Grid, out: Path, tasks: Tasks) -> list[Cell]:
    """Every run of the grid, in the order of its table; reads all domains, and decodes no image.

    A run is known by its content, so a changed grid shares with the old one whatever has not changed.

    Raises:
        AcclimateError: The options or the data cannot be used.
    """
    asked = [
        (row, task, seed, settings_of(grid, row, task, seed))
        for row in grid.rows
        for task in grid.tasks
        for seed in grid.seeds
    ]
    cells = []
    for row, (source, target), seed, settings in asked:
        content = fit.identity(settings, tasks.of(settings))[:DIGITS]
        name = folder_name(registry.shown(row.method), (source, target), seed, content)
        cells.append(
            Cell(row, (source, target), seed, PlannedRun(settings, out / "runs" / name, fit.code_of(settings)))
        )
    return cells


def folder_name(method: str, task: TaskNames, seed: int, content: str) -> str:
    """The name of a run's folder.

    Args:
        method: The method's name, as it is shown.
        task: Source and target.
        seed: The seed.
        content: What tells the run from others of the method on the task with the seed.
    """
    return re.sub(r"[^\w.-]+", "_", f"{method}-{'-'.join(task)}-{seed}-{content}")
