"""One file a method. A new method is found by lying here: nothing lists them."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import re
from functools import cache
from typing import TYPE_CHECKING, Any

from acclimate import methods
from acclimate.errors import OptionError

if TYPE_CHECKING:
    from acclimate.methods.base import Method


BASELINE = "source_only"  # the method that does not adapt, which the others are compared with

NOT_METHODS = ("base", "options", "parts", "registry")  # what else lies in the folder


def names() -> tuple[str, ...]:
    """The methods' names, sorted: the files of this folder. Imports none of them."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(methods.__path__) if m.name not in NOT_METHODS))


@cache
def load(name: str) -> type[Method]:
    """The method of this name.

    Raises:
        OptionError: There is no such method.
    """
    if name not in names():
        close = difflib.get_close_matches(name, names(), n=1) or [", ".join(names())]
        raise OptionError(f"There is no method {name!r}; did you mean {close[0]}?")
    from acclimate.methods.base import Method

    module = importlib.import_module(f"{methods.__name__}.{name}")
    (found,) = (
        c
        for _, c in inspect.getmembers(module, inspect.isclass)
        if issubclass(c, Method) and c.__module__ == module.__name__
    )
    return found


def plain(name: str) -> str:
    """A name without what varies in how it is written: "Source-only" and "source_only" are one name."""
    return re.sub(r"[\s_-]", "", name).casefold()


def row(name: str) -> tuple[str, dict[str, Any]]:
    """The method and the options behind a name by which a paper's table calls them, or a method's own name.

    Raises:
        OptionError: There is no such row.
    """
    rows = {row: (method, dict(values)) for method in names() for row, values in load(method).rows.items()}
    rows |= {method: (method, {}) for method in names()}
    same = [found for row, found in rows.items() if plain(row) == plain(name)]
    if not same:
        close = difflib.get_close_matches(name, rows, n=1)
        hint = f"did you mean {close[0]}?" if close else "give its method and options."
        raise OptionError(f"No method has a row called {name!r}; {hint}")
    return same[0]
