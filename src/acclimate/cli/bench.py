"""The commands that compare: bench and table."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from acclimate.cli.command import Debug, Device, Json, Quiet, run_command, with_settings
from acclimate.errors import OptionError
from acclimate.settings import OF_A_ROW

if TYPE_CHECKING:
    from acclimate.bench.tables import Sheet
    from acclimate.bench.workers import Executor
    from acclimate.screen import Screen


@with_settings(OF_A_ROW, unset=True)
def bench(
    given: dict[str, Any],
    out: Annotated[Path, typer.Option(help="The folder for the runs and records.jsonl.", rich_help_panel="Grid")],
    grid: Annotated[
        str | None, typer.Argument(metavar="[GRID]", help="A grid's .toml file, or the name of a paper's table.")
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option(help="Without a grid: the benchmark.", rich_help_panel="Grid")
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="The folder that holds the domains.", rich_help_panel="Grid")
    ] = None,
    methods_: Annotated[
        str | None,
        typer.Option("--methods", help="Run only these rows, separated by commas.", rich_help_panel="Grid"),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Run only these tasks: SOURCE-TARGET,...", rich_help_panel="Grid")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Run these seeds, such as 0,1,2.", rich_help_panel="Grid")] = None,
    jobs: Annotated[int, typer.Option(help="Runs at the same time.", rich_help_panel="Machine")] = 1,
    threads: Annotated[
        int,
        typer.Option(
            help="Threads of each run; runs with the same number end with the same bits.", rich_help_panel="Machine"
        ),
    ] = 1,
    shard: Annotated[
        str | None,
        typer.Option(
            help="Make only one part: I/N, from 0, or slurm, pbs, lsf, sge, k8s in the job of an array. The same "
            "command without --shard collects the parts.",
            rich_help_panel="Machine",
        ),
    ] = None,
    engine: Annotated[
        Literal["processes", "slurm", "dask"],
        typer.Option(help="What makes the runs: local processes, Slurm jobs, or Dask.", rich_help_panel="Machine"),
    ] = "processes",
    slurm: Annotated[
        str,
        typer.Option(
            help="What a Slurm job asks for: partition=gpu,time=60,gpus=1,memory=16,at_once=20. Minutes and GB.",
            rich_help_panel="Machine",
            show_default=False,
        ),
    ] = "",
    dask: Annotated[
        str | None,
        typer.Option(
            help="The address of a Dask scheduler. Default: a cluster on this machine, of --jobs workers.",
            rich_help_panel="Machine",
        ),
    ] = None,
    list_: Annotated[
        bool,
        typer.Option(
            "--list", help="Run nothing: print a fit command for each missing run.", rich_help_panel="Machine"
        ),
    ] = False,
    keep_models: Annotated[
        bool, typer.Option("--keep-models", help="Keep the models' weights.", rich_help_panel="Machine")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Run a grid: every row on every task with every seed.

    The same command goes on where it was interrupted, and never repeats a finished run.
    """

    def work(screen: Screen) -> None:
        from acclimate.bench import board, runner
        from acclimate.bench import grid as grids
        from acclimate.bench.shown import shown
        from acclimate.shard import shard_of

        part = shard_of(shard, os.environ) if shard is not None else None
        made = grids.grid_of(
            grid,
            benchmark=benchmark,
            root=root,
            only=_listed(methods_),
            tasks=_listed(tasks),
            seeds=_seeds(seeds),
            overrides=given,
        )
        if list_:
            for line in runner.commands(made, out, screen, threads=threads, shard=part):
                typer.echo(line)
            return
        with _executor(engine, out, jobs, threads, slurm, dask) as executor:
            records = runner.bench(
                made,
                out,
                screen,
                command=sys.argv[1:],
                jobs=jobs,
                threads=threads,
                keep_models=keep_models,
                shard=part,
                executor=executor,
            )
        if part is not None:
            screen.say(f"This is part {part}. The same command without --shard collects all parts.")
        elif not json:
            _show_sheets(shown(records, [out], screen=screen).sheets, screen)
        screen.show_json(board.summary(records, out))
        board.check(records, out)

    goes_on = "the same command goes on where it stopped"
    run_command(work, json=json, quiet=quiet, debug=debug, computes=True, goes_on=goes_on)


