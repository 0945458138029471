"""The benchmarks by name: their facts, where their domains are found, what a check says, and fetching them."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import permutations
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import standins
from acclimate.data.domain import check_pair
from acclimate.data.read import label_counts, read_source, read_target
from acclimate.datasets import catalogue, download
from acclimate.datasets import catalogue as benchmarks
from acclimate.datasets.catalogue import Benchmark, Download, Facts, File
from acclimate.datasets.check import check
from acclimate.datasets.download import fetch, get
from acclimate.datasets.find import find
from acclimate.errors import DataError, OptionError
from tiny import AtOnce, acclimate, refused, succeeds

OFFICE, HOME, VISDA, NET, PACS, DIGITS = map(
    catalogue.load, ("office31", "office_home", "visda2017", "domainnet", "pacs", "digits")
)
CLEF = catalogue.load("imageclef_da")


def touch(root: Path, files: Iterable[str]) -> Path:
    """Empty files: whoever opens one as an image fails."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def published(root: Path, *names: str) -> Path:
    """Domains of Office-31 with as many files of each class as there are images."""
    for domain in OFFICE.domains:
        if domain.name in names:
            counts = zip(OFFICE.classes, domain.per_class, strict=True)
            touch(root, (f"{domain.name}/images/{k}/frame_{i}.jpg" for k, n in counts for i in range(n)))
    return root


def arrays(path: Path, n: dict[str, int], side: int = 28) -> None:
    """An .npz of digits in the given parts, of n[part] images each."""
    content = {}
    for part, count in n.items():
        ending = f"_{part}" if part else ""
        content[f"x{ending}"] = np.full((count, side, side), len(part), dtype=np.uint8)
        content[f"y{ending}"] = (np.arange(count) % 10).astype(np.uint8)
    np.savez(path, **content)


# --- facts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", catalogue.names())
def test_the_facts_fit_together(name: str) -> None:
    benchmark = catalogue.load(name)
    domains = [domain.name for domain in benchmark.domains]
    assert len({*domains}) == len({domain.short for domain in benchmark.domains}) == len(domains)
    assert len({*benchmark.classes}) == len(benchmark.classes) >= 7
    assert {name for task in benchmark.tasks for name in task} <= {*domains}
    assert len({*benchmark.tasks}) == len(benchmark.tasks)
    for domain in benchmark.domains:
        assert not domain.per_class or len(domain.per_class) == len(benchmark.classes)
        assert not domain.per_class or sum(domain.per_class) == domain.images
        assert {*domain.absent} <= {*benchmark.classes}
        assert (domain.test_images is not None) == benchmark.has_splits
    for entry in benchmark.downloads:
        assert entry.form in download._FORMS
        assert all(file.url.startswith("http") for file in entry.files)
    assert benchmark.page.startswith("http")
    assert {*benchmark.metrics} <= {"accuracy", "mean_per_class"}


@pytest.mark.parametrize(
    ("benchmark", "classes", "images"),
    [
        (OFFICE, 31, [2817, 498, 795]),
        (HOME, 65, [2427, 4365, 4439, 4357]),
        (VISDA, 12, [152397, 55388]),
        (catalogue.load("office_caltech10"), 10, [958, 1123, 157, 295]),
        (CLEF, 12, [600, 600, 600]),
        (PACS, 7, [1670, 2048, 2344, 3929]),
        (NET, 345, [33525, 36023, 50416, 120750, 120906, 48212]),
        (DIGITS, 10, [60000, 7291, 73257, 59001, 479400]),
    ],
)
def test_the_published_numbers(benchmark: Benchmark, classes: int, images: list[int]) -> None:
    assert len(benchmark.classes) == classes
    assert [domain.images for domain in benchmark.domains] == images


def test_the_tables_tasks() -> None:
    assert [OFFICE.label(task) for task in OFFICE.tasks] == ["A→W", "D→W", "W→D", "A→D", "D→A", "W→A"]
    assert OFFICE.tasks[0] == ("amazon", "webcam")
    assert [HOME.label(task) for task in HOME.tasks] == [
        f"{s}→{t}" for s, t in permutations(("Ar", "Cl", "Pr", "Rw"), 2)
    ]
    assert VISDA.tasks == (("train", "validation"),)
    assert len(NET.tasks) == 30
    assert (VISDA.metrics, OFFICE.metrics) == (("mean_per_class", "accuracy"), ("accuracy",))
    assert (VISDA.augment, OFFICE.augment) == ("flip", "crop+flip")  # VisDA: a central crop in training
    assert (NET.has_splits, DIGITS.has_splits, OFFICE.has_splits) == (True, True, False)


