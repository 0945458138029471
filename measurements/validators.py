"""What validators are worth: how far below the best row they choose, on a bench whose targets have labels.

    python measurements/validators.py BENCH... [--table docs/results/validators.md]

Nothing is trained. On each task, with each seed, every validator ranks the rows of the bench without a label; then the
accuracies of the records say what it cost to follow it. Rows of the method consensus are no candidates: they are what
the choices are compared with. Several folders are taken together, such as a bench of all methods and one of the
consensus.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import spearmanr

from acclimate.bench.choose import Ranking, rank_task, read_runs
from acclimate.bench.made import Made
from acclimate.datasets.catalogue import TaskNames
from acclimate.methods.registry import BASELINE, CONSENSUS
from acclimate.screen import Screen
from acclimate.trust.choose import LEAST_CANDIDATES
from acclimate.trust.validators import VALIDATORS
from speed import put_out

HARM = 1.0  # points below source-only
SUM = ("vote", "frozen_class_ami")  # what the candidates say together, and what the frozen features say
ALWAYS = 3  # rows that are shown as taken always, the best of all in hindsight


class Group(NamedTuple):
    """The candidates on one task with one seed.

    Attributes:
        task: Source and target.
        ranking: What was found without labels.
        accuracy: In %, by the candidate's name: the oracle.
        consensus: The accuracy of the consensus, where it was made.
    """

    task: TaskNames
    ranking: Ranking
    accuracy: dict[str, float]
    consensus: float | None

    @property
    def best(self) -> float:
        """The accuracy of the best candidate, which needs the labels."""
        return max(self.accuracy.values())

    @property
    def unadapted(self) -> float:
        """The accuracy of source-only."""
        return next(self.accuracy[name] for name, run in self.ranking.runs.items() if run.method == BASELINE)


Pick = Callable[[Group], float | None]


def groups(runs: Sequence[Made], screen: Screen) -> Iterator[Group]:
    """The runs by task and seed, each group ranked; those too small to rank are left out."""
    cells: dict[tuple[TaskNames, int], list[Made]] = defaultdict(list)
    for run in runs:
        if run.record.scores is not None and run.record.data.test is None:
            cells[run.task, run.seed].append(run)
    for (task, seed), of_cell in cells.items():
        candidates = [run for run in of_cell if run.method != CONSENSUS]
        if len({run.row for run in candidates}) < LEAST_CANDIDATES or all(r.method != BASELINE for r in candidates):
            continue
        screen.say(f"{'-'.join(task)}, seed {seed}: {len(candidates)} candidates")
        ranking = rank_task(candidates, screen=screen)
        accuracy = {name: _percent(run) for name, run in ranking.runs.items()}
        together = [_percent(run) for run in of_cell if run.method == CONSENSUS]
        yield Group(task, ranking, accuracy, together[0] if together else None)


def _percent(run: Made) -> float:
    assert run.record.scores is not None
    return 100 * run.record.scores.accuracy


def picked_by(*validators: str) -> Pick:
    """The accuracy of the candidate that a validator, or the sum of several, puts first; no gate keeps any out."""

    def pick(group: Group) -> float | None:
        judged = [j for j in group.ranking.choice.candidates if j.scores.keys() >= {*validators}]
        scores = {j.name: sum(j.scores[validator] for validator in validators) for j in judged}
        if len(scores) < LEAST_CANDIDATES:
            return None
        return group.accuracy[max(scores, key=lambda name: scores[name])]

    return pick


def first(group: Group) -> float | None:
    """The accuracy of the candidate that `acclimate choose` puts first, decided or not."""
    return group.accuracy[group.ranking.choice.candidates[0].name]


def decided(group: Group) -> float | None:
    """The accuracy of what `acclimate choose` chooses; None where it is undecided."""
    chosen = group.ranking.choice.chosen
    return group.accuracy[chosen] if chosen is not None else None


def always(row: str) -> Pick:
    """The accuracy of a row; None where it was not made."""

    def pick(group: Group) -> float | None:
        found = [group.accuracy[name] for name, run in group.ranking.runs.items() if run.row == row]
        return found[0] if found else None

    return pick


class Line(NamedTuple):
    """What following a rule costs.

    Attributes:
        name: The rule.
        regrets: In points, by task: the best candidate's accuracy less that of the one that is taken.
        below: Groups in which it ends more than a point below source-only.
        correlation: Spearman's, of the figure and the accuracy, the mean over groups.
    """

    name: str
    regrets: dict[TaskNames, list[float]]
    below: int
    correlation: float | None

    @property
    def all(self) -> list[float]:
        """The regrets of all groups."""
        return [regret for of_task in self.regrets.values() for regret in of_task]

    @property
    def mean(self) -> float:
        """The mean over tasks of the means over seeds."""
        return float(np.mean([np.mean(of_task) for of_task in self.regrets.values()]))


def line(name: str, pick: Pick, found: Sequence[Group], correlation: float | None = None) -> Line | None:
    """What following a rule costs, in the groups in which it says something."""
    regrets: dict[TaskNames, list[float]] = defaultdict(list)
    below = 0
    for group in found:
        accuracy = pick(group)
        if accuracy is not None:
            regrets[group.task].append(group.best - accuracy)
            below += accuracy < group.unadapted - HARM
    return Line(name, dict(regrets), below, correlation) if regrets else None


def correlation(validator: str, found: Sequence[Group]) -> float | None:
    """Spearman's correlation of a validator's figure and the accuracy, the mean over the groups in which both vary."""
    values = []
    for group in found:
        pairs = [
            (j.scores[validator], group.accuracy[j.name])
            for j in group.ranking.choice.candidates
            if validator in j.scores
        ]
        if len(pairs) >= LEAST_CANDIDATES and all(len(set(side)) > 1 for side in zip(*pairs, strict=True)):
            values.append(float(spearmanr(*zip(*pairs, strict=True)).statistic))
    return float(np.mean(values)) if values else None


def table(found: Sequence[Group]) -> str:
    """Markdown: every validator, and what they are compared with, the least mean regret first within each part."""
    of_groups = [{run.row for run in group.ranking.runs.values()} for group in found]
    everywhere = sorted(set.intersection(*of_groups))  # a row that some groups lack could not be compared
    base = {run.row for group in found for run in group.ranking.runs.values() if run.method == BASELINE}
    by_label_free = [line(name, picked_by(name), found, correlation(name, found)) for name in VALIDATORS]
    by_label_free += [line("**gates, then the first: `acclimate choose`**", first, found)]
    by_label_free += [line(" + ".join(SUM), picked_by(*SUM), found)]
    in_hindsight = sorted(
        _known(line(f"always {row}", always(row), found) for row in everywhere if row not in base), key=_mean
    )
    others = [
        line("consensus of its members", lambda group: group.consensus, found),
        *(line(f"always {row}", always(row), found) for row in base),
        line("a row at random", lambda group: float(np.mean([*group.accuracy.values()])), found),
    ]
    tasks = list(dict.fromkeys(group.task for group in found))
    heading = ["rule", "mean", "worst", "below source-only", "rank corr.", *("→".join(task) for task in tasks)]
    lines = [f"| {' | '.join(heading)} |", f"|---|{'---:|' * (len(heading) - 1)}"]
    best = [entry._replace(name=f"{entry.name}, in hindsight") for entry in in_hindsight[:ALWAYS]]
    entries = [*sorted(_known(by_label_free), key=_mean), *_known(others), *best]
    return "\n".join([*lines, *(_row(entry, tasks) for entry in entries)])


def _known(lines: Iterable[Line | None]) -> list[Line]:
    return [entry for entry in lines if entry is not None]


def _mean(entry: Line) -> float:
    return entry.mean


def _row(entry: Line, tasks: Sequence[TaskNames]) -> str:
    of_tasks = [f"{np.mean(entry.regrets[task]):.1f}" if task in entry.regrets else "-" for task in tasks]
    told = "-" if entry.correlation is None else f"{entry.correlation:+.2f}"
    cells = [f"{entry.mean:.1f}", f"{max(entry.all):.1f}", f"{entry.below} of {len(entry.all)}", told, *of_tasks]
    return f"| {entry.name} | {' | '.join(cells)} |"


def undecided(found: Sequence[Group]) -> str:
    """A sentence on when `acclimate choose` does not choose, and what its first candidate would have cost then."""
    at_odds = [group for group in found if group.ranking.choice.chosen is None]
    told = f"`acclimate choose` is undecided in {len(at_odds)} of {len(found)} groups."
    for name, part, pick in (("where it decides", found, decided), ("where it does not", at_odds, first)):
        entry = line(name, pick, part)
        if entry is not None:
            what = "its choice" if pick is decided else "its first candidate"
            told += f" {name.capitalize()}, {what} lies {np.mean(entry.all):.1f} points below the best on average."
    return told


def gates(found: Sequence[Group]) -> str:
    """A sentence on what the gates keep out."""
    judged = [(group, j) for group in found for j in group.ranking.choice.candidates]
    out = [(group, j) for group, j in judged if j.failed]
    harmed = [group.accuracy[j.name] < group.unadapted - HARM for group, j in judged]
    caught = sum(group.accuracy[j.name] < group.unadapted - HARM for group, j in out)
    lost = sum(group.accuracy[j.name] == group.best for group, j in out)
    return (
        f"The gates keep {len(out)} of {len(judged)} candidates out: {caught} of the {sum(harmed)} that end more than "
        f"a point below source-only, and {lost} that were the best of their group."
    )


def within(runs: Sequence[Made], screen: Screen) -> Iterator[tuple[str, list[Group]]]:
    """Of each method with at least three rows: these and source-only, by task and seed."""
    rows: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        rows[run.method].add(run.row)
    for method, of_method in rows.items():
        if method not in (BASELINE, CONSENSUS) and len(of_method) >= LEAST_CANDIDATES - 1:
            found = [*groups([run for run in runs if run.method in (method, BASELINE)], screen)]
            if found:
                yield method, found


def page(paths: Sequence[Path], screen: Screen) -> str:
    """All that is measured, as Markdown."""
    runs = read_runs(paths)
    found = [*groups(runs, screen)]
    if not found:
        raise SystemExit("There is no task with a seed on which at least four labelled rows were made.")
    rows = sorted({run.row for group in found for run in group.ranking.runs.values()})
    seeds = sorted({run.seed for group in found for run in group.ranking.runs.values()})
    notes = list(dict.fromkeys(note for group in found for note in group.ranking.notes))
    parts = [
        "# What validators are worth",
        "Made by `python measurements/validators.py BENCH... --table docs/results/validators.md`.",
        "Every validator ranks the rows of a bench, on each task with each seed, without a label of the target. The "
        "regret is the accuracy of the best row less that of the row it puts first, in points. What knows the labels "
        "is called so: in hindsight.",
        f"{len(found)} groups, seeds {', '.join(map(str, seeds))}. Rows: {', '.join(rows)}.",
        "## Across methods",
        table(found),
        "mean: over the tasks, each with its mean over the seeds; worst: of all groups; below source-only: groups in "
        f"which what is taken ends more than {HARM:g} point below it; rank corr.: Spearman's, of the figure and the "
        "accuracy. A negative regret is above the best row.",
        f"{gates(found)} {undecided(found)}",
    ]
    for method, of_method in within(runs, screen):
        parts += [f"## Within {method}", table(of_method)]
    parts += [f"- {note}" for note in notes]
    return "\n\n".join(parts)


def main() -> None:
    """Measure, and print or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", nargs="+", type=Path, help="folders that acclimate bench wrote with --out")
    parser.add_argument("--table", type=Path, help="write the page here too")
    args = parser.parse_args()
    put_out(page(args.bench, Screen()), args.table)


if __name__ == "__main__":
    main()
