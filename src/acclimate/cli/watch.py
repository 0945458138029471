"""The command that compares new images with the target of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from acclimate.cli.command import BackboneAgain, Debug, Device, Json, MethodAgain, Quiet, RunOrHub, run_command
from acclimate.settings import DATA_FORMS

if TYPE_CHECKING:
    from acclimate.runs.watch import Watched
    from acclimate.screen import Screen


def watch(
    run: RunOrHub,
    new: Annotated[
        list[str],
        typer.Argument(
            metavar="NEW...", help=f"At least 100 new images: files, folders, {DATA_FORMS}, or - for a list."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="A page to write: what was found, and the most novel images.")
    ] = None,
    method: MethodAgain = None,
    backbone: BackboneAgain = None,
    device: Device = "auto",
    open_: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say whether new images still look like the target that a run was made for. No label is needed."""

    def work(screen: Screen) -> None:
        from acclimate.errors import OptionError
        from acclimate.outputs import PAGE, check_output
        from acclimate.runs.watch import watch as compare

        if open_ and out is None:
            raise OptionError("--open opens the page: name it with --out.")
        if out is not None:
            check_output(out, PAGE, inputs=new)
        watched = compare(run, new, screen, device=device, method=method, backbone=backbone)
        _show(screen, watched)
        written = None
        if out is not None:
            from acclimate.report.watch import write

            written = write(watched, out)
            screen.say(f"The page is {out}.")
        screen.show_json(watched.as_dict() | ({"page": str(out)} if out is not None else {}))
        if open_ and written is not None:
            typer.launch(written.path.absolute().as_uri())

    run_command(work, json=json, quiet=quiet, debug=debug, computes=True)


def _show(screen: Screen, watched: Watched) -> None:
    screen.show(f"\n{watched.verdict}: {watched.drift.m:,} new images beside {watched.n:,} of the target\n")
    for sign in watched.drift.signs:
        mark = "drifted" if sign.drifted else "" if sign.bound is None else "as before"
        screen.show(f"  {mark:<11}{screen.text(watched.sentence(sign))}")
    screen.show(f"\n{watched.advice}")
    for command in watched.commands:
        screen.show("  " + screen.text(" ".join(command)))
