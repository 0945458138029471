"""Hostile files, names, values and grids, by the thousand: each must end in the right result or in one sentence.

    python measurements/hostile.py [--quick] [--only AREA ...] [--seed 0] [--table FILE]

An area is a generator of cases, listed in AREAS. A case is a name and a function: it passes if it returns, or raises an
`AcclimateError` of one sentence, within `LIMIT` seconds; it fails with any other error, with a warning of Python, by an
`AssertionError` about a result that is wrong, or by a hang. What takes memory runs in a process of its own, whose peak
counts. The exit status says whether any failed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import hostile_runs
from acclimate.bench.grid import make_grid, read_grid
from acclimate.data.decode import read_image
from acclimate.data.read import read_source, read_target
from acclimate.errors import AcclimateError
from acclimate.evaluation.labels import read_labels
from acclimate.machine import pick_device, silence_pillow
from acclimate.methods import registry
from acclimate.methods.options import check_options, options, parse_options
from acclimate.networks.weights import read_weights
from acclimate.settings import SETTINGS
from cases import Area, Case, mutated
from hostile_commands import COMMAND_AREAS
from speed import put_out

LIMIT = 30  # seconds of a case

SLOW = ("image bombs", "signals")  # areas whose cases may take longer

MOST_MEMORY = 10**9  # bytes that decoding may add to a process

FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF", "gif": "GIF"}


class HungError(BaseException):
    """A case took longer than it may; nothing catches this on the way."""


# --- the areas -----------------------------------------------------------------------------------------------------


def special_files(rng: random.Random, folder: Path, share: int) -> Iterator[Case]:
    """Pipes, devices, sockets, folders and sparse files, and links to them, wherever a file is named."""
    os.mkfifo(folder / "pipe")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / "socket"))
    (folder / "empty").touch()
    (folder / "loop").symlink_to("loop")
    with (folder / "sparse").open("wb") as file:
        file.truncate(6 * 10**9)
    targets = [folder / name for name in ("pipe", "socket", "empty", "loop", "sparse", "gone")]
    targets += [Path(path) for path in ("/dev/zero", "/dev/null", "/dev/full", "/dev/random", "/proc/self/mem", "/")]
    readers: dict[str, Callable[[Path], object]] = {
        ".jpg": read_image,
        ".txt": read_source,
        ".csv": read_target,
        ".npz": read_source,
        ".toml": read_grid,
        ".pth": read_weights,
        ".safetensors": read_weights,
        ".labels": read_labels,
    }
    for number, target in enumerate(targets):
        for suffix, reader in readers.items():
            link = folder / f"{number}{suffix}"
            link.symlink_to(target)
            yield Case(f"{suffix} that leads to {target.name or '/'}", partial(reader, link))


def image_bytes(rng: random.Random, folder: Path, share: int) -> Iterator[Case]:
    """Images of every format, with bytes changed, cut off, doubled or put in between."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 31, 4), dtype=np.uint8)
    modes: dict[str, Any] = {
        "RGB": pixels[..., :3],
        "L": pixels[..., 0],
        "RGBA": pixels,
        "I;16": pixels[..., 0].astype(np.uint16) * 200,
    }
    whole = []
    for suffix, name in FORMATS.items():
        for mode, array in modes.items():
            content = io.BytesIO()
            with contextlib.suppress(OSError, KeyError):  # a format that lacks the mode
                Image.fromarray(array).save(content, name)
                whole.append((f"{mode} {suffix}", content.getvalue()))
    for number in range(900 // share):
        name, undamaged = rng.choice(whole)
        path = folder / f"{number}"
        path.write_bytes(mutated(undamaged, rng))
        yield Case(f"{name} {number}", partial(decoded, path))


def decoded(path: Path) -> None:
    """Decode as a run does, once small and once whole."""
    for at_least in (1, None):
        image = read_image(path, at_least)
        assert image.mode == "RGB"


def bombs(rng: random.Random, folder: Path, share: int) -> Iterator[Case]:
    """Small files of many pixels, each decoded by one thread and by four in a process of its own."""
    side = 4000 if share > 1 else 13_370
    for name, write in bomb_writers(side).items():
        path = folder / name
        write(path)
        for threads in (1, 4):
            yield Case(f"{name} in {threads} threads", partial(peak, path, threads))


def bomb_writers(side: int) -> dict[str, Callable[[Path], object]]:
    """What writes each bomb: at full size nearly as many pixels as are allowed, and 100 million that must pass."""
    legal = min(side, 10_000)
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "gray16.png": lambda path: write_png(path, side, 16, 0),
        "rgba.png": lambda path: write_png(path, side, 8, 6),
        "rgb.png": lambda path: write_png(path, side, 8, 2),
        "alpha16.png": lambda path: write_png(path, side, 16, 4),
        "bit.png": lambda path: write_png(path, side, 1, 0),
        "int32.tif": lambda path: Image.new("I", (side, side)).save(path, compression="tiff_deflate"),
        "one strip.tif": lambda path: Image.new("I", (side, side)).save(
            path, compression="tiff_deflate", tiffinfo={278: side}
        ),
        "rgb.tif": lambda path: Image.new("RGB", (side, side)).save(path, compression="tiff_lzw"),
        "lossless.webp": lambda path: Image.new("RGB", (side, side)).save(path, lossless=True, method=0),
        "transparent.gif": lambda path: Image.new("P", (side, side)).save(path, transparency=0),
        "progressive.jpg": lambda path: Image.new("RGB", (side, side)).save(path, progressive=True, subsampling=0),
        "legal rgba.png": lambda path: write_png(path, legal, 8, 6),
        "legal gray16.png": lambda path: write_png(path, legal, 16, 0),
        "legal.jpg": lambda path: Image.new("RGB", (legal, legal), "red").save(path),
        "legal turned.jpg": lambda path: Image.new("RGB", (legal, legal), "red").save(path, exif=exif),
        "legal progressive.jpg": lambda path: Image.new("RGB", (legal, legal), "red").save(path, progressive=True),
    }


