"""The record of a run: how it was made, and its figures."""

from __future__ import annotations

import platform
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch

from acclimate import schema
from acclimate.errors import DataError
from acclimate.evaluation.scores import Changes, DomainErrors, ScoresRecord, changes
from acclimate.files import digest, write_json
from acclimate.methods.registry import BASELINE
from acclimate.model import Model, ModelSpec
from acclimate.parallel import world
from acclimate.runs.files import (
    MAKE_AGAIN,
    RUN_FILES,
    MetricsLog,
    Predictions,
    SourcePredictions,
    read_predictions,
    read_skipped,
    read_source_predictions,
)
from acclimate.schema import Checked, Count, Entry, Fraction, Positive
from acclimate.settings import check_recorded

if TYPE_CHECKING:
    from acclimate.runs.task import Task

SCHEMA = 1

UNTOLD = ("record.json", "report.html")  # files that are written after the others, and again

Severity: TypeAlias = Literal["fact", "note", "warning"]

Verdict: TypeAlias = Literal[
    "adaptation probably helped",
    "adaptation changed little",
    "no sign of harm",
    "look before you use it",
    "nothing to compare with",
]


class DomainData(Entry, frozen=True, kw_only=True):
    """What a domain was.

    Attributes:
        origin: Where from, as the command named it.
        items: How many could be read.
        fingerprint: Of the items, in their order.
    """

    origin: str
    items: Positive
    fingerprint: str


class SourceData(DomainData, frozen=True, kw_only=True):
    """What the source was.

    Attributes:
        classes: How many of its items are of each class.
        held_out: How many of the items stayed out of training.
    """

    classes: dict[str, Count]
    held_out: Count


class TargetData(DomainData, frozen=True, kw_only=True):
    """What the target was: a domain, and whether its labels measured the result."""

    labelled: bool


class Data(Entry, frozen=True, kw_only=True):
    """What the data were.

    Attributes:
        paths_start_from: The folder that relative paths start from.
        source: The labelled domain.
        target: The unlabelled domain.
        test: The images that were measured on, where they are not the target's.
        skipped: How many images could not be read.
    """

    paths_start_from: str
    source: SourceData
    target: TargetData
    test: DomainData | None
    skipped: Count


class Environment(Entry, frozen=True, kw_only=True):
    """The machine and the versions that a run was made with.

    Attributes:
        python: Its version.
        platform: The operating system and the architecture.
        device: The name of the processor or the GPU.
        threads: Of PyTorch, in each process.
        processes: That trained together.
        libraries: Their versions, by their packages' names.
    """

    python: str
    platform: str
    device: str
    threads: Positive
    processes: Positive
    libraries: dict[str, str]


class TermSummary(Entry, frozen=True, kw_only=True):
    """First, last and mean value of a term over the logged steps."""

    first: float
    last: float
    mean: float


class Comparison(Entry, frozen=True, kw_only=True):
    """What the method changed against the baseline that was trained on the same data with the same seed.

    Attributes:
        method: The baseline's name.
        scores: The baseline's scores, where there are labels.
        changes: How the predictions differ.
    """

    method: str
    scores: ScoresRecord | None
    changes: Changes


class Seconds(Entry, frozen=True, kw_only=True):
    """How long the parts of a run took since it last went on; `members` is for those of a consensus."""

    features: float
    training: float
    evaluation: float
    members: float


class AccuracyEstimate(Entry, frozen=True, kw_only=True):
    """An estimate of the accuracy on the target, made without labels: see `trust.estimate.Accuracy`."""

    value: Fraction
    low: Fraction
    high: Fraction
    agreement: Fraction


class MemberRecord(Entry, frozen=True, kw_only=True):
    """A member of a consensus.

    Attributes:
        name: As the consensus was told.
        folder: Its run directory, below that of the consensus.
        agreement: The mean share of the target's images on which it agrees with another member; None if it diverged.
        with_result: The share on which it agrees with the result; None if it diverged.
        accuracy: Of the images that have labels; None where none has, and if it diverged.
        seconds: How long its training took; None if it diverged.
        failed: Why it has no vote; None for one that has.
    """

    name: str
    folder: str
    agreement: Fraction | None
    with_result: Fraction | None
    accuracy: Fraction | None
    seconds: float | None
    failed: str | None


