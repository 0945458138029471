"""Choosing a run of a bench without labels: what the runs said is read again, and `trust.choose` judges it.

Nothing here looks at a score of a record: that is made of the target's labels.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from acclimate.bench.made import Made, made_runs
from acclimate.bench.records import read_records
from acclimate.bench.tables import ON_COST, Sheet, as_cost
from acclimate.datasets.catalogue import TaskNames
from acclimate.errors import AcclimateError, DataError, OptionError
from acclimate.methods import registry
from acclimate.methods.registry import BASELINE, CONSENSUS
from acclimate.progress import NOBODY, Listener
from acclimate.runs.directory import baseline
from acclimate.runs.frozen import frozen_features
from acclimate.runs.record import RunRecord, predictions_of, read_record, source_predictions_of
from acclimate.settings import comparable
from acclimate.trust.choose import LEADING, LEAST_CANDIDATES, Candidate, Choice, choose, leading
from acclimate.trust.validators import VALIDATORS, Evidence


@dataclass(frozen=True)
class Ranking:
    """The runs on one task, judged without labels.

    Attributes:
        task: Source and target.
        choice: The candidates in order, and the choice.
        runs: The run behind each candidate, by its name.
        images: The names of the target's images, to which `choice.to_label` points.
        notes: What could not be looked at, and why, in sentences.
        instead: The command whose result is the vote of the rows that pass the gates; empty for fewer than two.
    """

    task: TaskNames
    choice: Choice
    runs: Mapping[str, Made]
    images: tuple[str, ...]
    notes: tuple[str, ...]
    instead: str


def rank(
    paths: Sequence[Path], *, task: str | None = None, screen: Listener = NOBODY, device: str = "auto"
) -> list[Ranking]:
    """Judge the runs of benches, or runs that `fit` made, on each task by itself.

    Args:
        paths: Folders of benches, or of runs.
        task: Look at this one alone, SOURCE-TARGET.
        screen: Is shown the progress of frozen features that have to be computed.
        device: Where these are computed.

    Raises:
        DataError: There is no run, a file of one is damaged, or the runs on a task cannot be compared.
        OptionError: There is no such task.
    """
    runs = read_runs(paths)
    tasks = list(dict.fromkeys(run.task for run in runs))
    if task is not None:
        tasks = [names for names in tasks if "-".join(names) == task]
        if not tasks:
            there = ", ".join(dict.fromkeys("-".join(run.task) for run in runs))
            raise OptionError(f"There is no task {task!r}; there are {there}.")
    return [rank_task([run for run in runs if run.task == names], screen=screen, device=device) for names in tasks]


def read_runs(paths: Sequence[Path]) -> list[Made]:
    """The finished runs of these folders, each a bench's or a run's.

    Raises:
        DataError: There is none, or a file of one is damaged.
    """
    alone, runs = [], []
    for path in paths:
        if (path / "records.jsonl").exists():
            runs += made_runs(path, read_records([path]))
        elif (path / "record.json").exists():
            alone.append(path)
        else:
            raise DataError(f"{path} holds neither a bench nor a finished run: name what bench or fit wrote as --out.")
    runs += _runs_alone(alone)
    if not runs:
        raise DataError("There is no finished run: name the folder that acclimate bench wrote with --out.")
    return runs


def _runs_alone(folders: Sequence[Path]) -> list[Made]:
    """Runs that no bench made: the folder is the name; runs that differ in their seed alone are seeds of one row."""
    records = {folder: read_record(folder / "record.json") for folder in folders}
    if not any(record.settings["method"] == BASELINE for record in records.values()):
        beside = [other for folder in folders if (other := baseline(folder)) is not None]
        records |= {folder: read_record(folder / "record.json") for folder in beside[:1]}  # what --compare made
    first: dict[str, str] = {}
    runs = []
    for folder, record in records.items():
        settings = {name: value for name, value in comparable(record.settings).items() if name != "seed"}
        row = first.setdefault(json.dumps(settings, sort_keys=True), str(folder))
        runs.append(Made(row, _task_of(record), int(record.settings["seed"]), folder, record))
    return runs


def _task_of(record: RunRecord) -> TaskNames:
    """Short names of a run's source and target."""
    source, target = (PurePath(side.origin).stem for side in (record.data.source, record.data.target))
    return source, target


