"""A run as its report sees it: what its folder says, and its data read anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath

import numpy as np
import numpy.typing as npt

from acclimate.data.domain import Domain, Indices, LabelledDomain
from acclimate.data.read import read_sealed, read_source
from acclimate.errors import AcclimateError, DataError
from acclimate.evaluation.answers import Answers, read_answers
from acclimate.evaluation.scores import Probabilities, Scores, confusion
from acclimate.methods import registry
from acclimate.runs.directory import baseline
from acclimate.runs.files import Metrics, MetricsLog, read_skipped
from acclimate.runs.frozen import place
from acclimate.runs.record import DomainData, RunRecord, predictions_of, read_record, verify


@dataclass(frozen=True, eq=False)
class Run:
    """What a run directory says, without the data and the model.

    Attributes:
        folder: The run directory.
        record: The content of record.json.
        names: N names of the target's items.
        after: Their class probabilities (N, K).
        before: The same from source-only, where the run was compared with it.
        reliability: (N,) the share of a consensus's members that agree with its result; None for other methods.
        metrics: The lines of metrics.jsonl.
        skipped: Names and reasons of the images that were left out.
    """

    folder: Path
    record: RunRecord
    names: tuple[str, ...]
    after: Probabilities
    before: Probabilities | None
    metrics: list[Metrics]
    skipped: list[tuple[str, str]]
    reliability: npt.NDArray[np.float64] | None = None

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read a run directory.

        Raises:
            DataError: It holds no finished run, or a damaged one.
        """
        record = read_record(folder / "record.json")
        predictions = predictions_of(folder, record)
        before = None
        if record.compare is not None and (other := baseline(folder)) is not None:
            before = predictions_of(other).probabilities
        verify(folder, record, "metrics.jsonl", "skipped.csv")
        metrics = MetricsLog(folder / "metrics.jsonl").read()
        return cls(
            folder,
            record,
            predictions.names,
            predictions.probabilities,
            before,
            metrics,
            read_skipped(folder / "skipped.csv"),
            predictions.reliability,
        )

    @property
    def method(self) -> str:
        """The method's name, as it is shown."""
        return registry.shown(self.record.model.method)

    @property
    def paper(self) -> str:
        """What the method comes from; empty for one that is no part of the package, whose code is not run for this."""
        name = self.record.model.method
        return registry.own(name).paper if name in registry.names() else ""

    @cached_property
    def domains(self) -> tuple[str, str]:
        """Short names of the source and the target."""
        origins = (PurePath(side.origin) for side in (self.record.data.source, self.record.data.target))
        source, target = (
            origin.stem if origin.suffix in (".csv", ".txt", ".npz") else origin.name for origin in origins
        )
        return source, target

    @property
    def classes(self) -> list[str]:
        """K names."""
        return list(self.record.model.classes)

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

    @cached_property
    def doubtful(self) -> Indices:
        """The positions (N,) of the items, the one to look at first at the front.

        That is the one on whose class fewest members agree, and among equals, or without members, the one with the
        lowest confidence.
        """
        agree = self.reliability if self.reliability is not None else np.zeros(len(self.names))
        return np.lexsort((self.confidence, agree))

    def counts(self, predicted: Indices) -> list[int]:
        """How many of the predictions are of each class."""
        counts: list[int] = np.bincount(predicted, minlength=len(self.classes)).tolist()
        return counts

    @property
    def tested(self) -> bool:
        """Whether it was measured on images that are not the target's."""
        return self.record.data.test is not None

    @cached_property
    def scores(self) -> Scores | None:
        """The comparison with the target's labels, if it has any."""
        return Scores.of(self.record.scores) if self.record.scores is not None else None

    @cached_property
    def scores_before(self) -> Scores | None:
        """The same of source-only."""
        compare = self.record.compare
        return Scores.of(compare.scores) if compare is not None and compare.scores is not None else None


def read_votes(run: Run, left_out: list[str]) -> dict[str, Indices]:
    """What each member of a consensus predicts, (N,) positions in the classes, by its name; empty for other methods.

    Without the members' folders there is a sentence in their place.
    """
    votes: dict[str, Indices] = {}
    position = {name: k for k, name in enumerate(run.classes)}
    for member in run.record.trust.members if run.record.trust is not None else ():
        if member.failed is not None:
            continue
        try:
            path = run.folder / member.folder
            said = predictions_of(path)
            if said.names != run.names or not {*said.predicted} <= position.keys():
                raise DataError(f"{path} is of other images or classes than the run.")
        except DataError as error:
            left_out.append(f"What each member says of each image is not shown: {error}")
            return {}
        votes[member.name] = np.array([position[name] for name in said.predicted], dtype=np.int64)
    return votes


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
    settings = run.record.settings
    try:
        source = read_source(place(run.record, settings["source"]))
        target, sealed = read_sealed(place(run.record, settings["target"]))
        if tuple(source.classes) != tuple(run.classes):
            raise DataError(f"{settings['source']} has changed since the run: it has other classes.")
        noted = {"source": (source.domain, run.record.data.source), "target": (target, run.record.data.target)}
        changed = [side for side, (domain, then) in noted.items() if _has_changed(domain, then, run.skipped)]
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


def _has_changed(domain: Domain, noted: DomainData, skipped: Sequence[tuple[str, str]]) -> bool:
    """Whether a domain, without what the run left out, is not what the run noted, or lies elsewhere."""
    left_out = {name for name, _ in skipped}
    kept = [i for i, name in enumerate(domain.names) if f"{noted.origin}: {name}" not in left_out]
    return bool(domain.select(kept).fingerprint() != noted.fingerprint)


def _gave(run: Run, answers: Answers, scores: Scores) -> bool:
    """Whether these labels give the run's scores, with the classes that it wrote beside its rounded probabilities."""
    position = {name: k for k, name in enumerate(run.classes)}
    written = predictions_of(run.folder, run.record)
    predicted = np.array([position.get(name, -1) for name in written.predicted], dtype=np.int64)
    return bool((predicted >= 0).all()) and np.array_equal(
        confusion(predicted, answers, len(run.classes)), scores.confusion
    )


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
