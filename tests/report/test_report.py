"""The report: complete in one file, asking nothing of anyone, and names are data in it."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acclimate.bench import records as tables
from acclimate.bench.records import BenchRecord
from acclimate.data.domain import labelled
from acclimate.data.read import domain_of
from acclimate.progress import silent
from acclimate.report import bench as bench_report
from acclimate.report import charts, exhibits, words
from acclimate.report import page as report
from acclimate.report import run as run_read
from acclimate.runs.files import Metrics
from browser import Browser
from pages import EVIL, NAMES, Page, table
from recorded import bench_record, run_record
from tiny import pictures, refused, succeeds, vectors

TINY = ("--bottleneck", "8", "--batch-size", "6", "--steps", "6")
LENET = ("--backbone", "lenet", *TINY)
STEPS = ("--steps", "40")

pytestmark = pytest.mark.skipif(os.name == "nt", reason="files of such names cannot be made there")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run on images with such names, compared with source-only, and its report."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCLIMATE_CACHE", str(folder / "cache"))
        source, target = table(folder / "s", shade=0), table(folder / "t", shade=20, n=5)
        broken = folder / "t" / "broken<i>.png"
        broken.write_bytes(b"")
        with target.open("a", newline="") as out:
            csv.writer(out).writerow([broken.name, "a"])
        succeeds(
            "fit", "--source", source, "--target", target, "--out", folder / "run", "--compare", *LENET, "--steps", "40"
        )
        succeeds("report", folder / "run")
        yield folder / "run"


@pytest.fixture(scope="module")
def page(made: Path) -> Page:
    return Page(made / "report.html")


# --- names are data ------------------------------------------------------------------------------------------------


def test_names_stay_text(page: Page) -> None:
    for name in (*NAMES, EVIL):
        assert name in page.text
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"b onmouseover", "iframe", "object", "embed", "form", "base"}
    assert not [attrs for _, attrs in page.elements if any(name.startswith("on") for name in attrs)]
    assert sum(tag == "script" for tag, _ in page.elements) == 3  # the page's own, and data
    assert all(src.startswith("data:image/jpeg;base64,") for src in page.attributes("src"))
    assert EVIL in " ".join(page.attributes("alt"))
    assert "broken<i>.png" in page.text


def test_the_data_of_the_script_are_the_names(page: Page) -> None:
    data = json.loads(page.data["cloud-data"])
    assert [*data["classes"]] == sorted(NAMES)
    assert len(data["names"]) == 33
    assert all(name.endswith(EVIL) for name in data["names"])
    assert data["sources"] == 18
    assert len(data["places"]) == 2
    listed = json.loads(page.data["list-data"])
    assert sorted(row[0] for row in listed["rows"]) == sorted(data["names"][18:])
    assert listed["classes"] == data["classes"]
    for name in ("cloud-data", "list-data"):
        assert "<" not in page.data[name]


def test_points_have_their_own_classes_and_images(made: Path, page: Page) -> None:
    """The images' shades tell their domain and class: 30 grey levels on average, 60 more a class, 20 on the target."""
    data = json.loads(page.data["cloud-data"])
    number = [name.split("/")[1] for name in data["names"]]  # of the class in NAMES
    assert [data["classes"][k] for k in data["truth"]] == [NAMES[int(k)] for k in number]
    rows = list(csv.DictReader(io.StringIO((made / "predictions.csv").read_text())))
    predicted = [data["classes"][k] if k >= 0 else None for k in data["predicted"]]
    assert predicted == [None] * 18 + [row["predicted"] for row in rows]
    assert data["names"][18:] == [row["path"] for row in rows]

    encoded = page.inner["style"][1].split("base64,")[1].split(")")[0]
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("L"), dtype=np.float64)
    for i, k in enumerate(number):
        row, column = divmod(i, data["columns"])
        tile = sheet[exhibits.DOT * row :, exhibits.DOT * column :][: exhibits.DOT, : exhibits.DOT]
        assert tile.mean() == pytest.approx(60 * int(k) + 30 + 20 * (i >= 18), abs=9)


def test_nothing_is_fetched(page: Page) -> None:
    for attribute in ("src", "href", "xlink:href", "srcset", "action", "poster", "data"):
        for value in page.attributes(attribute):
            assert value.startswith(("data:", "#")), value
    for style in page.inner["style"]:
        assert "@import" not in style
        assert all(url.startswith("data:") for url in re.findall(r"url\(([^)]*)\)", style))
    for script in page.inner["script"]:
        assert not re.search(r"fetch|XMLHttpRequest|import\(|innerHTML|eval|document\.write", script)