# --- one task -------------------------------------------------------------------------------------------------------


def rank_task(runs: Sequence[Made], *, screen: Listener = NOBODY, device: str = "auto") -> Ranking:
    """Judge the runs on one task.

    Args:
        runs: The runs; those of the consensus are left out.
        screen: As for `rank`.
        device: As for `rank`.

    Raises:
        DataError: They are too few, lack source-only, or are not of the same images.
    """
    task = runs[0].task
    runs = [run for run in runs if run.method != CONSENSUS]
    unadapted = _check(runs, "-".join(task))
    names = _names(runs)
    images, said = _predictions(runs)
    frozen, where, amiss = _structure(unadapted.record, images, screen, device)
    evidence = [
        Evidence(**{**frozen, "p_target": p, **_of_source(run, frozen, where)})
        for run, p in zip(runs, said, strict=True)
    ]
    notes = [*([amiss] if amiss else []), *_of_held_out(runs, evidence)]
    candidates = [Candidate(name, e, run.row) for name, run, e in zip(names, runs, evidence, strict=True)]
    of = dict(zip(names, runs, strict=True))
    choice = choose(candidates, unadapted.record.model.classes, baseline=names[runs.index(unadapted)])
    return Ranking(task, choice, of, images, tuple(notes), _instead(choice, of))


def _structure(
    record: RunRecord, images: Sequence[str], screen: Listener, device: str
) -> tuple[dict[str, Any], dict[str, int], str | None]:
    """Frozen features of both domains with the source's labels, where each source item is, and what is amiss."""
    try:
        f_t, f_s, source = frozen_features(record, images, device=device, track=screen.track)
    except AcclimateError as error:
        what = "Validators that look at frozen features are left out"
        return {}, {}, f"{what}: {str(error)[:1].lower()}{str(error)[1:]}"
    where = {name: i for i, name in enumerate(source.domain.names)}
    return {"frozen_target": f_t, "frozen_source": f_s, "y_source": source.labels}, where, None


def _check(runs: Sequence[Made], task: str) -> Made:
    """Refuse runs that cannot be judged; returns that of source-only."""
    rows = {run.row for run in runs}
    if len(rows) < LEAST_CANDIDATES:
        raise DataError(
            f"Choosing on {task} needs at least {LEAST_CANDIDATES} finished rows, not {len(rows)}: add rows to the "
            "bench, since fewer cannot outvote one."
        )
    unadapted = next((run for run in runs if run.method == BASELINE), None)
    if unadapted is None:
        raise DataError(
            f"There is no finished run of source-only on {task}: add it, since all others are judged against it."
        )
    return unadapted


def _names(runs: Sequence[Made]) -> list[str]:
    """The candidates' names: the row's, with the seed where there are several; of runs alone, the folder's."""
    several = len({run.seed for run in runs}) > 1
    names = [f"{run.row}, seed {run.seed}" if several else run.row for run in runs]
    if len(set(names)) < len(names):
        raise DataError("Two of the runs are the same row with the same seed: give one of them.")
    return names


def _predictions(runs: Sequence[Made]) -> tuple[tuple[str, ...], list[npt.NDArray[np.float64]]]:
    """The names of the target's images, and the probabilities (n_T, K) of each run."""
    images: tuple[str, ...] = ()
    probabilities = []
    for run in runs:
        classes = run.record.model.classes
        said = predictions_of(run.folder, run.record)
        images = images or said.names
        if said.names != images or classes != runs[0].record.model.classes:
            raise DataError(
                f"{run.folder} predicts other images or classes than {runs[0].folder}: compare runs on one task."
            )
        probabilities.append(_normalised(said.probabilities))
    return images, probabilities


