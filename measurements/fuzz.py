"""Fuzzing: inputs of every kind, mutated without end; none may crash, hang, take a gigabyte or end in no sentence.

    python measurements/fuzz.py [--minutes 5] [--only KIND ...] [--seed 0] [--keep FOLDER]

A kind of input is a subclass of `Kind`: undamaged samples, and what reads them. A process of its own goes through the
kinds in turn. An input that ends in a way in which none has ended before becomes a sample itself, so that the damage
goes deeper; two endings are the same if errors were raised in the same lines. What fails is kept in FOLDER, where a
test can read it. The exit status says whether anything failed.
"""

# ruff: noqa: D102 (the methods are described in Kind)

from __future__ import annotations

import argparse
import copy
import io
import json
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from acclimate.bench.records import read_records
from acclimate.data.read import read_source, read_target
from acclimate.errors import AcclimateError
from acclimate.evaluation.labels import Row, Todo, read_labels, write_labels
from acclimate.machine import silence_pillow
from acclimate.model import Model
from acclimate.networks.weights import read_weights
from acclimate.runs.files import MetricsLog, read_predictions, read_skipped
from acclimate.runs.record import read_record
from cases import Case, mutated
from hostile import GRID, decoded, failure, read_whole_grid
from speed import put_out

SLICE = 2.0  # seconds of a kind before the next

LIMIT = 20.0  # seconds of an input

STUCK = 60.0  # seconds without a sign of life

MOST_MEMORY = 10**9  # bytes by which an input may make the process grow

MOST_DATA = 6 * 2**30  # bytes of data of the process, so that nothing takes the machine with it

CORPUS = 300  # samples of a kind at most

ABSURD: tuple[Any, ...] = (
    None, True, "", "x" * 5000, "\0", "\udcff", "../..", 0, -1, 1, 2**31, 2**53, 2**63, 10**24, 0.5, -0.5, 1e-300,
    1e308, [], [1], [[1]], {}, {"a": [1]}, "a", "cpu",
)  # fmt: skip


class Kind(ABC):
    """A kind of input.

    Args:
        folder: A folder of its own.
        made: Finished runs and a bench, to be damaged.
    """

    name: ClassVar[str]

    def __init__(self, folder: Path, made: Path) -> None:
        self.folder, self.made = folder, made
        self.corpus = [*self.samples()]
        self.endings: set[str] = set()

    @abstractmethod
    def samples(self) -> Iterator[bytes]:
        """Undamaged contents."""

    @abstractmethod
    def read(self, content: bytes) -> object:
        """Read a content as a user would have it read."""

    def damage(self, content: bytes, rng: random.Random) -> bytes:
        """A content with some damage."""
        if rng.random() < 0.1:
            other = rng.choice(self.corpus)
            content = content[: rng.randrange(len(content) + 1)] + other[rng.randrange(len(other) + 1) :]
        return mutated(content, rng)

    def file(self, content: bytes, name: str) -> Path:
        """A file of this content."""
        path = self.folder / name
        path.write_bytes(content)
        return path


