"""Backbones from outside of the package: files, modules and timm's folders, and that nobody's code runs by itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from acclimate import AdaptiveClassifier
from acclimate.data.preprocess import Preprocess
from acclimate.data.read import read_target
from acclimate.errors import DataError, OptionError
from acclimate.model import Model
from acclimate.networks.backbones import load_backbone
from acclimate.networks.outside import IMAGENET
from acclimate.runs.fit import fit
from acclimate.screen import Screen
from acclimate.settings import Settings
from tiny import acclimate, pictures, refused, succeeds

NETS = """
import torch
from torch import nn

from acclimate.data.preprocess import Preprocess

print("the stranger's code runs")


def small():
    torch.manual_seed(5)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
    return layers, Preprocess(resize=12, size=10, mean=(0.5,) * 3, std=(0.5,) * 3)


def vector():
    layers, preprocess = small()
    return nn.Sequential(layers, nn.Flatten(), nn.Linear(128, 6)), preprocess
"""
RUNS = "the stranger's code runs"
SMALL = ("--bottleneck", "8", "--batch-size", "6", "--steps", "3", "--method", "dann")
HALF = (0.5, 0.5, 0.5)
TINY = Preprocess(resize=12, size=10, mean=HALF, std=HALF)


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "nets.py").write_text(NETS)
    return tmp_path / "code" / "nets.py"


@pytest.fixture
def data(tmp_path: Path) -> tuple[str | Path, ...]:
    source, target = pictures(tmp_path / "source"), pictures(tmp_path / "target", shade=20)
    return "--source", source, "--target", target, *SMALL


@pytest.fixture
def trained(tmp_path: Path, nets: Path, data: tuple[str | Path, ...]) -> Path:
    succeeds("fit", *data, "--backbone", f"{nets}:small", "--out", tmp_path / "run")
    return tmp_path / "run"


def images(n: int = 12) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    rng, y = np.random.default_rng(0), np.arange(n) % 3
    return (rng.integers(0, 60, (n, 12, 12, 3)) + 60 * y[:, None, None, None]).astype(np.uint8), y


def stores(folder: Path) -> int:
    return len(list((folder / "cache" / "features").iterdir()))


class Net(nn.Module):
    """Makes a map of 8 channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.layers(x)
        return h


