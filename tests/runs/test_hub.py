"""Publishing and fetching, on a stand-in for the hub: a folder of repositories."""

from __future__ import annotations

import inspect
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import yaml
from huggingface_hub import errors
from msgspec import structs

import acclimate
from acclimate.errors import OptionError
from acclimate.runs.card import card
from acclimate.runs.hub import located, public_record
from acclimate.runs.record import read_record, write_record
from recorded import run_record
from tiny import refused, succeeds, vectors


class Hub:
    """A folder of repositories, with the functions of huggingface_hub that are used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[Any] = []

    def create_repo(self, repo_id: str, *, private: bool | None = None, exist_ok: bool = False) -> None:
        (self.folder / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        self.asked.append(private)

    def create_commit(self, repo_id: str, operations: Any, *, commit_message: str) -> None:
        for operation in operations:
            content = operation.path_or_fileobj
            to = self.folder / repo_id / operation.path_in_repo
            to.write_bytes(content if isinstance(content, bytes) else Path(content).read_bytes())

    def snapshot_download(self, repo_id: str, *, revision: str | None = None, allow_patterns: Any = None) -> str:
        self.asked.append((repo_id, revision))
        repository, response = self.folder / repo_id, type("Response", (), {"headers": {}, "request": None})()
        if not repository.is_dir():
            raise errors.RepositoryNotFoundError("401 Client Error.", response=response)
        if revision not in (None, "main", "v1.0"):
            raise errors.RevisionNotFoundError("404 Client Error.", response=response)
        copy = self.folder / "copies" / repo_id
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir(parents=True)
        for name in allow_patterns:
            if (repository / name).exists():
                shutil.copy(repository / name, copy / name)
        return str(copy)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub(tmp_path / "hub")
    for name in ("create_repo", "create_commit"):
        real = inspect.signature(getattr(huggingface_hub.HfApi, name)).parameters
        assert inspect.signature(getattr(stand_in, name)).parameters.keys() <= real.keys()
    real = inspect.signature(huggingface_hub.snapshot_download).parameters
    assert inspect.signature(stand_in.snapshot_download).parameters.keys() <= real.keys()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: stand_in)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in.snapshot_download)
    return stand_in


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secret_place")
    source, target = vectors(folder / "source.npz", n=30), vectors(folder / "target.npz", shift=0.5, n=60)
    given = ("--source", source, "--target", target, "--method", "source_only", "--steps", "9", "--compare")
    succeeds("fit", *given, "--out", folder / "run", "--report")
    return folder / "run"


def test_a_model_comes_back_as_it_was(run: Path, hub: Hub, tmp_path: Path) -> None:
    said = succeeds("push", run, "me/model", "--private").stderr
    assert "use it as hf://me/model." in said
    assert "names no licence" in said
    x = np.load(run.parent / "target.npz")["x"]
    expected = acclimate.load(run).predict(x).probabilities
    assert (acclimate.load("hf://me/model@v1.0").predict(x).probabilities == expected).all()
    assert hub.asked == [True, ("me/model", "v1.0")]
    here = succeeds("predict", run, run.parent / "target.npz").stdout
    assert succeeds("predict", "hf://me/model", run.parent / "target.npz").stdout == here
    succeeds("evaluate", "hf://me/model", run.parent / "target.npz")


def test_what_is_published_and_what_only_when_it_is_asked_for(run: Path, hub: Hub) -> None:
    succeeds("push", run, "me/model")
    always = {"README.md", "model.json", "model.safetensors", "record.json"}
    assert {path.name for path in (hub.folder / "me/model").iterdir()} == always
    for path in (hub.folder / "me/model").iterdir():
        assert b"secret_place" not in path.read_bytes(), path.name
    more = ("--with-predictions", "--with-report", "--with-reference", "--license", "mit")
    assert "names no licence" not in succeeds("push", run, "me/all", *more).stderr
    assert {path.name for path in (hub.folder / "me/all").iterdir()} == always | {
        "predictions.csv",
        "report.html",
        "reference.safetensors",
    }
    new = vectors(run.parent / "new.npz", shift=0.5, n=120)
    assert json.loads(succeeds("watch", "hf://me/all", new, "--json").stdout)["reference"] == 60
    assert "keeps no sample of its target" in refused("watch", "hf://me/model", new)


def front(text: str) -> Any:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_card_says_how_figures_were_obtained(run: Path) -> None:
    record = read_record(run / "record.json")
    text = card(record, "me/model", "mit")
    assert record.scores is not None
    assert f"{100 * record.scores.accuracy:.1f} % of 60 images of the target are classified correctly" in text
    assert "Their labels served for this figure alone" in text
    found = front(text)
    assert (found["license"], "base_model" in found) == ("mit", False)
    assert found["model-index"][0]["results"][0]["metrics"][0]["value"] == round(record.scores.accuracy, 4)
    assert 'acclimate.load("hf://me/model")' in text


def test_the_card_of_a_run_without_labels(run: Path) -> None:
    text = card(structs.replace(run_record(), scores=None), "me/model", None)
    assert "**Not measured.**" in text
    assert "Estimated without labels" in text
    assert "Two members agree" in text
    assert "model-index" not in front(text)
    assert "license" not in front(text)
    assert "named none" in text


@pytest.mark.parametrize(
    ("backbone", "base"),
    [("resnet18", "timm/resnet18"), ("efficientnet_lite0", None), ("lenet", None)],
)
def test_the_card_names_the_weights_that_were_there_before(backbone: str, base: str | None) -> None:
    record = run_record()
    model = replace(record.model, backbone=backbone)
    settings = {**record.settings, "weights": None}
    found = front(card(structs.replace(record, model=model, settings=settings), "me/model", None))
    assert (found.get("base_model") or "None").startswith(str(base))
    own = structs.replace(record, model=model, settings={**settings, "weights": "own.pth"})
    assert "base_model" not in front(card(own, "me/model", None))


def test_names_in_the_card_stay_text() -> None:
    evil = ("<script>alert(1)</script>", "](javascript:x) | **b** `c`\n# d", 'a": [b]\n---\nlicense: mit')
    text = card(run_record(evil), "me/model", 'mit"\nx: y')
    assert "<script" not in text
    assert "\n# d" not in text
    assert "\nlicense: mit\n" not in text
    found = front(text)
    assert found["license"] == 'mit"\nx: y'
    assert found["pipeline_tag"] == "image-classification"
    lines = [line for line in text.splitlines() if "javascript" in line]
    assert lines
    assert all(r"\]\(javascript\:x\) \| \*\*b\*\* \`c\`" in line for line in lines)


def test_a_published_record_has_no_path(tmp_path: Path) -> None:
    record = run_record()
    data = structs.replace(
        record.data,
        paths_start_from="/home/me/secret",
        source=structs.replace(record.data.source, origin="photos/studio"),
        target=structs.replace(record.data.target, origin="/data/client/street"),
    )
    settings = {**record.settings, "source": "photos/studio", "target": "/data/client/street", "weights": "../w.pth"}
    assert record.trust is not None
    failed = structs.replace(record.trust.members[2], failed="/home/me/secret/photos/studio/1.png cannot be read.")
    trust = structs.replace(record.trust, members=(*record.trust.members[:2], failed))
    record = structs.replace(record, data=data, settings=settings, trust=trust, command=("fit", "/data/client/street"))
    published = public_record(record)
    text = json.dumps(published)
    assert all(part not in text for part in ("secret", "/data", "client", "../", "photos/"))
    assert published["data"]["target"]["origin"] == "street"
    (tmp_path / "record.json").write_text(text)
    write_record(tmp_path / "again.json", read_record(tmp_path / "record.json"))  # it is still one


# --- what is refused -----------------------------------------------------------------------------------------------


def test_what_is_not_on_the_hub(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    succeeds("push", run, "me/model")
    assert refused("predict", "hf://me/none", run.parent / "target.npz") == (
        "There is no me/none on the hub, or it is private: check the name, or log in with `hf auth login`."
    )
    assert refused("export", "hf://me/model@v9", "--out", run.parent / "m.onnx").startswith(
        "me/model has no revision v9"
    )

    def unreachable(*_: object, **__: object) -> str:
        raise errors.LocalEntryNotFoundError("Cannot reach it.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    assert refused("predict", "hf://me/model", run).startswith(
        "The hub cannot be reached, and there is no copy of me/model"
    )

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("403 Forbidden.\nMore.")

    monkeypatch.setattr(hub, "create_commit", broken)
    assert refused("push", run, "me/model").startswith("The hub refused me/model (403 Forbidden): check")


@pytest.mark.parametrize("name", ["hf://", "hf://model", "hf://a/b/c", "hf://a/b@../x", "hf://a/b@", "hf:// a/b"])
def test_what_is_no_name_on_the_hub(name: str) -> None:
    if name.endswith("@"):
        name += "/x"
    with pytest.raises(OptionError, match="names no model on the hub: write hf://OWNER/NAME"):
        located(name)


def test_a_run_that_cannot_be_published(run: Path, hub: Hub, tmp_path: Path) -> None:
    assert refused("push", run, "model") == "model names no repository: write OWNER/NAME."
    assert "holds no finished run" in refused("push", tmp_path, "me/model")
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "report.html").unlink()
    assert "has no report.html" in refused("push", copy, "me/model", "--with-report")
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    assert "is not the file that was saved with model.json: its SHA-256" in refused("push", copy, "me/model")
    assert "the SHA-256 of model.safetensors is not the one in model.json" in refused(
        "predict", copy, run.parent / "target.npz"
    )
    assert not hub.folder.exists()
