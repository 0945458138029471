"""The page on which a person labels images: in a browser, by clicks and keys, to the file that evaluate reads."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from acclimate.data.read import read_target
from acclimate.evaluation.labels import NONE
from browser import Browser
from recorded import finished_run
from tiny import refused, succeeds

CLASSES = ("a", "b", "'\"><b onmouseover=alert(2)>, </script>")
N, n = 40, 24
NAMES = [f'</script><img src=x onerror=alert({i})>, "\'"é.png' for i in range(N)]
TRUTH = np.arange(N) % 3
COLOURS = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]], dtype=np.uint8)


def probabilities(predicted: Any, K: int = 3) -> Any:
    """Probabilities of these classes, each more certain than the one before."""
    certain = np.linspace(0.5, 0.9, len(predicted))
    found = np.repeat((1 - certain[:, None]) / (K - 1), K, axis=1)
    found[np.arange(len(predicted)), predicted] = certain
    return found


def target(folder: Path) -> Path:
    """A list of images, each of the colour of its class, with names that look like markup."""
    folder.mkdir()
    for i, name in enumerate(NAMES):
        (folder / str(i)).mkdir()
        Image.new("RGB", (20, 10), tuple(COLOURS[TRUTH[i]].tolist())).save(folder / str(i) / "x.png")
        (folder / str(i) / "x.png").rename(folder / name.replace("/", "_"))
    with (folder / "list.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["path"], *([name.replace("/", "_")] for name in NAMES)])
    return folder / "list.csv"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on such images, right on three of four."""
    folder = tmp_path_factory.mktemp("labels")
    predicted = np.where(np.arange(N) % 4 > 0, TRUTH, (TRUTH + 1) % 3)
    names = [name.replace("/", "_") for name in NAMES]
    return finished_run(folder / "run", probabilities(predicted), target(folder / "t"), classes=CLASSES, names=names)


@pytest.fixture
def todo(run: Path, tmp_path: Path) -> Path:
    succeeds("label", run, "--n", str(n), "--out", tmp_path / "todo")
    return tmp_path / "todo"


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="label-data">(.*?)</script>', page.read_text("utf-8"), re.S)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def image_of(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))


# --- without a browser ---------------------------------------------------------------------------------------------


def test_the_page_shows_the_images_that_the_file_names(todo: Path) -> None:
    data = data_of(todo / "label.html")
    with (todo / "labels.csv").open(newline="", encoding="utf-8") as file:
        (begin,), heading, *rows = csv.reader(file)
    assert data["heading"] == [begin, ",".join(heading)]
    assert [[name, "", *rest] for name, *rest in data["rows"]] == rows
    assert data["labels"] == [*CLASSES, NONE]
    truth = {name.replace("/", "_"): k for name, k in zip(NAMES, TRUTH.tolist(), strict=True)}
    for (name, *_), uri in zip(data["rows"], data["images"], strict=True):
        image = image_of(uri)
        assert image.size == (380, 190)  # few pixels, made larger by whole numbers
        assert np.asarray(image)[90, 100].argmax() == truth[name]


def test_names_stay_text(todo: Path) -> None:
    page = (todo / "label.html").read_text("utf-8")
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert "onerror=alert(" not in page.replace("\\u003cimg src=x onerror=alert(", "")
    assert "connect-src" not in page
    assert "default-src 'none'" in page


def test_nothing_in_the_files_depends_on_the_predicted_classes(run: Path, tmp_path: Path) -> None:
    """Of two runs that are as certain of other classes, all but the hashes is the same, and so is what was drawn."""
    names = [name.replace("/", "_") for name in NAMES]
    found = []
    for shift in (0, 1):
        folder = tmp_path / str(shift) / "run"
        finished_run(
            folder, probabilities((TRUTH + shift) % 3), run.parent / "t" / "list.csv", classes=CLASSES, names=names
        )
        succeeds("label", folder, "--n", str(n), "--out", folder.parent / "todo")
        data = data_of(folder.parent / "todo" / "label.html")
        drawn = sorted(zip(data["rows"], data["images"], strict=True))
        found.append((drawn, data["labels"], data["keys"], sorted(data)))
    assert found[0] == found[1]
    assert found[0][3] == ["draw", "heading", "images", "keys", "labels", "rows"]


