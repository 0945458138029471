"""How far to trust a run: the checks of `acclimate.trust.warnings` on what a run directory holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import structs

from acclimate.data.inputs import SelectedInputs
from acclimate.machine import pick_device
from acclimate.methods.base import over_all
from acclimate.model import Model
from acclimate.runs.record import FindingRecord, RunRecord, Trust, Verdict, predictions_of
from acclimate.runs.task import Task
from acclimate.settings import Settings
from acclimate.trust.consensus import Classes, class_means, neighbours, of_each_class, sample
from acclimate.trust.estimate import estimate_gain
from acclimate.trust.validators import Evidence
from acclimate.trust.warnings import Findings, Outcome, examine

LITTLE = 0.02  # share of the predictions below which adaptation changed little
LITTLE_GAIN = 0.01  # the same of the estimated accuracy
MOST = 5000  # images of a target that are looked at: a graph of more would take longer than the training


def judge(settings: Settings, record: RunRecord, task: Task, out: Path, baseline: Path | None) -> Trust:
    """What to make of the run of a single method.

    Args:
        settings: Its settings.
        record: Its record.
        task: The data.
        out: Its run directory.
        baseline: That of source-only on the same data; None leaves most checks without evidence.

    Raises:
        DataError: A file of one of the runs is damaged.
    """
    p = predictions_of(out)
    after, before, gain = Evidence(p_target=p), None, None
    if baseline is not None:
        i = sample(len(p), settings.seed, MOST)
        before = Evidence(p_target=predictions_of(baseline)[i])
        after = Evidence(p_target=p[i], **_structure(settings, record, task.readable(), out, i))
        gain = _gain(before, after)
    errors = {feature: structs.asdict(of_domains) for feature, of_domains in record.domain_error.items()}
    findings = examine(
        Outcome(record.model.classes, after, before, domain_error=errors, gain=gain, changed_late=record.changed_late)
    )
    return Trust(
        verdict=verdict(findings),
        level=findings.level,
        findings=findings_of(findings),
        estimate=None,
        members=(),
        shares=(),
        rough=None,
        unfamiliar=None,
    )


def _gain(before: Evidence, after: Evidence) -> float | None:
    """The estimated change of the accuracy; None without frozen features."""
    if after.frozen_target is None or after.frozen_source is None or after.y_source is None:
        return None
    assert before.p_target is not None
    assert after.p_target is not None
    K = after.p_target.shape[1]
    means = class_means(after.frozen_source, after.y_source, after.frozen_target, K)
    graph = neighbours(after.frozen_target)
    return estimate_gain(before.p_target.argmax(1), after.p_target.argmax(1), means, graph, K)


def _structure(settings: Settings, record: RunRecord, task: Task, out: Path, chosen: Classes) -> dict[str, Any]:
    """The frozen features of both domains, as `Evidence` takes them; none where the backbone was trained."""
    if record.model.tune != "head":
        return {}
    model = Model.load(out, pick_device(settings.device), method=settings.method, backbone=settings.backbone)
    labels = task.source.labels
    inputs = {"source": model.inputs(task.source.domain), "target": model.inputs(task.target)}
    positions = {"source": of_each_class(labels, settings.seed), "target": chosen}
    frozen = {
        side: over_all(
            model.method, model.method.net.pool, SelectedInputs(inputs[side], positions[side]), device=model.device
        )
        for side in inputs
    }
    return {
        "frozen_source": frozen["source"].cpu().numpy(),
        "frozen_target": frozen["target"].cpu().numpy(),
        "y_source": labels[positions["source"]],
        "seed": settings.seed,
    }


def verdict(findings: Findings) -> Verdict:
    """What to make of a result, from what the checks have to say of it."""
    of_check = {found.check: found.figures for found in findings.found}
    if findings.level == "warning":
        return "look before you use it"
    if "bound" not in of_check:
        return "nothing to compare with"
    gain = of_check["gain"]["gain"] if "gain" in of_check else None
    if of_check["bound"]["share_changed"] < LITTLE or (gain is not None and abs(gain) < LITTLE_GAIN):
        return "adaptation changed little"
    return "adaptation probably helped" if gain is not None and gain > 0 else "nothing speaks against it"


def findings_of(findings: Findings) -> tuple[FindingRecord, ...]:
    """The findings as a record holds them."""
    return tuple(
        FindingRecord(check=found.check, level=found.level, sentence=found.sentence, figures=dict(found.figures))
        for found in findings.found
    )
