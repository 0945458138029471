"""Tables as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

from acclimate.bench.figures import Figure
from acclimate.bench.tables import Sheet


def markdown(sheets: Sequence[Sheet]) -> str:
    """The tables in Markdown."""
    parts = []
    for sheet in sheets:
        rule = ["---", *["---:"] * (len(sheet.headings) - 1)]
        rows: list[list[Any]] = [sheet.headings, rule, *sheet.rows]
        lines = [f"| {' | '.join(_markdown(str(cell)) for cell in row)} |" for row in rows]
        parts.append("\n".join([f"## {_markdown(sheet.title)}", "", *lines, "", *map(_markdown, sheet.notes)]))
    return "\n\n".join(parts) + "\n"


def _markdown(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").split())


LATEX = str.maketrans(
    {
        **{c: f"\\{c}" for c in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "→": r"$\rightarrow$",
        "†": r"$\dagger$",
    }
)


def latex(sheets: Sequence[Sheet]) -> str:
    """The tables in LaTeX; they need no package."""
    parts = []
    for sheet in sheets:
        lines: list[list[Any]] = [sheet.headings, *sheet.rows]
        head, *rows = [" & ".join(str(cell).translate(LATEX) for cell in line) + r" \\" for line in lines]
        notes = " ".join(note.translate(LATEX) for note in sheet.notes)
        columns = "l" + "r" * (len(sheet.headings) - 1)
        parts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    rf"\caption{{{sheet.title.translate(LATEX)}. {notes}}}",
                    rf"\begin{{tabular}}{{{columns}}}",
                    r"\hline",
                    head,
                    r"\hline",
                    *rows,
                    r"\hline",
                    r"\end{tabular}",
                    r"\end{table}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def csv_text(sheets: Sequence[Sheet]) -> str:
    """The tables as CSV, a line a cell: table, row, column, value, std, missing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "row", "column", "value", "std", "missing"])
    for sheet in sheets:
        for number, (name, *cells) in enumerate(sheet.rows, 1):
            for heading, cell in zip(sheet.headings[1:], cells, strict=True):
                value = (
                    [_number(cell.mean), _number(cell.std), cell.missing] if isinstance(cell, Figure) else [cell, "", 0]
                )
                writer.writerow([sheet.title, f"{number} {name}", heading, *value])
    return text.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


FORMATS: dict[str, Callable[[Sequence[Sheet]], str]] = {"markdown": markdown, "latex": latex, "csv": csv_text}
