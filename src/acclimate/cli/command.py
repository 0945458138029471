"""What the commands share: options, those of the settings among them, and how they end."""

from __future__ import annotations

import inspect
import logging
import os
import signal
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import MISSING
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from acclimate.choices import Extractor
from acclimate.errors import AcclimateError
from acclimate.methods import registry
from acclimate.processes import Stopped
from acclimate.settings import Declared

if TYPE_CHECKING:
    from acclimate.screen import Screen


FROM_CHECKPOINT = "the same command, without --overwrite, goes on from the last checkpoint"

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress, only results and warnings.")]

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", envvar="ACCLIMATE_DEBUG")]

Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU if there is one.")]

MethodAgain = Annotated[
    str | None,
    typer.Option(
        "--method", help="The method that the model was trained with, if it is in a file: path/to/file.py:Class."
    ),
]

BackboneAgain = Annotated[
    str | None,
    typer.Option(
        "--backbone", help="The backbone that the model was trained with, if it is in a file: path/to/file.py:function."
    ),
]

ExtractorAgain = Annotated[
    Extractor | None,
    typer.Option(
        "--extractor",
        help="What computes the features of a frozen backbone on a CPU. Default: the same as for the run.",
    ),
]

RunOrHub = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="The folder that fit wrote with --out, or hf://OWNER/NAME@REVISION on the hub."),
]

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder that fit wrote with --out.")]


def with_settings(
    declared: Mapping[str, Declared], *, unset: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each of these settings.

    Args:
        declared: The settings, by name.
        unset: Whether every option may be left out, and has no default.

    Returns:
        A decorator of a command, whose first argument are the settings given, by name.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def with_options(**values: Any) -> None:
            given = {name: values.pop(name) for name in declared}
            command({name: value for name, value in given.items() if value is not None}, **values)

        own = [*inspect.signature(command, eval_str=True).parameters.values()][1:]
        options = [_option(one, unset=unset) for one in declared.values()]
        keyword_only = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in (*options, *own)]
        with_options.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
        with_options.__name__, with_options.__doc__ = command.__name__, command.__doc__
        with_options.__annotations__ = {}
        return with_options

    return decorate


def _option(declared: Declared, *, unset: bool) -> inspect.Parameter:
    """The option of a setting, as typer reads it from a signature."""
    setting, name = declared.setting, declared.name.replace("_", "-")
    names: list[str] = []
    if declared.kind is bool:
        names = [f"--{name}/--no-{name}" if unset else f"--{name}"]
    text, default = setting.help, declared.default
    if unset:
        default = None
    elif setting.of_method:
        text, default = f"{text} Default: the method's own, mostly {default}.", None
    elif default is MISSING:
        default = None  # the command says what is missing, since it may be given in another way
    kind: Any = Literal[declared.choices] if declared.choices else declared.kind
    kind = kind | None if default is None else kind
    completion = registry.names if declared.name == "method" else None
    option = typer.Option(*names, help=text, rich_help_panel=setting.group, autocompletion=completion)
    annotation = Annotated[kind, option]
    return inspect.Parameter(declared.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


class Exit(int, Enum):
    """Exit codes."""

    MENDABLE = 2
    DEFECT = 1


def run_command(
    work: Callable[[Screen], None],
    *,
    json: bool,
    quiet: bool,
    debug: bool,
    computes: bool = False,
    goes_on: str = "",
    together: bool = False,
) -> None:
    """Do the work of a command; an error ends it with one sentence and an exit code.

    Args:
        work: What the command does.
        json: Results are JSON on standard output.
        quiet: Show no progress and no remarks.
        debug: Show the traceback of an error.
        computes: It trains or predicts, so that the process had better keep the memory it frees.
        goes_on: How interrupted work goes on.
        together: Several processes may do it together, as torchrun starts them.
    """
    from acclimate.screen import Screen

    several = os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ  # as torchrun starts them
    screen = Screen(quiet=quiet, json=json, mute=several and os.environ["RANK"] != "0")
    if several and not together:
        if not screen.mute:
            screen.error(
                "Several processes can only share the work of acclimate fit: run this without torchrun, which has set "
                "RANK and WORLD_SIZE."
            )
        raise typer.Exit(Exit.MENDABLE)
    remarks = _Remarks(screen)
    log = logging.getLogger("acclimate")
    log.addHandler(remarks)
    try:
        if computes:
            from acclimate.machine import begin_computing

            begin_computing()
        if several:
            _join(screen, goes_on)
        work(screen)
    except (KeyboardInterrupt, Stopped) as error:
        stopped = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)
        if not several or _speaks_up():
            screen.error(f"{stopped}: {goes_on}." if goes_on else f"{stopped}.")
        raise typer.Exit(stopped.exit_code) from None
    except Exception as error:
        if debug:
            traceback.print_exc()
        sentence = _mendable(error)
        hint = "" if debug else " (--debug shows where.)"
        if not several or _speaks_up():
            screen.error(sentence or f"{type(error).__name__}: {error}{hint}")
        raise typer.Exit(Exit.MENDABLE if sentence else Exit.DEFECT) from None
    finally:
        log.removeHandler(remarks)


def _join(screen: Screen, goes_on: str) -> None:
    """Join the processes that torchrun has started with this one."""
    from acclimate import parallel

    parallel.join()
    _tell_of_termination(screen, goes_on)


def _tell_of_termination(screen: Screen, goes_on: str) -> None:
    """Let a thread end the process on SIGTERM, by which torchrun ends the others when one has ended.

    A handler would run once PyTorch returns, which may still be waiting for the process that has ended.
    """
    noticed, notice = os.pipe()
    os.set_blocking(notice, False)
    signal.set_wakeup_fd(notice, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda *_: None)  # or the system would end it at once

    def wait() -> None:
        while os.read(noticed, 1)[0] != signal.SIGTERM:
            pass
        if _speaks_up():
            screen.error(f"Terminated, perhaps because another process has ended: {goes_on}.")
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def _speaks_up() -> bool:
    """Whether this one of several processes, which has failed, is the one that says why."""
    from acclimate import parallel

    return parallel.world().speaks_up()


class _Remarks(logging.Handler):
    """Shows what the library logs as the screen shows a warning: no name in it reaches the terminal as it is."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(logging.WARNING)
        self.screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        """Show one message."""
        self.screen.warn(record.getMessage())


def _mendable(error: Exception) -> str | None:
    """The sentence for an error that the user can mend."""
    if isinstance(error, AcclimateError):
        return str(error)
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
        return "The memory does not suffice: use a smaller --batch-size or a smaller backbone."
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}."
    return None
