"""Choosing among the runs of a bench: what is read, what is not, and what is said of it."""

from __future__ import annotations

import csv
import importlib
import io
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acclimate.bench.choose import rank
from acclimate.runs.members import members_of
from acclimate.screen import Screen
from acclimate.settings import Settings
from acclimate.trust.validators import VALIDATORS
from recorded import noted_anew
from tiny import refused, succeeds, vectors

GRID = """
seeds = [0]

[data.domains]
S = "source.npz"
T = "target.npz"

[settings]
steps = 4
batch_size = 6
bottleneck = 4

[[row]]
name = "source-only"

[[row]]
name = "DANN"

[[row]]
name = "weak"
method = "dann"
options = { trade_off = 0.25 }

[[row]]
name = "GFK"
options = { dim = 2 }

[[row]]
name = "DAN"
"""
ONE_TASK = '[data]\ntasks = ["S-T"]\n\n[data.domains]'
N = 24
TRUTH = np.arange(N) % 3
CLASSES = ("a", "b", "c")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bench of five rows on S -> T and T -> S; both domains have labels."""
    folder = tmp_path_factory.mktemp("choose")
    vectors(folder / "source.npz")
    vectors(folder / "target.npz", shift=0.5)
    (folder / "grid.toml").write_text(GRID, encoding="utf-8")
    succeeds("bench", folder / "grid.toml", "--out", folder / "bench", "-q")
    return folder / "bench"


@pytest.fixture
def bench(made: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of it to alter."""
    shutil.copytree(made, tmp_path / "bench")
    return tmp_path / "bench"


def run_of(bench: Path, row: str, task: str = "S-T") -> Path:
    """The folder of a row's run."""
    method = {"source-only": "source_only", "weak": "dann"}.get(row, row.lower())
    runs = sorted(bench.glob(f"runs/{method}-{task}-0-*"))
    weak = [run for run in runs if "trade_off" in json.loads((run / "record.json").read_text())["settings"]["options"]]
    (run,) = weak if row == "weak" else [run for run in runs if run not in weak]
    return run


def says(bench: Path, wrong: dict[str, Sequence[int]], task: str = "S-T") -> None:
    """Write what the rows predict: the truth, and of the images at these positions the next class."""
    for row, positions in wrong.items():
        file = run_of(bench, row, task) / "predictions.csv"
        heading, *rows = csv.reader(file.read_text(encoding="utf-8").splitlines())
        said = TRUTH.copy()
        said[list(positions)] = (said[list(positions)] + 1) % 3
        table(file, heading, [[row[0]] for row in rows], said)


def table(
    file: Path, heading: Sequence[str], begin: Sequence[Sequence[str]], said: np.ndarray, confidence: float = 0.8
) -> None:
    p = np.where(np.eye(3)[said] > 0, confidence, (1 - confidence) / 2)
    lines = [[*b, CLASSES[k], "0.8", *map(str, row)] for b, k, row in zip(begin, said, p, strict=True)]
    with file.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([heading, *lines])
    noted_anew(file.parent)


def holds_out(bench: Path, row: str, wrong: int) -> None:
    """Write what a row predicts of twelve source items that stayed out of training, so many of them wrongly."""
    y = TRUTH[:12]
    said = np.where(np.arange(12) < wrong, (y + 1) % 3, y)
    begin = [[str(i), CLASSES[k]] for i, k in enumerate(y)]
    heading = ["path", "label", "predicted", "confidence", *CLASSES]
    table(run_of(bench, row) / "source_predictions.csv", heading, begin, said)


SOUND = {"source-only": range(6), "DANN": [0], "weak": range(4), "GFK": [5, 6], "DAN": range(8, 14)}


def chosen(bench: Path, *options: str) -> dict[str, Any]:
    (ranking,) = json.loads(succeeds("choose", bench, "--task", "S-T", "--json", *options).stdout)
    return dict(ranking)


