"""Where output may go: to a new file, or in the place of an earlier one of the same kind."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from acclimate.choices import READ_SUFFIXES
from acclimate.errors import DataError
from acclimate.files import open_regular

HEAD, TAIL = 2**12, 2**16  # bytes by which a file's kind is told, at its beginning and at its end

MOST = 2**46  # bytes of an earlier file, of which only these are read

RUN_NAMES = {  # what a run, a bench and an estimator write into their folders
    "record.json",
    "records.jsonl",
    "predictions.csv",
    "source_predictions.csv",
    "skipped.csv",
    "metrics.jsonl",
    "model.json",
    "model.safetensors",
    "estimator.json",
    "reference.safetensors",
    "report.html",
    "failed.json",
    "lock",
    "claim",
}

MARKS = (
    "record.json",
    "records.jsonl",
    "checkpoint/run.json",
    "model.json",
    "estimator.json",
)  # of a folder of one of these


class Kind(NamedTuple):
    """A kind of file that a command writes.

    Attributes:
        name: As a sentence calls it, in the plural.
        is_one: Whether a file is of it, by its first and its last bytes.
        own: The names that a run's folder has for it, and which may be written there again.
    """

    name: str
    is_one: Callable[[bytes, bytes], bool]
    own: tuple[str, ...] = ()


TABLE = Kind(
    "predictions",
    lambda head, tail: (
        head.startswith((b"path,predicted,confidence", b'{"path": '))
        or (head[:2] == b"PK" and b"probabilities.npy" in tail)
    ),
)

PAGE_MARK = b'<meta name="generator" content="Acclimate">'  # as templates/base.html has it

PAGE = Kind("an earlier page", lambda head, tail: PAGE_MARK in head, ("report.html",))

ONNX = Kind("an exported model", lambda head, tail: head[:1] == b"\x08" and b"sha256 of model.safetensors" in tail)

PT2 = Kind("an exported model", lambda head, tail: head[:4] == b"PK\x03\x04" and b"sha256 of model.safetensors" in tail)

READER = Kind("an earlier reader", lambda head, tail: head.startswith(b'"""') and b"`acclimate export`" in head)

DESCRIPTION = Kind(
    "a model's description",
    lambda head, tail: head[:1] == b"{" and b'"classes"' in head,
    ("model.json", "estimator.json"),
)

WEIGHTS = Kind("a model's weights", lambda head, tail: head[8:9] == b"{", ("model.safetensors",))


def check_output(path: Path, kind: Kind, *, inputs: Iterable[str | Path] = (), option: str = "--out") -> None:
    """Refuse to write where something would be lost, before anything is computed.

    Args:
        path: The file to write. A link is replaced, not followed.
        kind: What is to be written.
        inputs: Files and folders that are read: none is replaced, and no file that passes for an image is put into one.
        option: How the file was named, for the sentence.

    Raises:
        DataError: There is something else than an earlier file of this kind, or it is one of the inputs, or the place
            is another file's of a run.
    """
    another = f"name another file with {option}"
    if not path.parent.is_dir():
        raise DataError(f"The folder {path.parent} does not exist: make it, or {another}.")
    if _belongs_to_a_run(path, kind):
        raise DataError(f"{path} belongs to the run or to the data: {another}.")
    given = [Path(name) for name in inputs]
    if path.name.lower().endswith(READ_SUFFIXES) and any(_lies_in(path, folder) for folder in given):
        raise DataError(f"{path} would be taken for an image of the input: {another}.")
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}): {another}.") from error
    if stat.S_ISDIR(found.st_mode):
        raise DataError(f"{path} is a folder: name a file with {option}.")
    if not stat.S_ISREG(found.st_mode):
        raise DataError(f"{path} is a device, a pipe or a socket: {another}; - is standard output where it is offered.")
    if any(_is_same(found, other) for other in given):
        raise DataError(f"{path} belongs to the run or to the data: {another}.")
    if found.st_size and not path.is_symlink() and not _is_one(path, kind):
        raise DataError(f"{path} holds something else than {kind.name}: {another}, or delete it first.")


def _belongs_to_a_run(path: Path, kind: Kind) -> bool:
    """Whether a place in a folder of a run is another file's of it; a finished run's model is replaced by no other."""
    if path.name in kind.own:
        return path.name in ("model.json", "model.safetensors") and (path.parent / "record.json").exists()
    return path.name in RUN_NAMES and any((path.parent / mark).exists() for mark in MARKS)


def _lies_in(path: Path, folder: Path) -> bool:
    return folder.is_dir() and path.resolve().is_relative_to(folder.resolve())


def _is_same(found: os.stat_result, other: Path) -> bool:
    try:
        return os.path.samestat(found, other.stat())
    except OSError:
        return False


def _is_one(path: Path, kind: Kind) -> bool:
    """Whether a file is of a kind."""
    try:
        with open_regular(path, MOST) as file:
            head = file.read(HEAD)
            file.seek(0, os.SEEK_END)
            file.seek(max(file.tell() - TAIL, 0))
            return kind.is_one(head, file.read(TAIL))
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): name another file with --out.") from error
