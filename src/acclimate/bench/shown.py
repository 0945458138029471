"""What a bench shows to people: rows in order, what they cost, and where there are no labels, what can be said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from acclimate.bench.choose import Ranking, as_sheet, rank_task
from acclimate.bench.made import Made, costs, made_runs
from acclimate.bench.records import BenchRecord, Results
from acclimate.bench.tables import Sheet, sheets
from acclimate.errors import AcclimateError
from acclimate.progress import NOBODY, Listener


class Shown(NamedTuple):
    """What a bench shows.

    Attributes:
        sheets: Its tables.
        rankings: What was found on each task without labels.
    """

    sheets: list[Sheet]
    rankings: list[Ranking]


def shown(
    records: Sequence[BenchRecord],
    paths: Iterable[Path],
    *,
    metric: str | None = None,
    published: str | None = None,
    baseline: str | None = None,
    screen: Listener = NOBODY,
) -> Shown:
    """The tables of a bench for people: sorted, the best of each column marked, with a column of costs.

    A task without labels has a table of its candidates in place of accuracies, see `bench.choose`.

    Args:
        records: Of one or several benches.
        paths: Their folders, or files of records in them, where the runs lie.
        metric: As for `tables.sheets`.
        published: As for `tables.sheets`.
        baseline: As for `tables.sheets`.
        screen: Is shown the progress.

    Raises:
        DataError: The record of a run is damaged.
        OptionError: Something is unknown, or does not belong to these records.
    """
    folders = dict.fromkeys(path if path.is_dir() else path.parent for path in paths)
    runs = [run for folder in folders for run in made_runs(folder, records)]
    of_rows = costs(runs)
    without = Results(records).without_labels
    found: list[Ranking] = []
    notes = []
    for task in without:
        try:
            found.append(rank_task(_on(runs, task), screen=screen))
        except AcclimateError as error:
            notes.append(f"{'→'.join(task)} has no labels, and its rows are not ranked without them: {error}")
    tables = sheets(records, metric=metric, published=published, baseline=baseline, compare=True, costs=of_rows)
    if found and len(found) == len(Results(records).tasks):
        tables = []  # it would say "no labels" and nothing else
    elif notes:
        tables[0].notes += notes
    return Shown([*(as_sheet(ranking, of_rows) for ranking in found), *tables], found)


def _on(runs: Sequence[Made], task: tuple[str, str]) -> list[Made]:
    """The runs on a task."""
    return [run for run in runs if run.task == task]