def test_the_policy_forbids_all_but_the_page_s_own(page: Page) -> None:
    (policy,) = (attrs["content"] for _, attrs in page.elements if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split("; ")}
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == ["'none'"]
    assert rules["img-src"] == ["data:"]

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert rules["style-src"] == [digest(text) for text in page.inner["style"]]
    assert rules["script-src"] == [digest(page.inner["script"][-1])]
    assert "style" not in {name for _, attrs in page.elements for name in attrs}  # the policy would ignore it


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("plain name.jpg", "plain name.jpg"),
        ("a\x1b[31m\n\u202egpj.exe", r"a\x1b[31m\n\u202egpj.exe"),
        ("\udcff.png", r"\udcff.png"),
        ("x" * 60 + "y" * 60, "x" * 40 + "…" + "y" * 39),
    ],
)
def test_a_name_is_shown_safely_and_shortly(name: str, seen: str) -> None:
    assert words.shown(name) == seen
    assert len(seen) <= words.LONGEST


# --- what is said --------------------------------------------------------------------------------------------------


def test_the_answer_comes_first(made: Path, page: Page) -> None:
    record = json.loads((made / "record.json").read_text())
    after, before = record["scores"]["accuracy"], record["compare"]["scores"]["accuracy"]
    assert page.text.index(f"{100 * after:.1f} % of the target’s images are classified correctly") < 200
    assert f"Before, source-only {100 * before:.1f}" in page.text.replace("\xa0", " ")
    change = f"{100 * (after - before):+.1f}".replace("-", "−")
    assert f"Change in points {change}" in page.text
    right = sum(entry["correct"] for entry in record["scores"]["per_class"])
    assert f"{right} of 15 labelled images are classified correctly." in page.text
    assert ("Adaptation made this classifier worse" in page.text) == (after < before)


def test_adaptation_s_gains_and_losses_are_counted(made: Path, page: Page) -> None:
    files = [(folder / "predictions.csv").read_text() for folder in (made / "source_only", made)]
    rows = [list(csv.DictReader(io.StringIO(file))) for file in files]
    truth = {str(k): name for k, name in enumerate(NAMES)}
    right = [[row["predicted"] == truth[row["path"].split("/")[1]] for row in side] for side in rows]
    gained = sum(new and not old for old, new in zip(*right, strict=True))
    lost = sum(old and not new for old, new in zip(*right, strict=True))
    assert f"adaptation put {gained} images right and {lost} wrong." in page.text


def test_every_section_is_there(page: Page) -> None:
    identifiers = page.attributes("id")
    sections = {"trust", "classes", "doubts", "domains", "images", "looks", "details", "made"}
    assert sections | {"channels", "discriminator", "training"} <= {*identifiers}
    assert {link.removeprefix("#") for link in page.attributes("href") if link.startswith("#")} == sections
    assert len(identifiers) == len({*identifiers})
    assert "Most confident" in page.text
    assert "Look at these first" in page.text
    for term in ("classification", "adversarial", "learning rate"):
        assert term in page.text
    assert "acclimate fit" not in page.text  # the command is the one that ran: here pytest's
    assert "A-distance" in page.text
    assert "without what tells the domains apart (f_hat_d in the equations)" in page.text  # the domain error
    assert "domain and class" in page.text  # the masks
    assert "the file is empty" in page.text  # the skipped image


def test_pictures_and_charts_have_words(page: Page) -> None:
    for tag, attrs in page.elements:
        if tag == "img":
            assert attrs.get("alt")
        if tag == "svg":
            assert attrs.get("aria-label") or attrs.get("aria-hidden") == "true"


def test_the_same_run_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    written = [report.write(made, tmp_path / f"{i}.html").path.read_bytes() for i in range(2)]
    assert written[0] == written[1] == (made / "report.html").read_bytes()


# --- other runs ----------------------------------------------------------------------------------------------------


def ran(folder: Path, *options: str | Path) -> Path:
    succeeds("fit", "--out", folder / "run", *options)
    return folder / "run"


