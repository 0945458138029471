"""The papers' printed figures: every average follows from its row, or the table says why it does not."""

from __future__ import annotations

import pytest

from acclimate.bench import papers
from acclimate.bench.grid import make_grid, settings_of
from acclimate.bench.papers import Published, Table
from acclimate.datasets import catalogue
from acclimate.errors import OptionError
from acclimate.methods import registry
from acclimate.methods.options import check_options
from acclimate.settings import Settings

TABLES = [papers.load(name) for name in papers.names()]
ROWS = [(table, row) for table in TABLES for row in table.rows]
HALF_A_DIGIT = {"accuracy": 0.0501, "mean_per_class": 0.0501, "domain_error": 0.00501}
SIZES = {
    "wemnet-table1": (9, 6),
    "wemnet-table2": (7, 12),
    "wemnet-table3": (4, 6),
    "wemnet-table4": (4, 6),
    "tada-table1": (14, 6),
    "tada-table2": (7, 12),
}


def row_of(table: str, name: str) -> Published:
    return next(row for row in papers.load(table).rows if row.name == name)


def test_the_tables_are_whole() -> None:
    assert SIZES.items() <= {t.name: (len(t.rows), len(t.columns)) for t in TABLES}.items()
    for table, row in ROWS:
        assert len(row.figures) == len(table.columns)
        assert len(row.spread) in (0, len(table.columns))
        assert all(0 <= figure <= 100 for figure in row.figures if figure is not None)


@pytest.mark.parametrize(("table", "row"), ROWS, ids=lambda x: x.name)
def test_a_printed_average_is_the_mean_of_its_row(table: Table, row: Published) -> None:
    if row.average is None:
        assert not table.settings  # only quotations print none
        return
    computed = table.overall(row) if row.average_is == "accuracy" else table.mean(row)
    assert computed is not None
    agrees = abs(row.average - computed) <= HALF_A_DIGIT[table.metric]
    assert agrees == ("above the mean of the printed figures" not in (row.remark or ""))
    if not agrees:
        assert round(row.average - round(computed, 1), 1) == 0.1


def test_simnet_is_the_misprint_that_71_8_mends() -> None:
    wrong = [(table, row) for table, row in ROWS if "misprint" in (row.remark or "")]
    assert [(table.name, row.name) for table, row in wrong] == [("wemnet-table1", "SimNet"), ("tada-table1", "SimNet")]
    for table, row in wrong:
        assert table.columns[-1] == "W-A"
        *figures, last = row.figures
        assert (last, row.average) == (71.6, 86.2)
        assert round(sum([f for f in figures if f is not None], 71.8) / 6, 1) == 86.2


@pytest.mark.parametrize(("name", "mean", "overall"), [("WEMNet", 79.62, 75.41), ("WEMNet †", 78.83, 74.61)])
def test_wemnet_prints_the_overall_accuracy_on_visda(name: str, mean: float, overall: float) -> None:
    table, row = papers.load("wemnet-table2"), row_of("wemnet-table2", name)
    assert row.average_is == "accuracy"
    assert round(table.mean(row) or 0, 2) == mean
    assert round(table.overall(row) or 0, 2) == overall
    assert row.average == round(overall, 1)


def test_the_other_rows_on_visda_print_the_mean_over_the_classes() -> None:
    others = [row.name for row in papers.load("wemnet-table2").rows if row.average_is is None]
    assert others == ["ResNet-101", "DANN", "MSTN", "MCD", "ADR"]


def test_a_figure_that_is_not_published_is_none() -> None:
    table, row = papers.load("digits"), row_of("digits", "source-only")
    assert row.figures == (79.4, None)
    assert table.mean(row) is None
    assert table.overall(row) is None
    assert row_of("digits", "MCD").spread == (0.3, None)


@pytest.mark.parametrize("table", [t for t in TABLES if t.settings], ids=lambda t: t.name)
def test_a_table_belongs_to_its_benchmark(table: Table) -> None:
    benchmark = catalogue.load(table.benchmark)
    short = {domain.name: domain.short for domain in benchmark.domains}
    if table.of_classes:
        assert table.columns == benchmark.classes
        assert table.counts == tuple(benchmark.domains[1].per_class)
    else:
        assert table.columns == tuple(f"{short[s]}-{short[t]}" for s, t in benchmark.tasks)


@pytest.mark.parametrize("name", sorted({row.name for _, row in ROWS}))
def test_every_row_is_a_method(name: str) -> None:
    method, options = registry.row(name)
    assert check_options(method, options) == options


@pytest.mark.parametrize("table", TABLES, ids=lambda t: t.name)
def test_baselines_are_methods(table: Table) -> None:
    for row in table.rows:
        if row.baseline is not None:
            registry.row(row.baseline)


