"""What is known of each run of a grid, and the file of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from msgspec import UNSET

from acclimate import schema
from acclimate.bench.grid import Grid
from acclimate.bench.plan import Cell, PlannedRun
from acclimate.bench.records import BenchRecord, CellScores, Trained, write_records
from acclimate.errors import RunsFailedError
from acclimate.evaluation.scores import DomainErrors
from acclimate.files import read_regular, write_json
from acclimate.methods import registry
from acclimate.outside import shown
from acclimate.schema import Checked, UnreadableError
from acclimate.settings import OF_A_ROW


class Board:
    """What is known of each run of a grid, and the file of it."""

    def __init__(self, grid: Grid, cells: Sequence[Cell], out: Path, *, collects: bool = True) -> None:
        self.grid = grid
        self.cells = cells
        self.collects = collects  # a part of a grid has no file: another part would write it as well
        self.path = out / "records.jsonl"
        runs = {cell.run.folder: cell.run for cell in cells}  # rows may share one
        self.results = {folder: result_of(run) for folder, run in runs.items()}

    def note(self, wanted: PlannedRun) -> str:
        """Read the result of a run; returns a line on it."""
        result = self.results[wanted.folder] = result_of(wanted)
        cell = next(cell for cell in self.cells if cell.run.folder == wanted.folder)
        name = f"{cell.row.name}, {'-'.join(cell.task)}, seed {cell.seed}"
        if result.error is not None:
            return f"{name} failed: {result.error}"
        if result.scores is None:
            return f"{name}: finished, without labels to score"
        return f"{name}: {100 * result.scores.accuracy:.1f} %"

    def records(self) -> list[BenchRecord]:
        """A record a cell, in the order of the grid."""
        return [self._record(cell) for cell in self.cells]

    def _record(self, cell: Cell) -> BenchRecord:
        return BenchRecord(
            row=cell.row.name,
            baselines=cell.row.baselines,
            method=registry.shown(cell.row.method),
            code={what: dict(origin) for what, origin in cell.run.code.items()} or UNSET,
            options=dict(cell.row.options),
            benchmark=self.grid.benchmark,
            metrics=self.grid.metrics,
            source=cell.task[0],
            target=cell.task[1],
            seed=cell.seed,
            settings=kept_settings(cell.run.settings.as_dict()),
            **self.results[cell.run.folder]._asdict(),
        )

    def write(self) -> None:
        """Write records.jsonl whole."""
        if self.collects:
            write_records(self.path, self.records())


def kept_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a run's settings that a record of a bench holds: they change a result, and are the same everywhere.

    Args:
        settings: As `Settings.as_dict` gives them; what an earlier version did not have is left out.
    """
    names = [name for name, declared in OF_A_ROW.items() if declared.setting.changes_result and name in settings]
    kept = {name: settings[name] for name in names}
    kept["backbone"] = shown(kept["backbone"])
    if kept["weights"] is not None:
        kept["weights"] = Path(kept["weights"]).name
    return kept


class Result(NamedTuple):
    """What is known of a run's result, as in `BenchRecord`."""

    status: Literal["done", "failed", "missing"]
    error: str | None
    scores: CellScores | None
    domain_error: dict[str, DomainErrors]
    terms: dict[str, float]
    trained: Trained | None


def result_of(made: PlannedRun) -> Result:
    """What a run's folder holds of its result."""
    record = made.record()
    if record is None:
        error = _read_failure(made.folder)
        return Result("missing" if error is None else "failed", error, None, {}, {}, None)
    scores = None
    if record.scores is not None:
        scores = CellScores(
            on="the target" if record.data.test is None else "its test images",
            accuracy=record.scores.accuracy,
            mean_per_class=record.scores.mean_per_class,
            n=record.scores.n,
            per_class=record.scores.per_class,
        )
    return Result(
        status="done",
        error=None,
        scores=scores,
        domain_error=record.domain_error,
        terms={name: term.last for name, term in record.terms.items()},
        trained=Trained(
            backbone=shown(record.model.backbone) if record.model.backbone is not None else None,
            tune=record.model.tune,
            bf16=record.model.bf16,
            selection=record.selection,
            threads=record.environment.threads,
        ),
    )


class Failure(Checked, frozen=True, kw_only=True):
    """The content of failed.json: why a run failed, in a sentence."""

    error: str


def write_failure(folder: Path, sentence: str) -> None:
    """Note in a run's folder why it failed."""
    write_json(folder / "failed.json", schema.as_json(Failure(error=sentence)))


def _read_failure(folder: Path) -> str | None:
    """Why a run failed; None if it did not. A note that is damaged is as good as none: the run is made again anyway."""
    try:
        return schema.decode(read_regular(folder / "failed.json"), Failure).error
    except (OSError, UnreadableError):
        return None


def summary(records: Sequence[BenchRecord], out: Path) -> dict[str, Any]:
    """How many runs of a bench ended how, and the file of the records."""
    counts = Counter(record.status for record in records)
    return {"records": str(out / "records.jsonl"), **{name: counts[name] for name in ("done", "failed", "missing")}}


def check(records: Sequence[BenchRecord], out: Path) -> None:
    """Tell of the runs that failed.

    Raises:
        RunsFailedError: There are some.
    """
    failed = [record for record in records if record.status == "failed"]
    if failed:
        first = failed[0]
        raise RunsFailedError(
            f"{len(failed):,} of {len(records):,} runs failed, the first of them {first.row} on "
            f"{first.source}-{first.target} with seed {first.seed} ({str(first.error).rstrip('.')}); "
            f"{out / 'records.jsonl'} names them all."
        )
