"""The six tasks of three PACS domains, with every row that the paper's ablation has and its controls.

    python benchmarks/pacs.py --data DIR --out runs/pacs --tables tables.md --records docs/results/pacs.json

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
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

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
    Row("WEMNet, random masks", "wemnet", {"mask": "random"}),
    Row("DANN, linear discriminator", "dann", {"critic": "linear"}),
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


def records_of(out: Path, row: Row) -> dict[tuple[str, str, int], dict[str, Any]]:
    """The records of a row's runs, by source, target and seed; empty unless all of them are finished."""
    keys = [(s, t, seed) for s, t in permutations(DOMAINS, 2) for seed in SEEDS]
    files = [folder_of(out, row, *key) / "record.json" for key in keys]
    if not all(file.exists() for file in files):
        return {}
    return {key: json.loads(file.read_text()) for key, file in zip(keys, files, strict=True)}


Results: TypeAlias = dict[str, dict[tuple[str, str, int], dict[str, Any]]]


def accuracies(results: Results, label: str, metric: str) -> npt.NDArray[np.float64]:
    """(tasks, seeds) in %."""
    figures = [record["scores"][metric] for record in results[label].values()]
    return 100 * np.array(figures).reshape(-1, len(SEEDS))


def table(results: Results, metric: str) -> str:
    """Markdown: mean and standard deviation over the seeds, a column a task."""
    tasks = [f"{DOMAINS[s]}→{DOMAINS[t]}" for s, t in permutations(DOMAINS, 2)]
    lines = [f"| method | {' | '.join(tasks)} | mean |", "|---|" + "---:|" * (len(tasks) + 1)]
    for label in results:
        figures = accuracies(results, label, metric)
        cells = [f"{mean:.1f} ± {std:.1f}" for mean, std in zip(figures.mean(1), figures.std(1, ddof=1), strict=True)]
        over_tasks = figures.mean(0)
        cells.append(f"**{over_tasks.mean():.1f}** ± {over_tasks.std(ddof=1):.1f}")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def differences(results: Results, metric: str) -> str:
    """Markdown: paired differences over the tasks and seeds, with how often each side is the better."""
    pairs = [
        ("DANN", "source-only"),
        ("WEMNet", "source-only"),
        ("WEMNet", "DANN"),
        ("WEMNet", "DANN, linear discriminator"),
        ("WEMNet on MSTN", "MSTN"),
        ("WEMNet", "WEMNet, SEM only"),
        ("WEMNet, DIM only", "DANN, linear discriminator"),
        ("WEMNet, SEM only", "DANN, linear discriminator"),
        ("WEMNet, DIM only", "DIM only, random mask"),
        ("WEMNet", "WEMNet, random masks"),
    ]
    lines = [
        "| this | minus this | mean difference | 95 % interval over tasks | better in |",
        "|---|---|---:|---:|---:|",
    ]
    for a, b in ((a, b) for a, b in pairs if a in results and b in results):
        d = accuracies(results, a, metric) - accuracies(results, b, metric)
        per_task = d.mean(1)
        half = 2.571 * per_task.std(ddof=1) / np.sqrt(len(per_task))  # Student's t, 5 degrees of freedom
        interval = f"{d.mean() - half:+.1f} to {d.mean() + half:+.1f}"
        lines.append(f"| {a} | {b} | {d.mean():+.1f} | {interval} | {(d > 0).sum()} of {d.size} |")
    return "\n".join(lines)


def domain_error_table(results: Results) -> str:
    """Markdown: equation 12 on f ("with f_d") and on f_hat_d ("without"), averaged over tasks and seeds."""
    lines = ["| method | domain | with f_d | without f_d |", "|---|---|---:|---:|"]
    for label, records in results.items():
        errors = [record["domain_error"] for record in records.values()]
        if all("f_hat_d" in error for error in errors):
            for domain in ("source", "target"):
                with_f_d, without = (np.mean([e[key][domain] for e in errors]) for key in ("f", "f_hat_d"))
                lines.append(f"| {label} | {domain} | {with_f_d:.2f} | {without:.2f} |")
    return "\n".join(lines)


def summaries(results: Results) -> list[dict[str, Any]]:
    """What is kept of each run: a line with its figures."""
    return [
        {
            "row": label,
            "source": source,
            "target": target,
            "seed": seed,
            "accuracy": record["scores"]["accuracy"],
            "mean_per_class": record["scores"]["mean_per_class"],
            "domain_error": record["domain_error"],
        }
        for label, records in results.items()
        for (source, target, seed), record in records.items()
    ]


def main() -> None:
    """Run, and print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/pacs"))
    parser.add_argument("--rows", nargs="*", default=[row.label for row in ROWS], help="run these rows alone")
    parser.add_argument("--tables", type=Path, help="write the tables here too")
    parser.add_argument("--records", type=Path, help="write the figures of each run here, as JSON")
    args = parser.parse_args()
    run_all(args.data, args.out, [row for row in ROWS if row.label in args.rows])
    results = {row.label: records for row in ROWS if (records := records_of(args.out, row))}
    sections = {
        "Overall accuracy": table(results, "accuracy"),
        "Mean of the classes' accuracies": table(results, "mean_per_class"),
        "Paired differences of the overall accuracy": differences(results, "accuracy"),
        "Domain error (WEMNet's equation 12)": domain_error_table(results),
    }
    text = "\n\n".join(f"## {title}\n\n{body}" for title, body in sections.items())
    print(text)
    if args.tables:
        args.tables.write_text(text + "\n", encoding="utf-8")
    if args.records:
        lines = ",\n".join(json.dumps(line) for line in summaries(results))
        args.records.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
