"""What a report says of how far to trust a run: the verdict, the estimate, the members, and what to look at first."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from msgspec import structs

from acclimate.report import charts, doubts, words
from acclimate.report import page as report
from acclimate.report import run as run_read
from acclimate.runs.record import FindingRecord, RunRecord, Trust, Verdict, read_record, write_record
from browser import Browser
from pages import EVIL, NAMES, Page, table
from recorded import run_record, trust
from tiny import pictures, succeeds, vectors

pytestmark = pytest.mark.skipif(os.name == "nt", reason="files of such names cannot be made there")

SMALL = ("--method", "consensus", "--bottleneck", "8", "--batch-size", "6", "--steps", "20", "--jobs", "1")
LENET = ("--backbone", "lenet", "--members", "source_only,DANN,JAN", *SMALL)
MEMBERS = ("source-only", "GFK", "JAN", "CDAN+E", "WEMNet on MSTN", "CRST")


def finding(level: str, sentence: str) -> FindingRecord:
    return FindingRecord(check="collapse", level=level, sentence=sentence, figures={})  # type: ignore[arg-type]


BOUND = FindingRecord(check="bound", level="fact", sentence="It changed 25.0 %.", figures={"share_changed": 0.25})
WARNED = structs.replace(
    trust(),
    verdict="look before you use it",
    level="warning",
    findings=(BOUND, finding("note", "A <b>note</b>."), finding("warning", "A <i>warning</i>.")),
)


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A consensus on images without labels, whose names and classes look like markup."""
    folder = tmp_path_factory.mktemp("unlabelled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCLIMATE_CACHE", str(folder / "cache"))
        source, target = table(folder / "s", shade=0), table(folder / "t", shade=20, n=9, labelled=False)
        succeeds("fit", "--source", source, "--target", target, "--out", folder / "run", "--report", *LENET)
        yield folder / "run"


@pytest.fixture(scope="module")
def page(unlabelled: Path) -> Page:
    return Page(unlabelled / "report.html")


def headline(page: Page) -> str:
    return " ".join(re.sub("<[^>]*>", " ", page.source.split("<h1")[1].split("</h1>")[0]).split()).partition("> ")[2]


# --- what is said --------------------------------------------------------------------------------------------------


def test_the_verdict_and_the_estimate_are_the_headline(unlabelled: Path, page: Page) -> None:
    told = read_record(unlabelled / "record.json").trust
    assert told is not None
    assert told.estimate is not None
    value, low, high = (f"{100 * x:.0f} %" for x in (told.estimate.value, told.estimate.low, told.estimate.high))
    said = headline(page)
    assert told.verdict.capitalize() in said
    assert f"Estimated without labels: about {value}" in said
    assert said.endswith(f"range {low.removesuffix(' %')} to {high}")
    assert len(re.findall(r"\d+ %", said)) == 2  # the estimate and the end of its range, and no other share
    assert "measured on PACS and on digits" in page.text
    assert "It was measured for all of the default members, which these are not." in page.text


def test_warnings_come_before_notes_and_both_before_all_else(unlabelled: Path, tmp_path: Path) -> None:
    page = Page(rewritten(unlabelled, tmp_path, WARNED))
    assert page.text.index("Look before you use it") < page.text.index("Warning A <i>warning</i>.")
    assert page.text.index("Warning A <i>warning</i>.") < page.text.index("Note A <b>note</b>.")
    assert page.text.index("Note A <b>note</b>.") < page.text.index("How far to trust it")
    assert "It changed 25.0 %." in page.text
    assert not {tag for tag, _ in page.elements} & {"i"}


def rewritten(run: Path, out: Path, told: Trust | None) -> Path:
    """The report of a run whose record says something else of how far to trust it."""
    record = read_record(run / "record.json")
    links = {path.name: path for path in run.iterdir() if path.name not in ("record.json", "report.html")}
    for name, path in links.items():
        (out / name).symlink_to(path)
    if told is not None:
        names = dict(zip(trust().shares, record.model.classes, strict=True))
        told = structs.replace(told, shares=tuple(structs.replace(s, name=name) for s, name in names.items()))
        told = structs.replace(told, members=tuple(m for m in told.members if m.failed or "JAN" in m.name))
    write_record(out / "record.json", structs.replace(record, trust=told))
    return report.write(out).path


def test_a_member_that_diverged_is_told(unlabelled: Path, tmp_path: Path) -> None:
    assert "CRST No vote. Training diverged." in Page(rewritten(unlabelled, tmp_path, WARNED)).text


