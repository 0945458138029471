"""The commands that use a run: predict, evaluate and report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from acclimate.choices import PredictionFormat
from acclimate.cli.command import (
    BackboneAgain,
    Debug,
    Device,
    ExtractorAgain,
    Json,
    MethodAgain,
    Quiet,
    RunOrHub,
    run_command,
)
from acclimate.errors import OptionError
from acclimate.settings import DATA_FORMS

if TYPE_CHECKING:
    from acclimate.screen import Screen


def predict(
    run: RunOrHub,
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA...",
            help=f"The images: files, folders, {DATA_FORMS}, or - for a list of files on standard input.",
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option(help="The file to write, or - for standard output. Default without --link: standard output."),
    ] = None,
    form: Annotated[
        PredictionFormat | None,
        typer.Option(
            "--format",
            help="csv: path, predicted, confidence, one column for each class; jsonl: one JSON object a line; npz: "
            "arrays, for many classes. A file that ends in .jsonl or .npz needs no --format.",
        ),
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Write only this many of the most probable classes.")] = None,
    link: Annotated[Path | None, typer.Option(help="A new folder of links to the images, one folder a class.")] = None,
    min_confidence: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="With --link: images with less confidence go to the folder 'unsure'."),
    ] = None,
    escape_formulas: Annotated[
        bool,
        typer.Option(
            "--escape-formulas",
            help="For a spreadsheet: in a CSV, put an apostrophe before names that begin with =, +, -, @, a tab or a "
            "carriage return.",
        ),
    ] = False,
    method: MethodAgain = None,
    backbone: BackboneAgain = None,
    device: Device = "auto",
    extractor: ExtractorAgain = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Classify images with a model that fit has made."""

    def work(screen: Screen) -> None:
        from acclimate.runs import use
        from acclimate.runs.output import STDOUT, UNSURE

        if min_confidence is not None and link is None:
            raise OptionError("--min-confidence says which images --link puts apart: name a folder with --link.")
        to = out if out is not None or link is not None else STDOUT
        if json and to == STDOUT:
            raise OptionError(
                "With --json, a summary goes to standard output: name a file for the predictions with --out."
            )
        result = use.predict_images(
            run,
            data,
            to,
            screen,
            form=form,
            top=top,
            link=link,
            min_confidence=min_confidence,
            escape_formulas=escape_formulas,
            device=device,
            method=method,
            backbone=backbone,
            extractor=extractor,
        )
        if to not in (None, STDOUT):
            screen.say(f"{result['items']:,} predictions are in {to}.")
        if link is not None:
            apart = f", {result[UNSURE]:,} of them in {link / UNSURE}" if min_confidence is not None else ""
            screen.say(f"{result['items']:,} images are linked in {link}{apart}.")
        screen.show_json(result)

    run_command(work, json=json, quiet=quiet, debug=debug, computes=True)


def evaluate(
    run: RunOrHub,
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[LABELLED]",
            help=f"Labelled images: {DATA_FORMS}. With --labels, further runs if they were drawn for several.",
        ),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Instead of labelled images: the labels.csv of acclimate label, filled in.")
    ] = None,
    allow_class_mismatch: Annotated[
        bool, typer.Option("--allow-class-mismatch", help="Score the classes that the model and the data share.")
    ] = False,
    method: MethodAgain = None,
    backbone: BackboneAgain = None,
    device: Device = "auto",
    extractor: ExtractorAgain = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure a model on labelled images, or by a few labels of its target."""
    given = data or []

    def work(screen: Screen) -> None:
        if labels is not None:
            from acclimate.cli.label import show_answer
            from acclimate.runs.labels import answer

            show_answer(screen, answer([run, *map(Path, given)], labels))
            return
        if len(given) != 1:
            raise OptionError(
                "Name the labelled images behind RUN, one folder or file, or else labels with --labels: "
                "acclimate label draws the images that are worth labelling."
            )

        from acclimate.cli.show import show_scores
        from acclimate.runs import use
        from acclimate.schema import as_json

        name, scores = use.evaluate_images(
            run,
            given[0],
            screen,
            device=device,
            allow_mismatch=allow_class_mismatch,
            method=method,
            backbone=backbone,
            extractor=extractor,
        )
        show_scores(screen, {name: scores})
        screen.show_json(as_json(scores.record()))

    run_command(work, json=json, quiet=quiet, debug=debug, computes=True)


def export(
    run: RunOrHub,
    out: Annotated[Path, typer.Option(help="The file to write: .onnx, or .pt2 for PyTorch only.")],
    with_script: Annotated[
        bool,
        typer.Option("--with-script", help="Put onnx_predict.py beside it, which needs onnxruntime, NumPy and Pillow."),
    ] = False,
    method: MethodAgain = None,
    backbone: BackboneAgain = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the model of a run as one file that runs without this package.

    The file is kept only if it predicts as the model does, on images of the run's target or else on noise.
    """

    def work(screen: Screen) -> None:
        from acclimate.runs import export as exporting

        written = exporting.export(run, out, with_script=with_script, method=method, backbone=backbone)
        samples = f"{written.compared} {'samples of the target' if written.of_target else 'samples of noise'}"
        screen.say(f"{out} has {written.size / 1e6:.1f} MB; on {samples} it predicts as the model does.")
        if written.changed is not None:
            screen.say(
                f"It computes in float32, and the run in bfloat16: {written.changed} of {samples} change their class."
            )
        if written.script is not None:
            screen.say(f"Use it with: python {written.script} {out} IMAGES > predictions.csv")
        screen.show_json(
            {
                "out": str(out),
                "script": None if written.script is None else str(written.script),
                "bytes": written.size,
                "compared": written.compared,
                "of_target": written.of_target,
                "difference": written.difference,
                "changed": written.changed,
            }
        )

    run_command(work, json=json, quiet=quiet, debug=debug, computes=True)


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder that fit or bench wrote with --out.")],
    out: Annotated[Path | None, typer.Option(help="The file to write. Default: RUN/report.html.")] = None,
    method: MethodAgain = None,
    backbone: BackboneAgain = None,
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the report of a run or a bench: one HTML file with its figures, images and what the model looks at.

    The images are read anew from where the run found them; what cannot be shown without them is left out.
    """

    def work(screen: Screen) -> None:
        from acclimate.bench import records as tables
        from acclimate.report import bench as bench_report
        from acclimate.report import page

        if (run / "records.jsonl").exists():
            written = bench_report.write_bench(
                tables.read_records([run]), out or run / "report.html", folder=run, screen=screen
            )
        else:
            written = page.write(run, out, method=method, backbone=backbone, track=screen.track)
        for sentence in written.left_out:
            screen.warn(sentence)
        screen.say(f"The report is {written.path}, {written.size / 1e6:.1f} MB.")
        screen.show_json({"report": str(written.path), "bytes": written.size, "left_out": written.left_out})
        if open_:
            typer.launch(written.path.absolute().as_uri())

    run_command(work, json=json, quiet=quiet, debug=debug, computes=True)
