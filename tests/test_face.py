"""The public names, and the page that shows how to write with them."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import acclimate
from acclimate import DatasetInputs
from tiny import pictures

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
NAMES = """
AcclimateError AdaptiveClassifier ArrayInputs Backbone Checkpoint DataError DatasetInputs Discriminator Discriminators
DivergedError Fitted Inputs Labelled Method Model MovingCentroids Network Objective OptionError Pair Preprocess Recipe
RunRecord RunsFailedError Settings Stage Step Unlabelled class_balance_loss class_means domain_loss entropy
evaluation_mode fit gaussian_kernels load load_backbone make_validator_scorer mmd over_all reverse semantic_loss
squared_distances train validators watch
""".split()  # noqa: SIM905


# --- the names -----------------------------------------------------------------------------------------------------


def test_the_public_names() -> None:
    assert dir(acclimate) == sorted([*NAMES, "__version__"])
    everything: dict[str, Any] = {}
    exec("from acclimate import *", everything)
    assert set(everything) - {"__builtins__"} == set(dir(acclimate))
    assert re.fullmatch(r"\d+\.\d+\.\d+", acclimate.__version__)


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_says_what_it_is(name: str) -> None:
    found = getattr(acclimate, name)
    assert inspect.getdoc(found)
    if name == "validators":
        assert found is sys.modules["acclimate.trust.validators"]
        return
    assert found.__name__ == name
    assert found is getattr(sys.modules[found.__module__], name)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'acclimate' has no attribute 'tarin'"):
        acclimate.tarin  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    text = Path(acclimate.__file__).read_text(encoding="utf-8")
    seen = re.findall(r"^    from acclimate\.([\w.]+) import (\w+) as (\w+)$", text, flags=re.MULTILINE)
    assert sorted(name for _, name, _ in seen) == sorted(NAMES)
    for module, name, alias in seen:
        assert name == alias
        assert getattr(sys.modules[f"acclimate.{module}"], name) is getattr(acclimate, name)


LAZY = """
import sys
import acclimate

HEAVY = {"torch", "numpy", "sklearn", "timm", "PIL", "rich", "typer"}
assert not HEAVY & sys.modules.keys(), HEAVY & sys.modules.keys()
dir(acclimate)
acclimate.DataError
assert not HEAVY & sys.modules.keys(), HEAVY & sys.modules.keys()
acclimate.Recipe
assert "torch" not in sys.modules
acclimate.reverse
assert "torch" in sys.modules
assert "sklearn" not in sys.modules
"""


def test_nothing_is_imported_before_it_is_used() -> None:
    subprocess.run([sys.executable, "-c", LAZY], check=True, timeout=120)


# --- datasets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labelled", [False, True])
def test_a_dataset_s_samples_are_inputs(labelled: bool) -> None:
    x = torch.arange(12, dtype=torch.float64).reshape(4, 3)
    dataset = torch.utils.data.TensorDataset(x, torch.arange(4)) if labelled else list(x.numpy())
    inputs = DatasetInputs(dataset)
    assert len(inputs) == 4
    for rng in (None, np.random.default_rng(0)):
        found = inputs.batch(np.array([2, 0, 2]), rng)
        assert found.dtype == torch.float32
        assert torch.equal(found, x[[2, 0, 2]].float())


# --- the page ------------------------------------------------------------------------------------------------------


def test_the_page_s_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    pictures(Path("photos"), ("a", "b"))
    pictures(Path("drawings"), ("",), n=8, shade=20)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 11
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["probabilities"].shape == (120, 2)
    accuracy = (names["method"].eval().predict(names["images"]).argmax(1) == names["labels"]).float().mean()
    assert accuracy > 0.9
    assert names["record"].settings["method"] == "dann"
    assert names["z"].shape == (4, 2)
    assert names["found"].probabilities.shape == (2, 2)
    assert len(names["f"]) == 2
    assert Path("dann.checkpoint").exists()
    assert names["search"].best_score_ == max(names["search"].cv_results_["mean_test_score"])
    assert 0 < names["agreement"] <= 1
