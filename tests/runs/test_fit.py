"""Runs: what they write, that labels never reach them, and that a kill at any moment costs nothing but time."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import acclimate as package
import forks
from acclimate.evaluation.scores import changes
from acclimate.locks import alone
from acclimate.methods import registry
from acclimate.runs import run as experiment
from acclimate.runs.files import RUN_FILES, read_predictions
from acclimate.schema import as_json
from acclimate.training import Checkpoint, Step
from tiny import (
    AtOnce,
    acclimate,
    in_closed_form,
    network,
    pictures,
    refused,
    samples_for,
    succeeds,
    trained_alone,
    vectors,
)

WHOLE = {"model.safetensors", "model.json", "record.json", "metrics.jsonl", "predictions.csv", "skipped.csv"}
FILES = WHOLE | {"reference.safetensors"}
SMALL = ("--bottleneck", "8", "--batch-size", "6")
TIMM = "test_resnet"


@pytest.fixture
def arrays(tmp_path: Path) -> tuple[str, ...]:
    source, target = vectors(tmp_path / "source.npz"), vectors(tmp_path / "target.npz", shift=0.5)
    return "--source", str(source), "--target", str(target)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, ...]:
    source, target = pictures(tmp_path / "source"), pictures(tmp_path / "target", shade=20)
    return "--source", str(source), "--target", str(target)


def fit(out: Path, *args: str | Path) -> dict[str, Any]:
    """The record of a fit."""
    succeeds("fit", *args, "--out", out)
    return record(out)


def record(out: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((out / "record.json").read_text(encoding="utf-8"))
    return read


def files(out: Path) -> set[str]:
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def contents(out: Path) -> dict[str, tuple[bytes, int]]:
    return {name: ((out / name).read_bytes(), (out / name).stat().st_mtime_ns) for name in files(out)}


def assert_same_run(a: Path, b: Path) -> None:
    """Two run directories agree in everything but when and where they were made."""
    assert files(a) == files(b)
    for name in files(a) & FILES - {"record.json"}:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    told = ("command", "seconds", "resumed_at", "compare", "trust", "checksum")
    ours, theirs = ({k: v for k, v in record(out).items() if k not in told} for out in (a, b))
    for entry in (ours, theirs):
        entry["settings"].pop("checkpoint_seconds")
    assert ours == theirs


# --- the run directory ---------------------------------------------------------------------------------------------


def test_the_run_directory(arrays: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "deep" / "run"
    fit(out, *arrays, *SMALL, "--steps", "10")
    assert files(out) == FILES
    assert not (out / "checkpoint").exists()
    assert {(out / name).stat().st_mode for name in FILES} == {(out / "model.json").stat().st_mode}
    assert RUN_FILES.keys() >= FILES


def test_the_record(arrays: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ["fit", *arrays, *SMALL, "--steps", "10", "--seed", "3", "--set", "trade_off=0.5", "--lr", "0.02"]
    monkeypatch.setattr(sys, "argv", ["acclimate", *args])
    result = fit(tmp_path / "run", *args[1:])
    assert result["command"] == args
    assert result["acclimate"] == package.__version__
    settings = result["settings"]
    assert settings["method"] == "wemnet"
    assert settings["options"] == {"trade_off": 0.5}
    assert settings["seed"] == 3
    assert {"steps": 10, "batch_size": 6, "lr": 0.02, "momentum": 0.9}.items() <= settings.items()
    assert (settings["source"], settings["target"]) == (arrays[1], arrays[3])
    assert result["model"]["classes"] == ["a", "b", "c"]
    data = result["data"]
    assert data["source"].items() >= {"origin": arrays[1], "items": 24, "classes": dict.fromkeys("abc", 8)}.items()
    assert data["target"].items() >= {"origin": arrays[3], "items": 24, "labelled": True}.items()
    assert len({data[side]["fingerprint"] for side in ("source", "target")}) == 2
    assert data["skipped"] == 0
    environment = result["environment"]
    assert environment.keys() == {"python", "platform", "device", "threads", "processes", "libraries"}
    assert environment["libraries"].keys() == {"torch", "timm", "numpy", "pillow", "scikit-learn"}
    assert environment["libraries"]["numpy"] == np.__version__
    assert environment["libraries"]["torch"] == torch.__version__
    assert (result["steps"], result["selection"], result["resumed_at"]) == (10, "last step", None)
    assert {"classification", "adversarial"} == result["terms"].keys()
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == list(range(1, 11))
    for name, summary in result["terms"].items():
        values = [row["terms"][name] for row in log]
        assert summary == {"first": values[0], "last": values[-1], "mean": pytest.approx(np.mean(values))}
    for errors in result["domain_error"].values():
        assert errors.keys() == {"source", "target"}
        assert all(0 <= error <= 50 for error in errors.values())
    assert result["domain_error"]
    assert result["seconds"].keys() == {"features", "members", "training", "evaluation"}


def test_predictions_are_in_the_order_of_the_target_and_give_the_scores(
    folders: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    scores = fit(out, *folders, *SMALL, "--backbone", "lenet", "--steps", "3", "--method", "dann")["scores"]
    with (out / "predictions.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "predicted", "confidence", "a", "b", "c"]
    assert [row[0] for row in rows] == [f"{name}/{i}.png" for name in "abc" for i in range(4)]
    for row in rows:
        probabilities = [float(p) for p in row[3:]]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert row[1] == "abc"[int(np.argmax(probabilities))]
        assert float(row[2]) == max(probabilities)
    right = sum(row[0][0] == row[1] for row in rows)
    assert scores["accuracy"] == pytest.approx(right / 12)
    assert scores["n"] == 12


def test_vectors_are_named_by_their_rows(arrays: tuple[str, ...], tmp_path: Path) -> None:
    fit(tmp_path / "run", *arrays, *SMALL, "--steps", "1")
    with (tmp_path / "run" / "predictions.csv").open(newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [str(i) for i in range(24)]


@pytest.mark.parametrize("labelled", [True, False])
def test_compare_trains_source_only_and_tells_the_difference(tmp_path: Path, labelled: bool) -> None:
    source = vectors(tmp_path / "source.npz")
    target = vectors(tmp_path / "target.npz", shift=0.5, labelled=labelled)
    data = ("--source", source, "--target", target, *SMALL, "--steps", "20", "--lr", "0.1")
    out = tmp_path / "run"
    shown = succeeds("fit", *data, "--method", "dann", "--compare", "--out", out).stdout
    assert files(out) == FILES | {f"source_only/{name}" for name in WHOLE}
    before, after = record(out / "source_only"), record(out)
    assert (before["settings"]["method"], after["settings"]["method"]) == ("source_only", "dann")
    compare = after["compare"]
    assert compare["method"] == "source_only"
    assert compare["scores"] == before["scores"]
    assert (compare["scores"] is None) == (not labelled)
    old, new = (
        read_predictions(folder / "predictions.csv", 24, 3).probabilities for folder in (out / "source_only", out)
    )
    assert compare["changes"] == json.loads(json.dumps(as_json(changes(old, new))))
    assert ("Accuracy on the target" in shown) == labelled
    assert "source_only" in shown
    alone = fit(tmp_path / "alone", *data, "--method", "source_only")
    (tmp_path / "alone" / "reference.safetensors").unlink()  # which the run that is asked for alone has
    told = record(tmp_path / "alone")
    del told["files"]["reference.safetensors"], told["checksum"]
    (tmp_path / "alone" / "record.json").write_text(json.dumps(told))
    assert_same_run(out / "source_only", tmp_path / "alone")
    assert alone["compare"] is None


def test_comparing_source_only_with_itself_trains_it_once(arrays: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert fit(out, *arrays, *SMALL, "--steps", "2", "--method", "source_only", "--compare")["compare"] is None
    assert files(out) == FILES


# --- labels of the target ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", registry.names())
def test_target_labels_never_reach_training(method: str, tmp_path: Path) -> None:
    source = samples_for(method, tmp_path / "source.npz")
    runs = {}
    for kind in ("labelled", "unlabelled", "mislabelled"):
        target = samples_for(method, tmp_path / f"{kind}.npz", shift=0.5, labelled=kind != "unlabelled")
        if kind == "mislabelled":
            content = dict(np.load(target))
            np.savez(target, x=content["x"], y=np.repeat(list("abc"), [14, 8, 2]))
        runs[kind] = tmp_path / f"run-{kind}"
        how = ("--method", method, *network(method), *SMALL, "--steps", "8")
        result = fit(runs[kind], "--source", source, "--target", target, *how)
        assert (result["scores"] is None) == (kind == "unlabelled")
    for name in ("model.safetensors", "metrics.jsonl", "predictions.csv"):
        assert len({(run / name).read_bytes() for run in runs.values()}) == 1, name
    assert record(runs["labelled"])["scores"] != record(runs["mislabelled"])["scores"]


# --- the same command again ----------------------------------------------------------------------------------------


def test_the_same_command_again_trains_nothing(
    arrays: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acclimate.screen.Timer", AtOnce)
    out = tmp_path / "run"
    command = ("fit", *arrays, *SMALL, "--steps", "5", "--method", "dann", "--compare", "--out", out)
    first = succeeds(*command, "--json")
    before = {name: content for name, (content, _) in contents(out).items()}
    times = {name: when for name, (_, when) in contents(out).items() if name != "record.json"}
    again = succeeds(*command, "--json", "--checkpoint-seconds", "1")
    assert json.loads(again.stdout) == json.loads(first.stdout) == record(out)
    assert "Training" in first.stderr
    assert "Training" not in again.stderr
    assert "dann is finished already" in again.stderr
    assert {name: content for name, (content, _) in contents(out).items()} == before
    assert {name: when for name, (_, when) in contents(out).items() if name != "record.json"} == times


def test_a_path_written_differently_is_the_same(folders: tuple[str, ...], tmp_path: Path) -> None:
    options = (*SMALL, "--backbone", "lenet", "--steps", "1", "--out", tmp_path / "run")
    succeeds("fit", *folders, *options)
    source = f"{tmp_path}/target/../source/"
    assert "finished already" in succeeds("fit", "--source", source, *folders[2:], *options).stderr


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        (("--steps", "6"), "steps"),
        (("--seed", "1"), "seed"),
        (("--set", "trade_off=2"), "options"),
        (("--method", "mstn"), "method"),
        (("--lr", "0.5", "--bottleneck", "9"), "bottleneck, lr"),
    ],
)
def test_a_changed_option_is_refused(
    arrays: tuple[str, ...], tmp_path: Path, options: tuple[str, ...], changed: str
) -> None:
    command = ("fit", *arrays, *SMALL, "--steps", "5", "--method", "dann", "--out", tmp_path / "run")
    succeeds(*command)
    before = contents(tmp_path / "run")
    assert f"other settings ({changed}): name another --out, or use --overwrite" in refused(*command, *options)
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("side", ["source", "target"])
def test_changed_data_are_refused(arrays: tuple[str, ...], tmp_path: Path, side: str) -> None:
    command = ("fit", *arrays, *SMALL, "--steps", "5", "--out", tmp_path / "run")
    succeeds(*command)
    archive = tmp_path / f"{side}.npz"
    content = dict(np.load(archive))
    np.savez(archive, x=content["x"], y=np.roll(content["y"], 1))  # other labels make other scores
    assert "other data" in refused(*command)
    np.savez(archive, x=content["x"] + 1, y=content["y"])
    assert "other data" in refused(*command)
    np.savez(archive, **content)
    assert "finished already" in succeeds(*command).stderr


def test_overwrite_replaces_the_run_and_nothing_else(arrays: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ("fit", *arrays, *SMALL, "--method", "dann", "--out", out)
    succeeds(*command, "--steps", "5", "--compare")
    (out / "notes.txt").write_text("mine")
    (out / "source_only" / "notes.txt").write_text("mine too")
    succeeds(*command, "--steps", "6", "--overwrite")
    assert record(out)["steps"] == 6
    assert files(out) == FILES | {"notes.txt", "source_only/notes.txt"}
    succeeds(*command, "--steps", "7", "--overwrite", "--compare")
    assert record(out)["steps"] == record(out / "source_only")["steps"] == 7
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "source_only" / "notes.txt").read_text() == "mine too"


@pytest.mark.parametrize("mistake", [("--source", "gone"), ("--augment", "flip"), ("--tune", "all"), ("--steps", "0")])
@pytest.mark.parametrize("compare", [(), ("--compare",)])
def test_a_mistake_with_overwrite_deletes_nothing(
    arrays: tuple[str, ...], tmp_path: Path, mistake: tuple[str, str], compare: tuple[str, ...]
) -> None:
    command = ("fit", *arrays, *SMALL, "--steps", "2", "--out", tmp_path / "run", "--compare")
    succeeds(*command)
    before = contents(tmp_path / "run")
    refused(*command[:-1], *compare, *mistake, "--overwrite")
    assert contents(tmp_path / "run") == before


# --- seeds ---------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits_and_another_others(arrays: tuple[str, ...], tmp_path: Path) -> None:
    for name, seed in {"a": "1", "b": "1", "c": "2"}.items():
        fit(tmp_path / name, *arrays, *SMALL, "--steps", "8", "--seed", seed)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    for name in ("model.safetensors", "metrics.jsonl", "predictions.csv"):
        assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()


# --- kills ---------------------------------------------------------------------------------------------------------

PROCESS = """
import json, os, signal, sys, traceback
import torch
import acclimate.runs.run, acclimate.tensors
from acclimate.__main__ import main
from acclimate.training import Checkpoint

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background starts with it ignored

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def half_written(save, condition):
    def dying(tensors, path, **more):
        save(tensors, path, **more)
        if condition(more):
            os.truncate(path, path.stat().st_size // 2)
            path.with_name(".tmpXyZ123").touch()  # as safetensors names a file that it has not finished
            die()
    return dying

def child(folder, moment, args):
    os.dup2(os.open(folder + "/shown", os.O_CREAT | os.O_WRONLY), 1)
    os.dup2(os.open(folder + "/told", os.O_CREAT | os.O_WRONLY), 2)
    sys.argv[1:] = [*args, "--out", folder + "/run"]
    try:
        exec(moment, globals())
        main()
    except SystemExit as end:
        os._exit(end.code or 0)
    except BaseException:
        traceback.print_exc()
    os._exit(70)

ends = {}
for folder, moment in json.loads(sys.argv[1]).items():  # forked: importing takes longer than all the rest
    process = os.fork()
    if process == 0:
        child(folder, moment, sys.argv[2:])
    ends[folder] = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
print(json.dumps(ends))
"""
MOMENTS = {
    "as the run begins": """
def write_json(path, value):
    with acclimate.files.replacing(path) as half:
        half.write_text("{")
        die()
acclimate.runs.directory.write_json = write_json
""",
    "before the first checkpoint": """
save = Checkpoint.save
Checkpoint.save = lambda self, path: die()
""",
    "after a checkpoint": """
append = acclimate.runs.run.MetricsLog.append
def dying(self, line):
    append(self, line)
    if line.step == 17:
        die()
acclimate.runs.run.MetricsLog.append = dying
""",
    "while a checkpoint is written": """
def is_step_17(metadata):
    return json.loads(json.loads(metadata["acclimate"])["note"])["step"] == 17
acclimate.tensors.save_file = half_written(acclimate.tensors.save_file, lambda more: is_step_17(more["metadata"]))
""",
    "while the model is written": """
acclimate.tensors.save_file = half_written(acclimate.tensors.save_file, lambda more: more["metadata"] is None)
""",
    "before the checkpoint is deleted": """
acclimate.runs.directory.RunDirectory.tidy = lambda folder: die()
""",
    "interrupted": """
append = acclimate.runs.run.MetricsLog.append
def dying(self, line):
    append(self, line)
    if line.step == 17:
        os.kill(os.getpid(), signal.SIGINT)
acclimate.runs.run.MetricsLog.append = dying
""",
}
RESUMED_AT = {
    "as the run begins": [None],
    "before the first checkpoint": [None],
    "after a checkpoint": [16],
    "while a checkpoint is written": [16],
    "while the model is written": [30],
    "before the checkpoint is deleted": [None],  # the run was finished
    "interrupted": [16, 17],  # the signal may arrive a little later
}


class Killed(NamedTuple):
    """Runs that ended early, each in a folder of its own, one that did not, and their command."""

    folders: dict[str, Path]
    ends: dict[str, int]
    whole: Path
    command: tuple[str, ...]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    base = tmp_path_factory.mktemp("killed")
    source, target = vectors(base / "source.npz"), vectors(base / "target.npz", shift=0.5)
    command = ("--source", str(source), "--target", str(target), *SMALL, "--steps", "30")
    command = (*command, "--method", "wemnet", "--checkpoint-seconds", "0")
    folders = {moment: base / moment.replace(" ", "_") for moment in MOMENTS}
    for folder in folders.values():
        folder.mkdir()
    moments = json.dumps({str(folders[moment]): code for moment, code in MOMENTS.items()})
    code, printed = forks.run(PROCESS, moments, "fit", *command)
    assert code == 0
    ends = json.loads(printed)
    fit(base / "whole", *command)
    ends_of = {moment: ends[str(folder)] for moment, folder in folders.items()}
    return Killed(folders, ends_of, base / "whole", command)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_ended_early_goes_on_bit_for_bit(killed: Killed, moment: str) -> None:
    folder = killed.folders[moment]
    out = folder / "run"
    assert killed.ends[moment] == (130 if moment == "interrupted" else -signal.SIGKILL), (folder / "told").read_text()
    assert (out / "checkpoint").exists()
    assert (out / "record.json").exists() == (moment == "before the checkpoint is deleted")

    assert fit(out, *killed.command)["resumed_at"] in RESUMED_AT[moment]
    assert_same_run(out, killed.whole)
    assert {path.name for path in out.iterdir()} == FILES


def test_an_interrupt_is_answered_with_a_sentence(killed: Killed) -> None:
    folder = killed.folders["interrupted"]
    assert (folder / "shown").read_text() == ""
    *remarks, sentence = (folder / "told").read_text().splitlines()
    assert sentence == "Error: Interrupted: the same command, without --overwrite, goes on from the last checkpoint."
    assert not any("Traceback" in remark for remark in remarks)


def test_a_run_killed_from_outside_while_it_compares(arrays: tuple[str, ...], tmp_path: Path) -> None:
    command = (*arrays, *SMALL, "--steps", "100", "--compare", "--method", "dann")
    out, whole = tmp_path / "run", tmp_path / "whole"
    checkpoint = out / "source_only" / "checkpoint" / "last.safetensors"
    code = "from acclimate.__main__ import main; main()"
    fork = forks.Forked(code, "fit", *command, "--checkpoint-seconds", "0", "--out", out, "-q")
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and fork.process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)
    fork.process.kill()
    assert fork.wait()[0] == -signal.SIGKILL
    assert checkpoint.exists()
    assert not (out / "source_only" / "record.json").exists()

    assert fit(out, *command)["resumed_at"] is None
    assert 0 < record(out / "source_only")["resumed_at"] < 100
    compare = fit(whole, *command)["compare"]
    assert_same_run(out, whole)
    assert_same_run(out / "source_only", whole / "source_only")
    assert record(out)["compare"] == compare


@pytest.fixture
def _interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next training is interrupted after its third step, with a checkpoint of the second."""
    train = experiment.train

    def stops(method: Any, pair: Any, recipe: Any, resume: Checkpoint | None) -> Iterator[Step]:
        monkeypatch.setattr(experiment, "train", train)
        for progress in train(method, pair, recipe, resume):
            if progress.step == 3:
                raise KeyboardInterrupt
            yield progress

    monkeypatch.setattr(experiment, "train", stops)


@pytest.mark.usefixtures("_interrupted")
@pytest.mark.parametrize("method", [name for name in trained_alone() if not in_closed_form(name)])
def test_every_method_goes_on_bit_for_bit(method: str, tmp_path: Path) -> None:
    source, target = samples_for(method, tmp_path / "s.npz"), samples_for(method, tmp_path / "t.npz", shift=0.5)
    how = (*network(method), *SMALL, "--steps", "6", "--checkpoint-seconds", "0", "--accumulate", "2")
    command = ("--source", source, "--target", target, "--method", method, *how)
    assert acclimate("fit", *command, "--out", tmp_path / "run").exit_code == 130
    assert fit(tmp_path / "run", *command)["resumed_at"] == 2
    fit(tmp_path / "whole", *command)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.usefixtures("_interrupted")
def test_images_go_on_bit_for_bit(folders: tuple[str, ...], tmp_path: Path) -> None:
    options = ("--backbone", "lenet", "--tune", "all", "--augment", "crop+flip", "--steps", "6")
    command = (*folders, *SMALL, *options, "--checkpoint-seconds", "0")  # lenet has dropout
    assert acclimate("fit", *command, "--out", tmp_path / "run").exit_code == 130
    assert fit(tmp_path / "run", *command)["resumed_at"] == 2
    fit(tmp_path / "whole", *command)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.usefixtures("_interrupted")
def test_an_unfinished_run_is_not_mixed_with_another(arrays: tuple[str, ...], tmp_path: Path) -> None:
    command = ("fit", *arrays, *SMALL, "--steps", "6", "--checkpoint-seconds", "0", "--out", tmp_path / "run")
    assert acclimate(*command).exit_code == 130
    before = contents(tmp_path / "run")
    assert "other settings (seed)" in refused(*command, "--seed", "1")
    assert contents(tmp_path / "run") == before


@pytest.mark.usefixtures("_interrupted")
@pytest.mark.parametrize(
    ("damaged", "resumed_at", "told"),
    [
        (["last.safetensors"], 1, "the run goes on from the one before"),
        (["last.safetensors", "before.safetensors"], None, "the run begins anew"),
        (["run.json"], 2, ""),
        (["../skipped.csv"], 2, ""),  # its heading, which says nothing
        (["../metrics.jsonl"], None, "The log of the run's training is damaged, so it begins anew"),
    ],
)
def test_what_is_damaged_of_an_interrupted_run_changes_no_bit(
    arrays: tuple[str, ...], tmp_path: Path, damaged: list[str], resumed_at: int | None, told: str
) -> None:
    command = ("fit", *arrays, *SMALL, "--steps", "6", "--checkpoint-seconds", "0", "--out")
    assert acclimate(*command, tmp_path / "run").exit_code == 130
    for name in damaged:
        file = tmp_path / "run" / "checkpoint" / name
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    assert told in " ".join(succeeds(*command, tmp_path / "run").stderr.split())
    assert record(tmp_path / "run")["resumed_at"] == resumed_at
    succeeds(*command, tmp_path / "whole")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "predictions.csv", "metrics.jsonl", "skipped.csv"])
