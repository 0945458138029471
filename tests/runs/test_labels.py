"""A few labels: drawn from a run, given by a person, and what they then say."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acclimate.evaluation.labels import NONE, Row, Todo, read_labels, write_labels
from acclimate.runs.files import write_predictions
from acclimate.runs.labels import answer, draw
from acclimate.trust.labels import Comparison, Estimate
from recorded import finished_run, noted_anew
from tiny import refused, succeeds, vectors

N = 120
CLASSES = ("a", "b", "c")
TRUTH = np.random.default_rng(5).integers(3, size=N)


def predictions(share: float, seed: int, truth: npt.NDArray[np.int64] = TRUTH) -> npt.NDArray[np.float64]:
    """Probabilities (N, K) of which about this share is right, and rather the confident ones."""
    rng = np.random.default_rng(seed)
    right = rng.random(len(truth)) < share
    predicted = np.where(right, truth, (truth + rng.integers(1, 3, len(truth))) % 3)
    confidence = np.clip(0.6 + 0.2 * right + 0.1 * rng.normal(size=len(truth)), 0.4, 0.99)
    probabilities = np.repeat((1 - confidence[:, None]) / 2, 3, axis=1)
    probabilities[np.arange(len(truth)), predicted] = confidence
    return probabilities


def made(folder: Path, probabilities: npt.NDArray[np.float64], *, method: str = "dann", target: str = "t") -> Path:
    return finished_run(
        folder, probabilities, folder.parent / f"{target}.npz", method=method, classes=CLASSES, fingerprint=target
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was compared with source-only, on a target of vectors."""
    vectors(tmp_path / "t.npz", n=N)
    made(tmp_path / "run", predictions(0.8, 1))
    made(tmp_path / "run" / "source_only", predictions(0.5, 2), method="source_only")
    return tmp_path / "run"


def rows_of(file: Path) -> list[list[str]]:
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.reader(opened))


def write(file: Path, rows: list[list[str]]) -> Path:
    with file.open("w", newline="", encoding="utf-8") as opened:
        csv.writer(opened).writerows(rows)
    return file


def fill(file: Path, label: Callable[[int, int], str] = lambda i, _: CLASSES[TRUTH[i]]) -> Path:
    """The same file with labels: of each image, by its position in the target and in the order of the draw."""
    begin, heading, *rows = rows_of(file)
    for place, row in enumerate(rows):
        row[1] = label(int(row[0]), place)
    return write(file.parent / "filled.csv", [begin, heading, *rows])


def todo(run: Path, *options: str) -> Path:
    """Labels to be filled in."""
    out = run.parent / f"todo{'-'.join(options).replace(' ', '')}"
    succeeds("label", run, "--out", out, *options)
    return out / "labels.csv"


# --- the file ------------------------------------------------------------------------------------------------------


def test_the_file_names_images_and_nothing_that_a_model_says(run: Path) -> None:
    file = todo(run, "--n", "40")
    (begin,), heading, *rows = rows_of(file)
    assert re.fullmatch(r"# acclimate labels for accuracy of run [0-9a-f]{16} draw [0-9a-f]{16}", begin)
    assert heading == ["path", "label", "stratum", "weight"]
    assert len({row[0] for row in rows}) == len(rows) == 40
    assert {row[1] for row in rows} == {""}
    assert sum(float(row[3]) for row in rows) == pytest.approx(N)
    assert not (file.parent / "label.html").exists()  # vectors cannot be looked at


def test_the_same_seed_draws_the_same_images(run: Path) -> None:
    first, again, other = (todo(run, "--n", n, "--seed", seed) for n, seed in (("40", "1"), ("040", "1"), ("40", "2")))
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()


def test_how_much_the_labels_will_tell_is_said_before_they_are_given(run: Path) -> None:
    out = run.parent / "out"
    said = [
        succeeds("label", run, "--n", n, "--for", purpose, "--out", out / f"{purpose}{n}").stderr.split("\n")[0]
        for purpose, n in (("accuracy", "30"), ("comparison", "30"), ("comparison", "1000"))
    ]
    changed = int((predictions(0.8, 1).argmax(1) != predictions(0.5, 2).argmax(1)).sum())
    assert said == [
        "30 images are to be labelled, of the 120 of the target: "
        "they will tell the accuracy to within about 13 points.",
        f"30 images are to be labelled, of the {changed} of 120 on which the models differ: "
        "they will tell the difference in accuracy to within about 12 points.",
        f"{changed} images are to be labelled, of the {changed} of 120 on which the models differ: "
        "they will tell the difference in accuracy exactly.",
    ]


