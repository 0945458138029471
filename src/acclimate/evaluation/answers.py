"""The labels of a target, which measure a result and do nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from acclimate.data.domain import Domain, sorted_classes
from acclimate.data.read import class_names, read_target
from acclimate.errors import DataError


@dataclass(frozen=True, eq=False)
class Answers:
    """The labels of a target.

    Attributes:
        labels: (N,) int64, positions in the source's classes; -1 where the item has no label or a foreign one.
        foreign: Classes that the source does not have, and how many items each has.
    """

    labels: npt.NDArray[np.int64]
    foreign: Mapping[str, int]


def read_answers(
    spec: str | Path, target: Domain, classes: Sequence[str], *, allow_mismatch: bool = False
) -> Answers | None:
    """Read the labels of a target, where it has any. Opens no image, so it can run before any computing.

    Folders of a target count as labels when one of them has the name of a source class; otherwise they are taken for
    mere storage. Labels written in a list, a table or an archive are always meant.

    Args:
        spec: What the user named as the target.
        target: What `read_target` made of it, or a part of that in the same order (broken images left out).
        classes: The source's classes.
        allow_mismatch: Accept classes that only one of the domains has.

    Returns:
        The labels of `target`'s items, or None when it has none.

    Raises:
        DataError: The classes of the target are not those of the source.
    """
    given = class_names(spec)
    found = {name for name in given if name is not None}
    if not found or (Path(spec).is_dir() and found.isdisjoint(classes)):
        return None
    if found.isdisjoint(classes):
        raise DataError(
            f"None of the labels in {target.origin} ({_some(found)}) is a class of the source ({_some(classes)}); "
            "correct them, or leave them out to use the target unlabelled."
        )
    if not allow_mismatch:
        _check_same_classes(target.origin, found, classes)
    position = {name: i for i, name in enumerate(classes)}
    kept = _of_items(target, spec, given)
    labels = np.array([position.get(name, -1) if name is not None else -1 for name in kept], dtype=np.int64)
    return Answers(labels, Counter(name for name in kept if name is not None and name not in position))


def _check_same_classes(origin: str, found: set[str], classes: Sequence[str]) -> None:
    foreign, absent = found.difference(classes), set(classes) - found
    problems = []
    if foreign:
        problems.append(f"has classes that the source lacks ({_some(foreign)})")
    if absent:
        problems.append(f"has no images of source classes ({_some(absent)})")
    if problems:
        raise DataError(
            f"The labelled target {origin} {' and '.join(problems)}; correct the names, "
            "or use --allow-class-mismatch to score only the classes that both have."
        )


def _of_items(target: Domain, spec: str | Path, given: Sequence[str | None]) -> Sequence[str | None]:
    """The labels of the target's items, where some of the items that `spec` lists may have been left out."""
    if len(target) == len(given):
        return given
    listed = iter(zip(read_target(spec).names, given, strict=True))
    found = (next((pair for pair in listed if pair[0] == name), None) for name in target.names)
    kept = [pair[1] for pair in found if pair]
    if len(kept) < len(target):
        raise DataError(f"{target.origin} has changed since it was read: start again.")
    return kept


def _some(names: Iterable[str], most: int = 5) -> str:
    ordered = sorted_classes(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more
