"""The record of a run: how it was made, and its figures."""

from __future__ import annotations

import json
import platform
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acclimate.evaluation.scores import changes
from acclimate.methods.registry import BASELINE
from acclimate.runs.files import MetricsLog, read_probabilities
from acclimate.runs.task import Task


def compared(out: Path) -> dict[str, Any]:
    """What the method changed against the baseline whose run lies in the same folder."""
    before = json.loads((out / BASELINE / "record.json").read_text(encoding="utf-8"))
    change = changes(
        read_probabilities(out / BASELINE / "predictions.csv"), read_probabilities(out / "predictions.csv")
    )
    compared: dict[str, Any] = {"method": BASELINE, "scores": before["scores"], "changes": change.as_dict()}
    return compared


def data_json(task: Task) -> dict[str, Any]:
    """What the data were: where from, how many, and their fingerprints."""
    source, target = task.source, task.target
    counts = Counter(source.labels.tolist())
    return {
        "paths_start_from": str(Path.cwd()),
        "source": {
            "origin": source.domain.origin,
            "items": len(source),
            "classes": {name: counts[k] for k, name in enumerate(source.classes)},
            "fingerprint": source.domain.fingerprint(),
        },
        "target": {
            "origin": target.origin,
            "items": len(target),
            "labelled": task.answers is not None and task.test is None,
            "fingerprint": target.fingerprint(),
        },
        "test": {"origin": task.test.origin, "items": len(task.test), "fingerprint": task.test.fingerprint()}
        if task.test is not None
        else None,
        "skipped": len(task.skipped),
    }


def environment_json(device: torch.device) -> dict[str, Any]:
    """The machine and the versions that a run was made with."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,  # with the build, such as +cu130, which the package's metadata may lack
        **{package: version(package) for package in ("timm", "numpy", "pillow", "scikit-learn")},
    }


def terms_summary(log: MetricsLog) -> dict[str, dict[str, float]]:
    """First, last and mean value of each term over the logged steps."""
    rows = log.read()
    names = dict.fromkeys(name for row in rows for name in row if name not in ("step", "stage", "lr", "masks"))
    values = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: {"first": v[0], "last": v[-1], "mean": float(np.mean(v))} for name, v in values.items()}
