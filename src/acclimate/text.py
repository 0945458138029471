"""Text from strangers, such as the names of files: kept from steering a terminal, and from being a formula."""

from __future__ import annotations

import re

_FORMULA = re.compile("'*[=+\\-@\t\r]")  # what a spreadsheet computes, behind any number of marks of `as_text`


def visible(text: str) -> str:
    """The text with an escape in place of each character that could move a cursor or break the line."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()


def visible_lines(text: str) -> str:
    """The same for text of several lines, whose ends stay."""
    return "\n".join(visible(line.removesuffix("\r")) for line in text.split("\n"))


def as_text(cell: str) -> str:
    """The cell of a table, with an apostrophe before what a spreadsheet would take for a formula."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def from_text(cell: str) -> str:
    """What `as_text` was given."""
    return cell[1:] if cell[:1] == "'" and _FORMULA.match(cell) else cell
