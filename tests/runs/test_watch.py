"""Watching: new images beside the target of a run, on the command line, from Python and on a page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import acclimate
from acclimate.data.read import read_target
from acclimate.errors import DataError
from acclimate.model import Model, ModelSpec
from acclimate.networks.backbones import load_backbone
from acclimate.runs.reference import write_reference
from acclimate.runs.watch import Watched
from pages import EVIL, NAMES, Page, table
from tiny import refused, succeeds, vectors


def fitted(folder: Path, *more: str, n: int = 150) -> Path:
    source, target = vectors(folder / "s.npz", n=60), vectors(folder / "t.npz", shift=0.5, n=n)
    given = (
        "--source",
        source,
        "--target",
        target,
        "--out",
        folder / "run",
        "--method",
        "source_only",
        "--steps",
        "99",
    )
    succeeds("fit", *given, *more)
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fitted(tmp_path_factory.mktemp("watched"))


def later(path: Path, *, shift: float = 0.0, n: int = 120, only: int | None = None) -> Path:
    """Vectors like the target's, but for a shift, or of one class alone."""
    rng = np.random.default_rng(7)
    y = np.arange(n) % 3 if only is None else np.full(n, only)
    np.savez(path, x=(rng.normal(size=(n, 6)) + 2 * np.eye(3, 6)[y] + 0.5 + shift).astype(np.float32))
    return path


# --- what it finds -------------------------------------------------------------------------------------------------


def test_the_same_target_later(run: Path, tmp_path: Path) -> None:
    new = later(tmp_path / "new.npz")
    shown = succeeds("watch", run, new).stdout
    assert "No sign of drift: 120 new images beside 150 of the target" in shown
    assert "Nothing needs to be done" in shown
    answer = json.loads(succeeds("watch", run, new, "--json").stdout)
    assert (answer["drifted"], answer["images"], answer["reference"], answer["commands"]) == ([], 120, 150, [])
    assert [*answer["checks"]] == ["classifier", "outputs", "shares", "novelty", "confidence"]


def test_another_target(run: Path, tmp_path: Path) -> None:
    new = later(tmp_path / "new.npz", shift=-4)
    watched = acclimate.watch(run, new)
    assert set(watched.drift.drifted) >= {"classifier", "novelty"}
    assert watched.verdict == "This is no longer that target"
    shown = succeeds("watch", run, new).stdout
    assert f"acclimate fit --source {run.parent / 's.npz'} --target {new} --out runs/new" in shown
    assert [entry["distance"] for entry in watched.as_dict()["novel"]] == sorted(watched.distances)[::-1][:16]


def test_other_shares_of_the_same_classes(run: Path, tmp_path: Path) -> None:
    """A class alone looks different as well, since the others are missing: the shares are what is told of."""
    watched = acclimate.watch(str(run), str(later(tmp_path / "new.npz", only=1)))
    assert "shares" in watched.drift.drifted
    assert watched.drift.shares_after.argmax() == 1
    assert "novelty" not in watched.drift.drifted


def test_shares_alone_are_no_other_target(run: Path, tmp_path: Path) -> None:
    watched = acclimate.watch(run, later(tmp_path / "new.npz"))
    moved = [sign for sign in watched.drift.signs if sign.check == "shares"]
    object.__setattr__(moved[0], "drifted", True)
    assert watched.verdict == "The class shares have moved"
    assert "come in other shares" in watched.advice
    assert watched.commands == []


def test_it_repeats_itself(run: Path, tmp_path: Path) -> None:
    new = later(tmp_path / "new.npz", shift=0.2)
    assert acclimate.watch(run, new).as_dict() == acclimate.watch(run, new).as_dict()


