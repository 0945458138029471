"""Processes of their own, forked from one that has imported PyTorch, which takes longer than most tests."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import get_context
from pathlib import Path

IMPORTED = ["acclimate.bench.runner", "acclimate.cache.upkeep", "acclimate.cli.app", "pytest", "hypothesis"]


class Forked:
    """A process that runs a program as `python -c` would, on one thread, in the test's environment.

    Args:
        code: The program.
        args: Its arguments.
        more: What its environment has besides the test's.
    """

    def __init__(self, code: str, *args: str | Path, **more: str) -> None:
        context = get_context("forkserver")
        context.set_forkserver_preload(IMPORTED)
        handle, out = tempfile.mkstemp()
        os.close(handle)
        self.out = Path(out)
        arguments = (code, [str(arg) for arg in args], {**os.environ, **more}, out)
        self.process = context.Process(target=_run, args=arguments)
        self.process.start()

    def printed(self) -> str:
        """What it has printed so far."""
        return self.out.read_text(encoding="utf-8")

    def wait(self) -> tuple[int, str]:
        """The exit code, negative for a signal, and what it printed."""
        self.process.join(300)
        assert self.process.exitcode is not None
        printed = self.printed()
        self.out.unlink()
        return self.process.exitcode, printed


def run(code: str, *args: str | Path, **more: str) -> tuple[int, str]:
    """The exit code of a program, negative for a signal, and what it printed."""
    return Forked(code, *args, **more).wait()


def _run(code: str, args: list[str], environment: Mapping[str, str], out: str) -> None:
    import torch

    os.environ.clear()
    os.environ.update(environment)
    os.dup2(os.open(out, os.O_WRONLY), 1)
    torch.set_num_threads(1)
    sys.argv = ["-c", *args]
    exec(code, {"__name__": "__main__"})