def test_vectors_have_no_images(tmp_path: Path) -> None:
    source, target = vectors(tmp_path / "s.npz"), vectors(tmp_path / "t.npz", shift=0.5)
    run = ran(tmp_path, "--source", source, "--target", target, *TINY)
    result = succeeds("report", run)
    page = Page(run / "report.html")
    assert "Warning" not in result.stderr
    assert not page.attributes("src")
    assert {"images", "looks"}.isdisjoint(page.attributes("id"))
    assert "domains" in page.attributes("id")
    assert "Before training" in page.text  # there is no source-only run
    assert page.inner["style"][0]
    assert len(page.inner["style"]) == 1


@pytest.mark.parametrize("compare", [False, True])
def test_without_labels_no_accuracy_is_told(tmp_path: Path, compare: bool) -> None:
    source = pictures(tmp_path / "s")
    target = pictures(tmp_path / "t", ("",), n=9, shade=20)
    run = ran(tmp_path, "--source", source, "--target", target, *LENET, *(["--compare"] if compare else []))
    succeeds("report", run)
    page = Page(run / "report.html")
    assert "nobody knows how many predictions are right" in page.text
    assert "cannot say how many of its 9 images are classified correctly" in page.text
    assert "Confusion" not in page.text
    record = json.loads((run / "record.json").read_text())
    verdict = record["trust"]["verdict"]
    headline = page.source.split("<h1")[1].split("</h1>")[0]
    assert verdict.capitalize() in headline
    assert "%" not in headline
    share = 100 * record["compare"]["changes"]["share_changed"] if compare else 0
    assert not compare or f"it cannot have moved the accuracy by more than {share:.1f} points" in page.text
    assert f"acclimate label {run} --n 50 --out labels" in page.text


def test_a_run_measured_on_other_images(tmp_path: Path) -> None:
    source, target = vectors(tmp_path / "s.npz"), vectors(tmp_path / "t.npz", shift=0.5)
    test = vectors(tmp_path / "test.npz", shift=0.4, n=12)
    run = ran(tmp_path, "--source", source, "--target", target, "--test", test, *TINY)
    succeeds("report", run)
    text = Page(run / "report.html").text
    assert "of the test images are classified correctly" in text
    assert "of 12 labelled images" in text
    assert "These images stayed out of training" in text


def test_images_that_have_moved_are_told_of(tmp_path: Path) -> None:
    source, target = pictures(tmp_path / "s"), pictures(tmp_path / "t", shade=20)
    run = ran(tmp_path, "--source", source, "--target", target, *LENET)
    target.rename(tmp_path / "elsewhere")
    result = json.loads(succeeds("report", run, "--json").stdout)
    (sentence,) = result["left_out"]
    assert sentence.startswith("Without the data there are no images, no embedding and no maps")
    assert "does not exist" in sentence
    page = Page(run / "report.html")
    assert sentence in page.text
    assert "classified correctly" in page.text
    assert not page.attributes("src")
    assert result["bytes"] == (run / "report.html").stat().st_size

    pictures(target, n=3, shade=20)  # others are there now
    (sentence,) = report.write(run).left_out
    assert "has changed since the run" in sentence
    pictures(target, n=4, shade=30)  # the same names
    (sentence,) = report.write(run).left_out
    assert "the images are those of now" in sentence
    assert Page(run / "report.html").attributes("src")


