"""A grid of runs, as a file or the command line describes it: every row on every task with every seed."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path
from typing import Any

from acclimate.bench import papers
from acclimate.choices import Metric
from acclimate.datasets import catalogue
from acclimate.datasets.catalogue import TaskNames
from acclimate.datasets.check import check
from acclimate.datasets.find import find
from acclimate.errors import DataError, OptionError, brief, nearest
from acclimate.files import read_regular
from acclimate.methods import registry
from acclimate.outside import absolute, split
from acclimate.settings import OF_A_ROW, Settings, setting

MOST_GRID = 2**24  # bytes of a grid's file


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: What the table calls it.
        method: The method's name, or `path/to/file.py:Class`.
        options: Its hyper-parameters, where they differ from the defaults.
        settings: Fields of `Settings` and of `Recipe`, where the grid says something.
        baselines: The names of the rows that it is to be compared with.
    """

    name: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    baselines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """What a bench runs: all rows x tasks x seeds.

    Attributes:
        domains: What `read_source` and `read_target` take, by the domain's name.
        tasks: Names of source and target.
        rows: In the order of the table.
        seeds: Of the runs.
        benchmark: The benchmark's name, if the domains are one's.
        metrics: What is reported, as `evaluation.Scores` names it; the tables print the first.
        tests: The domains' test images, where those are apart: then the target's are what is scored.
    """

    domains: Mapping[str, str]
    tasks: tuple[TaskNames, ...]
    rows: tuple[Row, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    benchmark: str | None = None
    metrics: tuple[Metric, ...] = ("accuracy",)
    tests: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a grid without rows, tasks or seeds, or with two of one name."""
        named: dict[str, list[str]] = {
            "rows": [row.name for row in self.rows],
            "tasks": ["-".join(task) for task in self.tasks],
            "seeds": [str(seed) for seed in self.seeds],
        }
        for what, names in named.items():
            if not names:
                raise OptionError(f"The grid has no {what}: give at least one.")
            if twice := {name for name in names if names.count(name) > 1}:
                raise OptionError(f"The grid has several {what} called {', '.join(sorted(twice))}: give each once.")


def settings_of(grid: Grid, row: Row, task: TaskNames, seed: int) -> Settings:
    """The settings of one run. Where the grid says nothing of a recipe's entry, it is the method's own."""
    return Settings.of(
        source=grid.domains[task[0]],
        target=grid.domains[task[1]],
        test=grid.tests.get(task[1]),
        method=row.method,
        options=row.options,
        seed=seed,
        **row.settings,
    )


def grid_of(
    name: str | None,
    *,
    benchmark: str | None = None,
    root: Path | None = None,
    only: Sequence[str] = (),
    tasks: Sequence[str] = (),
    seeds: Sequence[int] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Grid:
    """The grid of a file, or of a paper's table, or of a benchmark and the methods named.

    Args:
        name: A grid's file, or the name of a paper's table; None where the benchmark and the methods are given.
        benchmark: The benchmark's name.
        root: Where the domains lie.
        only: Take these rows alone: their names, or their methods' names.
        tasks: Take these tasks alone, each written "source-target".
        seeds: Take these.
        overrides: Fields of `Settings` and `Recipe` that hold for every row.

    Raises:
        OptionError: Something is missing or unknown.
    """
    if name is None:
        if benchmark is None or not only:
            raise OptionError("Nothing says what to run: give a grid, or --benchmark and --methods.")
        only = [registry.find(row).name if split(row) else row for row in only]
        rows = [{"name": registry.shown(row), "method": row} if _is_method(row) else {"name": row} for row in only]
        content: dict[str, Any] = {"data": {"benchmark": benchmark}, "row": rows}
    elif benchmark is not None:
        raise OptionError(f"--benchmark does not go with the grid {name}, which names its own.")
    else:
        content = papers.grid(name) if name in papers.names() else read_grid(Path(name))
    return make_grid(content, root=root, only=only, tasks=tasks, seeds=seeds, overrides=overrides)


def _is_method(row: str) -> bool:
    """Whether a row is asked for by its method, and not by what a paper's table calls it."""
    return row in registry.names() or split(row) is not None


def read_grid(path: Path) -> dict[str, Any]:
    """The content of a grid's file, for `make_grid`; paths in it are relative to its folder.

    Raises:
        OptionError: It cannot be read, or is not TOML.
    """
    try:
        content = tomllib.loads(read_regular(path, MOST_GRID).decode())
    except OSError as error:
        tables = ", ".join(papers.names())
        raise OptionError(
            f"The grid {path} cannot be read ({error.strerror}): give a .toml file, or one of the tables {tables}."
        ) from error
    except ValueError as error:
        raise OptionError(f"{path} is not TOML ({error}).") from error
    except RecursionError:
        raise OptionError(f"{path} is no grid: its tables or lists lie too deep in each other.") from None
    data = content.get("data")
    if isinstance(data, dict) and isinstance(data.get("root"), str):
        data["root"] = str(path.parent / data["root"])
    elif isinstance(data, dict):
        data["root"] = str(path.parent)
    rows = content.get("row")
    rows = rows if isinstance(rows, list) else []
    settings = [entry.get("settings") for entry in (content, *rows) if isinstance(entry, dict)]
    for entries, name in (*((row, "method") for row in rows), *((entries, "backbone") for entries in settings)):
        if isinstance(entries, dict) and isinstance(entries.get(name), str):
            entries[name] = absolute(entries[name], path.parent)
    return content


def make_grid(
    content: Mapping[str, Any],
    *,
    root: Path | None = None,
    seeds: Sequence[int] = (),
    only: Sequence[str] = (),
    tasks: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Grid:
    """The grid that a file describes, with what the command line says in its place.

    Args:
        content: Tables and entries as in a grid's file: data, seeds, settings, row.
        root: Where the domains lie.
        seeds: Take these.
        only: Take these rows alone: their names, or their methods' names.
        tasks: Take these tasks alone, each written "source-target".
        overrides: Fields of `Settings` and `Recipe` that hold for every row.

    Raises:
        OptionError: Something is unknown, or not of its type.
    """
    _check_entries("The grid", content, {"data": dict, "seeds": list, "settings": dict, "row": list})
    data = content.get("data", {})
    _check_entries("[data]", data, {"benchmark": str, "root": str, "domains": dict, "tests": dict, "tasks": list})
    for part in ("domains", "tests"):
        _check_entries(f"[data.{part}]", data.get(part, {}), dict.fromkeys(data.get(part, {}), str))
    for seed in content.get("seeds", ()):
        if type(seed) is not int:
            raise OptionError(f"seeds must be whole numbers, not {brief(seed)}.")
    for task in data.get("tasks", ()):
        if not isinstance(task, str):
            raise OptionError(f"tasks in [data] must be texts such as 'source-target', not {brief(task)}.")
    root = root or (Path(data["root"]) if "root" in data else None)
    asked = tasks or data.get("tasks", ())
    rows = tuple(_rows(content, only, overrides or {}))
    seeds = tuple(seeds or content.get("seeds", (0, 1, 2)))
    if "benchmark" in data:
        return _of_benchmark(data["benchmark"], root, asked, rows, seeds)
    domains, tests = (
        {name: str((root or Path()) / spec) for name, spec in data.get(part, {}).items()}
        for part in ("domains", "tests")
    )
    if not domains:
        raise OptionError("The grid has no domains: name a benchmark and its root, or give [data.domains].")
    pairs = tuple(permutations(domains, 2))
    return Grid(domains, _named(asked, pairs) or pairs, rows, seeds, tests=tests)


def _of_benchmark(
    name: str, root: Path | None, tasks: Sequence[str], rows: tuple[Row, ...], seeds: tuple[int, ...]
) -> Grid:
    """The grid of a benchmark, whose domains bear the short names of the papers' tables."""
    benchmark = catalogue.load(name)
    if root is None:
        raise OptionError(f"Nothing says where {benchmark.title} lies: give --root DIR.")
    short = {domain.name: domain.short for domain in benchmark.domains}
    found = find(benchmark, root)
    pairs = tuple((short[source], short[target]) for source, target in benchmark.runnable(found))
    if not pairs:
        raise DataError(str(check(benchmark, root).verdict()))
    rows = tuple(
        replace(row, settings={"augment": benchmark.augment, **row.settings})
        if row.settings.get("tune") == "all"
        else row
        for row in rows
    )
    domains = {short[domain]: spec for domain, spec in found.items()}
    tests = {short[domain]: spec for domain, spec in find(benchmark, root, "test").items()}
    return Grid(
        domains,
        _named(tasks, pairs) or pairs,
        rows,
        seeds,
        benchmark.name,
        benchmark.metrics,
        tests if benchmark.has_splits else {},
    )


def _named(tasks: Sequence[str], known: Sequence[TaskNames]) -> tuple[TaskNames, ...]:
    """The tasks written "source-target"."""
    names = {"-".join(pair): pair for pair in known}
    for task in tasks:
        if task not in names:
            raise OptionError(f"There is no task {task!r}; {nearest(str(task), names)}")
    return tuple(names[task] for task in tasks)


def _rows(content: Mapping[str, Any], only: Sequence[str], overrides: Mapping[str, Any]) -> Iterator[Row]:
    """The rows asked for; those that are not need not even exist as methods."""
    shared = _checked_settings("[settings]", content.get("settings", {}))
    always = _checked_settings("The command line", overrides)
    types = {"name": str, "method": str, "options": dict, "settings": dict, "baseline": str | list}
    entries = content.get("row", ())
    for number, entry in enumerate(entries, 1):
        _check_entries(f"Row {number}", entry, types)
        if "name" not in entry:
            raise OptionError(f"Row {number} has no name: give it one.")
    wanted = [entry["name"] for name in only for entry in _called(name, entries)]
    for entry in entries:
        if not only or entry["name"] in wanted:
            yield _row(entry, shared, always)


def _called(name: str, entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The row of this name, or else the rows of the method of this name."""
    for key in ("name", "method"):
        if found := [entry for entry in entries if key in entry and _same(entry[key], name)]:
            return found
    names = dict.fromkeys(entry[key] for entry in entries for key in ("name", "method") if key in entry)
    raise OptionError(f"The grid has no row {name!r}; {nearest(name, names)}")


def _same(one: str, other: str) -> bool:
    return registry.plain(registry.shown(one)) == registry.plain(registry.shown(other))


def _row(entry: Mapping[str, Any], shared: Mapping[str, Any], always: Mapping[str, Any]) -> Row:
    method, options = (entry["method"], {}) if "method" in entry else registry.row(entry["name"])
    own = _checked_settings(f"The row {entry['name']}", entry.get("settings", {}))
    baselines = entry.get("baseline", ())
    for baseline in baselines:
        if not isinstance(baseline, str):
            raise OptionError(f"baseline in the row {entry['name']} must be names of rows, not {brief(baseline)}.")
    return Row(
        entry["name"],
        method,
        {**options, **entry.get("options", {})},
        {**shared, **own, **always},
        (baselines,) if isinstance(baselines, str) else tuple(baselines),
    )


def _check_entries(where: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse entries that are unknown or not of their type."""
    words = {dict: "a table", list: "a list", str: "text", str | list: "text or a list"}
    if not isinstance(given, Mapping):
        raise OptionError(f"{where} must be a table, not {brief(given)}.")
    for name, value in given.items():
        if name not in known:
            raise OptionError(f"{where} has no entry {name!r}; {nearest(name, known)}")
        if not isinstance(value, known[name]):
            raise OptionError(f"{name} in {where} must be {words[known[name]]}, not {brief(value)}.")


def _checked_settings(where: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings, each checked."""
    checked = {}
    for name, value in given.items():
        declared = setting(name, OF_A_ROW, where)
        try:
            checked[name] = declared.checked(value)
        except OptionError as error:
            raise OptionError(f"{where}: {error}") from error
    return checked