def test_images_are_upright_and_of_a_size_to_look_at(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    for i in range(20):
        image = Image.new("RGB", (1000, 600), "white")
        image.paste("black", (0, 0, 500, 600))
        image.save(folder / f"{i:02}.jpg", exif=exif)
    names = [f"{i:02}.jpg" for i in range(20)]
    run = finished_run(tmp_path / "run", probabilities(np.zeros(20, dtype=int)), folder, names=names)
    succeeds("label", run, "--n", "20", "--out", tmp_path / "todo")
    for uri in data_of(tmp_path / "todo" / "label.html")["images"]:
        image = image_of(uri).convert("L")
        assert image.size == (230, 384)
        assert image.getpixel((115, 20)) < 20
        assert image.getpixel((115, 360)) > 235
    (folder / "07.jpg").unlink()
    assert "has changed since the run" in refused("label", run, "--n", "20", "--out", tmp_path / "other")
    (folder / "07.jpg").write_bytes(b"no image")
    assert "cannot be read as an image" in refused("label", run, "--n", "20", "--out", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("classes", "keys"),
    [
        (("cat", "dog"), ["1", "2", "-"]),
        (tuple("0123456789"), [*"0123456789", "-"]),
        (tuple(f"class {k}" for k in range(12)), [*"123456789abc", "-"]),
        (tuple(f"class {k}" for k in range(36)), []),
        ((NONE, "dog"), ["1", "2", "-"]),
    ],
)
def test_the_keys(tmp_path: Path, classes: tuple[str, ...], keys: list[str]) -> None:
    np.savez(tmp_path / "t.npz", x=np.zeros((20, 12, 12), dtype=np.uint8))
    K = len(classes)
    fingerprint = read_target(tmp_path / "t.npz").fingerprint()
    found = probabilities(np.zeros(20, dtype=int), K)
    run = finished_run(tmp_path / "run", found, tmp_path / "t.npz", classes=classes, fingerprint=fingerprint)
    succeeds("label", run, "--n", "20", "--out", tmp_path / "todo")
    data = data_of(tmp_path / "todo" / "label.html")
    assert data["keys"] == keys
    assert data["labels"] == list(dict.fromkeys([*classes, NONE]))


# --- in a browser --------------------------------------------------------------------------------------------------


PLACE = """(() => {
    const found = %s;
    found.scrollIntoView({behavior: "instant", block: "nearest"});
    const box = found.getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
})()"""
BUTTON = "document.querySelectorAll('#choices button')[%d]"


def click(browser: Browser, element: str) -> None:
    browser.click(*browser.run(PLACE % element))


def by_id(name: str) -> str:
    return f"document.getElementById('{name}')"


def shown(browser: Browser) -> str:
    text: str = browser.run(f"{by_id('name')}.textContent")
    return text


def count(browser: Browser) -> str:
    text: str = browser.run(f"{by_id('count')}.textContent")
    return text


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900)])
def test_the_page_opens_without_a_complaint(browser: Browser, todo: Path, width: int, height: int, scheme: str) -> None:
    page = todo / "label.html"
    browser.open(page, width=width, height=height, scheme=scheme)
    assert browser.requests() == [page.as_uri()]
    assert browser.complaints() == []
    assert browser.run("document.documentElement.scrollWidth") == width
    assert browser.run("document.querySelectorAll('[onerror], [onmouseover], img[src=x]').length") == 0
    bottom = browser.run(f"{by_id('choices')}.getBoundingClientRect().bottom")
    assert bottom < height  # image and classes are seen without scrolling
    colours = browser.run(
        "(() => { const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]; })()"
    )
    background, ink = (sum(map(int, re.findall(r"\d+", colour))) for colour in colours)
    assert (background < ink) == (scheme == "dark")


