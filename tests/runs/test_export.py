"""Exported files predict as the models do, and are read without this package."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from acclimate.data.decode import read_image
from acclimate.data.preprocess import Preprocess
from acclimate.errors import DataError
from acclimate.methods import registry
from acclimate.methods.base import Method
from acclimate.methods.options import options
from acclimate.model import Model, ModelSpec
from acclimate.networks.backbones import load_backbone
from acclimate.runs import export, onnx_predict
from acclimate.testing import tiny_batch, tiny_method, tiny_pair
from tiny import in_closed_form, pictures, refused, succeeds, vectors

SMALL = {"hidden": 32, "image_size": 16, "width": 4, "noise": 8}
LEVELS = ("vector", "map", "image")


def at_level(level: str) -> list[str]:
    return [name for name in registry.names() if registry.load(name).needs == level]


def ready(name: str) -> Method:
    """A tiny method that can predict."""
    cls = registry.load(name)
    method = tiny_method(cls, **{option: value for option, value in SMALL.items() if option in options(name)})
    if name != registry.CONSENSUS and in_closed_form(name):
        assert not list(method.stages(tiny_pair(cls)))
    else:
        with torch.no_grad():
            method.train().predict(tiny_batch(cls))  # BatchNorm has seen a batch
    return method.eval()


class Outputs(nn.Module):
    """What a file gives of several methods, one after the other."""

    def __init__(self, *methods: Method) -> None:
        super().__init__()
        self.methods = nn.ModuleList(methods)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [y for m in self.methods for y in (m.predict(x).softmax(1), m.feature(x, "target"))]


@pytest.mark.parametrize("level", LEVELS)
def test_every_method_is_exported_for_batches_of_any_size(level: str, tmp_path: Path) -> None:
    """All of a level in one graph, since most of the time goes into making one."""
    names = at_level(level)
    network, x = Outputs(*map(ready, names)), tiny_batch(registry.load(names[0]))
    outputs = [f"{name} {output}" for name in names for output in export.OUTPUTS]
    export.onnx_program(export.exported_program(network, x[:2]), outputs).save(tmp_path / "all.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "all.onnx")
    for n in (1, 3):
        found = session.run(outputs, {"input": x[:n].numpy()})
        expected = [y.detach().numpy() for y in network(x[:n])]
        for name, a, b in zip(outputs, found, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4, err_msg=name)
            assert name.endswith("features") or (a.argmax(1) == b.argmax(1)).all(), name


# --- a run ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights on a frozen backbone."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    backbone = load_backbone("test_resnet", pretrained=False)
    entries: Any = ("test_resnet", None, "head", 8, backbone.preprocess)
    Model(ModelSpec("wemnet", {}, ("a", "b", "ç"), *entries, bf16=False), backbone).save(folder)
    return folder


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "model.onnx"
    assert (
        "on 32 samples of noise it predicts as the model does."
        in succeeds("export", run, "--out", out, "--with-script").stderr
    )
    return out


def pictures_of_every_kind(folder: Path) -> Path:
    """Image files of every format and mode that is read, upright and not, large and narrow."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    image = coarse.resize((320, 240), Image.Resampling.BICUBIC)
    for name in ("rgb.jpg", "rgb.png", "rgb.webp", "rgb.bmp", "rgb.tif", "rgb.gif"):
        image.save(folder / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "turned.jpg", exif=exif)
    image.resize((1600, 1200)).save(folder / "large.jpg", progressive=True)
    image.convert("L").save(folder / "grey.jpg")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("P").save(folder / "palette.png")
    image.convert("1").save(folder / "two.png")
    image.convert("P").save(folder / "clear.gif", transparency=3)
    layers = np.dstack([np.asarray(image), np.asarray(image)[..., 0]])
    Image.fromarray(layers).save(folder / "clear.png")
    Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 200).save(folder / "deep.png")
    Image.fromarray(np.asarray(image)[..., 0] / np.float32(255)).save(folder / "float.tif")
    image.resize((900, 20)).save(folder / "wide.jpg")
    image.resize((5, 7)).save(folder / "tiny.png")
    (folder / "in").mkdir()
    image.save(folder / "in" / "deeper.jpeg", quality=40, subsampling=2)
    return folder


def test_the_script_needs_neither_torch_nor_this_package(exported: Path, run: Path, tmp_path: Path) -> None:
    images = pictures_of_every_kind(tmp_path / "images")
    program = f"""
import runpy, sys
for name in ("acclimate", "torch", "timm", "scipy", "sklearn"):
    sys.modules[name] = None  # importing it fails
sys.argv = ["onnx_predict.py", {str(exported)!r}, {str(images)!r}]
runpy.run_path({str(exported.with_name("onnx_predict.py"))!r}, run_name="__main__")
"""
    command = [sys.executable, "-I", "-X", "utf8", "-c", program]
    found = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True).stdout
    expected = succeeds("predict", run, images).stdout
    one, other = (list(csv.DictReader(text.splitlines())) for text in (found, expected))
    assert len(one) == 19
    assert [(row["path"], row["predicted"]) for row in one] == [(row["path"], row["predicted"]) for row in other]
    for a, b in zip(one, other, strict=True):
        for name in ("confidence", "a", "b", "ç"):
            assert float(a[name]) == pytest.approx(float(b[name]), abs=1e-4)