def test_visda_s_validation_by_class() -> None:
    counts = dict(zip(VISDA.classes, VISDA.domains[1].per_class, strict=True))
    assert (counts["car"], counts["knife"], counts["truck"]) == (10401, 2075, 5548)


@pytest.mark.parametrize("name", ["office31", "Office-31", "OFFICE_31"])
def test_a_name_in_any_spelling(name: str) -> None:
    assert catalogue.load(name) is OFFICE


def test_an_unknown_name() -> None:
    with pytest.raises(OptionError, match=re.escape("no benchmark 'ofice-home'; did you mean office_home?")):
        catalogue.load("ofice-home")
    with pytest.raises(OptionError, match="there are office31, office_home, visda2017"):
        catalogue.load("xyz")


# --- finding -------------------------------------------------------------------------------------------------------

LISTED = ("image_list/amazon.txt", "image_list/dslr.txt", "image_list/webcam.txt")


@pytest.mark.parametrize(
    ("benchmark", "files", "found"),
    [
        pytest.param(
            OFFICE,
            ["amazon/images/mug/1.jpg", "dslr/images/mug/1.jpg", "webcam/images/mug/1.jpg", *LISTED],
            {"amazon": "amazon/images", "dslr": "dslr/images", "webcam": "webcam/images"},
            id="archive and lists",
        ),
        pytest.param(
            OFFICE,
            ["domain_adaptation_images/amazon/images/mug/1.jpg", "domain_adaptation_images/Webcam/mug/1.jpg"],
            {"amazon": "domain_adaptation_images/amazon/images", "webcam": "domain_adaptation_images/Webcam"},
            id="one folder deep, a part",
        ),
        pytest.param(OFFICE, LISTED, {Path(file).stem: file for file in LISTED}, id="lists alone"),
        pytest.param(
            OFFICE,
            ["amazon_list.txt", "amazon/x.jpg", "webcam_list.txt"],
            {"amazon": "amazon_list.txt", "webcam": "webcam_list.txt"},
            id="lists beside folders without classes",
        ),
        pytest.param(
            HOME,
            ["Home/Real World/TV/1.jpg", "Home/Art/TV/1.jpg"],
            {"Art": "Home/Art", "Real World": "Home/Real World"},
            id="blanks",
        ),
        *(
            pytest.param(HOME, [f"{name}/Alarm_Clock/1.jpg"], {"Real World": name}, id=name)
            for name in ("Real_World", "RealWorld", "real-world", "REAL WORLD")
        ),
        pytest.param(
            VISDA,
            ["train/train/1.png", "train/image_list.txt", "validation/train/1.jpg", "validation/image_list.txt"],
            {"train": "train", "validation": "validation"},
            id="a class named as a domain",
        ),
        pytest.param(VISDA, ["bus/1.jpg", "train/1.jpg"], {}, id="inside a domain"),
        pytest.param(
            PACS,
            ["a/photo/dog/1.jpg", "b/photo/dog/1.jpg", "b/sketch/dog/1.jpg"],
            {"photo": "b/photo", "sketch": "b/sketch"},
            id="the folder with most domains",
        ),
        pytest.param(
            PACS,
            ["PACS/kfold/photo/dog/1.jpg", "PACS/kfold/art_painting/dog/1.jpg", "PACS/Raw/x/y.txt"],
            {"photo": "PACS/kfold/photo", "art_painting": "PACS/kfold/art_painting"},
            id="two folders deep",
        ),
        pytest.param(PACS, ["photo/dog/1.jpg", "other/photo/dog/1.jpg"], {"photo": "photo"}, id="the least deep"),
        pytest.param(
            PACS,
            ["image_list/photo_all.txt", "image_list/photo_train.txt"],
            {"photo": "image_list/photo_all.txt"},
            id="lists of all",
        ),
        pytest.param(
            CLEF,
            ["i/1.jpg", "p/1.jpg", "c/1.jpg", "list/iList.txt", "list/pList.txt", "list/cList.txt"],
            {"imagenet": "list/iList.txt", "pascal": "list/pList.txt", "caltech": "list/cList.txt"},
            id="flat folders with lists",
        ),
        pytest.param(NET, ["clipart/clipart/axe/1.jpg"], {"clipart": "clipart/clipart"}, id="unzipped into its name"),
        pytest.param(
            NET,
            ["clipart/axe/1.jpg", "real/axe/1.jpg", "clipart_train.txt", "clipart_test.txt", "real_train.txt"],
            {"clipart": "clipart_train.txt", "real": "real_train.txt"},
            id="splits",
        ),
        pytest.param(OFFICE, ["a/b/c/amazon/mug/1.jpg", "readme.md"], {}, id="too deep"),
    ],
)
def test_find(benchmark: Benchmark, files: list[str], found: dict[str, str], tmp_path: Path) -> None:
    specs = find(benchmark, touch(tmp_path, files))
    assert specs == {name: str(tmp_path / spec) for name, spec in found.items()}
    assert list(specs) == [domain.name for domain in benchmark.domains if domain.name in found]
    assert find(benchmark, tmp_path, "test") == specs or benchmark.has_splits