def write_png(path: Path, side: int, depth: int, colours: int) -> None:
    """A black PNG, packed row by row."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colours]
    row = bytes(1 + (side * depth * channels + 7) // 8)
    packer = zlib.compressobj(9)
    content = b"".join([*(packer.compress(row) for _ in range(side)), packer.flush()])
    header = struct.pack(">IIBBBBB", side, side, depth, colours, 0, 0, 0)
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, body in ((b"IHDR", header), (b"IDAT", content), (b"IEND", b"")):
            file.write(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)))


PEAKS: dict[str, str] = {}  # what each bomb took and how it ended, by the name of its case


def peak(path: Path, threads: int) -> None:
    """Check what a process takes to prepare an image in so many threads at once."""
    command = [sys.executable, "-W", "ignore", __file__, "--decode", str(path), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20 * LIMIT, check=False)
    assert done.returncode == 0, done.stderr[-300:]
    taken, ended = done.stdout.rstrip("\n").split(" ", 1)
    PEAKS[f"{path.name} in {threads} threads"] = f"{int(taken) / 1e6:,.0f} MB, {ended}"
    assert int(taken) <= MOST_MEMORY, f"{int(taken) / 1e6:,.0f} MB"
    assert ended == "decoded" or not path.name.startswith("legal"), ended


def decode_alone(path: str, threads: int) -> None:
    """Prepare an image in so many threads; print by how much the process grew, and how it ended."""
    from acclimate.data import inputs
    from acclimate.data.domain import Domain
    from acclimate.data.preprocess import Preprocess
    from acclimate.machine import keep_freed_memory

    class Notes:
        """Takes note of the reason for which an image is broken."""

        reason = "decoded"

        def note(self, position: int, reason: str) -> None:
            """Keeps it."""
            self.reason = reason

    keep_freed_memory()  # as every command does
    setattr(inputs, "THREADS", threads)  # noqa: B010 (it is imported there)
    notes: Any = Notes()
    prepare = Preprocess(256, 224, (0.5,) * 3, (0.5,) * 3)
    names = tuple(map(str, range(threads)))
    with tempfile.TemporaryDirectory() as folder:
        small = f"{folder}/small.png"
        Image.new("RGB", (300, 300)).save(small)
        for file in (small, path):
            base = most_memory()
            images = inputs.ImageInputs(Domain((file,) * threads, names, "x"), prepare, memory=0, broken=notes)
            images.batch(np.arange(threads), None)
    print(most_memory() - base, notes.reason)


def most_memory() -> int:
    """The most bytes that this process has had in memory so far: what `getrusage` says begins with its parent's."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


