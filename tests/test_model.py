"""Models on disk: they predict as they did when they were trained, and opening one from a stranger is safe."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from acclimate.data.batches import Labelled, Unlabelled
from acclimate.data.domain import Domain
from acclimate.data.inputs import ImageInputs
from acclimate.data.read import read_target
from acclimate.errors import DataError
from acclimate.methods import registry
from acclimate.model import Model, ModelSpec
from acclimate.networks.backbones import load_backbone
from acclimate.runs.files import read_predictions
from tiny import in_closed_form, pictures, refused, small, succeeds, trained_alone, vectors

TIMM = "test_resnet"
SMALL = ("--bottleneck", "8", "--batch-size", "6", "--steps", "3")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(timm.create_model(TIMM).state_dict(), file)
    return file


def spec(**changes: Any) -> ModelSpec:
    content: dict[str, Any] = {
        "method": "wemnet",
        "options": {"trade_off": 0.5},
        "classes": ("a", "b", "c"),
        "backbone": None,
        "vector": 6,
        "tune": "head",
        "bottleneck": 8,
        "preprocess": None,
        "bf16": False,
    }
    return ModelSpec(**{**content, **changes})


def built(kind: str, method: str, folder: Path, weights: Path) -> tuple[Model, Domain]:
    """A model with random weights whose normalisation has seen a batch, and what it can read."""
    torch.manual_seed(0)
    if kind == "vectors":
        domain = read_target(vectors(folder / "target.npz"))
        model = Model(spec(method=method, options=small(method)), None)
    else:
        name = "lenet" if kind == "scratch" else TIMM
        tune = "all" if kind == "scratch" else kind
        domain = read_target(pictures(folder / "target"))
        backbone = load_backbone(name, weights=None if kind == "scratch" else weights)
        how = {"backbone": name, "vector": None, "tune": tune, "preprocess": backbone.preprocess}
        model = Model(spec(method=method, options=small(method), **how), backbone)
    model.method.train()
    x, index = model.inputs(domain).batch(np.arange(6), None), torch.arange(6)
    with torch.no_grad():  # BatchNorm and moving averages have seen a batch
        next(model.method.step(Labelled(x, index % 3, index), Unlabelled(x, index)))
        model.method.predict(x)
    return model, domain


KINDS = ("vectors", "scratch", "head", "top", "all")
LEVELS = {"vector": KINDS, "map": KINDS[1:], "image": ("scratch", "all")}


@pytest.mark.parametrize(
    ("kind", "method"),
    # A closed form predicts only when it is fitted; its own tests save it then.
    [(LEVELS[registry.load(m).needs][0], m) for m in trained_alone() if not in_closed_form(m)]
    + [(k, m) for m in ("wemnet", "tada", "gta") for k in LEVELS[registry.load(m).needs][1:]],
)
def test_a_loaded_model_predicts_the_same(kind: str, method: str, tmp_path: Path, weights: Path) -> None:
    model, domain = built(kind, method, tmp_path, weights)
    before = model.predict(domain).probabilities
    model.save(tmp_path)
    torch.manual_seed(1)
    loaded = Model.load(tmp_path)
    assert loaded.spec == model.spec
    assert np.array_equal(loaded.predict(domain).probabilities, before)
    assert len(np.unique(before, axis=0)) > 1  # it does read its input
    state, again = model.method.state_dict(), loaded.method.state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(state[name], again[name]) for name in state)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_called_with_a_batch(kind: str, tmp_path: Path, weights: Path) -> None:
    model, domain = built(kind, "dann", tmp_path, weights)
    preprocess = model.spec.preprocess
    inputs = model.inputs(domain) if preprocess is None else ImageInputs(domain, preprocess)
    x = inputs.batch(np.arange(len(domain)), None)
    state = {name: tensor.clone() for name, tensor in model.method.state_dict().items()}
    z = model(x)
    assert z.softmax(1).detach().numpy() == pytest.approx(
        model.predict(domain).probabilities, abs=1e-3
    )  # the cache has 16 bits
    assert model.method.training
    assert all(torch.equal(state[name], tensor) for name, tensor in model.method.state_dict().items())
    z.sum().backward()
    assert any(parameter.grad is not None for parameter in model.method.parameters())
    with torch.inference_mode():
        assert not model(x).requires_grad


# --- images in hand ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS[1:])
def test_images_in_hand_are_classified_as_a_folder_is_and_leave_no_cache(
    kind: str, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, domain = built(kind, "dann", tmp_path, weights)
    expected, f = model.predict(domain), model.features(domain)
    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path / "none"))
    arrays = [np.asarray(Image.open(path)) for path in domain.items]
    forms: list[Any] = [
        list(domain.items),
        np.array(domain.items),
        [Path(path) for path in domain.items],
        [Path(path).read_bytes() for path in domain.items],
        [Image.open(path) for path in domain.items],
        arrays,
        np.stack(arrays),
        (array for array in arrays),
        [domain.items[0], Path(domain.items[1]).read_bytes(), Image.open(domain.items[2]), *arrays[3:]],
    ]
    for images in forms:
        found = model.predict(images)
        assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
        assert found.predicted == expected.predicted
    assert model.features(arrays) == pytest.approx(f, abs=1e-3 * float(f.max()))
    for image in (domain.items[5], Path(domain.items[5]).read_bytes(), Image.open(domain.items[5]), arrays[5]):
        alone = model.predict(image)
        assert alone.probabilities == pytest.approx(expected.probabilities[5:6], abs=1e-5)
        assert alone.predicted == expected.predicted[5:6]
    assert not (tmp_path / "none").exists()


def test_vectors_in_hand() -> None:
    torch.manual_seed(0)
    model = Model(spec(), None)
    x = np.random.default_rng(0).normal(size=(5, 6))
    p = model.predict(x).probabilities
    assert p.shape == (5, 3)
    assert np.array_equal(model.predict(x.tolist()).probabilities, p)
    np.testing.assert_allclose(
        model.predict(x[2]).probabilities, p[2:3], rtol=1e-6
    )  # batches of another size add up so
    assert model.features(x[:2]).shape == (2, 8)
    with pytest.raises(DataError, match=r"^What was given has vectors of 5 numbers, but the model reads 6: "):
        model.predict(x[:, :5])
    with pytest.raises(DataError, match=r"^What was given holds images, but the model reads feature vectors: "):
        model.predict(np.zeros((4, 5, 3), np.uint8))


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        ([], r"There are no images: give at least one\."),
        (
            [b"no image"],
            r"Image 1 of 1 cannot be read as an image \(it is not a JPEG, PNG, .*\): replace or remove it\.",
        ),
        (["none.jpg"], r"none\.jpg cannot be read as an image \(there is no such file\): replace or remove it\."),
        (
            [np.zeros((4, 4), np.uint8), 5],
            r"Image 2 of 2 is of type int: give a path, the bytes of an image file, .*\.",
        ),
        (np.zeros((2, 4, 4, 3)), r"Image 1 of 2 is float64 of shape \(4, 4, 3\): give a path, .*\."),
    ],
)
def test_what_is_no_image(images: Any, sentence: str) -> None:
    backbone = load_backbone("lenet", pretrained=False)
    entries = {"backbone": "lenet", "vector": None, "tune": "all", "preprocess": backbone.preprocess}
    with pytest.raises(DataError, match=f"^{sentence}$"):
        Model(spec(**entries), backbone).predict(images)


@pytest.mark.parametrize("kind", ["vectors", "top", "all"])
def test_several_threads_may_predict_with_one_model(kind: str, tmp_path: Path, weights: Path) -> None:
    model, domain = built(kind, "dann", tmp_path, weights)
    model.save(tmp_path)
    loaded = Model.load(tmp_path)
    images = domain.items if kind == "vectors" else list(domain.items)
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda i: loaded.predict(images[i : i + 1]).probabilities, 3 * [*range(len(domain))])]
    expected = [Model.load(tmp_path).predict(images[i : i + 1]).probabilities for i in range(len(domain))]
    assert np.array_equal(found, 3 * expected)


# --- models on disk ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vectors", "scratch", "head", "top", "all"])
def test_predict_repeats_the_run_to_the_byte(kind: str, tmp_path: Path, weights: Path) -> None:
    if kind == "vectors":
        source, target = vectors(tmp_path / "source.npz"), vectors(tmp_path / "target.npz", shift=0.5)
        options: tuple[str | Path, ...] = ()
    else:
        source, target = pictures(tmp_path / "source"), pictures(tmp_path / "target", shade=20)
        net = ("lenet",) if kind == "scratch" else (TIMM, "--weights", weights, "--tune", kind)
        options = ("--backbone", *net)
    run = tmp_path / "run"
    succeeds("fit", "--source", source, "--target", target, "--out", run, *SMALL, *options)
    succeeds("predict", run, target, "--out", tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == (run / "predictions.csv").read_bytes()
    scores = json.loads(succeeds("evaluate", run, target, "--json").stdout)
    assert scores == json.loads((run / "record.json").read_text())["scores"]

    shutil.rmtree(tmp_path / "cache", ignore_errors=True)  # what the fit computed is not needed
    succeeds("predict", run, target, "--out", tmp_path / "anew.csv")
    assert (tmp_path / "anew.csv").read_bytes() == (run / "predictions.csv").read_bytes()

    model, domain = Model.load(run), read_target(target)  # batches of another size change the last bits alone
    part = model.predict(domain.select([1, 5, 7])).probabilities
    whole = read_predictions(run / "predictions.csv", len(domain), 3).probabilities
    assert part == pytest.approx(whole[[1, 5, 7]], abs=1e-5)


def test_a_run_can_be_moved(tmp_path: Path) -> None:
    source, target = vectors(tmp_path / "source.npz"), vectors(tmp_path / "target.npz", shift=0.5)
    succeeds("fit", "--source", source, "--target", target, "--out", tmp_path / "run", *SMALL)
    expected = (tmp_path / "run" / "predictions.csv").read_bytes()
    moved = (tmp_path / "run").rename(tmp_path / "moved")
    source.unlink()
    for path in moved.iterdir():
        if path.name not in ("model.json", "model.safetensors"):  # all that prediction needs
            path.unlink()
    succeeds("predict", moved, target, "--out", tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_bytes() == expected


def test_saving_follows_no_link_that_somebody_has_planted(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"precious")
    names = ("model.safetensors", ".model.safetensors.tmp", "model.json", f".model.json.{os.getpid()}.tmp")
    for name in names:
        (tmp_path / name).symlink_to(tmp_path / "elsewhere")
    Model(spec(), None).save(tmp_path)
    assert (tmp_path / "elsewhere").read_bytes() == b"precious"
    assert [(tmp_path / name).is_symlink() for name in names] == [False, True, False, True]
    Model.load(tmp_path)


# --- a model from a stranger ---------------------------------------------------------------------------------------


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    Model(spec(), None).save(tmp_path)
    return tmp_path


def altered(folder: Path, **changes: Any) -> str:
    """The sentence that refuses a model whose model.json has other entries; ... leaves one out."""
    description = json.loads((folder / "model.json").read_text())
    description.update(changes)
    content = {name: value for name, value in description.items() if value is not ...}
    (folder / "model.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as raised:
        Model.load(folder)
    sentence = str(raised.value)
    start = f"The model in {folder} is damaged or of another version ("
    assert sentence.startswith(start)
    assert "\n" not in sentence
    return sentence.removeprefix(start).removesuffix("): train it again.")


def test_nothing_is_unpickled(stranger: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return os.mkdir, (str(stranger / "sprung"),)

    torch.save({"x": Evil()}, stranger / "evil.pth")
    torch.load(stranger / "evil.pth", weights_only=False)
    (stranger / "sprung").rmdir()  # the trap works
    shutil.copy(stranger / "evil.pth", stranger / "model.safetensors")
    with pytest.raises(DataError, match="is damaged or of another version"):
        Model.load(stranger)
    assert not (stranger / "sprung").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("method", 5),
        ("options", []),
        ("options", None),
        ("classes", "abc"),
        ("classes", ["a", "a", "b"]),
        ("classes", ["a"]),
        ("classes", [1, 2, 3]),
        ("classes", None),
        ("backbone", 5),
        ("vector", 0),
        ("vector", "6"),
        ("vector", True),
        ("tune", "most"),
        ("tune", ["head"]),
        ("bottleneck", -8),
        ("bottleneck", 8.0),
        ("preprocess", {"interpolation": "bilinear"}),
        ("bf16", "yes"),
        ("cache_precision", "fp8"),
    ],
)
def test_an_impossible_entry(stranger: Path, name: str, value: object) -> None:
    reason = altered(stranger, **{name: value})
    assert reason.startswith("model.json has an impossible value of ")
    assert name in reason


@pytest.mark.parametrize(
    "name", ["method", "options", "classes", "backbone", "vector", "preprocess", "bf16", "cache_precision"]
)
def test_a_missing_entry(stranger: Path, name: str) -> None:
    assert altered(stranger, **{name: ...}) == f"model.json lacks '{name}'"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"method": "../../evil"}, "There is no method '../../evil'; there are adda"),
        ({"method": "os"}, "There is no method 'os'; there are adda"),
        ({"options": {"trade_of": 1}}, "wemnet has no option 'trade_of'; did you mean trade_off?"),
        ({"options": {"trade_off": "much"}}, "The option trade_off of wemnet takes a number, not 'much'"),
        ({"classes": ["a", "b"]}, "the weights do not fit model.json"),
        ({"vector": 7}, "the weights do not fit model.json"),
        ({"vector": None}, "It has neither a backbone nor a length of its vectors"),
        ({"bottleneck": 0}, "the weights do not fit model.json"),
        ({"method": "source_only", "options": {}}, "the weights do not fit model.json"),
    ],
)
def test_entries_that_do_not_fit(stranger: Path, changes: dict[str, Any], reason: str) -> None:
    assert altered(stranger, **changes).startswith(reason)


@pytest.mark.parametrize("name", ["hf-hub:someone/something", "local-dir:/", "https://example.org/model", "nonsense"])
def test_a_backbone_from_elsewhere_is_not_fetched(stranger: Path, name: str) -> None:
    sound = {"resize": 28, "size": 28, "mean": [0.5], "std": [0.5], "interpolation": "bilinear", "channels": 1}
    reason = altered(stranger, backbone=name, preprocess={**sound, "aspect": "keep"})
    assert reason.startswith(f"There is no backbone {name!r}")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"interpolation": "hamming"}, "model.json has an impossible value of interpolation"),
        ({"size": 29}, "A crop of 29 pixels does not fit a resized image of 28"),
        ({"mean": [0.5, 0.5]}, "Images of 1 channels need as many means"),
        ({"mean": 0.5}, "'float' object is not iterable"),
        ({"sharpen": 1}, "Preprocess.__init__() got an unexpected keyword argument 'sharpen'"),
    ],
)
def test_impossible_preprocessing(stranger: Path, changes: dict[str, Any], reason: str) -> None:
    sound = {"resize": 28, "size": 28, "mean": [0.5], "std": [0.5], "interpolation": "bilinear", "channels": 1}
    preprocess = {**sound, "aspect": "keep", **changes}
    assert altered(stranger, backbone="lenet", tune="all", preprocess=preprocess).startswith(reason)


def test_a_giant_is_refused_before_it_is_made(stranger: Path) -> None:
    """A kilobyte of description that names a network of 4.5 GB; a second of building it without memory."""
    preprocess = {"resize": 518, "size": 518, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}
    preprocess |= {"channels": 3, "aspect": "keep"}
    before = getrusage(RUSAGE_SELF).ru_maxrss
    reason = altered(stranger, backbone="vit_giant_patch14_dinov2", vector=None, tune="all", preprocess=preprocess)
    assert reason == "the weights do not fit model.json"
    assert getrusage(RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


def test_a_flipped_bit_of_a_model_is_noticed_or_harmless(stranger: Path) -> None:
    whole, noticed = Model.load(stranger), 0
    for name in ("model.json", "model.safetensors"):
        content = (stranger / name).read_bytes()
        for at in range(0, len(content), len(content) // 20):
            damaged = bytearray(content)
            damaged[at] ^= 4
            (stranger / name).write_bytes(damaged)
            try:
                loaded = Model.load(stranger)
            except DataError:
                noticed += 1
                continue
            assert loaded.spec == whole.spec
            assert all(
                torch.equal(a, b)
                for a, b in zip(loaded.method.state_dict().values(), whole.method.state_dict().values(), strict=True)
            )
        (stranger / name).write_bytes(content)
    assert noticed > 30


def test_weights_with_a_tensor_too_many_or_too_few(stranger: Path) -> None:
    file = stranger / "model.safetensors"
    tensors = load_file(file)
    name = "method/net.bottleneck.0.weight"
    for other in (
        {k: v for k, v in tensors.items() if k != name},
        {**tensors, "method/more": torch.zeros(1)},
        {**tensors, name: torch.zeros(1)},
    ):
        save_file(other, file)
        assert altered(stranger) == "the weights do not fit model.json"
    save_file(tensors, file)
    assert Model.load(stranger).spec == spec()


def test_a_class_name_stays_data(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    torch.manual_seed(0)
    Model(spec(classes=("=1+1", "[bold]b[/bold]", 'c"\n')), None).save(run)
    target = vectors(tmp_path / "target.npz", labelled=False)
    result = json.loads(succeeds("predict", run, target, "--out", tmp_path / "p.csv", "--json").stdout)
    assert list(result["classes"]) == ["=1+1", "[bold]b[/bold]", 'c"\n']
    assert '(=1+1, [bold]b[/bold], c"\\n)' in refused("evaluate", run, target)


@pytest.mark.parametrize(("name", "tune"), [("test_efficientnet", "top"), ("lenet", "all")])
def test_grouped_convolutions_and_those_of_images_are_trained_with_the_channels_last(
    name: str, tune: str, tmp_path: Path
) -> None:
    backbone = load_backbone(name, pretrained=False)
    entries = {"backbone": name, "vector": None, "tune": tune, "preprocess": backbone.preprocess}
    Model(spec(**entries), backbone).save(tmp_path)
    weights = [p for p in Model.load(tmp_path).method.net.encoder.parameters() if p.ndim == 4]
    assert weights
    for w in weights:  # the strides, since weights of one pixel or one channel are contiguous either way
        assert w.stride() == torch.empty_like(w, memory_format=torch.channels_last).stride()
