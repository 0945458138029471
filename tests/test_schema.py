"""Typed JSON: what is read is what was written, and what is wrong is said in plain words."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from msgspec import Meta

from acclimate import schema
from acclimate.errors import DataError
from acclimate.schema import Count, Entry, Fraction


class Part(Entry, frozen=True, kw_only=True):
    share: Fraction
    kind: Literal["one", "two"]

    def __post_init__(self) -> None:
        if self.share == 0.5:
            raise ValueError("the halves are not alike")


@dataclass(frozen=True)
class Frame:
    size: int
    kind: str = "plain"


class Whole(Entry, frozen=True, kw_only=True):
    schema: int = 3
    n: Count
    name: str | None
    parts: Annotated[tuple[Part, ...], Meta(min_length=1)]
    named: dict[str, Part]
    free: dict[str, Any]
    frame: Frame


PART = {"share": 0.25, "kind": "one"}
VALID = {
    "schema": 3,
    "n": 1,
    "name": "Käse",
    "parts": [PART],
    "named": {"x": PART},
    "free": {"y": [None, 1]},
    "frame": {"size": 2, "kind": "fine"},
}


def read(raw: object) -> Whole:
    with schema.told("The file", "write it again"):
        return schema.decode(json.dumps(raw).encode(), Whole, schema=3)


def test_what_is_written_is_read() -> None:
    whole = read(VALID)
    assert (whole.n, whole.name, whole.parts[0], whole.free) == (1, "Käse", whole.named["x"], {"y": [None, 1]})
    assert json.dumps(schema.as_json(whole)) == json.dumps(VALID)


def test_a_name_that_is_not_utf_8_is_kept() -> None:
    whole = read({**VALID, "name": "\udcff"})
    assert whole.name == "\udcff"
    assert read(schema.as_json(whole)) == whole


def test_the_numbers_of_numpy_are_written_as_numbers() -> None:
    part = Part(share=np.float64(0.25), kind="one")
    assert json.dumps(schema.as_json(part)) == '{"share": 0.25, "kind": "one"}'


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"n": "1"}, "the entry n should be a whole number, not text"),
        ({"n": True}, "the entry n should be a whole number, not true or false"),
        ({"n": 1.0}, "the entry n should be a whole number, not a number"),
        ({"n": -1}, "the entry n should be a whole number from 0 up"),
        ({"n": 2**53 + 1}, f"the entry n should be a whole number up to {2**53}"),
        ({"name": 1}, "the entry name should be text or null, not a whole number"),
        ({"parts": {}}, "the entry parts should be a list, not an object"),
        ({"parts": []}, "the entry parts should be a list of a length from 1 up"),
        ({"parts": [PART, None]}, "the entry parts[1] should be an object, not null"),
        ({"parts": [{"kind": "one"}]}, "the entry parts[0].share is missing"),
        ({"parts": [{**PART, "share": 1.5}]}, "the entry parts[0].share should be a number up to 1.0"),
        ({"parts": [{**PART, "share": 10**400}]}, "the entry parts[0].share is out of the range of numbers"),
        ({"parts": [{**PART, "share": 0.5}]}, "in parts[0]: the halves are not alike"),
        ({"parts": [{**PART, "kind": "three"}]}, "the entry parts[0].kind has a value that is none of its choices"),
        ({"parts": [{**PART, "extra": 1}]}, "the entry parts[0].extra is unknown"),
        ({"named": {"x": {**PART, "share": []}}}, "the entry named.*.share should be a number, not a list"),
        ({"named": {"x": {**PART, "extra": 1}}}, "the entry named.x.extra is unknown"),
        ({"frame": {"size": 2}}, "the entry frame.kind is missing"),
        ({"frame": {"size": 2, "kind": "fine", "extra": 1}}, "the entry frame.extra is unknown"),
        ({"extra": 1}, "the entry extra is unknown"),
        ({"schema": "3"}, "the entry schema should be a whole number, not text"),
    ],
)
def test_what_is_altered_is_named(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError) as refused:
        read({**VALID, **changes})
    assert str(refused.value) == f"The file is damaged or was altered ({sentence}): write it again."


def test_an_entry_that_is_missing_is_named() -> None:
    with pytest.raises(DataError, match=r"\(the entry free is missing\)"):
        read({name: value for name, value in VALID.items() if name != "free"})


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (2, "is of schema 2, and this version of Acclimate reads schema 3: write it again."),
        (4, "is of schema 4, and this version of Acclimate reads schema 3: upgrade Acclimate, or write it again."),
        (None, "has no schema number, where this version of Acclimate reads schema 3: write it again."),
    ],
)
def test_another_schema_is_told(found: int | None, sentence: str) -> None:
    """Whatever else there is: the entries of another schema may be others."""
    with pytest.raises(DataError) as refused:
        read({"schema": found, "other": 1} if found is not None else {"other": 1})
    assert str(refused.value) == f"The file {sentence}"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\0\0\0",
        b"\xff",
        b"\xef\xbb\xbf{}",
        b'{"n": NaN}',
        b'{"n": -Infinity}',
        b'{"n": 1e999}',
        b'{"n": ' + b"1" * 5000 + b"}",
        b"[" * 100_000,
    ],
)
def test_what_is_not_json_is_told(content: bytes) -> None:
    with (
        pytest.raises(DataError, match=r"^The file is damaged or was altered \(it is not JSON\): write it again\.$"),
        schema.told("The file", "write it again"),
    ):
        schema.decode(content, Whole, schema=3)


def test_no_depth_ends_in_an_error_of_python() -> None:
    content = json.dumps({**VALID, "free": {"y": 0}}).encode()
    for depth in (*range(850, 1010, 5), 20_000):
        with suppress(DataError), schema.told("The file", "write it again"):
            schema.decode(content.replace(b'"y": 0', b'"y": ' + b"[" * depth + b"]" * depth), Whole, schema=3)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a\nb", r"the entry 'a\\nb' is unknown"),
        ("\x1b[2J", r"the entry '\\x1b\[2J' is unknown"),
        ("x" * 500, r"the entry 'x{59}\.\.\. is unknown"),
        ("\udcff", "an entry has a name that is no text"),
    ],
)
def test_a_name_of_an_entry_cannot_break_the_sentence(name: str, told: str) -> None:
    with pytest.raises(DataError, match=rf"^The file is damaged or was altered \({told}\): write it again\.$"):
        read({**VALID, name: 1})


@pytest.mark.parametrize("raw", [[], "text", 1, None, True])
def test_what_is_no_object_is_told(raw: object) -> None:
    with pytest.raises(
        DataError, match=r"\(it should be an object, not (a list|text|a whole number|null|true or false)\)"
    ):
        read(raw)
