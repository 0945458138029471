"""What a record says of how far to trust its run, in the sentences that the closing lines and the report share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from acclimate.methods.options import options
from acclimate.methods.registry import CONSENSUS

if TYPE_CHECKING:
    from acclimate.runs.record import AccuracyEstimate, FindingRecord, MemberRecord, RunRecord, Trust

URGENCY = ("warning", "note", "fact")  # in the order in which they are told


def estimated(estimate: AccuracyEstimate) -> str:
    """The estimate with its range. Whole percentages: more digits would promise what it cannot keep."""
    value, low, high = (f"{100 * share:.0f}" for share in (estimate.value, estimate.low, estimate.high))
    return f"Estimated without labels: about {value} % of the images are classified correctly, range {low} to {high} %."


def rests_on(trust: Trust, settings: dict[str, Any]) -> str | None:
    """What the estimate rests on; None where there is none.

    Args:
        trust: Of the run.
        settings: As its record has them.
    """
    if trust.estimate is None:
        return None
    sentence = (
        "The estimate rests on one thing, how often the members agree: two of them say the same class for "
        f"{100 * trust.estimate.agreement:.0f} % of the images on average. What that means for the accuracy was "
        "measured on PACS and on digits (docs/methods/consensus.md); where members err alike, the estimate is too "
        "high."
    )
    if any(member.failed for member in trust.members) or not _default_members(settings):
        sentence += " It was measured for all of the default members, which these are not."
    return sentence


def bound(trust: Trust) -> str | None:
    """How far adaptation can have moved the accuracy at most; None where there is nothing to compare with."""
    return next((finding.sentence for finding in trust.findings if finding.check == "bound"), None)


def alarms(trust: Trust | None) -> list[FindingRecord]:
    """The warnings, then the notes."""
    found = [finding for finding in trust.findings if finding.level != "fact"] if trust is not None else []
    return sorted(found, key=lambda finding: URGENCY.index(finding.level))


def by_merit(members: Sequence[MemberRecord]) -> list[MemberRecord]:
    """The members in the order of their accuracy, or without labels of their agreement; those that failed last."""

    def merit(member: MemberRecord) -> tuple[bool, float, float]:
        return member.failed is not None, -(member.accuracy or 0.0), -(member.with_result or 0.0)

    return sorted(members, key=merit)


def caution(record: RunRecord) -> str | None:
    """What somebody who uses the model of a run should hear; None without a warning."""
    if record.trust is None or record.trust.level != "warning":
        return None
    first, *others = alarms(record.trust)
    more = f" Its report has {len(others)} more of the kind." if others else ""
    return f"The run's own checks say of this model: {record.trust.verdict}. {first.sentence}{more}"


def _default_members(settings: dict[str, Any]) -> bool:
    usual = options(CONSENSUS)["members"].default
    chosen = settings["options"].get("members", usual)
    return _names(chosen) == _names(usual)


def _names(listed: str) -> set[str]:
    return {name.strip() for name in listed.split(",")}
