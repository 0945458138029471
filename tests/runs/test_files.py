"""The files of a run: whatever a name is, they read back, and what is damaged is told in a sentence."""

from __future__ import annotations

import csv
import json
import math
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acclimate.errors import DataError
from acclimate.runs.files import (
    Metrics,
    MetricsLog,
    read_predictions,
    read_skipped,
    write_predictions,
    write_skipped,
)
from acclimate.runs.masks import pack_masks

# Whatever a disk, a list or an archive can hold: any text, and any bytes as Python reads them from a file system.
nasty = st.text() | st.binary().map(lambda name: name.decode("utf-8", "surrogateescape"))

files = settings(max_examples=30)  # each writes a file and waits for the disk


def read_csv(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.reader(file))


# --- predictions and skipped images --------------------------------------------------------------------------------


def test_predictions_file(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    write_predictions(path, ["b.png", "a,1.png"], np.array([[0.25, 0.75], [2 / 3, 1 / 3]]), ["path", "=dog()"])
    assert path.read_bytes().decode() == (
        "path,predicted,confidence,path,=dog()\r\n"
        "b.png,=dog(),0.750000,0.250000,0.750000\r\n"
        '"a,1.png",path,0.666667,0.666667,0.333333\r\n'
    )


@files
@given(st.lists(nasty, min_size=1, max_size=5), st.lists(nasty, min_size=2, max_size=4))
def test_predictions_with_nasty_names_read_back(names: list[str], classes: list[str]) -> None:
    rng = np.random.default_rng(len(names))
    probabilities = rng.dirichlet(np.ones(len(classes)), len(names))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.csv"
        write_predictions(path, names, probabilities, classes)
        header, *rows = read_csv(path)
        read = read_predictions(path, len(names), len(classes))
        assert read.names == tuple(names)
        assert np.allclose(read.probabilities, probabilities, rtol=0, atol=5.1e-7)
    assert header == ["path", "predicted", "confidence", *classes]
    assert [row[0] for row in rows] == names
    assert [row[1] for row in rows] == [classes[k] for k in probabilities.argmax(1)]
    written = np.array([row[2:] for row in rows], dtype=float)
    assert np.allclose(written[:, 0], probabilities.max(1), rtol=0, atol=5.1e-7)
    assert np.allclose(written[:, 1:], probabilities, rtol=0, atol=5.1e-7)


def test_predictions_without_their_names_are_refused_and_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        write_predictions(tmp_path / "p.csv", ["a"], np.eye(2), ["x", "y"])
    assert list(tmp_path.iterdir()) == []


@files
@given(st.lists(st.tuples(nasty, nasty), max_size=4))
def test_skipped_file_reads_back(rows: list[tuple[str, str]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "skipped.csv"
        write_skipped(path, rows)
        assert [tuple(row) for row in read_csv(path)] == [("path", "reason"), *rows]
        assert read_skipped(path) == rows


def test_a_file_is_replaced_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "skipped.csv"
    write_skipped(path, [("a.png", "truncated")])
    before = path.read_bytes()

    def rows():  # type: ignore[no-untyped-def]
        yield "b.png", "truncated"
        assert len(list(tmp_path.iterdir())) == 2  # the new file grows beside the old one, in the same folder
        assert path.read_bytes() == before
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_skipped(path, rows())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_tables_that_are_damaged_are_told_of(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    write_predictions(path, ["a", "b"], np.eye(2), ["x", "y"])
    whole = path.read_text()
    for damaged in ("", whole[:-9], whole[:-6] + "nan\n", whole + "\n", whole.replace("0.000000", "0.00\0000")):
        path.write_text(damaged)
        with pytest.raises(DataError, match=r"predictions.csv is damaged or was altered: make the run again, with"):
            read_predictions(path, 2, 2)
    path.unlink()
    with pytest.raises(DataError, match=r"predictions.csv is missing: make the run again"):
        read_predictions(path, 2, 2)
    path = tmp_path / "skipped.csv"
    for damaged in ("", "path,reason\r\na.png\r\n"):
        path.write_text(damaged)
        with pytest.raises(DataError, match=r"skipped.csv is damaged or was altered: make the run again"):
            read_skipped(path)


# --- metrics -------------------------------------------------------------------------------------------------------


def line(step: int, loss: float = 0.5) -> Metrics:
    masks = pack_masks({"class": torch.ones(2, 9, dtype=torch.bool)})
    return Metrics(step=step, stage="adapt", lr=0.01, terms={"loss": loss}, masks=masks)


def log_of(path: Path, steps: int) -> MetricsLog:
    log = MetricsLog(path)
    for step in range(1, steps + 1):
        log.append(line(step))
    return log


def test_metrics_grow_line_by_line(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert log.read() == []
    log.append(line(1))
    written = json.loads((tmp_path / "metrics.jsonl").read_text())
    del written["checksum"]
    assert written == {
        "step": 1,
        "stage": "adapt",
        "lr": 0.01,
        "terms": {"loss": 0.5},
        "masks": {"class": {"width": 9, "rows": ["ff80", "ff80"]}},
    }
    log.append(line(2, 0.25))
    assert MetricsLog(tmp_path / "metrics.jsonl").read() == [line(1), line(2, 0.25)]
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.append(line(3, math.nan))
    assert len(log.read()) == 2


@pytest.mark.parametrize("half", [b"", b'{"step": 6', '{"step": 6, "stage": "Käse'.encode()[:-3]])
def test_metrics_of_a_resumed_run(tmp_path: Path, half: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    log_of(path, 5)
    path.write_bytes(path.read_bytes() + half)
    assert [row.step for row in MetricsLog(path).read()] == [1, 2, 3, 4, 5]
    assert path.read_bytes().endswith(half)  # reading repairs nothing: the run may be writing

    resumed = MetricsLog(path, keep_until=3)
    resumed.append(line(4, 9.0))
    assert resumed.read() == [line(1), line(2), line(3), line(4, 9.0)]
    assert MetricsLog(path, keep_until=-1).read() == []


NULS = b"\0" * 30 + b"\n"  # what a file system may leave of lines that were not yet on the disk when the power failed


def test_what_a_crash_left_behind_the_checkpoint_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log_of(path, 5)
    path.write_bytes(path.read_bytes() + NULS)
    with pytest.raises(
        DataError, match=r"^Line 6 of .*metrics.jsonl is damaged or was altered \(it is not JSON\): delete"
    ):
        MetricsLog(path).read()
    assert MetricsLog(path, keep_until=4).read() == [line(step) for step in (1, 2, 3, 4)]


def test_a_damaged_line_that_a_run_would_keep_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log_of(path, 5)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], NULS, *lines[3:]]))
    sentence = r"^Line 3 of .* delete that line, or make the run again, with --overwrite or in a new folder\.$"
    with pytest.raises(DataError, match=sentence):
        MetricsLog(path, keep_until=4)
    assert path.read_bytes().count(b"\n") == 5  # as it was
    assert MetricsLog(path, keep_until=-1).read() == []


@files
@given(st.data())
def test_no_damage_to_the_metrics_ends_in_an_error_of_python(data: st.DataObject) -> None:
    """Any bytes of a line are flipped or overwritten: it reads, or a sentence tells which line does not."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        log_of(path, 3)
        content = bytearray(path.read_bytes())
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(1, 8))] = data.draw(st.binary(min_size=1, max_size=8))
        path.write_bytes(content)
        for read in (lambda: MetricsLog(path).read(), lambda: MetricsLog(path, keep_until=2).read()):
            with suppress(DataError):
                read()
