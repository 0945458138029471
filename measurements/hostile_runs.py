"""Hostile cases of what runs write and read: state files, model folders and full disks, as areas of hostile.py."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from acclimate.bench.grid import make_grid
from acclimate.bench.records import read_records
from acclimate.bench.runner import bench
from acclimate.data.read import read_target
from acclimate.errors import AcclimateError
from acclimate.model import Model
from acclimate.runs import run as running
from acclimate.runs.fit import fit
from acclimate.runs.labels import draw
from acclimate.runs.record import read_record
from acclimate.settings import Settings

Found = Iterator[tuple[str, Callable[[], object]]]

FLIPS = 100  # bits of a file, each in a case of its own

OFTEN = ("run", "interrupted run", "bench")  # of which each file is flipped so often; of a consensus's, a fifth


def state_files(rng: random.Random, folder: Path, share: int) -> Found:
    """A bit flipped in a file of a run, a consensus or a bench: noticed, or the same result."""
    source, target = domains(folder)
    commands: dict[str, Callable[[Path], object]] = {
        "run": partial(fit_tiny, source, target, "dann"),
        "interrupted run": partial(fit_tiny, source, target, "dann"),
        "consensus": partial(fit_tiny, source, target, "consensus"),
        "bench": partial(bench_tiny, source, target),
    }
    if share > 1:
        del commands["consensus"]
    for name, command in commands.items():
        whole = folder / f"{name}, whole"
        command(whole)
        begun = whole
        if name == "interrupted run":
            begun = folder / name
            with interrupted(4):
                command(begun)
        expected = results(whole)
        flips = FLIPS if name in OFTEN else FLIPS // 5
        for path in sorted(path for path in begun.rglob("*") if path.is_file() and path.stat().st_size):
            of_run = path.relative_to(begun)
            for number in range(max(flips // share**2, 1)):
                bit = rng.randrange(8 * path.stat().st_size)
                yield f"{name}, {of_run}, bit {bit}, {number}", partial(flipped, begun, of_run, bit, command, expected)


def flipped(
    begun: Path, of_run: Path, bit: int, command: Callable[[Path], object], expected: dict[str, object]
) -> None:
    """Flip a bit in a copy, have it read by whatever reads it, and go on with it."""
    copy = begun.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(begun, copy)
    content = bytearray((copy / of_run).read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    (copy / of_run).write_bytes(content)
    look(partial(predict, copy, begun.with_name("target.npz")))
    look(partial(draw, [copy], "accuracy", 10, 0))
    look(partial(read_records, [copy]))
    command(copy)
    found = results(copy)
    others = [name for name in expected.keys() | found.keys() if found.get(name) != expected.get(name)]
    assert not others, f"silently another {', '.join(sorted(others)[:3])}"


def look(read: Callable[[], object]) -> None:
    """Read, and take a refusal for an answer."""
    with contextlib.suppress(AcclimateError):
        read()


def predict(run: Path, target: Path) -> None:
    """Predict with a run's model, if it can be loaded."""
    Model.load(run).predict(read_target(str(target)))


def domains(folder: Path) -> tuple[str, str]:
    """Two domains of vectors, on which a run takes a moment."""
    draws = np.random.default_rng(0)
    for name, shift in {"source": 0.0, "target": 0.5}.items():
        y = np.repeat(np.arange(3), 8)
        x = (draws.normal(size=(24, 6)) + 3 * np.eye(6)[y] + shift).astype(np.float32)
        np.savez(folder / f"{name}.npz", x=x, y=np.array(["a", "b", "c"])[y])
    return str(folder / "source.npz"), str(folder / "target.npz")


SMALL = {"steps": 8, "bottleneck": 4, "batch_size": 6}


def fit_tiny(source: str, target: str, method: str, out: Path) -> None:
    """Make a run, or go on with it."""
    options = {"members": "source-only,dann,dan"} if method == "consensus" else {}
    fit(Settings.of(source=source, target=target, method=method, options=options, checkpoint_seconds=0.0, **SMALL), out)


def bench_tiny(source: str, target: str, out: Path) -> None:
    """Make a bench of one run, or go on with it."""
    data = {"domains": {"s": source, "t": target}, "tasks": ["s-t"]}
    bench(make_grid({"data": data, "seeds": [0], "settings": SMALL, "row": [{"name": "dann"}]}), out)