class ClassShare(Entry, frozen=True, kw_only=True):
    """The share of a class in the target: as predicted, and as estimated from source-only's predictions.

    Attributes:
        name: The class.
        predicted: By the result.
        bbse: By black-box shift estimation, with the ends of its interval of 95 %; None where it cannot be estimated.
        mlls: By maximum likelihood, likewise.
    """

    name: str
    predicted: Fraction
    bbse: tuple[Fraction, Fraction, Fraction] | None
    mlls: tuple[Fraction, Fraction, Fraction] | None


class FindingRecord(Entry, frozen=True, kw_only=True):
    """What a check has to say: see `trust.warnings.Finding`."""

    check: str
    level: Severity
    sentence: str
    figures: dict[str, float]


class Trust(Entry, frozen=True, kw_only=True):
    """How far to trust a result, found without labels of the target.

    Attributes:
        verdict: What to make of it, in three words or so.
        level: The level of the findings together.
        findings: What the checks have to say.
        estimate: Of the accuracy; of a consensus alone.
        members: Of a consensus.
        shares: Of the classes in the target; of a consensus alone.
        rough: Why the estimated shares are a rough guide, or why there are none; None if nothing speaks against them.
        unfamiliar: The share of the images that look like no class of the source; None where it cannot be told.
    """

    verdict: Verdict
    level: Severity
    findings: tuple[FindingRecord, ...]
    estimate: AccuracyEstimate | None
    members: tuple[MemberRecord, ...]
    shares: tuple[ClassShare, ...]
    rough: str | None
    unfamiliar: Fraction | None


class RunRecord(Checked, frozen=True, kw_only=True):
    """The content of record.json: how a run was made, and its figures.

    Attributes:
        schema: The number of this form of the file.
        acclimate: The version that made it.
        identity: A hash of all that decides the result.
        command: The command's arguments.
        settings: As `Settings.as_dict` gives them.
        model: What the model is built from, every "auto" decided.
        data: What the data were.
        environment: The machine and the versions.
        steps: Steps of the training.
        resumed_at: The step that it last went on from; None if it was made in one go.
        terms: The objectives' terms, by name.
        scores: The comparison with the labels; None without labels.
        compare: The comparison with the baseline, if there was one.
        selection: Which step's weights are the result.
        domain_error: By the feature that a discriminator reads.
        changed_late: The share of the target's predictions that changed in the last quarter of training; None where
            nobody looked.
        trust: How far to trust the result; None where nobody looked.
        seconds: How long it took.
        files: The SHA-256 of the run's other files, by their names.
    """

    schema: int = SCHEMA
    acclimate: str
    identity: str
    command: tuple[str, ...]
    settings: dict[str, Any]
    model: ModelSpec
    data: Data
    environment: Environment
    steps: Positive
    resumed_at: Positive | None
    terms: dict[str, TermSummary]
    scores: ScoresRecord | None
    compare: Comparison | None
    selection: str
    domain_error: dict[str, DomainErrors]
    changed_late: Fraction | None
    trust: Trust | None
    seconds: Seconds
    files: dict[str, str]

    def __post_init__(self) -> None:
        """Refuse figures of other classes than the model's, which is what an altered file has."""
        classes, compare = self.model.classes, self.compare
        for scores in (self.scores, compare.scores if compare is not None else None):
            if scores is not None and tuple(score.name for score in scores.per_class) != classes:
                raise ValueError("the classes of the scores are not those of the model")
        if compare is not None:
            counts = (compare.changes.counts_before, compare.changes.counts_after)
            if any(len(of_classes) != len(classes) for of_classes in counts):
                raise ValueError("the changes are not those of the model's classes")


def read_record(path: Path, advice: str = MAKE_AGAIN) -> RunRecord:
    """Read a record.json.

    Args:
        path: The file.
        advice: What to do if it cannot be used, as a sentence ends.

    Raises:
        DataError: The file is not there, is of another schema, or is damaged.
    """
    missing = f"{path.parent} holds no finished run: name the folder that a fit wrote with --out."
    record = schema.read(path, RunRecord, advice, missing=missing, schema=SCHEMA)
    with schema.told(path, advice):
        check_recorded(record.settings, needed=("method", "options", "source", "target"))
    return record


