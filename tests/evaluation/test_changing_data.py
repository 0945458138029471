"""Data that change while they are worked on: each label stays with the item that it was read with, or the page says so.

Every change here is of the kind that lists of equal length would hide: one item goes and another comes, or all labels
move on by one.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from acclimate.data import read
from acclimate.report import page as report
from tiny import pictures, succeeds, vectors

FORMS = ("folder", "list", "table", "arrays")
SMALL_NET = ("--backbone", "lenet", "--bottleneck", "8", "--batch-size", "12", "--steps", "60", "--lr", "0.03")
VECTORS = ("--bottleneck", "8", "--batch-size", "12", "--steps", "20")
N = 12  # images of each class


class Labelled(NamedTuple):
    """A labelled domain in one of the forms, what changes it, and the truth before the change.

    Attributes:
        spec: What a command is given.
        change: Changes it.
        truth: The label of each item, by its name.
        gone: Names that cannot be read after the change.
    """

    spec: Path
    change: Callable[[], None]
    truth: dict[str, str]
    gone: frozenset[str]


def labelled(form: str, place: Path, *, shade: int = 20) -> Labelled:
    """A domain of three classes at `place`, an item of which goes while another comes, and all labels move by one."""
    if form == "arrays":
        spec = vectors(place.with_suffix(".npz"), shift=shade / 40, n=3 * N)
        content = dict(np.load(spec))
        truth = {str(i): str(label) for i, label in enumerate(content["y"])}

        def change() -> None:
            np.savez(spec, x=content["x"], y=np.roll(content["y"], 1))

        return Labelled(spec, change, truth, frozenset())
    folder = pictures(place, n=N, shade=shade)
    truth = {f"{name}/{i}.png": name for name in "abc" for i in range(N)}
    if form == "folder":

        def change() -> None:
            (folder / "a" / "0.png").unlink()
            shutil.copy(folder / "c" / "0.png", folder / "b" / "new.png")

        return Labelled(folder, change, truth, frozenset({"a/0.png"}))
    separator, suffix, header = (" ", ".txt", "") if form == "list" else (",", ".csv", "path,label\n")
    spec = folder / f"list{suffix}"

    def write(entries: dict[str, str]) -> None:
        spec.write_text(header + "".join(f"{name}{separator}{label}\n" for name, label in entries.items()))

    def change() -> None:
        names = list(truth)
        write(dict(zip(names, [*list(truth.values())[1:], "a"], strict=True)))

    write(truth)
    return Labelled(spec, change, truth, frozenset())


def source(form: str, tmp_path: Path) -> tuple[str | Path, ...]:
    """The options of a fit for a source of the same kind."""
    if form == "arrays":
        return ("--source", vectors(tmp_path / "source.npz", n=3 * N), *VECTORS, "--method", "source_only")
    return ("--source", pictures(tmp_path / "source", n=N), *SMALL_NET, "--method", "source_only")


def changed_once_read(domain: Labelled, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Lets a domain change the moment after it is read. Returns a list that grows with each reading of it."""
    readings: list[Path] = []
    original = read._read

    def reading(path: Path, need_labels: bool) -> object:
        found = original(path, need_labels)
        if path == domain.spec:
            readings.append(path)
            domain.change()
        return found

    monkeypatch.setattr(read, "_read", reading)
    return readings


def predictions(table: Path) -> dict[str, str]:
    """The predicted class of each item, by its name."""
    with table.open(newline="") as file:
        return {row["path"]: row["predicted"] for row in csv.DictReader(file)}


def confusion(predicted: dict[str, str], domain: Labelled) -> list[list[int]]:
    """The confusion matrix of those items that could be read."""
    assert len(set(predicted.values())) > 1  # or it would hide a shift
    pairs = Counter((domain.truth[name], predicted[name]) for name in domain.truth if name not in domain.gone)
    return [[pairs[truth, guess] for guess in "abc"] for truth in "abc"]


