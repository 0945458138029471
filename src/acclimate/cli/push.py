"""The command that publishes a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from acclimate.cli.command import Debug, Json, Quiet, RunFolder, run_command

if TYPE_CHECKING:
    from acclimate.screen import Screen


def push(
    run: RunFolder,
    name: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="The repository; it is created if it does not exist.")
    ],
    private: Annotated[bool, typer.Option("--private", help="Make it a private repository.")] = False,
    license_: Annotated[
        str | None, typer.Option("--license", help="The model's licence, as the hub names it: mit, cc-by-4.0, ...")
    ] = None,
    with_predictions: Annotated[
        bool, typer.Option("--with-predictions", help="Publish predictions.csv, with the names of the images.")
    ] = False,
    with_report: Annotated[
        bool, typer.Option("--with-report", help="Publish report.html, with names and small images of both domains.")
    ] = False,
    with_reference: Annotated[
        bool, typer.Option("--with-reference", help="Publish the sample of the target's features, for watch.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Publish a run's model on the Hugging Face Hub, with a card that says how its figures were obtained.

    No image, no name of one and no path goes along unless it is asked for. acclimate.load("hf://OWNER/NAME") reads it.
    """

    def work(screen: Screen) -> None:
        from acclimate.runs import hub

        published = hub.push(
            run,
            name,
            private=private,
            license=license_,
            with_predictions=with_predictions,
            with_report=with_report,
            with_reference=with_reference,
        )
        screen.say(f"The model is on {published}; use it as hf://{name}.")
        if license_ is None:
            screen.say("Its card names no licence, since none was given: --license adds one.")
        screen.show_json({"url": published, "load": f"hf://{name}", "license": license_})

    run_command(work, json=json, quiet=quiet, debug=debug)
