"""The pages: every link leads somewhere, and the commands of the first run do what the page says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from acclimate.cli.app import app
from tiny import pictures

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
MADE = {ROOT / "docs" / "reference" / "commands.md"}  # by `make docs`
QUICK = {
    "fit": ["--members", "source-only,jan", "--steps", "2", "--batch-size", "6", "--backbone", "lenet", "--jobs", "1"],
}


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges and the site make them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in lines}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there in MADE or there.exists(), link
        assert not anchor or there in MADE or anchor in headings(there), link


@pytest.mark.parametrize("part", ["methods", "results"])
def test_an_index_lists_every_page_beside_it(part: str) -> None:
    folder = ROOT / "docs" / part
    listed = re.findall(r"\]\(([\w-]+\.md)\)", (folder / "index.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(page.name for page in folder.glob("*.md") if page.name != "index.md")


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


def test_the_first_run_s_commands_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "photos", ("cat", "dog"), n=8)
    pictures(tmp_path / "drawings", ("",), n=60, shade=9)
    pictures(tmp_path / "more_drawings", ("",), n=2, shade=9)
    page = ROOT / "docs" / "start" / "first_run.md"
    lines = commands(page)
    assert lines.pop(0) == "acclimate demo"  # which has a test of its own
    for line in lines:
        _, command, *args = shlex.split(line)
        done = CliRunner().invoke(app, [command, *args, *QUICK.get(command, [])], catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
    named = re.findall(r"^    (runs/a/\S+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for name in [*named, "more.csv", "todo/label.html"]:
        assert (tmp_path / name).stat().st_size > 0, name
