"""Text from strangers steers no terminal, and is no formula in a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from acclimate.data.read import read_target
from acclimate.evaluation.labels import NONE, Row, Todo, read_labels, write_labels
from acclimate.screen import Screen
from acclimate.text import as_text, from_text, visible, visible_lines
from tiny import acclimate, pictures, refused, succeeds

NAMES = st.text(st.sampled_from("'=+-@\t\ra1"), max_size=6)


@given(NAMES)
def test_no_cell_is_a_formula_and_each_can_be_read_back(name: str) -> None:
    assert as_text(name)[:1] not in tuple("=+-@\t\r")
    assert from_text(as_text(name)) == name


def test_ordinary_cells_are_as_they_were() -> None:
    for name in ("a/b.png", "0.png", "'quoted'.png", "", "a=1", "don't"):
        assert as_text(name) == name == from_text(name)
    assert from_text("=1+1") == "=1+1"  # nobody has marked it


@given(st.text())
def test_what_is_visible_moves_no_cursor(text: str) -> None:
    assert visible(text).isprintable()
    assert all(line.isprintable() for line in visible_lines(text).split("\n"))


def test_lines_keep_their_ends() -> None:
    assert visible_lines("a,b\r\nc\x1b[2J\r\n") == "a,b\nc\\x1b[2J\n"


def rows(text: str) -> Sequence[Sequence[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("names")
    source, target = pictures(folder / "s", ("-1", "1")), folder / "t"
    target.mkdir()
    for number, name in enumerate(("=1+1.png", "'=2.png", "plain.png")):
        Image.new("RGB", (12, 12), (40 * number, 0, 0)).save(target / name)
    ends = ("--source", source, "--target", target, "--backbone", "lenet", "--tune", "all")
    succeeds("fit", *ends, "--method", "source_only", "--steps", "1", "--batch-size", "2", "--out", folder / "run")
    return folder


def test_predictions_have_names_as_they_are_unless_a_spreadsheet_is_to_read_them(run: Path) -> None:
    plain = rows(succeeds("predict", run / "run", run / "t").stdout)
    guarded = rows(succeeds("predict", run / "run", run / "t", "--escape-formulas").stdout)
    assert plain[0] == ["path", "predicted", "confidence", "-1", "1"]
    assert guarded[0] == ["path", "predicted", "confidence", "'-1", "1"]
    assert sorted(row[0] for row in plain[1:]) == ["'=2.png", "=1+1.png", "plain.png"]
    assert sorted(row[0] for row in guarded[1:]) == ["''=2.png", "'=1+1.png", "plain.png"]
    assert {row[1] for row in guarded[1:]} <= {"'-1", "1"}


@pytest.mark.parametrize("how", [(), ("--escape-formulas",)])
def test_both_can_be_read_back_as_a_list(run: Path, how: tuple[str, ...]) -> None:
    out = run / "t" / "list.csv"
    succeeds("predict", run / "run", run / "t", "--out", out, *how)
    assert sorted(read_target(out).names) == ["'=2.png", "=1+1.png", "plain.png"]


def test_only_a_csv_has_formulas(run: Path) -> None:
    sentence = refused("predict", run / "run", run / "t", "--escape-formulas", "--format", "jsonl")
    assert sentence == "--escape-formulas is for a CSV: leave it out, or choose --format csv."


def test_the_file_for_labels_holds_no_formula_and_is_read_back(tmp_path: Path) -> None:
    todo = Todo("accuracy", "0" * 16, tuple(Row(name, 0, 2.0, "-1") for name in ("=1.png", "'=2.png", "a.png")))
    path = tmp_path / "labels.csv"
    write_labels(path, todo)
    cells = [cell for row in rows(path.read_text())[2:] for cell in row]
    assert not [cell for cell in cells if cell[:1] in tuple("=+-@\t\r")]
    assert sorted(read_labels(path).rows) == sorted(todo.rows)
    assert as_text(NONE) == NONE


@pytest.mark.parametrize("terminal", [True, False])
def test_lines_for_other_programs_are_escaped_on_a_terminal_alone(
    terminal: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Screen()
    screen.stdout._force_terminal = terminal
    screen.write("a,\x1b]0;b\n")
    assert capsys.readouterr().out == ("a,\\x1b]0;b\n" if terminal else "a,\x1b]0;b\n")


@pytest.mark.parametrize(
    "args",
    [
        ["NAME"],
        ["fit", "NAME"],
        ["fit", "--NAME"],
        ["fit", "--source", "NAME", "--target", "t", "--out", "OUT"],
        ["fit", "--source", "s", "--target", "t", "--out", "OUT", "--seed", "NAME"],
        ["fit", "--source", "s", "--target", "t", "--out", "OUT", "--set", "NAME"],
        ["fit", "--source", "s", "--target", "t", "--out", "OUT", "--tune", "NAME"],
        ["predict", "NAME", "NAME"],
        ["evaluate", "NAME", "--labels", "NAME"],
        ["table", "NAME"],
        ["methods", "NAME"],
        ["data", "check", "office31", "--root", "NAME"],
        ["cache", "NAME"],
    ],
)
def test_no_option_reaches_the_terminal_as_it_is(args: list[str], tmp_path: Path) -> None:
    name = "x\x1b]0;evil\x07\x9b2J"
    result = acclimate(*(arg.replace("NAME", name).replace("OUT", str(tmp_path / "out")) for arg in args))
    assert result.exit_code == 2
    assert not set(result.output) & set("\x1b\x07\x9b")
