"""The record of a run: it reads back, and whatever is wrong with it is told in a sentence."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from acclimate import schema
from acclimate.errors import DataError
from acclimate.files import write_json
from acclimate.runs.record import read_record, write_record
from mutations import Place, of_another_type, with_other_entries
from recorded import run_record
from tiny import acclimate, refused, succeeds, vectors

VALID: dict[str, Any] = json.loads(json.dumps(schema.as_json(run_record())))
del VALID[schema.CHECKSUM]  # a file without one is taken as it is


def read_back(folder: Path, content: object) -> str:
    """The sentence about a record of this content."""
    write_json(folder / "record.json", content)
    with pytest.raises(DataError) as error:
        read_record(folder / "record.json")
    sentence = str(error.value)
    assert sentence.startswith(f"{folder / 'record.json'} ")
    assert sentence.endswith(".")
    return sentence


# --- the file ------------------------------------------------------------------------------------------------------


def test_a_record_reads_back(tmp_path: Path) -> None:
    record = replace(run_record(), command=("fit", "--source", "\udcff Käse"))
    write_record(tmp_path / "record.json", record)
    assert read_record(tmp_path / "record.json") == record
    assert list(json.loads((tmp_path / "record.json").read_text()))[:2] == ["schema", "acclimate"]


def test_what_may_be_absent_is_null(tmp_path: Path) -> None:
    record = replace(run_record(), scores=None, compare=None, resumed_at=None)
    write_record(tmp_path / "record.json", record)
    assert json.loads((tmp_path / "record.json").read_text())["compare"] is None
    assert read_record(tmp_path / "record.json") == record


def test_settings_of_other_versions_are_read(tmp_path: Path) -> None:
    settings = {name: value for name, value in VALID["settings"].items() if name != "momentum"}
    write_json(tmp_path / "record.json", {**VALID, "settings": {**settings, "new": [1]}})
    assert read_record(tmp_path / "record.json").settings["new"] == [1]


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"schema": 0}, "is of schema 0, and this version of Acclimate reads schema 1: make the run again, with"),
        ({"schema": 2}, "is of schema 2, and this version of Acclimate reads schema 1: upgrade Acclimate, or make"),
        ({"steps": "1"}, "(the entry steps should be a whole number, not text): make the run again, with --overwrite"),
        ({"settings": {}}, "(the entry settings.method is missing)"),
        ({"settings": {**VALID["settings"], "lr": "x"}}, "(the entry settings.lr should be a number, not text)"),
        (
            {"model": {**VALID["model"], "classes": ["a", "b"]}},
            "(the classes of the scores are not those of the model)",
        ),
        ({"scores": {**VALID["scores"], "n": 7}}, "(in scores: the images of the classes are not n in all)"),
        (
            {"scores": {**VALID["scores"], "confusion": [[1]]}},
            "(in scores: the confusion matrix is not that of per_class)",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, entries: dict[str, Any], sentence: str) -> None:
    assert sentence in read_back(tmp_path, {**VALID, **entries})


def test_changes_of_other_classes_are_told(tmp_path: Path) -> None:
    changes = {**VALID["compare"]["changes"], "counts_after": [8]}
    sentence = read_back(tmp_path, {**VALID, "compare": {**VALID["compare"], "changes": changes}})
    assert "the changes are not those of the model's classes" in sentence


def test_a_record_that_is_not_there_is_told(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "gone"):
        with pytest.raises(DataError, match="holds no finished run: name the folder that a fit wrote with --out"):
            read_record(folder / "record.json")


in_one_folder = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@in_one_folder
@given(of_another_type(VALID))
def test_an_entry_of_another_type_is_told(tmp_path: Path, changed: tuple[Place, dict[str, Any]]) -> None:
    assert "is damaged or was altered (" in read_back(tmp_path, changed[1])


@in_one_folder
@given(with_other_entries(VALID))
def test_an_entry_too_few_or_too_many_is_told(tmp_path: Path, content: dict[str, Any]) -> None:
    sentence = read_back(tmp_path, content)
    assert "is damaged or was altered (" in sentence or "has no schema number" in sentence


@in_one_folder
@given(st.data())
def test_damaged_bytes_end_in_no_error_of_python(tmp_path: Path, data: st.DataObject) -> None:
    write_record(tmp_path / "record.json", run_record())
    content = bytearray((tmp_path / "record.json").read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at : at + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=4))
    (tmp_path / "record.json").write_bytes(content)
    with suppress(DataError):
        read_record(tmp_path / "record.json")


# --- the commands --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The command of a run that is finished: compared, and measured on test images."""
    folder = tmp_path_factory.mktemp("made")
    data = []
    for name, shift in {"source": 0.0, "target": 0.5, "test": 0.4}.items():
        data += [f"--{name}", str(vectors(folder / f"{name}.npz", shift=shift))]
    command = ("fit", *data, "--bottleneck", "8", "--steps", "2", "--method", "dann", "--compare", "-q", "--out")
    succeeds(*command, folder / "run")
    return (*command, str(folder / "run"))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_fit_and_report_tell_of_it(command: tuple[str, ...], data: st.DataObject) -> None:
    file = Path(command[-1]) / "record.json"
    content = file.read_bytes()
    _, changed = data.draw(of_another_type(json.loads(content)))
    try:
        write_json(file, changed)
        assert refused(*command).startswith(f"{file} is damaged or was altered (")
        assert refused("report", command[-1]).startswith(f"{file} is damaged or was altered (")
    finally:
        file.write_bytes(content)


