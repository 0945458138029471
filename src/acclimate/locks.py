"""Locks: a file, or a folder in which one process works at a time, on this machine or on another one."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import IO, NamedTuple

from acclimate.files import TOKEN_BYTES, open_no_follow, read_regular

PATIENCE = 3.0  # seconds of waiting for a lock before it is mentioned

POLL = 0.1  # seconds between two looks at a lock

BEAT = 10.0  # seconds after which a claim is renewed

STALE = 600.0  # seconds without that, after which it holds no more: longer than a network file system is ever silent

LOCK, CLAIM = "lock", "claim"  # the files in a folder in which a process works

MOST_CLAIM = 4096  # bytes of a claim

WITHOUT_LOCKS = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}  # of a file system that has none

log = logging.getLogger("acclimate")


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Whether this thread has the file to itself, which is made if need be; the system frees it when a process ends.

    Args:
        path: The file. It may be deleted by whoever has it.
        wait: Wait until it is free, and say so after some seconds; otherwise the answer may be False.

    Raises:
        OSError: The file cannot be made or locked.
    """
    mention = time.monotonic() + PATIENCE
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_no_follow(path, "ab") as file:
            free = _lock(file)
            if free and _is_still(file, path):
                yield True
                return
            if not free and not wait:
                yield False
                return
        if not free:
            if time.monotonic() > mention:
                log.warning("Waiting for another process that works in %s.", path.parent)
                mention = float("inf")
            time.sleep(POLL)


def _is_still(file: IO[bytes], path: Path) -> bool:
    """Whether the path leads to the open file, which its last owner may have deleted."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[bytes]) -> bool:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

else:
    import fcntl

    def _lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


# --- folders -------------------------------------------------------------------------------------------------------


class Claim(NamedTuple):
    """Who works in a folder: the lines of its file `CLAIM`.

    Attributes:
        kernel: What tells the running system from all others, and from itself when it was started before.
        host: The name of the machine or the container.
        pid: The process.
        since: When it began, for people.
        token: What tells this claim from all others.
    """

    kernel: str
    host: str
    pid: int
    since: str
    token: str

    def __str__(self) -> str:
        where = "" if self.host == socket.gethostname() else f" on {self.host}"
        return f"Process {self.pid}{where}, which began at {self.since},"

    @classmethod
    def ours(cls) -> Claim:
        """A new one of this process."""
        began = f"{datetime.now():%Y-%m-%d %H:%M}"
        return cls(_kernel(), socket.gethostname(), os.getpid(), began, secrets.token_hex(TOKEN_BYTES))

    @classmethod
    def read(cls, path: Path) -> Claim | None:
        """The claim in a file; None where there is no file, or none that can be read, or one half written."""
        with suppress(OSError, ValueError):
            kernel, host, pid, since, token = read_regular(path, MOST_CLAIM).decode().splitlines()
            return cls(kernel, host, int(pid), since, token)
        return None


@contextmanager
def alone(folder: Path, *, wait: bool = True) -> Iterator[bool]:
    """Whether this process has a folder to itself, which is made if need be.

    The system's lock tells among the processes of a machine, and is free as soon as one ends, however it ends. On a
    file system that machines share, it may hold for each of them alone, or not be there at all. So a claim, a file that
    only one can create, lies beside it and is renewed while its process lives. One that has not been renewed for ten
    minutes, by the clock of that file system, holds no more. Should two work in one folder all the same, they lose
    time and nothing else: they write the same bits, and replace each file whole.

    Args:
        folder: The folder. The files that guard it are deleted at the end, and so is it, if it was made and is empty.
        wait: Wait until it is free, and say who works there; otherwise the answer may be False.

    Raises:
        OSError: The folder cannot be made or written to.
    """
    was_there, told = folder.exists(), False
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with _guarded(folder / LOCK) as guarded:
            claim = _claimed(folder, guarded=guarded) if guarded is not False else None
            if claim is not None:
                try:
                    with _renewed(folder / CLAIM, claim):
                        yield True
                finally:
                    _leave(folder, claim)
                    if not was_there:
                        with suppress(OSError):  # it is not empty
                            folder.rmdir()
                return
        if not wait:
            yield False
            return
        if not told:
            log.warning("%s works in %s: this one waits for it, until Ctrl-C.", worker_of(folder), folder)
            told = True
        time.sleep(POLL)


def worker_of(folder: Path) -> str:
    """Who works in a folder, to begin a sentence that goes on with a verb."""
    claim = Claim.read(folder / CLAIM)
    return str(claim) if claim is not None else "Another process"


@contextmanager
def _guarded(path: Path) -> Iterator[bool | None]:
    """Whether this process has the system's lock on a file; None where the file system has no locks."""
    with open_no_follow(path, "ab") as file:
        mine: bool | None
        try:
            mine = _lock(file) and _is_still(file, path)
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
            _tell_of_no_locks()
            mine = None
        yield mine


@cache
def _tell_of_no_locks() -> None:
    log.warning(
        "The file system has no locks: files tell other processes where this one works, which they may see late, and "
        "then do the same work twice."
    )


def _claimed(folder: Path, *, guarded: bool | None) -> Claim | None:
    """This process's claim of a folder; None where another process has one that holds."""
    path = folder / CLAIM
    with suppress(FileNotFoundError):  # there is none, or there is none any more
        before = Claim.read(path)
        if not _is_stale(path, before, guarded=guarded):
            return None
        _take_away(path, before)
    ours = Claim.ours()
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in ours)
    return ours


def _is_stale(path: Path, claim: Claim | None, *, guarded: bool | None) -> bool:
    """Whether a claim holds no more.

    Raises:
        FileNotFoundError: It is there no more.
    """
    written = path.stat().st_mtime
    if claim is not None and claim.kernel == _kernel():
        if guarded:  # the system has freed its lock
            return True
        if claim.host == socket.gethostname() and not _is_alive(claim.pid):
            return True
    probe = path.with_name(f".{path.name}.{secrets.token_hex(TOKEN_BYTES)}.tmp")
    probe.touch(exist_ok=False)
    try:
        return probe.stat().st_mtime - written > STALE  # both by the clock of the file system
    finally:
        probe.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _take_away(path: Path, claim: Claim | None) -> None:
    """Delete a stale claim, which one process alone can rename; that of another, which came in between, stays."""
    away = path.with_name(f".{path.name}.{secrets.token_hex(TOKEN_BYTES)}.tmp")
    path.rename(away)
    if Claim.read(away) != claim:
        with suppress(OSError):
            os.link(away, path)
    away.unlink(missing_ok=True)


@contextmanager
def _renewed(path: Path, claim: Claim) -> Iterator[None]:
    """Within it, a claim is renewed as long as it is ours."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(BEAT):
            with suppress(OSError):
                if Claim.read(path) == claim:
                    os.utime(path)

    thread = threading.Thread(target=renew, name="claim", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _leave(folder: Path, claim: Claim) -> None:
    """Delete the files that guard a folder, unless another process has claimed it meanwhile."""
    with suppress(OSError):  # Windows keeps an open file
        if Claim.read(folder / CLAIM) == claim:
            (folder / CLAIM).unlink()
            (folder / LOCK).unlink()


@cache
def _kernel() -> str:
    """What tells the running system from all others; its name where it does not say more."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return socket.gethostname()
