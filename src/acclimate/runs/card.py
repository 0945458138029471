"""The card of a published model: what it was made from, and how each of its figures was obtained.

Names of classes and of folders are data: everything is escaped, so that none of them becomes markup.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from acclimate.evaluation.scores import interval
from acclimate.methods import registry
from acclimate.networks.weights import EMBEDDED
from acclimate.outside import last_part, shown
from acclimate.runs import summary
from acclimate.runs.record import RunRecord

LONGEST = 400  # characters of a name or a sentence

_MARKUP = re.compile(r"([!-/:-@\[-`{-~])")  # what a backslash takes the meaning of, in Markdown

_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


def card(record: RunRecord, name: str, license: str | None) -> str:  # noqa: A002 (what the hub calls it)
    """The content of README.md.

    Args:
        record: The run's.
        name: OWNER/NAME of the repository.
        license: The model's licence; None if nobody has named one.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=False,  # for HTML: `_escaped` is for Markdown
        finalize=_escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "plain": _Plain,
        "json": lambda value: _Plain(json.dumps(value)),
        "percent": lambda fraction: _Plain(f"{100 * fraction:.1f}"),
    }
    trust, scores, data = record.trust, record.scores, record.data
    own = record.model.method in registry.names()
    compare = record.compare.scores if record.compare is not None else None
    template = environment.from_string(Path(__file__).with_name("card.md").read_text(encoding="utf-8"))
    return template.render(
        front=list(_front_matter(record, name, license).items()),
        name=name,
        version=record.acclimate,
        method=registry.shown(record.model.method),
        paper=registry.own(record.model.method).paper if own else "",
        backbone=shown(record.model.backbone) if record.model.backbone is not None else None,
        source=_place(data.source.origin),
        target=_place(data.target.origin),
        measured_on=f"images of {_place(data.test.origin)}" if data.test is not None else "images of the target",
        items={"source": data.source.items, "target": data.target.items},
        classes=data.source.classes,
        scores=scores,
        interval=interval(scores.accuracy * scores.n, scores.n) if scores is not None else None,
        before=compare.accuracy if compare is not None and scores is not None else None,
        estimate=summary.estimated(trust.estimate) if trust is not None and trust.estimate is not None else None,
        rests_on=summary.rests_on(trust, record.settings) if trust is not None else None,
        alarms=[finding.sentence for finding in summary.alarms(trust)],
        license=license,
    )


def _front_matter(record: RunRecord, name: str, license: str | None) -> dict[str, Any]:  # noqa: A002
    """What the hub reads: YAML, of which JSON is a part. Figures are those alone that labels have measured."""
    tags = ["image-classification", "unsupervised-domain-adaptation", registry.shown(record.model.method)]
    if record.model.backbone is not None:
        tags.append(shown(record.model.backbone))
    front: dict[str, Any] = {"library_name": "acclimate", "pipeline_tag": "image-classification", "tags": tags}
    if license is not None:
        front["license"] = license
    base = _base_model(record)
    if base is not None:
        front["base_model"] = base
    if record.scores is not None:
        side = record.data.test or record.data.target
        scores = record.scores
        measured = f"of {scores.n} labelled images"
        metrics = [{"type": "accuracy", "value": round(scores.accuracy, 4), "name": measured}]
        dataset = {"type": "custom", "name": _place(side.origin)}
        result = {"task": {"type": "image-classification"}, "dataset": dataset, "metrics": metrics}
        front["model-index"] = [{"name": name.partition("/")[2], "results": [result]}]
    return front


def _base_model(record: RunRecord) -> str | None:
    """The repository of the backbone's weights, where timm has them from one."""
    model = record.model
    if model.backbone is None or model.backbone_origin is not None or record.settings.get("weights"):
        return None
    if model.backbone in EMBEDDED:  # whose weights a package installs
        return None
    from timm.models import get_pretrained_cfg

    try:
        known = get_pretrained_cfg(model.backbone)
    except (RuntimeError, ValueError, AttributeError):
        return None
    if known is None or not known.hf_hub_id:
        return None
    return f"{known.hf_hub_id}{model.backbone}" if known.hf_hub_id.endswith("/") else str(known.hf_hub_id)


def _place(origin: str) -> str:
    """What the data were, and not where they lie."""
    name = last_part(origin)
    return "data" if name in ("", ".") else name


class _Plain(str):
    """Text that stays as it is."""

    __slots__ = ()


def _escaped(value: object) -> object:
    """Text as Markdown shows it: on one line, not too long, and with nothing in it that means anything."""
    if not isinstance(value, str) or isinstance(value, _Plain):
        return value
    clean = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in value)
    clean = clean if len(clean) <= LONGEST else f"{clean[:LONGEST]}…"
    return _MARKUP.sub(lambda one: _ENTITIES.get(one[1], f"\\{one[1]}"), clean)
