"""The commands that look after the cache."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from acclimate.cli.command import Debug, Json, Quiet, run_command, with_settings
from acclimate.errors import OptionError
from acclimate.settings import OF_FEATURES

if TYPE_CHECKING:
    from acclimate.cache.upkeep import Freed
    from acclimate.runs.fill import Data
    from acclimate.screen import Screen


cache_app = typer.Typer(help="Manage the cache of features.", no_args_is_help=True)


@cache_app.command("fill")
@with_settings(OF_FEATURES, unset=True)
def cache_fill(
    given: dict[str, Any],
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA...", help="The images of a run, source and target, as fit takes them; or a grid's .toml file."
        ),
    ],
    shard: Annotated[
        str | None,
        typer.Option(
            help="Compute one part of several alone: I/N, from 0, or slurm, pbs, lsf, sge, k8s in the job of an array.",
            rich_help_panel="Machine",
        ),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Of a grid: the folder that the domains lie in.", rich_help_panel="Data")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compute the features of images for the runs that will read them, which then compute none.

    acclimate cache fill photos/ sketches/

    The same command goes on where it was interrupted. Name the settings of the runs: other ones read other features.
    """

    def work(screen: Screen) -> None:
        from acclimate.cache.content import stores_folder
        from acclimate.cli.show import show_table
        from acclimate.runs.fill import WHOLE, fill
        from acclimate.shard import shard_of

        part = WHOLE if shard is None else shard_of(shard, os.environ)
        filled = fill(_asked(data, root, given), screen, shard=part)
        rows = [
            [entry.data, entry.backbone, entry.level, entry.tune, entry.extractor, f"{entry.images:,}"]
            for entry in filled
        ]
        told = [f"{skipped:,} more cannot be read."] if (skipped := sum(entry.skipped for entry in filled)) else []
        told += [f"This is part {part} of the images."] if part != WHOLE else []
        headings = ["data", "backbone", "level", "tune", "extractor", "images"]
        show_table(screen, "Features in the cache", headings, rows, *told)
        screen.show_json({"folder": str(stores_folder()), "filled": [entry._asdict() for entry in filled]})

    goes_on = "the same command goes on where it stopped"
    run_command(work, json=json, quiet=quiet, debug=debug, computes=True, goes_on=goes_on)


@cache_app.command("list")
def cache_list(json: Json = False, debug: Debug = False) -> None:
    """List the features and the converted networks that the cache holds, the most recently used first."""

    def work(screen: Screen) -> None:
        from acclimate.cache import upkeep
        from acclimate.cli.show import show_table
        from acclimate.files import cache_folder

        entries = upkeep.entries()
        headings, rows = upkeep.as_table(entries)
        total = sum(entry.bytes for entry in entries)
        folder = cache_folder()
        show_table(screen, "Cached features", headings, rows, f"{total / 1e9:.2f} GB in {folder}.")
        screen.show_json({"folder": str(folder), "bytes": total, "entries": [entry.as_dict() for entry in entries]})

    run_command(work, json=json, quiet=False, debug=debug)


@cache_app.command("prune")
def cache_prune(
    older_than: Annotated[
        float | None, typer.Option(metavar="DAYS", help="Also delete what has not been used for this many days.", min=0)
    ] = None,
    larger_than: Annotated[
        float | None,
        typer.Option(metavar="GB", help="Delete the least recently used until the cache is no larger.", min=0),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Delete the features of images that have changed or are gone, and on request more."""

    def work(screen: Screen) -> None:
        from acclimate.cache import upkeep

        limit = None if larger_than is None else larger_than * upkeep.GB
        _show_freed(upkeep.prune(older_than=older_than, larger_than=limit), screen)

    run_command(work, json=json, quiet=quiet, debug=debug)


@cache_app.command("clear")
def cache_clear(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Delete all cached features and converted networks, and nothing else. What is needed is computed again."""

    def work(screen: Screen) -> None:
        from acclimate.cache import upkeep
        from acclimate.files import cache_folder

        entries = upkeep.entries()
        size = f"{sum(entry.bytes for entry in entries) / 1e9:.2f} GB"
        if entries and not yes:
            _confirm(f"Delete {len(entries):,} entries of {size} from {cache_folder()}?")
        _show_freed(upkeep.clear(), screen)

    run_command(work, json=json, quiet=quiet, debug=debug)


def _asked(data: list[str], root: Path | None, given: dict[str, Any]) -> list[Data]:
    """The runs whose features are asked for: one on these data, or those of a grid."""
    from acclimate.data.read import read_target
    from acclimate.runs.fill import Data
    from acclimate.settings import Settings

    read = cache(read_target)
    if not any(_is_grid(spec) for spec in data):
        if root is not None:
            raise OptionError("--root goes with a grid.")
        domains = tuple(map(read, data))
        return [Data(Settings.of(source=data[0], target=data[-1], **given), domains)]
    if len(data) > 1:
        raise OptionError("A grid names its data itself: give it alone.")
    if "method" in given:
        raise OptionError("A grid names its methods itself: leave out --method.")
    from acclimate.bench.grid import grid_of, settings_of

    grid = grid_of(data[0], root=root, overrides=given)
    cells = [(row, task) for row in grid.rows for task in grid.tasks]
    runs = [settings_of(grid, row, task, grid.seeds[0]) for row, task in cells]
    return [Data(run, tuple(read(spec) for spec in (run.source, run.target, run.test) if spec)) for run in runs]


def _is_grid(spec: str) -> bool:
    from acclimate.bench import papers

    return spec.endswith(".toml") or (spec in papers.names() and not Path(spec).exists())


def _confirm(question: str) -> None:
    try:
        sure = typer.confirm(question, err=True)
    except typer.Abort:  # nobody is there to answer
        raise OptionError("Nothing is deleted without an answer: use --yes.") from None
    if not sure:
        raise OptionError("Nothing was deleted.")


def _show_freed(freed: Freed, screen: Screen) -> None:
    for path in freed.busy:
        screen.warn(f"{path} is in use and stays: try again later.")
    screen.say(f"{freed.bytes / 1e9:.2f} GB are free again ({freed.entries:,} entries, and {freed.rows:,} other rows).")
    screen.show_json(freed.as_dict())
