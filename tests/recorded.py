"""Records of runs and of benches, made up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import structs

from acclimate.bench.records import BenchRecord, CellScores, Trained
from acclimate.data.preprocess import Preprocess
from acclimate.evaluation.scores import Changes, ClassScore, DomainErrors, Scores
from acclimate.model import ModelSpec
from acclimate.runs.files import write_predictions
from acclimate.runs.record import (
    AccuracyEstimate,
    ClassShare,
    Comparison,
    Data,
    DomainData,
    Environment,
    FindingRecord,
    MemberRecord,
    RunRecord,
    Seconds,
    SourceData,
    TargetData,
    TermSummary,
    Trust,
    files_of,
    write_record,
)
from acclimate.settings import Settings


def run_record(classes: tuple[str, ...] = ("a", "b", "c")) -> RunRecord:
    """A record that lacks nothing: compared with source-only, measured on test images, and resumed."""
    K = len(classes)
    settings = Settings("s", "t", test="u", method="wemnet", options={"trade_off": 0.5}, weights="w.pth")
    scores = Scores(classes, np.eye(K, dtype=np.int64) + 1, n_unknown=2).record()
    return RunRecord(
        acclimate="0.1.0",
        identity="0" * 64,
        command=("fit", "--source", "s"),
        settings={**settings.as_dict(), "clip": 1.0},
        model=ModelSpec(
            method="wemnet",
            options={"trade_off": 0.5},
            classes=classes,
            backbone="lenet",
            vector=None,
            tune="all",
            bottleneck=256,
            preprocess=Preprocess(28, 28, (0.5,), (0.5,), channels=1),
            bf16=False,
        ),
        data=Data(
            paths_start_from="/home",
            source=SourceData(origin="s", items=9, fingerprint="f", classes=dict.fromkeys(classes, 3), held_out=3),
            target=TargetData(origin="t", items=8, fingerprint="g", labelled=False),
            test=DomainData(origin="u", items=K * K + K, fingerprint="h"),
            skipped=1,
        ),
        environment=Environment(
            python="3.11", platform="x", device="cpu", threads=1, processes=1, libraries={"torch": "2.6"}
        ),
        steps=1500,
        resumed_at=7,
        terms={"classification": TermSummary(first=2.0, last=0.5, mean=1.0)},
        scores=scores,
        compare=Comparison(
            method="source_only",
            scores=scores,
            changes=Changes(
                n=8,
                share_changed=0.25,
                counts_before=(8,) + (0,) * (K - 1),
                counts_after=(8,) + (0,) * (K - 1),
                confidence_before=0.5,
                confidence_after=0.75,
            ),
        ),
        selection="last step",
        domain_error={"f": DomainErrors(source=1.5, target=2.5)},
        changed_late=0.125,
        trust=trust(classes),
        seconds=Seconds(features=1.0, training=2.0, evaluation=0.5, members=9.0),
        files={"model.json": "0" * 64},
    )


def trust(classes: tuple[str, ...] = ("a", "b", "c")) -> Trust:
    """What a consensus with a note, two members and one that diverged says of itself."""
    note = FindingRecord(check="members", level="note", sentence="Two members agree.", figures={"agreement": 0.5})
    voting = {"agreement": 0.5, "accuracy": 0.75, "seconds": 2.0, "failed": None}
    failed = {"agreement": None, "with_result": None, "accuracy": None, "seconds": None, "failed": "Training diverged."}
    return Trust(
        verdict="adaptation probably helped",
        level="note",
        findings=(note,),
        estimate=AccuracyEstimate(value=0.8, low=0.6, high=0.95, agreement=0.7),
        members=(
            MemberRecord(name="source-only", folder="members/source_only", with_result=0.75, **voting),
            MemberRecord(name="JAN", folder="members/jan", with_result=0.625, **voting),
            MemberRecord(name="CRST", folder="members/crst", **failed),
        ),
        shares=tuple(
            ClassShare(name=name, predicted=1 / len(classes), bbse=(0.3, 0.2, 0.4), mlls=None) for name in classes
        ),
        rough="The estimated class shares are a rough guide.",
        unfamiliar=0.125,
    )


def finished_run(
    folder: Path,
    probabilities: npt.NDArray[np.float64],
    origin: Path,
    *,
    classes: tuple[str, ...] = ("a", "b", "c"),
    names: Sequence[str] | None = None,
    method: str = "dann",
    fingerprint: str = "g",
) -> Path:
    """A finished run, of which there is nothing but what it recorded and predicted (N, K) of its target in `origin`."""
    record = run_record(classes)
    target = TargetData(origin=str(origin), items=len(probabilities), fingerprint=fingerprint, labelled=False)
    record = structs.replace(
        record,
        identity=hashlib.sha256(str(folder).encode()).hexdigest(),
        model=replace(record.model, method=method),
        settings={**record.settings, "target": str(origin)},
        data=structs.replace(record.data, target=target),
        scores=None,
        compare=None,
    )
    folder.mkdir(parents=True)
    names = names or [str(i) for i in range(len(probabilities))]
    write_predictions(folder / "predictions.csv", names, probabilities, classes)
    write_record(folder / "record.json", structs.replace(record, files=files_of(folder)))
    return folder


def noted_anew(folder: Path) -> None:
    """Make the record of a run tell of its files as they are now; it has no checksum any more."""
    path = folder / "record.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record.pop("checksum", None)
    path.write_text(json.dumps({**record, "files": files_of(folder)}), encoding="utf-8")


def per_class(counts: Mapping[str, tuple[int, int]]) -> tuple[ClassScore, ...]:
    """The scores of classes of which so many images are right, of so many."""
    return tuple(
        ClassScore(name=name, count=count, correct=correct, accuracy=correct / count)
        for name, (correct, count) in counts.items()
    )


def bench_record(row: str, task: str, seed: int, accuracy: float | None, **more: Any) -> BenchRecord:
    """A record of a run on two classes, a with 3 images and b with 1; it is missing without an accuracy of both."""
    source, target = task.split("-")
    done = accuracy is not None
    scores = None
    if accuracy is not None:
        of_classes = per_class({"a": (2, 3), "b": (0, 1)})
        scores = CellScores(on="the target", accuracy=accuracy, mean_per_class=accuracy / 2, n=4, per_class=of_classes)
    entries = {
        "row": row,
        "baselines": (),
        "method": {"source-only": "source_only", "DANN": "dann"}.get(row, "wemnet"),
        "options": {},
        "benchmark": None,
        "metrics": ("accuracy",),
        "source": source,
        "target": target,
        "seed": seed,
        "settings": {"steps": 10, "batch_size": 6},
        "status": "done" if done else "missing",
        "error": None,
        "scores": scores,
        "domain_error": {"f": DomainErrors(source=1.0, target=2.0)} if done else {},
        "terms": {"classification": 0.5} if done else {},
        "trained": Trained(backbone=None, tune="head", bf16=False, selection="last step", threads=1) if done else None,
    }
    return BenchRecord(**{**entries, **more})
