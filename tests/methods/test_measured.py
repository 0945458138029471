"""What is said of each method: what it is good for, and figures that are those of the committed records."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path

import pytest

from acclimate.methods import registry
from acclimate.methods.options import describe
from tiny import succeeds

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def gains() -> dict[str, list[float]]:
    """By method with its own options: the points that each run is above source-only with its task and seed."""
    records = [json.loads(line) for line in (RESULTS / "pacs_methods.jsonl").read_text(encoding="utf-8").splitlines()]
    plain = [r for r in records if not r["options"]]
    own = {(r["method"], r["source"], r["target"], r["seed"]): r["scores"]["accuracy"] for r in plain}
    found = defaultdict(list)
    for (method, *cell), accuracy in own.items():
        if method != "source_only":
            found[method].append(100 * (accuracy - own["source_only", *cell]))
    return found


@pytest.mark.parametrize("name", registry.names())
def test_a_method_says_what_it_is_good_for(name: str) -> None:
    assert 0 < len(describe(name)["good_for"]) <= 60


@pytest.mark.parametrize(("name", "gain"), gains().items())
def test_the_figures_are_those_of_the_records(name: str, gain: list[float]) -> None:
    measured = describe(name)["measured"]
    assert measured["runs"] == len(gain) == 18
    assert measured["median_gain"] == pytest.approx(statistics.median(gain), abs=0.051)
    assert measured["mean_gain"] == pytest.approx(statistics.mean(gain), abs=0.051)
    assert measured["harmed"] == pytest.approx(sum(g < -1 for g in gain) / 18, abs=0.0006)


def test_the_costs_are_those_of_the_page() -> None:
    page = (RESULTS / "cost.md").read_text(encoding="utf-8").split("## On cached features")[1]
    named = {line.split(" | ")[0].removeprefix("| "): line.split("**")[1] for line in page.splitlines() if "**" in line}
    for name in ("dann", "mada", "wemnet"):
        assert describe(name)["measured"]["cost"] == pytest.approx(float(named[name]), abs=0.051)
    assert describe("source_only")["measured"] == {"cost": 1.0}
    assert describe("gta")["measured"] is None


def test_the_list_shows_them_and_what_they_rest_on() -> None:
    shown = succeeds("methods", columns=200).stdout
    line = next(line for line in shown.splitlines() if line.startswith("gfk"))
    measured = describe("gfk")["measured"]
    assert f"{measured['cost']:.1f}x" in line
    assert f"{measured['median_gain']:+.1f}" in line
    assert describe("gfk")["good_for"] in line
    assert "They rest on PACS alone" in " ".join(shown.split())
    assert "Good for: " in succeeds("methods", "gfk").stdout
