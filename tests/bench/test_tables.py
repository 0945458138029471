"""Tables of records: their figures against numbers computed by hand, what is missing, and what the formats escape."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from scipy import stats

from acclimate.bench import formats
from acclimate.bench.figures import Figure, average, difference, figure, t_975
from acclimate.bench.records import BenchRecord, read_records, write_records
from acclimate.bench.tables import sheets
from acclimate.errors import DataError, OptionError
from acclimate.evaluation.scores import DomainErrors
from recorded import bench_record, per_class
from tiny import refused, succeeds


def grid(figures: dict[str, list[list[float | None]]], tasks: tuple[str, ...] = ("A-W", "D-W")) -> list[BenchRecord]:
    """Records of rows: a list of seeds' accuracies for each task."""
    return [
        bench_record(row, task, seed, accuracy, baselines=("DANN",) if row == "WEMNet" else ())
        for row, of_row in figures.items()
        for task, of_task in zip(tasks, of_row, strict=True)
        for seed, accuracy in enumerate(of_task)
    ]


GRID = {
    "source-only": [[0.5, 0.6], [0.7, 0.7]],
    "DANN": [[0.6, 0.8], [0.6, 0.7]],
    "WEMNet": [[0.9, 0.8], [0.7, 0.9]],
}


# --- the figures ---------------------------------------------------------------------------------------------------


def test_a_figure_is_the_mean_and_the_deviation_over_the_runs() -> None:
    assert figure(np.array([50.0, 60.0])) == Figure(55.0, pytest.approx(np.sqrt(50)), 0)
    assert str(figure(np.array([50.0, 60.0]))) == "55.0 ± 7.1"
    assert str(figure(np.array([50.0]))) == "50.0"
    assert str(figure(np.array([50.0, np.nan, 60.0]))) == "55.0 ± 7.1 (1 missing)"
    assert str(figure(np.array([np.nan, np.nan]))) == "2 missing"


def test_an_average_is_over_tasks_and_its_deviation_over_seeds() -> None:
    values = np.array([[50.0, 60.0], [70.0, 72.0]])
    assert average(values) == Figure(63.0, pytest.approx(np.std([60, 66], ddof=1)), 0)


def test_nothing_is_averaged_over_a_gap() -> None:
    assert average(np.array([[50.0, 60.0], [70.0, np.nan]])) == Figure(None, None, 1)


def test_a_difference_is_paired_and_its_interval_over_tasks() -> None:
    a, b = np.array([[90.0, 80.0], [70.0, 90.0], [50.0, 50.0]]), np.array([[60.0, 80.0], [60.0, 70.0], [50.0, 55.0]])
    found = difference(a, b)
    assert found is not None
    per_task = [15.0, 15.0, -2.5]
    low, high = stats.t.interval(0.95, 2, np.mean(per_task), stats.sem(per_task))
    assert found.mean == pytest.approx(np.mean(per_task))
    assert found.half == pytest.approx((high - low) / 2, rel=1e-3)
    assert (found.better, found.pairs, found.missing) == (3, 6, 0)


def test_a_difference_on_one_task_has_its_interval_over_seeds() -> None:
    found = difference(np.array([[90.0, 80.0, 70.0]]), np.array([[60.0, 70.0, 65.0]]))
    assert found is not None
    low, high = stats.t.interval(0.95, 2, 15, stats.sem([30, 10, 5]))
    assert found.half == pytest.approx((high - low) / 2, rel=1e-3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (2, 3)])
def test_two_tasks_or_seeds_are_too_few_for_an_interval(shape: tuple[int, int]) -> None:
    values = np.arange(60.0, 60.0 + np.prod(shape)).reshape(shape)
    found = difference(2 * values, values)
    assert found is not None
    assert found.half is None


def test_a_difference_counts_the_pairs_that_are_missing() -> None:
    nan = np.nan
    found = difference(np.array([[90.0, nan], [70.0, 80.0]]), np.array([[80.0, 70.0], [60.0, nan]]))
    assert found is not None
    assert (found.mean, found.pairs, found.missing) == (10.0, 2, 2)
    assert difference(np.array([[nan]]), np.array([[1.0]])) is None


@pytest.mark.parametrize("degrees", [1, 2, 5, 17, 30, 31, 35, 60, 1000])
def test_the_quantiles_are_students(degrees: int) -> None:
    assert t_975(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=0.0006)


