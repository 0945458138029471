"""Image lists, a path and a label a line, and CSV files of paths and labels."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from acclimate.data.domain import Domain, Labels
from acclimate.data.formats.folder import printable
from acclimate.data.kinds import is_image
from acclimate.errors import DataError
from acclimate.files import read_regular
from acclimate.text import from_text


def read_list(path: Path, need_labels: bool) -> tuple[Domain, Labels]:
    """The images of a list, a path and a label a line."""
    rows = []
    for number, line in enumerate(io.StringIO(_text(path), newline=None), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, label = _split_line(line.strip())
        if "\0" in name or (need_labels and label is None):
            raise DataError(f"Line {number} of {path} is not a path and a label: write 'path label'.")
        rows.append((name, label))
    return _listed_domain(path, rows)


def _split_line(line: str) -> tuple[str, str | None]:
    """The path, which may hold blanks, and the label, which is the last token unless the path ends there."""
    name, *label = line.rsplit(maxsplit=1)
    if label and not is_image(label[0]):
        return name, label[0]
    return line, None


def read_csv(path: Path, need_labels: bool) -> tuple[Domain, Labels]:
    """The images of a CSV with the columns `path` and, if there are labels, `label`."""
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), skipinitialspace=True)
    rows = []
    try:
        columns = [column.strip() for column in reader.fieldnames or ()]
        for column in ("path", "label") if need_labels else ("path",):
            if column not in columns:
                raise DataError(
                    f"{path} has no column '{column}': begin it with a header line that names it, such as 'path,label'."
                )
        reader.fieldnames = columns
        for row in reader:
            name, label = (row["path"] or "").strip(), (row.get("label") or "").strip() or None
            if not name or "\0" in name or (need_labels and label is None):
                raise DataError(f"Line {reader.line_num} of {path} lacks a path or a label: complete or remove it.")
            rows.append((_written(name, path.parent), label))
    except csv.Error as error:
        raise DataError(f"Line {reader.line_num} of {path} is not CSV ({error}): correct it.") from error
    return _listed_domain(path, rows)


def _written(name: str, folder: Path) -> str:
    """The name of a file, without the apostrophe with which a table for spreadsheets may begin."""
    plain = from_text(name)
    return name if plain == name or (folder / name).is_file() else plain


def _text(path: Path) -> str:
    try:
        return read_regular(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: save it with that encoding.") from error


def _listed_domain(path: Path, rows: Sequence[tuple[str, str | None]]) -> tuple[Domain, Labels]:
    names, folder = [name for name, _ in rows], path.parent
    if names and not (folder / names[0]).is_file() and (folder.parent / names[0]).is_file():
        folder = folder.parent  # benchmarks publish their lists in a folder beside the domains'
    return file_domain(names, folder, str(path)), tuple(label for _, label in rows)


def file_domain(names: Sequence[str], folder: Path, origin: str) -> Domain:
    """The domain of the files that `names` gives relative to `folder`."""
    if not names:
        raise DataError(f"{origin} names no images: list at least one.")
    items = tuple(os.path.join(folder, name) for name in names)  # noqa: PTH118 (a Path takes longer)
    missing = [path for path in items if not os.path.isfile(path)]  # noqa: PTH113
    if missing:
        raise DataError(
            f"{len(missing):,} of the {len(items):,} files that {origin} names cannot be found, "
            f"the first is {missing[0]}: correct the paths, which start from {folder.resolve()}."
        )
    return Domain(items, tuple(printable(name) for name in names), origin)
