"""The converted networks of other engines in the cache: a folder each, which `networks/engine.py` fills."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from acclimate.cache.content import folders_named
from acclimate.cache.rows import LOCK
from acclimate.files import cache_folder, leftovers

GRAPH, WEIGHTS, VERDICT = "network.xml", "network.bin", "verdict.json"


def engines_folder() -> Path:
    """The folder of all converted networks; it need not exist."""
    return cache_folder() / "engines"


def converted_networks() -> list[Path]:
    """The folders of the converted networks, sorted, and of those that an engine was found not to run."""
    return [path for path in folders_named("[0-9a-f]{64}", engines_folder()) if files_of_network(path)]


def files_of_network(folder: Path) -> list[Path]:
    """The files that a converted network consists of, those that a kill has left included, and nothing else."""
    found = [folder / name for name in (LOCK, GRAPH, WEIGHTS, VERDICT)]
    left = [path for name in (GRAPH, WEIGHTS) for path in folder.glob(f"tmp*/{name}")]
    return [path for path in (*found, *left, *leftovers(folder / VERDICT)) if path.is_file() and not path.is_symlink()]


def named(folder: Path) -> tuple[str, ...]:
    """What a converted network is, for people: its backbone, its output and what is trained on that; () if unknown."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        name, _, level, tune = json.loads((folder / VERDICT).read_bytes())["network"]
        return str(name), str(level), str(tune)
    return ()


def remove_network(folder: Path) -> None:
    """Delete a converted network; what else may lie in its folder stays. Needs its lock.

    Raises:
        OSError: It cannot be deleted.
    """
    for path in [path for path in files_of_network(folder) if path.name != LOCK]:
        path.unlink(missing_ok=True)
        with suppress(OSError):
            if path.parent != folder:
                path.parent.rmdir()
    with suppress(OSError):  # Windows keeps an open file; a foreign file keeps the folder
        (folder / LOCK).unlink()
        folder.rmdir()
