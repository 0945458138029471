"""A task: a source, a target and, for evaluation alone, the target's labels."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import acclimate
from acclimate.data.broken import MOST_BROKEN, BrokenImages
from acclimate.data.domain import Domain, LabelledDomain, check_pair
from acclimate.data.read import read_sealed, read_source
from acclimate.errors import DataError, OptionError
from acclimate.evaluation.answers import Answers, read_answers
from acclimate.files import digest
from acclimate.methods import registry
from acclimate.networks import backbones
from acclimate.progress import Listener
from acclimate.settings import Settings, comparable


@dataclass(frozen=True, eq=False)
class Task:
    """A source, a target and, for evaluation alone, the target's labels if it has any.

    Attributes:
        source: The labelled images.
        target: The unlabelled images.
        answers: The labels of the images that are measured on, `test` or the target; training never sees them.
        test: The images to measure on, where they are not the target.
        most_broken: The largest fraction of a domain's images that may be broken.
        skipped: Names and reasons of the images that were left out.
    """

    source: LabelledDomain
    target: Domain
    answers: Answers | None = None
    test: Domain | None = None
    most_broken: float = MOST_BROKEN
    skipped: tuple[tuple[str, str], ...] = ()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What makes the data the same data, labels included. Which images are broken follows from it."""
        source, target, answers = self.source, self.target, self.answers
        return {
            "source": [source.domain.fingerprint(), source.labels.tolist(), source.classes],
            "target": target.fingerprint(),
            "test": self.test.fingerprint() if self.test is not None else None,
            "answers": answers.labels.tolist() if answers is not None else None,
        }

    @cached_property
    def broken(self) -> dict[str, BrokenImages]:
        """What is known of the broken images of "source", "target" and "test", so that all runs leave out the same."""
        domains: dict[str, Domain | LabelledDomain | None]
        domains = {"source": self.source, "target": self.target, "test": self.test}
        return {name: BrokenImages(data, self.most_broken) for name, data in domains.items() if data is not None}

    def readable(self) -> Task:
        """The task without its broken images, all of which have to be known."""
        source, target, test = self.broken["source"], self.broken["target"], self.broken.get("test")
        labels = self.source.labels[source.readable]
        measured = target if test is None else test
        return replace(
            self,
            source=LabelledDomain(source.left, labels, self.source.classes),
            target=target.left,
            answers=self.answers.select(measured.readable) if self.answers is not None else None,
            test=test.left if test is not None else None,
            skipped=tuple(
                (f"{broken.domain.origin}: {name}", reason)
                for broken in self.broken.values()
                for name, reason in (*broken.skipped, *broken.domain.unread)
            ),
        )


def read_task(settings: Settings, screen: Listener) -> Task:
    """Read both domains and check what can be checked without decoding an image.

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
    known = "unlabelled" if answers is None or test is not None else "labelled, for evaluation alone"
    measuring = f" Measured on {len(test):,} others." if test is not None else ""
    screen.say(
        f"Source: {len(source):,} items of {len(source.classes)} classes. "
        f"Target: {len(target):,} items ({known}).{measuring}"
    )
    return Task(source, target, answers, test)


class Tasks:
    """The tasks of a process, each read once, so that all runs on it leave out the same broken images."""

    def __init__(self, screen: Listener) -> None:
        self.screen = screen
        self.read: dict[tuple[str, str, str | None, bool], Task] = {}

    def of(self, settings: Settings) -> Task:
        """The task of these settings."""
        key = (settings.source, settings.target, settings.test, settings.allow_class_mismatch)
        if key not in self.read:
            self.read[key] = read_task(settings, self.screen)
        return self.read[key]


def identity(settings: Settings, task: Task) -> str:
    """What makes a run the same run: its settings, the code from outside that it runs, and the data, labels included.

    Raises:
        OptionError: Code was handed over in Python, so that nothing tells whether it is the same another time.
    """
    weights = Path(settings.weights) if settings.weights else None
    code = code_of(settings)
    parts = {
        "settings": comparable(settings.as_dict()),
        "weights": digest(weights) if weights and weights.is_file() else None,
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