def test_the_row_that_agrees_best_with_all_is_chosen(bench: Path) -> None:
    says(bench, SOUND)
    ranking = chosen(bench)
    assert (ranking["task"], ranking["chosen"], ranking["to_label"]) == ("S-T", "DANN", [])
    assert ranking["run"] == str(run_of(bench, "DANN"))
    assert ranking["candidates"][0]["name"] == "DANN"
    assert {c["row"] for c in ranking["candidates"]} == set(SOUND)
    for candidate in ranking["candidates"]:
        assert candidate["scores"].keys() | candidate["refused"].keys() == VALIDATORS.keys()
        assert {"vote", "im", "frozen_class_ami", "frozen_reverse_accuracy"} <= candidate["scores"].keys()
    assert ranking["instead"].startswith('acclimate fit --method consensus --members "DANN,')
    assert "weak" not in ranking["instead"]  # no name of its own tells what it is


def test_the_terminal_names_the_choice_and_why(bench: Path) -> None:
    says(bench, SOUND)
    shown = succeeds("choose", bench, "--task", "S-T").stdout
    assert "S→T, judged without labels" in shown
    first = next(line for line in shown.splitlines() if line.startswith("DANN"))
    assert first.split()[:2] == ["DANN,", "chosen"]
    assert "DANN is estimated to gain most over the baseline" in shown
    assert "None of these figures is an accuracy" in shown
    assert "No run kept a part of the source out of training" in shown
    assert "In place of one of them, what all that pass say together: acclimate fit --method consensus" in shown
    assert first.endswith("x")  # its cost beside that of source-only


def test_a_table_a_task(made: Path) -> None:
    rankings = json.loads(succeeds("choose", made, "--json").stdout)
    assert [ranking["task"] for ranking in rankings] == ["S-T", "T-S"]