def write_record(path: Path, record: RunRecord) -> None:
    """Write a record.json, whole."""
    write_json(path, schema.as_json(record))


def files_of(run: Path) -> dict[str, str]:
    """The SHA-256 of the files of a run that its record tells of."""
    return {name: digest(run / name) for name in RUN_FILES if name not in UNTOLD and (run / name).exists()}


def verify(run: Path, record: RunRecord, *names: str) -> None:
    """Check that files of a run are as they were when its record was written.

    Args:
        run: The run directory.
        record: Its record.
        names: The files; all that the record tells of, if none is named.

    Raises:
        DataError: One is missing, or was altered.
    """
    for name in names or record.files:
        path = run / name
        try:
            found = digest(path)
        except FileNotFoundError as error:
            raise DataError(f"{path} is missing: {MAKE_AGAIN}.") from error
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}): {MAKE_AGAIN}.") from error
        if found != record.files.get(name, found):
            raise DataError(f"{path} is damaged or was altered: {MAKE_AGAIN}.")


def compared(baseline: Path, out: Path) -> Comparison:
    """What the method changed against a run of the baseline on the same data.

    Raises:
        DataError: A file of one of the runs is damaged, or the two could not read the same images.
    """
    before = read_record(baseline / "record.json")
    verify(baseline, before, "skipped.csv")
    if read_skipped(baseline / "skipped.csv") != read_skipped(out / "skipped.csv"):
        raise DataError(f"The run in {baseline} could read other images than that in {out}: use --overwrite.")
    p_before, p_after = predictions_of(baseline, before).probabilities, predictions_of(out).probabilities
    return Comparison(method=BASELINE, scores=before.scores, changes=changes(p_before, p_after))


def predictions_of(run: Path, record: RunRecord | None = None) -> Predictions:
    """What a run wrote of its target.

    Args:
        run: The run directory.
        record: Its record, where that is read already.

    Raises:
        DataError: The run is not finished, or a file of it is damaged.
    """
    record = record or read_record(run / "record.json")
    verify(run, record, "predictions.csv")
    return read_predictions(run / "predictions.csv", record.data.target.items, len(record.model.classes))


def source_predictions_of(run: Path, record: RunRecord) -> SourcePredictions:
    """What a run wrote of the source's items that stayed out of its training.

    Raises:
        DataError: The file is missing or damaged.
    """
    verify(run, record, "source_predictions.csv")
    return read_source_predictions(run / "source_predictions.csv", record.model.classes)


def data_of(task: Task, held_out: int = 0) -> Data:
    """What the data of a task are, of which so many items of the source stayed out of training."""
    source, target, test = task.source, task.target, task.test
    counts = Counter(source.labels.tolist())
    return Data(
        paths_start_from=str(Path.cwd()),
        source=SourceData(
            origin=source.domain.origin,
            items=len(source),
            classes={name: counts[k] for k, name in enumerate(source.classes)},
            held_out=held_out,
            fingerprint=source.domain.fingerprint(),
        ),
        target=TargetData(
            origin=target.origin,
            items=len(target),
            labelled=task.answers is not None and test is None,
            fingerprint=target.fingerprint(),
        ),
        test=DomainData(origin=test.origin, items=len(test), fingerprint=test.fingerprint())
        if test is not None
        else None,
        skipped=len(task.skipped),
    )


def environment(model: Model) -> Environment:
    """The machine and the versions that a run is made with."""
    device = model.device
    engines = ("openvino",) if model.spec.extractor == "openvino" else ()
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        threads=torch.get_num_threads(),
        processes=world().size,
        libraries={
            "torch": torch.__version__,  # with the build, such as +cu130, which the package's metadata may lack
            **{package: version(package) for package in ("timm", "numpy", "pillow", "scikit-learn", *engines)},
        },
    )


def terms_summary(log: MetricsLog) -> dict[str, TermSummary]:
    """First, last and mean value of each term over the logged steps."""
    values: dict[str, list[float]] = {}
    for line in log.read():
        for name, value in line.terms.items():
            values.setdefault(name, []).append(value)
    return {name: TermSummary(first=v[0], last=v[-1], mean=float(np.mean(v))) for name, v in values.items()}