def _of_source(run: Made, frozen: Mapping[str, Any], where: Mapping[str, int]) -> dict[str, Any]:
    """What a run says of the source images that it kept out of training, where that tells anything."""
    path = run.folder / "source_predictions.csv"
    if not path.exists() or _target_only(run.record):
        return {}
    held = source_predictions_of(run.folder, run.record)
    found: dict[str, Any] = {"p_source": _normalised(held.probabilities), "y_source": held.labels}
    if frozen:
        at = [where.get(name, -1) for name in held.names]
        found["frozen_source"] = None if -1 in at else frozen["frozen_source"][at]
    return found


def _of_held_out(runs: Sequence[Made], evidence: Sequence[Evidence]) -> list[str]:
    """What the held-out source does not judge."""
    if all(e.p_source is None for e in evidence):
        return [
            "No run kept a part of the source out of training, so nothing is judged by source images: make the bench "
            "with --hold-out 0.2 for that."
        ]
    own = dict.fromkeys(run.row for run in runs if _target_only(run.record))
    without = dict.fromkeys(run.row for run, e in zip(runs, evidence, strict=True) if e.p_source is None)
    notes = [f"Not judged by source images, as they predict for the target alone: {', '.join(own)}."] if own else []
    if missing := [row for row in without if row not in own]:
        notes.append(f"Not judged by source images, as no part was kept out of training: {', '.join(missing)}.")
    return notes


def _target_only(record: RunRecord) -> bool:
    """Whether the method predicts for the target alone. Of code from outside nobody can tell without running it."""
    name = record.model.method
    return name in registry.names() and registry.own(name).target_only


