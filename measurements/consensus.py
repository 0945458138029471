"""What the consensus is worth: tables of benches of it, made with the target's labels, which no run has seen.

    python measurements/consensus.py [--warnings] [--unknown] BENCH [BENCH ...]

BENCH is the folder of `acclimate bench docs/results/consensus.toml` or of another grid with a row "consensus". The data
must lie where the bench found them. --warnings judges every member as a run of its own, which takes seconds each;
--unknown looks for the images of classes that the source lacks, where there are some.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from acclimate.machine import pick_device, torch_threads
from acclimate.methods.registry import BASELINE
from acclimate.progress import NOBODY, silent
from acclimate.runs.directory import baseline
from acclimate.runs.files import Predictions, read_predictions
from acclimate.runs.judge import judge
from acclimate.runs.members import Lesson, View
from acclimate.runs.prepare import prepare
from acclimate.runs.record import MemberRecord, RunRecord, read_record
from acclimate.runs.task import Task, read_task
from acclimate.settings import Settings
from acclimate.trust.consensus import ballots, familiarity

HARM = 0.05  # below source-only, from which on a run is held to be harmful


class Run(NamedTuple):
    """A run of the consensus: its folder, its record, and the task's name."""

    folder: Path
    record: RunRecord
    task: str

    @property
    def accuracy(self) -> float:
        """Of the consensus."""
        assert self.record.scores is not None
        return self.record.scores.accuracy

    @property
    def members(self) -> dict[str, MemberRecord]:
        """The members that did not diverge, by name."""
        assert self.record.trust is not None
        return {member.name: member for member in self.record.trust.members if member.failed is None}

    @property
    def accuracies(self) -> dict[str, float]:
        """Of the members, by name."""
        return {name: member.accuracy for name, member in self.members.items() if member.accuracy is not None}

    @property
    def before(self) -> float:
        """The accuracy of source-only."""
        return next(a for name, a in self.accuracies.items() if self.members[name].folder.endswith(BASELINE))


def read(bench: Path) -> list[Run]:
    """The finished runs of a bench, in the order of their names."""
    found = []
    for path in sorted(bench.glob("runs/consensus-*/record.json")):
        _, *task, _, _ = path.parent.name.split("-")
        found.append(Run(path.parent, read_record(path), "-".join(task)))
    return found


