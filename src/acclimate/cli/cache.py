"""The commands that look after the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from acclimate.cli.command import Debug, Json, Quiet, run_command
from acclimate.errors import OptionError

if TYPE_CHECKING:
    from acclimate.cache.upkeep import Freed
    from acclimate.screen import Screen


cache_app = typer.Typer(help="Manage the cache of features.", no_args_is_help=True)


@cache_app.command("list")
def cache_list(json: Json = False, debug: Debug = False) -> None:
    """List what the cache of features holds, the most recently used first."""

    def work(screen: Screen) -> None:
        from acclimate.cache import upkeep
        from acclimate.cache.content import stores_folder
        from acclimate.cli.show import show_table

        entries = upkeep.entries()
        headings, rows = upkeep.as_table(entries)
        total = sum(entry.bytes for entry in entries)
        folder = stores_folder()
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
    """Delete all cached features, and nothing else. They are computed again when they are needed."""

    def work(screen: Screen) -> None:
        from acclimate.cache import upkeep
        from acclimate.cache.content import stores_folder

        entries = upkeep.entries()
        size = f"{sum(entry.bytes for entry in entries) / 1e9:.2f} GB"
        if entries and not yes:
            _confirm(f"Delete {len(entries):,} entries of {size} from {stores_folder()}?")
        _show_freed(upkeep.clear(), screen)

    run_command(work, json=json, quiet=quiet, debug=debug)


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
