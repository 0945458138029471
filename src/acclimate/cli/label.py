"""The command that draws images to be labelled, and what evaluate shows of their labels."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from acclimate.cli.command import Debug, Json, Quiet, run_command

if TYPE_CHECKING:
    from acclimate.runs.labels import Answer
    from acclimate.screen import Screen
    from acclimate.trust.labels import Choice, Comparison, Estimate


def label(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="The folder that fit wrote with --out; for a choice, a bench or several runs."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write labels.csv and label.html into.")],
    n: Annotated[int, typer.Option("--n", help="Images to label.")] = 50,
    purpose: Annotated[
        Literal["accuracy", "comparison", "choice"],
        typer.Option(
            "--for",
            help="What to find out: how accurate the run is, whether it is better than source-only, or which of "
            "several runs is best.",
        ),
    ] = "accuracy",
    seed: Annotated[int, typer.Option(min=0, help="The seed of the draw.")] = 0,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw the images of a target that are worth labelling, and write a page to label them on.

    acclimate evaluate RUN --labels says what the labels tell. No model is trained on them.
    """

    def work(screen: Screen) -> None:
        from acclimate.report.label import write_todo
        from acclimate.runs.labels import draw, margin

        drawn = draw(runs, purpose, n, seed)
        written = write_todo(drawn, runs, out, screen.track)
        todo, N = drawn.todo, len(drawn.models[0].names)
        if purpose == "accuracy":
            drawn_from = f"of the {N:,} of the target"
        else:
            drawn_from = f"of the {drawn.among:,} of {N:,} on which the models differ"
        what = "accuracy" if purpose == "accuracy" else "difference in accuracy"
        within = margin(drawn)
        screen.say(
            f"{len(todo.rows):,} images are to be labelled, {drawn_from}: "
            f"they will tell the {what} {f'to within about {100 * within:.0f} points' if within else 'exactly'}."
        )
        if written.page is not None:
            screen.say(f"Label them on {written.page}, which opens in a browser, or in {written.labels}.")
        else:
            screen.say(f"The target is of vectors, which cannot be looked at: write the labels into {written.labels}.")
        screen.show_json(
            {
                "for": purpose,
                "images": len(todo.rows),
                "labels": str(written.labels),
                "page": str(written.page) if written.page is not None else None,
                "models": [model.name for model in drawn.models],
                "draw": todo.draw,
                "margin": within,
            }
        )
        if open_ and written.page is not None:
            typer.launch(written.page.absolute().as_uri())

    run_command(work, json=json, quiet=quiet, debug=debug, computes=True)


def show_answer(screen: Screen, answer: Answer) -> None:
    """Show what labels say."""
    from acclimate.trust.labels import Choice, Comparison

    result = answer.result
    if answer.n < answer.drawn:
        screen.say(f"{answer.n:,} of the {answer.drawn:,} images have a label: the first in the order of the draw.")
    if isinstance(result, Comparison):
        _show_comparison(screen, answer, result)
    elif isinstance(result, Choice):
        _show_choice(screen, answer, result)
    else:
        _show_accuracy(screen, answer, result)


def _show_accuracy(screen: Screen, answer: Answer, accuracy: Estimate) -> None:
    from acclimate.cli.show import show_table

    value, low, high = _percents(accuracy.value, accuracy.low, accuracy.high)
    title = f"Accuracy on the target: {value} %, between {low} and {high} % (95 % interval from {answer.n:,} labels)"
    rows = [
        (name, count, *(_percents(of.value, of.low, of.high) if of is not None else ("-", "-", "-")))
        for name, (count, of) in answer.classes.items()
    ]
    foreign = (
        f"{answer.foreign:,} of the images show none of the classes, and count as wrong." if answer.foreign else ""
    )
    show_table(screen, title, ("Class", "Labels", "Accuracy", "from", "to"), rows, foreign)
    per_class = {
        name: {"labels": count, "accuracy": _span(of) if of is not None else None}
        for name, (count, of) in answer.classes.items()
    }
    screen.show_json({**_about(answer), "accuracy": _span(accuracy), "per_class": per_class})


def _show_comparison(screen: Screen, answer: Answer, comparison: Comparison) -> None:
    from acclimate.runs.labels import verdict

    found, (after, before) = verdict(comparison), answer.models
    sentence = {
        "helped": "Adaptation helped",
        "harmed": "Adaptation harmed",
        "changed nothing": "Adaptation neither helped nor harmed",
        "cannot tell": "The labels cannot tell whether adaptation helped",
    }[found]
    value, low, high = (f"{float(x):+.1f}" for x in _points(comparison))
    neither = comparison.n - comparison.gained - comparison.lost
    screen.show(
        f"\n{sentence}: {screen.text(after)} minus {screen.text(before)} is {value} points of accuracy, "
        f"between {low} and {high} (95 % interval)."
    )
    screen.show(
        f"\n{answer.n:,} of the {answer.among:,} changed images are labelled, of {answer.N:,} in all: adaptation put "
        f"{comparison.gained:,} right and {comparison.lost:,} wrong, and {neither:,} were wrong and still are. If "
        f"neither model were better, a split at least as uneven would have a probability of {comparison.p:.2g} "
        "(sign test)."
    )
    screen.show_json({**_about(answer), "verdict": found, **asdict(comparison)})


def _show_choice(screen: Screen, answer: Answer, choice: Choice) -> None:
    from acclimate.cli.show import show_table

    leader, others = answer.models[choice.leader], len(answer.models) - 1
    out = others + 1 - len(choice.left)
    rows = [
        (name, "leads", "-", "-", "-")
        if m == choice.leader
        else (name, "" if m in choice.left else "ruled out", *_points(behind))
        for m, (name, behind) in enumerate(zip(answer.models, choice.differences, strict=True))
    ]
    show_table(
        screen,
        f"{leader} leads, and {answer.n:,} labels rule out {out} of the {others} others",
        ("Model", "", "Behind", "from", "to"),
        rows,
        "Behind: points of accuracy; all intervals hold together in 95 % of the draws. The leader was chosen by these "
        "labels, which flatter it: measure its accuracy by others.",
    )
    screen.show_json(
        {
            **_about(answer),
            "leader": leader,
            "models": [
                {
                    "model": name,
                    "ruled_out": m not in choice.left,
                    "behind": _span_of(behind) if m != choice.leader else None,
                }
                for m, (name, behind) in enumerate(zip(answer.models, choice.differences, strict=True))
            ],
        }
    )


def _about(answer: Answer) -> dict[str, Any]:
    """What is told of every answer."""
    return {"for": answer.purpose, "labels": answer.n, "drawn": answer.drawn, "none_of_these": answer.foreign}


def _span(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def _span_of(comparison: Comparison) -> dict[str, float]:
    return {"value": comparison.difference, "low": comparison.low, "high": comparison.high}


def _points(comparison: Comparison) -> tuple[str, ...]:
    return _percents(comparison.difference, comparison.low, comparison.high)


def _percents(*fractions: float) -> tuple[str, ...]:
    return tuple(f"{100 * x:.1f}" for x in fractions)