def test_a_file_that_is_no_image_is_left_out(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "images")
    (tmp_path / "images" / "a" / "0.png").write_bytes(b"none")
    monkeypatch.setattr(sys, "argv", ["onnx_predict.py", str(exported), str(tmp_path / "images")])
    onnx_predict.main()
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 12
    assert err.startswith("a/0.png is left out: ")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("aspect", ["keep", "squash"])
def test_the_script_prepares_images_to_the_bit(channels: Any, aspect: Any, tmp_path: Path) -> None:
    recipe = Preprocess(40, 32, (0.5,) * channels, (0.5,) * channels, "bicubic", channels, aspect)
    entries = json.loads(json.dumps(recipe.__dict__))
    for path in pictures_of_every_kind(tmp_path / "images").rglob("*.*"):
        expected = recipe.plain(recipe.resized(read_image(path, at_least=40)))
        assert np.array_equal(onnx_predict.pixels(path, entries), expected), path.name


def test_what_is_in_the_file(exported: Path, run: Path) -> None:
    session = onnxruntime.InferenceSession(exported)
    entries = session.get_modelmeta().custom_metadata_map
    assert (entries["method"], json.loads(entries["classes"])) == ("wemnet", ["a", "b", "ç"])
    assert Preprocess(**json.loads(entries["preprocess"])) == Model.load(run).spec.preprocess
    assert len(entries["sha256 of model.safetensors"]) == 64
    assert [(output.name, output.shape[1]) for output in session.get_outputs()] == [
        ("probabilities", 3),
        ("features", 8),
    ]


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_a_run_on_vectors(ending: str, tmp_path: Path) -> None:
    source, target = vectors(tmp_path / "source.npz"), vectors(tmp_path / "target.npz", shift=0.5)
    run, out = tmp_path / "run", tmp_path / f"model.{ending}"
    succeeds("fit", "--source", source, "--target", target, "--out", run, "--steps", "2", "--bottleneck", "4")
    answer = json.loads(succeeds("export", run, "--out", out, "--json").stdout)
    assert (answer["of_target"], answer["compared"], answer["changed"]) == (True, 24, None)
    assert answer["bytes"] == out.stat().st_size
    assert answer["difference"] < 1e-5
    x = np.load(target)["x"]
    expected = Model.load(run).predict(x).probabilities
    if ending == "onnx":
        p, f = onnx_predict.Reader(out)(x)
    else:
        p, f = (y.detach().numpy() for y in torch.export.load(out).module()(torch.from_numpy(x)))
    assert p == pytest.approx(expected, abs=1e-5)
    assert f.shape == (24, 4)


# --- what goes wrong -----------------------------------------------------------------------------------------------


def test_a_file_that_disagrees_is_not_kept(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reader(path: Path) -> Any:
        return lambda items: (np.full((len(items), 3), 1 / 3), np.zeros((len(items), 8)))

    monkeypatch.setattr(onnx_predict, "Reader", reader)
    monkeypatch.setattr(export, "_write_onnx", lambda program, path, metadata: path.write_bytes(b"wrong"))
    sentence = refused("export", run, "--out", tmp_path / "model.onnx", "--with-script")
    assert sentence.startswith("The file does not predict as the model does: probabilities differ by ")
    assert not [*tmp_path.iterdir()]


def test_files_that_are_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ends neither in .onnx nor in .pt2" in refused("export", run, "--out", tmp_path / "model.pth")
    assert "does not exist: make it" in refused("export", run, "--out", tmp_path / "none" / "model.onnx")
    assert "holds no finished model" in refused("export", tmp_path, "--out", tmp_path / "model.onnx")
    assert "--with-script is for ONNX" in refused("export", run, "--out", tmp_path / "model.pt2", "--with-script")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    needed = "An ONNX file needs three more packages: install them with `pip install acclimate[onnx]`."
    assert refused("export", run, "--out", tmp_path / "model.onnx") == needed


def test_an_onnx_file_of_another_program(exported: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(exported)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match="is not of the schema 1 that this file reads: export the run again"):
        onnx_predict.Reader(tmp_path / "other.onnx")


def test_the_script_refuses_what_it_cannot_read_in_a_sentence(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx

    model = onnx.load(exported)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    (tmp_path / "none.onnx").write_bytes(b"none")
    for name, sentence in {"other": "is not of the schema 1", "none": "none.onnx", "missing": "missing.onnx"}.items():
        monkeypatch.setattr(sys, "argv", ["onnx_predict.py", str(tmp_path / f"{name}.onnx"), str(tmp_path)])
        with pytest.raises(SystemExit, match="2"):
            onnx_predict.main()
        told = capsys.readouterr().err
        assert sentence in told
        assert told.startswith("Error: ")
        assert len(told.splitlines()) == 1


def test_the_features_are_compared_too() -> None:
    p, f = np.eye(3), np.ones((3, 4))
    with pytest.raises(DataError, match="does not give the features of the model"):
        export._difference(Path("m.onnx"), (p, f), (p, 1.1 * f))