@pytest.mark.parametrize("damage", ["flipped", "empty", "deleted"])
def test_a_finished_run_is_whole_or_made_again(arrays: tuple[str, ...], tmp_path: Path, name: str, damage: str) -> None:
    command = ("fit", *arrays, *SMALL, "--steps", "2", "--no-report", "--out", tmp_path / "run")
    succeeds(*command)
    shutil.copytree(tmp_path / "run", tmp_path / "before")
    file = tmp_path / "run" / name
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes({"flipped": bytes(content), "empty": b"", "deleted": b""}[damage])
    if damage == "deleted":
        file.unlink()
    told = " ".join(succeeds(*command).stderr.split())
    assert "is missing. The run is made again." in told or "is damaged or was altered. The run is made again." in told
    assert_same_run(tmp_path / "run", tmp_path / "before")


# --- two at once ---------------------------------------------------------------------------------------------------


def test_the_same_command_twice_makes_one_run(arrays: tuple[str, ...], tmp_path: Path) -> None:
    """The second waits, says for whom, and reads what the first has made."""
    command = [
        sys.executable,
        "-m",
        "acclimate",
        "fit",
        *arrays,
        *SMALL,
        "--method",
        "dann",
        "--steps",
        "2",
        "--no-report",
        "--out",
    ]
    with alone(tmp_path / "run"):
        second = subprocess.Popen([*command, tmp_path / "run"], stderr=subprocess.PIPE, text=True)
        assert second.stderr is not None
        waiting = next(line for line in iter(second.stderr.readline, "") if "which began at" in line)
        assert f"Process {os.getpid()}, which" in waiting
        refusal = refused(
            "fit", *arrays, *SMALL, "--method", "dann", "--steps", "2", "--overwrite", "--out", tmp_path / "run"
        )
        assert refusal.startswith(f"Process {os.getpid()}, which began at ")
        assert not (tmp_path / "run" / "record.json").exists()
    assert second.wait(60) == 0
    second.stderr.close()
    assert files(tmp_path / "run") == FILES


