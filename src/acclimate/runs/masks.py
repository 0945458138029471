"""Masks over channels: how many they mark, how many they share, and how a log keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
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


def pack_masks(masks: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Masks as text that a log can hold: of each the length d of a row, and its rows in hexadecimal."""
    return {
        name: {"width": M.shape[1], "rows": [row.tobytes().hex() for row in np.packbits(M.cpu().numpy(), axis=1)]}
        for name, M in masks.items()
    }


def mask_figures(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl with what their packed masks say in place of these, in per cent.

    Of each mask: the channels that its rows mark, on average; those that are marked now or were in the line before and
    are so in both (how stable it is); and of several rows, the same share between two of them, on average over the
    pairs (how much the classes' masks overlap).
    """
    lines = []
    before: dict[str, npt.NDArray[np.bool_]] = {}
    for row in metrics:
        figures = {name: value for name, value in row.items() if name != "masks"}
        for name, packed in row.get("masks", {}).items():
            bits = np.frombuffer(bytes.fromhex("".join(packed["rows"])), np.uint8).reshape(len(packed["rows"]), -1)
            M = np.unpackbits(bits, axis=1, count=packed["width"]).astype(bool)  # (rows, d)
            figures[f"{name} mask: channels, %"] = 100 * float(M.mean())
            if name in before:
                figures[f"{name} mask: kept, %"] = _shared(M, before[name])
            if len(M) > 1:
                i, j = np.triu_indices(len(M), 1)
                figures[f"{name} masks: shared, %"] = _shared(M[i], M[j])
            before[name] = M
        lines.append(figures)
    return lines


def _shared(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    """The intersection over the union of each row of a with that of b, on average, in per cent."""
    either = (a | b).sum(1)
    return 100 * float(np.mean(np.where(either > 0, (a & b).sum(1) / np.maximum(either, 1), 1.0)))
