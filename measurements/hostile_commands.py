"""Hostile cases for the command as a whole: command lines, tables, names that reach the terminal, and signals."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from acclimate.cli.app import app
from cases import Area, Case, mutated

OUTLIVING = 2.0  # seconds for which a worker may outlive its parent

CALM = 8.0  # seconds of a command from which on nothing new happens


def signals(rng: random.Random, folder: Path, share: int) -> Iterator[Case]:
    """Ctrl-C, SIGTERM and SIGKILL at moments of every command that works for a while, its workers' start included."""
    commands = working_commands(folder)
    for number in range(200 // share):
        name = rng.choice(list(commands))
        sent = rng.choice([signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
        after = rng.choice([0.0, 0.1, 0.5, 1.0, 2.0, 4.0, CALM]) * rng.random()
        command = [part.replace("OUT", str(folder / str(number))) for part in commands[name]]
        yield Case(f"{sent.name} after {after:.2f} s of {name}", partial(stopped, command, sent, after))


def working_commands(folder: Path) -> dict[str, list[str]]:
    """Commands that take longer than a few seconds, with data for them."""
    for end, seed in (("source", 0), ("target", 1)):
        rng = np.random.default_rng(seed)
        y = np.arange(300) % 3
        x = rng.normal(size=(300, 32)).astype(np.float32) + 2 * np.eye(3, 32, dtype=np.float32)[y] + seed / 2
        np.savez(folder / f"{end}.npz", x=x, y=np.array(list("abc"))[y])
    ends = ["--source", f"{folder}/source.npz", "--target", f"{folder}/target.npz"]
    grid = f'seeds = [0, 1, 2]\n[data]\nroot = "{folder}"\ntasks = ["s-t"]\n[data.domains]\n'
    grid += 's = "source.npz"\nt = "target.npz"\n[settings]\nsteps = 3000\n[[row]]\nname = "dann"\n'
    (folder / "grid.toml").write_text(grid, encoding="utf-8")
    quiet = ["--quiet", "--out", "OUT"]
    fit = ["fit", *ends, *quiet, "--no-report", "--checkpoint-seconds", "0"]
    return {
        "fit": [*fit, "--method", "dann", "--steps", "20000"],
        "fit with members side by side": [*fit, "--steps", "3000", "--jobs", "2"],
        "bench": ["bench", f"{folder}/grid.toml", *quiet],
        "bench side by side": ["bench", f"{folder}/grid.toml", *quiet, "--jobs", "2"],
    }


def stopped(command: list[str], sent: signal.Signals, after: float) -> None:
    """Check how a command ends that gets a signal so many seconds after it has begun to listen for it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "acclimate", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # which a shell's background jobs ignore
    )
    while process.poll() is None and not listens(process.pid):
        time.sleep(0.01)
    try:
        process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        if sent == signal.SIGINT:  # as a terminal does
            os.killpg(process.pid, sent)
        else:
            process.send_signal(sent)
    told = process.communicate()[1]
    deadline = time.monotonic() + OUTLIVING
    while (left := of_session(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"{len(left)} workers outlive it by {OUTLIVING} s"
    expected = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}[sent]
    ends_by_default = process.returncode == -sent and not told  # it had finished already
    assert process.returncode in (0, expected) or ends_by_default, f"exit {process.returncode}: {told[-300:]}"
    if process.returncode == expected > 0:
        assert re.fullmatch(r"Error: (Interrupted|Terminated)[^\n]*\.\n", told), told[-300:]
    else:
        assert not told, told[-300:]


def listens(pid: int) -> bool:
    """Whether a process catches SIGTERM by now."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    caught = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")), 0)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def of_session(session: int) -> list[int]:
    """The processes of a session that are still at work."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, _, _, of = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[:4]
            except OSError:  # it has just ended
                continue
            if int(of) == session and state != "Z":
                found.append(int(folder.name))
    return found


# --- command lines and tables, in this process ---------------------------------------------------------------------

WORDS = (
    "", "-", "--", "---", "=", "-q", "--quiet", "--json", "--debug", "--help", "-h", "--version", "x", "0", "-1",
    "1e999", "9" * 5000, "nan", "x" * 5000, "\x1b]0;x\x07", "\udcff", "\u202e", "a\nb", "a=b", "/dev/null",
    "/proc/self/mem", "~", "*", "%s", "{0}", "[bold]", "[/]", "\\", "'", '"', "dann", "wemnet", "source_only",
    "office31", "digits", "cpu", "csv", "labels.csv", "records.jsonl",
)  # fmt: skip

COMMANDS = (
    "fit", "bench", "table", "choose", "predict", "evaluate", "label", "export", "report", "methods", "backbones",
    "data list", "data check", "cache list", "cache prune", "cache clear",
)  # fmt: skip


def command_lines(rng: random.Random, folder: Path, share: int) -> Iterator[Case]:
    """Commands with any options, values and arguments, in a folder in which there is nothing to train on."""
    known = {name: option_names(name.split()) for name in COMMANDS}
    for number in range(1000 if share == 1 else 30):
        name = rng.choice(COMMANDS)
        given: list[str] = []
        for _ in range(rng.randint(0, 6)):
            match rng.randrange(3):
                case 0:
                    given.append(rng.choice(WORDS))
                case 1:
                    given += [rng.choice(known[name]), rng.choice(WORDS)]
                case 2:
                    given.append(f"{rng.choice(known[name])}={rng.choice(WORDS)}")
        yield Case(
            f"{number}: acclimate {name} {given}"[:300], partial(refused_or_done, [*name.split(), *given], folder)
        )


def option_names(command: Sequence[str]) -> list[str]:
    """The options of a command."""
    return sorted(set(re.findall(r"--[a-z0-9-]+", CliRunner().invoke(app, [*command, "--help"]).output)))


def refused_or_done(arguments: Sequence[str], folder: Path) -> None:
    """Check how a command ends that is called in a folder, with a cache and a home of its own there."""
    environment = {"ACCLIMATE_CACHE": str(folder / "cache"), "HOME": str(folder), "COLUMNS": "200"}
    before = Path.cwd()
    os.chdir(folder)
    try:
        result = CliRunner(env=environment).invoke(app, list(arguments))
    finally:
        os.chdir(before)
    error = result.exception
    assert error is None or isinstance(error, SystemExit), repr(error)[:200]
    assert int(result.exit_code) in (0, 2), f"exit {int(result.exit_code)}: {result.output[-300:]}"
    assert not set(result.output) & set("\x1b\x07"), "an escape reaches the terminal"
    if result.exit_code and "─ Error ─" not in result.stderr:  # as typer tells of an option that it does not know
        sentence = result.stderr.rstrip("\n").split("\n")[-1]
        assert re.fullmatch(r"Error: .*[.?]", sentence) or "--debug" in str(arguments), sentence[-300:]


def tables(rng: random.Random, folder: Path, share: int) -> Iterator[Case]:
    """`acclimate table` of mangled records, in every format, and `acclimate bench` of mangled grids."""
    whole = folder / "whole"
    write_source(folder)
    made = CliRunner().invoke(app, ["bench", f"{folder}/grid.toml", "--out", str(whole), "--quiet"])
    assert made.exit_code == 0, made.output
    lines = (whole / "records.jsonl").read_bytes()
    for number in range(300 if share == 1 else 12):
        path = folder / f"{number}" / "records.jsonl"
        path.parent.mkdir()
        path.write_bytes(mutated(lines, rng) if number % 3 else with_other_entry(lines, rng))
        form = rng.choice(["terminal", "markdown", "latex", "csv"])
        extra = rng.choice([[], ["--json"], ["--metric", "both"], ["--published", "digits"], ["--baseline", "dann"]])
        command = ["table", str(path.parent), "--format", form, *extra]
        yield Case(f"records {number} as {form} {extra}", partial(refused_or_done, command, folder))
    grid = (folder / "grid.toml").read_bytes()
    for number in range(100 if share == 1 else 4):
        path = folder / f"{number}.toml"
        path.write_bytes(mutated(grid, rng))
        command = ["bench", str(path), "--out", str(folder / f"bench {number}"), "--quiet"]
        yield Case(f"bench of the grid {number}", partial(refused_or_done, command, folder))


def write_source(folder: Path) -> None:
    """Two domains and a grid of a method in closed form, so that whatever runs is over at once."""
    for end, seed in (("source", 0), ("target", 1)):
        rng = np.random.default_rng(seed)
        y = np.arange(12) % 3
        x = rng.normal(size=(12, 4)).astype(np.float32) + np.eye(3, 4, dtype=np.float32)[y] + seed
        np.savez(folder / f"{end}.npz", x=x, y=np.array(list("abc"))[y])
    grid = f'seeds = [0]\n[data]\nroot = "{folder}"\ntasks = ["s-t"]\n[data.domains]\ns = "source.npz"\n'
    grid += 't = "target.npz"\n[settings]\nsteps = 2\nbatch_size = 3\n[[row]]\nname = "gfk"\n'
    (folder / "grid.toml").write_text(grid + '[[row]]\nname = "source_only"\n', encoding="utf-8")


def with_other_entry(lines: bytes, rng: random.Random) -> bytes:
    """Records of which one has an entry that is missing, unknown or of another value."""
    records = [json.loads(line) for line in lines.splitlines()]
    place = rng.choice(records)
    while isinstance(inner := rng.choice(list(place.values())), dict) and inner:
        place = inner
    name = rng.choice(list(place))
    match rng.randrange(3):
        case 0:
            del place[name]
        case 1:
            place[rng.choice(WORDS)] = place[name]
        case 2:
            place[name] = rng.choice([None, True, -1, 10**30, 0.5, "=1+1", "\x1b[2J", "\udcff", [], {}, [[1]]])
    return "\n".join(map(json.dumps, records)).encode() + b"\n"


COMMAND_AREAS: dict[str, Area] = {
    "command lines": command_lines,
    "records and grids by the command": tables,
    "signals": signals,
}
