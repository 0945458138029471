"""What a release must agree on, and the rules of the workflow that publishes it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import acclimate

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOW = (ROOT / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8")


def test_every_place_names_the_same_version() -> None:
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert cited is not None
    assert acclimate.__version__ == PROJECT["version"] == cited[1]
    headings = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert headings[0] in ("Unreleased", PROJECT["version"])
    assert headings[1:2] in ([], [PROJECT["version"]])


def test_actions_are_pinned_by_commit() -> None:
    used = re.findall(r"uses: (\S+)", WORKFLOW)
    assert used
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action) for action in used)


def test_only_the_job_that_publishes_may_publish() -> None:
    build, publish = WORKFLOW.split("\n  publish:\n")
    assert "id-token" not in build
    assert "id-token: write" in publish
    assert "checkout" not in publish
    assert "run:" not in publish


def test_every_extra_is_named_where_it_is_missing() -> None:
    page = (ROOT / "docs" / "start" / "install.md").read_text(encoding="utf-8")
    for extra in PROJECT["optional-dependencies"].keys() - {"dev", "docs"}:
        assert f'`pip install "acclimate[{extra}]"`' in page, extra
