"""Files: written whole, read as JSON, locked, and the folder of the cache."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path, *, errors: str, newline: str | None = None) -> Iterator[IO[str]]:
    """A text file that takes the place of `path` when it is complete: a kill leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", errors=errors, newline=newline) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write JSON in UTF-8, indented, keys in their own order, a list of numbers on one line.

    Raises:
        ValueError: `value` holds NaN or an infinity, which JSON does not have.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    text = re.sub(r"\[\n([-+.\deE,\s]+)\]", lambda numbers: f"[{' '.join(numbers[1].split())}]", text)
    # A file name that is not UTF-8 holds lone surrogates, for which \udcxx is the right escape in JSON too.
    with replacing(path, errors="backslashreplace") as file:
        file.write(text + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write one JSON object a line.

    Raises:
        ValueError: A value is NaN or infinite.
    """
    with replacing(path, errors="backslashreplace") as file:
        file.writelines(map(json_line, rows))


def json_line(row: Mapping[str, object]) -> str:
    """A line of JSON, without NaN and infinities, which JSON does not have."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


PATIENCE = 3.0  # seconds of waiting before it is mentioned

POLL = 0.1

log = logging.getLogger("acclimate")


def cache_folder() -> Path:
    """$ACCLIMATE_CACHE, else $XDG_CACHE_HOME/acclimate, else ~/.cache/acclimate; it need not exist."""
    if own := os.environ.get("ACCLIMATE_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "acclimate"
    return Path.home() / ".cache" / "acclimate"


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that others see complete or not at all, making its folder if need be.

    Raises:
        OSError: The folder cannot be written to; what was at `path` is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
        with path.open("ab") as file:
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