# --- the tables ----------------------------------------------------------------------------------------------------


def test_the_table_of_tasks() -> None:
    accuracies, differences = sheets(grid(GRID))
    assert accuracies.headings == ["method", "A→W", "D→W", "Avg"]
    assert [[str(cell) for cell in row] for row in accuracies.rows] == [
        ["source-only", "55.0 ± 7.1", "70.0 ± 0.0", "62.5 ± 3.5"],
        ["DANN", "70.0 ± 14.1", "65.0 ± 7.1", "67.5 ± 10.6"],
        ["WEMNet", "85.0 ± 7.1", "80.0 ± 14.1", "82.5 ± 3.5"],
    ]
    assert "over the seeds 0, 1" in accuracies.notes[0]
    assert accuracies.notes[1] == "Run with feature vectors, 10 steps of 6 + 6 items."
    assert [[str(cell) for cell in row[:3] + row[4:]] for row in differences.rows] == [
        ["DANN", "source-only", "+5.0", "2 of 4", "0"],
        ["WEMNet", "source-only", "+20.0", "3 of 4", "0"],
        ["WEMNet", "DANN", "+15.0", "3 of 4", "0"],
    ]
    assert differences.notes[0].endswith("2 tasks: too few for an interval.")


def test_the_row_to_compare_with_can_be_named() -> None:
    differences = sheets(grid(GRID), baseline="dann")[-1]
    assert [row[:2] for row in differences.rows] == [["source-only", "DANN"], ["WEMNet", "DANN"]]
    with pytest.raises(OptionError, match="no row 'MSTN' to compare with; there are source-only, DANN, WEMNet"):
        sheets(grid(GRID), baseline="MSTN")


def test_missing_runs_are_counted_and_not_averaged() -> None:
    records = grid({**GRID, "WEMNet": [[0.9, None], [None, None]]})
    records[-1] = replace(records[-1], status="failed", error="It diverged.")
    accuracies, differences = sheets(records)
    assert list(map(str, accuracies.rows[-1])) == ["WEMNet", "90.0 (1 missing)", "2 missing", "3 missing"]
    assert "3 of 12 runs are missing, 1 of them failed" in " ".join(accuracies.notes)
    assert [str(cell) for cell in differences.rows[-1][4:]] == ["1 of 1", "3"]


def test_a_run_that_no_record_plans_is_missing_too() -> None:
    records = [r for r in grid(GRID) if not (r.row == "DANN" and r.seed == 1)]
    (_, dann, _) = sheets(records)[0].rows
    assert list(map(str, dann)) == ["DANN", "60.0 (1 missing)", "60.0 (1 missing)", "2 missing"]


def test_the_metric_is_named() -> None:
    titles = [sheet.title for sheet in sheets(grid(GRID), metric="both")]
    assert titles[0] == "Accuracy over all images in %, at the last step"
    assert titles[1] == "Mean of the classes' accuracies in %, at the last step"
    (per_class, _) = sheets(grid(GRID), metric="mean_per_class")
    assert str(per_class.rows[0][1]) == "27.5 ± 3.5"


def test_the_published_figures_stand_beside_ours() -> None:
    accuracies = sheets(grid(GRID), published="tada-table1")[0]
    rows = {str(row[0]): list(map(str, row[1:])) for row in accuracies.rows}
    assert list(rows) == ["source-only", "source-only, published", "DANN", "DANN, published", "WEMNet"]
    assert rows["DANN, published"] == ["82.0 ± 0.4", "96.9 ± 0.2", "82.2"]
    assert rows["source-only, published"] == ["68.4 ± 0.2", "96.7 ± 0.1", "76.1"]  # ResNet-50, found by its method
    assert any(note.startswith("Published: TADA, table 1: Office-31, ResNet-50 (Wang") for note in accuracies.notes)


def test_a_published_row_is_found_by_its_method_and_options() -> None:
    records = [replace(r, row="ours", options={"mstn": True}) for r in grid({"x": [[0.5], [0.6]]})]
    shown = sheets(records, published="wemnet-table1")[0].rows
    assert list(map(str, shown[1])) == ["ours, published", "95.6", "98.1", "88.6"]
    records = [replace(r, options={"mstn": True, "trade_off": 0.5}) for r in records]
    assert len(sheets(records, published="wemnet-table1")[0].rows) == 1