def table(
    records: Annotated[
        list[Path], typer.Argument(metavar="BENCH...", help="Folders that bench wrote with --out, or their records.")
    ],
    form: Annotated[
        Literal["terminal", "markdown", "latex", "csv"], typer.Option("--format", help="The output format.")
    ] = "terminal",
    metric: Annotated[
        Literal["accuracy", "mean-per-class", "both", "domain-error"] | None,
        typer.Option(help="Default: what the benchmark's tables report; both if that is the mean per class."),
    ] = None,
    published: Annotated[
        str | None, typer.Option(help="Add the figures of a paper's table: wemnet-table1, ..., tada-table2, digits.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="The row to compare the others with. Default: source-only.")
    ] = None,
    oracle: Annotated[
        bool, typer.Option("--oracle", help="The best step by the target's labels; no record holds it.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Make tables of benches: rows by tasks, mean and deviation over seeds, beside what is published."""

    def work(screen: Screen) -> None:
        from acclimate.bench import formats, tables
        from acclimate.bench.records import read_records
        from acclimate.bench.shown import shown

        if oracle:
            raise OptionError(
                "The records hold the last step alone, because choosing a step by the target's labels would use them: "
                "leave out --oracle."
            )
        name = metric.replace("-", "_") if metric else None
        of_benches = read_records(records)
        if form == "terminal" and not json:
            found = shown(of_benches, records, metric=name, published=published, baseline=baseline, screen=screen)
            _show_sheets(found.sheets, screen)
            return
        sheets = tables.sheets(of_benches, metric=name, published=published, baseline=baseline)
        if json:
            screen.show_json([tables.as_dict(sheet) for sheet in sheets])
        else:
            screen.write(formats.FORMATS[form](sheets))

    run_command(work, json=json, quiet=False, debug=debug)


def choose(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="BENCH...", help="The folder that bench wrote with --out; or several that fit wrote."),
    ],
    task: Annotated[str | None, typer.Option(help="Choose only on this task: SOURCE-TARGET.")] = None,
    form: Annotated[Literal["terminal", "csv"], typer.Option("--format", help="The output format.")] = "terminal",
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Choose among runs on one target without its labels, or say that it is undecided.

    A run is let in if it has kept the classes and the source; the one that agrees best with the vote of all that are
    let in is chosen, unless the leading validators contradict each other. No figure of it is an accuracy.
    """

    def work(screen: Screen) -> None:
        from acclimate.bench import choose as choosing
        from acclimate.bench.made import costs

        rankings = choosing.rank(runs, task=task, screen=screen, device=device)
        if form == "csv" and not json:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows(choosing.csv_rows(rankings))
            screen.write(text.getvalue())
            return
        of_rows = costs([run for ranking in rankings for run in ranking.runs.values()])
        _show_sheets([choosing.as_sheet(ranking, of_rows) for ranking in rankings], screen)
        screen.show_json([choosing.as_dict(ranking) for ranking in rankings])

    run_command(work, json=json, quiet=quiet, debug=debug, computes=True)


def _executor(
    engine: str, out: Path, jobs: int, threads: int, slurm: str, dask: str | None
) -> AbstractContextManager[Executor | None]:
    """What makes the runs of a bench; None for processes of this machine."""
    from acclimate.bench import engines

    if slurm and engine != "slurm":
        raise OptionError("--slurm goes with --engine slurm.")
    if dask is not None and engine != "dask":
        raise OptionError("--dask goes with --engine dask.")
    if engine == "dask":
        return engines.dask(dask, jobs, threads)
    return nullcontext(engines.slurm(out, threads, slurm) if engine == "slurm" else None)


def _show_sheets(sheets: Iterable[Sheet], screen: Screen) -> None:
    from acclimate.cli.show import show_table

    for sheet in sheets:
        marked = [[f"{cell} <" if getattr(cell, "best", False) else str(cell) for cell in row] for row in sheet.rows]
        told = ["<: the best of its column."] if any(cell.endswith(" <") for row in marked for cell in row) else []
        show_table(screen, sheet.title, sheet.headings, marked, *sheet.notes, *told)


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _seeds(text: str | None) -> list[int]:
    try:
        return [int(part) for part in _listed(text)]
    except ValueError:
        raise OptionError(f"--seeds takes whole numbers with commas between, not {text!r}.") from None
