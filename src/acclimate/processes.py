"""Processes: how one stops when a signal asks it to, and how those that it starts end with it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import connection, parent_process, resource_tracker
from typing import Any

MOST_AT_ONCE = 1024  # processes, or threads of one: more than any machine has, and fewer than bring it down

SIGNALS = (signal.SIGINT, signal.SIGTERM)

SHOW_CURSOR = b"\x1b[?25h"  # which a progress bar may have hidden


class Stopped(BaseException):
    """A signal asked the process to stop. It is no KeyboardInterrupt, which typer would take for its own.

    Attributes:
        exit_code: What a shell would call the end by that signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__("Interrupted" if number == signal.SIGINT else "Terminated")
        self.exit_code = 128 + number


def stop_on_signals() -> None:
    """Raise `Stopped` in the main thread where Ctrl-C or SIGTERM asks for it; a second time, end at once.

    A signal that whoever started the process has it ignore is still ignored. It holds for the whole process, so the
    command line calls it, the library never does.
    """
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _stop)
    sys.unraisablehook = _not_lost


def end_on_signals() -> None:
    """Let Ctrl-C and SIGTERM end the process without a word, as when it has nothing more to tell."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _stop(number: int, _: object) -> None:
    for each in SIGNALS:
        signal.signal(each, _end)
    raise Stopped(number)


def _end(number: int, _: object) -> None:
    if sys.stderr.isatty():
        os.write(sys.stderr.fileno(), SHOW_CURSOR)
    os._exit(128 + number)


def _not_lost(unraisable: sys.UnraisableHookArgs) -> None:
    """End the process where Python would swallow the exception, since it came while an object was being deleted."""
    stopped = unraisable.exc_value
    if not isinstance(stopped, Stopped):
        sys.__unraisablehook__(unraisable)
        return
    os.write(sys.stderr.fileno(), f"Error: {stopped}.\n".encode())
    os._exit(stopped.exit_code)


# --- processes that work for this one -------------------------------------------------------------------------------


@contextmanager
def signals_held() -> Iterator[None]:
    """Within it, worker processes can be started: no signal reaches them before `become_worker`, or stops it halfway.

    What comes meanwhile is delivered at the end.
    """
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    resource_tracker.ensure_running()  # or its start would let the signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve(pipe: connection.Connection) -> None:
    """The life of a worker: it is told what to do, a function and its arguments, and calls that with its pipe.

    What to do is told through the pipe, so that a module that takes long to import is imported by a worker already.
    """
    become_worker()
    try:
        function, arguments = pipe.recv()
        function(pipe, *arguments)
    except (EOFError, ConnectionError):  # the parent is gone
        os._exit(1)


def become_worker() -> None:
    """Begin the life of a process that works for its parent: it leaves interrupts to that, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _end_with_parent() -> None:
    parent: Any = parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
