"""Each setting is declared once, and the command line, a grid, the estimator and every check derive from it."""

from __future__ import annotations

import math
import re
from dataclasses import MISSING
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

import acclimate.cli.app as command_line
from acclimate.bench.grid import Row, make_grid
from acclimate.errors import OptionError, brief
from acclimate.estimator import AdaptiveClassifier
from acclimate.machine import pick_device
from acclimate.methods import registry
from acclimate.methods.options import check_options
from acclimate.methods.options import options as method_options
from acclimate.settings import (
    OF_A_ROW,
    OF_AN_ESTIMATOR,
    RECIPE,
    SETTINGS,
    Declared,
    Recipe,
    Settings,
    comparable,
)
from tiny import refused, succeeds, vectors

GROUP: Any = typer.main.get_command(command_line.app)
every_setting = pytest.mark.parametrize("one", SETTINGS.values(), ids=lambda one: one.name)


def options(command: str) -> dict[str, Any]:
    return {parameter.name: parameter for parameter in GROUP.commands[command].params}


def fitting(one: Declared) -> st.SearchStrategy[Any]:
    """Values that a setting takes."""
    bounds = one.setting
    if one.choices:
        return st.sampled_from(one.choices)
    if one.kind is bool:
        return st.booleans()
    if one.kind is int:
        return st.integers(int(bounds.least or 0), int(bounds.most or 10**6))
    if one.kind is float:
        low, high = bounds.least if bounds.least is not None else bounds.above, bounds.below
        exclude = {"exclude_min": bounds.above is not None, "exclude_max": high is not None}
        return st.floats(low, high, allow_nan=False, allow_infinity=False, **exclude)
    return st.text()


def foreign(one: Declared) -> st.SearchStrategy[Any]:
    """Values of types that a setting does not take."""
    kinds = {bool: st.booleans(), int: st.integers(), float: st.floats(), str: st.text(), list: st.lists(st.integers())}
    taken = {one.kind, *((int,) if one.kind is float else ())}
    none = () if one.optional else (st.none(),)
    return st.one_of(*(values for kind, values in kinds.items() if kind not in taken), *none)


@every_setting
@examples(max_examples=30)  # of each setting
@given(data=st.data())
def test_what_fits_is_taken_as_it_is(one: Declared, data: st.DataObject) -> None:
    value = data.draw(fitting(one))
    assert one.checked(value) == value
    assert type(one.checked(value)) is one.kind


@every_setting
@examples(max_examples=30)
@given(data=st.data())
def test_what_is_of_another_type_is_refused(one: Declared, data: st.DataObject) -> None:
    value = data.draw(foreign(one))
    with pytest.raises(OptionError, match=re.escape(f"{one.name} must be {one.takes}, not {brief(value)}.")):
        one.checked(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("steps", 2**63),
        ("batch_size", 1),
        ("bottleneck", -1),
        ("bottleneck", 10**24),
        ("seed", 2**64),
        ("lr", math.inf),
        ("lr", math.nan),
        ("momentum", 1.0),
        ("clip", 0.0),
        ("clip", math.inf),
        ("checkpoint_seconds", -1.0),
        ("checkpoint_seconds", math.inf),
        ("tune", "heads"),
        ("tracker", ""),
    ],
)
def test_what_is_out_of_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f"^{name} must be .*, not {re.escape(repr(value))}\\.$"):
        Settings.of(source="s", target="t", **{name: value})


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63, 10**24, 10**400, -(10**400), "x" * 10**5, "\x1b[2J", "a\nb", "\0", "\udcff"])
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


def check_sentence(error: OptionError) -> None:
    text = str(error)
    assert text.isprintable()
    assert len(text) < 600
    assert text.endswith(".")


@every_setting
@examples(max_examples=60)
@given(value=ANYTHING)
def test_any_value_is_taken_or_refused_in_a_sentence(one: Declared, value: Any) -> None:
    try:
        taken = one.checked(value)
    except OptionError as error:
        check_sentence(error)
    else:
        assert taken is None or one.setting.is_code or type(taken) is one.kind
        assert not isinstance(taken, float) or math.isfinite(taken)
        assert not isinstance(taken, int) or abs(taken) < 2**64


@pytest.mark.parametrize("method", registry.names())
@examples(max_examples=20)
@given(data=st.data())
def test_any_value_of_an_option_is_taken_or_refused_in_a_sentence(method: str, data: st.DataObject) -> None:
    for name in method_options(method):
        value = data.draw(ANYTHING)
        try:
            check_options(method, {name: value})
        except OptionError as error:
            check_sentence(error)
        else:
            assert not isinstance(value, float) or math.isfinite(value)
            assert not isinstance(value, int) or abs(value) < 10**309


@pytest.mark.parametrize("name", ["hpu", "meta", "cuda:99", "cpu:7x", "", "xyz", "mtia", "privateuseone"])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(OptionError, match="is not available here: use --device auto or cpu"):
        pick_device(name)


