"""Typed JSON: what a file holds is checked against a type, and what is wrong with it is said in plain words.

What is written of a `Checked` has a checksum, so that a file that was damaged is not taken for what was written even
where it still fits the type.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec

from acclimate.errors import LONGEST, DataError, brief
from acclimate.files import read_regular

T = TypeVar("T")

MOST = 2**53  # of what is counted: the last whole number up to which floats can tell each from the next

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=MOST)]

Positive: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=MOST)]

Fraction: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=1)]


Plain: TypeAlias = bool | int | float | str | None  # a value of a method's option


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON object whose entries are its attributes, in their order.

    A file must have them all and no others; those whose default is `msgspec.UNSET` may be left out.
    """


class Checked(Entry, frozen=True, kw_only=True):
    """An entry whose file has a checksum as well, so that damage to a value is noticed.

    A file without one is taken as it is: a person may have written it.
    """


CHECKSUM = "checksum"  # the entry's name


def checksum(entries: Mapping[str, Any]) -> int:
    """A number (CRC-32) that the least change of these entries changes, as JSON has them, but not their order."""
    return zlib.crc32(json.dumps(entries, sort_keys=True).encode())


class UnreadableError(ValueError):
    """What a file holds is not what it should be; the message goes on behind its name, and ends before the advice."""


def damaged(what: str) -> UnreadableError:
    """The error for a file of which something is wrong."""
    return UnreadableError(f"is damaged or was altered ({what}):")


@contextmanager
def told(where: object, advice: str) -> Iterator[None]:
    """Tell the user of what cannot be read, in a sentence.

    Args:
        where: The file, as the sentence begins.
        advice: What to do about it, as the sentence ends.

    Raises:
        DataError: The block raised an `UnreadableError`.
    """
    try:
        yield
    except UnreadableError as error:
        raise DataError(f"{where} {error} {advice}.") from error


def as_json(entry: Entry) -> dict[str, Any]:
    """What `decode` reads back, for JSON."""
    values: dict[str, Any] = msgspec.to_builtins(entry, enc_hook=_plain)
    return values | {CHECKSUM: checksum(values)} if isinstance(entry, Checked) else values


def _plain(value: object) -> object:
    """A number or text without what a subclass adds, such as NumPy's float64 and PyTorch's version."""
    for kind in (float, int, str):
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"{value!r} is nothing that JSON has")


def read(path: Path, kind: type[T], advice: str, *, missing: str | None = None, schema: int | None = None) -> T:
    """Read a file of JSON of a type.

    Args:
        path: The file.
        kind: The type.
        advice: What to do if it is damaged, as a sentence ends.
        missing: The sentence for a file that is not there; None makes it one of a file that cannot be read.
        schema: As for `decode`.

    Raises:
        DataError: It is not there, cannot be read, or is damaged.
    """
    try:
        content = read_regular(path)
    except OSError as error:
        if missing is not None and isinstance(error, FileNotFoundError | NotADirectoryError):
            raise DataError(missing) from error
        raise DataError(f"{path} cannot be read ({error.strerror}): {advice}.") from error
    with told(path, advice):
        return decode(content, kind, schema=schema)