def test_a_damaged_record_can_be_overwritten(command: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "run"
    succeeds(*command[:-1], out)
    record = out / "record.json"
    record.write_bytes(record.read_bytes()[:-2])
    assert "is damaged or was altered (it is not JSON): make the run again, with --overwrite" in refused(
        *command[:-1], out
    )
    succeeds(*command[:-1], out, "--overwrite")
    assert read_record(record).steps == 2


def test_the_baseline_s_files_are_told_of(command: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "run"
    succeeds(*command[:-1], out)
    baseline = out / "source_only"
    predictions = (baseline / "predictions.csv").read_bytes()
    (baseline / "predictions.csv").write_bytes(b"")
    told = " ".join(succeeds(*command[:-1], out).stderr.split())
    assert "predictions.csv is damaged or was altered. The run is made again." in told
    assert (baseline / "predictions.csv").read_bytes() == predictions
    (baseline / "record.json").write_text('{"identity": 0, "settings": 0, "schema": 1}')
    assert refused(*command[:-1], out).startswith(f"{baseline / 'record.json'} is damaged or was altered (")


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_run_that_goes_on_tells_of_a_damaged_note(command: tuple[str, ...], data: st.DataObject) -> None:
    """checkpoint/run.json, by which an unfinished run is known."""
    out = Path(command[-1])
    record = json.loads((out / "record.json").read_text())
    note = out / "checkpoint" / "run.json"
    valid = {"identity": record["identity"], "settings": record["settings"]}
    _, changed = data.draw(of_another_type(valid))
    note.parent.mkdir()
    (out / "record.json").rename(out / "kept.json")
    try:
        write_json(note, changed)
        assert refused(*command).startswith(f"{note} is damaged or was altered (")
        note.write_text('{"identity": "settings": ')
        assert refused(*command).startswith(f"{note} is damaged or was altered (it is not JSON): make the run again")
    finally:
        (out / "kept.json").rename(out / "record.json")
        note.unlink()
        note.parent.rmdir()


def test_a_report_of_damaged_metrics_is_refused(command: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert acclimate(*command[:-1], out).exit_code == 0
    metrics = out / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes().replace(b'"step": 2', b'"step": 1'))
    assert refused("report", out).startswith(f"{metrics} is damaged or was altered: make the run again")