@pytest.mark.parametrize(
    ("grid", "sentence"),
    [
        ("x = " + "[" * 5000 + "]" * 5000, "grid.toml is no grid: its tables or lists lie too deep in each other."),
        ("data.tasks = [[1]]", "tasks in [data] must be texts such as 'source-target', not [1]."),
        ("seeds = [[1]]", "seeds must be whole numbers, not [1]."),
        ("row = [[1]]", "Row 1 must be a table, not [1]."),
        ('[[row]]\nname = "dann"\nbaseline = [[1]]', "baseline in the row dann must be names of rows, not [1]."),
        ("[settings]\nsteps = 9223372036854775808", "steps must be a whole number from 1 to 1,000,000,000, not"),
    ],
)
def test_absurd_grids(tmp_path: Path, grid: str, sentence: str) -> None:
    (tmp_path / "grid.toml").write_text(grid)
    assert sentence in refused("bench", tmp_path / "grid.toml", "--out", tmp_path / "bench")


def test_a_number_that_python_does_not_write_out() -> None:
    with pytest.raises(OptionError, match="not a number of too many digits"):
        Settings.of(source="s", target="t", steps=10**5000)


def test_numbers_of_numpy_are_numbers() -> None:
    settings = Settings.of(source="s", target="t", steps=np.int64(7), lr=np.float32(0.5).item())
    assert settings.recipe.steps == 7
    assert type(settings.recipe.steps) is int


def test_whole_numbers_serve_as_numbers() -> None:
    assert Recipe(lr=1).lr == 1.0
    assert type(Recipe(lr=1).lr) is float


@every_setting
def test_a_default_fits_its_setting(one: Declared) -> None:
    if one.default is not MISSING:
        assert one.checked(one.default) == one.default


@every_setting
def test_a_setting_is_described_where_help_shows_it(one: Declared) -> None:
    assert one.setting.help.endswith(".")
    assert one.setting.help in str((Recipe if one.name in RECIPE else Settings).__doc__)
    option = options("fit")[one.name]
    assert one.setting.help in option.help
    assert option.rich_help_panel == one.setting.group
    assert not option.required  # source and target may be named by place, and a sentence says which is missing


@every_setting
def test_fit_has_the_default_of_the_library(one: Declared) -> None:
    if one.default is not MISSING:
        assert options("fit")[one.name].default == (None if one.setting.of_method else one.default)


def test_a_bench_offers_what_a_grid_sets() -> None:
    found = options("bench")
    assert found.keys() >= OF_A_ROW.keys()
    assert all(found[name].default is None for name in OF_A_ROW)
    assert not found.keys() & {"source", "target", "test", "seed"}


def test_a_grid_takes_what_it_may_set_and_nothing_else(tmp_path: Path) -> None:
    data = {"data": {"domains": {"S": "s", "T": "t"}}, "row": [{"name": "DANN"}]}
    defaults = {name: one.default for name, one in OF_A_ROW.items() if one.default is not None}
    (row,) = make_grid({**data, "settings": defaults}).rows
    assert row == Row("DANN", "dann", settings=defaults)
    for name in SETTINGS.keys() - OF_A_ROW.keys():
        with pytest.raises(OptionError, match=rf"^\[settings\] has no setting '{name}'; "):
            make_grid({**data, "settings": {name: 1}})


def test_the_estimator_takes_what_it_may_set() -> None:
    found = signature(AdaptiveClassifier).parameters
    assert found.keys() == OF_AN_ESTIMATOR.keys() | {"options", "random_state", "verbose"}
    for name, one in OF_AN_ESTIMATOR.items():
        assert found[name].default == (None if one.setting.of_method else one.default)
        assert one.setting.help in str(AdaptiveClassifier.__doc__)
    with pytest.raises(TypeError, match="has no parameter 'learning_rate'"):
        AdaptiveClassifier(learning_rate=0.1)


@pytest.mark.parametrize("name", registry.names())
def test_a_recipe_is_the_method_s_own_where_nobody_says_anything(name: str) -> None:
    method = registry.load(name)
    settings = Settings.of(source="s", target="t", method=name, lr=None, steps=20)
    assert settings.recipe == Recipe(**{**method.recipe, "steps": 20})


def test_settings_lie_on_one_level_in_a_record() -> None:
    flat = Settings.of(source="s", target="t", method="dann", options={"trade_off": 0.5}, steps=3).as_dict()
    assert flat.keys() == SETTINGS.keys() | {"options"}
    assert (flat["options"], flat["steps"]) == ({"trade_off": 0.5}, 3)


def test_a_result_depends_on_all_but_what_says_that_it_does_not(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    flat = Settings.of(source="s", target="../t").as_dict()
    found = comparable(flat)
    assert flat.keys() - found.keys() == {"keep_images", "checkpoint_seconds", "tracker"}
    assert (found["source"], found["target"]) == (str(tmp_path / "s"), str(tmp_path.parent / "t"))


def test_the_command_line_refuses_with_the_same_sentence(tmp_path: Path) -> None:
    data = ("--source", vectors(tmp_path / "s.npz"), "--target", vectors(tmp_path / "t.npz", shift=1))
    sentence = "steps must be a whole number from 1 to 1,000,000,000, not 0."
    assert refused("fit", *data, "--out", tmp_path / "run", "--steps", "0") == sentence
    succeeds("fit", *data, "--out", tmp_path / "run", "--steps", "2", "--bottleneck", "0", "--method", "dann")
