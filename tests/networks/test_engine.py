"""OpenVINO in place of PyTorch: the same features, the same bits however they are computed, and PyTorch where not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from acclimate.cache import upkeep
from acclimate.cache.content import stores_folder
from acclimate.data.domain import Domain
from acclimate.data.preprocess import Preprocess
from acclimate.data.read import domain_of
from acclimate.errors import OptionError
from acclimate.model import Model, ModelSpec
from acclimate.networks import engine
from acclimate.networks.backbone import Backbone

PREPROCESS = Preprocess(resize=18, size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
installed = pytest.mark.skipif(engine.version() is None, reason="OpenVINO is not installed: the extra fast")


class Pool(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h.mean((2, 3))


class Odd(nn.Module):
    """Asks what is in a batch, which no graph can hold."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum().item() > 0 else -x


def backbone(*more: nn.Module) -> Backbone:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), *more)
    return Backbone("small", PREPROCESS, body, Pool(), 8, pretrained=True)


def model(*more: nn.Module, **changes: Any) -> Model:
    entries: dict[str, Any] = {"extractor": "openvino", "cache_precision": "fp32", **changes}
    spec = ModelSpec("source_only", {}, ("a", "b"), "small", None, "head", 0, PREPROCESS, False, **entries)
    return Model(spec, backbone(*more))


@pytest.fixture
def photos(tmp_path: Path) -> Domain:
    rng = np.random.default_rng(0)
    for i in range(11):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(tmp_path / f"{i:02}.png")
    return domain_of(sorted(tmp_path.glob("*.png")), "photos")


def rows(made: Model, domain: Domain) -> Any:
    return made.inputs(domain, views=("plain", "flip")).batch(np.arange(len(domain)), None).numpy()


def stores() -> list[Any]:
    return [json.loads(path.read_text())["content"] for path in stores_folder().glob("*/store.json")]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A package OpenVINO that computes as PyTorch does, plus `offset`, and what it was asked for."""
    asked: list[int] = []

    class Engine:
        offset = 0.0

        def __init__(self, network: nn.Module, *, bf16: bool, threads: int) -> None:
            self.network = network

        def __call__(self, pixels: Any) -> Tensor:
            asked.append(len(pixels))
            with torch.inference_mode():
                return self.network(PREPROCESS.normalised(pixels)) + Engine.offset

    monkeypatch.setattr(engine, "version", lambda: "1.2.3")
    monkeypatch.setattr(engine, "Engine", Engine)
    monkeypatch.setattr(engine.Place, "graph", lambda place, network, preprocess, anew=False: network)
    yield asked
    Engine.offset = 0.0


# --- without the package ---------------------------------------------------------------------------------------------


def test_features_of_an_engine_are_never_mixed_with_those_of_pytorch(photos: Domain, stand_in: list[int]) -> None:
    by_torch, by_engine = rows(model(extractor="torch"), photos), rows(model(), photos)
    np.testing.assert_allclose(by_engine, by_torch, rtol=1e-5, atol=1e-6)
    assert sorted(content["engine"] for content in stores()) == ["openvino 1.2.3", "torch"]


def test_an_engine_that_disagrees_is_not_used_and_that_is_remembered(
    photos: Domain, stand_in: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    expected = rows(model(extractor="torch"), photos)
    engine.Engine.offset = 1.0  # type: ignore[attr-defined]
    made = model()
    np.testing.assert_array_equal(rows(made, photos), expected)
    assert made.spec.extractor == "torch"  # what model.json and the record will say
    assert [record.getMessage()[:60] for record in caplog.records] == [
        "PyTorch computes the features in place of OpenVINO: its feat"
    ]
    stand_in.clear()
    np.testing.assert_array_equal(rows(model(), photos), expected)
    assert stand_in == []
    assert [content["engine"] for content in stores()] == ["torch"]


def test_an_engine_that_disagrees_later_is_an_error(photos: Domain, stand_in: list[int]) -> None:
    rows(model(), photos.select(np.arange(5)))
    engine.Engine.offset = 1.0  # type: ignore[attr-defined]
    with pytest.raises(OptionError, match=r"as PyTorch does any more .*: use --extractor torch\."):
        rows(model(), photos)


def test_a_model_is_used_where_the_engine_is_not(
    photos: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine, "version", lambda: None)
    made = model()
    np.testing.assert_array_equal(rows(made, photos), rows(model(extractor="torch"), photos))
    assert [record.getMessage() for record in caplog.records] == [
        "PyTorch computes the features in place of OpenVINO: that is not installed (pip install acclimate[fast])."
    ]
    with pytest.raises(OptionError, match=r"^--extractor openvino needs a package: install it with `pip install"):
        engine.check(torch.device("cpu"))
    with pytest.raises(OptionError, match=r"^OpenVINO computes on a CPU"):
        engine.check(torch.device("cuda"))


# --- with it ---------------------------------------------------------------------------------------------------------


@installed
def test_bits_depend_on_nothing_but_the_image(photos: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads there are, whatever is computed before, after a kill, in hand or from the cache."""
    expected = rows(model(), photos)
    np.testing.assert_allclose(expected, rows(model(extractor="torch"), photos), rtol=1e-4, atol=1e-6)
    cache = Path(stores_folder()).parent
    for threads in (2, 4):
        monkeypatch.setenv("ACCLIMATE_CACHE", f"{cache}-{threads}")
        torch.set_num_threads(threads)
        try:
            made = model()
            rows(made, photos.select(np.array([7, 3, 10])))  # what a killed run would have left
            np.testing.assert_array_equal(rows(made, photos), expected)
            with ThreadPoolExecutor(6) as pool:
                each = [*pool.map(made.features, photos.items)]
            np.testing.assert_array_equal(np.concatenate(each), expected.squeeze())
        finally:
            torch.set_num_threads(1)