def test_labels_are_not_overwritten(run: Path) -> None:
    file = todo(run)
    assert "is there already" in refused("label", run, "--out", file.parent)


def quoted(text: str) -> str:
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL, delimiter=";").writerows(csv.reader(text.splitlines()))
    return out.getvalue()


AS_SAVED: dict[str, Callable[[str], bytes]] = {
    "as it is": str.encode,
    "line ends of Unix": lambda text: text.replace("\r\n", "\n").encode(),
    "a byte order mark": lambda text: text.encode("utf-8-sig"),
    "UTF-16 with tabs": lambda text: text.replace(",", "\t").encode("utf-16"),
    "Windows' code page, padded": lambda text: text.replace(",", ";").replace("0\r", "0;;\r").encode("cp1252"),
    "semicolons and quotes": lambda text: quoted(text).encode(),
    "semicolons and decimal commas": lambda text: text.replace(",", ";").replace(".", ",").encode(),
    "zeros behind the point": lambda text: re.sub(r"(\.\d+)\r", r"\g<1>00\r", text).encode(),
    "sorted by path": lambda text: "".join((lines := text.splitlines(True))[:2] + sorted(lines[2:])).encode(),
    "a column more": lambda text: text.replace("\r\n", ",note\r\n").encode(),
    "empty lines": lambda text: text.replace("\r\n", "\r\n\r\n").encode(),
}


@pytest.mark.parametrize("saved", AS_SAVED.values(), ids=AS_SAVED.keys())
def test_what_a_spreadsheet_makes_of_the_file_can_be_read(run: Path, saved: Callable[[str], bytes]) -> None:
    file = fill(todo(run, "--n", "41"))
    expected = succeeds("evaluate", run, "--labels", file, "--json").stdout
    file.write_bytes(saved(file.read_bytes().decode()))
    assert succeeds("evaluate", run, "--labels", file, "--json").stdout == expected


ALTERED: dict[str, tuple[Callable[[list[list[str]]], object], str]] = {
    "a row lost": (lambda rows: rows.pop(), "other images, strata or weights"),
    "a row twice": (lambda rows: rows.append(rows[-1]), "other images, strata or weights"),
    "another image": (lambda rows: rows[2].__setitem__(0, "x"), "other images, strata or weights"),
    "a weight": (lambda rows: rows[2].__setitem__(3, "4"), "other images, strata or weights"),
    "a stratum": (lambda rows: rows[2].__setitem__(2, str(3 - int(rows[2][2]))), "other images, strata or weights"),
    "paths moved by a row": (
        lambda rows: [row.__setitem__(0, path) for row, path in zip(rows[2:], [r[0] for r in rows[3:]], strict=False)],
        "other images, strata or weights",
    ),
    "the purpose": (
        lambda rows: rows[0].__setitem__(0, rows[0][0].replace("accuracy", "choice")),
        "other images, strata or weights",
    ),
    "another run's line": (
        lambda rows: rows[0].__setitem__(0, re.sub("run .{16}", f"run {'0' * 16}", rows[0][0])),
        "other images, strata or weights",
    ),
    "no first line": (lambda rows: rows.pop(0), "is not a file that acclimate label wrote"),
    "no headings": (lambda rows: rows.pop(1), "is not a file that acclimate label wrote"),
    "a weight that is no number": (lambda rows: rows[2].__setitem__(3, "12. May"), "is not a file"),
    "nothing but headings": (lambda rows: rows.__delitem__(slice(2, None)), "other images, strata or weights"),
    "nothing": (lambda rows: rows.clear(), "is not a file that acclimate label wrote"),
}


@pytest.mark.parametrize(("alter", "sentence"), ALTERED.values(), ids=ALTERED.keys())
def test_an_altered_file_is_refused(run: Path, alter: Callable[[list[list[str]]], object], sentence: str) -> None:
    file = fill(todo(run, "--n", "40"))
    rows = rows_of(file)
    alter(rows)
    write(file, rows)
    assert sentence in refused("evaluate", run, "--labels", file)