def test_visda_has_both_metrics_by_name() -> None:
    of_classes = per_class({"aeroplane": (2, 3), "car": (0, 1)})
    records = [
        replace(
            record,
            metrics=("mean_per_class", "accuracy"),
            benchmark="visda2017",
            scores=replace(record.scores, per_class=of_classes),
        )
        for record in grid({"DANN": [[0.5, 0.6]], "WEMNet": [[0.5, 0.6]]}, ("train-validation",))
    ]
    by_class, *compared = sheets(records, published="wemnet-table2")
    assert by_class.headings == ["method", "aeroplane", "car", "mean", "overall"]
    assert [list(map(str, row)) for row in by_class.rows] == [
        ["DANN", "66.7 ± 0.0", "0.0 ± 0.0", "27.5 ± 3.5", "55.0 ± 7.1"],
        ["DANN, published", "81.9", "44.3", "57.4", "56.1*"],
        ["WEMNet", "66.7 ± 0.0", "0.0 ± 0.0", "27.5 ± 3.5", "55.0 ± 7.1"],
        ["WEMNet, published", "95.4", "51.3", "79.6*", "75.4"],
    ]
    notes = " ".join(by_class.notes)
    assert "WEMNet: the printed average is the overall accuracy, not the mean of the classes" in notes
    assert "*: not printed, but computed" in notes
    assert len(compared) == 2


def test_the_domain_errors() -> None:
    records = [
        replace(r, domain_error={f: DomainErrors(source=n + d, target=9.0) for d, f in enumerate(("f", "f_hat_d"))})
        for n, r in enumerate(grid({"WEMNet": [[0.5, 0.5], [0.5, 0.5]]}))
    ]
    (sheet,) = sheets(records, published="wemnet-table4")
    assert sheet.headings == ["method", "domain", "feature", "A→W", "D→W", "Avg"]
    assert [list(map(str, row)) for row in sheet.rows[:4]] == [
        ["WEMNet", "source", "with f_d", "0.50 ± 0.71", "2.50 ± 0.71", "1.50 ± 0.71"],
        ["WEMNet, published", "source", "with f_d", "5.73", "3.16", "3.54"],
        ["WEMNet", "source", "without f_d", "1.50 ± 0.71", "3.50 ± 0.71", "2.50 ± 0.71"],
        ["WEMNet, published", "source", "without f_d", "5.19", "2.08", "2.86"],
    ]