def test_all_images_are_labelled_by_clicks_and_the_file_is_evaluated(
    browser: Browser, todo: Path, run: Path, tmp_path: Path
) -> None:
    page, data = todo / "label.html", data_of(todo / "label.html")
    truth = {name.replace("/", "_"): k for name, k in zip(NAMES, TRUTH.tolist(), strict=True)}
    browser.download_to(tmp_path)
    browser.open(page)
    browser.run("localStorage.clear()")
    browser.open(page)
    order = [name for name, *_ in data["rows"]]
    for i in range(5):
        assert shown(browser) == order[i]
        assert browser.run(f"{by_id('image')}.src") == data["images"][i]
        click(browser, BUTTON % truth[order[i]])
    click(browser, BUTTON % 3)  # by mistake
    assert (shown(browser), count(browser)) == (order[6], f"6 of {n}")
    click(browser, by_id("undo"))
    assert (shown(browser), count(browser)) == (order[5], f"5 of {n}")
    click(browser, by_id("skip"))
    assert shown(browser) == order[6]
    click(browser, BUTTON % truth[order[6]])
    assert "1 skipped image comes back at the end." in browser.run(f"{by_id('told')}.textContent")

    browser.open(page)  # again: nothing is lost
    assert (shown(browser), count(browser)) == (order[7], f"6 of {n}")
    for i in range(7, n - 1):
        click(browser, BUTTON % truth[order[i]])
    click(browser, BUTTON % 3)  # the last one of the order: none of these
    assert shown(browser) == order[5]
    click(browser, BUTTON % truth[order[5]])
    assert count(browser) == f"{n} of {n}"
    assert browser.run(f"{by_id('question')}.textContent") == "All images are labelled"

    click(browser, by_id("download"))
    content = browser.downloaded(tmp_path, "labels.csv")
    (begin,), heading, *rows = csv.reader(io.StringIO(content.decode("utf-8"), newline=""))
    expected = [CLASSES[truth[name]] for name in order[:-1]] + [NONE]
    assert begin == data["heading"][0]
    assert heading == ["path", "label", "stratum", "weight"]
    assert rows == [[name, label, *rest] for (name, *rest), label in zip(data["rows"], expected, strict=True)]
    assert browser.complaints() == []
    assert [url for url in browser.requests() if not url.startswith("blob:")] == [page.as_uri()]
    result = json.loads(succeeds("evaluate", run, "--labels", tmp_path / "labels.csv", "--json").stdout)
    assert (result["labels"], result["none_of_these"]) == (n, 1)
    assert 0 < result["accuracy"]["low"] < result["accuracy"]["value"] < result["accuracy"]["high"] < 1


def test_keys_label_take_back_and_skip(browser: Browser, todo: Path) -> None:
    browser.open(todo / "label.html")
    browser.run("localStorage.clear()")
    browser.open(todo / "label.html")
    order = [name for name, *_ in data_of(todo / "label.html")["rows"]]
    for key, at, labelled in (
        ("1", 1, 1),
        ("-", 2, 2),
        ("x", 2, 2),  # no class has it
        ("Backspace", 1, 1),
        ("ArrowRight", 2, 1),
        ("3", 3, 2),
        ("Backspace", 2, 1),
        ("Backspace", 0, 0),
        ("Backspace", 0, 0),
    ):
        browser.press(key)
        assert (shown(browser), count(browser)) == (order[at], f"{labelled} of {n}"), key
    assert browser.complaints() == []


def test_storage_that_holds_something_else_is_passed_over(browser: Browser, todo: Path) -> None:
    draw = data_of(todo / "label.html")["draw"]
    for content in ("{", "null", "{}", '{"given": [1], "order": [], "at": 0}', '{"given": 3, "order": 4, "at": 5}'):
        browser.open(todo / "label.html")
        browser.run(f"localStorage.setItem('acclimate-labels-{draw}', {json.dumps(content)})")
        browser.open(todo / "label.html")
        assert count(browser) == f"0 of {n}"
        assert browser.complaints() == []


def test_one_of_many_classes_is_found_by_its_name(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    names = [f"{i:02}.png" for i in range(20)]
    for name in names:
        Image.new("RGB", (300, 200)).save(tmp_path / "t" / name)
    classes = tuple(f"kind {k:02}" for k in range(60))
    found = probabilities(np.zeros(20, dtype=int), 60)
    run = finished_run(tmp_path / "run", found, tmp_path / "t", classes=classes, names=names)
    succeeds("label", run, "--n", "20", "--out", tmp_path / "todo")
    for width in (390, 1280):
        browser.open(tmp_path / "todo" / "label.html", width=width, height=844)
        browser.run("localStorage.clear()")
        browser.open(tmp_path / "todo" / "label.html", width=width, height=844)
        assert browser.run("document.documentElement.scrollWidth") == width
        click(browser, by_id("find"))
        browser.send("Input.insertText", text="D 42")
        left = "[...document.querySelectorAll('#choices button')].filter((b) => !b.hidden).map((b) => b.textContent)"
        assert browser.run(left) == ["kind 42"]
        browser.press("Enter")
        assert count(browser) == "1 of 20"
        assert len(browser.run(left)) == 61
        assert "Last label: kind 42." in browser.run(f"{by_id('told')}.textContent")
