"""The methods: one file each in this folder, others in files of their users and in packages that are installed.

A method in this folder is found by lying here: nothing lists them. One in a file is named `path/to/file.py:Class`. A
package offers one by an entry point of the group `acclimate.methods`, whose name is the method's.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from acclimate import methods, outside
from acclimate.choices import Level
from acclimate.errors import OptionError, nearest
from acclimate.outside import Origin

if TYPE_CHECKING:
    from types import ModuleType

    from acclimate.methods.base import Method


BASELINE = "source_only"  # the method that does not adapt, which the others are compared with

CONSENSUS = "consensus"  # the method whose members are runs of other methods

NOT_METHODS = ("base", "options", "parts", "registry")  # what else lies in the folder

GROUP = "acclimate.methods"

BASE = "acclimate.methods.base.Method"


class Found(NamedTuple):
    """A method.

    Attributes:
        name: As settings and a model's file hold it: a method's name, `/absolute/path/to/file.py:Class`, or the name of
            a class that was handed over.
        method: The class.
        origin: Where it is from; None means from this package.
    """

    name: str
    method: type[Method]
    origin: Origin | None


def names() -> tuple[str, ...]:
    """The names of this package's methods, sorted: the files of this folder. Imports none of them."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(methods.__path__) if m.name not in NOT_METHODS))


def own(name: str) -> type[Method]:
    """This package's method of this name.

    Raises:
        OptionError: There is no such method.
    """
    if name not in names():
        raise _unknown(name)
    return _own(name)


def installed() -> dict[str, list[EntryPoint]]:
    """What installed packages offer, by the method's name; two may offer one name. Imports none of it."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        found.setdefault(entry.name, []).append(entry)
    return found


def package(entry: EntryPoint) -> tuple[str, str]:
    """The name and the version of the distribution that an entry point is from."""
    assert entry.dist is not None  # those that `entry_points` finds have one
    return entry.dist.name, entry.dist.version


def is_taken(name: str) -> bool:
    """Whether a name is that of a method of this package, or of a row of a paper's table."""
    return plain(name) in map(plain, _rows())


def find(method: str | type[Method]) -> Found:
    """The method of this name, or a class as a method.

    Args:
        method: The name of a method of this package or of an installed one; `path/to/file.py:Class`, or the path alone
            where the file defines one method; or the class itself.

    Raises:
        OptionError: There is no such method, or the class is none that can be trained.
    """
    if isinstance(method, type):
        return _handed_over(method)
    if (parts := outside.split(method)) is not None:
        return _in_file(*parts)
    if method in names():
        return Found(method, own(method), None)
    return _installed(method)


def load(method: str | type[Method]) -> type[Method]:
    """The class of a method, named as for `find`.

    Raises:
        OptionError: There is no such method, or the class is none that can be trained.
    """
    return find(method).method


def origin(method: str | type[Method]) -> Origin | None:
    """Where a method's code is from; None means from this package.

    Raises:
        OptionError: There is no such method, or the class is none that can be trained.
    """
    return find(method).origin


def shown(method: str | type[Method]) -> str:
    """A method's name as people are shown it. Runs no code."""
    return method.__name__ if isinstance(method, type) else outside.shown(method)


def find_again(name: str, origin: Origin | None, given: str | type[Method] | None, whose: str) -> Found:
    """The method of a saved model. No file's code is run unless it is given again, and is what it was.

    An installed method is found by its name, in the package that it was from. Of another version of the package it has
    to be given again: by that its user says that the versions agree.

    Args:
        name: The name that the model's file holds.
        origin: The origin that it holds.
        given: What the user gives, as for `find`; None if nothing is given.
        whose: The model, to begin a sentence with.

    Raises:
        OptionError: The method has to be given again, is another one, or is not there.
    """
    if given is not None:
        found = find(given)
        outside.check_given_again("method", name, origin, found.name, found.origin, whose)
        return found
    outside.check_given_again("method", name, origin, None, None, whose)
    if origin is None:
        return Found(name, own(name), None)
    trained = f"{whose} was trained with the method {name} of the package {origin.package} {origin.version}"
    versions = dict(package(entry) for entry in installed().get(name, ()))
    if not versions:
        raise OptionError(f"{trained}, which is not installed: install it if you trust it.")
    if origin.package not in versions:
        raise OptionError(f"{trained}, and the one that is installed is from {min(versions)}: install the other.")
    if (version := versions[origin.package]) != origin.version:
        raise OptionError(f"{trained}, and {version} is installed: give --method {name} to use it all the same.")
    return _installed(name)


def plain(name: str) -> str:
    """A name without what varies in how it is written: "Source-only" and "source_only" are one name."""
    return re.sub(r"[\s_-]", "", name).casefold()


