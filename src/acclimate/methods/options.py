"""The options of methods: read from their constructors, checked, and parsed from text."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Iterable
from functools import cache
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from acclimate.errors import OptionError
from acclimate.methods.registry import load


class Option(NamedTuple):
    """A hyper-parameter of a method: its name, its types (several where None is one), its choices and its default."""

    name: str
    types: tuple[type, ...]
    choices: tuple[Any, ...]
    default: Any


@cache
def options(name: str) -> dict[str, Option]:
    """The hyper-parameters of a method, read from the keyword-only arguments of its constructor."""
    cls = load(name)
    hints = get_type_hints(cls.__init__)
    found = {}
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            hint = hints[parameter.name]
            choices = get_args(hint) if get_origin(hint) is Literal else ()
            types = tuple({type(choice) for choice in choices}) or get_args(hint) or (hint,)
            found[parameter.name] = Option(parameter.name, types, choices, parameter.default)
    return found


def describe(name: str) -> dict[str, Any]:
    """All about a method, for JSON: the paper, its rows in the papers' tables, its options, its own recipe."""
    cls = load(name)
    title, _, rest = (inspect.getdoc(cls) or "").partition("\n")
    return {
        "name": name,
        "title": title.rstrip("."),
        "paper": cls.paper,
        "year": cls.year,
        "family": cls.family,
        "needs": cls.needs,
        "rows": {row: dict(values) for row, values in cls.rows.items()},
        "recipe": dict(cls.recipe),
        "description": rest.strip(),
        "options": {
            o.name: {"default": o.default, "choices": list(o.choices) or [kind.__name__ for kind in o.types]}
            for o in options(name).values()
        },
    }


def parse_options(name: str, settings: Iterable[str]) -> dict[str, Any]:
    """The values of a method's options written as `option=value`.

    Raises:
        OptionError: An option does not exist, or its value is not one of its values.
    """
    values = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise OptionError(f"--set takes option=value, not {setting!r}.")
        values[key.strip()] = _parse(text.strip(), check_option(name, key.strip()), name)
    return check_options(name, values)


def check_options(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """The same values, if the method takes them.

    Raises:
        OptionError: An option does not exist, or its value is not one of its values.
    """
    for key, value in values.items():
        option = check_option(name, key)
        if option.choices and value not in option.choices:
            raise _refusal(name, option, value)
        if not any(isinstance(value, kind) or (kind is float and type(value) is int) for kind in option.types) or (
            isinstance(value, bool) and bool not in option.types
        ):
            raise _refusal(name, option, value)
        least = 1 if type(value) is int and float not in option.types else 0
        if type(value) in (int, float) and not least <= value < math.inf:
            raise OptionError(f"The option {key} of {name} must be a number from {least} up, not {value}.")
    return values


def check_option(name: str, key: str) -> Option:
    """The option called `key` of the method called `name`.

    Raises:
        OptionError: It has none of that name.
    """
    known = options(name)
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
    takes = ", ".join(map(str, option.choices)) or " or ".join(kinds[kind] for kind in option.types)
    return OptionError(f"The option {option.name} of {name} takes {takes}, not {value!r}.")
