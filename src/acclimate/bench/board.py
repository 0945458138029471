"""What is known of each run of a grid, and the file of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from acclimate.bench.grid import Grid
from acclimate.bench.plan import Cell, PlannedRun
from acclimate.errors import RunsFailedError
from acclimate.files import write_jsonl
from acclimate.settings import OF_A_ROW


class Board:
    """What is known of each run of a grid, and the file of it."""

    def __init__(self, grid: Grid, cells: Sequence[Cell], out: Path) -> None:
        self.grid = grid
        self.cells = cells
        self.path = out / "records.jsonl"
        self.results = {cell.run.folder: result_of(cell.run) for cell in cells}

    def note(self, wanted: PlannedRun) -> str:
        """Read the result of a run; returns a line on it."""
        result = self.results[wanted.folder] = result_of(wanted)
        cell = next(cell for cell in self.cells if cell.run.folder == wanted.folder)
        name = f"{cell.row.name}, {'-'.join(cell.task)}, seed {cell.seed}"
        if result["error"]:
            return f"{name} failed: {result['error']}"
        scores = result["scores"]
        return f"{name}: {100 * scores['accuracy']:.1f} %" if scores else f"{name}: finished, without labels to score"

    def records(self) -> list[dict[str, Any]]:
        """A record a cell, in the order of the grid; nothing in it depends on when and where it was made."""
        return [self._record(cell) for cell in self.cells]

    def _record(self, cell: Cell) -> dict[str, Any]:
        settings = cell.run.settings.as_dict()
        kept = {name: settings[name] for name, declared in OF_A_ROW.items() if declared.setting.changes_result}
        if kept["weights"] is not None:
            kept["weights"] = Path(kept["weights"]).name
        return {
            "row": cell.row.name,
            "baselines": list(cell.row.baselines),
            "method": cell.row.method,
            "options": dict(cell.row.options),
            "benchmark": self.grid.benchmark,
            "metrics": list(self.grid.metrics),
            "source": cell.task[0],
            "target": cell.task[1],
            "seed": cell.seed,
            "settings": kept,
            **self.results[cell.run.folder],
        }

    def write(self) -> None:
        """Write records.jsonl whole."""
        write_jsonl(self.path, self.records())


def result_of(made: PlannedRun) -> dict[str, Any]:
    """What a run's folder holds of its result: `status` is "done", "failed" or "missing"."""
    result: dict[str, Any] = dict.fromkeys(("status", "error", "scores", "domain_error", "terms", "trained"))
    if not made.finished:
        error = _read_json(made.folder / "failed.json")
        return result | {"status": "failed" if error else "missing", "error": error and error["error"]}
    record = _read_json(made.folder / "record.json")
    scores = record["scores"]
    return result | {
        "status": "done",
        "scores": scores and _scores(scores, "the target" if record["data"]["test"] is None else "its test images"),
        "domain_error": record["domain_error"],
        "terms": {name: value["last"] for name, value in record["terms"].items()},
        "trained": {
            "backbone": record["model"]["backbone"],
            "tune": record["model"]["tune"],
            "bf16": record["model"]["bf16"],
            "selection": record["selection"],
            "threads": record["environment"]["threads"],
        },
    }


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _scores(scores: Mapping[str, Any], on: str) -> dict[str, Any]:
    per_class = {entry["name"]: [entry["correct"], entry["count"]] for entry in scores["per_class"]}
    kept = {name: scores[name] for name in ("accuracy", "mean_per_class", "n")}
    return {"on": on, **kept, "per_class": per_class}


def summary(records: Sequence[Mapping[str, Any]], out: Path) -> dict[str, Any]:
    """How many runs of a bench ended how, and the file of the records."""
    counts = Counter(record["status"] for record in records)
    return {"records": str(out / "records.jsonl"), **{name: counts[name] for name in ("done", "failed", "missing")}}


def check(records: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Tell of the runs that failed.

    Raises:
        RunsFailedError: There are some.
    """
    failed = [record for record in records if record["status"] == "failed"]
    if failed:
        first = failed[0]
        raise RunsFailedError(
            f"{len(failed):,} of {len(records):,} runs failed, the first of them {first['row']} on "
            f"{first['source']}-{first['target']} with seed {first['seed']} ({first['error'].rstrip('.')}); "
            f"{out / 'records.jsonl'} names them all."
        )
