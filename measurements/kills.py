"""Kill commands at random moments, start them again, and compare the bits with those of an unbroken one.

    python measurements/kills.py [--kills 100] [--seed 0] [--table FILE]

A command is started in a process group of its own, which gets `kill -9` after a random time within what the command
takes; it is started again until it has been killed so often, and then it is let through. What it writes must be that of
an unbroken command, and nothing half written may be left. Last, two equal `fit` commands start together, ten times.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hostile_runs import domains, results
from speed import put_out

KILLS_A_TRIAL = 3

SMALL = ("--bottleneck", "4", "--batch-size", "6", "--checkpoint-seconds", "0", "--no-report", "-q")

GRID = """seeds = [0, 1]
[data]
tasks = ["s-t"]
[data.domains]
s = "{}"
t = "{}"
[settings]
steps = 300
bottleneck = 4
batch_size = 6
[[row]]
name = "DANN"
[[row]]
name = "DAN"
"""


class Command(NamedTuple):
    """A command, and what it wrote into a folder, for comparison."""

    arguments: Callable[[Path], list[str]]
    written: Callable[[Path], object]


def commands(folder: Path) -> dict[str, Command]:
    """The commands that are killed; export and predict use a run that is there."""
    source, target = domains(folder)
    data = ["--source", source, "--target", target, *SMALL]
    run = folder / "run"
    subprocess.run(command("fit", *data, "--method", "dann", "--steps", "20", "--out", str(run)), check=True)
    (folder / "grid.toml").write_text(GRID.format(source, target), encoding="utf-8")
    one = ("source-only", "dann", "dan")
    return {
        "fit": Command(
            lambda out: command("fit", *data, "--method", "wemnet", "--compare", "--steps", "300", "--out", str(out)),
            results,
        ),
        "fit, a consensus": Command(
            lambda out: command(
                "fit", *data, "--members", ",".join(one), "--jobs", "2", "--steps", "300", "--out", str(out)
            ),
            results,
        ),
        "bench": Command(
            lambda out: command("bench", str(folder / "grid.toml"), "--jobs", "2", "-q", "--out", str(out)), results
        ),
        "export": Command(lambda out: command("export", str(run), "-q", "--out", f"{out}.onnx"), exported),
        "predict": Command(lambda out: command("predict", str(run), target, "-q", "--out", f"{out}.csv"), table),
    }


def command(*arguments: str) -> list[str]:
    """The command line."""
    return [sys.executable, "-m", "acclimate", *arguments]


def exported(out: Path) -> bytes:
    """The bytes of an exported file."""
    return out.with_name(f"{out.name}.onnx").read_bytes()


def table(out: Path) -> bytes:
    """The bytes of a table."""
    return out.with_name(f"{out.name}.csv").read_bytes()


def start(arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start a command in a group of its own."""
    return subprocess.Popen(arguments, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def killed(arguments: list[str], longest: float, rng: random.Random) -> bool:
    """Whether a command was killed before it was through."""
    process = start(arguments)
    try:
        process.wait(rng.uniform(0, longest))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def trials(one: Command, folder: Path, kills: int, rng: random.Random) -> tuple[int, int, int]:
    """How many trials there were, with how many kills, and how many ended in something else than an unbroken one."""
    whole = folder / "whole"
    began = time.perf_counter()
    subprocess.run(one.arguments(whole), check=True, capture_output=True)
    longest = time.perf_counter() - began
    expected = one.written(whole)
    number, done, failed = 0, 0, 0
    while done < kills:
        out = folder / f"trial {number}"
        done += sum(killed(one.arguments(out), longest, rng) for _ in range(KILLS_A_TRIAL))
        last = subprocess.run(one.arguments(out), check=False, capture_output=True, text=True)
        if last.returncode or one.written(out) != expected:
            print(out, last.stderr, file=sys.stderr)
            failed += 1
        elif out.is_dir():
            shutil.rmtree(out)
        number += 1
    return number, done, failed


def twice(folder: Path, times: int) -> int:
    """How many of so many pairs of equal `fit` commands did not both end well with the result of one."""
    source, target = domains(folder)
    data = ["--source", source, "--target", target, *SMALL, "--method", "dann", "--steps", "300"]
    subprocess.run(command("fit", *data, "--out", str(folder / "one")), check=True)
    expected, failed = results(folder / "one"), 0
    for number in range(times):
        out = folder / f"pair {number}"
        pair = [start(command("fit", *data, "--out", str(out))) for _ in range(2)]
        failed += sum(process.wait() != 0 for process in pair) > 0 or results(out) != expected
    return failed


def main() -> None:
    """Kill, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="of all commands together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path, help="write the table here too")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    lines, wrong = ["| command | trials | kills | failures |", "|---|---:|---:|---:|"], 0
    with tempfile.TemporaryDirectory() as name:
        os.environ["ACCLIMATE_CACHE"] = str(Path(name) / "cache")
        found = commands(Path(name))
        for what, one in found.items():
            folder = Path(name) / what.replace(",", "")
            folder.mkdir()
            number, done, failed = trials(one, folder, -(-args.kills // len(found)), rng)
            lines.append(f"| {what} | {number} | {done} | {failed} |")
            print(lines[-1], file=sys.stderr)
            wrong += failed
        failed = twice(Path(name), 10)
        lines.append(f"| two equal fits at once | 10 | 0 | {failed} |")
    put_out("\n".join(lines), args.table)
    sys.exit(bool(wrong + failed))


if __name__ == "__main__":
    main()