def test_a_run_that_nobody_checked_says_so(unlabelled: Path, tmp_path: Path) -> None:
    page = Page(rewritten(unlabelled, tmp_path, None))
    assert headline(page) == "27 images of the target are classified"
    assert "nobody has checked this run for signs of harm" in page.text


@pytest.mark.parametrize("verdict", get_args(Verdict))
def test_every_verdict_is_words(unlabelled: Path, tmp_path: Path, verdict: str) -> None:
    page = Page(rewritten(unlabelled, tmp_path, structs.replace(trust(), verdict=verdict, estimate=None)))
    assert headline(page).endswith(verdict.capitalize())
    marks = [attrs for _, attrs in page.elements if attrs.get("class") == "mark"]
    assert [mark["aria-hidden"] for mark in marks] == ["true"]  # a screen reader reads the words


def test_with_labels_the_accuracy_is_the_headline_and_the_estimate_a_check(tmp_path: Path) -> None:
    source, target = vectors(tmp_path / "s.npz", n=60), vectors(tmp_path / "t.npz", shift=0.5, n=60)
    run = tmp_path / "run"
    succeeds("fit", "--source", source, "--target", target, "--out", run, "--report", *SMALL)
    page, record = Page(run / "report.html"), read_record(run / "record.json")
    assert record.scores is not None
    assert record.trust is not None
    assert headline(page).startswith(f"{100 * record.scores.accuracy:.1f} %")
    assert f"Verdict without labels {record.trust.verdict.capitalize()}" in page.text
    assert "Estimated without labels, as a check" in page.text
    assert "points too" in page.text
    best = max(member.accuracy or 0.0 for member in record.trust.members)
    assert f"best member {100 * next(m.agreement for m in record.trust.members if m.accuracy == best):.1f}" in page.text
    assert f"The result {100 * record.scores.accuracy:.1f}" in page.text
    assert "True" in json.loads(page.data["list-data"])["headings"]
    assert not page.attributes("src")  # vectors cannot be looked at
    for name in MEMBERS:
        assert name in page.text
    assert "acclimate label" not in page.text
    assert "default members, which" not in page.text


def test_names_and_classes_stay_text(page: Page) -> None:
    for name in (*NAMES, EVIL):
        assert name in page.text
    assert not [attrs for _, attrs in page.elements if any(name.startswith("on") for name in attrs)]
    for data in page.data.values():
        assert "<" not in data


# --- the lists -----------------------------------------------------------------------------------------------------


def read(run: Path) -> tuple[run_read.Run, doubts.Section]:
    finished = run_read.Run.read(run)
    return finished, doubts.doubts(finished, run_read.read_votes(finished, []), None)


def test_every_image_is_listed_with_what_each_member_says(unlabelled: Path, page: Page) -> None:
    finished, section = read(unlabelled)
    assert section["headings"] == ["Predicted", "Confidence %", "Agree %", "source_only", "DANN", "JAN"]
    assert json.loads(page.data["list-data"])["rows"] == section["rows"]
    with (unlabelled / "predictions.csv").open(newline="") as file:
        written = sorted(csv.DictReader(file), key=lambda row: (float(row["reliability"]), float(row["confidence"])))
    assert [row[0] for row in section["rows"]] == [words.shown(row["path"]) for row in written]
    for folder, column in (("source_only", 4), ("dann", 5), ("jan", 6)):
        with (unlabelled / "members" / folder / "predictions.csv").open(newline="") as file:
            said = {words.shown(row["path"]): row["predicted"] for row in csv.DictReader(file)}
        assert [finished.classes[row[column]] for row in section["rows"]] == [said[row[0]] for row in section["rows"]]


def test_without_the_members_folders_the_rest_is_shown(unlabelled: Path, tmp_path: Path) -> None:
    path = rewritten(unlabelled, tmp_path, read_trust(unlabelled, "members/gone"))
    page = Page(path)
    assert "What each member says of each image is not shown" in page.text
    assert json.loads(page.data["list-data"])["headings"] == ["Predicted", "Confidence %", "Agree %", "Source-only"]


def read_trust(run: Path, folder: str) -> Trust:
    """What is said of a run, whose members lie in another folder."""
    told = read_record(run / "record.json").trust
    assert told is not None
    return structs.replace(told, members=tuple(structs.replace(m, folder=folder) for m in told.members))


def of(record: RunRecord, after: np.ndarray, reliability: np.ndarray | None = None) -> run_read.Run:
    names = tuple(f"{i}.png" for i in range(len(after)))
    return run_read.Run(Path(), record, names, after, None, [], [], reliability)


