"""What every method keeps to. A method joins by lying in `acclimate/methods`: nothing here names one."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from acclimate import testing
from acclimate.choices import Family
from acclimate.data.batches import Unlabelled
from acclimate.errors import OptionError
from acclimate.methods import registry
from acclimate.methods.base import Method
from acclimate.methods.options import options
from acclimate.settings import RECIPE
from acclimate.testing import CHECKS, first_objectives, term_gradients, tiny_batch, tiny_method
from tiny import trained_alone

every_method = pytest.mark.parametrize("name", trained_alone())

SMALL = {"hidden": 32, "image_size": 16, "width": 4, "noise": 8}  # of the options that make networks large


def small(name: str) -> dict[str, Any]:
    return {option: value for option, value in SMALL.items() if option in options(name)}


def build(name: str) -> Method:
    return tiny_method(registry.load(name), **small(name))


@every_method
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_passes_the_check(check: Callable[..., None], name: str) -> None:
    check(registry.load(name), **small(name))


@every_method
def test_the_classification_reaches_the_encoder(name: str) -> None:
    if list(first_objectives(build(name))):  # a closed form has none
        assert term_gradients(build(name), "classification")["net.encoder.weight"].abs().max() > 0


@every_method
def test_a_reversal_rises_with_the_ramp_and_without_one_a_critic_has_objectives_of_its_own(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(f"acclimate.methods.{name}")
    method = build(name)
    if not hasattr(module, "reverse"):
        apart = [objective.over for objective in first_objectives(method) if objective.over]
        assert apart or not method.domain_logits(tiny_batch(type(method)))
        return
    coefficients = set()

    def reverse(x: Tensor, coefficient: float) -> Tensor:
        coefficients.add(coefficient)
        return x

    monkeypatch.setattr(module, "reverse", reverse)
    assert list(first_objectives(method))
    assert coefficients == {method.ramp}
    assert any(name.startswith("critic") for name, _ in method.named_parameters())


@every_method
def test_it_says_what_it_is(name: str) -> None:
    cls = registry.load(name)
    doc = inspect.getdoc(cls) or ""
    assert "Differences from the paper:" in doc
    assert cls.paper
    assert 2000 < (cls.year or 0) < 2100
    assert cls.family in get_args(Family)
    assert cls.rows
    assert cls.recipe.keys() <= {name for name, one in RECIPE.items() if one.setting.of_method}
    assert all(f"\n    {parameter}: " in doc for parameter in list(inspect.signature(cls).parameters)[2:])


@every_method
def test_it_is_final(name: str) -> None:
    assert registry.load(name).__bases__ == (Method,)
    assert not registry.load(name).__subclasses__()


def test_a_target_batch_has_no_labels() -> None:
    assert Unlabelled._fields == ("x", "index")


def test_an_unknown_method_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(OptionError, match=r"no method 'wemnett'; did you mean wemnet\?"):
        registry.load("wemnett")


def test_checks_leave_the_random_numbers_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    testing.check_method("dann", critic="linear")
    assert torch.equal(torch.rand(3), expected)