def row(name: str) -> tuple[str, dict[str, Any]]:
    """The method and the options behind a name by which a paper's table calls them, or a method's own name.

    Raises:
        OptionError: There is no such row.
    """
    rows = _rows()
    same = [found for row, found in rows.items() if plain(row) == plain(name)]
    if same:
        return same[0]
    if outside.split(name) is not None or name in installed():
        return find(name).name, {}
    raise OptionError(f"No method has a row called {name!r}; {nearest(name, rows)}")


def _rows() -> dict[str, tuple[str, dict[str, Any]]]:
    """The rows of this package's methods, and the methods' own names: each with its method and options."""
    rows = {row: (method, dict(values)) for method in names() for row, values in _own(method).rows.items()}
    return rows | {method: (method, {}) for method in names()}


@cache
def _own(name: str) -> type[Method]:
    module = importlib.import_module(f"{methods.__name__}.{name}")
    (found,) = _defined_in(module)
    return found


def _unknown(name: str) -> OptionError:
    return OptionError(f"There is no method {name!r}; {nearest(name, (*names(), *installed()))}")


def _defined_in(module: ModuleType) -> list[type[Method]]:
    """The methods that a module defines, which are not those that it imports."""
    from acclimate.methods.base import Method

    classes = [c for _, c in inspect.getmembers(module, inspect.isclass)]
    return [c for c in classes if issubclass(c, Method) and c.__module__ == module.__name__]


def _handed_over(cls: type[Method]) -> Found:
    for name in names():
        if cls.__module__ == f"{methods.__name__}.{name}" and _own(name) is cls:
            return Found(name, cls, None)
    return Found(cls.__name__, _checked(cls), Origin("python"))


def _in_file(file: str, name: str) -> Found:
    path = outside.absolute(file)
    module, origin = outside.run_file(path)
    cls = _checked(_named(module, name, path) if name else _only(module, path))
    return Found(f"{path}:{cls.__name__}", cls, origin)


def _named(module: ModuleType, name: str, path: str) -> type:
    """The class of this name in a file."""
    found = getattr(module, name, None)
    if not isinstance(found, type):
        classes = [name for name, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == module.__name__]
        raise OptionError(f"{path} has no class {name!r}; {nearest(name, classes)}")
    if found.__module__ != module.__name__:
        raise OptionError(f"{name} in {path} is imported from {found.__module__}: name the file that defines it.")
    return found


def _only(module: ModuleType, path: str) -> type[Method]:
    """The method of a file that defines one; what others derive from does not count."""
    found = _defined_in(module)
    finished = [cls for cls in found if not inspect.isabstract(cls)] or found
    if not finished:
        raise OptionError(f"{path} defines no method: derive a class from {BASE}.")
    if len(finished) > 1:
        several = " and ".join(cls.__name__ for cls in finished)
        raise OptionError(f"{path} defines the methods {several}: name one, as in {path}:{finished[0].__name__}.")
    return finished[0]


def _installed(name: str) -> Found:
    entries = installed().get(name)
    if not entries:
        raise _unknown(name)
    packages = [package(entry) for entry in entries]
    if len(packages) > 1:
        several = " and ".join(sorted(name for name, _ in packages))
        raise OptionError(f"The packages {several} both offer a method {name}: uninstall one of them.")
    of, version = packages[0]
    if is_taken(name):
        raise OptionError(f"The name {name} of the method of the package {of} is that of a method of Acclimate.")
    try:
        cls = entries[0].load()
    except Exception as error:  # whatever a stranger's code may raise
        lines = str(error).splitlines() or [""]
        raise OptionError(
            f"The method {name} of the package {of} cannot be imported ({type(error).__name__}: {lines[0]}): mend or "
            "uninstall the package."
        ) from error
    return Found(name, _checked(cls, name), Origin("package", package=of, version=version))


def _checked(cls: Any, name: str | None = None) -> type[Method]:
    """A class from elsewhere, if it is a method that can be trained.

    Args:
        cls: What was found.
        name: The method's name, where that is not the class's.
    """
    from acclimate.methods.base import Method

    if not isinstance(cls, type) or not issubclass(cls, Method):
        raise OptionError(f"{getattr(cls, '__name__', cls)} is no method: derive it from {BASE}.")
    if name is None and is_taken(cls.__name__):
        raise OptionError(f"The name {cls.__name__} is that of a method of Acclimate: give the class another.")
    missing: frozenset[str] = getattr(cls, "__abstractmethods__", frozenset())
    if missing:
        raise OptionError(f"The method {cls.__name__} does not define {' and '.join(sorted(missing))}: add what lacks.")
    if cls.needs not in get_args(Level):
        raise OptionError(
            f"The method {cls.__name__} needs {cls.needs!r}, which there is not: set needs to one of "
            f"{', '.join(get_args(Level))}."
        )
    return cls