def test_all_specs_are_of_one_style(tmp_path: Path) -> None:
    """Folders label with names and lists with numbers, so that one of each would have no class in common."""
    touch(tmp_path, ["amazon/images/mug/1.jpg", *LISTED])
    assert find(OFFICE, tmp_path) == {Path(file).stem: str(tmp_path / file) for file in LISTED}


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone is not a folder: name the one that holds Office-31"):
        find(OFFICE, tmp_path / "gone")


@pytest.mark.parametrize("name", standins.LAYOUT)
def test_what_is_found_can_be_read(name: str, tmp_path: Path) -> None:
    benchmark = catalogue.load(name)
    found = find(benchmark, standins.make(name, tmp_path))
    assert [*found] == [domain.name for domain in benchmark.domains]
    for s, t in benchmark.runnable(found):
        source, target = read_source(found[s]), read_target(found[t])
        check_pair(source, target)
        assert {*source.classes} == {*benchmark.classes}
        assert len(source) == len(target) == 2 * len(benchmark.classes)


def test_transfer_learning_library_s_lists_can_be_read(tmp_path: Path) -> None:
    """Their paths start from the root, not from the folder of the lists, and their labels are numbers."""
    touch(
        tmp_path, (f"{domain}/images/{k}_{i}.jpg" for domain in ("amazon", "dslr") for k in range(31) for i in (0, 1))
    )
    (tmp_path / "image_list").mkdir()
    for domain in ("amazon", "dslr"):
        lines = [f"{domain}/images/{k}_{i}.jpg {k}\n" for k in range(31) for i in (0, 1)]
        (tmp_path / "image_list" / f"{domain}.txt").write_text("".join(lines))
    found = find(OFFICE, tmp_path)
    source = read_source(found["amazon"])
    assert source.classes == tuple(map(str, range(31)))
    assert isinstance(source.domain.items, tuple)
    assert source.domain.items[3] == str(tmp_path / "amazon" / "images" / "1_1.jpg")
    assert source.labels.tolist() == [k for k in range(31) for _ in (0, 1)]
    check_pair(source, read_target(found["dslr"]))


def test_digits_in_parts(tmp_path: Path) -> None:
    arrays(tmp_path / "MNIST.npz", {"train": 30, "test": 20})
    arrays(tmp_path / "usps_train.npz", {"": 25}, side=16)
    arrays(tmp_path / "usps_test.npz", {"": 15}, side=16)
    arrays(tmp_path / "syn_digits.npz", {"": 10})
    train, test = find(DIGITS, tmp_path), find(DIGITS, tmp_path, "test")
    assert train == {
        "mnist": str(tmp_path / "MNIST.npz" / "train"),
        "usps": str(tmp_path / "usps_train.npz"),
        "syn": str(tmp_path / "syn_digits.npz"),
    }
    assert test == train | {"mnist": str(tmp_path / "MNIST.npz" / "test"), "usps": str(tmp_path / "usps_test.npz")}
    assert [DIGITS.label(task) for task in DIGITS.runnable(train)] == ["MNIST→USPS", "USPS→MNIST"]
    source = read_source(train["mnist"])
    assert (len(source), len(read_target(test["mnist"])), len(read_target(test["usps"]))) == (30, 20, 15)
    assert source.classes == tuple("0123456789")
    assert not isinstance(source.domain.items, tuple)
    assert source.domain.items.max() == len("train")  # the right part's images


def test_a_part_that_is_not_there(tmp_path: Path) -> None:
    arrays(tmp_path / "a.npz", {"train": 20})
    with pytest.raises(DataError, match=r"a\.npz has no array 'x_test'"):
        read_target(tmp_path / "a.npz" / "test")
    with pytest.raises(
        DataError, match=r"a\.npz has no array 'x': .* or name a part of it, .*a\.npz.train for x_train"
    ):
        read_target(tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"a\.npz has no array 'y'"):
        label_counts(tmp_path / "a.npz")


