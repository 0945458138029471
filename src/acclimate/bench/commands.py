"""The runs of a grid as `fit` commands, for whatever runs commands."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from acclimate.methods import registry
from acclimate.settings import SETTINGS, Recipe, Settings


def fit_command(settings: Settings, out: Path, threads: int) -> str:
    """The command of a shell that makes a run of a bench in its folder.

    Args:
        settings: Of the run; they are named where they differ from what `fit` takes by itself.
        out: The run's folder.
        threads: Threads of the run; only runs with equally many end with equal bits.
    """
    given = settings.as_dict()
    words = ["acclimate", "fit", given.pop("source"), given.pop("target"), "--out", str(out)]
    for name, value in given.pop("options").items():
        words += ["--set", f"{name}={_word(value)}"]
    usual = _usual(settings)
    for name, value in given.items():
        if value == usual[name]:
            continue
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if SETTINGS[name].kind is bool else [flag, _word(value)]
    return f"OMP_NUM_THREADS={threads} {shlex.join([*words, '--no-report'])}"


def _usual(settings: Settings) -> dict[str, Any]:
    """What `fit` takes where nothing is said: the recipe is the method's own; the method is always said."""
    recipe = Recipe.of(registry.load(settings.method))
    return Settings(source="", target="", recipe=recipe).as_dict()


def _word(value: Any) -> str:
    """A value as the command line takes it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
