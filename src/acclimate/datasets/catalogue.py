"""The benchmarks of the field by name, and what belongs to each."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from acclimate.choices import Augment, Metric
from acclimate.errors import OptionError, nearest

TaskNames: TypeAlias = tuple[str, str]

FACTS = Path(__file__).with_name("benchmarks.toml")


class Facts(NamedTuple):
    """What is known of a domain.

    Attributes:
        name: Its folder in the archive.
        short: Its abbreviation in the papers' tables.
        images: How many images it has; its training images alone where `test_images` are published apart.
        test_images: How many images its test split has, None without a split.
        per_class: How many of `images` each class has, in the order of the benchmark's classes; empty if unknown.
        folders: Other names it is found by.
        absent: Classes of which it has no training image.
    """

    name: str
    short: str
    images: int
    test_images: int | None = None
    per_class: Sequence[int] = ()
    folders: Sequence[str] = ()
    absent: Sequence[str] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All that it may be called on a disk."""
        return self.name, *self.folders


class File(NamedTuple):
    """A file with a direct link, and its checksum where one is published or known to the user."""

    url: str
    md5: str | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        """What it is called without its folder."""
        return self.url.rpartition("/")[2]


class Download(NamedTuple):
    """What can be fetched.

    Attributes:
        makes: The file or folder that is there, below the root, when it has been fetched.
        form: What the files are: "archive", "list", or digits as "idx", "libsvm" or "mat".
        files: The files.
    """

    makes: str
    form: str
    files: tuple[File, ...]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
        name: Its name here, such as office31.
        title: Its name in papers.
        domains: Its domains.
        classes: Its class names, as the archive spells them.
        tasks: Sources and targets, by the domains' names, in the order of the papers' tables.
        augment: The random views of training, where a pretrained network is trained whole. Evaluation takes the plain
            view: resized, then its central crop.
        metrics: What is reported, as `evaluation.Scores` names it; the tables print the first.
        counted: Where the counts of images are from.
        page: Where it is published.
        licence: Its terms of use; None where they are not known for certain, which is no permission.
        citation: The publication.
        downloads: What has a direct link without a login.
    """

    name: str
    title: str
    domains: tuple[Facts, ...]
    classes: tuple[str, ...]
    tasks: tuple[TaskNames, ...]
    augment: Augment
    metrics: tuple[Metric, ...]
    counted: str
    page: str
    licence: str | None
    citation: str
    downloads: tuple[Download, ...]

    @property
    def has_splits(self) -> bool:
        """Whether training and test images are published apart.

        Where they are, the target's training images are adapted to and its test images are scored; elsewhere all
        images of the target are both.
        """
        return self.domains[0].test_images is not None

    def label(self, task: TaskNames) -> str:
        """The task as the papers' tables head its column: A→W."""
        short = {domain.name: domain.short for domain in self.domains}
        return f"{short[task[0]]}→{short[task[1]]}"

    def runnable(self, found: Collection[str]) -> tuple[TaskNames, ...]:
        """The tasks both of whose domains are among `found`."""
        return tuple(task for task in self.tasks if task[0] in found and task[1] in found)


def names() -> tuple[str, ...]:
    """The benchmarks' names."""
    return tuple(_benchmarks())


def load(name: str) -> Benchmark:
    """The benchmark of this name; case, `-` and `_` do not matter.

    Raises:
        OptionError: There is no such benchmark.
    """
    by_plain_name = {plain(known): benchmark for known, benchmark in _benchmarks().items()}
    if plain(name) not in by_plain_name:
        raise OptionError(f"There is no benchmark {name!r}; {nearest(plain(name), names())}")
    return by_plain_name[plain(name)]


def describe(benchmark: Benchmark) -> dict[str, Any]:
    """What is known of a benchmark, for JSON."""
    return asdict(benchmark) | {
        "domains": [domain._asdict() for domain in benchmark.domains],
        "tasks": [benchmark.label(task) for task in benchmark.tasks],
        "downloads": [download.makes for download in benchmark.downloads],
    }


@cache
def _benchmarks() -> dict[str, Benchmark]:
    with FACTS.open("rb") as file:
        return {name: _benchmark(name, facts) for name, facts in tomllib.load(file).items()}


def _benchmark(name: str, facts: dict[str, Any]) -> Benchmark:
    domains = tuple(Facts(**domain) for domain in facts["domains"])
    by_short = {domain.short: domain.name for domain in domains}
    pairs = [task.split(">") for task in facts["tasks"].split()] if "tasks" in facts else permutations(by_short, 2)
    return Benchmark(
        name=name,
        title=facts["title"],
        domains=domains,
        classes=tuple(facts["classes"].split()),
        tasks=tuple((by_short[s], by_short[t]) for s, t in pairs),
        augment=facts.get("augment", "crop+flip"),
        metrics=tuple(facts.get("metrics", ["accuracy"])),
        counted=facts["counted"],
        page=facts["page"],
        licence=facts.get("licence"),
        citation=facts["citation"],
        downloads=tuple(
            Download(entry["makes"], entry["form"], tuple(File(**file) for file in entry["files"]))
            for entry in facts.get("downloads", [])
        ),
    )


def plain(name: str) -> str:
    """A name without case, blanks and marks."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
