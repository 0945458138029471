"""The page on new images beside the target of a run."""

from __future__ import annotations

from pathlib import Path, PurePath

from acclimate.errors import AcclimateError
from acclimate.report.exhibits import TILE, jpeg, square
from acclimate.report.page import Report, render, written
from acclimate.report.words import Section, shown
from acclimate.runs.watch import NAMES, Watched

NOVEL = 16  # images that are shown

MOST_CLASSES = 40  # in the table of shares: those whose share has moved most


def write(watched: Watched, out: Path) -> Report:
    """Write the page: one HTML file that holds all it shows, as the report does.

    Raises:
        DataError: The file cannot be written.
    """
    left_out: list[str] = []
    page = render(
        "watch.html",
        watched=watched,
        target=PurePath(watched.target).name if watched.target is not None else "the target",
        new=", ".join(shown(PurePath(name).name or name, 40) for name in watched.data[:3]),
        signs=[
            {"name": NAMES[sign.check], "sign": sign, "sentence": watched.sentence(sign)}
            for sign in watched.drift.signs
        ],
        shares=_shares(watched),
        novel=_novel(watched, left_out),
        left_out=left_out,
    )
    return written(page, out, left_out)


def _shares(watched: Watched) -> Section:
    d = watched.drift
    rows = sorted(
        zip(watched.classes, d.shares_before.tolist(), d.shares_after.tolist(), strict=True),
        key=lambda row: -abs(row[2] - row[1]),
    )
    shown_rows = [{"name": name, "before": before, "after": after} for name, before, after in rows[:MOST_CLASSES]]
    return {
        "rows": shown_rows,
        "more": len(rows) - len(shown_rows),
        "scale": max(max(before, after) for _, before, after in rows),
    }


def _novel(watched: Watched, left_out: list[str]) -> list[Section]:
    """The images that are furthest from all of the target, the furthest first."""
    cards = []
    for i in watched.most_novel(NOVEL):
        p = watched.probabilities[i]
        card: Section = {
            "name": watched.images.names[i],
            "predicted": watched.classes[int(p.argmax())],
            "confidence": float(p.max()),
            "distance": float(watched.distances[i]),
            "image": None,
        }
        if watched.images.kind != "vectors":
            try:
                card["image"] = jpeg(square(watched.images, i, TILE))
            except AcclimateError as error:  # it was there a moment ago
                left_out.append(f"An image is not shown: {error}")
        cards.append(card)
    return cards
