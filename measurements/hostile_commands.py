"""Hostile cases for the command as a whole: command lines, tables, names that reach the terminal, and signals."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from cases import Area, Case

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


COMMAND_AREAS: dict[str, Area] = {
    "signals": signals,
}
