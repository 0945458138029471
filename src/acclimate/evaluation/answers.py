"""The labels of a target, which measure a result and do nothing else."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from acclimate.data.domain import Domain, Indices, Labels, sorted_classes
from acclimate.data.sealed import SealedLabels, open_labels
from acclimate.errors import DataError

log = logging.getLogger("acclimate")


@dataclass(frozen=True, eq=False)
class Answers:
    """The labels of a target.

    Attributes:
        labels: (N,) int64, positions in the source's classes; -1 where the item has no label or a foreign one.
    """

    labels: npt.NDArray[np.int64]

    def select(self, keep: Sequence[int] | Indices) -> Answers:
        """The labels of the items at the positions `keep`, in that order, as `Domain.select` takes them."""
        return Answers(self.labels[np.asarray(keep, dtype=np.int64)])


def read_answers(
    sealed: SealedLabels, target: Domain, classes: Sequence[str], *, allow_mismatch: bool = False
) -> Answers | None:
    """Open the labels of a target, where it has any. Opens no image, so it can run before any computing.

    Folders of a target count as labels when one of them has the name of a source class; otherwise they are taken for
    mere storage. Labels written in a list, a table or an archive are always meant. A label that differs from one class
    of the source in its case alone is that class, which the log says.

    Args:
        sealed: The labels that `read_sealed` read.
        target: The domain that it read with them, whole: `Answers.select` goes with `Domain.select`.
        classes: The source's classes.
        allow_mismatch: Accept classes that only one of the domains has.

    Returns:
        The labels of `target`'s items, or None when it has none.

    Raises:
        DataError: The classes of the target are not those of the source, or the labels are not those of its items.
    """
    names, labels, are_folders = open_labels(sealed)
    if names != target.names:
        raise DataError(f"The labels of {target.origin} are not those of its items: read both at once.")
    labels = _in_the_case_of(classes, labels, target.origin)
    found = {name for name in labels if name is not None}
    if not found or (are_folders and found.isdisjoint(classes)):
        return None
    if found.isdisjoint(classes):
        raise DataError(
            f"None of the labels in {target.origin} ({_some(found)}) is a class of the source ({_some(classes)}); "
            "correct them, or leave them out to use the target unlabelled."
        )
    if not allow_mismatch:
        _check_same_classes(target.origin, found, classes)
    position: dict[str | None, int] = {name: i for i, name in enumerate(classes)}
    return Answers(np.array([position.get(name, -1) for name in labels], dtype=np.int64))


def _in_the_case_of(classes: Sequence[str], labels: Labels, origin: str) -> Labels:
    """The labels, each as the source writes the class, if no other class and no other label is written alike."""
    names = {name for name in labels if name is not None}
    written, alike = Counter(map(str.casefold, names)), Counter(map(str.casefold, classes))
    known = {name.casefold(): name for name in classes}
    renamed = {
        name: known[name.casefold()]
        for name in sorted(names.difference(classes))
        if written[name.casefold()] == alike[name.casefold()] == 1
    }
    if not renamed:
        return labels
    log.warning(
        "%s writes classes in another case than the source does: %s; they are taken for the same.",
        origin,
        _some(f"{name} for {of_source}" for name, of_source in renamed.items()),
    )
    return tuple(renamed.get(name, name) if name is not None else None for name in labels)


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


def _some(names: Iterable[str], most: int = 5) -> str:
    ordered = sorted_classes(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more
