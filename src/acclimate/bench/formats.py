"""Tables as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence

from acclimate.bench.figures import Figure
from acclimate.bench.tables import Cell, Sheet


def markdown(sheets: Sequence[Sheet]) -> str:
    """The tables in Markdown."""
    parts = []
    for sheet in sheets:
        rule = ["---", *["---:"] * (len(sheet.headings) - 1)]
        rows = [[_markdown(heading) for heading in sheet.headings], rule]
        rows += [[_bold(cell, _markdown(str(cell)), "**", "**") for cell in row] for row in sheet.rows]
        lines = [f"| {' | '.join(row)} |" for row in rows]
        parts.append("\n".join([f"## {_markdown(sheet.title)}", "", *lines, "", *map(_markdown, sheet.notes)]))
    return "\n\n".join(parts) + "\n"


def _markdown(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").split())


def _bold(cell: Cell, text: str, before: str, after: str) -> str:
    """The text of a cell, bold if no row has a larger figure in its column."""
    return f"{before}{text}{after}" if isinstance(cell, Figure) and cell.best else text


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
    """The tables in LaTeX, with the rules of the package booktabs, and a label for each."""
    return "\n\n".join([r"% needs \usepackage{booktabs}", *map(_latex_table, sheets)]) + "\n"


def _latex_table(sheet: Sheet) -> str:
    caption = " ".join(text.translate(LATEX) for text in (f"{sheet.title}.", *sheet.notes))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{'-'.join(re.findall('[a-z0-9]+', sheet.title.lower()))}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(sheet.headings) - 1)}}}",
            r"\toprule",
            _latex_line(sheet.headings),
            r"\midrule",
            *map(_latex_line, sheet.rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _latex_line(cells: Sequence[Cell]) -> str:
    return " & ".join(_bold(cell, str(cell).translate(LATEX), r"\textbf{", "}") for cell in cells) + r" \\"


def csv_text(sheets: Sequence[Sheet]) -> str:
    """The tables as CSV, a line a number.

    Its columns: the table, the line in it, the row's name and what else says what the row is of, the column, the
    number, its standard deviation and how many runs are missing. The last three are numbers, or empty.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "line", "row", "of", "column", "value", "std", "missing"])
    for sheet in sheets:
        for line, (name, *cells) in enumerate(sheet.rows, 1):
            of = ", ".join(cell for cell in cells if isinstance(cell, str))
            for heading, cell in zip(sheet.headings[1:], cells, strict=True):
                for part, *numbers in _numbers(cell):
                    writer.writerow([sheet.title, line, name, of, f"{heading}, {part}" if part else heading, *numbers])
    return text.getvalue()


def _numbers(cell: Cell) -> Iterator[tuple[str, str, str, int]]:
    """The numbers of a cell: what tells one apart from others of the cell, value, deviation, runs missing."""
    if isinstance(cell, Figure):
        yield "", _number(cell.mean), _number(cell.std), cell.missing
    elif not isinstance(cell, str):
        for part, value in cell.values.items():
            yield part, f"{value:g}" if float(value).is_integer() else _number(value), "", 0


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


FORMATS: dict[str, Callable[[Sequence[Sheet]], str]] = {"markdown": markdown, "latex": latex, "csv": csv_text}
