"""The options of methods: read from their constructors, checked, and parsed from text."""

from __future__ import annotations

import difflib
import inspect
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from importlib import resources
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Union, get_args, get_origin

from acclimate import outside
from acclimate.errors import OptionError, brief
from acclimate.methods.registry import find, load

if TYPE_CHECKING:
    from acclimate.methods.base import Method

MOST_WHOLE = 2**16  # of an option that is a whole number: a size or a count

SIMPLE = (bool, int, float, str, NoneType)  # what a word of a command can be


class Option(NamedTuple):
    """A hyper-parameter of a method: its name, its types (several where None is one), its choices and its default."""

    name: str
    types: tuple[type, ...]
    choices: tuple[Any, ...]
    default: Any


def options(method: str | type[Method]) -> dict[str, Option]:
    """The hyper-parameters of a method, read from the keyword-only arguments of its constructor.

    Args:
        method: As for `registry.find`.

    Raises:
        OptionError: There is no such method, or its constructor is not made so that its options can be read.
    """
    return _options(load(method))


@cache
def _options(cls: type[Method]) -> dict[str, Option]:
    parameters = list(inspect.signature(cls).parameters.values())
    required = [p for p in parameters if p.kind <= p.POSITIONAL_OR_KEYWORD and p.default is p.empty]
    if parameters[:2] != required:
        raise OptionError(
            f"{cls.__name__} is not made of a network and a number of classes: define "
            "__init__(self, net, num_classes, *, ...), with the options behind the star."
        )
    return {parameter.name: _option(cls, parameter) for parameter in parameters[2:]}


def _option(cls: type[Method], parameter: inspect.Parameter) -> Option:
    named = f"The option {parameter.name} of {cls.__name__}"
    if parameter.kind is not parameter.KEYWORD_ONLY:
        raise OptionError(f"{named} is not keyword-only: write __init__(self, net, num_classes, *, ...).")
    if parameter.default is parameter.empty:
        raise OptionError(f"{named} has no default: give it one in __init__.")
    parts = list(_parts(_hint(cls, parameter)))
    choices = tuple(choice for part in parts if get_origin(part) is Literal for choice in get_args(part))
    simple = tuple(part for part in parts if get_origin(part) is not Literal)
    if choices and simple == (NoneType,):
        choices, simple = (*choices, None), ()
    if not {*simple, *map(type, choices)} <= set(SIMPLE) or (choices and simple):
        raise OptionError(
            f"{named} has no type that text can be read as: annotate it in __init__ with bool, int, float, str or a "
            "Literal of these, or one of them and None."
        )
    types = simple or tuple(dict.fromkeys(map(type, choices)))
    if not _fits(parameter.default, types):
        raise OptionError(
            f"{named} has the default {parameter.default!r}, which is not of its type: correct one of them."
        )
    return Option(parameter.name, types, choices, parameter.default)


def _fits(value: Any, types: tuple[type, ...]) -> bool:
    """Whether a value is of one of these types; whole numbers are numbers, and true and false are none."""
    return type(value) in types or (type(value) is int and float in types)


def _hint(cls: type[Method], parameter: inspect.Parameter) -> Any:
    """The type that a parameter is annotated with; that of the others may be imported for type checkers alone."""
    if not isinstance(parameter.annotation, str):
        return parameter.annotation
    with suppress(Exception):  # then it is no type
        return eval(parameter.annotation, cls.__init__.__globals__)
    return parameter.empty


def _parts(hint: Any) -> Iterator[Any]:
    """The types of a union, or the one type that it is."""
    if get_origin(hint) in (Union, UnionType):
        for part in get_args(hint):
            yield from _parts(part)
    else:
        yield NoneType if hint is None else hint