def table(heading: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table in Markdown."""
    heading = list(heading)
    print("| " + " | ".join(heading) + " |")
    print("|---" + "|---:" * (len(heading) - 1) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def percent(fraction: float) -> str:
    """A fraction as the tables show it."""
    return f"{100 * fraction:.1f}"


def accuracies(runs: list[Run]) -> None:
    """Each task's accuracies, the mean over its seeds."""
    of_task: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        of_task[run.task].append(run)

    def row(name: str, of: list[Run]) -> list[str]:
        best = [max(run.accuracies.values()) for run in of]
        figures = [
            np.mean([run.before for run in of]),
            np.mean([np.mean(list(run.accuracies.values())) for run in of]),
            np.mean(best),
            np.mean([run.accuracy for run in of]),
        ]
        least = [
            min(run.accuracy - run.before for run in of),
            min(r.accuracy - b for r, b in zip(of, best, strict=True)),
        ]
        return [name, *(percent(float(figure)) for figure in figures), *(f"{100 * x:+.1f}" for x in least)]

    heading = ("task", "source-only", "members' mean", "best member, in hindsight", "consensus")
    table(
        (*heading, "least gain over source-only", "over the best member"),
        [*(row(task, of) for task, of in of_task.items()), row("**all**", runs)],
    )
    names = runs[0].accuracies
    means = {name: float(np.mean([run.accuracies[name] for run in runs if name in run.accuracies])) for name in names}
    table(
        ("", *means, "consensus"),
        [["mean", *map(percent, means.values()), percent(float(np.mean([r.accuracy for r in runs])))]],
    )


def estimates(runs: list[Run]) -> None:
    """How good the estimates of the accuracy are."""
    known = [
        (run.accuracy, run.record.trust.estimate) for run in runs if run.record.trust and run.record.trust.estimate
    ]
    errors = [estimate.value - accuracy for accuracy, estimate in known]
    inside = [estimate.low <= accuracy <= estimate.high for accuracy, estimate in known]
    width = [estimate.high - estimate.low for _, estimate in known]
    table(
        ("runs", "mean absolute error", "mean error", "largest", "range covers", "mean width"),
        [
            [
                str(len(known)),
                percent(float(np.mean(np.abs(errors)))),
                f"{100 * np.mean(errors):+.1f}",
                percent(float(np.max(np.abs(errors)))),
                f"{percent(float(np.mean(inside)))} %",
                percent(float(np.mean(width))),
            ]
        ],
    )


def warned(runs: list[Run]) -> None:
    """Which runs are warned of, those of the members and of the consensus, by what they lose or gain."""
    judged = list(_judged(runs))
    groups: dict[str, Callable[[float], bool]] = {
        f"loses more than {100 * HARM:.0f} points": lambda gain: gain < -HARM,
        "loses 1 to 5": lambda gain: -HARM <= gain < -0.01,
        "within 1 point": lambda gain: abs(gain) <= 0.01,
        "gains more than 1": lambda gain: gain > 0.01,
    }
    rows = []
    for name, belongs in groups.items():
        levels = [level for gain, level, _, who in judged if belongs(gain) and who == "member"]
        mine = [level for gain, level, _, who in judged if belongs(gain) and who == "consensus"]
        shown = [f"{of.count('warning')} of {len(of)}" for of in (levels, mine)]
        rows.append([name, shown[0], str(levels.count("note")), shown[1], str(mine.count("note"))])
    table(("the run", "members: warning", "note", "consensus: warning", "note"), rows)
    checks = sorted({check for *_, found, _ in judged for check in found})
    table(
        ("check", "harmful runs", "others"),
        [
            [
                check,
                *(
                    str(sum(check in found for gain, _, found, _ in judged if (gain < -HARM) == bad))
                    for bad in (True, False)
                ),
            ]
            for check in checks
        ],
    )


def _judged(runs: list[Run]) -> Iterator[tuple[float, str, set[str], str]]:
    """Of each run but source-only: its gain over that, the level of the findings, their checks, and whose run it is."""
    for run in runs:
        settings = Settings.of(**run.record.settings)
        task = _readable(settings)
        for member in run.members.values():
            if member.folder.endswith(BASELINE) or member.accuracy is None:
                continue
            folder = run.folder / member.folder
            record = read_record(folder / "record.json")
            trust = judge(Settings.of(**record.settings), record, task, folder, baseline(run.folder))
            checks = {finding.check for finding in trust.findings if finding.level != "fact"}
            yield member.accuracy - run.before, trust.level, checks, "member"
        said = _read(run, task, "")
        of_source_only = next(m for m in run.members.values() if m.folder.endswith(BASELINE))
        p_before = _read(run, task, of_source_only.folder).probabilities
        findings = _lesson(settings, task, run).findings(
            said.probabilities, p_before, run.record.model.classes, settings.seed
        )
        checks = {finding.check for finding in findings.found if finding.level != "fact"}
        yield run.accuracy - run.before, findings.level, checks, "consensus"


def unknown(runs: list[Run]) -> None:
    """How well the images of classes that the source lacks can be told, as areas under the ROC curve."""
    rows = []
    for run in runs:
        settings = Settings.of(**run.record.settings)
        task = _readable(settings)
        assert task.answers is not None
        foreign = task.answers.labels == -1
        if not foreign.any():
            continue
        lesson = _lesson(settings, task, run)
        scores, flagged = _familiarity(task, run, lesson), lesson.unfamiliar
        rows.append(
            [
                run.task,
                percent(float(foreign.mean())),
                *(f"{roc_auc_score(foreign, -score):.2f}" for score in scores.values()),
                *("-" if flagged is None else percent(float(flagged[of].mean())) for of in (foreign, ~foreign)),
            ]
        )
    table(("task", "foreign images, %", *scores, "flagged of the foreign, %", "of the others, %"), rows)


def _familiarity(task: Task, run: Run, lesson: Lesson) -> dict[str, npt.NDArray[np.float64]]:
    """Figures that are to be low where an image is of no class of the source, each (N,)."""
    said = _read(run, task, "")
    assert said.reliability is not None
    return {
        "familiarity": familiarity(ballots(lesson.voters, len(run.record.model.classes)), lesson.graph),
        "reliability": said.reliability,
        "confidence": said.probabilities.max(1),
    }


def _lesson(settings: Settings, task: Task, run: Run) -> Lesson:
    """What the members of a run say together, formed again from their files."""
    ready = prepare(settings, task, pick_device("cpu"), silent)
    net, classes = ready.model.method.net, run.record.model.classes
    pair, labels = ready.pair, ready.pair.labels.numpy()
    view = View.of(ready.model, lambda x: net.pool(net.map(x)), pair.source, labels, pair.target, settings.seed)
    votes = [_read(run, task, member.folder).predicted for member in run.members.values()]
    members = np.array([[classes.index(name) for name in vote] for vote in votes])
    return Lesson.of(members, view, len(classes), pretrained=True)


def _read(run: Run, task: Task, folder: str) -> Predictions:
    return read_predictions(run.folder / folder / "predictions.csv", len(task.target), len(run.record.model.classes))


def _readable(settings: Settings) -> Task:
    """The task of a run; nothing is broken that was not known to be."""
    task = read_task(settings, NOBODY)
    for broken in task.broken.values():
        broken.recall()
    return task


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bench", nargs="+", type=Path)
    parser.add_argument("--warnings", action="store_true")
    parser.add_argument("--unknown", action="store_true")
    given = parser.parse_args()
    runs = [run for bench in given.bench for run in read(bench)]
    with torch_threads(1):
        accuracies(runs)
        estimates(runs)
        if given.warnings:
            warned(runs)
        if given.unknown:
            unknown(runs)


if __name__ == "__main__":
    main()
