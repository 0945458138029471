"""The runs of a grid, each in a folder that is named by its content."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from acclimate.bench.grid import Grid, Row, settings_of
from acclimate.datasets.catalogue import TaskNames
from acclimate.progress import Listener
from acclimate.runs import task as fit
from acclimate.runs.task import Task
from acclimate.settings import Settings


class PlannedRun(NamedTuple):
    """A run of a grid, or of several rows with the same settings, and the folder that is named by its content."""

    settings: Settings
    folder: Path

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do, not even to tidy up after a kill."""
        return (self.folder / "record.json").exists() and not (self.folder / "checkpoint").exists()


class Cell(NamedTuple):
    """A run's place in the grid."""

    row: Row
    task: TaskNames
    seed: int
    run: PlannedRun


class Tasks:
    """The tasks of a process, each read and checked once."""

    def __init__(self, screen: Listener) -> None:
        self.screen = screen
        self.read: dict[tuple[str, str, str | None, bool], Task] = {}

    def of(self, settings: Settings) -> Task:
        """The task of these settings."""
        key = (settings.source, settings.target, settings.test, settings.allow_class_mismatch)
        if key not in self.read:
            self.read[key] = fit.read_task(settings, self.screen)
        return self.read[key]


def plan(grid: Grid, out: Path, tasks: Tasks) -> list[Cell]:
    """Every run of the grid, in the order of its table; reads and checks all domains.

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
        content = fit.identity(settings, tasks.of(settings))[:12]
        name = re.sub(r"[^\w.-]+", "_", f"{row.method}-{source}-{target}-{seed}-{content}")
        cells.append(Cell(row, (source, target), seed, PlannedRun(settings, out / "runs" / name)))
    return cells
