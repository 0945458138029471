"""How far to trust a run: the checks of `acclimate.trust.warnings` on what a run directory holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from msgspec import structs

from acclimate.machine import pick_device
from acclimate.model import Model
from acclimate.runs.members import View
from acclimate.runs.record import FindingRecord, RunRecord, Trust, Verdict, predictions_of
from acclimate.runs.task import Task
from acclimate.settings import Settings
from acclimate.trust.validators import SAMPLE, Evidence, estimated_gain
from acclimate.trust.warnings import Findings, Outcome, examine

LITTLE = 0.02  # share of the predictions below which adaptation changed little
LITTLE_GAIN = 0.01  # the same of the estimated accuracy


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
    p = predictions_of(out).probabilities
    after, before, everywhere, gain = Evidence(p_target=p), None, None, None
    if baseline is not None:
        p_before, view = predictions_of(baseline).probabilities, _view(settings, record, task.readable(), out)
        everywhere = (p_before.argmax(1), p.argmax(1))
        if view is None:
            before = Evidence(p_target=p_before)
        else:
            before, after = Evidence(p_target=p_before[view.chosen]), view.evidence(p, settings.seed)
            gain = estimated_gain(replace(after, p_before=before.p_target))
    errors = {feature: structs.asdict(of_domains) for feature, of_domains in record.domain_error.items()}
    findings = examine(
        Outcome(
            record.model.classes,
            after,
            before,
            domain_error=errors,
            everywhere=everywhere,
            gain=gain,
            changed_late=record.changed_late,
        )
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


def _view(settings: Settings, record: RunRecord, task: Task, out: Path) -> View | None:
    """The frozen features of both domains; none where the backbone was trained."""
    if record.model.tune != "head":
        return None
    model = Model.load(out, pick_device(settings.device), method=settings.method, backbone=settings.backbone)
    source, target = model.inputs(task.source.domain), model.inputs(task.target)
    return View.of(model, model.method.net.pool, source, task.source.labels, target, settings.seed, SAMPLE)


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
    return "adaptation probably helped" if gain is not None and gain > 0 else "no sign of harm"


def findings_of(findings: Findings) -> tuple[FindingRecord, ...]:
    """The findings as a record holds them."""
    return tuple(
        FindingRecord(check=found.check, level=found.level, sentence=found.sentence, figures=dict(found.figures))
        for found in findings.found
    )