# --- checking ------------------------------------------------------------------------------------------------------


def test_a_part_as_published(tmp_path: Path) -> None:
    touch(published(tmp_path, "dslr", "webcam"), ["dslr/images/mug/Thumbs.db", "webcam/images/mug/.hidden.jpg"])
    report = check(OFFICE, tmp_path)
    assert report.verdict() is None
    assert report.missing == ("amazon",)
    assert report.problems == ()
    assert [OFFICE.label(task) for task in report.tasks] == ["D→W", "W→D"]
    amazon, dslr, _ = report.entries
    assert (amazon.spec, amazon.images, amazon.expected_images, amazon.classes) == (None, 0, 2817, 0)
    assert (dslr.part, dslr.images, dslr.expected_images, dslr.classes, dslr.expected_classes) == (
        "all",
        498,
        498,
        31,
        31,
    )


def damaged(change: Callable[[Path], object]) -> Callable[[Path], tuple[str, ...]]:
    def problems(root: Path) -> tuple[str, ...]:
        change(published(root, "dslr", "webcam") / "dslr" / "images")
        report = check(OFFICE, root)
        assert len(report.tasks) == 2
        verdict = str(report.verdict())
        assert verdict.startswith(f"Office-31 below {root} is not as published: {report.problems[0]}")
        return report.problems

    return problems


def test_an_image_is_missing(tmp_path: Path) -> None:
    assert damaged(lambda folder: (folder / "mug" / "frame_0.jpg").unlink())(tmp_path) == (
        "dslr has other numbers of images: mug 7 of 8",
        "dslr has 497 images instead of 498",
    )


def test_an_image_is_in_another_class(tmp_path: Path) -> None:
    move = damaged(lambda folder: (folder / "mug" / "frame_0.jpg").rename(folder / "pen" / "other.jpg"))
    assert move(tmp_path) == ("dslr has other numbers of images: mug 7 of 8 and pen 11 of 10",)


def test_a_class_is_missing(tmp_path: Path) -> None:
    assert damaged(lambda folder: shutil.rmtree(folder / "mug"))(tmp_path) == (
        "dslr lacks the class mug",
        "dslr has 490 images instead of 498",
    )


def test_a_class_is_empty(tmp_path: Path) -> None:
    def empty(folder: Path) -> None:
        for file in (folder / "mug").iterdir():
            file.unlink()

    assert damaged(empty)(tmp_path)[0] == "dslr lacks the class mug"


def test_classes_have_other_names(tmp_path: Path) -> None:
    def change(folder: Path) -> None:
        (folder / "back_pack").rename(folder / "backpack")
        touch(folder, ["loose.jpg"])

    assert damaged(change)(tmp_path) == (
        "dslr has 1 images without a class",
        "dslr lacks the class back_pack",
        "dslr has the class backpack, which the benchmark has not",
        "dslr has 499 images instead of 498",
    )


def test_many_classes_are_missing(tmp_path: Path) -> None:
    def change(folder: Path) -> None:
        for name in OFFICE.classes[:8]:
            shutil.rmtree(folder / name)

    assert damaged(change)(tmp_path)[0] == (
        "dslr lacks the classes back_pack, bike, bike_helmet, bookcase, bottle and 3 more"
    )


def test_a_list_with_a_file_that_is_gone(tmp_path: Path) -> None:
    touch(tmp_path, ["amazon/1.jpg"])
    (tmp_path / "amazon.txt").write_text("amazon/1.jpg 0\namazon/2.jpg 1\n")
    (tmp_path / "dslr.txt").write_text("amazon/1.jpg 0\n")
    amazon, dslr, _ = check(OFFICE, tmp_path).problems
    assert amazon.startswith("amazon cannot be read: 1 of the 2 files that")
    assert dslr == "dslr has 1 classes instead of 31"


def test_nothing_to_run(tmp_path: Path) -> None:
    touch(tmp_path, ["webcam/mug/1.jpg"])
    assert check(OFFICE, tmp_path).verdict() == (
        f"No task of Office-31 can be run with what is below {tmp_path}, where amazon and dslr are missing: "
        "see https://faculty.cc.gatech.edu/~judy/domainadapt/."
    )


