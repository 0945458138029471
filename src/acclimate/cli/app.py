"""The command line. `--help` imports no torch, so it answers at once; each command imports what it needs."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import acclimate
from acclimate.errors import AcclimateError, DataError, OptionError
from acclimate.methods import registry

if TYPE_CHECKING:
    from acclimate.bench.tables import Sheet
    from acclimate.cache.upkeep import Freed
    from acclimate.reporting import Screen


DATA_FORMS = (
    "a folder of class folders, an image list (.txt, a line each: path label), a CSV with the columns path and label, "
    "or an .npz with x and y"
)
OWN = "Default: the method's own, mostly"
FROM_CHECKPOINT = "the same command, without --overwrite, goes on from the last checkpoint"
app = typer.Typer(
    name="acclimate",
    help="Adapt an image classifier to a new domain, without labels there.\n\n"
    "Begin with [bold]acclimate demo[/bold], then [bold]acclimate fit --source DIR --target DIR --out DIR[/bold].",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress, only results and warnings.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", envvar="ACCLIMATE_DEBUG")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU if there is one.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder that fit wrote with --out.")]


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


@app.command(rich_help_panel="Adapt")
def fit(
    source: Annotated[str, typer.Option(help=f"Labelled images: {DATA_FORMS}.", rich_help_panel="Data")],
    target: Annotated[
        str,
        typer.Option(
            help="Images of the domain to adapt to, in the same forms or as a flat folder. Labels in it, if any, are "
            "used to measure the result and for nothing else.",
            rich_help_panel="Data",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The run directory to write.", rich_help_panel="Data")],
    test: Annotated[
        str | None,
        typer.Option(
            help="Labelled images of the target's domain that stay out of training, to measure on instead of the "
            "target itself.",
            rich_help_panel="Data",
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="The method; acclimate methods lists them.", rich_help_panel="Method")
    ] = "wemnet",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="A method's option. Repeatable.", rich_help_panel="Method"),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Train source-only too, and show what adaptation gained.", rich_help_panel="Method"
        ),
    ] = False,
    backbone: Annotated[
        str, typer.Option(help="The network; acclimate backbones lists them.", rich_help_panel="Network")
    ] = "efficientnet_lite0",
    weights: Annotated[
        Path | None,
        typer.Option(help="A file of weights for it: .safetensors, .pth or .pt.", rich_help_panel="Network"),
    ] = None,
    tune: Annotated[
        Literal["auto", "head", "top", "all"],
        typer.Option(
            help="Train the head on frozen features that are computed once, the backbone's top stage as well, or all "
            "of it. auto: head on a CPU, all on a GPU and for networks without pretrained weights.",
            rich_help_panel="Network",
        ),
    ] = "auto",
    bottleneck: Annotated[
        int,
        typer.Option(
            help="Length of the feature that methods work on; 0: the backbone's own.", rich_help_panel="Network"
        ),
    ] = 256,
    augment: Annotated[
        Literal["auto", "none", "flip", "crop", "crop+flip"],
        typer.Option(
            help="Random views in training. Cached features know none and flip. auto: crop+flip where a pretrained "
            "backbone is trained, else none.",
            rich_help_panel="Network",
        ),
    ] = "auto",
    steps: Annotated[int, typer.Option(help="Steps of training.", rich_help_panel="Training")] = 1500,
    batch_size: Annotated[int, typer.Option(help="Images a step from each domain.", rich_help_panel="Training")] = 32,
    optimizer: Annotated[
        Literal["sgd", "adam"] | None,
        typer.Option(help=f"SGD with Nesterov momentum, or Adam. {OWN} sgd.", rich_help_panel="Training"),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help=f"Learning rate of new layers. {OWN} 0.01.", rich_help_panel="Training")
    ] = None,
    backbone_lr: Annotated[
        float | None,
        typer.Option(help=f"Multiplier of it for pretrained layers. {OWN} 0.1.", rich_help_panel="Training"),
    ] = None,
    momentum: Annotated[
        float | None, typer.Option(help=f"Momentum, or Adam's beta 1. {OWN} 0.9.", rich_help_panel="Training")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help=f"Weight decay. {OWN} 0.001.", rich_help_panel="Training")
    ] = None,
    schedule: Annotated[
        Literal["paper", "tll", "constant"] | None,
        typer.Option(
            help="How the learning rate falls and the adaptation sets in: over the run (paper), over a fixed number of "
            f"steps as in Transfer-Learning-Library (tll), or a constant rate. {OWN} paper.",
            rich_help_panel="Training",
        ),
    ] = None,
    decay: Annotated[
        float | None,
        typer.Option(help=f"a of the learning rate lr (1 + a progress)^-0.75. {OWN} 10.", rich_help_panel="Training"),
    ] = None,
    clip: Annotated[float | None, typer.Option(help="Largest norm of a gradient.", rich_help_panel="Training")] = None,
    accumulate: Annotated[
        int, typer.Option(help="Batches whose gradients are averaged into a step.", rich_help_panel="Training")
    ] = 1,
    seed: Annotated[int, typer.Option(help="Seed of everything random.", rich_help_panel="Training")] = 0,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, or auto: a GPU if there is one.", rich_help_panel="Machine")
    ] = "auto",
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        typer.Option(help="Of the backbone. auto: bf16 where the hardware is made for it.", rich_help_panel="Machine"),
    ] = "auto",
    cache_precision: Annotated[
        Literal["fp16", "bf16", "fp32"],
        typer.Option(help="Of cached features; fp32 takes twice the room.", rich_help_panel="Machine"),
    ] = "fp16",
    keep_images: Annotated[
        Literal["auto", "memory", "disk"],
        typer.Option(help="Where images are kept, resized, when they are trained on.", rich_help_panel="Machine"),
    ] = "auto",
    checkpoint_seconds: Annotated[
        float, typer.Option(help="Seconds between checkpoints.", rich_help_panel="Machine")
    ] = 10.0,
    track: Annotated[
        Literal["none", "tensorboard", "mlflow", "wandb"],
        typer.Option(help="Show the training in this tracker as well.", rich_help_panel="Machine"),
    ] = "none",
    allow_class_mismatch: Annotated[
        bool,
        typer.Option(
            "--allow-class-mismatch",
            help="Accept a labelled target whose classes are not the source's.",
            rich_help_panel="Data",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier run in --out.", rich_help_panel="Data")
    ] = False,
    with_report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write report.html as well.", rich_help_panel="Data")
    ] = True,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Adapt a classifier from a labelled source to an unlabelled target.

    The same command goes on where an interrupted run stopped.
    """

    def work(screen: Screen) -> None:
        from acclimate.runs import fit as experiment
        from acclimate.training import Recipe

        recipe = Recipe.of(
            registry.load(method),
            steps=steps,
            batch_size=batch_size,
            optimizer=optimizer,
            lr=lr,
            backbone_lr=backbone_lr,
            momentum=momentum,
            weight_decay=weight_decay,
            schedule=schedule,
            decay=decay,
            clip=clip,
            accumulate=accumulate,
        )
        settings = experiment.Settings(
            source=source,
            target=target,
            test=test,
            method=method,
            options=registry.parse_options(method, set_ or []),
            backbone=backbone,
            weights=str(weights) if weights else None,
            tune=tune,
            bottleneck=bottleneck or None,
            augment=augment,
            recipe=recipe,
            seed=seed,
            device=device,
            precision=precision,
            cache_precision=cache_precision,
            allow_class_mismatch=allow_class_mismatch,
            keep_images=keep_images,
            checkpoint_seconds=checkpoint_seconds,
            track=track,
        )
        record = experiment.fit(settings, out, screen, compare=compare, overwrite=overwrite)
        if with_report:
            _write_report(out, screen)
        experiment.show(record, out, screen)

    _run(work, json=json, quiet=quiet, debug=debug, goes_on=FROM_CHECKPOINT)


