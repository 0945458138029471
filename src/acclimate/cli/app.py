"""The command line. `--help` imports no torch, so it answers at once; each command imports what it needs."""

from __future__ import annotations

from typing import Annotated

import typer

import acclimate
from acclimate.cli.bench import bench, choose, table
from acclimate.cli.cache import cache_app
from acclimate.cli.fit import demo, fit
from acclimate.cli.label import label
from acclimate.cli.lookup import backbones, data_app, list_methods
from acclimate.cli.push import push
from acclimate.cli.use import evaluate, export, predict, report
from acclimate.cli.watch import watch

app = typer.Typer(
    name="acclimate",
    help="Adapt an image classifier to a new domain, without labels there.\n\n"
    "Begin with [bold]acclimate demo[/bold], then [bold]acclimate fit SOURCE TARGET --out DIR[/bold].",
    invoke_without_command=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def common(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """What all commands share."""
    if version:
        typer.echo(f"acclimate {acclimate.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command(rich_help_panel="Adapt")(fit)
app.command(rich_help_panel="Adapt")(demo)
app.command(rich_help_panel="Compare")(bench)
app.command(rich_help_panel="Compare")(table)
app.command(rich_help_panel="Compare")(choose)
app.command(rich_help_panel="Use")(predict)
app.command(rich_help_panel="Use")(evaluate)
app.command(rich_help_panel="Use")(label)
app.command(rich_help_panel="Use")(export)
app.command(rich_help_panel="Use")(report)
app.command(rich_help_panel="Use")(watch)
app.command(rich_help_panel="Use")(push)
app.command("methods", rich_help_panel="Look up")(list_methods)
app.command(rich_help_panel="Look up")(backbones)
app.add_typer(data_app, name="data", rich_help_panel="Look up")
app.add_typer(cache_app, name="cache", rich_help_panel="Look up")