def net(root: Path, *, lists: bool) -> Benchmark:
    """A DomainNet of two domains, whose painting lacks t-shirts in its training images, as the published one does."""
    clipart, painting = (d._replace(images=2 * (345 - len(d.absent)), test_images=345) for d in NET.domains[0:3:2])
    for domain in (clipart, painting):
        for k, name in enumerate(NET.classes):
            touch(root, (f"{domain.name}/{name}/{i}.jpg" for i in range(3 if name not in domain.absent else 1)))
            for part, numbers in (("train", () if name in domain.absent else (0, 1)), ("test", (2,))):
                if lists:
                    with (root / f"{domain.name}_{part}.txt").open("a") as file:
                        file.writelines(
                            f"{domain.name}/{name}/{0 if name in domain.absent else i}.jpg {k}\n" for i in numbers
                        )
    return replace(NET, domains=(clipart, painting), tasks=(("clipart", "painting"),))


@pytest.mark.parametrize("lists", [True, False])
def test_splits(lists: bool, tmp_path: Path) -> None:
    report = check(net(tmp_path, lists=lists), tmp_path)
    assert report.verdict() is None, report.problems
    seen = [(e.domain, e.part, e.images, e.classes) for e in report.entries]
    if lists:
        assert seen == [
            ("clipart", "train", 690, 345),
            ("clipart", "test", 345, 345),
            ("painting", "train", 688, 344),
            ("painting", "test", 345, 345),
        ]
    else:
        assert seen == [("clipart", "all", 1035, 345), ("painting", "all", 1033, 345)]


def test_counting_digits_reads_no_images(tmp_path: Path) -> None:
    y = np.arange(20, dtype=np.uint8) % 10
    with zipfile.ZipFile(tmp_path / "mnist.npz", "w") as file:
        for name in ("x_train", "x_test"):
            file.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00, cut off")
        for name in ("y_train", "y_test"):
            content = io.BytesIO()
            np.save(content, y)
            file.writestr(f"{name}.npy", content.getvalue())
    benchmark = replace(DIGITS, domains=(Facts("mnist", "MNIST", 20, 20),), tasks=())
    assert check(benchmark, tmp_path).problems == ()


def test_label_counts_agree_with_the_reader(tmp_path: Path) -> None:
    found = find(OFFICE, standins.make("office31", tmp_path, per_class=1))
    source = read_source(found["dslr"])
    assert label_counts(found["dslr"]) == dict.fromkeys(source.classes, 1)


# --- the command line ----------------------------------------------------------------------------------------------


def test_data_list() -> None:
    shown = succeeds("data", "list", columns=120).stdout
    assert all(name in shown for name in catalogue.names())
    described = succeeds("data", "list", "Office-Home", columns=120).stdout
    for part in ("Office-Home, 65 classes", "4,357", "Ar→Cl", "non-commercial", "hemanthdv.org", "CVPR 2017"):
        assert part in described
    (entry,) = json.loads(succeeds("data", "list", "visda2017", "--json").stdout)
    assert entry["metrics"] == ["mean_per_class", "accuracy"]
    assert entry["downloads"] == ["train", "validation"]
    assert [e["name"] for e in json.loads(succeeds("data", "list", "--json").stdout)] == [*catalogue.names()]


def test_data_check(tmp_path: Path) -> None:
    result = succeeds("data", "check", "office31", "--root", published(tmp_path, "dslr", "webcam"), columns=300)
    assert result.stderr == ""
    assert re.search(r"dslr +498 +498 +31 +31 +\S+dslr.images", result.stdout)
    assert re.search(r"amazon +0 +2,817 +0 +31 +no", result.stdout)
    assert "Missing: amazon\nTasks that can be run: D→W, W→D\n" in result.stdout

    (tmp_path / "webcam" / "images" / "pen" / "frame_0.jpg").unlink()
    result = acclimate("data", "check", "office31", "--root", tmp_path, "--json")
    assert result.exit_code == 2
    report = json.loads(result.stdout)
    assert report["usable"] is False
    assert report["missing"] == ["amazon"]
    assert report["domains"][2]["problems"][0] == "has other numbers of images: pen 31 of 32"
    assert result.stderr.startswith("Error: Office-31 below")
    assert result.stderr.count("\n") == 1


def test_data_check_of_nothing(tmp_path: Path) -> None:
    result = acclimate("data", "check", "office31", "--root", tmp_path)
    assert result.exit_code == 2
    assert "Tasks that can be run: none" in result.stdout
    assert "amazon, dslr and webcam are missing" in result.stderr
    assert "did you mean pacs?" in acclimate("data", "check", "pac", "--root", tmp_path).stderr


