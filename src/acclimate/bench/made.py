"""The run directories of a bench, found again for its records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from acclimate.bench.board import kept_settings
from acclimate.bench.plan import DIGITS, folder_name
from acclimate.bench.records import BenchRecord
from acclimate.datasets.catalogue import TaskNames
from acclimate.methods import registry
from acclimate.runs.record import RunRecord, read_record


class Made(NamedTuple):
    """A finished run, and its place in a bench.

    Attributes:
        row: The row's name.
        task: Source and target.
        seed: The seed.
        folder: The run directory.
        record: Its record.
    """

    row: str
    task: TaskNames
    seed: int
    folder: Path
    record: RunRecord

    @property
    def method(self) -> str:
        """The method's name, as it is shown."""
        return registry.shown(self.record.model.method)


def made_runs(bench: Path, records: Sequence[BenchRecord]) -> list[Made]:
    """The finished runs of a bench whose folders are still there, in the order of the records.

    Args:
        bench: The bench's folder.
        records: Those of it, or of several benches.

    Raises:
        DataError: The record of a run is damaged.
    """
    known: dict[Path, RunRecord] = {}
    found = []
    for record in records:
        if record.status != "done":
            continue
        task = (record.source, record.target)
        pattern = _literal(folder_name(record.method, task, record.seed, "")) + "?" * DIGITS
        for path in sorted(bench.glob(f"runs/{pattern}/record.json"), key=_made_at, reverse=True):
            if path not in known:
                known[path] = read_record(path)
            if _is_of(known[path], record):
                found.append(Made(record.row, task, record.seed, path.parent, known[path]))
                break
    return found


def _made_at(path: Path) -> tuple[int, str]:
    """When a file was written; where the data have changed, the newer of two runs is that of the record."""
    return path.stat().st_mtime_ns, str(path)


def _literal(name: str) -> str:
    """A name as a pattern of paths that means it alone."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _is_of(run: RunRecord, record: BenchRecord) -> bool:
    """Whether a run is that of a bench's record: its options, and all settings that both of them know."""
    settings: Mapping[str, Any] = kept_settings(run.settings)
    return run.settings["options"] == record.options and all(
        settings[name] == value for name, value in record.settings.items() if name in settings
    )


def costs(runs: Sequence[Made]) -> dict[str, float]:
    """The seconds that each row trained, relative to source-only: the median over tasks and seeds that both have.

    Only runs that were made in one go count. Empty without source-only.
    """
    whole = [run for run in runs if run.record.resumed_at is None and run.record.seconds.training > 0]
    unadapted = {(run.task, run.seed): run for run in whole if run.method == registry.BASELINE}
    ratios: dict[str, list[float]] = {}
    for run in whole:
        base = unadapted.get((run.task, run.seed))
        if base is not None:
            ratio = run.record.seconds.training / base.record.seconds.training
            ratios.setdefault(run.row, []).append(ratio)
    return {row: float(np.median(of_row)) for row, of_row in ratios.items()}
