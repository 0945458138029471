"""A run as its report sees it: what its folder says, and its data read anew."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from acclimate.data.domain import Domain, Indices, LabelledDomain
from acclimate.data.read import read_sealed, read_source
from acclimate.errors import AcclimateError, DataError
from acclimate.evaluation.answers import Answers, read_answers
from acclimate.evaluation.scores import Probabilities, Scores, confusion
from acclimate.methods import registry
from acclimate.methods.registry import BASELINE
from acclimate.runs.files import MetricsLog, read_probabilities


@dataclass(frozen=True, eq=False)
class Run:
    """What a run directory says, without the data and the model.

    Attributes:
        folder: The run directory.
        record: The content of record.json.
        names: N names of the target's items.
        after: Their class probabilities (N, K).
        before: The same from source-only, where the run was compared with it.
        metrics: The lines of metrics.jsonl.
        skipped: Names and reasons of the images that were left out.
    """

    folder: Path
    record: dict[str, Any]
    names: tuple[str, ...]
    after: Probabilities
    before: Probabilities | None
    metrics: list[dict[str, Any]]
    skipped: list[tuple[str, str]]

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read a run directory.

        Raises:
            DataError: It holds no finished run, or a damaged one.
        """
        try:
            record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
            compared = record["settings"]["method"] != BASELINE and record.get("compare")
            return cls(
                folder,
                record,
                tuple(row[0] for row in rows(folder / "predictions.csv")),
                read_probabilities(folder / "predictions.csv"),
                read_probabilities(folder / BASELINE / "predictions.csv") if compared else None,
                MetricsLog(folder / "metrics.jsonl").read(),
                [(row[0], row[1]) for row in rows(folder / "skipped.csv")],
            )
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DataError(f"{folder} holds no finished run: name the folder that a fit wrote with --out.") from error
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise DataError(f"The run in {folder} is damaged: make it again with --overwrite.") from error

    @property
    def method(self) -> str:
        """The method's name."""
        return str(self.record["settings"]["method"])

    @property
    def paper(self) -> str:
        """What the method comes from."""
        return registry.load(self.method).paper

    @cached_property
    def domains(self) -> tuple[str, str]:
        """Short names of the source and the target."""
        origins = (PurePath(self.record["data"][side]["origin"]) for side in ("source", "target"))
        source, target = (
            origin.stem if origin.suffix in (".csv", ".txt", ".npz") else origin.name for origin in origins
        )
        return source, target

    @property
    def classes(self) -> list[str]:
        """K names."""
        return list(self.record["model"]["classes"])

    @cached_property
    def predicted(self) -> Indices:
        """The predicted class of each item, (N,)."""
        predicted: Indices = self.after.argmax(1)
        return predicted

    @cached_property
    def predicted_before(self) -> Indices | None:
        """The same by source-only."""
        return None if self.before is None else self.before.argmax(1)

    @cached_property
    def confidence(self) -> npt.NDArray[np.float64]:
        """The probability of the predicted class, (N,)."""
        confidence: npt.NDArray[np.float64] = self.after.max(1)
        return confidence

    def counts(self, predicted: Indices) -> list[int]:
        """How many of the predictions are of each class."""
        counts: list[int] = np.bincount(predicted, minlength=len(self.classes)).tolist()
        return counts

    @property
    def tested(self) -> bool:
        """Whether it was measured on images that are not the target's."""
        return self.record["data"].get("test") is not None

    @cached_property
    def scores(self) -> Scores | None:
        """The comparison with the target's labels, if it has any."""
        scores = self.record["scores"]
        return Scores.from_dict(scores) if scores else None

    @cached_property
    def scores_before(self) -> Scores | None:
        """The same of source-only."""
        compare = self.record.get("compare") or {}
        return Scores.from_dict(compare["scores"]) if compare.get("scores") else None


def rows(path: Path) -> Iterator[list[str]]:
    """The rows of a CSV that a run wrote, below its heading."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file)
        next(rows)
        yield from rows


@dataclass(frozen=True, eq=False)
class Data:
    """The data of a run, read anew.

    Attributes:
        source: The source, with images that may be broken.
        target: The target's items, in the order of the predictions.
        answers: (N,) positions in the classes, -1 where unknown; None where the run was not scored on the target.
    """

    source: LabelledDomain
    target: Domain
    answers: Indices | None

    @property
    def pictured(self) -> bool:
        """Whether the items can be looked at."""
        return self.target.kind != "vectors"


def read_data(run: Run, left_out: list[str]) -> Data | None:
    """The data of a run; None, and a sentence, where they are no longer what they were.

    An image is known by its name, wherever it stands among the others now. The rows of an array have no names, so all
    of them must be what they were.
    """
    settings = run.record["settings"]
    try:
        source = read_source(_place(run, settings["source"]))
        target, sealed = read_sealed(_place(run, settings["target"]))
        if tuple(source.classes) != tuple(run.classes):
            raise DataError(f"{settings['source']} has changed since the run: it has other classes.")
        domains = {"source": source.domain, "target": target}
        changed = [side for side, domain in domains.items() if _has_changed(run, side, domain)]
        kept = _positions(run.names, target.names)
        if kept is None or (target.kind != "files" and "target" in changed):
            raise DataError(f"{settings['target']} has changed since the run: not all of the run's items are there.")
        scored = run.scores if not run.tested else None
        answers = None
        if scored is not None:
            answers = read_answers(sealed, target, run.classes, allow_mismatch=True)
            answers = answers.select(kept) if answers is not None else None
    except AcclimateError as error:
        what = "Without the data there are no images, no embedding and no maps of what the model looks at"
        left_out.append(f"{what}: {error}")
        return None
    if changed:
        left_out.append(
            f"Files of the {' and the '.join(changed)} were added, removed, moved or altered since the run: the images "
            "are those of now."
        )
    if scored is not None and (answers is None or not _gave(run, answers, scored)):
        answers = None
        left_out.append(f"The labels of {settings['target']} have changed since the run: they are not shown.")
    return Data(source, target.select(kept), answers.labels if answers is not None else None)


def _has_changed(run: Run, side: str, domain: Domain) -> bool:
    """Whether a domain, without what the run left out, is not what the run read, or lies elsewhere."""
    noted = run.record["data"][side]
    skipped = {name for name, _ in run.skipped}
    kept = [i for i, name in enumerate(domain.names) if f"{noted['origin']}: {name}" not in skipped]
    return bool(domain.select(kept).fingerprint() != noted["fingerprint"])


def _gave(run: Run, answers: Answers, scores: Scores) -> bool:
    """Whether these labels give the run's scores, with the classes that it wrote beside its rounded probabilities."""
    position = {name: k for k, name in enumerate(run.classes)}
    predicted = np.array([position.get(row[1], -1) for row in rows(run.folder / "predictions.csv")], dtype=np.int64)
    return bool((predicted >= 0).all()) and np.array_equal(
        confusion(predicted, answers, len(run.classes)), scores.confusion
    )


def _place(run: Run, path: str) -> Path:
    """Where a path of the settings leads from the folder that the run was started in, or else from this one."""
    place = Path(run.record["data"].get("paths_start_from", ""), path)
    return place if place.exists() or place.parent.is_file() else Path(path)  # a part of an .npz lies below a file


def _positions(names: Sequence[str], among: Sequence[str]) -> list[int] | None:
    """Where `names`, a part of `among` in the same order, stand in it; None if they are no such part."""
    positions = []
    rest = iter(enumerate(among))
    for name in names:
        position = next((i for i, other in rest if other == name), None)
        if position is None:
            return None
        positions.append(position)
    return positions