# --- parts of a backbone -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(timm.create_model(TIMM).state_dict(), file)
    return file


@pytest.mark.parametrize(
    ("tune", "augment"),
    [("head", "none"), ("head", "flip"), ("top", "none"), ("top", "flip"), ("all", "crop+flip")],
)
def test_parts_of_a_pretrained_backbone(
    folders: tuple[str, ...], tmp_path: Path, weights: Path, tune: str, augment: str
) -> None:
    command = (*folders, *SMALL, "--backbone", TIMM, "--weights", weights, "--tune", tune, "--augment", augment)
    result = fit(tmp_path / "run", *command, "--steps", "3")
    assert result["model"]["tune"] == tune
    assert result["model"]["backbone"] == TIMM
    again = fit(tmp_path / "again", *command, "--steps", "3")
    assert again["scores"] == result["scores"]
    assert_same_run(tmp_path / "run", tmp_path / "again")


def test_augmentation_changes_what_is_trained(folders: tuple[str, ...], tmp_path: Path, weights: Path) -> None:
    command = (*folders, *SMALL, "--backbone", TIMM, "--weights", weights, "--steps", "3")
    for augment in ("none", "flip"):
        fit(tmp_path / augment, *command, "--tune", "head", "--augment", augment)
    logs = [(tmp_path / augment / "metrics.jsonl").read_bytes() for augment in ("none", "flip")]
    assert logs[0] != logs[1]


