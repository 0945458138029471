"""Trackers get the stream that metrics.jsonl has."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from acclimate.runs import run as experiment
from acclimate.training import Checkpoint, Step
from tiny import acclimate, refused, succeeds, vectors

SMALL = ("--bottleneck", "8", "--batch-size", "6", "--method", "dann", "--steps", "6", "--set", "hidden=8")


@pytest.fixture
def command(tmp_path: Path) -> tuple[str, ...]:
    source, target = vectors(tmp_path / "source.npz"), vectors(tmp_path / "target.npz", shift=0.5)
    return "fit", "--source", str(source), "--target", str(target), "--out", str(tmp_path / "run"), *SMALL


def logged(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{"step": line["step"], "lr": line["lr"], **line["terms"]} for line in lines]


def tensorboard_curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = module.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def assert_curves_are_the_log(curves: dict[str, list[tuple[int, float]]], run: Path) -> None:
    rows = logged(run)
    assert set(curves) == {"lr", "classification", "adversarial"}
    for name, points in curves.items():
        assert [step for step, _ in points] == [row["step"] for row in rows]
        assert [value for _, value in points] == pytest.approx([row[name] for row in rows], rel=1e-6)


def test_tensorboard_shows_what_is_logged(command: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    succeeds(*command, "--tracker", "tensorboard")
    assert_curves_are_the_log(tensorboard_curves(tmp_path / "run"), tmp_path / "run")


def test_a_run_that_goes_on_has_each_step_once(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    train = experiment.train

    def stops(method: Any, pair: Any, recipe: Any, resume: Checkpoint | None) -> Any:
        progress: Step
        for progress in train(method, pair, recipe, resume):
            yield progress
            if progress.step == 4 and resume is None:
                raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "train", stops)
    tracked = (*command, "--tracker", "tensorboard", "--checkpoint-seconds", "0")
    assert acclimate(*tracked).exit_code == 130
    succeeds(*tracked)
    assert_curves_are_the_log(tensorboard_curves(tmp_path / "run"), tmp_path / "run")


def test_a_tracker_changes_no_result_and_not_which_run_it_is(command: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    succeeds(*command)
    again = succeeds(*command, "--tracker", "tensorboard")
    assert "is finished already" in again.stderr
    other = [str(tmp_path / "other") if part == str(tmp_path / "run") else part for part in command]
    succeeds(*other, "--tracker", "tensorboard")
    for name in ("model.safetensors", "predictions.csv", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    assert (tmp_path / "other" / "tensorboard").is_dir()
    succeeds(*other, "--overwrite")
    assert not (tmp_path / "other" / "tensorboard").exists()


class Recorder:
    """A stand-in for MLflow and for Weights & Biases, as far as they are used."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.started: dict[str, Any] = {}
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.ended = False

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        self.ended = True

    # Weights & Biases
    def init(self, *, config: dict[str, Any], **started: Any) -> Recorder:
        self.settings, self.started = config, started
        return self

    def log(self, values: dict[str, float], *, step: int) -> None:
        self.rows.append((step, values))

    # MLflow
    def search_runs(self, *, filter_string: str, output_format: str) -> list[Any]:
        known = [SimpleNamespace(info=SimpleNamespace(run_id="known"))]
        return known if self.started and self.started["tags"]["acclimate.identity"] in filter_string else []

    def start_run(self, **started: Any) -> Recorder:
        self.started = started
        return self

    def log_params(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def log_metrics(self, values: dict[str, float], *, step: int) -> None:
        self.rows.append((step, values))


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_the_others_get_the_same(
    name: str, command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, name, recorder)
    succeeds(*command, "--tracker", name)
    rows = logged(tmp_path / "run")
    wanted = [(row["step"], {k: v for k, v in row.items() if k not in ("step", "stage")}) for row in rows]
    assert recorder.rows == wanted
    assert recorder.settings["method"] == "dann"
    assert recorder.settings["lr"] == 0.01
    assert recorder.ended
    identity = json.loads((tmp_path / "run" / "record.json").read_text())["identity"]
    if name == "wandb":
        assert recorder.started["id"] == identity[:32]
    else:
        assert recorder.started["run_id"] is None
        succeeds(*command, "--tracker", name, "--overwrite")
        assert recorder.started["run_id"] == "known"


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused_at_once(
    name: str, command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert refused(*command, "--tracker", name) == (
        f"--tracker {name} needs a package: install it with `pip install {name}`."
    )
    assert not (tmp_path / "run").exists()
