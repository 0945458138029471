"""The tables of the papers, figure by figure as they are printed, to put beside what is measured."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from acclimate.choices import PublishedMetric
from acclimate.errors import OptionError, nearest

FACTS = Path(__file__).with_name("papers.toml")


@dataclass(frozen=True)
class Published:
    """A row of a paper's table.

    Attributes:
        name: What the paper calls it.
        figures: In the order of the table's columns; None where none is published.
        average: As printed, None where none is.
        average_is: The metric of the average, where the table's is another.
        spread: The printed deviations of the figures, or none.
        source: Where the row is from, if not from the table's paper.
        remark: What to know before quoting it.
        baseline: The row that the method builds on.
        domain: Of a domain error, the domain: "source" or "target".
        feature: Of a domain error, the feature, as in `Method.domain_logits`.
        recipe_of: Whose recipe a bench of the table runs this row with; None where it is only quoted.
        recipe_note: How it differs from that, or what that leaves open.
        options: The method's hyper-parameters in it, besides those of the row's name.
        settings: What it is trained with, besides the method's own recipe and the table's settings.
    """

    name: str
    figures: tuple[float | None, ...]
    average: float | None = None
    average_is: PublishedMetric | None = None
    spread: tuple[float | None, ...] = ()
    source: str | None = None
    remark: str | None = None
    baseline: str | None = None
    domain: str | None = None
    feature: str | None = None
    recipe_of: Literal["paper", "authors' code", "TLL"] | None = None
    recipe_note: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A paper's table.

    Attributes:
        name: Its name here, such as wemnet-table1.
        title: Its name to be shown.
        source: The paper.
        benchmark: The benchmark's name.
        metric: What the figures are.
        columns: Tasks as "source-target" in the benchmark's short names, or classes.
        rows: As printed.
        settings: What a bench of the table runs with; nothing where a table is only quoted.
        counts: Images of each class, where the columns are classes.
    """

    name: str
    title: str
    source: str
    benchmark: str
    metric: PublishedMetric
    columns: tuple[str, ...]
    rows: tuple[Published, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    counts: tuple[int, ...] = ()

    @property
    def of_classes(self) -> bool:
        """Whether the columns are classes."""
        return bool(self.counts)

    def mean(self, row: Published) -> float | None:
        """The mean of a row's figures; None where one is missing."""
        known = [figure for figure in row.figures if figure is not None]
        return sum(known) / len(known) if len(known) == len(row.figures) else None

    def overall(self, row: Published) -> float | None:
        """The accuracy over all images that a row's figures of the classes amount to; None where one is missing."""
        known = [figure for figure in row.figures if figure is not None]
        if not self.counts or len(known) < len(self.counts):
            return None
        return sum(n * figure for n, figure in zip(self.counts, known, strict=True)) / sum(self.counts)


def names() -> tuple[str, ...]:
    """The names of the tables."""
    return tuple(_tables())


def load(name: str) -> Table:
    """The table of this name.

    Raises:
        OptionError: There is none.
    """
    if name not in _tables():
        raise OptionError(f"There is no published table {name!r}; {nearest(name, names())}")
    return _tables()[name]


def grid(name: str) -> dict[str, Any]:
    """What a bench of the table runs, in the form of a grid's file.

    Raises:
        OptionError: There is no such table, or it is only quoted.
    """
    table = load(name)
    if not table.settings:
        raise OptionError(f"{name} is a table of quotations, which says nothing of how to run it: write a grid for it.")
    rows: dict[str, dict[str, Any]] = {}
    for row in table.rows:
        entry: dict[str, Any] = {"name": row.name, "options": dict(row.options), "settings": dict(row.settings)}
        if row.baseline is not None:
            entry["baseline"] = row.baseline
        rows.setdefault(row.name, entry)
    return {"data": {"benchmark": table.benchmark}, "settings": dict(table.settings), "row": list(rows.values())}


@cache
def _tables() -> dict[str, Table]:
    return {name: _table(name, entry) for name, entry in tomllib.loads(FACTS.read_text(encoding="utf-8")).items()}


def _table(name: str, entry: Mapping[str, Any]) -> Table:
    rows = tuple(_row(row) for row in entry["rows"])
    lists = {key: tuple(entry.get(key, ())) for key in ("columns", "counts")}
    return Table(**{**entry, **lists, "name": name, "rows": rows})


def _row(entry: Mapping[str, Any]) -> Published:
    return Published(**{**entry, "figures": _figures(entry["figures"]), "spread": _figures(entry.get("spread", ()))})


def _figures(values: Sequence[float]) -> tuple[float | None, ...]:
    return tuple(None if math.isnan(value) else float(value) for value in values)