class Doubled(Net):
    """Has the same weights, and makes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


# --- a stranger's way ----------------------------------------------------------------------------------------------


def test_a_backbone_from_a_file_is_trained_on_used_and_goes_on(
    tmp_path: Path, nets: Path, data: tuple[str | Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    monkeypatch.chdir(nets.parent)
    result = succeeds("fit", *data, "--backbone", "nets.py:small", "--out", run, "--compare", "--report")
    assert "Warning" not in result.stderr  # the report knows the backbone
    record = json.loads((run / "record.json").read_text())
    assert record["settings"]["backbone"] == record["model"]["backbone"] == f"{nets}:small"
    assert record["model"]["tune"] == "head"
    monkeypatch.chdir(tmp_path)
    assert "dann is finished already" in succeeds("fit", *data, "--backbone", "code/nets.py:small", "--out", run).stderr
    for again in ("code/nets.py:small", f"{nets}:small"):
        succeeds("predict", run, data[3], "--out", tmp_path / "p.csv", "--backbone", again)
        assert (tmp_path / "p.csv").read_bytes() == (run / "predictions.csv").read_bytes()
    scores = succeeds("evaluate", run, data[3], "--json", "--backbone", "code/nets.py:small").stdout
    assert json.loads(scores.removeprefix(f"{RUNS}\n")) == record["scores"]
    assert stores(tmp_path) == 1


@pytest.mark.parametrize(
    ("function", "method", "tune"),
    [("small", "tada", "head"), ("small", "dann", "all"), ("vector", "dann", "head"), ("vector", "mcd", "all")],
)
def test_maps_and_vectors_are_trained_on(
    function: str, method: str, tune: str, tmp_path: Path, nets: Path, data: tuple[str | Path, ...]
) -> None:
    run, backbone = tmp_path / "run", ("--backbone", f"{nets}:{function}")
    succeeds("fit", *data, *backbone, "--method", method, "--tune", tune, "--out", run)
    succeeds("predict", run, data[3], "--out", tmp_path / "p.csv", *backbone)
    assert (tmp_path / "p.csv").read_bytes() == (run / "predictions.csv").read_bytes()


def test_what_a_vector_cannot_serve(tmp_path: Path, nets: Path, data: tuple[str | Path, ...]) -> None:
    command = ("fit", *data, "--out", tmp_path / "run", "--backbone")
    result = acclimate(*command, f"{nets}:vector", "--method", "tada")
    assert (result.exit_code, "this network makes none; choose a convolutional backbone" in result.stderr) == (2, True)
    result = acclimate(*command, f"{nets}:small", "--tune", "top")
    assert (result.exit_code, "cannot be split; use --tune head or --tune all." in result.stderr) == (2, True)


def test_a_bench_with_a_backbone_from_a_file(tmp_path: Path, nets: Path, data: tuple[str | Path, ...]) -> None:
    (tmp_path / "grid.toml").write_text(
        'seeds = [0]\ndata = { tasks = ["S-T"], domains = { S = "source", T = "target" } }\n'
        'settings = { steps = 2, batch_size = 6, bottleneck = 8, backbone = "code/nets.py:small" }\n'
        '[[row]]\nname = "DANN"\n'
        '[[row]]\nname = "source-only"\nsettings = { backbone = "lenet" }\n'
    )
    succeeds("bench", tmp_path / "grid.toml", "--out", tmp_path / "bench", "--jobs", "2")
    text = (tmp_path / "bench" / "records.jsonl").read_text()
    dann, plain = map(json.loads, text.splitlines())
    assert (dann["status"], plain["status"]) == ("done", "done"), (dann["error"], plain["error"])
    assert (dann["settings"]["backbone"], dann["trained"]["backbone"]) == ("small", "small")
    assert dann["code"]["backbone"]["kind"] == "file"
    assert "code" not in plain
    assert str(tmp_path) not in text


# --- nobody's code runs by itself ----------------------------------------------------------------------------------


def test_a_model_runs_no_file_by_itself(
    tmp_path: Path, nets: Path, trained: Path, data: tuple[str | Path, ...]
) -> None:
    for name in [name for name in sys.modules if name.startswith("acclimate_outside_")]:
        del sys.modules[name]
    needed = (
        f"The model in {trained} was trained with the backbone {nets}:small, which is no part of Acclimate and is used "
        f"only if you name it: give it again with --backbone {nets}:small (backbone= in Python)."
    )
    assert refused("predict", trained, data[3], "--out", tmp_path / "p.csv") == needed
    assert refused("evaluate", trained, data[3]) == needed
    report = succeeds("report", trained)
    assert needed in report.stderr
    content = json.loads((trained / "model.json").read_text())
    (trained / "model.json").write_text(json.dumps({**content, "backbone_origin": None}))  # a forgery
    with pytest.raises(DataError, match=r"of another version \(There is no backbone '.*nets\.py:small'"):
        Model.load(trained)
    assert not [name for name in sys.modules if name.startswith("acclimate_outside_")]


def test_a_file_that_has_changed_or_holds_another_is_refused(
    tmp_path: Path, nets: Path, trained: Path, data: tuple[str | Path, ...]
) -> None:
    evaluate = ("evaluate", trained, data[3], "--backbone")
    for given in (f"{nets}:vector", "lenet"):
        result = acclimate(*evaluate, given)
        assert (result.exit_code, f"the backbone {nets}:small, not with {given}" in result.stderr) == (2, True)
    moved = nets.rename(tmp_path / "moved.py")
    succeeds(*evaluate, f"{moved}:small")
    moved.write_text(NETS + "\n")
    result = acclimate(*evaluate, f"{moved}:small")
    assert (result.exit_code, "and the file has changed since: give it as it was" in result.stderr) == (2, True)


def test_a_backbone_is_not_given_to_a_model_that_has_its_own(tmp_path: Path, data: tuple[str | Path, ...]) -> None:
    succeeds("fit", *data, "--backbone", "lenet", "--out", tmp_path / "run")
    evaluate = ("evaluate", tmp_path / "run", data[3], "--backbone")
    succeeds(*evaluate, "lenet")
    assert refused(*evaluate, "digits_cnn").endswith("the backbone lenet, not with digits_cnn: leave out --backbone.")


# --- cached features -----------------------------------------------------------------------------------------------


def test_changed_code_shares_no_features(tmp_path: Path, nets: Path, data: tuple[str | Path, ...]) -> None:
    command = ("fit", *data, "--backbone", f"{nets}:small", "--out")
    succeeds(*command, tmp_path / "a")
    before = (tmp_path / "a" / "predictions.csv").read_bytes()
    nets.write_text(NETS.replace("nn.ReLU()", "nn.Tanh()"))  # with the same weights
    succeeds(*command, tmp_path / "b")
    assert stores(tmp_path) == 2
    assert (tmp_path / "b" / "predictions.csv").read_bytes() != before
    assert "holds a run with other data, other code or" in acclimate(*command, tmp_path / "a").stderr


def test_modules_of_equal_weights_share_features_if_they_make_the_same(tmp_path: Path) -> None:
    X, y = images()
    proba = []
    small: dict[str, Any] = {"method": "dann", "tune": "head", "steps": 2, "random_state": 0}
    for number, module in ((1, Net()), (1, Net()), (2, Doubled())):
        fitted = AdaptiveClassifier(backbone=(module, TINY), **small).fit(X, y)
        proba.append(fitted.predict_proba(X))
        assert stores(tmp_path) == number
    assert np.array_equal(proba[0], proba[1])
    assert not np.array_equal(proba[0], proba[2])


# --- modules that are handed over ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tune", ["head", "all"])
def test_a_module_for_the_estimator(tune: Any, tmp_path: Path) -> None:
    X, y = images()
    module = Net()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    small: dict[str, Any] = {"method": "dann", "tune": tune, "bottleneck": 8, "steps": 3, "random_state": 0}
    fitted = AdaptiveClassifier(backbone=(module, TINY), **small).fit(X, y)
    again = AdaptiveClassifier(backbone=(module, TINY), **small).fit(X, y)
    assert np.array_equal(fitted.predict_proba(X), again.predict_proba(X))  # the first fit trained a copy
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert module.training

    fitted.model_.save(tmp_path)
    pictures(tmp_path / "images")
    domain = read_target(tmp_path / "images")
    expected = fitted.model_.predict(domain).probabilities
    sentence = (
        r"with the backbone Net, which was handed over in Python: load the model with .*\(folder, backbone=\.\.\.\)\.$"
    )
    with pytest.raises(OptionError, match=sentence):
        Model.load(tmp_path)
    other = Net()
    nn.init.zeros_(other.layers[0].weight)  # type: ignore[arg-type]
    for given in (other, (other, IMAGENET), (other, TINY)):  # the weights and the preprocessing are the model's
        loaded = Model.load(tmp_path, backbone=given)
        assert loaded.spec == fitted.model_.spec
        assert np.array_equal(loaded.predict(domain).probabilities, expected)


def test_a_module_alone_takes_images_as_imagenet_has_them() -> None:
    backbone = load_backbone(Net())
    assert (backbone.name, backbone.channels, backbone.preprocess, backbone.pretrained) == ("Net", 8, IMAGENET, True)
    x = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(backbone(x), Net()(x).mean((2, 3)), atol=1e-6)
    assert not backbone.training


def test_a_model_of_timm_is_divided_as_by_its_name() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet")  # with a classifier
    backbone, named = load_backbone(model), load_backbone("test_resnet", pretrained=False)
    assert (backbone.preprocess, backbone.channels) == (named.preprocess, named.channels)
    x = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        model.eval()
        assert torch.equal(backbone(x), model.forward_head(model.forward_features(x), pre_logits=True))
    assert model.get_classifier().out_features == 1000
    assert load_backbone((model, TINY)).preprocess == TINY


def test_a_backbone_is_handed_over_as_it_is(tmp_path: Path) -> None:
    lenet = load_backbone("lenet")
    backbone = load_backbone(lenet)
    assert (backbone.name, backbone.pretrained, backbone.preprocess) == ("Backbone", False, lenet.preprocess)
    save_file(lenet.state_dict(), tmp_path / "w.safetensors")
    assert load_backbone(lenet, weights=tmp_path / "w.safetensors").pretrained


def test_weights_for_a_module(tmp_path: Path) -> None:
    module = Net()
    nn.init.ones_(module.layers[0].weight)  # type: ignore[arg-type]
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    backbone = load_backbone((Net(), TINY), weights=tmp_path / "w.safetensors")
    assert torch.equal(backbone.body.layers[0].weight, module.layers[0].weight)  # type: ignore[index, union-attr]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            5,
            "The backbone is an object of type int: give a name, a torch.nn.Module, or a pair",
        ),
        ((Net(), 5), "The backbone is a tuple of Net, int: give a name, a torch.nn.Module, or a pair"),
        (nn.Linear(2, 3), "Linear cannot take images (2, 3, 224, 224) (RuntimeError: mat1 and mat2 shapes cannot be "),
        (
            (nn.Flatten(2), TINY),
            "Flatten makes a tensor (2, 3, 100) of images: let it make a map (B, C, H, W) or a vec",
        ),
        ((nn.Flatten(0), TINY), "Flatten makes a tensor (600,) of images: let it make a map (B, C, H, W) or a vector"),
    ],
)
def test_modules_that_are_no_backbone(given: Any, sentence: str) -> None:
    with pytest.raises(OptionError) as raised:
        load_backbone(given)
    assert str(raised.value).startswith(sentence)


def test_a_module_has_no_run_directory(tmp_path: Path, data: tuple[str | Path, ...]) -> None:
    settings = Settings(str(data[1]), str(data[3]), backbone=(Net(), TINY))
    with pytest.raises(OptionError, match="A run directory cannot tell a backbone that is handed over in Python"):
        fit(settings, tmp_path / "run", Screen(quiet=True))


# --- files that hold no backbone -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "sentence"),
    [
        (NETS, "nets.py", "nets.py names no function: write nets.py:FUNCTION, for one that makes the backbone."),
        (NETS, "nets.py:smal", "nets.py has no function 'smal'; did you mean small?"),
        ("x = 1\n", "nets.py:x", "nets.py has no function 'x'; there are none."),
        (
            "def f():\n    return 5\n",
            "nets.py:f",
            "nets.py:f makes an object of type int: return a torch.nn.Module and",
        ),
        (
            "def f():\n    return ()\n",
            "nets.py:f",
            "nets.py:f makes a tuple of nothing: return a torch.nn.Module and",
        ),
        ("def f():\n    return 1 / 0\n", "nets.py:f", "nets.py cannot be used: line 2, ZeroDivisionError: division by"),
        (
            "def f(x):\n    return x\n",
            "nets.py:f",
            "nets.py cannot be used: TypeError: f() missing 1 required",
        ),
        ("def f(:\n", "nets.py:f", "nets.py cannot be used: line 1, SyntaxError: invalid syntax; correct the file."),
    ],
)
def test_what_makes_no_backbone(text: str, name: str, sentence: str, nets: Path) -> None:
    nets.write_text(text)
    with pytest.raises(OptionError) as raised:
        load_backbone(name.replace("nets.py", str(nets)))
    assert str(raised.value).replace(str(nets), "nets.py").startswith(sentence)


def test_a_file_that_is_not_there(tmp_path: Path, data: tuple[str | Path, ...]) -> None:
    command = ("fit", *data, "--out", tmp_path / "run", "--backbone", tmp_path / "none.py:small")
    assert refused(*command) == f"There is no file {tmp_path / 'none.py'}: check the path."


# --- timm's folders ------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_for_hf(timm.create_model("test_resnet"), str(tmp_path / "local"), safe_serialization=True)
    return tmp_path / "local"


def test_a_model_in_a_folder(
    folder: Path, tmp_path: Path, data: tuple[str | Path, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    succeeds("fit", *data, "--backbone", "local-dir:local", "--tune", "top", "--out", run)
    model = json.loads((run / "model.json").read_text())
    assert (model["backbone"], model["backbone_origin"]["kind"]) == (f"local-dir:{folder}", "file")
    predict = ("predict", run, data[3], "--out", tmp_path / "p.csv")
    assert "give it again with --backbone local-dir:" in refused(*predict)
    moved = folder.rename(tmp_path / "moved")
    (moved / "model.safetensors").unlink()  # the model has its weights
    succeeds(*predict, "--backbone", f"local-dir:{moved}")
    assert (tmp_path / "p.csv").read_bytes() == (run / "predictions.csv").read_bytes()
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps({**config, "architecture": "resnet18"}))
    assert "the file has changed since" in refused(*predict, "--backbone", f"local-dir:{moved}")


def test_folders_without_a_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"^There is no file .*/none/config\.json: check the path\.$"):
        load_backbone(f"local-dir:{tmp_path / 'none'}")
    (folder / "model.safetensors").unlink()
    with pytest.raises(OptionError, match=r"^timm cannot load local-dir:.*local \(.*\): name a folder with a config"):
        load_backbone(f"local-dir:{folder}")
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "w.safetensors")
    assert load_backbone(f"local-dir:{folder}", weights=tmp_path / "w.safetensors").pretrained
    (folder / "config.json").write_text("{}")
    with pytest.raises(OptionError, match=r"^timm cannot load local-dir:.*\('architecture'\)"):
        load_backbone(f"local-dir:{folder}")
