"""Code from outside of the package: how it is named, what it is known by, and how a file of it is run."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from acclimate.choices import OriginKind
from acclimate.errors import OptionError

LOCAL = "local-dir:"  # how the names of timm's models in a local folder begin

Result = TypeVar("Result")


@dataclass(frozen=True)
class Origin:
    """Where code from outside of the package is from.

    Attributes:
        kind: A "file" that its user named, an installed "package", or "python": its user handed over the object.
        sha256: Of the file, in hexadecimal.
        package: The distribution's name.
        version: The distribution's version.
    """

    kind: OriginKind
    sha256: str | None = None
    package: str | None = None
    version: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no code is from, which a file may say that was altered."""
        needed = {"file": {"sha256"}, "package": {"package", "version"}, "python": set[str]()}
        if self.as_dict().keys() - {"kind"} != needed.get(self.kind):
            raise ValueError("it names an impossible origin of code")

    @classmethod
    def from_dict(cls, entry: Any) -> Origin:
        """Read what `as_dict` or `dataclasses.asdict` made.

        Raises:
            ValueError: It is something else.
        """
        texts = isinstance(entry, dict) and all(value is None or isinstance(value, str) for value in entry.values())
        if not texts or not {"kind"} <= entry.keys() <= cls.__dataclass_fields__.keys():
            raise ValueError("it names an impossible origin of code")
        return cls(**entry)

    def as_dict(self) -> dict[str, str]:
        """The attributes that are not None, for JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def split(name: str) -> tuple[str, str] | None:
    r"""The file and the name in it of `path/to/file.py:Name`; None for what names no file of code.

    The name is empty where there is none. The last colon counts, so that `C:\file.py:Name` is one of these as well.
    """
    file, colon, attribute = name.rpartition(":")
    if colon and file.lower().endswith(".py"):
        return file, attribute
    return (name, "") if name.lower().endswith(".py") else None


def absolute(name: str, folder: Path = Path()) -> str:
    """The same name, wherever it is read: with the absolute path of a file of code, or of timm's local folder.

    Args:
        name: Of a method or a backbone.
        folder: What a relative path starts from.
    """
    if name.startswith(LOCAL):
        return f"{LOCAL}{(folder / name.removeprefix(LOCAL)).resolve()}"
    parts = split(name)
    if parts is None:
        return name
    file, attribute = parts
    path = str((folder / file).resolve())
    return f"{path}:{attribute}" if attribute else path


def shown(name: str) -> str:
    """A name as people are shown it: of `path/to/file.py:Name` the name, of a file or a folder its last part."""
    if name.startswith(LOCAL):
        return LOCAL + last_part(name.removeprefix(LOCAL))
    file, attribute = split(name) or (name, name)
    return attribute or last_part(file)


def last_part(path: str) -> str:
    """The last part of a path of any system, which tells what lies there and not where."""
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


def file_origin(path: str) -> Origin:
    """What a file is known by.

    Raises:
        OptionError: It cannot be read.
    """
    return Origin("file", sha256=hashlib.sha256(_read(path)).hexdigest())


_running = threading.RLock()


def run_file(path: str) -> tuple[ModuleType, Origin]:
    """The module that a file of Python code makes, and the origin of what is defined in it.

    The origin's hash is of the very bytes that were run. A file runs once in a process, and again after it has changed.
    Its folder is not searched for what it imports, since the hash would not tell of a change there.

    Raises:
        OptionError: The file cannot be read, or an error occurs in it.
    """
    source = _read(path)
    digest = hashlib.sha256(source).hexdigest()
    name = f"acclimate_outside_{hashlib.sha256(f'{path} {digest}'.encode()).hexdigest()[:16]}"
    with _running:
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module  # where dataclasses look for the module of a class
            try:
                call(path, lambda: exec(compile(source, path, "exec"), module.__dict__))
            except OptionError:
                del sys.modules[name]
                raise
        return sys.modules[name], Origin("file", sha256=digest)


def call(path: str, function: Callable[[], Result]) -> Result:
    """What a function makes that runs the code in a file.

    Raises:
        OptionError: An error occurs in it; the message names the line of the file.
    """
    try:
        return function()
    except (Exception, SystemExit) as error:  # whatever a stranger's code may raise
        lines = str(error.msg if isinstance(error, SyntaxError) else error).splitlines() or [""]
        message = f"{type(error).__name__}: {lines[0]}".rstrip(": .")
        raise OptionError(f"{path} cannot be used: {_line(error, path)}{message}; correct the file.") from error


def _line(error: BaseException, path: str) -> str:
    """The last line of the file that an error passed through."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return f"line {error.lineno}, "
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f"line {lines[-1]}, " if lines else ""


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise OptionError(f"There is no file {path}: check the path.") from None
    except OSError as error:
        raise OptionError(f"The file {path} cannot be read ({error.strerror}): name a file of Python code.") from error


def check_given_again(
    what: str, name: str, origin: Origin | None, given: str | None, given_origin: Origin | None, whose: str
) -> None:
    """Check that the code of a saved model may be used: it is not run because the model's file names it.

    Code that was handed over in Python is taken as it is, because it runs already.

    Args:
        what: "method" or "backbone".
        name: The name that the model's file holds.
        origin: The origin that it holds; None means that the code is the package's own.
        given: The name that the user gives now; None if none is given.
        given_origin: Where that is from.
        whose: The model, to begin a sentence with.

    Raises:
        OptionError: The user has to give it again, or gives another.
    """
    trained = f"{whose} was trained with the {what} {name}"
    again = f"give it again with --{what} {name}"
    if given is None:
        if origin is not None and origin.kind == "file":
            raise OptionError(
                f"{trained}, which is no part of Acclimate and is used only if you name it: "
                f"{again} ({what}= in Python)."
            )
        if origin is not None and origin.kind == "python":
            raise OptionError(
                f"{trained}, which was handed over in Python: load the model with Model.load(folder, {what}=...)."
            )
        return
    handed_over = given_origin is not None and given_origin.kind == "python"
    if origin is None or (origin.kind == "package" and not handed_over):
        if name != given:
            raise OptionError(f"{trained}, not with {given}: leave out --{what}.")
        if origin and given_origin and origin.package != given_origin.package:
            raise OptionError(
                f"{trained} of the package {origin.package}, not of {given_origin.package}: install the other."
            )
    elif origin.kind == "file" and not handed_over:
        if given_origin is None or given_origin.kind != "file" or _attribute(given) != _attribute(name):
            raise OptionError(f"{trained}, not with {given}: {again}.")
        if given_origin.sha256 != origin.sha256:
            raise OptionError(f"{trained}, and the file has changed since: give it as it was, or train again.")


def _attribute(name: str) -> str:
    return (split(name) or ("", ""))[1]
