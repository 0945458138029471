"""The records of a bench: they read back, and whatever is wrong with one is told in a sentence."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acclimate import schema
from acclimate.bench.records import read_records, write_records
from acclimate.errors import DataError
from acclimate.files import write_jsonl
from acclimate.settings import Settings
from mutations import Place, of_another_type, with_other_entries
from recorded import bench_record
from tiny import acclimate, refused, succeeds, vectors

RESULTS = Path(__file__).parents[2] / "docs" / "results"

SETTINGS = {
    name: value for name, value in Settings("s", "t").as_dict().items() if name not in ("source", "target", "test")
}

RECORD = bench_record("ours", "A-W", 0, 0.5, baselines=("DANN",), options={"trade_off": 0.5}, settings=SETTINGS)

VALID: dict[str, Any] = json.loads(json.dumps(schema.as_json(RECORD)))
del VALID[schema.CHECKSUM]  # a file without one is taken as it is


def read_back(folder: Path, content: dict[str, Any]) -> str:
    """The sentence about a file whose second line is of this content."""
    write_jsonl(folder / "records.jsonl", [VALID, content])
    with pytest.raises(DataError) as error:
        read_records([folder])
    sentence = str(error.value)
    assert sentence.startswith(f"Line 2 of {folder / 'records.jsonl'} ")
    assert sentence.endswith("run the bench again, which writes its records anew.")
    return sentence


# --- the file ------------------------------------------------------------------------------------------------------


def test_records_read_back_byte_for_byte(tmp_path: Path) -> None:
    records = [
        RECORD,
        bench_record("ours", "A-W", 1, None),
        bench_record("Käse\udcff", "A-W", 1, None, status="failed", error="It diverged."),
    ]
    write_records(tmp_path / "records.jsonl", records)
    found = read_records([tmp_path])
    assert found == records
    write_records(tmp_path / "again.jsonl", found)
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "records.jsonl").read_bytes()
    assert list(VALID)[:3] == ["schema", "row", "baselines"]


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.jsonl")), ids=lambda file: file.name)
def test_the_records_of_the_pages_are_of_this_schema(file: Path, tmp_path: Path) -> None:
    write_records(tmp_path / "again.jsonl", read_records([file]))
    written, kept = (
        [json.loads(line) for line in path.read_text().splitlines()] for path in (tmp_path / "again.jsonl", file)
    )
    for record in (*written, *kept):
        record.pop(schema.CHECKSUM, None)
    assert written == kept


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"schema": 0}, "is of schema 0, and this version of Acclimate reads schema 1: run the bench again"),
        ({"schema": 2}, "is of schema 2, and this version of Acclimate reads schema 1: upgrade Acclimate, or run the"),
        ({"seed": "0"}, "(the entry seed should be a whole number, not text)"),
        ({"metrics": []}, "(the entry metrics should be a list of a length from 1 up)"),
        ({"metrics": ["speed"]}, "(the entry metrics[0] has a value that is none of its choices)"),
        ({"settings": {"steps": 1}}, "(the entry settings.batch_size is missing)"),
        ({"settings": {**SETTINGS, "steps": 1.5}}, "(the entry settings.steps should be a whole number, not a number)"),
        ({"status": "missing"}, "(the status missing does not go with error and trained)"),
        ({"error": "It diverged."}, "(the status done does not go with error and trained)"),
        (
            {"status": "missing", "trained": None},
            "(the status missing does not go with scores, domain_error and terms)",
        ),
        ({"scores": {**VALID["scores"], "per_class": {"a": [1, 2]}}}, "(the entry scores.per_class should be a list"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, entries: dict[str, Any], sentence: str) -> None:
    assert sentence in read_back(tmp_path, {**VALID, **entries})


def test_settings_of_other_versions_are_read(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "records.jsonl", [{**VALID, "settings": {"steps": 1, "batch_size": 2, "new": [1]}}])
    (record,) = read_records([tmp_path])
    assert record.settings["new"] == [1]


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
    write_records(tmp_path / "records.jsonl", [RECORD, bench_record("ours", "A-W", 1, 0.75)])
    content = bytearray((tmp_path / "records.jsonl").read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at : at + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=4))
    (tmp_path / "records.jsonl").write_bytes(content)
    with suppress(DataError):
        read_records([tmp_path])


# --- the commands --------------------------------------------------------------------------------------------------

GRID = """
seeds = [0]
data = { tasks = ["S-T"], domains = { S = "source.npz", T = "target.npz" } }
settings = { steps = 2, batch_size = 6, bottleneck = 8 }
row = [{ name = "source-only" }, { name = "DANN" }]
"""


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid's file, beside the folder `out` of its bench."""
    folder = tmp_path_factory.mktemp("grid")
    vectors(folder / "source.npz")
    vectors(folder / "target.npz", shift=0.5)
    (folder / "grid.toml").write_text(GRID, encoding="utf-8")
    succeeds("bench", folder / "grid.toml", "--out", folder / "out", "-q")
    return folder / "grid.toml"


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_table_and_report_tell_of_a_damaged_record(grid: Path, data: st.DataObject) -> None:
    file = grid.parent / "out" / "records.jsonl"
    content = file.read_bytes()
    first, second = map(json.loads, content.splitlines())
    _, changed = data.draw(of_another_type(second))
    try:
        write_jsonl(file, [first, changed])
        for command in (("table", file.parent), ("report", file.parent), ("table", file, "--format", "csv")):
            assert refused(*command).startswith(f"Line 2 of {file} is damaged or was altered (")
    finally:
        file.write_bytes(content)


@pytest.mark.parametrize(("name", "old", "new"), [("record.json", b"0.", b"1."), ("predictions.csv", b"0.", b"1.")])
def test_a_damaged_run_of_a_bench_is_made_again(grid: Path, name: str, old: bytes, new: bytes) -> None:
    out = grid.parent / "out"
    file = next((out / "runs").glob("dann-*")) / name
    before, records = file.read_bytes(), (out / "records.jsonl").read_bytes()
    file.write_bytes(before.replace(old, new, 1))
    succeeds("bench", grid, "--out", out, "-q")
    assert (out / "records.jsonl").read_bytes() == records
    assert (file.read_bytes() == before) or name == "record.json"  # which tells how long it took


@pytest.mark.parametrize("note", [b"", b"\0\0", b"{}", b'{"error": 1}', b'{"error": "It diverged."}'])
def test_a_note_of_a_failure_keeps_no_run_from_being_made(grid: Path, tmp_path: Path, note: bytes) -> None:
    succeeds("bench", grid, "--out", tmp_path, "-q", "--methods", "DANN")
    whole = (tmp_path / "records.jsonl").read_bytes()
    (run,) = (tmp_path / "runs").iterdir()
    (run / "record.json").unlink()
    (run / "failed.json").write_bytes(note)
    succeeds("bench", grid, "--out", tmp_path, "-q", "--methods", "DANN")
    assert not (run / "failed.json").exists()
    assert (tmp_path / "records.jsonl").read_bytes() == whole


def test_records_of_older_versions_are_told_of(grid: Path) -> None:
    file = grid.parent / "out" / "records.jsonl"
    content = file.read_bytes()
    try:
        file.write_bytes(content.replace(b'"schema": 1, ', b""))
        assert refused("table", file).startswith(f"Line 1 of {file} has no schema number, where this version of")
        assert acclimate("bench", grid, "--out", file.parent, "-q").exit_code == 0
        assert file.read_bytes() == content
    finally:
        file.write_bytes(content)