ABSURD: tuple[Any, ...] = (
    None, True, "", "x" * 10**5, "\0", "\udcff", "\x1b[2J", "a\nb", "=1+1", 0, -1, 2**31, 2**63, -(2**63), 10**24,
    10**400, 10**5000, 0.0, -0.5, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"), [], [1], {},
    {"a": [1]}, b"x", (), object(),
)  # fmt: skip


def settings(rng: random.Random, folder: Path, share: int) -> Iterator[Case]:
    """Every setting and every option of every method with absurd values, and absurd devices."""
    for name, declared in SETTINGS.items():
        for number, value in enumerate(ABSURD):
            yield Case(f"{name} {number}", partial(declared.checked, value))
    for method in registry.names()[::share]:
        for name in options(method):
            for number, value in enumerate(ABSURD):
                yield Case(
                    f"{method} {name} {number}",
                    partial(check_options, method, {name: value}),
                )
            for text in ("", "inf", "nan", "1" * 5000, "1e400", "-1", "x=y", "\x1b", "true", "none"):
                yield Case(
                    f"{method} --set {name}={text[:9]!r}",
                    partial(parse_options, method, [f"{name}={text}"]),
                )
    for name in ("hpu", "meta", "cuda:99", "cpu:x", "", "mtia", "xla", "privateuseone", "\0", "x" * 10**5):
        yield Case(f"device {name[:9]!r}", partial(pick_device, name))


GRID = """\
seeds = [0, 1]
[data]
root = "."
tasks = ["a-b"]
[data.domains]
a = "a"
b = "b.npz"
[settings]
steps = 10
lr = 0.1
[[row]]
name = "dann"
options = {hidden = 4}
baseline = ["source_only"]
[[row]]
name = "source_only"
"""


