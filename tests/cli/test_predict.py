"""Predicting: what it takes, what it writes, and that it streams."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from acclimate.cli.app import app
from acclimate.errors import DataError
from acclimate.model import Model, ModelSpec
from acclimate.networks.backbones import load_backbone
from acclimate.runs import output, use
from acclimate.runs.output import Links
from tiny import pictures, refused, succeeds, vectors


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights on LeNet."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    backbone = load_backbone("lenet", pretrained=False)
    spec = ModelSpec("source_only", {}, ("a", "b", "c"), "lenet", None, "all", 8, backbone.preprocess, bf16=False)
    model = Model(spec, backbone)
    with torch.no_grad():
        model.method.train().predict(torch.randn(20, 1, 28, 28))  # BatchNorm has seen a batch
    model.save(folder)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return pictures(tmp_path / "images")


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def test_files_folders_and_lists_at_once(run: Path, images: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("images/b/1.png\nimages/c/2.png\n")
    whole = {row["path"]: row for row in rows(succeeds("predict", run, images).stdout)}
    found = rows(succeeds("predict", run, images / "b" / "0.png", images / "a", tmp_path / "list.txt").stdout)
    names = ["b/0.png", *(f"a/{i}.png" for i in range(4)), "b/1.png", "c/2.png"]
    assert [row.pop("path") for row in found] == [str(images / name) for name in names]
    assert found == [{key: whole[name][key] for key in found[0]} for name in names]
    assert rows(succeeds("predict", run, images / "b" / "0.png").stdout)[0]["path"] == str(images / "b" / "0.png")


def test_a_list_on_standard_input(run: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(images)
    result = CliRunner().invoke(app, ["predict", str(run), "-", "b"], input="a/1.png\n\nc/0.png\n")
    assert [row["path"] for row in rows(result.stdout)] == ["a/1.png", "c/0.png", *(f"b/{i}.png" for i in range(4))]
    result = CliRunner().invoke(app, ["predict", str(run), "-"], input="none.png\n")
    assert "1 of the 1 files that Standard input names cannot be found, the first is ./none.png" in result.stderr
    assert result.exit_code == 2


def test_standard_output_has_the_bytes_of_the_file(run: Path, images: Path, tmp_path: Path) -> None:
    for form in ("csv", "jsonl"):
        succeeds("predict", run, images, "--out", tmp_path / f"p.{form}")  # told by its ending
        result = succeeds("predict", run, images, "--out", "-", "--format", form)
        assert result.stdout_bytes == (tmp_path / f"p.{form}").read_bytes()
        assert result.stdout_bytes.count(b"\n") == 12 + (form == "csv")


def test_json_lines_hold_what_the_csv_does(run: Path, images: Path) -> None:
    lines = [json.loads(line) for line in succeeds("predict", run, images, "--format", "jsonl").stdout.splitlines()]
    flat = [{**{k: line[k] for k in ("path", "predicted", "confidence")}, **line["probabilities"]} for line in lines]
    assert [
        {k: v if k in ("path", "predicted") else float(v) for k, v in row.items()}
        for row in rows(succeeds("predict", run, images).stdout)
    ] == flat


@pytest.mark.parametrize("top", [1, 2, 9])
def test_the_most_probable_classes_alone(run: Path, images: Path, top: int) -> None:
    whole = rows(succeeds("predict", run, images).stdout)
    found = rows(succeeds("predict", run, images, "--top", str(top)).stdout)
    lines = succeeds("predict", run, images, "--top", str(top), "--format", "jsonl").stdout.splitlines()
    for row, best, line in zip(whole, found, lines, strict=True):
        order = sorted("abc", key=lambda k: -float(row[k]))[:top]
        pairs = [*best.values()][1:]
        assert pairs == [text for k in order for text in (k, row[k])]
        assert [*json.loads(line)["probabilities"].items()] == [(k, float(row[k])) for k in order]


# --- links ---------------------------------------------------------------------------------------------------------


def test_images_are_linked_into_class_folders(run: Path, images: Path, tmp_path: Path) -> None:
    found = rows(succeeds("predict", run, images, "--link", tmp_path / "links", "--out", tmp_path / "p.csv").stdout)
    assert not found
    predicted = {row["path"]: row["predicted"] for row in rows((tmp_path / "p.csv").read_text())}
    links = [path for path in (tmp_path / "links").rglob("*") if path.is_symlink()]
    assert {str(link.readlink().relative_to(images)): link.parent.name for link in links} == predicted
    assert (tmp_path / "links" / predicted["a/0.png"] / "0.png").is_symlink()
    again = succeeds("predict", run, images, "--link", tmp_path / "more", "--quiet")
    assert again.stdout == ""
    sentence = refused("predict", run, images, "--link", tmp_path / "links")
    assert sentence == f"{tmp_path / 'links'} holds something already: name a new or an empty folder with --link."


def test_images_of_little_confidence_are_linked_apart(run: Path, images: Path, tmp_path: Path) -> None:
    confidence = {row["path"]: float(row["confidence"]) for row in rows(succeeds("predict", run, images).stdout)}
    least = sorted(confidence.values())[5] - 1e-6
    result = succeeds("predict", run, images, "--link", tmp_path / "links", "--min-confidence", str(least))
    unsure = {str(link.readlink().relative_to(images)) for link in (tmp_path / "links" / "unsure").iterdir()}
    assert unsure == {name for name, value in confidence.items() if value < least}
    assert f"12 images are linked in {tmp_path / 'links'}, 5 of them in" in result.stderr
    assert "name a folder with --link" in refused("predict", run, images, "--min-confidence", "0.5")


def test_class_names_of_a_stranger_make_folders_inside(tmp_path: Path, images: Path) -> None:
    classes = ("../up", "..", "Unsure", "a/b", "a:b", "\n", "")
    links, domain = Links(tmp_path / "links", classes, 0.5), use.read_targets([str(images / "a"), str(images / "b")])
    links.add(domain, np.eye(8, 7) + 0.1)
    folders = [path.name for path in (tmp_path / "links").iterdir()]
    assert sorted(folders) == sorted([".._up", "_", "Unsure_", "a_b", "a_b_", "__", "___", "unsure"])
    assert {path.name for path in tmp_path.iterdir()} == {"images", "links"}


def test_arrays_have_no_files_to_link(tmp_path: Path) -> None:
    model = Model(ModelSpec("source_only", {}, ("a", "b", "c"), None, 6, "head", 8, None, bf16=False), None)
    model.save(tmp_path)
    sentence = refused("predict", tmp_path, vectors(tmp_path / "x.npz"), "--link", tmp_path / "links")
    assert "x.npz holds arrays, which cannot be linked: leave out --link." in sentence
    x = tmp_path / "x.npz"
    assert refused("predict", tmp_path, x, x).startswith(f"{x} holds arrays, which are read alone: ")


# --- streaming -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["lenet", "test_resnet"])
def test_parts_give_the_rows_of_the_whole(
    backbone: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pictures(tmp_path / "images", n=11)
    for i in (5, 6, 7):  # a part of three in which nothing can be read
        (images / "a" / f"{i}.png").write_bytes(b"")
    if backbone != "lenet":  # a frozen one
        run, network = tmp_path, load_backbone(backbone, pretrained=False)
        entries: Any = (backbone, None, "head", 8, network.preprocess)
        Model(ModelSpec("source_only", {}, ("a", "b", "c"), *entries, bf16=False), network).save(run)
    whole = succeeds("predict", run, images).stdout
    assert len(rows(whole)) == 30
    monkeypatch.setattr(use, "AT_ONCE", 3)
    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path / "another"))
    result = succeeds("predict", run, images)
    assert result.stdout == whole
    assert result.stderr.count("is left out: the file is empty.") == 3
    assert succeeds("predict", run, images).stdout == whole  # from the cache
    for i in (8, 9):
        (images / "a" / f"{i}.png").write_bytes(b"")
    sentence = refused("predict", run, images, "--out", tmp_path / "p.csv")
    assert f"5 of the 33 images of {images} cannot be read, for example 'a/5.png' (the file is empty)" in sentence
    assert not (tmp_path / "p.csv").exists()


def test_the_memory_does_not_grow_with_the_predictions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    K, n = 200, 20_000
    Model(ModelSpec("source_only", {}, tuple(map(str, range(K))), None, 6, "head", 8, None, bf16=False), None).save(
        tmp_path
    )
    x = vectors(tmp_path / "x.npz", n=n, labelled=False)
    monkeypatch.setattr(use, "AT_ONCE", 512)
    succeeds("predict", tmp_path, x, "--out", tmp_path / "p.csv", "--top", "1")  # what is imported on the way
    tracemalloc.start()
    try:
        use.predict_images(tmp_path, [str(x)], str(tmp_path / "p.csv"), top=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "p.csv").read_bytes().count(b"\n") == n + 1
    assert peak < n * K * 8 / 4  # of which all probabilities at once would be the fourfold


def test_a_reader_that_stops_early_is_no_defect() -> None:
    code = """
import sys
import numpy as np
from acclimate.errors import DataError
from acclimate.runs.output import table
try:
    with table("-", "csv", ["a", "b"], None) as write:
        sys.stdin.read()
        write(["name"], np.ones((1, 2)))
except DataError as error:
    print(error, file=sys.stderr)
"""
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as process:
        process.stdout.close()
        process.stdin.close()
        error = process.stderr.read()
    assert error == "Whatever read standard output has closed it: the rest of the predictions is lost.\n"


def test_a_table_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(row: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(output, "json_line", full)
    out = tmp_path / "p.jsonl"
    sentence = f"^The file {out} cannot be written \\(No space left on device\\): name another with --out\\.$"
    with pytest.raises(DataError, match=sentence), output.table(str(out), "jsonl", ["a", "b"], None) as write:
        write(["name"], np.ones((1, 2)))
    assert not [*tmp_path.iterdir()]