def test_a_sample_of_many_is_compared(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acclimate.runs.watch.MOST", 101)
    monkeypatch.setattr("acclimate.runs.use.AT_ONCE", 50)  # in parts
    watched = acclimate.watch(run, later(tmp_path / "new.npz"))
    assert (watched.drift.m, len(watched.distances), watched.drift.drifted) == (120, 120, ())


# --- images --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on images, and new ones, all with names that look like markup."""
    folder = tmp_path_factory.mktemp("pictured")
    torch.manual_seed(0)
    backbone = load_backbone("lenet", pretrained=False)
    model = Model(
        ModelSpec("source_only", {}, NAMES, "lenet", None, "all", 8, backbone.preprocess, bf16=False), backbone
    )
    with torch.no_grad():
        model.method.train().predict(torch.randn(20, 1, 28, 28))  # BatchNorm has seen a batch
    model.method.eval()
    target = read_target(table(folder / "t", shade=0, n=40, labelled=False))
    model.save(folder)
    write_reference(folder, model, model.inputs(target), model.predict(target).probabilities, 0)
    return folder, table(folder / "new", shade=60, n=40, labelled=False)


@pytest.fixture(scope="module")
def page(pictured: tuple[Path, Path]) -> Page:
    run, new = pictured
    (new.parent / "broken.png").write_bytes(b"none")
    with new.open("a") as file:
        file.write("broken.png\n")
    result = succeeds("watch", run, new, "--out", run / "page.html")
    assert "broken.png is left out" in result.stderr
    return Page(run / "page.html")


def test_the_page_shows_the_most_novel_images(page: Page) -> None:
    images = [source for source in page.attributes("src") if source.startswith("data:image/jpeg")]
    assert len(images) == 16
    assert "The most novel images" in page.text
    assert "120" in page.text
    assert "Not readable 1" in page.text


def test_names_stay_text_and_nothing_is_asked_of_a_network(page: Page) -> None:
    assert EVIL[:20] in page.text or EVIL[:20] in " ".join(page.attributes("title"))
    assert not page.attributes("onerror")
    assert not page.attributes("onmouseover")
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert all(source.startswith("data:") for source in page.attributes("src"))
    assert "default-src 'none'" in page.source


def test_the_page_of_vectors_names_them(run: Path, tmp_path: Path) -> None:
    succeeds("watch", run, later(tmp_path / "new.npz"), "--out", tmp_path / "page.html")
    assert not Page(tmp_path / "page.html").attributes("src")


# --- what it refuses -----------------------------------------------------------------------------------------------


def test_too_few_images(run: Path, tmp_path: Path) -> None:
    new = later(tmp_path / "new.npz", n=99)
    assert refused("watch", run, new) == f"{new} holds 99 images, too few to tell: give at least 100."


def test_a_run_that_keeps_no_sample(run: Path, tmp_path: Path) -> None:
    for name in ("model.json", "model.safetensors"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    said = refused("watch", tmp_path, later(tmp_path / "new.npz"))
    assert "keeps no sample of its target to compare with" in said
    assert "Make the run again with acclimate fit." in said


def test_a_target_of_few_images(tmp_path: Path) -> None:
    assert "has 24 images, too few to tell what is usual" in refused(
        "watch", fitted(tmp_path, n=24), later(tmp_path / "new.npz")
    )


def copied(run: Path, folder: Path) -> Path:
    for name in ("model.json", "model.safetensors", "reference.safetensors"):
        (folder / name).write_bytes((run / name).read_bytes())
    return folder


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("features", lambda x: x[:, :3]),
        ("probabilities", lambda x: x[:, :2]),
        ("probabilities", lambda x: x[1:]),
        ("shares", lambda x: x * np.nan),
    ],
)
def test_a_sample_of_another_model(run: Path, tmp_path: Path, part: str, change: object) -> None:
    run = copied(run, tmp_path)
    tensors = load_file(run / "reference.safetensors")
    tensors[part] = np.ascontiguousarray(change(tensors[part]))  # type: ignore[operator]
    save_file(tensors, run / "reference.safetensors", metadata={"schema": "1"})
    said = refused("watch", run, later(tmp_path / "new.npz"))
    assert "is damaged" in said or "is not that of this model" in said


def test_a_sample_that_is_none(run: Path, tmp_path: Path) -> None:
    run = copied(run, tmp_path)
    (run / "reference.safetensors").write_bytes(b"none")
    assert "reference.safetensors is damaged" in refused("watch", run, later(tmp_path / "new.npz"))
    with pytest.raises(DataError, match="is damaged"):
        acclimate.watch(run, later(tmp_path / "new.npz"))


def test_other_options(run: Path, tmp_path: Path) -> None:
    new = later(tmp_path / "new.npz")
    assert refused("watch", run, new, "--open") == "--open opens the page: name it with --out."
    assert "is a folder: name a file with --out" in refused("watch", run, new, "--out", tmp_path)
    assert "none does not exist: make it" in refused("watch", run, new, "--out", tmp_path / "none" / "page.html")


def test_a_run_of_a_bench_keeps_none_and_a_fit_does(run: Path) -> None:
    assert (run / "reference.safetensors").exists()
    assert isinstance(acclimate.watch(run, later(run.parent / "again.npz")), Watched)