@pytest.mark.parametrize("form", FORMS)
def test_a_target_that_changes_while_a_fit_begins(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, out = labelled(form, tmp_path / "target"), tmp_path / "run"
    options = source(form, tmp_path)
    readings = changed_once_read(target, monkeypatch)
    succeeds("fit", *options, "--target", target.spec, "--out", out)
    assert len(readings) == 1
    predicted = predictions(out / "predictions.csv")
    assert predicted.keys() == target.truth.keys() - target.gone
    assert json.loads((out / "record.json").read_text())["scores"]["confusion"] == confusion(predicted, target)


@pytest.mark.parametrize("form", FORMS)
def test_test_images_that_change_while_a_fit_begins(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test, out = labelled(form, tmp_path / "test"), tmp_path / "run"
    before = shutil.copytree(test.spec, tmp_path / "before") if form == "folder" else test.spec
    options = (*source(form, tmp_path), "--target", labelled(form, tmp_path / "target", shade=30).spec)
    with monkeypatch.context() as patch:
        readings = changed_once_read(test, patch)
        succeeds("fit", *options, "--test", test.spec, "--out", out)
    assert len(readings) == 1
    succeeds("predict", out, before, "--out", tmp_path / "p.csv")
    expected = confusion(predictions(tmp_path / "p.csv"), test)
    assert json.loads((out / "record.json").read_text())["scores"]["confusion"] == expected


@pytest.mark.parametrize("form", FORMS)
def test_images_that_change_while_they_are_evaluated(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain, out = labelled(form, tmp_path / "domain"), tmp_path / "run"
    succeeds("fit", *source(form, tmp_path), "--target", labelled(form, tmp_path / "t", shade=30).spec, "--out", out)
    succeeds("predict", out, domain.spec, "--out", tmp_path / "p.csv")
    readings = changed_once_read(domain, monkeypatch)
    scores = json.loads(succeeds("evaluate", out, domain.spec, "--json").stdout)
    assert len(readings) == 1
    assert scores["confusion"] == confusion(predictions(tmp_path / "p.csv"), domain)


# --- between a run and its report ----------------------------------------------------------------------------------


def ran(form: str, tmp_path: Path) -> tuple[Labelled, Path]:
    target, out = labelled(form, tmp_path / "target"), tmp_path / "run"
    succeeds("fit", *source(form, tmp_path), "--target", target.spec, "--out", out)
    return target, out


def shown(out: Path) -> dict[str, Any]:
    """What the report's page shows of each image: its name, its label and its prediction."""
    page = (out / "report.html").read_text()
    found = re.search(r"<script [^>]*cloud-data[^>]*>(.*?)</script>", page, re.DOTALL)
    assert found is not None
    content = json.loads(found[1])
    return {name: content[name] for name in ("names", "truth", "predicted", "confidence")}


@pytest.mark.parametrize("form", FORMS)
def test_a_target_that_changed_since_the_run(form: str, tmp_path: Path) -> None:
    target, out = ran(form, tmp_path)
    assert report.write(out).left_out == []
    target.change()
    (sentence,) = report.write(out).left_out
    if form == "folder":
        assert sentence.endswith(f"{target.spec} has changed since the run: not all of the run's items are there.")
    else:
        assert sentence == f"The labels of {target.spec} have changed since the run: they are not shown."


def test_rows_that_changed_since_the_run(tmp_path: Path) -> None:
    target, out = ran("arrays", tmp_path)
    content = dict(np.load(target.spec))
    np.savez(target.spec, **{name: np.roll(array, 1, axis=0) for name, array in content.items()})
    (sentence,) = report.write(out).left_out
    assert sentence.endswith(f"{target.spec} has changed since the run: not all of the run's items are there.")
    np.savez(target.spec, **content)
    assert report.write(out).left_out == []


@pytest.mark.parametrize("form", ["folder", "list", "table"])
def test_images_that_were_added_since_the_run_are_told_of_and_shift_nothing(form: str, tmp_path: Path) -> None:
    target, out = ran(form, tmp_path)
    report.write(out)
    before = shown(out)
    folder = target.spec if form == "folder" else target.spec.parent
    shutil.copy(folder / "c" / "0.png", folder / "a" / "00.png")
    if form != "folder":
        lines = target.spec.read_text().splitlines()
        lines.insert(3, f"a/00.png{',' if form == 'table' else ' '}c")
        target.spec.write_text("\n".join(lines))
    (sentence,) = report.write(out).left_out
    assert sentence == (
        "Files of the target were added, removed, moved or altered since the run: the images are those of now."
    )
    assert shown(out) == before


def test_a_renamed_image_of_the_target(tmp_path: Path) -> None:
    target, out = ran("folder", tmp_path)
    (target.spec / "a" / "0.png").rename(target.spec / "c" / "x.png")
    (sentence,) = report.write(out).left_out
    assert "not all of the run's items are there" in sentence


@pytest.mark.parametrize("change", ["added", "removed", "renamed"])
def test_a_source_that_changed_since_the_run(change: str, tmp_path: Path) -> None:
    _, out = ran("folder", tmp_path)
    image = tmp_path / "source" / "a" / "0.png"
    if change == "added":
        shutil.copy(image, image.with_name("new.png"))
    elif change == "removed":
        image.unlink()
    else:
        image.rename(image.with_name("new.png"))
    (sentence,) = report.write(out).left_out
    assert sentence.startswith("Files of the source were added, removed, moved or altered since the run")