def test_relative_paths_are_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They start from the folder that the run was started in, also when the whole tree has moved since."""
    pictures(tmp_path / "there" / "s"), pictures(tmp_path / "there" / "t", shade=20)
    monkeypatch.chdir(tmp_path / "there")
    run = ran(tmp_path, "--source", "s", "--target", "t", *LENET)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert not report.write(run).left_out
    assert Page(run / "report.html").attributes("src")

    (tmp_path / "there").rename(tmp_path / "moved")
    assert "does not exist" in report.write(run).left_out[0]
    monkeypatch.chdir(tmp_path / "moved")
    (sentence,) = report.write(run).left_out
    assert "the images are those of now" in sentence


def test_without_the_model_the_rest_is_shown(tmp_path: Path) -> None:
    source, target = vectors(tmp_path / "s.npz"), vectors(tmp_path / "t.npz", shift=0.5)
    run = ran(tmp_path, "--source", source, "--target", target, *TINY)
    (run / "model.safetensors").unlink()
    assert "Without the model there is no embedding" in succeeds("report", run).stderr
    assert "classified correctly" in Page(run / "report.html").text


def test_what_is_no_run_is_refused(made: Path, tmp_path: Path) -> None:
    assert "holds no finished run" in refused("report", tmp_path)
    assert "holds no finished run" in refused("report", tmp_path / "gone")
    damaged = tmp_path / "damaged"
    shutil.copytree(made, damaged)
    record, predictions = damaged / "record.json", damaged / "predictions.csv"
    content, rows = record.read_text(), predictions.read_text().splitlines(keepends=True)
    record.write_text("{}")
    assert refused("report", damaged).startswith(f"{record} has no schema number")
    record.write_text(content)
    predictions.write_text("".join(rows[:-1]))
    assert refused("report", damaged).startswith(f"{predictions} is damaged or was altered: make the run again")
    predictions.write_text("")
    assert refused("report", damaged).startswith(f"{predictions} is damaged or was altered: make the run again")
    predictions.unlink()
    assert refused("report", damaged).startswith(f"{predictions} is missing: make the run again")


def test_out_names_the_file(tmp_path: Path) -> None:
    source, target = vectors(tmp_path / "s.npz"), vectors(tmp_path / "t.npz", shift=0.5)
    run = ran(tmp_path, "--source", source, "--target", target, *TINY)
    assert f"The report is {tmp_path / 'r.html'}, 0." in succeeds("report", run, "--out", tmp_path / "r.html").stderr
    assert not (run / "report.html").exists()
    (tmp_path / "file").touch()
    sentence = refused_with_remarks(run, tmp_path / "file" / "r.html")
    assert "does not exist" in sentence


def refused_with_remarks(run: Path, out: Path) -> str:
    from tiny import acclimate

    result = acclimate("report", run, "--out", out, "--quiet")
    assert result.exit_code == 2
    return result.stderr


# --- sizes and charts ----------------------------------------------------------------------------------------------


def test_no_image_makes_the_file_large() -> None:
    """Noise is the worst that JPEG can be given; what is shown does not grow with the number of images."""
    rng = np.random.default_rng(0)
    noise = domain_of(rng.integers(0, 256, (2 * exhibits.POINTS, 64, 64, 3), dtype=np.uint8))
    sheet = len(exhibits._sheet([noise], silent))
    large = Image.fromarray(rng.integers(0, 256, (exhibits.VIEW, exhibits.VIEW, 3), dtype=np.uint8))
    tile = len(exhibits.jpeg(large.crop((0, 0, exhibits.TILE, exhibits.TILE))))
    view = len(exhibits.jpeg(large))
    assert sheet + 4 * exhibits.GALLERY * tile + 6 * exhibits.LOOKED_AT * view < 12e6


def test_a_class_of_each_kind_stands_first_among_the_most_confident() -> None:
    after = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
    run = run_read.Run(Path(), run_record(("a", "b")), (), after, None, [], [])
    order = np.argsort(-run.confidence, kind="stable")
    assert exhibits._by_class(run, order).tolist() == [0, 2, 1, 3]


def test_galleries_hold_what_they_say() -> None:
    rng = np.random.default_rng(0)
    after, before = (rng.dirichlet(np.ones(3), 40) for _ in range(2))
    answers = rng.integers(-1, 3, 40)
    target = domain_of(rng.integers(0, 256, (40, 8, 8), dtype=np.uint8))
    source = labelled(target, ["a", "b", "c", *"a" * 37])
    run = run_read.Run(Path(), run_record(("a", "b", "c")), target.names, after, before, [], [])
    data = run_read.Data(source, target, answers)
    galleries = {g["title"]: g["cards"] for g in exhibits._galleries(run, data)}
    assert list(galleries) == ["Changed by adaptation", "Confident and wrong", "Most confident"]
    changed, wrong, most = galleries.values()
    least = exhibits._first(run, data, {})
    assert len(changed) == len(most) == len(least) == exhibits.GALLERY
    assert all(card["before"] not in (None, card["predicted"]) for card in changed)
    assert all(card["right"] is False and card["truth"] != card["predicted"] for card in wrong)
    for cards, sign in ((changed, -1), (wrong, -1), (least, 1)):
        confidence = [sign * card["confidence"] for card in cards]
        assert confidence == sorted(confidence)
    assert least[0]["confidence"] == after.max(1).min()
    assert {card["predicted"] for card in most[:3]} == {"a", "b", "c"}
    assert {card["right"] is None for card in changed} == {True, False}  # one without a label is neither


def test_items_are_found_again_in_their_order() -> None:
    assert run_read._positions(["a", "c"], ["a", "b", "c"]) == [0, 2]
    assert run_read._positions(["a", "a"], ["a", "b", "a"]) == [0, 2]
    assert run_read._positions(["c", "a"], ["a", "b", "c"]) is None


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 3, [0, 1, 2, 3]),
        (0, 2.2, [0, 1, 2, 3]),
        (0, 0.65, [0, 0.25, 0.5, 0.75]),
        (-0.4, 0.9, [-0.5, 0, 0.5, 1]),
        (0, 600, [0, 200, 400, 600]),
        (0, 0, [0, 0.5]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert charts.ticks(low, high) == pytest.approx(expected)


def test_a_curve_is_drawn_in_its_frame() -> None:
    metrics = [
        Metrics(
            step=s,
            stage="first" if s < 30 else "second",
            lr=0.1,
            terms={"loss": 2.0 - s / 50, **({"new": 1.0} if s > 10 else {})},
            masks={},
        )
        for s in range(10, 101, 10)
    ]
    curves = charts.curves(metrics)
    assert [curve["name"] for curve in curves] == ["loss", "new", "learning rate"]
    loss = curves[0]
    assert (loss["first"], loss["last"]) == (1.8, 0.0)
    places = [tuple(map(float, pair.split())) for pair in loss["raw"][1:].split("L")]
    assert len(places) == 10
    assert places[-1] == (charts.WIDTH - charts.RIGHT, charts.HEIGHT - charts.BOTTOM)
    assert all(charts.TOP <= y <= charts.HEIGHT - charts.BOTTOM for _, y in places)
    assert [y for _, y in places] == sorted(y for _, y in places)
    assert [stage["name"] for stage in loss["stages"]] == ["second"]
    assert charts.curves([]) == []


def test_smoothing_is_a_mean_of_neighbours() -> None:
    values = np.arange(20.0) ** 2
    smooth = charts.smoothed(values, reach=2)
    assert smooth[0] == pytest.approx(values[:3].mean())
    assert smooth[10] == pytest.approx(values[8:13].mean())
    assert smooth[-1] == pytest.approx(values[-3:].mean())


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_the_colours_can_be_told_apart(page: Page) -> None:
    """WCAG 2.2: a contrast of 4.5 for text, and of 3 for what is drawn."""
    schemes = re.findall(r"color-scheme: (light|dark);(.*?)}", page.inner["style"][0], re.DOTALL)
    assert [scheme for scheme, _ in schemes[:3]] == ["light", "dark", "dark"]
    assert re.sub(r"\s+", "", schemes[1][1]) == re.sub(r"\s+", "", schemes[2][1])  # by choice, and by the system's
    for _, block in schemes[:3]:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        for name, least in {**dict.fromkeys(("ink", "soft", "accent", "wrong", "right"), 4.5), "before": 3.0}.items():
            for ground in ("paper", "card"):
                low, high = sorted(luminance(colours[c]) for c in (name, ground))
                assert (high + 0.05) / (low + 0.05) >= least, (name, ground)
        assert {f"k{i}" for i in range(exhibits.COLOURS)} <= colours.keys()


# --- benches -------------------------------------------------------------------------------------------------------


def bench(gains: dict[str, float], *, seeds: int = 3, tasks: tuple[str, ...] = ("b", "c")) -> list[BenchRecord]:
    """Records of rows that are so many points above the first, whose accuracy is 50, 51, ... with the seed."""
    return [
        bench_record(
            row,
            f"a<i>-{target}",
            seed,
            (50 + seed + gain) / 100,
            method="source_only" if gain == 0 else "dann",
        )
        for row, gain in gains.items()
        for target in tasks
        for seed in range(seeds)
    ]


def test_a_bench_shows_gains_and_every_run(tmp_path: Path) -> None:
    records = bench({"plain": 0, "<b>DANN</b>": 4, "worse": -2}, tasks=("b", "c", "d"))
    written = bench_report.write_bench(records, tmp_path / "bench.html")
    page = Page(written.path)
    assert "+4.0 points over plain: <b>DANN</b>, the row that gains most" in page.text
    assert "worse −2.0 0.0 0 of 9" in page.text
    assert "51.0 ± 1.0" in page.text
    assert "a<i>→b" in page.text
    assert not {tag for tag, _ in page.elements} & {"b", "i"}
    dots = [attrs for tag, attrs in page.elements if tag == "circle" and attrs["class"] == "dot"]
    assert len(dots) == 3 * (3 + 1) * 3  # rows, tasks and their mean, seeds
    assert written.path.read_bytes() == bench_report.write_bench(records, tmp_path / "again.html").path.read_bytes()


def test_a_bench_of_two_tasks_draws_no_interval(tmp_path: Path) -> None:
    page = Page(bench_report.write_bench(bench({"plain": 0, "dann": 4}), tmp_path / "bench.html").path)
    assert "paired by task and seed. 2 tasks: too few for an interval." in page.text
    assert "dann +4.0 – 6 of 6" in page.text
    assert not [attrs for tag, attrs in page.elements if tag == "line" and attrs["class"] == "span"]


def test_gains_are_placed_on_their_axis() -> None:
    results = tables.Results(bench({"plain": 0, "dann": 4}))
    gains = bench_report._gains(results, "accuracy")
    assert gains is not None
    (row,) = gains["rows"]
    assert row["mean"] == pytest.approx(4)
    assert row["at"] == pytest.approx(50 + 50 * 4 / gains["bound"])
    assert bench_report._gains(tables.Results(bench({"plain": 0})), "accuracy") is None
    assert bench_report._gains(tables.Results(bench({"dann": 4})), "accuracy") is None


def test_dots_are_placed_on_their_axis() -> None:
    (panel,) = bench_report._panels(tables.Results(bench({"plain": 0}, tasks=("b",))), "accuracy")
    assert (panel["low"], panel["high"]) == (50, 52)
    assert panel["rows"][0]["dots"] == pytest.approx([0, 50, 100])
    assert panel["rows"][0]["mean"] == pytest.approx(51)


def test_runs_that_are_missing_are_told_of(tmp_path: Path) -> None:
    records = bench({"plain": 0, "dann": 4})
    missing = [bench_record(r.row, f"{r.source}-{r.target}", r.seed, None, method=r.method) for r in records[:2]]
    tables.write_records(tmp_path / "records.jsonl", missing + records[2:])
    succeeds("report", tmp_path)
    text = Page(tmp_path / "report.html").text
    assert "2 runs are missing" in text
    assert "4 of 4" in text


# --- in a browser --------------------------------------------------------------------------------------------------


COLOURS = "(() => { const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]; })()"
DOT = """(() => {
    const dot = document.querySelector("svg[data-plot='%d'] circle[data-i='%d']");
    dot.scrollIntoView({behavior: "instant", block: "center"});
    const box = dot.getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
})()"""
DATA = "JSON.parse(document.getElementById('cloud-data').textContent)"
TIP = """(() => {
    const tip = document.getElementById("tip"), box = tip.getBoundingClientRect();
    const image = getComputedStyle(document.getElementById("tip-image"));
    return {hidden: tip.hidden, name: document.getElementById("tip-name").textContent, left: box.left,
            right: box.right, image: image.backgroundImage.slice(0, 30), at: image.backgroundPosition};
})()"""

CHOOSE = """(() => {
    const select = document.getElementById("%s");
    select.value = "%s";
    select.dispatchEvent(new Event("change"));
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_opens_without_a_complaint(browser: Browser, made: Path, width: int, scheme: str) -> None:
    browser.open(made / "report.html", width=width, scheme=scheme)
    assert browser.requests() == [(made / "report.html").as_uri()]
    assert browser.complaints() == []
    assert browser.run("document.documentElement.scrollWidth") == width
    background, ink = ([int(c) for c in re.findall(r"\d+", colour)] for colour in browser.run(COLOURS))
    assert (sum(background) < sum(ink)) == (scheme == "dark")
    assert browser.run("document.querySelector('.big').getBoundingClientRect().top") < 300
    assert browser.run("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    assert browser.run("document.querySelectorAll('[onerror], [onmouseover], img[src=x]').length") == 0


def apart(places: list[list[int]]) -> list[int]:
    """The points of a plot, the loneliest first."""
    distance = np.linalg.norm(np.array(places)[:, None] - np.array(places)[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    order: list[int] = np.argsort(-distance.min(1)).tolist()
    return order


@pytest.mark.parametrize("width", [390, 1280])
def test_the_pointer_shows_the_image(browser: Browser, made: Path, width: int) -> None:
    browser.open(made / "report.html", width=width)
    assert browser.run(TIP)["hidden"]
    data = browser.run(DATA)
    for plot in (0, 1):
        i = apart(data["places"][plot])[0]
        browser.point(*browser.run(DOT % (plot, i)))
        tip = browser.run(TIP)
        assert not tip["hidden"]
        assert tip["name"] == data["names"][i]
        assert tip["image"].startswith('url("data:image/jpeg;base64,')
        assert 0 <= tip["left"] < tip["right"] <= width
        rings = browser.run("[...document.querySelectorAll('.ring')].map((ring) => Number(ring.getAttribute('cx')))")
        places = browser.run(
            f"JSON.parse(document.getElementById('cloud-data').textContent).places.map((p) => p[{i}][0])"
        )
        assert rings == places
    browser.point(1, 1)
    assert browser.run(TIP)["hidden"]
    assert browser.complaints() == []


def test_the_image_under_the_pointer_is_the_one_of_its_place(browser: Browser, made: Path) -> None:
    browser.open(made / "report.html")
    side = browser.run("document.getElementById('tip-image').clientWidth || 96")
    for i in apart(browser.run(DATA)["places"][0])[:3]:
        browser.point(*browser.run(DOT % (0, i)))
        expected = [f"{-side * (i % exhibits.COLUMNS)}px", f"{-side * (i // exhibits.COLUMNS)}px"]
        assert browser.run(TIP)["at"].split() == expected


def test_touch_and_keys_show_it_too(browser: Browser, made: Path) -> None:
    browser.open(made / "report.html", width=390)
    browser.touch(*browser.run(DOT % (0, 3)))
    assert not browser.run(TIP)["hidden"]
    browser.run("document.querySelector('svg[data-plot]').focus()")
    seen = set()
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "ArrowRight"):
        browser.press(key)
        seen.add(browser.run(TIP)["name"])
        assert browser.run("document.getElementById('told').textContent").endswith(browser.run(TIP)["name"])
    assert len(seen) > 1
    browser.press("Escape")
    assert browser.run(TIP)["hidden"]
    assert browser.complaints() == []


def test_colours_classes_and_the_scheme_can_be_chosen(browser: Browser, made: Path) -> None:
    browser.open(made / "report.html", scheme="light")
    light = browser.run(COLOURS)
    browser.run("document.getElementById('theme').click()")
    dark = browser.run(COLOURS)
    assert dark != light
    browser.run("document.getElementById('theme').click()")
    assert browser.run(COLOURS) == light

    fill = "getComputedStyle(document.querySelector('#cloud circle.t')).fill"
    colours = set()
    for mode in ("domain", "class", "right"):
        browser.run(CHOOSE % ("colour", mode))
        colours.add(browser.run(fill))
        legend = browser.run("document.getElementById('legend').innerText")
        assert ("source" in legend) == (mode in ("domain", "class"))
    assert len(colours) > 1
    browser.run(CHOOSE % ("only", "0"))
    assert browser.run("document.querySelectorAll('#cloud svg:first-of-type circle.off').length") > 0
    assert browser.run("document.querySelectorAll('#cloud circle[data-i]:not(.off)').length") == 2 * (6 + 5)
    browser.run(CHOOSE % ("only", ""))
    assert browser.run("document.querySelectorAll('#cloud circle.off').length") == 0
    assert browser.complaints() == []


def test_a_bench_opens_without_a_complaint(browser: Browser, tmp_path: Path) -> None:
    records = bench({"plain": 0, "a row of a long name": 4}, tasks=tuple("bcdefghijklm"))
    page = bench_report.write_bench(records, tmp_path / "bench.html").path
    for width in (390, 1280):
        browser.open(page, width=width)
        assert browser.requests() == [page.as_uri()]
        assert browser.complaints() == []
        assert browser.run("document.documentElement.scrollWidth") == width


def test_the_page_reads_without_its_script(browser: Browser, made: Path) -> None:
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(made / "report.html", width=390)
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)
    assert browser.run("document.documentElement.scrollWidth") == 390
    assert browser.run("document.getElementById('theme').hidden && document.getElementById('controls').hidden")
    assert browser.run("document.querySelector('#cloud svg').getBoundingClientRect().height") > 200
