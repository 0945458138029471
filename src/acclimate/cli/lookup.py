"""The commands that look things up: methods, backbones and data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from acclimate.cli.command import Debug, Json, Quiet, run_command
from acclimate.errors import DataError, OptionError, brief
from acclimate.methods import options, registry

if TYPE_CHECKING:
    from acclimate.screen import Screen


def list_methods(
    name: Annotated[
        str | None, typer.Argument(help="Show the description and options of this one, which may be a file.py:Class.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the methods, or describe one."""

    def work(screen: Screen) -> None:
        from acclimate.cli.show import show_method, show_methods

        if name:
            described = options.describe(name)
            show_method(screen, described)
            screen.show_json([described])
            return
        listed = [options.describe(own) for own in registry.names()]
        others = [(of, *registry.package(entry)) for of, found in registry.installed().items() for entry in found]
        for of, package, _ in others:
            if registry.is_taken(of):
                screen.warn(f"The method {of} of the package {package} cannot be used: Acclimate has that name itself.")
        show_methods(screen, listed, others)
        origins = [{"name": of, "origin": {"package": package, "version": version}} for of, package, version in others]
        screen.show_json(listed + origins)

    run_command(work, json=json, quiet=False, debug=debug)


def backbones(
    pattern: Annotated[str, typer.Argument(help="A part of the name, for example resnet50.")] = "",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the backbones; without a part of a name, only those that need no download."""

    def work(screen: Screen) -> None:
        from acclimate.cli.show import show_backbones
        from acclimate.networks.backbones import list_backbones

        found = list_backbones(pattern)
        if not found:
            raise OptionError(f"No backbone has {pattern!r} in its name: acclimate backbones resnet lists the ResNets.")
        shown = found if pattern else [info for info in found if not info.downloads]
        show_backbones(screen, shown)
        if not pattern:
            screen.say(f"{len(found) - len(shown):,} more are timm's: acclimate backbones PATTERN finds them by name.")

    run_command(work, json=json, quiet=False, debug=debug)


data_app = typer.Typer(help="Find, check and fetch the benchmarks of the field.", no_args_is_help=True)

BenchmarkName = Annotated[str, typer.Argument(metavar="BENCHMARK", help="Its name; acclimate data list lists them.")]


@data_app.command("list")
def data_list(
    name: Annotated[str | None, typer.Argument(metavar="BENCHMARK", help="Show what is known about this one.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the benchmarks, or describe one."""

    def work(screen: Screen) -> None:
        from acclimate.cli.show import show_benchmark, show_benchmarks
        from acclimate.datasets import catalogue

        if name:
            show_benchmark(screen, catalogue.describe(catalogue.load(name)))
        else:
            show_benchmarks(screen, [catalogue.describe(catalogue.load(n)) for n in catalogue.names()])

    run_command(work, json=json, quiet=False, debug=debug)


@data_app.command("check")
def data_check(
    benchmark: BenchmarkName,
    root: Annotated[Path, typer.Option(help="The folder that holds it, in any known layout.")],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Count a benchmark's images and compare them with what is published, opening none.

    The exit code is 0 if what is there is as published, even if domains are missing, and 2 if it is not or if no task
    can be run.
    """

    def work(screen: Screen) -> None:
        from acclimate.cli.show import show_check
        from acclimate.datasets import catalogue
        from acclimate.datasets.check import check

        report = check(catalogue.load(benchmark), root)
        show_check(screen, report.as_dict())
        if verdict := report.verdict():
            raise DataError(verdict)

    run_command(work, json=json, quiet=False, debug=debug)


@data_app.command("get")
def data_get(
    benchmark: BenchmarkName,
    root: Annotated[Path, typer.Option(help="The folder to put it into.")],
    sha256: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE=HEX", help="The checksum of a file that is published without one. Repeatable."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fetch what a benchmark publishes under direct links, and leave out what is there already."""

    def work(screen: Screen) -> None:
        from acclimate.datasets import catalogue, download

        wanted = catalogue.load(benchmark)
        known = dict(_checksum(given) for given in sha256 or [])
        if names := download.unverified(wanted, root, known):
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            screen.warn(
                f"Nobody has published a checksum of {names[0]}{more}, and nothing else tells whether somebody altered "
                f"it on its way: if you know one, give it with --sha256 {names[0]}=HEX."
            )
        made = download.get(wanted, root, screen.track, known=known)
        terms = wanted.licence or f"see {wanted.page}"
        screen.say(f"{len(made)} of {len(wanted.downloads)} parts were fetched into {root}. Terms of use: {terms}.")
        screen.show_json({"benchmark": wanted.name, "fetched": [str(path) for path in made]})

    run_command(work, json=json, quiet=quiet, debug=debug, goes_on="the same command goes on where it stopped")


def _checksum(given: str) -> tuple[str, str]:
    name, separator, digest = given.partition("=")
    if not separator:
        raise OptionError(f"--sha256 takes a file's name and its checksum, as in train.tar=HEX, not {brief(given)}.")
    return name, digest.lower()