def test_a_file_of_another_run_is_refused(run: Path, tmp_path: Path) -> None:
    other = made(tmp_path / "other", predictions(0.8, 1))
    file = fill(todo(run))
    assert "was drawn for another run" in refused("evaluate", other, "--labels", file)
    write_predictions(run / "predictions.csv", [str(i) for i in range(N)], predictions(0.8, 3), CLASSES)
    noted_anew(run)
    assert "was drawn for another run" in refused("evaluate", run, "--labels", file)


def test_files_that_are_not_there_or_hold_something_else(run: Path, tmp_path: Path) -> None:
    assert "cannot be read" in refused("evaluate", run, "--labels", tmp_path / "none.csv")
    for content in (b"", b"\xff\xfe", b"\0\0", b'"', b"\xff\xfe\x00", bytes(range(256))):
        (tmp_path / "x.csv").write_bytes(content)
        assert "is not a file that acclimate label wrote" in refused("evaluate", run, "--labels", tmp_path / "x.csv")


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@given(st.dictionaries(NAMES, st.sampled_from(["a", "b", NONE, None]), min_size=1, max_size=8), st.integers(1, 10**7))
def test_any_name_comes_back(tmp_path_factory: pytest.TempPathFactory, labels: dict[str, Any], images: int) -> None:
    path = tmp_path_factory.mktemp("labels") / "labels.csv"
    rows = tuple(Row(name, 0, images / len(labels), label) for name, label in labels.items())
    write_labels(path, Todo("accuracy", "0" * 16, rows))
    read = read_labels(path)
    assert {row.name: row.label for row in read.rows} == labels
    assert round(sum(row.weight for row in read.rows)) == images


# --- what labels are refused ---------------------------------------------------------------------------------------


def test_a_label_that_is_no_class_is_refused_with_the_nearest(run: Path) -> None:
    file = fill(todo(run), lambda i, place: "none of this" if place == 3 else CLASSES[TRUTH[i]])
    assert refused("evaluate", run, "--labels", file).endswith(
        "'none of this', which is not a class of the run: did you mean none of these?"
    )
    file = fill(todo(run, "--seed", "1"), lambda i, place: "A" if place == 3 else CLASSES[TRUTH[i]])
    assert refused("evaluate", run, "--labels", file).endswith("there are none of these, a, b, c.")


def test_labels_that_end_early_count_and_labels_with_gaps_do_not(run: Path) -> None:
    file = todo(run, "--n", "60")
    early = fill(file, lambda i, place: CLASSES[TRUTH[i]] if place < 25 else "")
    result = succeeds("evaluate", run, "--labels", early, "--json")
    assert json.loads(result.stdout)["labels"] == 25
    assert "25 of the 60 images have a label" in result.stderr
    begin, heading, *rows = rows_of(early)
    write(early, [begin, heading, *sorted(rows)])
    assert succeeds("evaluate", run, "--labels", early, "--json").stdout == result.stdout
    gap = fill(file, lambda i, place: CLASSES[TRUTH[i]] if place not in (7, 9) else "")
    name = rows_of(file)[2 + 7][0]
    assert f"has no label for {name} and 1 more, but for images that were shown later" in refused(
        "evaluate", run, "--labels", gap
    )


def test_too_few_labels_say_how_many_it_takes(run: Path) -> None:
    few = fill(todo(run, "--n", "60"), lambda i, place: CLASSES[TRUTH[i]] if place < 19 else "")
    sentence = refused("evaluate", run, "--labels", few)
    assert "has 19 labels, which say too little: label the first 2" in sentence


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--n", "121"), "There are only 120 images in the target, fewer than the 121 to be labelled."),
        (("--n", "19"), "19 labels say too little: label at least 20 images."),
        (("--n", "-1"), "-1 labels say too little: label at least 20 images."),
    ],
)
def test_what_cannot_be_drawn(run: Path, options: tuple[str, ...], sentence: str) -> None:
    assert refused("label", run, "--out", run.parent / "todo", *options) == sentence
    assert not (run.parent / "todo").exists()


def test_runs_that_do_not_go_together(run: Path, tmp_path: Path) -> None:
    alone = made(tmp_path / "alone", predictions(0.7, 4))
    elsewhere = made(tmp_path / "elsewhere", predictions(0.7, 4), target="u")
    out = ("--out", tmp_path / "todo")
    assert "holds no source-only" in refused("label", alone, *out, "--for", "comparison")
    assert "are of one run" in refused("label", run, alone, *out)
    assert "holds no runs among which to choose" in refused("label", alone, *out, "--for", "choice")
    assert "is not of the same target" in refused("label", run, elsewhere, *out, "--for", "choice")
    assert "holds no finished run" in refused("label", tmp_path / "nothing", *out)
    made(alone / "source_only", predictions(0.7, 4), method="source_only")
    assert "agree on every image" in refused("label", alone, *out, "--for", "comparison")
    assert "Name the labelled images" in refused("evaluate", run)
    assert "Name the labelled images" in refused("evaluate", run, "x", "y")