def test_the_answers_in_the_records_are_not_looked_at(bench: Path) -> None:
    says(bench, SOUND)
    before = succeeds("choose", bench, "--format", "csv").stdout
    for file in bench.glob("runs/*/record.json"):
        record = json.loads(file.read_text(encoding="utf-8"))
        n = record["scores"]["n"]
        record["scores"] |= {
            "accuracy": 0.0,
            "mean_per_class": 0.0,
            "n": n,
            "confusion": [[0, 0, 8], [8, 0, 0], [0, 8, 0]],
        }
        for score in record["scores"]["per_class"]:
            score |= {"correct": 0, "accuracy": 0.0}
        file.write_text(json.dumps(record), encoding="utf-8")
        noted_anew(file.parent)
    lines = [json.loads(line) for line in (bench / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line["scores"] |= {"accuracy": 0.0, "mean_per_class": 0.0}
        del line["checksum"]
    (bench / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert succeeds("choose", bench, "--format", "csv").stdout == before
    for file in bench.glob("runs/*/record.json"):
        record = json.loads(file.read_text(encoding="utf-8"))
        record["scores"], record["data"]["target"]["labelled"] = None, False
        file.write_text(json.dumps(record), encoding="utf-8")
        noted_anew(file.parent)
    assert succeeds("choose", bench, "--format", "csv").stdout == before


def test_every_validator_is_a_column_of_the_csv(bench: Path) -> None:
    says(bench, SOUND)
    heading, *rows = csv.reader(io.StringIO(succeeds("choose", bench, "--format", "csv").stdout))
    assert set(VALIDATORS) < set(heading)
    assert not [name for name in heading if name in ("accuracy", "mean_per_class")]
    assert len(rows) == 10
    first = dict(zip(heading, rows[0], strict=True))
    assert (first["task"], first["place"], first["candidate"], first["chosen"]) == ("S-T", "1", "DANN", "True")
    assert float(first["vote"]) > 0.9
    assert first["source_accuracy"] == ""


def test_a_collapsed_row_is_told_and_cannot_be_chosen(bench: Path) -> None:
    says(bench, SOUND)
    file = run_of(bench, "DAN") / "predictions.csv"
    heading, *rows = csv.reader(file.read_text(encoding="utf-8").splitlines())
    table(file, heading, [row[:1] for row in rows], np.zeros(N, dtype=int))
    last = chosen(bench)["candidates"][-1]
    assert last["name"] == "DAN"
    assert last["failed"][0].startswith("It predicts 1.0 classes in effect")
    shown = succeeds("choose", bench, "--task", "S-T").stdout
    assert "DAN cannot be chosen: It predicts 1.0 classes in effect" in shown
    assert "DAN," not in shown.split("--members")[1].split("--source")[0]


def lose_data(bench: Path) -> None:
    for run in bench.glob("runs/*/record.json"):
        record = json.loads(run.read_text(encoding="utf-8"))
        record["settings"]["source"] = "/nowhere/source.npz"
        run.write_text(json.dumps(record), encoding="utf-8")
        noted_anew(run.parent)


def test_leaders_that_differ_leave_it_undecided_with_images_to_label(bench: Path) -> None:
    says(bench, {**SOUND, "DAN": range(8, 20)})
    lose_data(bench)
    file = run_of(bench, "DAN") / "predictions.csv"
    heading, *rows = csv.reader(file.read_text(encoding="utf-8").splitlines())
    said = np.array([CLASSES.index(row[1]) for row in rows])
    table(file, heading, [row[:1] for row in rows], said, confidence=0.98)
    ranking = chosen(bench)
    assert ranking["chosen"] is None
    assert ranking["run"] is None
    assert ranking["reason"].startswith("Undecided: vote names DANN, im names DAN, which differ on many images")
    names = [row[0] for row in rows]
    assert ranking["to_label"] == [names[i] for i in sorted({0, *range(8, 20)})]
    shown = succeeds("choose", bench, "--task", "S-T").stdout
    assert "Undecided: " in shown
    assert "Instead of a choice, take what all that pass say together: acclimate fit --method consensus" in shown
    assert shown.endswith(f"To label: {', '.join(ranking['to_label'])}.\n")


def test_seeds_of_a_row_are_candidates_of_their_own_with_one_vote(bench: Path) -> None:
    again = bench.parent / "again"
    text = GRID.replace("seeds = [0]", "seeds = [0, 1]").replace("[data.domains]", ONE_TASK)
    for side, shift in {"source": 0.0, "target": 0.5}.items():
        vectors(bench.parent / f"{side}.npz", shift=shift)
    (bench.parent / "grid.toml").write_text(text, encoding="utf-8")
    succeeds("bench", bench.parent / "grid.toml", "--out", again, "-q")
    names = {c["name"]: (c["row"], c["seed"]) for c in chosen(again)["candidates"]}
    assert names == {f"{row}, seed {seed}": (row, seed) for row in SOUND for seed in (0, 1)}


# --- the held-out source -------------------------------------------------------------------------------------------


def test_who_has_lost_the_held_out_source_cannot_be_chosen(bench: Path) -> None:
    says(bench, SOUND)
    for row, wrong in {"source-only": 0, "DANN": 0, "weak": 0, "GFK": 0, "DAN": 6}.items():
        holds_out(bench, row, wrong)
    ranking = chosen(bench)
    of = {c["name"]: c for c in ranking["candidates"]}
    assert of["DAN"]["failed"] == [
        "It is right on 50.0 % of the held-out source, less than 0.9 times the 100.0 % of source-only."
    ]
    assert of["DANN"]["scores"]["source_accuracy"] == 1
    assert "frozen_reverse_accuracy" in of["DANN"]["scores"]


def test_a_method_that_predicts_for_the_target_alone_is_not_judged_by_source_images(bench: Path) -> None:
    says(bench, SOUND)
    for row, wrong in {"source-only": 0, "DANN": 0, "weak": 0, "GFK": 9, "DAN": 0}.items():
        holds_out(bench, row, wrong)
    ranking = chosen(bench)
    gfk = next(c for c in ranking["candidates"] if c["name"] == "GFK")
    assert gfk["failed"] == []
    assert "source_accuracy" in gfk["refused"]
    assert ranking["notes"] == ["Not judged by source images, as they predict for the target alone: GFK."]


def test_a_bench_that_holds_a_part_of_the_source_out(tmp_path: Path) -> None:
    vectors(tmp_path / "source.npz", n=60)
    vectors(tmp_path / "target.npz", shift=0.5)
    text = GRID.replace("[data.domains]", ONE_TASK).replace("steps = 4", "steps = 4\nhold_out = 0.2")
    (tmp_path / "grid.toml").write_text(text, encoding="utf-8")
    succeeds("bench", tmp_path / "grid.toml", "--out", tmp_path / "bench", "-q")
    ranking = chosen(tmp_path / "bench")
    judged = {c["name"] for c in ranking["candidates"] if "source_accuracy" in c["scores"]}
    assert judged == {"source-only", "DANN", "weak", "DAN"}
    assert all("frozen_reverse_accuracy" in c["scores"] for c in ranking["candidates"])
    assert ranking["notes"] == ["Not judged by source images, as they predict for the target alone: GFK."]


def test_a_damaged_file_of_held_out_predictions(bench: Path) -> None:
    (run_of(bench, "DAN") / "source_predictions.csv").write_text("path,label\n1,a\n", encoding="utf-8")
    assert "source_predictions.csv is damaged or was altered" in refused("choose", bench)


# --- what is refused, and what else can be given -------------------------------------------------------------------


def without(bench: Path, *rows: str) -> None:
    for row in rows:
        shutil.rmtree(run_of(bench, row))


def test_too_few_rows(bench: Path) -> None:
    without(bench, "DAN", "GFK")
    assert refused("choose", bench, "--task", "S-T") == (
        "Choosing on S-T needs at least 4 finished rows, not 3: add rows to the bench, since fewer cannot outvote one."
    )


def test_no_source_only(bench: Path) -> None:
    without(bench, "source-only")
    assert refused("choose", bench, "--task", "S-T") == (
        "There is no finished run of source-only on S-T: add it, since all others are judged against it."
    )


def test_other_images(bench: Path) -> None:
    file = run_of(bench, "DAN") / "predictions.csv"
    file.write_text(file.read_text(encoding="utf-8").replace("\n0,", "\nother,"), encoding="utf-8")
    noted_anew(file.parent)
    sentence = refused("choose", bench, "--task", "S-T")
    assert sentence.endswith("compare runs on one task.")


def test_what_is_no_bench(tmp_path: Path, made: Path) -> None:
    assert refused("choose", tmp_path).startswith(f"{tmp_path} holds neither a bench nor a finished run: name what")
    assert refused("choose", made, "--task", "T-X") == "There is no task 'T-X'; there are S-T, T-S."


def test_data_that_are_gone_cost_their_validators_alone(bench: Path) -> None:
    says(bench, {**SOUND, "DANN": []})
    lose_data(bench)
    ranking = chosen(bench)
    assert ranking["chosen"] == "DANN"
    assert ranking["notes"][0].startswith("Validators that look at frozen features are left out: /nowhere/source.npz")
    assert "frozen_class_ami" in ranking["candidates"][0]["refused"]


def test_runs_that_fit_made_with_source_only_beside_them(tmp_path: Path) -> None:
    data = ("--source", vectors(tmp_path / "s.npz"), "--target", vectors(tmp_path / "t.npz", shift=1, labelled=False))
    runs = []
    for method in ("dann", "dan", "jan"):
        run = tmp_path / method
        compare = ["--compare"] if method == "dann" else []
        succeeds("fit", *data, "--out", run, "--method", method, "--steps", "60", "--batch-size", "9", *compare)
        runs.append(run)
    (ranking,) = json.loads(succeeds("choose", *runs, "--json").stdout)
    assert ranking["task"] == "s-t"
    assert {c["name"] for c in ranking["candidates"]} == {str(tmp_path / "dann" / "source_only"), *map(str, runs)}
    assert ranking["instead"].count("jan") == 1
    together = shutil.copytree(tmp_path / "jan", tmp_path / "together")
    record = json.loads((together / "record.json").read_text(encoding="utf-8"))
    record["settings"]["method"] = record["model"]["method"] = "consensus"
    (together / "record.json").write_text(json.dumps(record), encoding="utf-8")
    noted_anew(together)
    (again,) = json.loads(succeeds("choose", *runs, together, "--json").stdout)
    assert again == ranking  # the consensus is no candidate beside those that it is made of


# --- a bench without labels ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bench of the grid on a target without labels."""
    folder = tmp_path_factory.mktemp("unlabelled")
    vectors(folder / "source.npz")
    vectors(folder / "target.npz", shift=0.5, labelled=False)
    text = GRID.replace("[data.domains]", ONE_TASK).replace("steps = 4", "steps = 60")
    (folder / "grid.toml").write_text(text, encoding="utf-8")
    return folder


def test_a_bench_without_labels_is_ranked_without_them(unlabelled: Path) -> None:
    out = unlabelled / "bench"
    made = succeeds("bench", unlabelled / "grid.toml", "--out", out, "-q").stdout
    assert "S→T, judged without labels" in made
    assert "missing" not in made
    assert "Accuracy" not in made
    assert succeeds("table", out).stdout == made
    (sheet, *_) = json.loads(succeeds("table", out, "--json").stdout)
    assert [row[1]["unlabelled"] for row in sheet["rows"]] == [1] * 5
    assert "| DANN | no labels |" in succeeds("table", out, "--format", "markdown").stdout
    succeeds("report", out)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "without labels on S→T" in page
    assert "There are no labels, so nobody knows how many predictions are right" in page
    assert "judged without labels" in page
    assert "missing" not in page.split("<main")[-1]


def test_a_bench_without_labels_of_which_too_little_is_there(unlabelled: Path, tmp_path: Path) -> None:
    shown = succeeds("bench", unlabelled / "grid.toml", "--methods", "DANN,DAN", "--out", tmp_path / "few", "-q").stdout
    assert "no labels" in shown
    assert "S→T has no labels, and its rows are not ranked without them: Choosing on S-T needs at least 4" in shown


def test_a_labelled_bench_is_sorted_for_people_and_says_what_rows_cost(made: Path) -> None:
    shown = succeeds("table", made).stdout
    lines = shown.splitlines()
    heading = next(i for i, line in enumerate(lines) if line.startswith("method"))
    assert lines[heading].split()[-1] == "cost"
    rows = lines[heading + 2 : heading + 7]
    averages = [float(row.replace("<", "").split()[-2]) for row in rows]
    assert averages == sorted(averages, reverse=True)
    assert next(row for row in rows if row.startswith("source-only")).endswith("1.0x")
    assert "hindsight, not a choice" in shown
    plain = succeeds("table", made, "--format", "markdown").stdout.splitlines()
    assert [line.split("|")[1].strip() for line in plain[4:9]] == list(SOUND)
    assert "cost" not in plain[2]


# --- the study of the validators -----------------------------------------------------------------------------------


def test_the_study_compares_what_is_put_first_with_the_labels(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says(bench, SOUND)
    says(bench, SOUND, task="T-S")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "measurements"))
    page = importlib.import_module("validators").page([bench], Screen(quiet=True))
    accuracy = {
        task: {row: 100 * record_of(bench, row, task)["scores"]["accuracy"] for row in SOUND} for task in ("S-T", "T-S")
    }
    regrets = [max(of_task.values()) - of_task["DANN"] for of_task in accuracy.values()]
    rows = {line.split("|")[1].strip(): line.split("|")[2:] for line in page.splitlines() if line.startswith("| ")}
    first = [cell.strip() for cell in rows["**gates, then the first: `acclimate choose`**"]]
    assert first[:2] == [f"{np.mean(regrets):.1f}", f"{max(regrets):.1f}"]
    assert first[4:6] == [f"{regret:.1f}" for regret in regrets]
    unadapted = [max(of_task.values()) - of_task["source-only"] for of_task in accuracy.values()]
    assert rows["always source-only"][0].strip() == f"{np.mean(unadapted):.1f}"
    assert any(name.endswith(", in hindsight") for name in rows)
    assert "2 groups, seeds 0." in page


def record_of(bench: Path, row: str, task: str) -> dict[str, Any]:
    return dict(json.loads((run_of(bench, row, task) / "record.json").read_text(encoding="utf-8")))


def test_the_consensus_that_is_offered_names_each_method_once(tmp_path: Path) -> None:
    vectors(tmp_path / "source.npz")
    vectors(tmp_path / "target.npz", shift=0.5)
    faster = '[[row]]\nname = "DANN faster"\nmethod = "dann"\nsettings = { lr = 0.02 }\n'
    text = GRID.replace("[data.domains]", ONE_TASK).replace("steps = 4", "steps = 60")
    (tmp_path / "grid.toml").write_text(text + faster, encoding="utf-8")
    succeeds("bench", tmp_path / "grid.toml", "--out", tmp_path / "bench", "-q")
    (ranking,) = rank([tmp_path / "bench"])
    listed = re.search(r'--members "([^"]+)"', ranking.instead)
    assert listed is not None
    members = members_of(Settings.of(source="s", target="t", options={"members": listed[1]}))
    assert {member.settings.method for member in members} <= {"source_only", "dann", "dan"}
    assert len(members) > 1