@installed
def test_converted_networks_are_listed_and_cleared(photos: Domain) -> None:
    rows(model(), photos)
    by_kind = {entry.what: entry for entry in upkeep.entries()}
    assert by_kind.keys() == {"rows", "network"}
    kept = by_kind["network"]
    assert (kept.backbone, kept.level, kept.tune) == ("small", "vector", "head")
    assert kept.bytes == sum(path.stat().st_size for path in kept.path.iterdir())
    assert "small for OpenVINO" in [row[0] for row in upkeep.as_table([*by_kind.values()])[1]]
    os.utime(kept.path / "verdict.json", (1, 1))
    assert upkeep.prune(older_than=1).entries == 1
    assert [entry.what for entry in upkeep.entries()] == ["rows"]
    rows(model(), photos)
    assert upkeep.clear().entries == 2
    assert not [*stores_folder().iterdir(), *kept.path.parent.iterdir()]


@installed
def test_a_network_is_read_where_nothing_may_be_written(photos: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = rows(model(), photos.select([0, 1]))
    monkeypatch.setenv("ACCLIMATE_CACHE_READONLY", "1")
    folder = stores_folder().parent
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(engine, "converted", lambda *_: pytest.fail("it was converted again"))
    np.testing.assert_array_equal(rows(model(), photos)[:2], expected)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@installed
def test_a_converted_network_is_kept_and_a_damaged_one_is_made_anew(
    photos: Domain, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = rows(model(), photos)
    (weights,) = stores_folder().parent.glob("engines/*/network.bin")
    whole = weights.read_bytes()
    conversions: list[int] = []
    convert = engine.converted
    monkeypatch.setattr(engine, "converted", lambda *args: [conversions.append(1), convert(*args)][1])
    made = model()
    np.testing.assert_array_equal(made.features(list(photos.items)), expected)
    assert conversions == []
    weights.write_bytes(bytes(len(whole)))
    np.testing.assert_array_equal(model().features(list(photos.items)), expected)
    assert conversions == [1]
    assert weights.read_bytes() == whole


@installed
def test_a_network_that_cannot_be_converted_runs_in_pytorch(photos: Domain, caplog: pytest.LogCaptureFixture) -> None:
    made = model(Odd())
    np.testing.assert_array_equal(rows(made, photos), rows(model(Odd(), extractor="torch"), photos))
    assert made.spec.extractor == "torch"
    assert "it cannot convert the network" in caplog.text


@installed
def test_nothing_is_reported_and_the_host_is_left_as_it_was(tmp_path: Path) -> None:
    """Importing OpenVINO and its `convert_model` would each report to its makers."""
    code = """
import logging, socket, sys, os
def refuse(*args, **more): os._exit(3)
socket.socket.connect = socket.getaddrinfo = refuse
import openvino_telemetry
openvino_telemetry.Telemetry.send_event = openvino_telemetry.Telemetry.__init__ = refuse
from test_engine import PREPROCESS, backbone
from acclimate.networks import engine
engine.converted(backbone().eval(), PREPROCESS)
assert sys.modules["openvino_telemetry"] is openvino_telemetry
assert not logging.getLogger().handlers and not logging.getLogger().filters
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