# --- what labels say -----------------------------------------------------------------------------------------------


def test_the_accuracy(run: Path) -> None:
    right = predictions(0.8, 1).argmax(1) == TRUTH
    file = fill(todo(run, "--n", str(N)))
    shown = json.loads(succeeds("evaluate", run, "--labels", file, "--json").stdout)
    assert (shown["for"], shown["labels"], shown["drawn"], shown["none_of_these"]) == ("accuracy", N, N, 0)
    assert shown["accuracy"] == pytest.approx(dict.fromkeys(("value", "low", "high"), right.mean()))
    for k, name in enumerate(CLASSES):
        of_class = shown["per_class"][name]
        assert of_class["labels"] == (k == TRUTH).sum()
        assert of_class["accuracy"]["value"] == pytest.approx(right[k == TRUTH].mean())
    some = fill(todo(run, "--n", "20"))
    text = succeeds("evaluate", run, "--labels", some).stdout
    assert "95 % interval from 20 labels" in text
    assert re.search(r"^b +\d +- +- +-", text, re.MULTILINE)  # fewer than ten labels


def test_none_of_the_classes_is_wrong_for_every_model(run: Path) -> None:
    file = fill(todo(run), lambda i, place: NONE)
    shown = json.loads(succeeds("evaluate", run, "--labels", file, "--json").stdout)
    assert shown["accuracy"]["value"] == 0
    assert shown["none_of_these"] == 50
    both = fill(todo(run, "--for", "comparison"), lambda i, place: NONE)
    shown = json.loads(succeeds("evaluate", run, "--labels", both, "--json").stdout)
    assert (shown["gained"], shown["lost"], shown["verdict"]) == (0, 0, "cannot tell")


def test_the_comparison_draws_what_changed_and_tells_who_is_right(run: Path) -> None:
    after, before = predictions(0.8, 1).argmax(1), predictions(0.5, 2).argmax(1)
    changed = int((after != before).sum())
    file = todo(run, "--for", "comparison", "--n", "1000")  # fewer changed, so all of them
    positions = [int(row[0]) for row in rows_of(file)[2:]]
    assert sorted(positions) == np.flatnonzero(after != before).tolist()
    shown = json.loads(succeeds("evaluate", run, "--labels", fill(file), "--json").stdout)
    exact = (after == TRUTH).mean() - (before == TRUTH).mean()
    assert (shown["difference"], shown["low"], shown["high"]) == pytest.approx((exact, exact, exact))
    assert shown["verdict"] == "helped"
    assert shown["n"] == changed
    some = fill(todo(run, "--for", "comparison", "--n", "40"))
    text = " ".join(succeeds("evaluate", run, "--labels", some).stdout.split())
    assert "Adaptation helped: dann minus source_only is +" in text
    assert f"40 of the {changed} changed images are labelled, of {N} in all" in text
    assert "(sign test)" in text


def test_harm_is_told(tmp_path: Path) -> None:
    run = made(tmp_path / "run", predictions(0.3, 1))
    made(run / "members" / "source_only", predictions(0.9, 2), method="source_only")
    vectors(tmp_path / "t.npz", n=N)
    file = fill(todo(run, "--for", "comparison", "--n", "40"))
    assert "Adaptation harmed" in succeeds("evaluate", run, "--labels", file).stdout


def members(folder: Path) -> dict[str, float]:
    """The shares of right predictions of some runs in a folder."""
    shares = {"good": 0.9, "alike": 0.9, "bad": 0.2}
    for seed, (name, share) in enumerate(shares.items()):
        made(folder / name, predictions(share, 10 + seed))
    return shares