def describe(method: str | type[Method]) -> dict[str, Any]:
    """All about a method, for JSON: the paper, its rows in the papers' tables, its options, its own recipe."""
    name, cls, origin = find(method)
    title, _, rest = inspect.cleandoc(cls.__doc__ or "").partition("\n")
    return {
        "name": name,
        "origin": origin.as_dict() if origin else None,
        "title": title.rstrip("."),
        "paper": cls.paper,
        "year": cls.year,
        "family": cls.family,
        "good_for": cls.good_for,
        "measured": _measured().get(name) if origin is None else None,
        "needs": cls.needs,
        "rows": {row: dict(values) for row, values in cls.rows.items()},
        "recipe": dict(cls.recipe),
        "description": rest.strip(),
        "options": {
            o.name: {"default": o.default, "choices": list(o.choices) or [kind.__name__ for kind in o.types]}
            for o in _options(cls).values()
        },
    }


@cache
def _measured() -> dict[str, dict[str, float]]:
    """What `measurements/gains.py` made of the records of PACS: each method's cost, gain and harm, as far as known."""
    file = resources.files("acclimate.methods") / "measured.json"
    measured: dict[str, dict[str, float]] = json.loads(file.read_text(encoding="utf-8"))
    return measured


def parse_options(method: str | type[Method], settings: Iterable[str]) -> dict[str, Any]:
    """The values of a method's options written as `option=value`.

    Raises:
        OptionError: An option does not exist, or its value is not one of its values.
    """
    found = find(method)
    cls, name, values = found.method, outside.shown(found.name), {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise OptionError(f"--set takes option=value, not {setting!r}.")
        values[key.strip()] = _parse(text.strip(), _known(cls, key.strip(), name), name)
    return check_options(cls, values)


def check_options(method: str | type[Method], values: dict[str, Any]) -> dict[str, Any]:
    """The same values, if the method takes them.

    No number may be negative, and no whole number 0, unless the option's default is lower than that. None may be so
    large that it can only be a mistake.

    Raises:
        OptionError: An option does not exist, or its value is not one of its values.
    """
    found = find(method)
    cls, name = found.method, outside.shown(found.name)
    for key, value in values.items():
        option = _known(cls, key, name)
        if option.choices and value not in option.choices:
            raise _refusal(name, option, value)
        if not _fits(value, option.types):
            raise _refusal(name, option, value)
        if not option.choices and type(value) in (int, float) and not _least(option) <= value <= _most(option):
            most = f"to {MOST_WHOLE:,}" if _most(option) == MOST_WHOLE else "up"
            raise OptionError(
                f"The option {key} of {name} must be a number from {_least(option)} {most}, not {brief(value)}."
            )
    return values


def _least(option: Option) -> float:
    """The lowest number that an option takes."""
    least = 1 if int in option.types and float not in option.types else 0
    return min(least, option.default) if type(option.default) in (int, float) else least


def _most(option: Option) -> float:
    """The highest number that an option takes; whole numbers are sizes and counts."""
    return MOST_WHOLE if int in option.types and float not in option.types else sys.float_info.max


def _known(cls: type[Method], key: str, name: str) -> Option:
    """The option called `key` of a method that is shown as `name`."""
    known = _options(cls)
    if key not in known:
        close = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known) or 'none'}."
        raise OptionError(f"{name} has no option {key!r}; {hint}")
    return known[key]


def _parse(text: str, option: Option, name: str) -> Any:
    words: dict[str, bool | None] = {"true": True, "false": False} if bool in option.types else {}
    words |= {"none": None} if NoneType in option.types else {}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float, str):
        if kind in option.types:
            try:
                return kind(text)
            except ValueError:
                continue
    raise _refusal(name, option, text)


def _refusal(name: str, option: Option, value: Any) -> OptionError:
    kinds = {bool: "true or false", int: "a whole number", float: "a number", NoneType: "none", str: "text"}
    choices = ["none" if choice is None else str(choice) for choice in option.choices]
    takes = ", ".join(choices) or " or ".join(kinds[kind] for kind in option.types)
    return OptionError(f"The option {option.name} of {name} takes {takes}, not {brief(value)}.")
