"""Changes to JSON that no reader may take for what was written."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, TypeAlias

from hypothesis import strategies as st

Place: TypeAlias = tuple[str | int, ...]

# What may be null; and what is of the user's, a method's or another version's making, name by name.
NULLABLE = {
    "accuracy",
    "agreement",
    "backbone",
    "bbse",
    "benchmark",
    "bottleneck",
    "changed_late",
    "clip",
    "compare",
    "estimate",
    "failed",
    "mlls",
    "preprocess",
    "resumed_at",
    "rough",
    "scores",
    "seconds",
    "test",
    "trust",
    "unfamiliar",
    "vector",
    "weights",
    "with_result",
}
OPEN = {"classes", "domain_error", "figures", "files", "libraries", "options", "settings", "terms"}

values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=9)
)
json_values = st.recursive(values, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=9), inner))


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Where each entry of a value stands, the value itself included."""
    yield at
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield from places(part, (*at, name))


def found(value: Any, at: Place) -> Any:
    """The entry at a place."""
    for name in at:
        value = value[name]
    return value


def is_of_its_type(old: Any, new: Any, at: Place) -> bool:
    """Whether a reader may take a new value for one of the old one's type."""
    if old is None or "options" in at[:-1]:
        return True
    if new is None:
        return bool(at) and at[-1] in NULLABLE
    if type(old) is float and type(new) is int:
        return True
    return type(new) is type(old)


@st.composite
def of_another_type(draw: st.DrawFn, valid: dict[str, Any]) -> tuple[Place, dict[str, Any]]:
    """The same JSON with a value of another type in one entry, and where it is."""
    changed = copy.deepcopy(valid)
    at = draw(st.sampled_from([place for place in places(valid) if place]))
    old = found(valid, at)
    new = draw(json_values.filter(lambda value: not is_of_its_type(old, value, at)))
    found(changed, at[:-1])[at[-1]] = new
    return at, changed


@st.composite
def with_other_entries(draw: st.DrawFn, valid: dict[str, Any]) -> dict[str, Any]:
    """The same JSON without one of its entries, or with one more."""
    changed = copy.deepcopy(valid)
    objects = [
        place for place in places(valid) if isinstance(found(valid, place), dict) and not (place and place[-1] in OPEN)
    ]
    place = found(changed, draw(st.sampled_from(objects)))
    if draw(st.booleans()):
        del place[draw(st.sampled_from(sorted(place)))]
    else:
        place[draw(st.text(max_size=9).filter(lambda name: name not in place))] = draw(json_values)
    return changed