def _normalised(p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Probabilities that were written with six decimals, adding up to 1 again."""
    scaled: npt.NDArray[np.float64] = p / p.sum(1, keepdims=True)
    return scaled


def _instead(choice: Choice, of: Mapping[str, Made]) -> str:
    """The command that makes the consensus of the rows that pass the gates."""
    passing = [of[judged.name] for judged in choice.candidates if not judged.failed]
    members: dict[str, str] = {}  # rows that differ in their recipe alone are one member, which has its own
    for run in passing:
        name = _called(run)
        if name is not None:
            members.setdefault(json.dumps(registry.row(name)), name)
    if len(members) < 2:
        return ""
    settings = passing[0].record.settings
    data = f"--source {shlex.quote(settings['source'])} --target {shlex.quote(settings['target'])}"
    return f'acclimate fit --method {CONSENSUS} --members "{",".join(members.values())}" {data} --out DIR'


def _called(run: Made) -> str | None:
    """The name that tells a row's method and options to those who do not know the bench; None if there is none."""
    method: str = run.record.settings["method"]
    options = run.record.settings["options"]
    of_papers = registry.own(method).rows if method in registry.names() else {}
    names: list[str] = [run.row, method, *of_papers]
    for name in names:
        try:
            if registry.row(name) == (method, options):
                return name
        except OptionError:
            continue
    return None


# --- to show --------------------------------------------------------------------------------------------------------


def rows_in_order(ranking: Ranking) -> list[str]:
    """The rows, the best first: by the mean of its seeds' scores, those of which no seed passes the gates last."""
    figures: dict[str, list[float]] = {}
    passing: dict[str, bool] = {}
    lead = leading([judged for judged in ranking.choice.candidates if not judged.failed])
    for judged in ranking.choice.candidates:
        row = ranking.runs[judged.name].row
        figures.setdefault(row, []).append(judged.scores.get(lead, 0.0))
        passing[row] = passing.get(row, False) or not judged.failed
    return sorted(figures, key=lambda row: (not passing[row], -float(np.mean(figures[row]))))


def as_dict(ranking: Ranking) -> dict[str, Any]:
    """For JSON: of each candidate every validator's figure, or why it has none."""
    choice = ranking.choice
    return {
        "task": "-".join(ranking.task),
        "chosen": choice.chosen,
        "run": str(ranking.runs[choice.chosen].folder) if choice.chosen is not None else None,
        "reason": choice.reason,
        "leaders": dict(choice.leaders),
        "to_label": [ranking.images[i] for i in choice.to_label],
        "instead": ranking.instead,
        "notes": list(ranking.notes),
        "candidates": [
            {
                **asdict(judged),
                "row": ranking.runs[judged.name].row,
                "seed": ranking.runs[judged.name].seed,
                "run": str(ranking.runs[judged.name].folder),
            }
            for judged in choice.candidates
        ],
    }


def as_sheet(ranking: Ranking, costs: Mapping[str, float] | None = None) -> Sheet:
    """The candidates, the best first, with the leading figures.

    Args:
        ranking: What to show.
        costs: What the training of each row costs relative to source-only.
    """
    choice = ranking.choice
    known = [name for name in LEADING if any(name in judged.scores for judged in choice.candidates)]
    headings = ["candidate", *known, "changed", "gates"]
    sheet = Sheet(f"{'→'.join(ranking.task)}, judged without labels", [*headings, "cost"] if costs else headings)
    for judged in choice.candidates:
        figures = [f"{judged.scores[name]:.3f}" if name in judged.scores else "-" for name in known]
        row = ranking.runs[judged.name].row
        name = f"{judged.name}, chosen" if judged.name == choice.chosen else judged.name
        cells = [name, *figures, f"{100 * judged.share_changed:.0f} %", "fails" if judged.failed else "passes"]
        sheet.rows.append([*cells, as_cost(costs.get(row))] if costs else [*cells])
    sheet.notes = [choice.reason, *_failures(choice), *ranking.notes, *_offer(ranking)]
    sheet.notes.append(f"None of these figures is an accuracy. {' '.join(TOLD[name] for name in known)}")
    if costs:
        sheet.notes.append(ON_COST)
    if choice.to_label:
        sheet.notes.append(f"To label: {', '.join(ranking.images[i] for i in choice.to_label)}.")
    return sheet


TOLD = {
    "estimated_gain": "estimated_gain: by how much it is estimated to be more accurate than source-only.",
    "vote": "vote: the share of the images on which it agrees with the majority of those that pass the gates.",
    "frozen_class_ami": "frozen_class_ami: how well its classes agree with the clusters of the untouched features.",
    "im": "im: how certain and how balanced it is.",
}
assert set(TOLD) == set(LEADING)


def _failures(choice: Choice) -> list[str]:
    failing = [judged for judged in choice.candidates if judged.failed]
    return [f"{judged.name} cannot be chosen: {' '.join(judged.failed)}" for judged in failing]


def _offer(ranking: Ranking) -> list[str]:
    if not ranking.instead:
        return []
    if ranking.choice.chosen is None:
        return [f"Instead of a choice, take what all that pass say together: {ranking.instead}"]
    return [f"In place of one of them, what all that pass say together: {ranking.instead}"]


def csv_rows(rankings: Sequence[Ranking]) -> list[list[object]]:
    """A heading and a line a candidate, every validator a column; empty where it has no figure."""
    heading = ["task", "place", "candidate", "row", "seed", "run", "chosen", "gates", "share_changed", *VALIDATORS]
    lines: list[list[object]] = [[*heading]]
    for ranking in rankings:
        for place, judged in enumerate(ranking.choice.candidates, 1):
            run = ranking.runs[judged.name]
            known = ["-".join(ranking.task), place, judged.name, run.row, run.seed, run.folder]
            verdict = [judged.name == ranking.choice.chosen, "fails" if judged.failed else "passes"]
            figures = [judged.scores.get(name, "") for name in VALIDATORS]
            lines.append([*known, *verdict, judged.share_changed, *figures])
    return lines
