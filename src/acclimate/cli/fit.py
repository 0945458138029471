"""The commands that adapt: fit and demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from acclimate.cli.command import DATA_FORMS, FROM_CHECKPOINT, Debug, Json, Quiet, run_command
from acclimate.errors import AcclimateError
from acclimate.methods import options, registry

if TYPE_CHECKING:
    from acclimate.screen import Screen


OWN = "Default: the method's own, mostly"


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
        from acclimate.cli import show
        from acclimate.runs.fit import fit as adapt
        from acclimate.settings import Recipe, Settings

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
        settings = Settings(
            source=source,
            target=target,
            test=test,
            method=method,
            options=options.parse_options(method, set_ or []),
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
        record = adapt(settings, out, screen, compare=compare, overwrite=overwrite)
        if with_report:
            _write_report(out, screen)
        show.show_run(record, out, screen)

    run_command(work, json=json, quiet=quiet, debug=debug, goes_on=FROM_CHECKPOINT)


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
        from acclimate.cli import show
        from acclimate.datasets.digits import write_digits
        from acclimate.runs.fit import fit as adapt
        from acclimate.settings import Recipe, Settings

        recipe = Recipe.of(registry.load(method), steps=steps)  # mistakes are told before anything is written
        source, target = write_digits(out / "images")
        settings = Settings(
            source=str(source),
            target=str(target),
            method=method,
            backbone="lenet",
            recipe=recipe,
        )
        record = adapt(settings, out / method, screen, compare=True, overwrite=overwrite)
        _write_report(out / method, screen)
        show.show_run(record, out / method, screen)

    run_command(work, json=json, quiet=quiet, debug=debug, goes_on=FROM_CHECKPOINT)


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
