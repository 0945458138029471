"""The six tasks of three PACS domains, with every row that the paper's ablation has and its controls.

    python benchmarks/pacs.py --data DIR --out runs/pacs --table docs/results/pacs.md

DIR holds the folders photo, art_painting and cartoon, each with class folders. Features are computed once; runs that
are finished are not repeated, and one that was interrupted goes on. Each run is the command

    acclimate fit --source DIR/S --target DIR/T --method METHOD [--set OPTION=VALUE ...] --seed SEED --out FOLDER
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from acclimate.experiment import Settings, fit
from acclimate.reporting import Screen

DOMAINS = {"photo": "P", "art_painting": "A", "cartoon": "C"}
SEEDS = (0, 1, 2)


class Row(NamedTuple):
    """A row of the table: its label, the method, and the options that are not the defaults."""

    label: str
    method: str
    options: dict[str, Any]


ROWS = (
    Row("source-only", "source_only", {}),
    Row("DANN", "dann", {}),
    Row("WEMNet", "wemnet", {}),
    Row("WEMNet, DIM only", "wemnet", {"sem": False}),
    Row("WEMNet, SEM only", "wemnet", {"dim": False}),
    Row("MSTN", "mstn", {}),
    Row("WEMNet on MSTN", "wemnet", {"mstn": True}),
    Row("DIM only, random mask", "wemnet", {"sem": False, "mask": "random"}),
    Row("SEM only, random masks", "wemnet", {"dim": False, "mask": "random"}),
    Row("WEMNet, random masks", "wemnet", {"mask": "random"}),
    Row("DANN, linear discriminator", "dann", {"critic": "linear"}),
    Row("WEMNet, W_d of the MLP's first layer", "wemnet", {"w_d": "mlp_first"}),
)


def folder_of(out: Path, row: Row, source: str, target: str, seed: int) -> Path:
    """Where a run lies."""
    name = "-".join([row.method, *(f"{k}={v}" for k, v in row.options.items())])
    return out / name / f"{source}-{target}" / str(seed)


def run_all(data: Path, out: Path, rows: Sequence[Row]) -> None:
    """Every run of these rows, one after the other."""
    screen = Screen(quiet=True)
    tasks = list(permutations(DOMAINS, 2))
    total = len(rows) * len(tasks) * len(SEEDS)
    done = 0
    for row in rows:
        for source, target in tasks:
            for seed in SEEDS:
                settings = Settings(
                    source=str(data / source),
                    target=str(data / target),
                    method=row.method,
                    options=row.options,
                    seed=seed,
                )
                record = fit(settings, folder_of(out, row, source, target, seed), screen)
                done += 1
                accuracy = 100 * record["scores"]["accuracy"]
                print(f"{done}/{total} {row.label}: {source} to {target}, seed {seed}: {accuracy:.1f}", flush=True)


def accuracies(out: Path, row: Row, metric: str) -> np.ndarray:
    """(tasks, seeds) in %, NaN where a run is missing."""
    figures = []
    for source, target in permutations(DOMAINS, 2):
        files = [folder_of(out, row, source, target, seed) / "record.json" for seed in SEEDS]
        figures.append([json.loads(f.read_text())["scores"][metric] if f.exists() else np.nan for f in files])
    return 100 * np.array(figures)


def table(out: Path, metric: str) -> str:
    """Markdown: mean and standard deviation over the seeds, a column a task."""
    tasks = [f"{DOMAINS[s]}→{DOMAINS[t]}" for s, t in permutations(DOMAINS, 2)]
    lines = [f"| method | {' | '.join(tasks)} | mean |", "|---|" + "---:|" * (len(tasks) + 1)]
    for row in ROWS:
        figures = accuracies(out, row, metric)
        cells = [f"{mean:.1f} ± {std:.1f}" for mean, std in zip(figures.mean(1), figures.std(1, ddof=1), strict=True)]
        over_tasks = figures.mean(0)
        cells.append(f"**{over_tasks.mean():.1f}** ± {over_tasks.std(ddof=1):.1f}")
        lines.append(f"| {row.label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def differences(out: Path, metric: str) -> str:
    """Markdown: paired differences over the tasks and seeds, with how often each side is the better."""
    pairs = [
        ("WEMNet", "DANN"),
        ("WEMNet", "DANN, linear discriminator"),
        ("WEMNet on MSTN", "MSTN"),
        ("WEMNet", "WEMNet, SEM only"),
        ("WEMNet, DIM only", "DANN, linear discriminator"),
        ("WEMNet, SEM only", "DANN, linear discriminator"),
        ("WEMNet, DIM only", "DIM only, random mask"),
        ("WEMNet, SEM only", "SEM only, random masks"),
        ("WEMNet", "WEMNet, random masks"),
    ]
    rows = {row.label: row for row in ROWS}
    lines = [
        "| this | minus this | mean difference | 95 % interval over tasks | better in |",
        "|---|---|---:|---:|---:|",
    ]
    for a, b in pairs:
        d = accuracies(out, rows[a], metric) - accuracies(out, rows[b], metric)
        per_task = d.mean(1)
        half = 2.571 * per_task.std(ddof=1) / np.sqrt(len(per_task))  # Student's t, 5 degrees of freedom
        interval = f"{d.mean() - half:+.1f} to {d.mean() + half:+.1f}"
        lines.append(f"| {a} | {b} | {d.mean():+.1f} | {interval} | {(d > 0).sum()} of {d.size} |")
    return "\n".join(lines)


def domain_error_table(out: Path) -> str:
    """Markdown: equation 12 on f ("with f_d") and on f_hat_d ("without"), averaged over tasks and seeds."""
    lines = ["| method | domain | with f_d | without f_d |", "|---|---|---:|---:|"]
    for row in ROWS:
        files = sorted(folder_of(out, row, "x", "y", 0).parent.parent.glob("*/*/record.json"))
        errors = [json.loads(f.read_text())["domain_error"] for f in files]
        if row.method == "wemnet" and "dim" not in row.options and errors:
            for domain in ("source", "target"):
                with_f_d, without = (np.mean([e[key][domain] for e in errors]) for key in ("f", "f_hat_d"))
                lines.append(f"| {row.label} | {domain} | {with_f_d:.2f} | {without:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Run, and print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/pacs"))
    parser.add_argument("--rows", nargs="+", default=[row.label for row in ROWS], help="run these alone")
    parser.add_argument("--table", type=Path, help="write the tables here too")
    args = parser.parse_args()
    run_all(args.data, args.out, [row for row in ROWS if row.label in args.rows])
    text = "\n\n".join(
        [
            "Overall accuracy",
            table(args.out, "accuracy"),
            "Mean of the classes' accuracies",
            table(args.out, "mean_per_class"),
            "Paired differences of the overall accuracy",
            differences(args.out, "accuracy"),
            "Domain error (WEMNet's equation 12)",
            domain_error_table(args.out),
        ]
    )
    print(text)
    if args.table:
        args.table.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
