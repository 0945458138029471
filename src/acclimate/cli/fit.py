"""The commands that adapt: fit and demo."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from acclimate.cli.command import FROM_CHECKPOINT, Debug, Json, Quiet, run_command, with_settings
from acclimate.errors import AcclimateError, OptionError, brief
from acclimate.methods import registry
from acclimate.methods.options import parse_options
from acclimate.processes import MOST_AT_ONCE
from acclimate.settings import SETTINGS, Recipe, Settings

if TYPE_CHECKING:
    from acclimate.screen import Screen


@with_settings(SETTINGS)
def fit(
    given: dict[str, Any],
    out: Annotated[Path, typer.Option(help="The run directory to write.", rich_help_panel="Data")],
    source_: Annotated[str | None, typer.Argument(metavar="SOURCE", help="As --source.", show_default=False)] = None,
    target_: Annotated[str | None, typer.Argument(metavar="TARGET", help="As --target.", show_default=False)] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="A method's option. Repeatable.", rich_help_panel="Method"),
    ] = None,
    members: Annotated[
        str | None,
        typer.Option(
            help="The members of a consensus, separated by commas: names that acclimate methods lists, or the papers' "
            "names.",
            rich_help_panel="Method",
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Train source-only too, and show what adaptation gained.", rich_help_panel="Method"
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier run in --out.", rich_help_panel="Data")
    ] = False,
    with_report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write report.html as well.", rich_help_panel="Data")
    ] = True,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Members of a consensus to train at a time. Default: one for each core; one on a GPU.",
            min=1,
            max=MOST_AT_ONCE,
            rich_help_panel="Machine",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Adapt a classifier from a labelled source to an unlabelled target.

    acclimate fit photos/ sketches/ --out runs/sketches

    The same command goes on where an interrupted run stopped. Started by torchrun, several processes or GPUs train one
    run together.
    """

    def work(screen: Screen) -> None:
        from acclimate.cli.show import show_run
        from acclimate.machine import jobs_that_pay
        from acclimate.parallel import world
        from acclimate.runs.fit import fit as adapt

        domains = _domains(given, source_, target_)
        options = parse_options(given["method"], set_ or [])
        if members is not None:
            options["members"] = members  # refused, like any other option, by a method that has none
        settings = Settings.of(**{**given, **domains}, options=options)
        record = adapt(
            settings,
            out,
            screen,
            command=sys.argv[1:],
            compare=compare,
            overwrite=overwrite,
            jobs=jobs or jobs_that_pay(settings.device),
        )
        if not world().leads:
            return
        if with_report:
            _write_report(out, screen, given["method"], given["backbone"])
        show_run(record, out, screen)

    run_command(work, json=json, quiet=quiet, debug=debug, computes=True, goes_on=FROM_CHECKPOINT, together=True)


def _domains(given: dict[str, Any], source: str | None, target: str | None) -> dict[str, str]:
    """The source and the target, each named as an argument or by its option."""
    found: dict[str, str] = {}
    for name, by_place in (("source", source), ("target", target)):
        by_option = given.get(name)
        if by_option is not None and by_place is not None:
            raise OptionError(
                f"The {name} is named twice, as {brief(by_place)} and by --{name} {brief(by_option)}: name it once."
            )
        spec = by_option if by_place is None else by_place
        if spec is not None:
            found[name] = spec
    missing = [name for name in ("source", "target") if name not in found]
    if missing:
        raise OptionError(f"There is no {' and no '.join(missing)}: acclimate fit SOURCE TARGET --out DIR.")
    return found


def demo(
    out: Annotated[Path, typer.Option(help="Where the images and the runs are written.")] = Path("runs/demo"),
    method: Annotated[
        str, typer.Option(help="The method: one that acclimate methods lists, or path/to/file.py:Class.")
    ] = "dann",
    steps: Annotated[int, typer.Option(help="Steps of training.")] = 600,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the method's earlier run, made with other steps.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Adapt from 1,797 scanned digits (UCI) to 5,000 of MNIST, in about a minute and without a download.

    The digits are written as folders of images, and take the way that your own folders would. The network is LeNet,
    trained from scratch, as in the papers' experiments on digits.
    """

    def work(screen: Screen) -> None:
        from acclimate.cli.show import show_run
        from acclimate.datasets.digits import write_digits
        from acclimate.runs.fit import fit as adapt

        Recipe.of(registry.load(method), steps=steps)  # mistakes are told before anything is written
        source, target = write_digits(out / "images")
        settings = Settings.of(source=str(source), target=str(target), method=method, backbone="lenet", steps=steps)
        run = out / registry.shown(method)
        record = adapt(settings, run, screen, command=sys.argv[1:], compare=True, overwrite=overwrite)
        _write_report(run, screen, method, "lenet")
        show_run(record, run, screen)

    run_command(work, json=json, quiet=quiet, debug=debug, computes=True, goes_on=FROM_CHECKPOINT)


def _write_report(run: Path, screen: Screen, method: str, backbone: str) -> None:
    """The report of a run that has been made, unless it is there already; the run is none the worse without it."""
    from acclimate.report import page as report

    page, record = run / "report.html", run / "record.json"
    if page.exists() and page.stat().st_mtime >= record.stat().st_mtime:
        return
    try:
        for sentence in report.write(run, method=method, backbone=backbone, track=screen.track).left_out:
            screen.warn(sentence)
    except AcclimateError as error:
        screen.warn(f"There is no report: {error}")
