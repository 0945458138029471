"""One file a method. A new method is found by lying here: nothing lists them."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from functools import cache
from typing import TYPE_CHECKING

from acclimate.errors import OptionError

if TYPE_CHECKING:
    from acclimate.methods.base import Method


def names() -> tuple[str, ...]:
    """The methods' names, sorted: the files of this folder. Imports none of them."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base"))


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

    module = importlib.import_module(f"{__name__}.{name}")
    (found,) = (
        c
        for _, c in inspect.getmembers(module, inspect.isclass)
        if issubclass(c, Method) and c.__module__ == module.__name__
    )
    return found
