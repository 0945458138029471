"""The labels of a target, sealed: they travel with what they were read with, and `acclimate.evaluation` opens them."""

from __future__ import annotations

from typing import NamedTuple

from acclimate.data.domain import Labels


class OpenedLabels(NamedTuple):
    """What was sealed.

    Attributes:
        names: The name of each item, as in its `Domain`.
        labels: The label of each item, None where it has none.
        are_folders: Whether the labels are merely the names of the folders in which the items were found.
    """

    names: tuple[str, ...]
    labels: Labels
    are_folders: bool


class SealedLabels:
    """The labels of one reading of a domain, each beside its item's name.

    Whoever prepares or trains may hold them and hand them on, but has no use for them: `open_labels` is for
    `acclimate.evaluation` alone, and `tests/test_architecture.py` watches who imports it.
    """

    __slots__ = ("_inside",)

    def __init__(self, names: tuple[str, ...], labels: Labels, *, are_folders: bool) -> None:
        self._inside = OpenedLabels(names, labels, are_folders)

    def __repr__(self) -> str:
        return f"SealedLabels of {len(self._inside.names):,} items"


def open_labels(sealed: SealedLabels) -> OpenedLabels:
    """What was sealed. For `acclimate.evaluation` alone: nothing that trains may call it."""
    return sealed._inside