def test_images_are_squashed_on_request(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path / "cache"))
    for domain in ("source", "target"):
        for file in pictures(tmp_path / domain).rglob("*.png"):
            Image.open(file).resize((24, 12)).save(file)
    data = ("--source", tmp_path / "source", "--target", tmp_path / "target")
    command = (*data, *SMALL, "--backbone", TIMM, "--weights", weights, "--tune", "head", "--steps", "3")
    for resize, aspect in {"auto": "keep", "squash": "squash"}.items():
        fit(tmp_path / resize, *command, "--resize", resize)
        model = json.loads((tmp_path / resize / "model.json").read_text(encoding="utf-8"))
        assert model["preprocess"]["aspect"] == aspect
    auto, squash = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("auto", "squash"))
    assert auto != squash, "the cache takes features of the one for those of the other"
    assert "holds a run with other" in refused("fit", *command, "--out", tmp_path / "squash")


def test_other_weights_make_another_run(folders: tuple[str, ...], tmp_path: Path, weights: Path) -> None:
    file = shutil.copy(weights, tmp_path / "w.safetensors")
    command = ("fit", *folders, *SMALL, "--backbone", TIMM, "--weights", file, "--tune", "head", "--steps", "1")
    succeeds(*command, "--out", tmp_path / "run")
    torch.manual_seed(1)
    save_file(timm.create_model(TIMM).state_dict(), file)
    assert "holds a run with other data" in refused(*command, "--out", tmp_path / "run")


def test_auto_is_decided_by_the_backbone(folders: tuple[str, ...], tmp_path: Path, weights: Path) -> None:
    scratch = fit(tmp_path / "a", *folders, *SMALL, "--backbone", "lenet", "--steps", "1", "--device", "cpu")
    pretrained = fit(
        tmp_path / "b", *folders, *SMALL, "--backbone", TIMM, "--weights", weights, "--steps", "1", "--device", "cpu"
    )
    assert (scratch["model"]["tune"], pretrained["model"]["tune"]) == ("all", "head")
