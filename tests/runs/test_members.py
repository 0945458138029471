"""A consensus as a run: its members, what it says of itself, and that neither jobs nor kills change a bit of it."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import forks
from acclimate.data.batches import Labelled, Unlabelled
from acclimate.errors import OptionError
from acclimate.methods.base import Objective
from acclimate.methods.jan import JAN
from acclimate.methods.source_only import SourceOnly
from acclimate.model import Model
from acclimate.runs.members import members_of
from acclimate.runs.record import read_record
from acclimate.settings import Settings
from tiny import acclimate, pictures, refused, succeeds, vectors

MEMBERS = ("source_only", "gfk", "jan", "cdan", "WEMNet_on_MSTN", "crst")
SMALL = ("--method", "consensus", "--bottleneck", "8", "--batch-size", "6", "--steps", "20", "--jobs", "1")


@pytest.fixture
def arrays(tmp_path: Path) -> tuple[str, ...]:
    source, target = vectors(tmp_path / "source.npz", n=60), vectors(tmp_path / "target.npz", shift=0.5, n=60)
    return "--source", str(source), "--target", str(target)


def fit(out: Path, *args: str | Path) -> dict[str, Any]:
    succeeds("fit", *args, "--out", out)
    record: dict[str, Any] = json.loads((out / "record.json").read_text(encoding="utf-8"))
    return record


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same(one: Path, other: Path) -> None:
    """The same bits in all that training decides, of the consensus and of each member."""
    for name in ("model.safetensors", "predictions.csv", "source_predictions.csv"):
        for run in ("", *(f"members/{member}/" for member in MEMBERS)):
            assert (one / f"{run}{name}").read_bytes() == (other / f"{run}{name}").read_bytes(), f"{run}{name}"
    records = [read_record(out / "record.json") for out in (one, other)]
    said = [{"verdict": r.trust and r.trust.verdict, "estimate": r.trust and r.trust.estimate} for r in records]
    assert said[0] == said[1]


def test_it_is_the_default_and_each_member_is_a_run_that_can_be_opened(arrays: tuple[str, ...], tmp_path: Path) -> None:
    assert Settings.of(source="s", target="t").method == "consensus"
    record = fit(tmp_path / "run", *arrays, *SMALL)
    assert [member["folder"] for member in record["trust"]["members"]] == [f"members/{name}" for name in MEMBERS]
    for member in record["trust"]["members"]:
        run = tmp_path / "run" / member["folder"]
        assert read_record(run / "record.json").scores
        assert member["accuracy"] == json.loads((run / "record.json").read_text())["scores"]["accuracy"]
        Model.load(run)
    assert record["compare"]["method"] == "source_only"
    model = Model.load(tmp_path / "run")
    assert model.spec.method == "consensus"
    succeeds("predict", tmp_path / "run", arrays[3], "--out", tmp_path / "again.csv")
    again, first = table(tmp_path / "again.csv"), table(tmp_path / "run" / "predictions.csv")
    assert [row["predicted"] for row in again] == [row["predicted"] for row in first]


def test_it_says_how_far_to_trust_it(arrays: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "run"
    trust = fit(out, *arrays, *SMALL)["trust"]
    assert trust["verdict"] in ("adaptation probably helped", "adaptation changed little", "look before you use it")
    estimate = trust["estimate"]
    assert 0 <= estimate["low"] <= estimate["value"] <= estimate["high"] <= 1
    rows = table(out / "predictions.csv")
    votes = [[row["predicted"] for row in table(out / "members" / name / "predictions.csv")] for name in MEMBERS]
    for i, row in enumerate(rows):
        share = sum(vote[i] == row["predicted"] for vote in votes) / len(MEMBERS)
        assert float(row["reliability"]) == pytest.approx(share, abs=5e-4)
    changed = np.mean([row["predicted"] != before for row, before in zip(rows, votes[0], strict=True)])
    bound = next(f for f in trust["findings"] if f["check"] == "bound")
    assert bound["figures"]["share_changed"] == pytest.approx(changed)
    assert sum(share["predicted"] for share in trust["shares"]) == pytest.approx(1)


def test_a_part_of_the_source_stays_out_of_training(arrays: tuple[str, ...], tmp_path: Path) -> None:
    record = fit(tmp_path / "run", *arrays, *SMALL)
    held = table(tmp_path / "run" / "source_predictions.csv")
    assert record["data"]["source"]["held_out"] == len(held) == 12
    assert [row["label"] for row in held].count("a") == 4
    member = tmp_path / "run" / "members" / "source_only"
    assert [row["path"] for row in table(member / "source_predictions.csv")] == [row["path"] for row in held]


def test_jobs_change_no_bit(arrays: tuple[str, ...], tmp_path: Path) -> None:
    fit(tmp_path / "one", *arrays, *SMALL)
    fit(tmp_path / "two", *arrays, *SMALL[:-1], "2")
    assert_same(tmp_path / "one", tmp_path / "two")


def test_the_same_command_again_trains_nothing(arrays: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = fit(out, *arrays, *SMALL)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert fit(out, *arrays, *SMALL) == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


def test_kills_change_no_bit_and_lose_no_member(arrays: tuple[str, ...], tmp_path: Path) -> None:
    out, moments = tmp_path / "run", random.Random(16)
    code = "from acclimate.__main__ import main; main()"
    command = ("fit", *arrays, *SMALL, "--checkpoint-seconds", "0", "--out", out, "--no-report", "-q")
    made: dict[Path, int] = {}
    for _ in range(4):
        fork = forks.Forked(code, *command)
        fork.process.join(moments.uniform(0.3, 1.2))
        fork.process.kill()
        fork.wait()
        records = {path: path.stat().st_mtime_ns for path in out.glob("members/*/record.json")}
        assert made.items() <= records.items()
        made = records
    fit(out, *arrays, *SMALL)
    assert made.items() <= {path: path.stat().st_mtime_ns for path in out.glob("members/*/record.json")}.items()
    fit(tmp_path / "whole", *arrays, *SMALL)
    assert_same(out, tmp_path / "whole")


def test_a_member_that_diverges_is_left_out(
    arrays: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: JAN, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        yield Objective(classification=self.classifier(self.net(s.x)).sum() * float("nan"))

    monkeypatch.setattr(JAN, "step", step)
    result = acclimate("fit", *arrays, *SMALL, "--out", tmp_path / "run")
    assert "Warning: The member JAN is left out: Training diverged at step 1" in result.stderr
    members = json.loads((tmp_path / "run" / "record.json").read_text())["trust"]["members"]
    assert [(m["name"], m["agreement"]) for m in members if m["failed"]] == [("JAN", None)]
    assert len(members) == 6


def test_source_only_may_diverge_too(arrays: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: SourceOnly, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        yield Objective(classification=self.classifier(self.net(s.x)).sum() * float("nan"))

    monkeypatch.setattr(SourceOnly, "step", step)
    record = fit(tmp_path / "run", *arrays, *SMALL)
    assert record["compare"] is None
    assert record["trust"]["verdict"] == "nothing to compare with"
    assert record["trust"]["estimate"] is not None


def test_overwrite_deletes_the_members_too(arrays: tuple[str, ...], tmp_path: Path) -> None:
    out = tmp_path / "run"
    fit(out, *arrays, *SMALL)
    assert "other settings (recipe" not in refused("fit", *arrays, *SMALL, "--seed", "1", "--out", out)
    fit(out, *arrays, *SMALL, "--seed", "1", "--overwrite")
    fit(tmp_path / "new", *arrays, *SMALL, "--seed", "1")
    assert_same(out, tmp_path / "new")


def test_images_have_members_too(tmp_path: Path) -> None:
    source, target = pictures(tmp_path / "s", n=6), pictures(tmp_path / "t", n=6, shade=20)
    out = tmp_path / "run"
    how = ("--backbone", "lenet", "--bottleneck", "8", "--batch-size", "6", "--steps", "4", "--jobs", "1")
    record = fit(out, "--source", source, "--target", target, "--method", "consensus", *how)
    assert record["model"]["tune"] == "all"
    assert set(record["terms"]) == {"classification", "taught"}
    assert record["trust"]["estimate"] is not None


def test_members_are_chosen_by_name(arrays: tuple[str, ...], tmp_path: Path) -> None:
    record = fit(tmp_path / "run", *arrays, *SMALL, "--members", "DANN, source-only,mstn")
    assert [member["name"] for member in record["trust"]["members"]] == ["DANN", "source-only", "mstn"]
    assert record["settings"]["options"] == {"members": "DANN, source-only,mstn"}
    without = fit(tmp_path / "without", *arrays, *SMALL, "--members", "dann, mstn")
    assert without["compare"] is None
    assert all(share["bbse"] is None for share in without["trust"]["shares"])


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ("dann", "A consensus needs at least 2 members, not 1: name more with --members."),
        ("dann, source-only, DANN", "DANN is named twice among the members: name each method once."),
        ("dann, consensus", "A consensus cannot be a member of a consensus: name single methods."),
        ("dann, wemnt", "No method has a row called 'wemnt'; did you mean wemnet?"),
    ],
)
def test_members_that_cannot_be(members: str, sentence: str, arrays: tuple[str, ...], tmp_path: Path) -> None:
    assert refused("fit", *arrays, *SMALL, "--members", members, "--out", tmp_path / "run") == sentence
    assert not (tmp_path / "run").exists()


def test_members_train_by_their_own_recipes_but_for_what_is_said() -> None:
    settings = Settings.of(source="s", target="t", steps=7, weight_decay=0.01)
    recipes = {member.name: member.settings.recipe for member in members_of(settings)}
    assert {recipe.steps for recipe in recipes.values()} == {7}
    assert {recipe.weight_decay for recipe in recipes.values()} == {0.01}
    assert {recipe.hold_out for recipe in recipes.values()} == {0.2}
    own = {member.name: member.settings.recipe for member in members_of(Settings.of(source="s", target="t"))}
    assert own["CRST"].weight_decay == 5e-4 != own["source-only"].weight_decay


def test_members_have_the_options_that_the_consensus_was_measured_with() -> None:
    named = {"members": "source-only, CDAN+E, CDAN, WEMNet on MSTN"}
    members = members_of(Settings.of(source="s", target="t", method="consensus", options=named))
    assert [one.settings.options for one in members] == [
        {},
        {"random": "auto"},
        {"random": "auto", "entropy": False},
        {"w_d": "linear", "mstn": True},
    ]


def test_members_is_an_option_of_a_consensus_alone() -> None:
    with pytest.raises(OptionError, match="dann has no option 'members'"):
        Settings.of(source="s", target="t", method="dann", options={"members": "dann, mstn"})


def test_the_bound_is_of_all_images_where_a_sample_is_looked_at(
    arrays: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acclimate.runs.judge.SAMPLE", 12)
    how = ("--method", "dann", *SMALL[2:-2], "--compare")
    record = fit(tmp_path / "run", *arrays, *how)
    figures = {finding["check"]: finding["figures"] for finding in record["trust"]["findings"]}
    assert figures["bound"]["share_changed"] == record["compare"]["changes"]["share_changed"] > 0
    assert figures["gain"]["gain"] * 12 == pytest.approx(round(figures["gain"]["gain"] * 12))  # of the sample
