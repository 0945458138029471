"""What the commands share: options, and how they end."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from acclimate.errors import AcclimateError

if TYPE_CHECKING:
    from acclimate.screen import Screen


DATA_FORMS = (
    "a folder of class folders, an image list (.txt, a line each: path label), a CSV with the columns path and label, "
    "or an .npz with x and y"
)

FROM_CHECKPOINT = "the same command, without --overwrite, goes on from the last checkpoint"

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress, only results and warnings.")]

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", envvar="ACCLIMATE_DEBUG")]

Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU if there is one.")]

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder that fit wrote with --out.")]


class Exit(int, Enum):
    """Exit codes."""

    MENDABLE = 2
    DEFECT = 1
    INTERRUPTED = 130


def run_command(work: Callable[[Screen], None], *, json: bool, quiet: bool, debug: bool, goes_on: str = "") -> None:
    """Do the work of a command; an error ends it with one sentence and an exit code."""
    from acclimate.screen import Screen

    screen = Screen(quiet=quiet, json=json)
    try:
        work(screen)
    except KeyboardInterrupt:
        screen.error(f"Interrupted{': ' if goes_on else ''}{goes_on}.")
        raise typer.Exit(Exit.INTERRUPTED) from None
    except Exception as error:
        if debug:
            traceback.print_exc()
        sentence = _mendable(error)
        hint = "" if debug else " (--debug shows where.)"
        screen.error(sentence or f"{type(error).__name__}: {error}{hint}")
        raise typer.Exit(Exit.MENDABLE if sentence else Exit.DEFECT) from None


def _mendable(error: Exception) -> str | None:
    """The sentence for an error that the user can mend."""
    if isinstance(error, AcclimateError):
        return str(error)
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
        return "The memory does not suffice: use a smaller --batch-size or a smaller backbone."
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}."
    return None