def test_the_least_agreed_on_come_first_and_then_the_least_confident() -> None:
    after = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8]])
    record = run_record(("a", "b"))
    assert of(record, after).doubtful.tolist() == [1, 2, 3, 0]
    assert of(record, after, np.array([0.5, 1.0, 1.0, 0.5])).doubtful.tolist() == [3, 0, 1, 2]


def test_a_list_has_an_end() -> None:
    n = doubts.LISTED + 10
    section = doubts.doubts(of(run_record(("a", "b")), np.tile([0.25, 0.75], (n, 1))), {}, None)
    assert (section["all"], len(section["rows"])) == (n, doubts.LISTED)
    assert section["rows"][0] == ["0.png", 1, "75.0"]


def test_members_are_sorted_and_the_best_is_marked_where_labels_tell() -> None:
    record = run_record()
    told = record.trust
    assert told is not None
    first, second, failed = told.members
    told = structs.replace(told, members=(failed, first, structs.replace(second, accuracy=0.9)))
    table = charts.members(of(structs.replace(record, trust=told), np.eye(3)))
    assert table is not None
    assert [(row["member"].name, row["best"]) for row in table["rows"]] == [
        ("JAN", True),
        ("source-only", False),
        ("CRST", False),
    ]
    blind = tuple(structs.replace(member, accuracy=None) for member in told.members)
    table = charts.members(of(structs.replace(record, trust=structs.replace(told, members=blind)), np.eye(3)))
    assert table is not None
    assert [row["best"] for row in table["rows"]] == [False] * 3
    assert [row["member"].name for row in table["rows"]] == ["source-only", "JAN", "CRST"]
    assert charts.members(of(structs.replace(record, trust=None), np.eye(3))) is None


def test_a_network_from_scratch_of_labelled_images(tmp_path: Path) -> None:
    run = tmp_path / "run"
    pictures(tmp_path / "s", n=6), pictures(tmp_path / "t", n=6, shade=20)
    result = succeeds("fit", "--source", tmp_path / "s", "--target", tmp_path / "t", "--out", run, "--report", *LENET)
    assert "Warning: " not in result.stderr
    page = Page(run / "report.html")
    assert {"members", "doubts", "domains", "images", "details"} <= {*page.attributes("id")}
    assert "members: " in page.text


# --- in a browser --------------------------------------------------------------------------------------------------


ROWS = "[...document.querySelectorAll('#list-rows tr')].map((row) => row.cells[0].textContent)"
CUT = """[...document.querySelectorAll("main *")].filter((e) => {
    const box = e.getBoundingClientRect();
    return box.width > 0 && box.right > innerWidth + 1 && !e.closest(".unseen, svg, .confusion");
}).length"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_opens_without_a_complaint(
    browser: Browser, unlabelled: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    page = rewritten(unlabelled, tmp_path, WARNED)
    browser.open(page, width=width, scheme=scheme)
    assert browser.requests() == [page.as_uri()]
    assert browser.complaints() == []
    assert browser.run("document.documentElement.scrollWidth") == width
    assert browser.run(CUT) == 0
    assert browser.run("document.querySelector('.verdict').getBoundingClientRect().top") < 300
    assert browser.run("document.querySelectorAll('[onerror], [onmouseover], img[src=x]').length") == 0


def test_the_list_is_leafed_through_and_narrowed(browser: Browser, unlabelled: Path) -> None:
    browser.open(unlabelled / "report.html")
    _, section = read(unlabelled)
    names = [row[0] for row in section["rows"]]
    assert browser.run("document.getElementById('list-back').disabled")
    assert browser.run(ROWS) == names[:20]
    browser.run("document.getElementById('list-on').click()")
    assert browser.run(ROWS) == names[20:]
    assert browser.run("document.getElementById('list-on').disabled")
    assert browser.run("document.getElementById('list-place').textContent") == "21 to 27 of 27"
    said = section["rows"][0][1]
    browser.run(
        f"(() => {{ const s = document.getElementById('list-class'); s.value = '{said}';"
        " s.dispatchEvent(new Event('change')); })()"
    )
    assert browser.run(ROWS) == [row[0] for row in section["rows"] if row[1] == said][:20]
    assert browser.complaints() == []


def test_without_the_script_the_first_of_the_list_are_there(browser: Browser, unlabelled: Path) -> None:
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(unlabelled / "report.html", width=390)
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
    assert browser.run(ROWS) == [row[0] for row in read(unlabelled)[1]["rows"]][:20]
    assert browser.run("document.getElementById('list-controls').hidden")
    assert browser.run("document.querySelectorAll('details:not([open])').length") > 0
