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
from acclimate.trust.consensus import Classes, of_each_class, sample
from acclimate.trust.validators import Evidence
from acclimate.trust.warnings import Findings, Outcome, examine

LITTLE = 0.02  # share of the predictions below which adaptation changed little


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
    after, before = Evidence(p_target=p), None
    if baseline is not None:
        i = sample(len(p), settings.seed)
        before = Evidence(p_target=predictions_of(baseline)[i])
        after = Evidence(p_target=p[i], **_structure(settings, record, task.readable(), out, i))
    errors = {feature: structs.asdict(of_domains) for feature, of_domains in record.domain_error.items()}
    findings = examine(
        Outcome(record.model.classes, after, before, domain_error=errors, changed_late=record.changed_late)
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
    changed = next((f.figures["share_changed"] for f in findings.found if f.check == "bound"), None)
    if findings.level == "warning":
        return "look before you use it"
    if changed is None:
        return "nothing to compare with"
    return "adaptation changed little" if changed < LITTLE else "adaptation probably helped"


def findings_of(findings: Findings) -> tuple[FindingRecord, ...]:
    """The findings as a record holds them."""
    return tuple(
        FindingRecord(check=found.check, level=found.level, sentence=found.sentence, figures=dict(found.figures))
        for found in findings.found
    )