def grids(rng: random.Random, folder: Path, share: int) -> Iterator[Case]:
    """Grids with bytes changed, values swapped for absurd ones, and tables nested by the thousand."""
    values = [
        "[[1]]",
        "{a=1}",
        "1e999",
        "9" * 5000,
        "2024-01-01",
        '"\\u0000"',
        "true",
        "[" * 3000 + "]" * 3000,
        "nan",
        '""',
    ]
    lines = GRID.splitlines()
    for number in range(500 // share):
        path = folder / f"{number}.toml"
        if number % 2:
            path.write_bytes(mutated(GRID.encode(), rng))
        else:
            changed = list(lines)
            at = rng.choice([i for i, line in enumerate(lines) if "=" in line])
            changed[at] = f"{changed[at].split('=')[0]}= {rng.choice(values)}"
            path.write_text("\n".join(changed), encoding="utf-8")
        yield Case(f"grid {number}", partial(read_whole_grid, path))


def read_whole_grid(path: Path) -> None:
    """Read a grid and make its rows and tasks."""
    make_grid(read_grid(path))


def lists(rng: random.Random, folder: Path, share: int) -> Iterator[Case]:
    """Image lists and CSV with bytes changed, and lines of every kind."""
    for name in "ab":
        Image.new("RGB", (4, 4)).save(folder / f"{name}.png")
    contents = {".txt": b"a.png 0\nb.png 1\n", ".csv": b"path,label\na.png,x\nb.png,y\n"}
    for number in range(300 // share):
        suffix = rng.choice([".txt", ".csv"])
        path = folder / f"{number}{suffix}"
        path.write_bytes(mutated(contents[suffix], rng))
        yield Case(f"list {number}{suffix}", partial(read_source, path))


def arrays(rng: random.Random, folder: Path, share: int) -> Iterator[Case]:
    """.npz files with bytes changed, and headers of PyTorch's and of NumPy's that lie."""
    content = io.BytesIO()
    np.savez(content, x=np.ones((6, 3), np.float32), y=np.arange(6) % 2)
    packed = io.BytesIO()
    np.savez_compressed(packed, x=np.ones((6, 3), np.float32), y=np.arange(6) % 2)
    for number in range(300 // share):
        path = folder / f"{number}.npz"
        path.write_bytes(mutated(rng.choice([content, packed]).getvalue(), rng))
        yield Case(f"npz {number}", partial(read_source, path))
    tensors = (
        {1: torch.zeros(2)},
        {"a": {2: 3}},
        {"state_dict": {3: torch.zeros(1)}},
        [torch.zeros(1)],
        {"epoch": 3},
        None,
    )
    for number, value in enumerate(tensors):
        torch.save(value, folder / f"{number}.pth")
        yield Case(f"weights {number}", partial(read_weights, folder / f"{number}.pth"))


def names(rng: random.Random, folder: Path, share: int) -> Iterator[Case]:
    """Folders and files with names of bytes that are no text, control characters and formulas: all are read."""
    letters = [os.fsdecode(bytes([byte])) for byte in range(1, 256) if byte not in b"/."]
    for number in range(100 // share):
        root = folder / str(number)
        made = {f"c{''.join(rng.choices(letters, k=rng.randint(1, 5)))}" for _ in range(3)} | {"plain"}
        for name in made:
            (root / name).mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(root / name / f"{rng.choice(letters)}.png")
        yield Case(f"names {number}", partial(check_names, root, len(made)))


def check_names(root: Path, classes: int) -> None:
    """Check that no two classes became one."""
    assert len(read_source(root).classes) == classes


def as_cases(found: Callable[[random.Random, Path, int], hostile_runs.Found]) -> Area:
    """An area of another file."""
    return lambda rng, folder, share: (Case(name, act) for name, act in found(rng, folder, share))


AREAS: dict[str, Area] = {
    "special files": special_files,
    "image bytes": image_bytes,
    "image bombs": bombs,
    "settings, options, devices": settings,
    "grids": grids,
    "lists": lists,
    "arrays and weights": arrays,
    "names": names,
    **COMMAND_AREAS,
    "state files": as_cases(hostile_runs.state_files),
    "model folders": as_cases(hostile_runs.model_folders),
    "full disks": as_cases(hostile_runs.full_disks),
}


# --- all of them ---------------------------------------------------------------------------------------------------


def failure(case: Case, limit: float = LIMIT) -> str | None:
    """Why a case fails, None if it does not."""

    def hang(*_: object) -> None:
        raise HungError

    signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on metadata
            case.act()
    except AcclimateError as error:
        return bad_sentence(str(error))
    except HungError:
        return f"hangs for more than {limit} s"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def bad_sentence(text: str) -> str | None:
    """What is wrong with a sentence for a user; a name of bytes that are no text may be in it."""
    if "\n" in text or len(text) > 1000 or not text.endswith((".", "?")):
        return f"not a sentence: {text[:200]!r}"
    return None


def test_area(name: str, seed: int, share: int) -> tuple[int, list[str]]:
    """How many cases of an area were tried, and those that failed."""
    failed, tried = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for case in AREAS[name](random.Random(f"{seed} {name}"), Path(folder), share):
            tried += 1
            why = failure(case, 20 * LIMIT if name in SLOW else LIMIT)
            if why is not None:
                failed.append(f"{name}: {case.name}: {why}")
    return tried, failed


def main() -> None:
    """Try all cases, print what failed, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the cases")
    parser.add_argument("--only", nargs="*", choices=list(AREAS), help="these areas alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, help="write the table here too")
    parser.add_argument("--decode", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.decode:
        decode_alone(args.decode, args.threads)
        return
    silence_pillow()  # as the command does
    rows, failures = [], []
    for name in args.only or AREAS:
        start = time.perf_counter()
        tried, failed = test_area(name, args.seed, 10 if args.quick else 1)
        rows.append(f"| {name} | {tried:,} | {len(failed)} | {time.perf_counter() - start:.0f} |")
        failures += failed
        print("\n".join([rows[-1], *failed]).encode(errors="backslashreplace").decode(), file=sys.stderr)
    lines = ["| area | cases | failures | seconds |", "|---|---:|---:|---:|", *rows]
    if PEAKS:
        lines += ["", "| decoding | grew by, and ended |", "|---|---|"]
        lines += [f"| {name} | {told} |" for name, told in PEAKS.items()]
    put_out("\n".join(lines), args.table)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
