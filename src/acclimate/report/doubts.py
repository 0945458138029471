"""The images of the target, those to look at first at the front, and what each member says of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from acclimate.data.domain import Indices
from acclimate.report.run import Run
from acclimate.report.words import Section, shown

LISTED = 5000  # images in the list, which a page holds without becoming slow

AT_ONCE = 20  # of them shown at a time


def doubts(run: Run, votes: Mapping[str, Indices], answers: Indices | None) -> Section:
    """The list: the page shows its first rows, and its script the others.

    Args:
        run: The run.
        votes: What each member predicts, as `read_votes` gives it.
        answers: (N,) the true classes, -1 where unknown; None without labels.

    Returns:
        The headings but that of the names, and a row an image: its name, then a text under a heading that ends in %,
        and a position in the classes under any other.
    """
    chosen = run.doubtful[:LISTED].tolist()
    columns: dict[str, list[Any]] = {"Predicted": run.predicted[chosen].tolist()}
    if answers is not None:
        columns["True"] = answers[chosen].tolist()
    columns["Confidence %"] = [f"{100 * share:.1f}" for share in run.confidence[chosen].tolist()]
    if run.reliability is not None:
        columns["Agree %"] = [f"{100 * share:.0f}" for share in run.reliability[chosen].tolist()]
    if not votes and run.predicted_before is not None:
        columns["Source-only"] = run.predicted_before[chosen].tolist()
    headings = [*columns, *(shown(name, 40) for name in votes)]
    cells = [*columns.values(), *(said[chosen].tolist() for said in votes.values())]
    return {
        "all": len(run.names),
        "at_once": AT_ONCE,
        "reliable": run.reliability is not None,
        "classes": [shown(name) for name in run.classes],
        "headings": headings,
        "rows": [list(row) for row in zip((shown(run.names[i]) for i in chosen), *cells, strict=True)],
    }
