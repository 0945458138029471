"""What each method costs and what it gained and lost on PACS, for `acclimate methods`.

    python measurements/gains.py

Nothing is run: it reads the records of docs/results/pacs_methods.jsonl and the page docs/results/cost.md, and writes
src/acclimate/methods/measured.json. Run it again when either of them has changed.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from acclimate.bench.records import Results, read_records
from acclimate.methods import registry

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "docs" / "results" / "pacs_methods.jsonl"
COST = ROOT / "docs" / "results" / "cost.md"
OUT = ROOT / "src" / "acclimate" / "methods" / "measured.json"
HARM = 1.0  # points below source-only


def gains(results: Results) -> dict[str, dict[str, Any]]:
    """By method with its own options: runs, mean and median gain in points, and the share of runs that lose."""
    base = results.percent("source-only", "accuracy")  # (tasks, seeds)
    found = {}
    for row, record in results.rows.items():
        if record.options or record.method == registry.BASELINE:
            continue
        gain = results.percent(row, "accuracy") - base
        found[record.method] = {
            "runs": gain.size,
            "mean_gain": _points(gain.mean()),
            "median_gain": _points(np.median(gain)),
            "harmed": round(float((gain < -HARM).mean()), 3),
        }
    return found


def _points(value: float) -> float:
    return round(float(value), 1) + 0.0  # without a negative zero


def costs(page: str, steps: int) -> dict[str, dict[str, float]]:
    """By method: the time on cached features relative to source-only, a step's, or a closed form's to so many steps."""
    parts = dict(re.findall(r"^## (\w+).*?\n(.*?)(?=^## |\Z)", page, flags=re.MULTILINE | re.DOTALL))
    trained = re.findall(r"^\| (\w+) \| (\S+) \| \*\*([\d.]+)\*\*", parts["On"], flags=re.MULTILINE)
    closed = re.findall(r"^\| (\w+) \| ([\d.]+) \|$", parts["Closed"], flags=re.MULTILINE)
    (step,) = (float(ms) / 1000 for name, ms, _ in trained if name == registry.BASELINE)
    found = {name: {"cost": round(float(ratio), 1)} for name, _, ratio in trained}
    return found | {name: {"cost": round(float(seconds) / (steps * step), 1)} for name, seconds in closed}


def main() -> None:
    """Write the file."""
    records = read_records([RECORDS])
    of_gains = gains(Results(records))
    of_costs = costs(COST.read_text(encoding="utf-8"), int(records[0].settings["steps"]))
    names = [name for name in registry.names() if name in of_gains or name in of_costs]
    measured = {name: {**of_costs.get(name, {}), **of_gains.get(name, {})} for name in names}
    measured[registry.BASELINE]["cost"] = 1.0
    OUT.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    for name, entry in measured.items():
        print(name, entry)


if __name__ == "__main__":
    main()
