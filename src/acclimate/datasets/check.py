"""Counting a benchmark's images and comparing them with what is published, without opening one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from acclimate.data.domain import sorted_classes
from acclimate.data.read import label_counts
from acclimate.datasets.catalogue import Benchmark, Facts, TaskNames
from acclimate.datasets.find import find
from acclimate.errors import DataError

MOST_NAMED = 5  # classes in a sentence


class DomainCheck(NamedTuple):
    """What a check found of a domain.

    Attributes:
        domain: The domain's name.
        short: Its abbreviation.
        part: Its training or test images, or all where they are not apart.
        spec: Where they are, None if they were not found.
        images: How many there are.
        expected_images: How many are published.
        classes: How many classes there are.
        expected_classes: How many are published.
        problems: What differs, in words.
    """

    domain: str
    short: str
    part: Literal["train", "test", "all"]
    spec: str | None
    images: int
    expected_images: int
    classes: int
    expected_classes: int
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Check:
    """What `check` found.

    Attributes:
        benchmark: The benchmark.
        root: Where it was looked for.
        entries: The domains, found or not.
        tasks: The tasks both of whose domains are found.
    """

    benchmark: Benchmark
    root: Path
    entries: tuple[DomainCheck, ...]
    tasks: tuple[TaskNames, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """The domains that were not found."""
        return tuple(dict.fromkeys(entry.domain for entry in self.entries if entry.spec is None))

    @property
    def problems(self) -> tuple[str, ...]:
        """How what was found differs from what is published, each with the domain's name before it."""
        return tuple(f"{entry.domain} {problem}" for entry in self.entries for problem in entry.problems)

    def verdict(self) -> str | None:
        """Why the data cannot be used as the benchmark; None if they can, be it only for a part of its tasks."""
        title = self.benchmark.title
        if not self.tasks:
            return (
                f"No task of {title} can be run with what is below {self.root}, where {_listed(self.missing)} "
                f"{'is' if len(self.missing) == 1 else 'are'} missing: see {self.benchmark.page}."
            )
        if self.problems:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            return f"{title} below {self.root} is not as published: {self.problems[0]}{more}."
        return None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "benchmark": self.benchmark.name,
            "root": str(self.root),
            "domains": [entry._asdict() for entry in self.entries],
            "missing": self.missing,
            "tasks": [self.benchmark.label(task) for task in self.tasks],
            "usable": self.verdict() is None,
        }


def check(benchmark: Benchmark, root: str | Path) -> Check:
    """Count the images below a folder and compare them with what is published; no image is opened.

    Raises:
        DataError: `root` is not a folder.
    """
    train = find(benchmark, root)
    test = find(benchmark, root, "test") if benchmark.has_splits else train
    entries: list[DomainCheck] = []
    for domain in benchmark.domains:
        specs = train.get(domain.name), test.get(domain.name)
        if specs[0] == specs[1]:
            entries.append(_entry(benchmark, domain, "all", specs[0]))
        else:
            entries += [_entry(benchmark, domain, "train", specs[0]), _entry(benchmark, domain, "test", specs[1])]
    return Check(benchmark, Path(root), tuple(entries), benchmark.runnable(train))


def _entry(benchmark: Benchmark, domain: Facts, part: Literal["train", "test", "all"], spec: str | None) -> DomainCheck:
    test_images = domain.test_images or 0
    images = {"train": domain.images, "test": test_images, "all": domain.images + test_images}[part]
    absent = domain.absent if part == "train" else ()
    if domain.per_class:
        expected = Counter(dict(zip(benchmark.classes, domain.per_class, strict=True)))
    else:
        expected = Counter({name: 0 for name in benchmark.classes if name not in absent})
    counts: Counter[str | None] = Counter()
    problems: tuple[str, ...] = ()
    if spec is not None:
        try:
            counts = label_counts(spec)
            problems = tuple(_differences(counts, expected, images))
        except DataError as error:
            problems = (f"cannot be read: {str(error).rstrip('.')}",)
    classes = len(counts.keys() - {None})
    return DomainCheck(domain.name, domain.short, part, spec, counts.total(), images, classes, len(expected), problems)


def _differences(counts: Counter[str | None], expected: Counter[str], images: int) -> Iterator[str]:
    """How the counts differ from the published ones, which are 0 where they are not known by class."""
    labels = {label for label in counts if label is not None}
    if loose := counts[None]:
        yield f"has {loose:,} images without a class"
    if not labels & expected.keys() and all(label.isdecimal() for label in labels):  # the numbers of an image list
        if len(labels) != len(expected):
            yield f"has {len(labels)} classes instead of {len(expected)}"
    else:
        if missing := expected.keys() - labels:
            yield f"lacks {_classes(missing)}"
        if extra := labels - expected.keys():
            yield f"has {_classes(extra)}, which the benchmark has not"
        known = [name for name in sorted_classes(labels & expected.keys()) if expected[name]]
        different = [f"{n} {counts[n]:,} of {expected[n]:,}" for n in known if counts[n] != expected[n]]
        if different:
            yield f"has other numbers of images: {_listed(different)}"
    if (total := counts.total()) != images:
        yield f"has {total:,} images instead of {images:,}"


def _classes(names: Collection[str]) -> str:
    return f"the class{'es' if len(names) > 1 else ''} {_listed(sorted_classes(names))}"


def _listed(names: Sequence[str]) -> str:
    """Names in a sentence."""
    if len(names) > MOST_NAMED:
        return f"{', '.join(names[:MOST_NAMED])} and {len(names) - MOST_NAMED} more"
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
