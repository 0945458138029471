"""Tiny domains, and the command line run inside the test's own process."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import typer
import typer.testing
from PIL import Image
from typer.testing import CliRunner, Result

from acclimate.cli.app import app
from acclimate.methods import registry
from acclimate.methods.options import options

typer.testing._get_command = cache(typer.main.get_command)  # made anew for every call, it takes a third of a tiny fit


def vectors(path: Path, *, shift: float = 0.0, labelled: bool = True, n: int = 24, d: int = 6) -> Path:
    """An .npz of feature vectors (n, d) of the classes a, b and c."""
    rng = np.random.default_rng(int(10 * shift))
    y = np.arange(n) % 3
    x = rng.normal(size=(n, d)) + 2 * np.eye(3, d)[y] + shift
    arrays = {"x": x.astype(np.float32)}
    if labelled:
        arrays["y"] = np.array(list("abc"))[y]
    np.savez(path, **arrays)
    return path


def clouds(
    n: int, K: int = 3, D: int = 8, seed: int = 0, far: float = 6.0
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """K clouds of n points (K n, D), well separated unless they are told to be near, and the cloud of each point."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(K), n)
    return rng.normal(size=(n * K, D)) + far * np.eye(K, D)[y], y


def trained_alone() -> list[str]:
    """The methods that are no consensus of others."""
    return [name for name in registry.names() if name != registry.CONSENSUS]


def on_vectors() -> list[str]:
    """The methods that work on feature vectors."""
    return [name for name in trained_alone() if registry.load(name).needs == "vector"]


def in_closed_form(name: str) -> bool:
    """Whether a method trains no step."""
    return registry.load(name).family == "shallow"


def samples_for(method: str, path: Path, **more: Any) -> Path:
    """The least that a method works on: `vectors`, or grey images of the same classes in an .npz."""
    if registry.load(method).needs == "vector":
        return vectors(path, **more)
    content = dict(np.load(vectors(path, d=12 * 12, **more)))
    content["x"] = (content["x"] * 20 + 100).clip(0, 255).astype(np.uint8).reshape(-1, 12, 12)
    np.savez(path, **content)
    return path


def small(method: str) -> dict[str, Any]:
    """The options of a method that make its own networks small."""
    return {name: n for name, n in {"hidden": 16, "image_size": 16, "width": 4}.items() if name in options(method)}


def network(method: str) -> tuple[str, ...]:
    """The options of `fit` for small networks: the method's own, and the one under it where it needs one."""
    own = [part for name, n in small(method).items() for part in ("--set", f"{name}={n}")]
    return (*own, "--backbone", "lenet") if registry.load(method).needs != "vector" else tuple(own)


def pictures(folder: Path, classes: tuple[str, ...] = ("a", "b", "c"), *, n: int = 4, shade: int = 0) -> Path:
    """A folder of class folders with n images of 12 pixels each; a flat folder where the only class is ''."""
    rng = np.random.default_rng(shade)
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            pixels = rng.integers(0, 60, (12, 12, 3)) + 60 * k + shade
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


def acclimate(*args: str | Path, columns: int = 80) -> Result:
    """What the command prints and its exit code; an exception that it lets through is raised.

    `fit` writes no report unless it is asked to, since that takes longer than a tiny run; it trains one method unless
    it is told which, since the default trains several, and in this process unless it is told of `--jobs`.
    """
    if args[:1] == ("fit",):
        args = (*args, *([] if "--report" in args else ["--no-report"]))
        args = (*args, *([] if "--method" in args else ["--method", "wemnet"]))
        args = (*args, *([] if "--jobs" in args else ["--jobs", "1"]))
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(app, [str(arg) for arg in args], catch_exceptions=False)


def succeeds(*args: str | Path, columns: int = 80) -> Result:
    """The same for a command that has to succeed."""
    result = acclimate(*args, columns=columns)
    assert result.exit_code == 0, result.stderr
    return result


def refused(*args: str | Path) -> str:
    """The sentence with which the command refuses what the user can mend."""
    result = acclimate(*args)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    *remarks, sentence = result.stderr.rstrip("\n").split("\n")
    work = ("Reading images: ", "Checking images: ", "Computing features: ", "Predicting: ")
    assert all(remark.startswith(("Source: ", "Warning: ", *work)) for remark in remarks)
    assert sentence.startswith("Error: ")
    assert sentence.endswith((".", "?"))
    return sentence.removeprefix("Error: ")


def full_after(writes: int, write: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """`write` on a disk that has room for so many writes and half of another."""
    count = 0

    def full(file: Any, content: Any) -> None:
        nonlocal count
        count += 1
        if count > writes:
            file.write(content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        write(file, content)

    return full


class AtOnce:
    """A `threading.Timer` whose time has come when it is started."""

    def __init__(self, seconds: float, function: Callable[[], None]) -> None:
        self.start = function

    def cancel(self) -> None:
        """Too late."""