@contextlib.contextmanager
def interrupted(step: int) -> Iterator[None]:
    """Within it, training is interrupted after so many steps, and so is the block."""
    module: Any = running
    train = module.train

    def trained(*args: Any) -> Iterator[Any]:
        for reached in train(*args):
            yield reached
            if reached.step == step:
                raise KeyboardInterrupt

    module.train = trained
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        module.train = train


def results(folder: Path) -> dict[str, object]:
    """What the files of runs and benches hold, but for when and how fast they were made."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if path.name == "record.json":
            record = read_record(path)
            told = (record.scores, record.terms, record.changed_late, record.domain_error, record.files)
            found[str(path.relative_to(folder))] = told
        elif path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def model_folders(rng: random.Random, folder: Path, share: int) -> Found:
    """Descriptions that name other networks than the weights are of, and damage to either file."""
    source, target = domains(folder)
    fit_tiny(source, target, "dann", folder / "run")
    valid = json.loads((folder / "run" / "model.json").read_text(encoding="utf-8"))
    del valid["checksum"]
    rgb = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "channels": 3, "aspect": "keep"}
    names = ["vit_giant_patch14_dinov2", "eva02_enormous_patch14_clip_224", "resnet50", "hf-hub:a/b", "local-dir:/", ""]
    sizes = [224, 518, 5_000, 10**9, 10**30, -1, 1.5, "224", None]
    changes: list[dict[str, Any]] = [
        {"backbone": name, "vector": None, "tune": tune, "preprocess": {**rgb, "size": size, "resize": size}}
        for name in names
        for tune in ("head", "top", "all")
        for size in sizes
    ]
    odd: list[Any] = [
        None,
        True,
        -1,
        0,
        10**9,
        10**30,
        1e300,
        "x",
        "\x1b]0;",
        [],
        [[]],
        {},
        {"a": 1},
        ["a", "a"],
        ["a"] * 10**5,
    ]
    changes += [{name: value} for name in valid for value in odd]
    for number, change in enumerate(rng.sample(changes, len(changes) // share)):
        yield f"model.json with {str(change)[:80]} {number}", partial(load_altered, folder, {**valid, **change})
    for number in range(200 // share):
        yield f"damage {number}", partial(load_damaged, folder, random.Random(rng.random()))


def load_altered(folder: Path, description: dict[str, Any]) -> None:
    """Load and use a model of which the description says something else."""
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / "run", copy)
    (copy / "model.json").write_text(json.dumps(description), encoding="utf-8")
    predict(copy, folder / "target.npz")


def load_damaged(folder: Path, rng: random.Random) -> None:
    """Load and use a model of which a file is cut off or has other bytes."""
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / "run", copy)
    path = copy / rng.choice(["model.json", "model.safetensors"])
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content))
    content[at : at + rng.choice([1, 8, len(content)])] = rng.randbytes(rng.choice([0, 1, 8]))
    path.write_bytes(content)
    predict(copy, folder / "target.npz")


def full_disks(rng: random.Random, folder: Path, share: int) -> Found:
    """A run on a disk that becomes full at some point of it, and then has room; where nobody may mount, no case."""
    source, target = domains(folder)
    disk = folder / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=False, capture_output=True
    ).returncode:
        return
    try:
        fit_tiny(source, target, "dann", folder / "whole")
        for left in rng.sample(range(0, 120, 4), 30 // share):
            yield f"{left} KiB left", partial(run_on_full_disk, folder, source, target, left)
    finally:
        subprocess.run(["umount", disk], check=True)


def run_on_full_disk(folder: Path, source: str, target: str, left: int) -> None:
    """Fill a disk but for so many KiB, fit, make room, and fit again."""
    disk = folder / "disk"
    shutil.rmtree(disk / "run", ignore_errors=True)
    (disk / "filler").write_bytes(bytes(max(shutil.disk_usage(disk).free - 1024 * left, 0)))
    said = "No space left on device"
    try:
        fit_tiny(source, target, "dann", disk / "run")
    except AcclimateError as error:
        said = str(error)
    finally:
        (disk / "filler").unlink()
    assert "No space left on device" in said, said
    fit_tiny(source, target, "dann", disk / "run")
    assert results(disk / "run") == results(folder / "whole"), "another result"
