"""The order of the packages: imports point down, form no circle, and agree with the drawing in docs/architecture.md."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import acclimate
from acclimate.methods import registry

ROOT = Path(acclimate.__file__).parent
DRAWING = ROOT.parents[1] / "docs" / "architecture.md"

ORDER = [  # from the ground up; what stands on one floor does not import its neighbours
    {"errors", "choices", "progress", "threads", "processes", "text", "files"},
    {"locks", "machine", "outputs", "outside", "parallel", "schema", "shard", "tensors"},
    {"data"},
    {"datasets", "cache"},
    {"networks"},
    {"methods"},
    {"settings", "evaluation"},
    {"training", "model", "trust"},
    {"runs", "testing"},
    {"bench"},
    {"report", "screen"},  # so that nothing below imports the screen: what reports progress knows `progress` alone
    {"cli", "estimator"},
    {"__main__"},
]
FLOOR = {part: floor for floor, parts in enumerate(ORDER) for part in parts}
GROUND = ORDER[0] | ORDER[1]  # what all may use, so that the drawing leaves these arrows out
FACE = "acclimate"  # the public names, imported when they are asked for: the one thing that may look up


class Import(NamedTuple):
    """An import of a module of the package by another, both as dotted names."""

    by: str
    of: str
    at_module_level: bool


def name_of(file: Path) -> str:
    parts = ("acclimate", *file.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(file): file for file in ROOT.rglob("*.py")}


def part_of(module: str) -> str:
    """The package or the file below `acclimate` that a module belongs to."""
    return module.split(".")[1]


@cache
def imports() -> list[Import]:
    """Every import of the package by itself, wherever it stands: in a function and for types alone, too."""
    return [found for module, file in FILES.items() for found in imports_in(module, file)]


def imports_in(module: str, file: Path) -> Iterator[Import]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import, which this test does not follow"
            assert node.module
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in FILES else node.module for name in names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name in FILES and name != FACE:
                yield Import(module, name, node in tree.body)


def test_every_package_has_its_floor() -> None:
    assert {part_of(module) for module in FILES if module != FACE} == FLOOR.keys()


def test_imports_point_down() -> None:
    crossing = [i for i in imports() if i.by != FACE and part_of(i.by) != part_of(i.of)]
    assert len(crossing) > 100
    assert not [i for i in crossing if FLOOR[part_of(i.of)] >= FLOOR[part_of(i.by)]]


def test_imports_form_no_circle_inside_packages_either() -> None:
    """Also counting what is imported within functions: those wait for speed's sake, not to break a circle."""
    graph: dict[str, set[str]] = {}
    for found in imports():
        if found.by != FACE:
            graph.setdefault(found.by, set()).add(found.of)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = " <- ".join(error.args[1])
        raise AssertionError(f"These import each other: {circle}") from None


def test_the_face_imports_nothing_before_it_is_asked() -> None:
    upwards = [i for i in imports() if i.by == FACE]
    assert upwards
    assert not [i for i in upwards if i.at_module_level]


# --- the drawing ---------------------------------------------------------------------------------------------------


def drawn_floors() -> list[str]:
    """What the drawing says on each floor, from the ground up."""
    lines = DRAWING.read_text(encoding="utf-8").splitlines()
    top = next(i for i, line in enumerate(lines) if line.strip().startswith("┌"))
    bottom = next(i for i, line in enumerate(lines) if line.strip().startswith("└"))
    floors: list[str] = [""]
    for line in lines[top + 1 : bottom]:
        if line.strip().startswith("├"):
            floors.append("")
        else:
            floors[-1] += line.split("│")[1]
    return floors[::-1]


def drawn_parts(floor: str) -> dict[str, set[str]]:
    """The packages of a floor and where their arrows point."""
    entries = [entry for entry in re.split(r" {2,}", floor.strip()) if entry]
    found = {}
    for entry in entries:
        name, _, targets = entry.partition("─►")
        found[name.strip()] = {target.strip() for target in targets.split(",") if target.strip()}
    return found


def test_the_drawing_has_the_floors_of_this_test() -> None:
    assert [set(drawn_parts(floor)) for floor in drawn_floors()] == ORDER


def test_the_drawing_has_the_arrows_of_the_code() -> None:
    """Each package's arrows point to what it imports and reaches in no other way; the ground is left out."""
    graph: dict[str, set[str]] = {part: set() for part in FLOOR}
    for by, of in ((part_of(i.by), part_of(i.of)) for i in imports() if i.by != FACE):
        if FLOOR[of] < FLOOR[by] and of not in GROUND:
            graph[by].add(of)
    arrows = {by: {of for of in targets if not reached(graph, targets - {of}, of)} for by, targets in graph.items()}
    assert {part: targets for floor in drawn_floors() for part, targets in drawn_parts(floor).items()} == arrows


def reached(graph: dict[str, set[str]], starts: set[str], goal: str) -> bool:
    """Whether imports lead from one of the starts to the goal."""
    return any(goal in graph[start] or reached(graph, graph[start], goal) for start in starts)


def test_the_page_names_files_and_functions_that_are_there() -> None:
    found = re.findall(r"`([\w/]+\.(?:py|toml|html))(?:: ([\w.]+))?`", DRAWING.read_text(encoding="utf-8"))
    assert len(found) > 50
    for place, name in found:
        file = next((folder / place for folder in (ROOT, *ROOT.parents[:2]) if (folder / place).exists()), None)
        assert file is not None, f"{place} is not there"
        assert not name or name in defined_in(file), f"{place} defines no {name}"


@cache
def defined_in(file: Path) -> set[str]:
    """The functions, classes, methods (as Class.method) and constants of a file."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            inner = node.body if isinstance(node, ast.ClassDef) else []
            found |= {node.name, *(f"{node.name}.{part.name}" for part in inner if isinstance(part, ast.FunctionDef))}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


# --- what else holds -----------------------------------------------------------------------------------------------


def test_no_method_imports_another() -> None:
    shared = {"acclimate.methods.base", "acclimate.methods.registry", "acclimate.methods.options"}
    methods = {f"acclimate.methods.{name}" for name in registry.names()}
    assert not [i for i in imports() if i.by in methods and i.of in methods]
    assert not [i for i in imports() if i.by in methods and i.of in shared - {"acclimate.methods.base"}]


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("open_labels", {"data.sealed", "evaluation.answers"}),
        ("_inside", {"data.sealed"}),
        ("read_labels", {"evaluation.labels", "runs.labels"}),
        ("label_counts", {"data.read", "datasets.check"}),
    ],
)
def test_training_cannot_see_the_labels_of_a_target(name: str, modules: set[str]) -> None:
    def names(node: ast.AST) -> set[str]:
        return {getattr(node, field, "") for field in ("id", "attr", "name")}

    nodes = {module: ast.walk(ast.parse(file.read_text(encoding="utf-8"))) for module, file in FILES.items()}
    users = {module for module, found in nodes.items() if any(name in names(node) for node in found)}
    assert users == {f"acclimate.{module}" for module in modules}


def test_the_trainer_knows_no_method() -> None:
    text = (ROOT / "training.py").read_text()
    assert "isinstance(method" not in text
    assert "hasattr" not in text
    assert not [name for name in registry.names() if f'"{name}"' in text]


def test_importing_the_package_or_its_command_line_is_quick() -> None:
    slow = {"torch", "sklearn", "msgspec"}
    code = f"import sys, acclimate, acclimate.cli.app; sys.exit(not {slow}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
