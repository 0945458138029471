"""Signals end a command with one sentence, and its workers with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are listed in /proc")

# As `bench` starts its workers, from a process that imports nothing heavy, so that a test takes a fraction of a second.
PROGRAM = """
import sys, time
from multiprocessing import get_context
from acclimate.processes import Stopped, serve, signals_held, stop_on_signals

stop_on_signals()
context = get_context("spawn")
pipes = [context.Pipe() for _ in range(2)]
workers = [context.Process(target=serve, args=(theirs,)) for _, theirs in pipes]
try:
    for worker in workers:
        with signals_held():
            worker.start()
    print("started", flush=True)
    time.sleep(60)
except Stopped as stopped:
    for worker in workers:
        if worker.pid:
            worker.terminate()
            worker.join()
    print(stopped)
    sys.exit(stopped.exit_code)
"""


def alive(session: int) -> int:
    """How many processes of a session there are, but for those that nobody has waited for yet."""
    count = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, _, _, of = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue
            count += int(of) == session and state != "Z"
    return count


@needs_proc
@pytest.mark.parametrize(
    ("sent", "code", "told"),
    [
        (signal.SIGINT, 130, "Interrupted\n"),
        (signal.SIGTERM, 143, "Terminated\n"),
        (signal.SIGKILL, -signal.SIGKILL, ""),
    ],
)
def test_workers_end_with_their_parent_while_they_start(sent: signal.Signals, code: int, told: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    os.killpg(process.pid, sent) if sent == signal.SIGINT else process.send_signal(sent)
    out, err = process.communicate(timeout=30)
    deadline = time.monotonic() + 5
    while alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert alive(process.pid) == 0
    assert (process.returncode, out, err) == (code, told, "")


@pytest.mark.parametrize(("sent", "code", "told"), [("SIGINT", 130, "Interrupted"), ("SIGTERM", 143, "Terminated")])
def test_a_signal_outside_of_a_command_is_told_in_a_sentence(sent: str, code: int, told: str) -> None:
    program = (
        "import acclimate.cli.app as cli, os, signal\n"
        "from acclimate.__main__ import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"cli.app = lambda **_: os.kill(os.getpid(), signal.{sent})\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"Error: {told}.\n")


def test_a_signal_that_comes_while_an_object_is_deleted_is_not_lost() -> None:
    program = (
        "import os, signal, time\n"
        "from acclimate.processes import stop_on_signals\n"
        "class Deleted:\n"
        "    def __del__(self): os.kill(os.getpid(), signal.SIGTERM)\n"
        "stop_on_signals()\n"
        "Deleted()\n"
        "time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=50)
    assert (done.returncode, done.stderr) == (143, "Error: Terminated.\n")


def test_what_is_ignored_stays_ignored() -> None:
    program = (
        "import os, signal\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from acclimate.processes import stop_on_signals\n"
        "stop_on_signals()\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