def test_a_bench_of_a_table() -> None:
    grid = papers.grid("wemnet-table2")
    assert grid["data"] == {"benchmark": "visda2017"}
    assert {"backbone": "resnet101.tv_in1k", "steps": 30000, "tune": "all"}.items() <= grid["settings"].items()
    rows = {row["name"]: row for row in grid["row"]}
    assert rows["WEMNet †"]["baseline"] == "MSTN"
    assert [row["name"] for row in papers.grid("wemnet-table4")["row"]] == ["WEMNet"]  # printed in four rows


# TLL's scripts: learning rate, decay (lr_gamma times 10,000), weight decay, and the steps on each benchmark.
TLL = {
    "source_only": (0.001, 3.0, 5e-4, {"office31": 2_500, "office_home": 2_500, "visda2017": 20_000}),
    "dan": (0.003, 3.0, 5e-4, {"office31": 10_000, "office_home": 10_000}),
    "jan": (0.003, 3.0, 5e-4, {"office31": 10_000, "office_home": 10_000}),
    "dann": (0.01, 10.0, 1e-3, {"office31": 20_000, "office_home": 30_000, "visda2017": 30_000}),
    "mstn": (0.01, 10.0, 1e-3, {"office31": 20_000, "visda2017": 30_000}),  # on TLL's DANN
    "cdan": (0.01, 10.0, 1e-3, {"office31": 20_000}),
    "adda": (0.001, 3.0, 1e-3, {"office31": 23_000}),
}


def run_of(table: Table, name: str) -> Settings:
    """What a bench of the table runs."""
    content = papers.grid(table.name) | {"data": {"domains": {"A": "a", "B": "b"}}}
    (row,) = make_grid(content, only=[name]).rows
    return settings_of(make_grid(content, only=[name]), row, ("A", "B"), 0)


@pytest.mark.parametrize(("table", "row"), [(t, r) for t, r in ROWS if t.settings], ids=lambda x: x.name)
def test_a_row_says_whose_recipe_it_has_and_has_it(table: Table, row: Published) -> None:
    run = run_of(table, row.name)
    recipe = run.recipe
    assert (run.tune, recipe.batch_size) == ("all", 32)
    assert run.resize == ("keep" if run.method in ("mcd", "adr") else "squash")
    if row.recipe_of == "TLL":
        lr, decay, weight_decay, steps = TLL[run.method]
        assert (recipe.lr, recipe.decay, recipe.weight_decay, recipe.schedule) == (lr, decay, weight_decay, "tll")
        assert recipe.steps == steps[table.benchmark]
        assert (recipe.optimizer, recipe.backbone_lr, recipe.momentum, run.bottleneck) == ("sgd", 0.1, 0.9, 256)
    elif run.method in ("mcd", "adr"):
        assert row.recipe_of == "authors' code"
        assert (recipe.lr, recipe.backbone_lr, recipe.weight_decay, recipe.schedule) == (1e-3, 1.0, 5e-4, "constant")
        assert (run.bottleneck, run.options) == (0, {"joint_batchnorm": True})
    elif run.method == "wemnet":
        assert row.recipe_of == "paper"
        assert (recipe.lr, recipe.momentum, recipe.weight_decay) == (0.01, 0.9, 1e-3)
        assert recipe.steps == {"wemnet-table4": 10_000, "wemnet-table2": 30_000}.get(table.name, 20_000)
    elif run.method == "tada":
        assert row.recipe_of == "paper"
        assert (recipe.lr, recipe.decay, recipe.schedule) == (0.01, 10.0, "paper")
    else:
        assert row.recipe_of == ("authors' code" if run.method == "gta" else "paper")
        assert row.recipe_note  # says what that leaves open
    if run.method == "cdan":
        assert "random" not in run.options  # the product, however long


def test_the_balance_of_mstn_is_that_of_the_figures() -> None:
    rows = [(table, row) for table, row in ROWS if row.name == "MSTN" and table.settings]
    assert [(table.name, row.options) for table, row in rows] == [
        ("wemnet-table1", {"trade_off": 0.1}),
        ("wemnet-table2", {"trade_off": 0.1}),
    ]
    assert all("DSBN" in (row.remark or "") and "DSBN" in (row.recipe_note or "") for _, row in rows)


def test_quotations_have_no_recipe() -> None:
    assert all(row.recipe_of is None and not row.options for table, row in ROWS if not table.settings)


def test_what_does_not_exist_is_refused() -> None:
    with pytest.raises(OptionError, match=r"did you mean wemnet-table\d"):
        papers.load("wemnet-table")
    with pytest.raises(OptionError, match="digits is a table of quotations"):
        papers.grid("digits")