@pytest.mark.parametrize("where", ["members", "runs", "."], ids=["a run with members", "a bench", "a folder of runs"])
def test_the_choice(tmp_path: Path, where: str) -> None:
    members(tmp_path / "bench" / where)
    vectors(tmp_path / "bench" / where / "t.npz", n=N)
    file = fill(todo(tmp_path / "bench", "--for", "choice", "--n", "60"))
    shown = json.loads(succeeds("evaluate", tmp_path / "bench", "--labels", file, "--json").stdout)
    assert shown["leader"] in ("good", "alike")
    ruled_out = {entry["model"]: entry["ruled_out"] for entry in shown["models"]}
    assert ruled_out == {"good": False, "alike": False, "bad": True}
    text = succeeds("evaluate", tmp_path / "bench", "--labels", file).stdout
    assert "60 labels rule out 1 of the 2 others" in text
    assert "measure its accuracy by others" in " ".join(text.split())


def test_a_choice_among_runs_that_are_named(tmp_path: Path) -> None:
    runs = [tmp_path / "bench" / name for name in members(tmp_path / "bench")]
    vectors(tmp_path / "bench" / "t.npz", n=N)
    succeeds("label", *runs, "--for", "choice", "--n", "40", "--out", tmp_path / "todo")
    file = fill(tmp_path / "todo" / "labels.csv")
    shown = json.loads(succeeds("evaluate", *runs[::-1], "--labels", file, "--json").stdout)
    assert shown["leader"] in map(str, runs[:2])
    assert "was drawn for another run" in refused("evaluate", *runs[:2], "--labels", file)


# --- coverage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "labels"), [(40, 40), (60, 30)], ids=["all labelled", "half of them labelled"])
@pytest.mark.parametrize("purpose", ["accuracy", "comparison"])
def test_the_interval_covers_in_93_of_100_draws(tmp_path: Path, purpose: Any, n: int, labels: int) -> None:
    truth = np.random.default_rng(6).integers(3, size=200)
    after, before = predictions(0.85, 1, truth), predictions(0.7, 2, truth)
    made(tmp_path / "run", after)
    made(tmp_path / "run" / "source_only", before, method="source_only")
    accuracies = [float((p.argmax(1) == truth).mean()) for p in (after, before)]
    exact = accuracies[0] if purpose == "accuracy" else accuracies[0] - accuracies[1]
    covered, draws, file = 0, 200, tmp_path / "labels.csv"
    for seed in range(draws):
        rows = draw([tmp_path / "run"], purpose, n, seed).todo
        given = [row._replace(label=CLASSES[truth[int(row.name)]]) for row in rows.rows[:labels]]
        write_labels(file, labelled(rows, given))
        result = answer([tmp_path / "run"], file).result
        assert isinstance(result, Estimate | Comparison)
        covered += result.low <= exact <= result.high
    assert covered / draws >= 0.93 - 0.03  # two standard deviations of 200 draws


def labelled(todo: Todo, given: list[Row]) -> Todo:
    return Todo(todo.purpose, todo.run, (*given, *todo.rows[len(given) :]))


# --- labels measure, and nothing else ------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_labels_change_nothing_in_a_run(run: Path) -> None:
    before = contents(run)
    for purpose in ("accuracy", "comparison", "choice"):
        succeeds("evaluate", run, "--labels", fill(todo(run, "--for", purpose)))
    assert contents(run) == before


def test_nothing_trains_on_the_file_of_labels(run: Path) -> None:
    file = fill(todo(run))
    for side, other in (("--source", "--target"), ("--target", "--source")):
        sentence = refused("fit", side, file, other, run.parent / "t.npz", "--out", run.parent / "out")
        assert "has no column 'path'" in sentence


def test_a_run_ends_with_the_same_bits_whether_or_not_its_target_was_labelled(tmp_path: Path) -> None:
    source, target = vectors(tmp_path / "s.npz"), vectors(tmp_path / "t.npz", shift=0.5, labelled=False, n=60)
    fit = ("fit", "--source", source, "--target", target, "--method", "dann", "--steps", "5", "--out")
    succeeds(*fit, tmp_path / "run")
    out = tmp_path / "run" / "todo"
    succeeds("label", tmp_path / "run", "--n", "30", "--out", out)
    begin, heading, *rows = rows_of(out / "labels.csv")
    write(out / "labels.csv", [begin, heading, *([row[0], "a", *row[2:]] for row in rows)])
    succeeds("evaluate", tmp_path / "run", "--labels", out / "labels.csv")
    model, record = ((tmp_path / "run" / name).read_bytes() for name in ("model.safetensors", "record.json"))
    assert json.loads(succeeds(*fit, tmp_path / "run", "--json").stdout) == json.loads(record)
    succeeds(*fit, tmp_path / "run", "--overwrite")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == model
