"""A task: a source, a target and, for evaluation alone, the target's labels."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import acclimate
from acclimate.data.broken import without_broken
from acclimate.data.domain import Domain, LabelledDomain, check_pair
from acclimate.data.read import read_sealed, read_source
from acclimate.errors import DataError, OptionError
from acclimate.evaluation.answers import Answers, read_answers
from acclimate.methods import registry
from acclimate.networks import backbones
from acclimate.progress import Listener
from acclimate.settings import Settings, comparable


@dataclass(frozen=True)
class Task:
    """A source, a target and, for evaluation alone, the target's labels if it has any.

    Attributes:
        source: The labelled images that can be read.
        target: The unlabelled images that can be read.
        answers: The labels of the images that are measured on, `test` or the target; training never sees them.
        skipped: Names and reasons of the images that cannot be read.
        test: The images to measure on, where they are not the target.
    """

    source: LabelledDomain
    target: Domain
    answers: Answers | None
    skipped: list[tuple[str, str]]
    test: Domain | None = None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What makes the data the same data, labels included."""
        source, target, answers = self.source, self.target, self.answers
        return {
            "source": [source.domain.fingerprint(), source.labels.tolist(), source.classes],
            "target": target.fingerprint(),
            "test": self.test.fingerprint() if self.test is not None else None,
            "answers": answers.labels.tolist() if answers is not None else None,
        }


def read_task(settings: Settings, screen: Listener) -> Task:
    """Read and check both domains before anything is computed.

    Raises:
        DataError: They cannot be used.
    """
    source = read_source(settings.source)
    target, sealed = read_sealed(settings.target)
    check_pair(source, target)
    test, measured = None, target
    if settings.test:
        measured, sealed = read_sealed(settings.test)
        check_pair(source, measured)
        test = measured
    answers = read_answers(sealed, measured, source.classes, allow_mismatch=settings.allow_class_mismatch)
    if test is not None and answers is None:
        raise DataError(f"{settings.test} has no labels to measure with: give labelled images, or leave out --test.")

    kept, skipped = [], []
    for domain in (source.domain, target, *([test] if test is not None else [])):
        keep, broken = without_broken(domain, screen.track)
        kept.append(keep)
        skipped += [(f"{domain.origin}: {name}", reason) for name, reason in broken]
    if answers is not None:
        answers = answers.select(kept[-1])  # the last is the one that is measured on
    if skipped:
        screen.warn(f"{len(skipped)} broken images are left out; skipped.csv in the run directory names them.")
    known = "unlabelled" if answers is None or test is not None else "labelled, for evaluation alone"
    measuring = f" Measured on {len(kept[-1]):,} others." if test is not None else ""
    screen.say(
        f"Source: {len(kept[0]):,} items of {len(source.classes)} classes. "
        f"Target: {len(kept[1]):,} items ({known}).{measuring}"
    )
    test = test.select(kept[-1]) if test is not None else None
    return Task(source.select(kept[0]), target.select(kept[1]), answers, skipped, test)


def identity(settings: Settings, task: Task) -> str:
    """What makes a run the same run: its settings, the code from outside that it runs, and the data, labels included.

    Raises:
        OptionError: Code was handed over in Python, so that nothing tells whether it is the same another time.
    """
    weights = Path(settings.weights) if settings.weights else None
    code = code_of(settings)
    parts = {
        "settings": comparable(settings.as_dict()),
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest() if weights and weights.is_file() else None,
        "version": acclimate.__version__,
        **({"code": code} if code else {}),
        **task.identity,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def code_of(settings: Settings) -> dict[str, dict[str, str]]:
    """The origins of a run's method and backbone, where they are from outside of the package."""
    origins = {"method": registry.origin(settings.method), "backbone": backbones.origin(settings.backbone)}
    for what, origin in origins.items():
        if origin is not None and origin.kind == "python":
            raise OptionError(
                f"A run directory cannot tell a {what} that is handed over in Python from another: name the file that "
                "defines it, as in path/to/file.py:Name, or use AdaptiveClassifier."
            )
    return {what: origin.as_dict() for what, origin in origins.items() if origin is not None}
