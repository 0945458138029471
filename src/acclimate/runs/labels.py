"""A few labels of a run's target, given by a person: which images to label, and what the labels then say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from acclimate.choices import Purpose
from acclimate.data.domain import Domain, Indices
from acclimate.data.read import read_target
from acclimate.errors import DataError, OptionError
from acclimate.evaluation.labels import Row, Todo, hashed, labelled, read_labels
from acclimate.methods import registry
from acclimate.runs.directory import MEMBERS, baseline
from acclimate.runs.frozen import place
from acclimate.runs.record import RunRecord, predictions_of, read_record
from acclimate.trust import labels as trust
from acclimate.trust.labels import Choice, Comparison, Draw, Estimate

Verdict: TypeAlias = Literal["helped", "harmed", "changed nothing", "cannot tell"]


@dataclass(frozen=True, eq=False)
class Model:
    """What a run says of its target.

    Attributes:
        name: By which the command shows it.
        folder: The run directory.
        record: The content of record.json.
        names: N names of the target's items.
        predicted: (N,) positions in the classes.
        certainty: (N,) ranks, the most certain last: by the share of members that agree where the run has members,
            and by the confidence.
    """

    name: str
    folder: Path
    record: RunRecord
    names: tuple[str, ...]
    predicted: Indices
    certainty: npt.NDArray[np.float64]

    @classmethod
    def read(cls, folder: Path, name: str | None = None) -> Model:
        """Read a run directory.

        Raises:
            DataError: It holds no finished run, or a damaged one.
        """
        record = read_record(folder / "record.json")
        classes = {name: k for k, name in enumerate(record.model.classes)}
        read = predictions_of(folder, record)
        if not classes.keys() >= set(read.predicted):
            raise DataError(f"{folder / 'predictions.csv'} predicts classes that the run does not have: make it again.")
        confidence = read.probabilities.max(1)
        order = np.lexsort((confidence, confidence if read.reliability is None else read.reliability))
        certainty = np.empty(len(order))
        certainty[order] = np.arange(len(order))
        predicted = np.array([classes[name] for name in read.predicted], dtype=np.int64)
        return cls(name or registry.shown(record.model.method), folder, record, read.names, predicted, certainty)


class Drawn(NamedTuple):
    """Images to be labelled.

    Attributes:
        todo: The images.
        models: The models that their labels are to judge.
        among: How many images they were drawn from.
    """

    todo: Todo
    models: tuple[Model, ...]
    among: int


def draw(runs: Sequence[Path], purpose: Purpose, n: int, seed: int) -> Drawn:
    """Choose the images of a target that a person is to label.

    Args:
        runs: For "accuracy" and "comparison" one run directory, for "choice" one that holds several, or several.
        purpose: What the labels are to tell: the accuracy of a run, whether it is better than source-only, or which of
            several runs is the best.
        n: Images; for a comparison or a choice, all that the models predict differently where these are fewer.
        seed: Of the choice.

    Raises:
        DataError: A run is not finished, or they have not the same target.
        OptionError: There are fewer images, nothing that labels could decide, or `n` is too small.
    """
    models = _models(runs, purpose)
    if purpose == "accuracy":
        chosen = trust.draw(models[0].certainty, n, seed)
    else:
        chosen = trust.draw_disputed(np.stack([model.predicted for model in models]), n, seed)
    weights = chosen.sizes / np.bincount(chosen.stratum, minlength=len(chosen.sizes))
    rows = tuple(
        Row(models[0].names[i], h, float(weights[h]))
        for i, h in zip(chosen.chosen.tolist(), chosen.stratum.tolist(), strict=True)
    )
    return Drawn(Todo(purpose, _hash(models), rows).shuffled(), models, int(chosen.sizes.sum()))


def margin(drawn: Drawn) -> float:
    """About how far from the truth the answer will be, before any label is known: half of the width of an interval.

    It is that of an accuracy of 75 %, or of a difference where three of four labels are right for one of two models.
    """
    n, M, N = len(drawn.todo.rows), drawn.among, len(drawn.models[0].names)
    spread = 0.75 * 0.25 if drawn.todo.purpose == "accuracy" else 0.75
    return M / N * 1.96 * math.sqrt(spread / n * (1 - n / M))


@dataclass(frozen=True, eq=False)
class Answer:
    """What labels say.

    Attributes:
        purpose: What they were to tell.
        models: The names of the models that they judge.
        drawn: How many images were drawn.
        n: How many of them are labelled.
        among: How many images they were drawn from.
        N: Images of the target.
        result: The accuracy, the comparison of the first model with the second, or the choice.
        classes: How many labels are of each class, and the accuracy on it where these are enough; empty for the others.
        foreign: How many labels are of no class.
    """

    purpose: Purpose
    models: tuple[str, ...]
    drawn: int
    n: int
    among: int
    N: int
    result: Estimate | Comparison | Choice
    classes: dict[str, tuple[int, Estimate | None]]
    foreign: int


def answer(runs: Sequence[Path], file: Path) -> Answer:
    """What the labels say that a person has written into a labels.csv.

    Args:
        runs: The same that the images were drawn for.
        file: What `draw` gave, with labels.

    Raises:
        DataError: The file was drawn for other runs or altered, has a label that is no class, or too few labels.
    """
    todo = read_labels(file)
    models = _models(runs, todo.purpose)
    if todo.run != _hash(models):
        raise DataError(
            f"{file} was drawn for another run than {', '.join(map(str, runs))}, or that was made anew since: name the "
            "run that it was drawn for, or draw again."
        )
    classes, names = models[0].record.model.classes, models[0].names
    truth = labelled(todo, classes, file).labels
    used = _drawn(todo, names, len(truth))
    needed = _needed(todo, len(used.sizes))
    if len(truth) < needed:
        raise DataError(
            f"{file} has {len(truth):,} labels, which say too little: label the first {needed:,} images at least."
        )
    right = np.stack([model.predicted[used.chosen] == truth for model in models])
    found: dict[str, tuple[int, Estimate | None]] = {}
    result: Estimate | Comparison | Choice
    if todo.purpose == "accuracy":
        result = trust.accuracy(used, right[0])
        estimates = trust.class_accuracies(truth, right[0], len(classes))
        counts = [int((truth == k).sum()) for k in range(len(classes))]
        found = dict(zip(classes, zip(counts, estimates, strict=True), strict=True))
    elif todo.purpose == "comparison":
        result = trust.compare(used, right[0], right[1], len(names))
    else:
        result = trust.choose(used, right, len(names))
    return Answer(
        purpose=todo.purpose,
        models=tuple(model.name for model in models),
        drawn=len(todo.rows),
        n=len(truth),
        among=int(used.sizes.sum()),
        N=len(names),
        result=result,
        classes=found,
        foreign=int((truth < 0).sum()),
    )


def verdict(comparison: Comparison) -> Verdict:
    """Whether adaptation helped, as far as the interval of the difference tells."""
    if comparison.low > 0:
        return "helped"
    if comparison.high < 0:
        return "harmed"
    return "changed nothing" if comparison.low == comparison.high else "cannot tell"


def images(model: Model, names: Sequence[str]) -> Domain | None:
    """The images of these names, read anew from where the run found its target; None where it was of vectors.

    Raises:
        DataError: They are no longer there.
    """
    origin = model.record.settings["target"]
    target = read_target(place(model.record, origin))
    if target.kind == "vectors":
        return None
    position = {name: i for i, name in enumerate(target.names)}
    missing = [name for name in names if name not in position]
    if missing or (target.kind != "files" and target.fingerprint() != model.record.data.target.fingerprint):
        raise DataError(f"{origin} has changed since the run: not all of the images that it classified are there.")
    return target.select([position[name] for name in names])


def _models(runs: Sequence[Path], purpose: Purpose) -> tuple[Model, ...]:
    """The models that labels for this purpose judge, all of the same target."""
    if purpose == "choice":
        models = _candidates(runs)
    else:
        if len(runs) > 1:
            raise OptionError(f"Labels for the {purpose} are of one run: name that alone, without {runs[1]}.")
        models = [Model.read(runs[0])]
    if purpose == "comparison":
        before = baseline(runs[0])
        if before is None:
            raise DataError(f"{runs[0]} holds no source-only to compare with: make the run again with --compare.")
        models.append(Model.read(before))
    first, *others = models
    for other in others:
        same = first.record.data.target.fingerprint == other.record.data.target.fingerprint
        if not same or (first.names, first.record.model.classes) != (other.names, other.record.model.classes):
            raise DataError(
                f"{other.folder} is not of the same target and classes as {first.folder}: name runs on one task alone."
            )
    return tuple(models)


def _candidates(runs: Sequence[Path]) -> list[Model]:
    """The models among which to choose: those in a folder, or one of each folder."""
    if len(runs) > 1:
        return [Model.read(run, str(run)) for run in dict.fromkeys(runs)]
    (run,) = runs
    own = [Model.read(run)] if (run / "record.json").exists() else []
    inner = sorted(path.parent for path in run.glob("*/record.json"))
    inner += sorted(path.parent for part in (MEMBERS, "runs") for path in run.glob(f"{part}/*/record.json"))
    models = own + [Model.read(folder, folder.name) for folder in inner]
    if len(models) < 2:
        raise DataError(
            f"{run} holds no runs among which to choose: name a bench, a run with members, or several runs."
        )
    return models


def _hash(models: Sequence[Model]) -> str:
    """A hash of runs and of what they predict, in whatever order they are named."""
    return hashed(sorted(hashed([m.record.identity, m.names, m.predicted.tolist()]) for m in models))


def _drawn(todo: Todo, names: Sequence[str], n: int) -> Draw:
    """The draw of the first n images; the strata keep their sizes."""
    position = {name: i for i, name in enumerate(names)}
    stratum = np.array([row.stratum for row in todo.rows], dtype=np.int64)
    of_each = np.bincount(stratum)
    weights = {row.stratum: row.weight for row in todo.rows}
    sizes = np.array([round(weights[h] * count) for h, count in enumerate(of_each.tolist())], dtype=np.int64)
    chosen = np.array([position[row.name] for row in todo.rows[:n]], dtype=np.int64)
    return Draw(chosen, stratum[:n], sizes)


def _needed(todo: Todo, strata: int) -> int:
    """How many of the images have to be labelled, in their order: enough, and of each stratum one."""
    seen: set[int] = set()
    for n, row in enumerate(todo.rows, 1):
        seen.add(row.stratum)
        if len(seen) == strata and n >= trust.FEWEST:
            return n
    return len(todo.rows)
