"""The examples work; each is skipped where its framework is not installed."""

from __future__ import annotations

import io
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from acclimate.model import Model, ModelSpec
from acclimate.networks.backbones import load_backbone

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    torch.manual_seed(0)
    backbone = load_backbone("lenet", pretrained=False)
    spec: Any = ("source_only", {}, ("a", "b", "c"), "lenet", None, "all", 8, backbone.preprocess)
    Model(ModelSpec(*spec, bf16=False), backbone).save(tmp_path)
    monkeypatch.setenv("ACCLIMATE_RUN", str(tmp_path))
    return Model.load(tmp_path)


def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", ["serve_fastapi", "page_gradio"])
def test_an_example_is_short(name: str) -> None:
    compile((EXAMPLES / f"{name}.py").read_text(encoding="utf-8"), name, "exec")
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 27


@pytest.mark.filterwarnings("ignore")
def test_the_endpoint(model: Model) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    pytest.importorskip("multipart")
    from fastapi.testclient import TestClient

    buffer = io.BytesIO()
    image().save(buffer, "PNG")
    with TestClient(runpy.run_path(str(EXAMPLES / "serve_fastapi.py"))["app"]) as client:
        answer = client.post("/predict", files={"file": ("one.png", buffer.getvalue())})
        refused = client.post("/predict", files={"file": ("one.png", b"none")})
    assert answer.status_code == 200
    expected = model.predict(image())
    assert answer.json()["predicted"] == expected.predicted[0]
    assert answer.json()["probabilities"] == pytest.approx(
        dict(zip("abc", expected.probabilities[0].tolist(), strict=True))
    )
    assert refused.status_code == 422
    assert "cannot be read as an image" in refused.json()["detail"]


@pytest.mark.filterwarnings("ignore")
def test_the_page(model: Model) -> None:
    pytest.importorskip("gradio")
    found = runpy.run_path(str(EXAMPLES / "page_gradio.py"))
    answer = found["page"].fn(image())
    assert answer == pytest.approx(dict(zip("abc", model.predict(image()).probabilities[0].tolist(), strict=True)))
