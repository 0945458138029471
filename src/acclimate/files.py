"""Files: written whole, read if they are regular, checked by a digest, and the folder of the cache."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

TOKEN_BYTES = 8  # of randomness in the name of a file that is being written

MOST_HASHED = 2**46  # bytes of any file that is read only to be compared

MOST_TEXT = 2**29  # bytes of a list, a table or another file of text: five million lines


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """An empty file beside `path`, which takes its place once the block is through: others see the old one or the new.

    Its name cannot be guessed, and nothing that has the name already is opened, a link included. Where the block
    fails, the file is deleted; where the process is killed, `leftovers` finds it.

    Args:
        path: The file to write, in an existing folder. What is there may be a link, which is replaced, not followed,
            but nothing that is no file, such as a device.
        durable: Whether it must outlast a power failure, which takes some milliseconds.

    Yields:
        The path to write to; `open_no_follow` opens it.

    Raises:
        OSError: It cannot be written; what was at `path` is still there. The error names `path`.
    """
    _refuse_special(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(TOKEN_BYTES)}.tmp")
    with naming(path, temporary):
        temporary.touch(exist_ok=False)
        try:
            mode = temporary.stat().st_mode  # as the umask has it
            yield temporary
            if temporary.stat().st_mode != mode:  # safetensors puts a file of its own there, which nobody else may read
                temporary.chmod(stat.S_IMODE(mode))
            if durable:
                with open_no_follow(temporary, "rb+") as file:
                    os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path, *others: Path) -> Iterator[None]:
    """An error of the system that names no file, as that of a full disk, or one of the others, names this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None or error.filename in {str(other) for other in others}:
            error.filename = str(path)
        raise


def _refuse_special(path: Path) -> None:
    """Refuse to put a file in the place of a device, a pipe or a socket, which whoever may write there could lose."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return  # nothing is there, or the error comes again
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "a device, a pipe or a socket is there", str(path))


@contextmanager
def replacing_text(path: Path, *, errors: str, newline: str | None = None) -> Iterator[IO[str]]:
    """A text file in UTF-8 that takes the place of `path` once the block is through, as with `replacing`."""
    options = {"encoding": "utf-8", "errors": errors, "newline": newline}
    with replacing(path) as temporary, open_no_follow(temporary, "w", **options) as file:
        yield file


def write_whole(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file that others see complete or not at all, making its folder if need be.

    Args:
        path: The file.
        content: What it is to hold.
        durable: As with `replacing`.

    Raises:
        OSError: It cannot be written; what was at `path` is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, durable=durable) as temporary, open_no_follow(temporary, "wb") as file:
        file.write(content)


def open_no_follow(path: Path, mode: str, **options: Any) -> IO[Any]:
    """Open a file as `open` does, but refuse a link, where the system can, so that nobody's file is written instead.

    Raises:
        OSError: It is a link, or cannot be opened.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)

    return open(path, mode, opener=opener, **options)


def open_regular(path: str | os.PathLike[str], most: int) -> BufferedReader:
    """Open a file for reading, but only a regular one of at most so many bytes, whatever links lead to it.

    Nothing waits for the other end of a pipe, and no device is read. What is refused is the file that was opened, so
    that nobody can put another in its place in between.

    Raises:
        OSError: It is no such file, or cannot be opened.
    """
    file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115 (the caller closes it)
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        reason, number = "it is a pipe, a device or a socket, not a regular file", errno.EINVAL
    elif status.st_size > most:
        reason, number = f"it has {status.st_size:,} bytes, more than {most:,}", errno.EFBIG
    else:
        return file
    file.close()
    raise OSError(number, reason, str(path))


def _open_at_once(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))


def read_regular(path: str | Path, most: int = MOST_TEXT) -> bytes:
    """The content of a regular file of at most so many bytes, as `open_regular` opens it.

    Raises:
        OSError: It is no such file, or cannot be read.
    """
    with open_regular(path, most) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(size + 1)  # no more, since that much memory is set aside
        if len(content) > size:
            content += file.read(most + 1 - len(content))
    if len(content) > most:  # it grew meanwhile, or the system gives no size
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
    return content


def digest(path: Path) -> str:
    """The SHA-256 of a regular file, in hexadecimal.

    Raises:
        OSError: It is no such file, or cannot be read.
    """
    with naming(path), open_regular(path, MOST_HASHED) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def leftovers(path: Path) -> list[Path]:
    """What killed processes have left of `path` while it was being replaced, sorted."""
    return sorted(path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 2 * TOKEN_BYTES}.tmp"))


def write_json(path: Path, value: object) -> None:
    """Write JSON in UTF-8, indented, keys in their own order, a list of numbers on one line.

    Raises:
        ValueError: `value` holds NaN or an infinity, which JSON does not have.
    """
    # A file name that is not UTF-8 holds lone surrogates, for which \udcxx is the right escape in JSON too.
    with replacing_text(path, errors="backslashreplace") as file:
        file.write(as_json_text(value))


def as_json_text(value: object) -> str:
    """The text that `write_json` writes."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    return re.sub(r"\[\n([-+.\deE,\s]+)\]", lambda numbers: f"[{' '.join(numbers[1].split())}]", text) + "\n"


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write one JSON object a line.

    Raises:
        ValueError: A value is NaN or infinite.
    """
    with replacing_text(path, errors="backslashreplace") as file:
        file.writelines(map(json_line, rows))


def json_line(row: Mapping[str, object]) -> str:
    """A line of JSON, without NaN and infinities, which JSON does not have."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def cache_folder() -> Path:
    """$ACCLIMATE_CACHE, else $XDG_CACHE_HOME/acclimate, else ~/.cache/acclimate; it need not exist."""
    if own := os.environ.get("ACCLIMATE_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "acclimate"
    return Path.home() / ".cache" / "acclimate"


def cache_may_change() -> bool:
    """Whether the cache may be written to, which ACCLIMATE_CACHE_READONLY forbids unless it is empty or 0."""
    return os.environ.get("ACCLIMATE_CACHE_READONLY", "") in ("", "0")


def check_cache_may_change(path: Path) -> None:
    """Refuse to write something in the cache that may only be read.

    Raises:
        OSError: It may only be read.
    """
    if not cache_may_change():
        raise OSError(errno.EROFS, "ACCLIMATE_CACHE_READONLY is set", str(path))
