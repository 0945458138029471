"""Where predictions go as they come: a CSV, JSON lines or arrays, in a file or on standard output, and links."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import TextIOWrapper
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from acclimate.choices import PredictionFormat
from acclimate.errors import DataError
from acclimate.files import json_line, open_no_follow, replacing, replacing_text
from acclimate.runs.files import PredictionTable, most_probable
from acclimate.text import as_text, visible_lines

if TYPE_CHECKING:
    from acclimate.data.domain import Domain
    from acclimate.evaluation.scores import Probabilities

STDOUT = "-"

UNSURE = "unsure"  # the folder of the images that are predicted with too little confidence

_UNFIT = re.compile(r'[\x00-\x1f/\\:*?"<>|]')  # for the name of a folder, on one system or another

Write: TypeAlias = "Callable[[Sequence[str], Probabilities], None]"


@contextmanager
def table(
    out: str, form: PredictionFormat, classes: Sequence[str], top: int | None, *, escape_formulas: bool = False
) -> Iterator[Write]:
    """A table that is written row by row; a file is there once the block is through.

    Args:
        out: The file; `STDOUT` for standard output.
        form: A CSV like predictions.csv; one JSON object a line with the entries path, predicted, confidence and
            probabilities; or, in a file alone, the arrays path (N,), predicted (N,) and classes (K,) of text and
            probabilities (N, K) of float32, for many classes: less than half the size, in a thirtieth of the time.
        classes: K names.
        top: Name so many of the most probable classes alone; None gives the probabilities of all.
        escape_formulas: In a CSV, put an apostrophe before names that a spreadsheet would take for a formula.

    Yields:
        What takes the names of items (N,) and their probabilities (N, K).

    Raises:
        DataError: The table cannot be written.
    """
    with ExitStack() as files:
        with _said(out):
            write = files.enter_context(
                _arrays(Path(out), classes) if form == "npz" else _text(out, form, classes, top, escape_formulas)
            )

        def write_or_say(names: Sequence[str], probabilities: Probabilities) -> None:
            with _said(out):
                write(names, probabilities)

        yield write_or_say
        with _said(out):
            files.close()


@contextmanager
def _text(
    out: str, form: PredictionFormat, classes: Sequence[str], top: int | None, escape_formulas: bool
) -> Iterator[Write]:
    """A CSV or JSON lines, of which others see each row as soon as it is written."""
    errors = "surrogateescape" if form == "csv" else "backslashreplace"
    opened = _standard_output(errors) if out == STDOUT else replacing_text(Path(out), errors=errors, newline="")
    with opened as file:
        if form == "csv":
            write = _csv_rows(file, classes, top, as_text if escape_formulas else str)
        else:
            write = _json_lines(file, classes, top)

        def write_and_flush(names: Sequence[str], probabilities: Probabilities) -> None:
            write(names, probabilities)
            file.flush()

        yield write_and_flush


def _csv_rows(file: IO[str], classes: Sequence[str], top: int | None, named: Callable[[str], str]) -> Write:
    form, writer = PredictionTable([*map(named, classes)], top), csv.writer(file)
    writer.writerow(form.header)
    return lambda names, probabilities: writer.writerows(form.rows([*map(named, names)], probabilities))


def _json_lines(file: IO[str], classes: Sequence[str], top: int | None) -> Write:
    def write(names: Sequence[str], probabilities: Probabilities) -> None:
        for name, row in zip(names, probabilities.round(6), strict=True):
            best = most_probable(row, top or 1)
            named = best if top else range(len(classes))
            line = {
                "path": name,
                "predicted": classes[best[0]],
                "confidence": float(row[best[0]]),
                "probabilities": {classes[k]: float(row[k]) for k in named},
            }
            file.write(json_line(line))

    return write


@contextmanager
def _arrays(path: Path, classes: Sequence[str]) -> Iterator[Write]:
    """An .npz; the probabilities wait in a file without a name until it is known how many there are."""
    names: list[str] = []
    predicted: list[str] = []
    with replacing(path) as temporary, TemporaryFile(dir=path.parent) as waiting:

        def write(of: Sequence[str], probabilities: Probabilities) -> None:
            names.extend(of)
            predicted.extend(classes[k] for k in probabilities.argmax(1))
            waiting.write(np.ascontiguousarray(probabilities, dtype=np.float32).data)

        yield write
        with open_no_follow(temporary, "wb") as file, zipfile.ZipFile(file, "w") as packed:
            for name, texts in {"path": names, "predicted": predicted, "classes": classes}.items():
                with packed.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.array(texts, dtype=np.str_))
            header = {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": (len(names), len(classes))}
            waiting.seek(0)
            with packed.open("probabilities.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                shutil.copyfileobj(waiting, member)


class _Terminal(NamedTuple):
    """A file that is a terminal, which no name may steer."""

    file: IO[str]

    def write(self, text: str) -> int:
        return self.file.write(visible_lines(text))

    def flush(self) -> None:
        self.file.flush()


@contextmanager
def _standard_output(errors: str) -> Iterator[Any]:
    """Standard output in UTF-8, with line ends as they are written."""
    sys.stdout.flush()
    text = TextIOWrapper(sys.stdout.buffer, encoding="utf-8", errors=errors, newline="", write_through=True)
    try:
        yield _Terminal(text) if sys.stdout.isatty() else text
        text.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would complain at its end
        raise
    finally:
        text.detach()


@contextmanager
def _said(out: str) -> Iterator[None]:
    """Tell of a table that cannot be written."""
    try:
        yield
    except BrokenPipeError as error:
        raise DataError("Whatever read standard output has closed it: the rest of the predictions is lost.") from error
    except OSError as error:
        raise DataError(f"The file {out} cannot be written ({error.strerror}): name another with --out.") from error


class Links:
    """Folders of links to images, one a class.

    Args:
        folder: Where to make them: a new or an empty folder.
        classes: K names.
        least: The least confidence; images that have less go to the folder `UNSURE`. None takes all.

    Attributes:
        unsure: How many images went there.

    Raises:
        DataError: The folder cannot be made, or holds something already.
    """

    def __init__(self, folder: Path, classes: Sequence[str], least: float | None) -> None:
        self.unsure = 0
        self._folder = folder
        self._least = least
        self._names = _folder_names(classes)
        with self._said():
            folder.mkdir(exist_ok=True)
            if any(folder.iterdir()):
                raise DataError(f"{folder} holds something already: name a new or an empty folder with --link.")

    def add(self, domain: Domain, probabilities: Probabilities) -> None:
        """Link N image files by their probabilities (N, K).

        Raises:
            DataError: They are no files, or a link cannot be made.
        """
        if not isinstance(domain.items, tuple):
            raise DataError(f"{domain.origin} holds arrays, which cannot be linked: leave out --link.")
        for path, k, confidence in zip(domain.items, probabilities.argmax(1), probabilities.max(1), strict=True):
            unsure = self._least is not None and bool(confidence < self._least)
            self.unsure += unsure
            with self._said():
                _link(path, self._folder / (UNSURE if unsure else self._names[k]))

    @contextmanager
    def _said(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(
                f"Links cannot be made in {self._folder} ({error.strerror}): name another folder with --link."
            ) from error


def _link(path: str, folder: Path) -> None:
    """Link a file under its own name; one of several of that name has a hash of its path as well."""
    folder.mkdir(exist_ok=True)
    target = Path(path).absolute()
    mark = hashlib.sha256(os.fsencode(target)).hexdigest()[:8]
    for name in (target.name, f"{target.stem}-{mark}{target.suffix}"):
        link = folder / name
        if not link.is_symlink() or link.readlink() != target:
            try:
                link.symlink_to(target)
            except FileExistsError:
                continue
        return


def _folder_names(classes: Sequence[str]) -> list[str]:
    """A name of a folder for each class, whatever a model from a stranger calls its classes."""
    names: list[str] = []
    for name in classes:
        fit = _UNFIT.sub("_", name).rstrip(". ") or "_"
        while fit.casefold() in {UNSURE, *(other.casefold() for other in names)}:
            fit += "_"
        names.append(fit)
    return names