# --- fetching ------------------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Serves what is in `files`, and sends at most `most` bytes an answer, after which it cuts the connection."""

    files: ClassVar[dict[str, bytes]] = {}
    most: ClassVar[int] = 2**30
    ranges: ClassVar[list[tuple[str, str | None]]] = []
    knows_ranges: ClassVar[bool] = True

    def do_GET(self) -> None:
        name, asked = self.path[1:], self.headers["Range"]
        self.ranges.append((name, asked))
        if name not in self.files:
            self.send_error(404)
            return
        content = self.files[name]
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.knows_ranges else 0
        if start >= len(content) > 0 and start:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[start : start + self.most])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Handler]]]:
    """The address of a server on this machine, and what it serves."""
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "*")
    handler = type("Own", (Handler,), {"files": {}, "ranges": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}", handler
        http.shutdown()
        thread.join()


Server = tuple[str, type[Handler]]
CONTENT = bytes(range(256)) * 40


def test_fetch_goes_on_after_a_cut(server: Server, tmp_path: Path) -> None:
    url, handler = server
    handler.files["a.bin"] = CONTENT
    handler.most = 1000
    file = File(f"{url}/a.bin", hashlib.md5(CONTENT, usedforsecurity=False).hexdigest())
    assert fetch(file, tmp_path, "PAGE").read_bytes() == CONTENT
    assert [asked for _, asked in handler.ranges] == [None, *(f"bytes={n}000-" for n in range(1, 11))]
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    fetch(file, tmp_path, "PAGE")
    assert len(handler.ranges) == 11  # it is there


def test_fetch_goes_on_after_a_kill(server: Server, tmp_path: Path) -> None:
    url, handler = server
    handler.files["a.bin"] = CONTENT
    for there in (CONTENT[:100], CONTENT):  # the second was complete, but not yet renamed
        (tmp_path / "a.bin").unlink(missing_ok=True)
        (tmp_path / "a.bin.part").write_bytes(there)
        assert fetch(File(f"{url}/a.bin"), tmp_path, "PAGE").read_bytes() == CONTENT
    assert [asked for _, asked in handler.ranges] == ["bytes=100-", f"bytes={len(CONTENT)}-"]


def test_fetch_begins_anew_where_it_cannot_go_on(server: Server, tmp_path: Path) -> None:
    url, handler = server
    handler.files["a.bin"] = CONTENT
    (tmp_path / "a.bin.part").write_bytes(2 * CONTENT)  # of a file that was longer
    assert fetch(File(f"{url}/a.bin"), tmp_path, "PAGE").read_bytes() == CONTENT
    handler.knows_ranges = False
    (tmp_path / "a.bin").unlink()
    (tmp_path / "a.bin.part").write_bytes(b"other")
    assert fetch(File(f"{url}/a.bin"), tmp_path, "PAGE").read_bytes() == CONTENT


def test_fetch_gives_up(server: Server, tmp_path: Path) -> None:
    url, handler = server
    handler.files["a.bin"] = CONTENT
    handler.most = 0
    with pytest.raises(
        DataError, match=r"a\.bin cannot be fetched \(.*\): try again later, which goes on .* see PAGE\."
    ):
        fetch(File(f"{url}/a.bin"), tmp_path, "PAGE")
    assert len(handler.ranges) == download.ATTEMPTS
    with pytest.raises(DataError, match=r"gone is a dead link \(404 Not Found\): see PAGE\."):
        fetch(File(f"{url}/gone"), tmp_path, "PAGE")
    assert len(handler.ranges) == download.ATTEMPTS + 1


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="this system cannot refuse links")
def test_fetch_does_not_write_where_a_link_leads(server: Server, tmp_path: Path) -> None:
    url, handler = server
    handler.files["a.bin"] = CONTENT
    (tmp_path / "elsewhere").write_bytes(b"precious")
    (tmp_path / "a.bin.part").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"a\.bin cannot be fetched \(.*link"):
        fetch(File(f"{url}/a.bin"), tmp_path, "PAGE")
    assert (tmp_path / "elsewhere").read_bytes() == b"precious"


def test_a_wrong_checksum(server: Server, tmp_path: Path) -> None:
    url, handler = server
    handler.files["a.bin"] = CONTENT
    with pytest.raises(
        DataError, match=r"a\.bin has not the checksum that was published, 0000, but .*: it was deleted"
    ):
        fetch(File(f"{url}/a.bin", "0000"), tmp_path, "PAGE")
    assert not any(tmp_path.iterdir())


