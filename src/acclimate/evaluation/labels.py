"""The file into which a person writes labels: which images were drawn, what for, and the label of each.

Nothing that trains reads such a file: its first line keeps it from passing for a list of images.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, cast, get_args

import numpy as np

from acclimate.choices import Purpose
from acclimate.errors import DataError, nearest
from acclimate.evaluation.answers import Answers
from acclimate.files import read_regular, replacing_text
from acclimate.text import as_text, from_text

COLUMNS = ("path", "label", "stratum", "weight")

NONE = "none of these"  # the label of an image that shows no class of the source

DIGITS = 16  # of a hash in hex

_FIRST_LINE = re.compile(rf"acclimate labels for ({'|'.join(get_args(Purpose))}) of run ([0-9a-f]+) draw ([0-9a-f]+)")


class Row(NamedTuple):
    """An image to be labelled.

    Attributes:
        name: As in predictions.csv.
        stratum: The part of the target that it was drawn from.
        weight: How many images of that part it stands for.
        label: What a person saw: a class, `NONE`, or nothing yet.
    """

    name: str
    stratum: int
    weight: float
    label: str | None = None


@dataclass(frozen=True)
class Todo:
    """Images that a person is to label.

    Attributes:
        purpose: What the labels are to tell.
        run: A hash of the runs that they were drawn for, and of their predictions.
        rows: The images, in any order.
    """

    purpose: Purpose
    run: str
    rows: tuple[Row, ...]

    @cached_property
    def draw(self) -> str:
        """A hash of all but the labels and the order."""
        return hashed([self.purpose, self.run, sorted((r.name, r.stratum, f"{r.weight:.8g}") for r in self.rows)])

    @property
    def first_line(self) -> str:
        """What the file begins with. It has no separator, which a spreadsheet may change."""
        return f"# acclimate labels for {self.purpose} of run {self.run} draw {self.draw}"

    def shuffled(self) -> Todo:
        """The same in the order in which to show the images: random, but told by the draw, whoever sorts the file."""
        return replace(self, rows=tuple(sorted(self.rows, key=lambda row: hashed([self.draw, row.name]))))


def hashed(value: object) -> str:
    """A hash of what JSON can hold."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:DIGITS]


def write_labels(path: Path, todo: Todo) -> None:
    """Write a file for labels, in the order in which to show the images.

    Raises:
        OSError: It cannot be written.
    """
    with replacing_text(path, errors="strict", newline="") as file:
        file.write(f"{todo.first_line}\r\n")
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(map(cells, todo.shuffled().rows))


def cells(row: Row) -> tuple[str, str, str, str]:
    """A row as the file has it, which people open in a spreadsheet: its name and its label are no formulas there."""
    return as_text(row.name), as_text(row.label or ""), str(row.stratum), f"{row.weight:.8g}"


def read_labels(path: Path) -> Todo:
    """Read what `write_labels` or the page wrote, after a person or a spreadsheet has been at it.

    The separator, the encoding, the line ends, the quotes, the order of the rows and how a number is written may have
    changed. The images, their strata and their weights may not.

    Returns:
        The images in the order in which they were shown.

    Raises:
        DataError: It is no such file, or more than its labels has changed.
    """
    try:
        content = read_regular(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): name the labels.csv with the labels.") from error
    readings = (_todo(text, separator) for text in _texts(content) for separator in ",;\t")
    found = [reading for reading in readings if reading is not None]
    for todo, draw in found:
        if todo.draw == draw:
            return todo.shuffled()
    if found:
        raise DataError(
            f"{path} has other images, strata or weights than were drawn: change nothing but the column label, "
            "or download the file from its page again."
        )
    raise DataError(
        f"{path} is not a file that acclimate label wrote: that begins with a line '# acclimate labels ...' and one "
        f"with the columns {', '.join(COLUMNS)}, in which every row has a number for its stratum and its weight."
    )


def labelled(todo: Todo, classes: Sequence[str], path: Path) -> Answers:
    """The labels of the first m images that were shown, where the others have none yet.

    Whoever stops early leaves out what comes later in a random order, and the rest is a random sample as well. Whoever
    leaves out an image here and there does so because it is hard, and the rest is too easy: that is refused.

    Args:
        todo: As `read_labels` gives it.
        classes: K names.
        path: The file, for messages.

    Returns:
        (m,) positions in the classes; -1 for `NONE`.

    Raises:
        DataError: A label is no class, or an image has none that was shown before one that has.
    """
    position = {NONE: -1, **{name.strip(): k for k, name in enumerate(classes)}}
    for row in todo.rows:
        if row.label is not None and row.label not in position:
            raise DataError(
                f"{path} calls {row.name} '{row.label}', which is not a class of the run: "
                f"{nearest(row.label, position)}"
            )
    given = [row.label for row in todo.rows if row.label is not None]
    gaps = [row.name for row in todo.rows[: len(given)] if row.label is None]
    if gaps:
        more = f" and {len(gaps) - 1:,} more" if len(gaps) > 1 else ""
        raise DataError(
            f"{path} has no label for {gaps[0]}{more}, but for images that were shown later: label what was skipped, "
            f"if need be as '{NONE}', since leaving out the hard images would flatter the result."
        )
    return Answers(np.array([position[label] for label in given], dtype=np.int64))


def _texts(content: bytes) -> Iterator[str]:
    """The text, in each encoding that a spreadsheet may have saved it in."""
    for encoding in ("utf-16",) if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "cp1252"):
        with suppress(UnicodeDecodeError):
            yield content.decode(encoding)


def _todo(text: str, separator: str) -> tuple[Todo, str] | None:
    """What a text says, and its own hash of the draw; None if it is no such file, or has another separator."""
    try:
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if any(line)]
        begun = _FIRST_LINE.search(lines[0][0])
        if begun is None or tuple(cell.strip() for cell in lines[1][: len(COLUMNS)]) != COLUMNS:
            return None
        rows = tuple(
            Row(from_text(name), int(stratum), _number(weight), from_text(label.strip()) or None)
            for name, label, stratum, weight, *_ in lines[2:]
        )
    except (IndexError, ValueError, csv.Error):
        return None
    return Todo(cast(Purpose, begun[1]), begun[2], rows), begun[3]


def _number(text: str) -> float:
    """A number, with a decimal comma where a spreadsheet has put one."""
    number = float(text.replace(",", "."))
    if not math.isfinite(number):
        raise ValueError(f"{text} is not finite")
    return number