def decode(content: bytes, kind: type[T], *, schema: int | None = None) -> T:
    """Read JSON of a type; of a `Checked` with its checksum.

    Args:
        content: The JSON, in UTF-8.
        kind: The type: an `Entry`, or whatever else msgspec knows.
        schema: The number that the entry `schema` must have, where the type has one.

    Raises:
        UnreadableError: It is not JSON, is of another schema or is not of the type: an entry has a value of another
            type, or is missing, or is one that the type does not know. NaN and infinities are not JSON.
    """
    try:
        raw = json.loads(content.decode(), parse_constant=_refused, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise damaged("it is not JSON") from error
    if schema is not None and isinstance(raw, dict):
        _check_schema(raw, schema)
    sealed = raw.pop(CHECKSUM, None) if isinstance(raw, dict) and _is_checked(kind) else None
    try:
        value = convert(raw, kind)
        strays = list(_strays(raw, value))
    except RecursionError as error:
        raise damaged("its entries lie too deep in each other") from error
    if strays:
        raise damaged(strays[0])
    if sealed is not None and sealed != checksum(raw):
        raise damaged("its checksum is another")
    return value


def convert(raw: object, kind: type[T], at: str = "") -> T:
    """What was read from JSON, as a value of a type.

    Args:
        raw: Dictionaries, lists, text, numbers, true, false and None.
        kind: The type.
        at: Where it stands in its file, with dots between the entries' names.

    Raises:
        UnreadableError: It is not of the type.
    """
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise damaged(_in_words(str(error), at)) from error
    except UnicodeEncodeError as error:  # half a character in the name of an entry
        raise damaged("an entry has a name that is no text") from error


def _is_checked(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Checked)


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is out of the range of numbers")
    return value


def _check_schema(raw: dict[str, Any], known: int) -> None:
    if "schema" not in raw:
        raise UnreadableError(f"has no schema number, where this version of Acclimate reads schema {known}:")
    found = raw["schema"]
    if type(found) is int and found != known:
        newer = " upgrade Acclimate, or" if found > known else ""
        raise UnreadableError(f"is of schema {found}, and this version of Acclimate reads schema {known}:{newer}")


def _strays(raw: Any, read: Any, at: str = "") -> Iterator[str]:
    """What a file holds besides what was read from it, and what was taken for given where the file lacks it."""
    if isinstance(raw, dict):
        entries = _entries(read)
        yield from (f"the entry {at}{_on_one_line(name)} is unknown" for name in raw if name not in entries)
        yield from (f"the entry {at}{name} is missing" for name in entries if name not in raw)
        for name, part in raw.items():
            if name in entries and isinstance(part, dict | list):
                yield from _strays(part, entries[name], f"{at}{_on_one_line(name)}.")
    elif isinstance(raw, list) and raw and isinstance(raw[0], dict | list):
        for number, (part, of_it) in enumerate(zip(raw, read, strict=True)):
            yield from _strays(part, of_it, f"{at.rstrip('.')}[{number}].")


def _on_one_line(name: str) -> str:
    """The name of an entry as a sentence shows it."""
    return name if name.isprintable() and len(name) <= LONGEST else brief(name)


def _entries(value: Any) -> dict[str, Any]:
    """What was read from a JSON object, by name."""
    if isinstance(value, msgspec.Struct):
        return {name: of_it for name, of_it in msgspec.structs.asdict(value).items() if of_it is not msgspec.UNSET}
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return dict(value)


_WORDS = {
    "object": "an object",
    "array": "a list",
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "null": "null",
}


def _in_words(message: str, at: str) -> str:
    """A message of msgspec's in words."""
    message, _, path = message.partition(" - at `$")
    entry = (at + path.removesuffix("`").replace("[...]", ".*")).removeprefix(".")
    named = f"the entry {entry}" if entry else "it"
    if missing := re.fullmatch("Object missing required field `(.*)`", message):
        return f"the entry {entry}{'.' if entry else ''}{missing[1]} is missing"
    if message == "Number out of range":
        return f"{named} is out of the range of numbers"
    if message.startswith("Invalid enum value"):
        return f"{named} has a value that is none of its choices"
    if other := re.fullmatch("Expected `([a-z |]+)`, got `([a-z]+)`", message):
        return f"{named} should be {_kinds(other[1])}, not {_kinds(other[2])}"
    if limit := re.fullmatch("Expected `([a-z |]+)`(?: of length)? ([<>])= (.+)", message):
        bound = f"from {limit[3]} up" if limit[2] == ">" else f"up to {limit[3]}"
        length = "of a length " if "of length" in message else ""
        return f"{named} should be {_kinds(limit[1])} {length}{bound}"
    return f"in {entry}: {message.rstrip('.')}" if entry else message.rstrip(".")


def _kinds(names: str) -> str:
    return " or ".join(_WORDS.get(name, name) for name in names.split(" | "))