@app.command(rich_help_panel="Adapt")
def demo(
    out: Annotated[Path, typer.Option(help="Where the images and the runs are written.")] = Path("runs/demo"),
    method: Annotated[str, typer.Option(help="The method; acclimate methods lists them.")] = "dann",
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
        from acclimate.datasets.digits import write_digits
        from acclimate.runs import fit as experiment
        from acclimate.training import Recipe

        recipe = Recipe.of(registry.load(method), steps=steps)  # mistakes are told before anything is written
        source, target = write_digits(out / "images")
        settings = experiment.Settings(
            source=str(source),
            target=str(target),
            method=method,
            backbone="lenet",
            recipe=recipe,
        )
        record = experiment.fit(settings, out / method, screen, compare=True, overwrite=overwrite)
        _write_report(out / method, screen)
        experiment.show(record, out / method, screen)

    _run(work, json=json, quiet=quiet, debug=debug, goes_on=FROM_CHECKPOINT)


@app.command(rich_help_panel="Compare")
def bench(
    out: Annotated[Path, typer.Option(help="The folder for the runs and records.jsonl.", rich_help_panel="Grid")],
    grid: Annotated[
        str | None, typer.Argument(metavar="[GRID]", help="A grid's .toml file, or the name of a paper's table.")
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option(help="Without a grid: the benchmark.", rich_help_panel="Grid")
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="The folder that the domains lie in.", rich_help_panel="Grid")
    ] = None,
    methods_: Annotated[
        str | None,
        typer.Option("--methods", help="Take these rows alone, with commas between.", rich_help_panel="Grid"),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(help="Take these tasks alone: SOURCE-TARGET,...", rich_help_panel="Grid")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Take these seeds, such as 0,1,2.", rich_help_panel="Grid")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of training.", rich_help_panel="Every run")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images a step from each domain.", rich_help_panel="Every run")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of new layers.", rich_help_panel="Every run")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="paper, tll or constant, as in fit.", rich_help_panel="Every run")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="The network.", rich_help_panel="Every run")] = None,
    weights: Annotated[
        str | None, typer.Option(help="A file of weights for the network.", rich_help_panel="Every run")
    ] = None,
    tune: Annotated[
        str | None, typer.Option(help="auto, head, top or all, as in fit.", rich_help_panel="Every run")
    ] = None,
    bottleneck: Annotated[
        int | None,
        typer.Option(help="Length of the feature; 0: the backbone's own.", rich_help_panel="Every run"),
    ] = None,
    augment: Annotated[str | None, typer.Option(help="Random views, as in fit.", rich_help_panel="Every run")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or auto.", rich_help_panel="Machine")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16.", rich_help_panel="Machine")] = None,
    cache_precision: Annotated[
        str | None, typer.Option(help="fp16, bf16 or fp32, as in fit.", rich_help_panel="Machine")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Runs at the same time.", rich_help_panel="Machine")] = 1,
    threads: Annotated[
        int,
        typer.Option(help="Threads of a run; runs with equally many end with equal bits.", rich_help_panel="Machine"),
    ] = 1,
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
        from acclimate.bench import grid as grids
        from acclimate.bench import runner, tables

        overrides = {
            "steps": steps,
            "batch_size": batch_size,
            "lr": lr,
            "schedule": schedule,
            "backbone": backbone,
            "weights": weights,
            "tune": tune,
            "bottleneck": bottleneck,
            "augment": augment,
            "device": device,
            "precision": precision,
            "cache_precision": cache_precision,
        }
        made = grids.grid_of(
            grid,
            benchmark=benchmark,
            root=root,
            only=_listed(methods_),
            tasks=_listed(tasks),
            seeds=_seeds(seeds),
            overrides={name: value for name, value in overrides.items() if value is not None},
        )
        records = runner.bench(made, out, screen, jobs=jobs, threads=threads, keep_models=keep_models)
        _show_sheets(tables.sheets(records), screen)
        screen.show_json(runner.summary(records, out))
        runner.check(records, out)

    _run(work, json=json, quiet=quiet, debug=debug, goes_on="the same command goes on where it stopped")


@app.command(rich_help_panel="Compare")
def table(
    records: Annotated[
        list[Path], typer.Argument(metavar="BENCH...", help="Folders that bench wrote with --out, or their records.")
    ],
    form: Annotated[
        Literal["terminal", "markdown", "latex", "csv"], typer.Option("--format", help="How it is written.")
    ] = "terminal",
    metric: Annotated[
        Literal["accuracy", "mean-per-class", "both", "domain-error"] | None,
        typer.Option(help="Default: what the benchmark's tables report, and both where that is the mean per class."),
    ] = None,
    published: Annotated[
        str | None, typer.Option(help="Put a paper's table beside: wemnet-table1, ..., tada-table2, digits.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="The row that the others are compared with. Default: source-only.")
    ] = None,
    oracle: Annotated[
        bool, typer.Option("--oracle", help="The best step by the target's labels; no record holds it.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Make tables of benches: rows by tasks, mean and deviation over seeds, beside what is published."""

    def work(screen: Screen) -> None:
        from acclimate.bench import tables

        if oracle:
            raise OptionError(
                "The records hold the last step alone, because choosing a step by the target's labels would use them: "
                "leave out --oracle."
            )
        name = metric.replace("-", "_") if metric else None
        sheets = tables.sheets(tables.read_records(records), metric=name, published=published, baseline=baseline)
        if json:
            screen.show_json([tables.as_dict(sheet) for sheet in sheets])
        elif form == "terminal":
            _show_sheets(sheets, screen)
        else:
            typer.echo(tables.FORMATS[form](sheets), nl=False)

    _run(work, json=json, quiet=False, debug=debug)


def _show_sheets(sheets: Iterable[Sheet], screen: Screen) -> None:
    for sheet in sheets:
        screen.show_table(sheet.title, sheet.headings, sheet.rows, " ".join(sheet.notes))


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _seeds(text: str | None) -> list[int]:
    try:
        return [int(part) for part in _listed(text)]
    except ValueError:
        raise OptionError(f"--seeds takes whole numbers with commas between, not {text!r}.") from None


@app.command(rich_help_panel="Use")
def predict(
    run: Run,
    data: Annotated[str, typer.Argument(metavar="DATA", help=f"The images: a folder, or {DATA_FORMS}.")],
    out: Annotated[Path, typer.Option(help="The CSV to write: path, predicted, confidence, one column a class.")],
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Classify images with a model that fit has made."""

    def work(screen: Screen) -> None:
        from acclimate.runs import fit as experiment

        result = experiment.predict_images(run, data, out, screen, device=device)
        screen.say(f"{result['items']:,} predictions are in {out}.")
        screen.show_json(result)

    _run(work, json=json, quiet=quiet, debug=debug)


@app.command(rich_help_panel="Use")
def evaluate(
    run: Run,
    data: Annotated[str, typer.Argument(metavar="LABELLED", help=f"Labelled images: {DATA_FORMS}.")],
    allow_class_mismatch: Annotated[
        bool, typer.Option("--allow-class-mismatch", help="Score the classes that the model and the data share.")
    ] = False,
    device: Device = "auto",
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure a model on labelled images."""

    def work(screen: Screen) -> None:
        from acclimate.runs import fit as experiment

        name, scores = experiment.evaluate_images(run, data, screen, device=device, allow_mismatch=allow_class_mismatch)
        screen.show_scores({name: scores})
        screen.show_json(scores.as_dict())

    _run(work, json=json, quiet=quiet, debug=debug)


@app.command(rich_help_panel="Use")
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder that fit or bench wrote with --out.")],
    out: Annotated[Path | None, typer.Option(help="The file to write; RUN/report.html if none is named.")] = None,
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the report of a run or a bench: one HTML file with its figures, images and what the model looks at.

    The images are read anew from where the run found them; what cannot be shown without them is left out.
    """

    def work(screen: Screen) -> None:
        from acclimate.bench import tables
        from acclimate.report import page as report

        if (run / "records.jsonl").exists():
            written = report.write_bench(tables.read_records([run]), out or run / "report.html")
        else:
            written = report.write(run, out, track=screen.track)
        for sentence in written.left_out:
            screen.warn(sentence)
        screen.say(f"The report is {written.path}, {written.size / 1e6:.1f} MB.")
        screen.show_json({"report": str(written.path), "bytes": written.size, "left_out": written.left_out})
        if open_:
            typer.launch(written.path.absolute().as_uri())

    _run(work, json=json, quiet=quiet, debug=debug)


@app.command("methods", rich_help_panel="Look up")
def list_methods(
    name: Annotated[str | None, typer.Argument(help="Show this method's description and options.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the methods, or describe one."""

    def work(screen: Screen) -> None:
        described = [registry.describe(n) for n in ([name] if name else registry.names())]
        if json:
            screen.show_json(described)
        elif name:
            screen.show_method(described[0])
        else:
            screen.show_methods(described)

    _run(work, json=json, quiet=False, debug=debug)


@app.command(rich_help_panel="Look up")
def backbones(
    pattern: Annotated[str, typer.Argument(help="A part of the name, for example resnet50.")] = "",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the backbones; without a part of a name, only those that need no download."""

    def work(screen: Screen) -> None:
        from acclimate.networks.backbones import list_backbones

        found = list_backbones(pattern)
        if not found:
            raise OptionError(f"No backbone has {pattern!r} in its name: acclimate backbones resnet lists the ResNets.")
        shown = found if pattern else [info for info in found if not info.downloads]
        screen.show_backbones(shown)
        if not pattern:
            screen.say(f"{len(found) - len(shown):,} more are timm's: acclimate backbones PATTERN finds them by name.")

    _run(work, json=json, quiet=False, debug=debug)


data_app = typer.Typer(help="Find, check and fetch the benchmarks of the field.", no_args_is_help=True)
app.add_typer(data_app, name="data", rich_help_panel="Look up")
BenchmarkName = Annotated[str, typer.Argument(metavar="BENCHMARK", help="Its name; acclimate data list lists them.")]


@data_app.command("list")
def data_list(
    name: Annotated[str | None, typer.Argument(metavar="BENCHMARK", help="Show what is known of this one.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the benchmarks, or describe one."""

    def work(screen: Screen) -> None:
        from acclimate.datasets import catalogue

        if name:
            screen.show_benchmark(catalogue.describe(catalogue.load(name)))
        else:
            screen.show_benchmarks([catalogue.describe(catalogue.load(n)) for n in catalogue.names()])

    _run(work, json=json, quiet=False, debug=debug)


@data_app.command("check")
def data_check(
    benchmark: BenchmarkName,
    root: Annotated[Path, typer.Option(help="The folder that holds it, as unpacked or as you have it.")],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Count a benchmark's images and compare them with what is published, opening none.

    The exit code is 0 if what is there is as published, even if domains are missing, and 2 if it is not or if no task
    can be run.
    """

    def work(screen: Screen) -> None:
        from acclimate.datasets import catalogue
        from acclimate.datasets.check import check

        report = check(catalogue.load(benchmark), root)
        screen.show_check(report.as_dict())
        if verdict := report.verdict():
            raise DataError(verdict)

    _run(work, json=json, quiet=False, debug=debug)


@data_app.command("get")
def data_get(
    benchmark: BenchmarkName,
    root: Annotated[Path, typer.Option(help="The folder to put it into.")],
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fetch what a benchmark publishes under direct links, and leave out what is there already."""

    def work(screen: Screen) -> None:
        from acclimate.datasets import catalogue, download

        wanted = catalogue.load(benchmark)
        made = download.get(wanted, root, screen.track)
        terms = wanted.licence or f"see {wanted.page}"
        screen.say(f"{len(made)} of {len(wanted.downloads)} parts were fetched into {root}. Terms of use: {terms}.")
        screen.show_json({"benchmark": wanted.name, "fetched": [str(path) for path in made]})

    _run(work, json=json, quiet=quiet, debug=debug, goes_on="the same command goes on where it stopped")


cache_app = typer.Typer(help="Look after the cache of features.", no_args_is_help=True)
app.add_typer(cache_app, name="cache", rich_help_panel="Look up")


@cache_app.command("list")
def cache_list(json: Json = False, debug: Debug = False) -> None:
    """List what the cache of features holds, the most recently used first."""

    def work(screen: Screen) -> None:
        from acclimate.cache import upkeep
        from acclimate.cache.store import stores_folder

        entries = upkeep.entries()
        headings, rows = upkeep.as_table(entries)
        total = sum(entry.bytes for entry in entries)
        folder = stores_folder()
        screen.show_table("Cached features", headings, rows, f"{total / 1e9:.2f} GB in {folder}.")
        screen.show_json({"folder": str(folder), "bytes": total, "entries": [entry.as_dict() for entry in entries]})

    _run(work, json=json, quiet=False, debug=debug)


@cache_app.command("prune")
def cache_prune(
    older_than: Annotated[
        float | None, typer.Option(metavar="DAYS", help="Delete too what was last used so many days ago.", min=0)
    ] = None,
    larger_than: Annotated[
        float | None,
        typer.Option(metavar="GB", help="While the cache is larger, delete what has not been used for longest.", min=0),
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

    _run(work, json=json, quiet=quiet, debug=debug)


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
        from acclimate.cache.store import stores_folder

        entries = upkeep.entries()
        size = f"{sum(entry.bytes for entry in entries) / 1e9:.2f} GB"
        if entries and not yes:
            _confirm(f"Delete {len(entries):,} entries of {size} from {stores_folder()}?")
        _show_freed(upkeep.clear(), screen)

    _run(work, json=json, quiet=quiet, debug=debug)


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


def _write_report(run: Path, screen: Screen) -> None:
    """The report of a run that has been made, unless it is there already; the run is none the worse without it."""
    from acclimate.report import page as report

    page, record = run / "report.html", run / "record.json"
    if page.exists() and page.stat().st_mtime >= record.stat().st_mtime:
        return
    try:
        for sentence in report.write(run, track=screen.track).left_out:
            screen.warn(sentence)
    except AcclimateError as error:
        screen.warn(f"There is no report: {error}")


class Exit(int, Enum):
    """Exit codes."""

    MENDABLE = 2
    DEFECT = 1
    INTERRUPTED = 130


def _run(work: Callable[[Screen], None], *, json: bool, quiet: bool, debug: bool, goes_on: str = "") -> None:
    """Do the work of a command; an error ends it with one sentence and an exit code."""
    from acclimate.reporting import Screen

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


def main() -> Any:
    """The entry point of the command `acclimate`."""
    return app(prog_name="acclimate")


if __name__ == "__main__":
    sys.exit(main())