def test_a_small_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, handler = server
    handler.files["a.bin"] = CONTENT
    usage = shutil.disk_usage(tmp_path)._replace(free=2 * len(CONTENT) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DataError, match="GiB free: make room or name another --root"):
        fetch(File(f"{url}/a.bin"), tmp_path, "PAGE")
    usage = usage._replace(free=2 * len(CONTENT))
    fetch(File(f"{url}/a.bin"), tmp_path, "PAGE")


def tar(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return content.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def only(benchmark: Benchmark, *downloads: Download) -> Benchmark:
    return replace(benchmark, downloads=downloads)


def test_get_archives_and_lists(server: Server, tmp_path: Path) -> None:
    url, handler = server
    handler.files |= {
        "train.tar": tar({"train/bus/1.png": b"1", "train/car/2.png": b"2"}),
        "real.zip": zipped({"real/axe/1.jpg": b"3", "extra.txt": b""}),
        "real.txt": b"real/axe/1.jpg 0\n",
    }
    benchmark = only(
        VISDA,
        Download("train", "archive", (File(f"{url}/train.tar"),)),
        Download("real", "archive", (File(f"{url}/real.zip"),)),
        Download("real_train.txt", "list", (File(f"{url}/real.txt"),)),
    )
    root = tmp_path / "new" / "root"
    assert get(benchmark, root) == [root / "train", root / "real", root / "real_train.txt"]
    assert {str(path.relative_to(root)) for path in root.rglob("*.*")} == {
        str(Path(name)) for name in ("train/bus/1.png", "train/car/2.png", "real/axe/1.jpg", "real_train.txt")
    }
    asked = len(handler.ranges)
    assert get(benchmark, root) == []
    assert len(handler.ranges) == asked


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(tar({"../evil": b""}), id="outside"),
        pytest.param(tar({"other/1.png": b""}), id="another folder"),
        pytest.param(tar({"train/1.png": bytes(99999)})[:3000], id="cut"),
        pytest.param(b"<html>", id="no archive"),
    ],
)
def test_a_bad_archive(server: Server, content: bytes, tmp_path: Path) -> None:
    url, handler = server
    handler.files["train.tar"] = content
    root = tmp_path / "root"
    with pytest.raises(DataError, match=r"train\.tar holds cannot be unpacked \(.*which fetches it anew"):
        get(only(VISDA, Download("train", "archive", (File(f"{url}/train.tar"),))), root)
    assert not (root / "train").exists()
    assert not (tmp_path / "evil").exists()
    assert not [path for path in root.rglob("*") if path.suffix == ".tar"]


