"""The benchmarks of the field by name: what belongs to each, and where it lies below a folder of the user's."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from acclimate.data.domains import label_counts, sorted_classes
from acclimate.data.images import Augment
from acclimate.errors import DataError, OptionError

Split: TypeAlias = Literal["train", "test"]
Metric: TypeAlias = Literal["accuracy", "mean_per_class"]
Task: TypeAlias = tuple[str, str]

FACTS = Path(__file__).with_name("benchmarks.toml")
DEEPEST = 2  # folders between the root and the domains
LIST_FOLDERS = ("image_list", "image_lists", "list", "lists", "txt")
MOST_NAMED = 5  # classes in a sentence


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
    """A file with a direct link, and its checksum where one is published."""

    url: str
    md5: str | None = None


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
    tasks: tuple[Task, ...]
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

    def label(self, task: Task) -> str:
        """The task as the papers' tables head its column: A→W."""
        short = {domain.name: domain.short for domain in self.domains}
        return f"{short[task[0]]}→{short[task[1]]}"

    def runnable(self, found: Collection[str]) -> tuple[Task, ...]:
        """The tasks both of whose domains are among `found`."""
        return tuple(task for task in self.tasks if task[0] in found and task[1] in found)

    def find(self, root: str | Path, split: Split = "train") -> dict[str, str]:
        """Where the domains lie below a folder.

        Recognised are the layouts of the archives, of Transfer-Learning-Library with its lists, and folders, image
        lists and .npz files that are named as the domains in any case, with `_`, `-`, blanks or nothing between the
        words, up to two folders deep. All specs are of one style, so that the labels agree: lists where they divide
        the benchmark into splits, else class folders and arrays, unless the other style finds more domains.

        Args:
            root: The folder.
            split: Which images, where the benchmark has splits and what is found does.

        Returns:
            By the names of the domains that are found, in the benchmark's order, what `read_source` and `read_target`
            take.

        Raises:
            DataError: `root` is not a folder.
        """
        root = Path(root)
        if not root.is_dir():
            raise DataError(f"{root} is not a folder: name the one that holds {self.title}.")
        folders = [root]
        for _ in range(DEEPEST + 1):
            found = [_Place(folder).find(self, split) for folder in folders]
            if any(found):
                return max(found, key=len)
            folders = [Path(entry) for folder in folders for entry in _entries(folder) if entry.is_dir()]
        return {}

    def check(self, root: str | Path) -> Report:
        """Count the images below a folder and compare them with what is published; no image is opened.

        Raises:
            DataError: `root` is not a folder.
        """
        train = self.find(root)
        test = self.find(root, "test") if self.has_splits else train
        entries: list[Entry] = []
        for domain in self.domains:
            specs = train.get(domain.name), test.get(domain.name)
            if specs[0] == specs[1]:
                entries.append(self._entry(domain, "all", specs[0]))
            else:
                entries += [self._entry(domain, "train", specs[0]), self._entry(domain, "test", specs[1])]
        return Report(self, Path(root), tuple(entries), self.runnable(train))

    def _entry(self, domain: Facts, part: Literal["train", "test", "all"], spec: str | None) -> Entry:
        test_images = domain.test_images or 0
        images = {"train": domain.images, "test": test_images, "all": domain.images + test_images}[part]
        absent = domain.absent if part == "train" else ()
        per_class = dict(zip(self.classes, domain.per_class, strict=bool(domain.per_class)))
        expected = Counter(per_class or {name: 0 for name in self.classes if name not in absent})
        counts: Counter[str | None] = Counter()
        problems: tuple[str, ...] = ()
        if spec is not None:
            try:
                counts = label_counts(spec)
                problems = tuple(_differences(counts, expected, images))
            except DataError as error:
                problems = (f"cannot be read: {str(error).rstrip('.')}",)
        classes = len(counts.keys() - {None})
        return Entry(domain.name, domain.short, part, spec, counts.total(), images, classes, len(expected), problems)


class Entry(NamedTuple):
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
class Report:
    """What `Benchmark.check` found.

    Attributes:
        benchmark: The benchmark.
        root: Where it was looked for.
        entries: The domains, found or not.
        tasks: The tasks both of whose domains are found.
    """

    benchmark: Benchmark
    root: Path
    entries: tuple[Entry, ...]
    tasks: tuple[Task, ...]

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
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


class _Place:
    """A folder that may hold domains: its folders, image lists and arrays by their plain names."""

    def __init__(self, folder: Path) -> None:
        entries = _entries(folder)
        self.folders = {_plain(entry.name): Path(entry) for entry in entries if entry.is_dir()}
        self.arrays = _files(entries, ".npz")
        self.lists = _files(entries, ".txt")
        for name in LIST_FOLDERS:
            if within := self.folders.get(_plain(name)):
                self.lists |= _files(_entries(within), ".txt")

    def find(self, benchmark: Benchmark, split: Split) -> dict[str, str]:
        part = split if benchmark.has_splits else ""
        classes = {_plain(name) for name in benchmark.classes}
        own = {domain.name: self._images(domain, part, classes) for domain in benchmark.domains}
        listed = {domain.name: self._list(domain, part) for domain in benchmark.domains}
        styles = [
            {name: str(path) for name, path in found.items() if path is not None}
            for found in ((listed, own) if benchmark.has_splits else (own, listed))
        ]
        return max(styles, key=len)  # the first of equals

    def _images(self, domain: Facts, part: str, classes: Collection[str]) -> Path | None:
        for name in map(_plain, domain.names):
            for file in filter(None, (self.arrays.get(name + part), self.arrays.get(name))):
                return file / part if part and _has_array(file, f"y_{part}") else file
            if (folder := self.folders.get(name)) is not None:
                for inside in (part, "", "images", folder.name):  # zip files hold a folder of their own name
                    if any(e.is_dir() and _plain(e.name) in classes for e in _entries(folder / inside)):
                        return folder / inside
        return None

    def _list(self, domain: Facts, part: str) -> Path | None:
        stems = [f"{_plain(name)}{ending}" for name in domain.names for ending in (part, "", "list", "all")]
        return next((self.lists[stem] for stem in stems if stem in self.lists), None)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, sorted; nothing if it is not there or may not be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError:
        return []


def _files(entries: Sequence[os.DirEntry[str]], suffix: str) -> dict[str, Path]:
    files = (Path(entry) for entry in entries if entry.name.lower().endswith(suffix))
    return {_plain(file.stem): file for file in files}


def _has_array(file: Path, name: str) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return f"{name}.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False  # whoever reads it says what is wrong


def _plain(name: str) -> str:
    """A name without case, blanks and marks."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def names() -> tuple[str, ...]:
    """The benchmarks' names."""
    return tuple(_benchmarks())


def load(name: str) -> Benchmark:
    """The benchmark of this name; case, `-` and `_` do not matter.

    Raises:
        OptionError: There is no such benchmark.
    """
    plain = {_plain(known): benchmark for known, benchmark in _benchmarks().items()}
    if _plain(name) not in plain:
        close = difflib.get_close_matches(_plain(name), plain, n=1)
        meant = plain[close[0]].name if close else ", ".join(names())
        raise OptionError(f"There is no benchmark {name!r}; did you mean {meant}?")
    return plain[_plain(name)]


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
