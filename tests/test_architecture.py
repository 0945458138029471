"""The layers of the package import downwards only, and importing the package is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import acclimate
from acclimate.methods import registry

ROOT = Path(acclimate.__file__).parent
ORDER = [
    {"__init__", "errors", "choices", "progress", "threads"},
    {"files", "machine", "screen"},
    {"data"},
    {"datasets", "networks", "cache"},
    {"methods"},
    {"settings"},
    {"training"},
    {"evaluation"},
    {"model"},
    {"runs"},
    {"bench"},
    {"report"},
    {"estimator", "cli"},
    {"__main__"},
]
LAYER = {part: level for level, parts in enumerate(ORDER) for part in parts}
FILES = sorted(ROOT.rglob("*.py"))


def part_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(file: Path) -> set[str]:
    """The parts of the package that a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "acclimate":
            rest = node.module.split(".")[1:]
            found |= {rest[0]} if rest else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("acclimate.")}
    return {name for name in found if not name.startswith("__")}


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_point_one_way(file: Path) -> None:
    part = part_of(file)
    if part == "__init__":  # the public names, imported when they are asked for
        return
    assert part in LAYER, f"{part} has no place in the order of the layers"
    upwards = {name for name in imported(file) if LAYER[name] >= LAYER[part] and name != part}
    assert not upwards, f"{part} imports {upwards}"


@pytest.mark.parametrize("file", sorted((ROOT / "methods").glob("*.py")), ids=lambda f: f.stem)
def test_no_method_imports_another(file: Path) -> None:
    if file.stem in ("__init__", "base", "registry", "options"):
        return
    modules = [n.module for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.ImportFrom) and n.module]
    others = {m for m in modules if m.startswith("acclimate.methods") and not m.startswith("acclimate.methods.parts")}
    assert others == {"acclimate.methods.base"}


def test_the_trainer_knows_no_method() -> None:
    text = (ROOT / "training.py").read_text()
    assert "isinstance(method" not in text
    assert "hasattr" not in text
    assert not [name for name in registry.names() if f'"{name}"' in text]


def test_importing_the_package_or_its_command_line_imports_no_torch() -> None:
    code = "import sys, acclimate, acclimate.cli.app; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