@pytest.mark.parametrize(
    ("published", "change", "sentence"),
    [
        ("wemnet-table9", {}, "did you mean wemnet-table"),
        ("wemnet-table1", {"benchmark": "pacs"}, "is of office31, and these records are of pacs"),
        ("tada-table2", {}, "these records none of them"),
    ],
)
def test_unlike_is_not_compared_with_like(published: str, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        sheets([replace(r, **change) for r in grid(GRID)], published=published)


# --- the formats ---------------------------------------------------------------------------------------------------

ODD = r"50%_a|b&c\*"


def test_markdown_escapes_pipes() -> None:
    lines = formats.markdown(sheets(grid({ODD: GRID["DANN"]}))).splitlines()
    assert lines[2:5] == [
        "| method | A→W | D→W | Avg |",
        "| --- | ---: | ---: | ---: |",
        r"| 50%_a\|b&c\\\* | 70.0 ± 14.1 | 65.0 ± 7.1 | 67.5 ± 10.6 |",
    ]


def test_latex_escapes_names() -> None:
    text = formats.latex(sheets(grid({ODD: GRID["DANN"]})))
    assert r"method & A$\rightarrow$W & D$\rightarrow$W & Avg \\" in text
    assert r"50\%\_a|b\&c\textbackslash{}* & 70.0 $\pm$ 14.1 & 65.0 $\pm$ 7.1 & 67.5 $\pm$ 10.6 \\" in text
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 1
    assert all(cell.isascii() for cell in text)


def test_latex_is_ready_for_a_paper() -> None:
    text = formats.latex(sheets(grid(GRID)))
    assert text.startswith("% needs \\usepackage{booktabs}\n")
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\hline")] == [2, 2, 2, 0]
    labels = re.findall(r"\\label\{(.*)\}", text)
    assert labels == [
        "tab:accuracy-over-all-images-in-at-the-last-step",
        "tab:paired-differences-of-the-accuracy-over-all-images-in-points",
    ]
    assert r"WEMNet & \textbf{85.0 $\pm$ 7.1} & \textbf{80.0 $\pm$ 14.1} & \textbf{82.5 $\pm$ 3.5} \\" in text


def test_rows_that_look_alike_are_equally_good() -> None:
    sheet, _ = sheets(grid({"DANN": [[0.7001], [0.6]], "WEMNet": [[0.7004], [None]], "MADA": [[0.69], [0.5]]}))
    assert [[cell.best for cell in row[1:3] if isinstance(cell, Figure)] for row in sheet.rows] == [
        [True, True],
        [True, False],
        [False, False],
    ]


def test_csv_has_a_line_for_each_number() -> None:
    rows = list(csv.DictReader(io.StringIO(formats.csv_text(sheets(grid({'a,"b': GRID["DANN"]}))))))
    assert [(r["line"], r["row"], r["column"], r["value"], r["std"], r["missing"]) for r in rows] == [
        ("1", 'a,"b', "A→W", "70.0000", "14.1421", "0"),
        ("1", 'a,"b', "D→W", "65.0000", "7.0711", "0"),
        ("1", 'a,"b', "Avg", "67.5000", "10.6066", "0"),
    ]


def test_what_csv_says_of_a_difference_are_numbers() -> None:
    values = {"source-only": [[0.6], [0.7], [0.8]], "DANN": [[0.61], [0.72], [0.83]]}
    rows = list(csv.DictReader(io.StringIO(formats.csv_text(sheets(grid(values, ("A-W", "D-W", "W-D")))))))
    told = {r["column"]: float(r["value"]) for r in rows if r["of"] == "source-only"}
    low, high = stats.t.interval(0.95, 2, 2, stats.sem([1, 2, 3]))
    assert told["95 % interval, low"] == pytest.approx(low, abs=1e-3)
    assert told["95 % interval, high"] == pytest.approx(high, abs=1e-3)
    assert {name: told[name] for name in ("mean difference", "better in", "better in, of", "pairs missing")} == {
        "mean difference": 2,
        "better in": 3,
        "better in, of": 3,
        "pairs missing": 0,
    }


# --- the command ---------------------------------------------------------------------------------------------------


def written(path: Path, records: list[BenchRecord]) -> Path:
    write_records(path, records)
    return path


def test_the_command(tmp_path: Path) -> None:
    file = written(tmp_path / "records.jsonl", grid(GRID))
    shown = succeeds("table", tmp_path, columns=40).stdout
    assert "WEMNet       85.0 ± 7.1 <  80.0 ± 14.1 <  82.5 ± 3.5 <" in shown  # wider than the screen, and whole
    assert succeeds("table", file, "--format", "markdown").stdout == formats.markdown(sheets(grid(GRID)))
    assert json.loads(succeeds("table", file, "--json").stdout)[0]["rows"][0][1]["mean"] == 55.0
    only = succeeds("table", file, "--metric", "mean-per-class", "--format", "csv").stdout
    assert "Mean of the classes' accuracies" in only
    assert "Accuracy over all images" not in only


def test_several_benches_make_one_table(tmp_path: Path) -> None:
    one = written(tmp_path / "1.jsonl", grid({"DANN": GRID["DANN"]}))
    other = written(tmp_path / "2.jsonl", grid({"WEMNet": GRID["WEMNet"]}))
    planned = written(tmp_path / "3.jsonl", grid({"DANN": [[None, None], [None, None]]}))
    assert [row[0] for row in sheets(read_records([planned, one, other]))[0].rows] == ["DANN", "WEMNet"]
    assert sheets(read_records([planned, one]))[0].rows == sheets(read_records([one, planned]))[0].rows
    with pytest.raises(DataError, match="DANN on A-W with seed 0 is recorded twice"):
        read_records([one, one])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read (No such file or directory): name the folder that acclimate bench wrote"),
        ("", "There are no records"),
        ("{", "is damaged or was altered (it is not JSON): run the bench again"),
        ('{"row": 1}', "has no schema number, where this version of Acclimate reads schema 1: run the bench again"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, content: str | None, sentence: str) -> None:
    if content is not None:
        (tmp_path / "records.jsonl").write_text(content)
    assert sentence in refused("table", tmp_path)


def test_an_oracle_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "records.jsonl", grid(GRID))
    assert "choosing a step by the target's labels would use them" in refused("table", tmp_path, "--oracle")