class Images(Kind):
    """Image files of every format and many of their modes."""

    name = "images"

    def samples(self) -> Iterator[bytes]:
        pixels = np.random.default_rng(0).integers(0, 256, (23, 37, 4), dtype=np.uint8)
        rgb, grey = Image.fromarray(pixels[..., :3]), Image.fromarray(pixels[..., 0])
        deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
        palette, bits = rgb.convert("P"), grey.convert("1")
        turned = Image.Exif()
        turned[0x0112] = 6
        wanted: list[tuple[Image.Image, str, dict[str, Any]]] = [
            *((rgb, name, {}) for name in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")),
            *((rgb, "TIFF", {"compression": c}) for c in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg", "zstd")),
            *((bits, "TIFF", {"compression": c}) for c in ("group3", "group4", "tiff_ccitt")),
            (rgb, "TIFF", {"exif": turned, "compression": "tiff_lzw"}),
            (rgb, "TIFF", {"big_tiff": True}),
            (rgb, "JPEG", {"progressive": True, "exif": turned}),
            (rgb.convert("CMYK"), "JPEG", {}),
            (rgb.convert("CMYK"), "TIFF", {}),
            (rgb.convert("YCbCr"), "TIFF", {"compression": "jpeg"}),
            (rgb.convert("LAB"), "TIFF", {}),
            (grey.convert("F"), "TIFF", {}),
            (grey.convert("I"), "TIFF", {}),
            (grey, "JPEG", {}),
            *((image, "PNG", {}) for image in (grey, deep, bits, Image.fromarray(pixels))),
            (palette, "PNG", {"transparency": 3}),
            (rgb, "PNG", {"exif": turned, "transparency": (1, 2, 3)}),
            (palette, "GIF", {"transparency": 3, "save_all": True, "append_images": [palette.rotate(90)]}),
            (rgb, "PNG", {"save_all": True, "append_images": [rgb.rotate(90)]}),
            (rgb, "WEBP", {"save_all": True, "append_images": [rgb.rotate(90)], "lossless": True}),
            (Image.fromarray(pixels), "WEBP", {"lossless": True, "exif": turned}),
            *((image, "BMP", {}) for image in (bits, palette, Image.fromarray(pixels))),
        ]
        for image, form, options in wanted:
            content = io.BytesIO()
            image.save(content, form, **options)
            yield content.getvalue()

    def damage(self, content: bytes, rng: random.Random) -> bytes:
        damaged = super().damage(content, rng)
        return with_checksums(damaged) if rng.random() < 0.7 else damaged

    def read(self, content: bytes) -> object:
        decoded(self.file(content, "image"))
        return None


def with_checksums(content: bytes) -> bytes:
    """A PNG whose chunks have the right checksums, so that a decoder gets to the damage; anything else as it is."""
    if content[:8] != b"\x89PNG\r\n\x1a\n":
        return content
    mended, at = [content[:8]], 8
    while at + 12 <= len(content):
        end = at + 8 + min(int.from_bytes(content[at : at + 4], "big"), len(content) - at - 12)
        body = content[at + 4 : end]
        mended.append(content[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big"))
        at = end + 4
    return b"".join(mended)


class Arrays(Kind):
    """.npz files, damaged as bytes or within their members."""

    name = "npz"

    def samples(self) -> Iterator[bytes]:
        y = np.arange(6) % 2
        for x in (np.ones((6, 3), np.float32), np.ones((6, 8, 8, 3), np.uint8), np.ones((6, 8, 8), np.uint8)):
            for save_as in (np.savez, np.savez_compressed):
                for labels in (y, np.array(["a", "b"])[y]):
                    content = io.BytesIO()
                    save_as(content, x=x, y=labels)
                    yield content.getvalue()

    def damage(self, content: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            return super().damage(content, rng)
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as packed:
                members = {name: packed.read(name) for name in packed.namelist()}
        except Exception:  # a sample that is damaged itself
            return super().damage(content, rng)
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as packed:
            for name, member in members.items():
                changed = member
                if rng.random() < 0.6:
                    header = member[:128]
                    changed = mutated(header, rng) + member[128:] if rng.random() < 0.8 else mutated(member, rng)
                packed.writestr(name, changed)
        return out.getvalue()

    def read(self, content: bytes) -> object:
        path = self.file(content, "x.npz")
        return read_target(path), read_source(path)


class Lists(Kind):
    """Image lists and CSV."""

    name = "lists"

    def samples(self) -> Iterator[bytes]:
        for name in "ab":
            Image.new("RGB", (4, 4)).save(self.folder / f"{name}.png")
        yield from (b"a.png 0\nb.png 1\n", b"path,label\na.png,x\nb.png,y\n", b'path;label\n"a.png";"x"\nb.png;y\n')
        yield "# a\n\n\ufeffa.png\t0\r\n./b.png 1 ".encode()

    def read(self, content: bytes) -> object:
        path = self.file(content, f"list.{'csv' if b'path' in content or content[:1] > b'm' else 'txt'}")
        try:
            return read_source(path)
        except AcclimateError:
            return read_target(path)


class Labels(Kind):
    """The files into which people write labels."""

    name = "labels"

    def samples(self) -> Iterator[bytes]:
        path = self.folder / "labels.csv"
        write_labels(path, Todo("accuracy", "0" * 16, tuple(Row(f"{n}.png", n % 2, 1.5, "a") for n in range(9))))
        content = path.read_bytes()
        yield from (content, content.replace(b",", b";"), content.decode().encode("utf-16"))

    def read(self, content: bytes) -> object:
        return read_labels(self.file(content, "read.csv"))


class Grids(Kind):
    """Grids of runs."""

    name = "grids"

    def samples(self) -> Iterator[bytes]:
        yield GRID.encode()
        yield GRID.replace('root = "."', 'benchmark = "office31"\nroot = "."').encode()

    def read(self, content: bytes) -> object:
        read_whole_grid(self.file(content, "grid.toml"))
        return None


class JsonKind(Kind):
    """JSON, damaged as bytes or in an entry."""

    def damage(self, content: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.3:
            return super().damage(content, rng)
        lines = content.split(b"\n") if self.name.endswith("l") else [content]
        at = rng.randrange(len(lines))
        try:
            lines[at] = json.dumps(with_other_entry(json.loads(lines[at]), rng)).encode(errors="backslashreplace")
        except (ValueError, RecursionError):
            return super().damage(content, rng)
        return b"\n".join(lines)


def with_other_entry(value: Any, rng: random.Random) -> Any:
    """JSON of which something is replaced, left out, doubled or put elsewhere."""
    value = copy.deepcopy(value)
    places = list(containers(value))
    for _ in range(rng.randint(1, 3)):
        if not places:
            return rng.choice(ABSURD)
        place = rng.choice(places)
        key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        match rng.randrange(5):
            case 0:
                del place[key]
                places = list(containers(value))
            case 1 if isinstance(place, dict):
                place[rng.choice(["x", "", "a\nb", str(key) + "2"])] = place[key]
            case 1:
                place.append(place[key])
            case 2:
                other = rng.choice(places)
                place[key] = copy.deepcopy(rng.choice(list(other.values()) if isinstance(other, dict) else other))
                places = list(containers(value))
            case _:
                place[key] = rng.choice(ABSURD)
                places = list(containers(value))
    return value


def containers(value: Any) -> Iterator[Any]:
    """All objects and lists within JSON that hold something."""
    if isinstance(value, dict | list) and value:
        yield value
        for part in value.values() if isinstance(value, dict) else value:
            yield from containers(part)


class ModelJson(JsonKind):
    """model.json of models of vectors and of images."""

    name = "model.json"

    def samples(self) -> Iterator[bytes]:
        for model in ("vectors", "images"):
            yield (self.made / model / "model.json").read_bytes()

    def read(self, content: bytes) -> object:
        of = "images" if b"lenet" in content else "vectors"
        weights = self.folder / "model.safetensors"
        weights.unlink(missing_ok=True)
        weights.symlink_to(self.made / of / weights.name)
        self.file(content, "model.json")
        return Model.load(self.folder)


class Safetensors(Kind):
    """safetensors, damaged as bytes or in their header."""

    name = "safetensors"

    def samples(self) -> Iterator[bytes]:
        for kind in (torch.float32, torch.bfloat16, torch.int64, torch.bool):
            yield save({"a": torch.ones(2, 3).to(kind), "module.b": torch.zeros(()).to(kind)}, {"x": "y"})

    def damage(self, content: bytes, rng: random.Random) -> bytes:
        length = int.from_bytes(content[:8], "little")
        if rng.random() < 0.3 or length > len(content):
            return super().damage(content, rng)
        try:
            header = json.dumps(with_other_entry(json.loads(content[8 : 8 + length]), rng)).encode()
        except (ValueError, RecursionError):
            header = mutated(content[8 : 8 + length], rng)
        return len(header).to_bytes(8, "little") + header + content[8 + length :]

    def read(self, content: bytes) -> object:
        return read_weights(self.file(content, "x.safetensors"))


class Pickles(Kind):
    """.pth files."""

    name = "pth"

    def samples(self) -> Iterator[bytes]:
        for value in ({"a": torch.ones(2, 3)}, {"state_dict": {"module.b": torch.zeros(1)}}):
            for zipped in (True, False):
                content = io.BytesIO()
                torch.save(value, content, _use_new_zipfile_serialization=zipped)
                yield content.getvalue()

    def read(self, content: bytes) -> object:
        return read_weights(self.file(content, "x.pth"))


class Record(JsonKind):
    """record.json of runs."""

    name = "record.json"

    def samples(self) -> Iterator[bytes]:
        for run in ("vectors", "images"):
            yield (self.made / run / "record.json").read_bytes()

    def read(self, content: bytes) -> object:
        return read_record(self.file(content, "record.json"))


class Records(JsonKind):
    """records.jsonl of benches."""

    name = "records.jsonl"

    def samples(self) -> Iterator[bytes]:
        yield (self.made / "bench" / "records.jsonl").read_bytes()

    def read(self, content: bytes) -> object:
        from acclimate.bench.shown import shown
        from acclimate.bench.tables import sheets

        path = self.file(content, "records.jsonl")
        records = read_records([path])
        return shown(records, [path]), sheets(records)


class MetricsLines(JsonKind):
    """metrics.jsonl of runs."""

    name = "metrics.jsonl"

    def samples(self) -> Iterator[bytes]:
        yield (self.made / "images" / "metrics.jsonl").read_bytes()

    def read(self, content: bytes) -> object:
        return MetricsLog(self.file(content, "metrics.jsonl")).read()


class Tables(Kind):
    """predictions.csv and skipped.csv of runs."""

    name = "tables"

    def samples(self) -> Iterator[bytes]:
        yield (self.made / "vectors" / "predictions.csv").read_bytes()
        yield b"path,reason\r\na.png,the file is truncated\r\n"

    def read(self, content: bytes) -> object:
        path = self.file(content, "table.csv")
        return read_skipped(path) if b"reason" in content else read_predictions(path, 24, 3)


KINDS: dict[str, type[Kind]] = {
    kind.name: kind
    for kind in (
        Images, Arrays, Lists, Labels, Grids, ModelJson, Safetensors, Pickles, Record, Records, MetricsLines, Tables
    )
}  # fmt: skip


# --- the process that tries ----------------------------------------------------------------------------------------


def make_runs(folder: Path) -> None:
    """Two small runs and a bench of another, to be damaged."""
    data = folder / "data"
    data.mkdir(parents=True)
    for end, seed in (("source", 0), ("target", 1)):
        rng = np.random.default_rng(seed)
        y = np.arange(24) % 3
        vectors = rng.normal(size=(24, 6)).astype(np.float32) + 2 * np.eye(3, 6, dtype=np.float32)[y] + seed
        pictures = (60 * y[:, None, None] + rng.integers(0, 60, (24, 12, 12)) + seed).astype(np.uint8)
        for name, x in (("vectors", vectors), ("images", pictures)):
            np.savez(data / f"{end}-{name}.npz", x=x, y=np.array(list("abc"))[y])
    grid = GRID.replace('root = "."', f'root = "{data}"')
    grid = grid.replace('a = "a"', 'a = "source-vectors.npz"').replace('b = "b.npz"', 'b = "target-vectors.npz"')
    (data / "grid.toml").write_text(grid, encoding="utf-8")
    fit = ["fit", "--no-report", "--quiet", "--method", "dann", "--steps", "4", "--batch-size", "8"]
    for name, options in (("vectors", ("--set", "hidden=8")), ("images", ("--backbone", "lenet", "--tune", "all"))):
        ends = [part for end in ("source", "target") for part in (f"--{end}", f"{data}/{end}-{name}.npz")]
        run_quietly([*fit, *options, *ends, "--out", str(folder / name)])
    run_quietly(["bench", str(data / "grid.toml"), "--out", str(folder / "bench"), "--quiet"])


def run_quietly(command: list[str]) -> None:
    """Have a command do its work."""
    subprocess.run([sys.executable, "-m", "acclimate", *command], check=True, stdout=subprocess.DEVNULL)


def attempt(kinds: list[Kind], seed: str, folder: Path, until: float) -> None:
    """Go through the kinds until the time is up; tell of what fails, and of how many inputs were tried."""
    silence_pillow()
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_DATA, MOST_DATA))
    rng = random.Random(seed)
    while time.time() < until:
        for kind in kinds:
            start, tried = time.monotonic(), 0
            while time.monotonic() - start < SLICE:
                content = kind.damage(rng.choice(kind.corpus), rng)
                (folder / "current").write_bytes(content)
                (folder / "current.kind").write_text(kind.name)
                tried += 1
                why, ending = outcome(kind, content)
                if why is not None:
                    tell({"kind": kind.name, "why": why, "content": keep(folder, kind, content)})
                if ending not in kind.endings:
                    kind.endings.add(ending)
                    if len(content) < 10**5 and len(kind.corpus) < CORPUS:
                        kind.corpus.append(content)
            tell({"kind": kind.name, "tried": tried, "endings": len(kind.endings)})


def outcome(kind: Kind, content: bytes) -> tuple[str | None, str]:
    """Why reading a content fails, None if it does not, and how it ended: the lines in which errors were raised."""
    endings = ["read"]

    def act() -> None:
        try:
            kind.read(content)
        except BaseException as error:
            endings[:] = lines_of(error)
            raise

    Path("/proc/self/clear_refs").write_text("5")  # the peak of the memory begins anew
    base = peak()
    why = failure(Case(kind.name, act), LIMIT)
    if why is not None and why.startswith("hangs"):
        why = failure(Case(kind.name, act), LIMIT)  # once more: maybe the machine stood still, not the reader
    taken = peak() - base
    if why is None and taken > MOST_MEMORY:
        why = f"takes {taken / 1e6:,.0f} MB"
    if why is not None and endings != ["read"]:
        why += f" at {endings[0]}"
    return why, " ".join(endings)


def lines_of(error: BaseException | None) -> list[str]:
    """Where an error was raised, and those that it goes back to."""
    found: list[str] = []
    while error is not None and len(found) < 5:
        frames = traceback.extract_tb(error.__traceback__)
        found.append(f"{type(error).__name__} {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "")
        error = error.__cause__ or error.__context__
    return found


def peak() -> int:
    """The most bytes that this process had in memory since the peak was begun anew."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def keep(folder: Path, kind: Kind, content: bytes) -> str:
    """Keep what failed."""
    path = folder / f"{kind.name}-{zlib.crc32(content):08x}"
    if len(list(folder.glob(f"{kind.name}-*"))) < CORPUS:
        path.write_bytes(content)
    return path.name


def tell(what: dict[str, Any]) -> None:
    """A line for the process that watches."""
    print(json.dumps(what), flush=True)


# --- the process that watches --------------------------------------------------------------------------------------


def watch(args: argparse.Namespace, folder: Path) -> tuple[Counter[str], Counter[str], dict[str, int]]:
    """Let a process try inputs, and another one if it dies or is stuck, until the time is up.

    Returns:
        How many inputs were tried by kind, how many failed by kind and reason, and in how many ways they ended.
    """
    tried: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    endings: dict[str, int] = {}
    kept: dict[str, str] = {}  # an input that failed, by kind and reason
    until, begun = time.time() + 60 * args.minutes, 0
    while time.time() < until:
        begun += 1
        command = [sys.executable, __file__, "--worker", str(folder), "--until", str(until)]
        command += ["--seed", f"{args.seed} {begun}", "--keep", str(args.keep), "--only", *(args.only or KINDS)]
        said = args.keep / f"said-{begun}.jsonl"
        with said.open("w") as out:
            process = subprocess.Popen(command, stdout=out, stderr=sys.stderr)
            seen = time.time()
            while process.poll() is None:
                time.sleep(1)
                current = args.keep / "current"
                seen = max(seen, current.stat().st_mtime if current.exists() else 0)
                if time.time() - seen > STUCK + LIMIT:
                    process.kill()
        for line in said.read_text().splitlines():
            told = json.loads(line)
            if "tried" in told:
                tried[told["kind"]] += told["tried"]
                endings[told["kind"]] = max(endings.get(told["kind"], 0), told["endings"])
            else:
                reason = re.sub(r"\d+", "0", told["why"])
                failed[f"{told['kind']}: {reason}"] += 1
                kept.setdefault(f"{told['kind']}: {reason}", told["content"])
        said.unlink()
        if process.returncode:
            kind = (args.keep / "current.kind").read_text()
            name = f"{kind}-crash-{begun}"
            shutil.copy(args.keep / "current", args.keep / name)
            failed[f"{kind}: the process ended with {process.returncode}"] += 1
            kept.setdefault(f"{kind}: the process ended with {process.returncode}", name)
    for reason, name in kept.items():
        print(f"{failed[reason]} x {reason}: {name}", file=sys.stderr)
    return tried, failed, endings


def main() -> None:
    """Fuzz, and print what failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--only", nargs="*", choices=list(KINDS), help="these kinds alone")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--keep", type=Path, help="the folder for what fails; a new temporary one if none is named")
    parser.add_argument("--table", type=Path, help="write the table here too")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.worker:
        with tempfile.TemporaryDirectory() as scratch:
            kinds = []
            for name in args.only:
                own = Path(scratch) / name
                own.mkdir()
                kinds.append(KINDS[name](own, args.worker))
            attempt(kinds, args.seed, args.keep, args.until)
        return
    args.keep = args.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))
    args.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        make_runs(Path(made) / "made")
        tried, failed, endings = watch(args, Path(made) / "made")
    of_kind = Counter(name.partition(":")[0] for name in failed.elements())
    rows = [f"| {name} | {tried[name]:,} | {endings.get(name, 0)} | {of_kind[name]} |" for name in args.only or KINDS]
    put_out("\n".join(["| kind | inputs | endings | failures |", "|---|---:|---:|---:|", *rows]), args.table)
    if failed:
        print(f"What failed is kept in {args.keep}.", file=sys.stderr)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