@pytest.mark.parametrize("packed", [tar, zipped])
def test_an_archive_that_unpacks_to_more_than_the_disk_has(
    packed: Callable[[dict[str, bytes]], bytes], server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, handler = server
    handler.files["train.tar"] = packed({f"train/{n}.png": bytes(9000) for n in range(10)})  # of three blocks each
    wanted = only(VISDA, Download("train", "archive", (File(f"{url}/train.tar"),)))
    usage = shutil.disk_usage(tmp_path)._replace(free=30 * 2**12 - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr(download, "_check_room", lambda *_: None)
    with pytest.raises(DataError, match=r"^train\.tar unpacks to more than .* make room or name another --root\.$"):
        get(wanted, tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == [".downloads", "train.tar"]  # which need not come again
    usage = usage._replace(free=30 * 2**12)
    assert get(wanted, tmp_path) == [tmp_path / "train"]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [(OSError(28, "No space left on device"), "train cannot be unpacked.*make room"), (KeyboardInterrupt(), None)],
)
def test_what_cannot_be_unpacked_leaves_nothing(
    error: BaseException, sentence: str | None, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, handler = server
    handler.files["train.tar"] = tar({"train/1.png": b"1", "train/2.png": b"2"})
    extract = tarfile.TarFile.extract

    def full(self: tarfile.TarFile, member: tarfile.TarInfo, *args: object, **more: object) -> None:
        if member.name == "train/2.png":
            raise error
        extract(self, member, *args, **more)

    def unpack(self: tarfile.TarFile, path: Path, **more: object) -> None:
        for member in self:
            full(self, member, path)

    monkeypatch.setattr(tarfile.TarFile, "extractall", unpack)
    with pytest.raises(DataError if sentence else KeyboardInterrupt, match=sentence):
        get(only(VISDA, Download("train", "archive", (File(f"{url}/train.tar"),))), tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == [".downloads", "train.tar"]


def test_checksums_that_the_user_knows(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, handler = server
    handler.files["train.tar"] = content = tar({"train/bus/1.png": b"1"})
    wanted = only(VISDA, Download("train", "archive", (File(f"{url}/train.tar"),)))
    monkeypatch.setattr(benchmarks, "load", lambda name: wanted)
    command = ("data", "get", "visda2017", "--root", tmp_path)
    right, wrong = hashlib.sha256(content).hexdigest(), "0" * 64
    assert "train.tar has not the checksum that you gave" in refused(*command, "--sha256", f"train.tar={wrong}")
    assert not list(tmp_path.rglob("*.tar*"))
    assert "has no file 'train'; did you mean train.tar?" in refused(*command, "--sha256", f"train={right}")
    for given in ("train.tar=0", "train.tar", "train.tar=" + "x" * 64):
        assert refused(*command, "--sha256", given).endswith(".")
    assert "Warning" not in succeeds(*command, "--sha256", f"train.tar={right.upper()}").stderr
    shutil.rmtree(tmp_path / "train")
    assert "Nobody has published a checksum of train.tar, and" in succeeds(*command).stderr


def test_get_digits(server: Server, tmp_path: Path) -> None:
    from scipy.io import savemat

    url, handler = server
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (12, 28, 28), dtype=np.uint8), np.arange(12, dtype=np.uint8) % 10
    for part, own in (("train", slice(0, 8)), ("t10k", slice(8, 12))):
        handler.files[f"{part}-images"] = gzip.compress(bytes(16) + x[own].tobytes())
        handler.files[f"{part}-labels"] = gzip.compress(bytes(8) + y[own].tobytes())
    small = x[:, :16, :16]
    for name, own in (("usps.bz2", slice(0, 8)), ("usps.t.bz2", slice(8, 12))):
        rows = [
            f"{k + 1} " + " ".join(f"{j}:{p / 127.5 - 1:.6f}" for j, p in enumerate(image.ravel(), 1)) + " \n"
            for image, k in zip(small[own], y[own], strict=True)
        ]
        handler.files[name] = bz2.compress("".join(rows).encode())
    colour = rng.integers(0, 256, (32, 32, 3, 12), dtype=np.uint8)
    for name, own in (("train.mat", slice(0, 8)), ("test.mat", slice(8, 12))):
        content = io.BytesIO()
        savemat(content, {"X": colour[..., own], "y": np.where(y[own] == 0, 10, y[own])[:, None]}, do_compression=True)
        handler.files[name] = content.getvalue()

    def files(*names: str) -> tuple[File, ...]:
        return tuple(File(f"{url}/{name}") for name in names)

    benchmark = only(
        DIGITS,
        Download("mnist.npz", "idx", files("train-images", "train-labels", "t10k-images", "t10k-labels")),
        Download("usps.npz", "libsvm", files("usps.bz2", "usps.t.bz2")),
        Download("svhn.npz", "mat", files("train.mat", "test.mat")),
    )
    get(benchmark, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mnist.npz", "svhn.npz", "usps.npz"]
    for name, expected in (("mnist", x), ("usps", small), ("svhn", colour.transpose(3, 0, 1, 2))):
        for split, own in (("train", slice(0, 8)), ("test", slice(8, 12))):
            domain = read_target(find(DIGITS, tmp_path, "train" if split == "train" else "test")[name])
            assert np.array_equal(domain.items, expected[own])
            with np.load(tmp_path / f"{name}.npz") as content:
                assert content[f"y_{split}"].tolist() == y[own].tolist()


def test_data_get(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acclimate.screen.Timer", AtOnce)
    url, handler = server
    handler.files["train.tar"] = tar({"train/bus/1.png": b"1"})
    benchmark = only(VISDA, Download("train", "archive", (File(f"{url}/train.tar"),)))
    monkeypatch.setattr(benchmarks, "load", lambda name: benchmark)
    result = succeeds("data", "get", "visda2017", "--root", tmp_path, "--json")
    assert json.loads(result.stdout) == {"benchmark": "visda2017", "fetched": [str(tmp_path / "train")]}
    assert "Downloading train.tar (MiB): 0 of 1" in result.stderr
    assert "1 of 1 parts were fetched" in result.stderr


def test_data_get_without_a_link(tmp_path: Path) -> None:
    result = acclimate("data", "get", "office31", "--root", tmp_path)
    assert result.exit_code == 2
    assert "Office-31 has no direct link: download it from https://faculty" in result.stderr
