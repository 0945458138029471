"""Masks over channels: how many they mark, how many they share, and how a log keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from acclimate.schema import Entry, Positive

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Mask:
    """A method's mask: its name, the length d of a row, and how many channels each row marks."""

    name: str
    width: int
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Overlap:
    """How many channels two masks share, as the mean over all pairs of their rows.

    Attributes:
        first: Name of a mask.
        second: Name of another; the same name means the pairs of different rows of one mask.
        observed: Channels in both.
        expected: Channels that would be in both, if each row marked as many at random: n_1 n_2 / d.
    """

    first: str
    second: str
    observed: float
    expected: float


def compare_masks(masks: Mapping[str, Tensor]) -> tuple[list[Mask], list[Overlap]]:
    """How many channels masks mark, and how many they share, against chance.

    Args:
        masks: By name, bool (rows, d).
    """
    rows = {name: M.cpu().numpy().astype(np.int64) for name, M in masks.items()}
    described = [Mask(name, M.shape[1], tuple(M.sum(1).tolist())) for name, M in rows.items()]
    overlaps = []
    names = list(rows)
    for i, first in enumerate(names):
        for second in names[i:]:
            a, b = rows[first], rows[second]
            if a.shape[1] != b.shape[1] or (first == second and len(a) == 1):
                continue  # channels of different features, or no pair
            pairs = (
                np.triu_indices(len(a), 1) if first == second else tuple(np.indices((len(a), len(b))).reshape(2, -1))
            )
            observed = (a @ b.T)[pairs].mean()
            expected = (np.outer(a.sum(1), b.sum(1)) / a.shape[1])[pairs].mean()
            overlaps.append(Overlap(first, second, float(observed), float(expected)))
    return described, overlaps


class PackedMask(Entry, frozen=True, kw_only=True):
    """A mask as text that a log can hold.

    Attributes:
        width: The length d of a row.
        rows: Each row's bits in hexadecimal, filled up to whole bytes.
    """

    width: Positive
    rows: Annotated[tuple[str, ...], Meta(min_length=1)]

    def __post_init__(self) -> None:
        """Refuse rows that are not of this width, which is what an altered file has."""
        if any(len(bytes.fromhex(row)) != (self.width + 7) // 8 for row in self.rows):
            raise ValueError("the rows are not as long as the width says")

    def unpacked(self) -> npt.NDArray[np.bool_]:
        """The mask, (rows, d)."""
        bits = np.frombuffer(bytes.fromhex("".join(self.rows)), np.uint8).reshape(len(self.rows), -1)
        return np.unpackbits(bits, axis=1, count=self.width).astype(bool)


def pack_masks(masks: Mapping[str, Tensor]) -> dict[str, PackedMask]:
    """Masks, bool (rows, d), as text that a log can hold."""
    return {
        name: PackedMask(
            width=M.shape[1], rows=tuple(row.tobytes().hex() for row in np.packbits(M.cpu().numpy(), axis=1))
        )
        for name, M in masks.items()
    }


def mask_figures(logged: Sequence[Mapping[str, PackedMask]]) -> list[dict[str, float]]:
    """What the masks of logged steps say, in per cent.

    Of each mask: the channels that its rows mark, on average; those that are marked now or were in the step before and
    are so in both (how stable it is); and of several rows, the same share between two of them, on average over the
    pairs (how much the classes' masks overlap).
    """
    steps = []
    before: dict[str, npt.NDArray[np.bool_]] = {}
    for masks in logged:
        figures = {}
        for name, packed in masks.items():
            M = packed.unpacked()
            figures[f"{name} mask: channels, %"] = 100 * float(M.mean())
            if name in before and before[name].shape == M.shape:
                figures[f"{name} mask: kept, %"] = _shared(M, before[name])
            if len(M) > 1:
                i, j = np.triu_indices(len(M), 1)
                figures[f"{name} masks: shared, %"] = _shared(M[i], M[j])
            before[name] = M
        steps.append(figures)
    return steps


def _shared(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    """The intersection over the union of each row of a with that of b, on average, in per cent."""
    either = (a | b).sum(1)
    return 100 * float(np.mean(np.where(either > 0, (a & b).sum(1) / np.maximum(either, 1), 1.0)))
