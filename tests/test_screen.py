from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from rich.console import Console

from acclimate import screen as screens
from acclimate.cli.show import show_changes, show_files, show_run, show_scores
from acclimate.evaluation.scores import Scores, changes
from acclimate.progress import Track
from acclimate.runs.record import FindingRecord, RunRecord, read_record, write_record
from acclimate.screen import Screen
from recorded import run_record
from tiny import succeeds, vectors


def test_importing_imports_neither_torch_nor_scikit_learn() -> None:
    code = "import sys, acclimate.screen; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The screen


class Clock:
    """A clock that a test moves, and its timers."""

    def __init__(self) -> None:
        self._now = 100.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def __call__(self) -> float:
        return self._now

    @property
    def now(self) -> float:
        return self._now

    @now.setter
    def now(self, now: float) -> None:
        self._now = now
        for timer in [timer for timer in self.timers if timer[0] <= now]:
            self.timers.remove(timer)
            timer[1]()

    def timer(self, seconds: float, function: Callable[[], None]) -> ClockTimer:
        return ClockTimer(self, seconds, function)


class ClockTimer:
    def __init__(self, clock: Clock, seconds: float, function: Callable[[], None]) -> None:
        self.clock, self.entry = clock, (clock.now + seconds, function)

    def start(self) -> None:
        self.clock.timers.append(self.entry)

    def cancel(self) -> None:
        if self.entry in self.clock.timers:
            self.clock.timers.remove(self.entry)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(screens, "monotonic", clock)
    monkeypatch.setattr(screens, "Timer", clock.timer)
    return clock


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for variable in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(variable, raising=False)


def on_terminal(**options: bool) -> tuple[Screen, io.StringIO]:
    """A screen whose stderr is a terminal, and what it shows there."""
    screen, shown = Screen(**options), io.StringIO()
    plain = {"markup": False, "emoji": False, "highlight": False, "color_system": None}
    screen._stderr = Console(file=shown, force_terminal=True, force_interactive=True, width=80, **plain)
    screen._bars = screens._Bars(screen._stderr)
    return screen, shown


NASTY = "[red]a[/red] :smile: [/] {0} {task.id} \x1b[2J\nb"
SHOWN = "[red]a[/red] :smile: [/] {0} {task.id} \\x1b[2J\\nb"


def test_sentences_go_to_stderr_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.say(NASTY)
    screen.warn(NASTY)
    screen.error(NASTY)
    assert capsys.readouterr() == ("", f"{SHOWN}\nWarning: {SHOWN}\nError: {SHOWN}\n")


def test_a_long_sentence_is_one_line_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().say("word " * 60)
    assert capsys.readouterr().err.count("\n") == 1


def test_a_sentence_wraps_between_words_on_a_terminal() -> None:
    screen, shown = on_terminal()
    screen.say("word " * 60)
    assert {word for line in shown.getvalue().splitlines() for word in line.split()} == {"word"}
    assert max(map(len, shown.getvalue().splitlines())) <= 80


def test_a_console_that_cannot_write_a_name_shows_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    class Ascii(io.StringIO):
        encoding = "ascii"

    screen = Screen()
    screen.stdout.file = Ascii()
    show_scores(screen, {"wemnet": Scores(("Käse", "猫" * 40), np.eye(2, dtype=int))})
    assert "K\\xe4se" in screen.stdout.file.getvalue()
    assert "\\u732b" in screen.stdout.file.getvalue()
    assert screen.stdout.file.getvalue().isascii()


def test_quiet_leaves_warnings_errors_and_results(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(quiet=True)
    screen.say("Reading.")
    assert list(screen.track(range(3), "Reading", 3)) == [0, 1, 2]
    with screen.progress("Adapting", 3) as meter:
        meter.update(1, {"loss": 1.0})
    screen.warn("Odd.")
    screen.error("Bad.")
    show_scores(screen, {"wemnet": Scores(("a", "b"), np.eye(2, dtype=int))})
    out, err = capsys.readouterr()
    assert err == "Warning: Odd.\nError: Bad.\n"
    assert "Overall" in out


def test_json_replaces_the_tables(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    screen = Screen(json=True)
    show_scores(screen, {"wemnet": Scores(("a", "b"), np.eye(2, dtype=int))})
    show_changes(screen, changes(np.eye(2), np.eye(2)), ("a", "b"), "source_only", "wemnet")
    show_files(screen, tmp_path)
    screen.say("Reading.")
    screen.show_json({"classes": ["Käse"]})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"classes": ["Käse"]}
    assert err == "Reading.\n"
    with pytest.raises(ValueError, match="not JSON compliant"):
        screen.show_json(math.nan)
    Screen().show_json({})
    assert capsys.readouterr().out == ""


@given(st.lists(st.integers()))
def test_track_yields_what_it_is_given(items: list[int]) -> None:
    track: Track = Screen().track
    assert list(track(iter(items), "Reading", len(items))) == items


def test_short_work_gets_no_line_in_a_log(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with Screen().progress("Solving", 1500) as meter:
        clock.now += 1.5
        meter.update(1500)
    clock.now += 60
    assert capsys.readouterr().err == ""


def test_work_that_tells_nothing_of_itself_is_shown_all_the_same(
    capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    with Screen().progress("Members", 6):
        clock.now += 2
        assert capsys.readouterr().err == "Members: 0 of 6\n"
    screen, shown = on_terminal()
    with screen.progress("Members", 6):
        assert not screen._bars.live.is_started
        clock.now += 2
        assert screen._bars.live.is_started
    assert "Members" in shown.getvalue()
    assert " 0/6 " in shown.getvalue()


def test_few_long_pieces_get_a_line_each(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    with Screen().progress("Members", 6) as meter:
        for done, seconds in enumerate((10, 1, 9, 20, 20, 20), 1):
            clock.now += seconds
            meter.update(done)
    assert capsys.readouterr().err.splitlines() == [
        "Members: 0 of 6",
        "Members: 1 of 6 (17 %), 0:00:50 left",
        "Members: 3 of 6 (50 %), 0:00:20 left",
        "Members: 4 of 6 (67 %), 0:00:20 left",
        "Members: 5 of 6 (83 %), 0:00:12 left",
        "Members: 6 of 6 (100 %)",
    ]


def test_the_time_left_is_told_though_pieces_are_long(clock: Clock) -> None:
    screen, _ = on_terminal()
    screen._bars.get_time = clock
    with screen.progress("Members", 6) as meter:
        for done in range(1, 4):
            clock.now += 60
            meter.update(done)
        assert screen._bars.tasks[0].time_remaining == 180


def test_a_log_gets_a_line_and_then_one_in_thirty_seconds(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    for _ in Screen().track(range(1000), "Reading", 1000):
        clock.now += 0.125
    assert capsys.readouterr().err.splitlines() == [
        "Reading: 0 of 1,000",
        "Reading: 240 of 1,000 (24 %), 0:01:35 left",
        "Reading: 480 of 1,000 (48 %), 0:01:05 left",
        "Reading: 720 of 1,000 (72 %), 0:00:35 left",
        "Reading: 960 of 1,000 (96 %), 0:00:05 left",
    ]


def test_the_log_of_a_resumed_training(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    asked = 0

    class Value(float):
        def __float__(self) -> float:
            nonlocal asked
            asked += 1
            return 0.123456

    with Screen().progress("Adapting", 2000, start=1000) as meter:
        for step in range(1001, 1101):
            clock.now += 0.5
            meter.update(step, {"classification": Value(), "adversarial": 1.5e-9})
    assert capsys.readouterr().err.splitlines() == [
        "Adapting: 1,000 of 2,000",
        "Adapting: 1,060 of 2,000 (53 %), 0:07:50 left; classification 0.123  adversarial 1.5e-09  2.0 steps/s",
    ]
    assert asked == 1  # a value on a device is fetched only to be shown


def test_short_work_shows_no_bar(clock: Clock) -> None:
    screen, shown = on_terminal()
    for _ in screen.track(range(19), "Reading", 19):
        clock.now += 0.1
    assert shown.getvalue() == ""


def test_long_work_shows_a_bar(clock: Clock) -> None:
    screen, shown = on_terminal()
    for _ in screen.track(range(100), NASTY[:35], 100):
        clock.now += 0.125
    assert "[red]a[/red] :smile: [/] {0} {task." in shown.getvalue()
    assert " 15/100 " in shown.getvalue()  # two seconds after the start
    assert " 100/100 " in shown.getvalue()
    assert not screen._bars.live.is_started
    assert screen._bars.tasks == []


def test_training_shows_its_terms(clock: Clock) -> None:
    screen, shown = on_terminal()
    with screen.progress("Adapting", 100, start=40) as meter:
        assert screen._bars.tasks[0].completed == 40  # or the time left would count what was done before
        for step in range(41, 81):
            clock.now += 0.125
            meter.update(step, {"classification": step / 3, "adversarial": 0.693147})
    assert " 55/100 " in shown.getvalue()
    assert "classification 26.7  adversarial 0.693" in shown.getvalue()
    assert "steps/s" in shown.getvalue()


def test_work_within_work_has_its_own_bar(clock: Clock) -> None:
    screen, shown = on_terminal()
    for _ in screen.track(range(4), "Outer", 4):
        clock.now += 3
        for _ in screen.track(range(4), "Inner", 4):
            clock.now += 3
        assert [task.description for task in screen._bars.tasks] == ["Outer"]
        assert screen._bars.live.is_started
    assert "Outer" in shown.getvalue()
    assert "Inner" in shown.getvalue()
    assert not screen._bars.live.is_started


def test_a_result_shown_under_a_bar_goes_to_stdout(capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
    screen, shown = on_terminal(json=True)
    with screen.progress("Adapting", 10) as meter:
        clock.now += 5
        meter.update(1)
        screen.show_json({"accuracy": 0.5})
        screen.say("Half way.")
    assert json.loads(capsys.readouterr().out) == {"accuracy": 0.5}
    assert "accuracy" not in shown.getvalue()
    assert "Half way." in shown.getvalue()


def test_a_failure_ends_the_bar(clock: Clock) -> None:
    screen, _ = on_terminal()

    def fail() -> None:
        with screen.progress("Adapting", 10) as meter:
            clock.now += 5
            meter.update(1)
            assert screen._bars.live.is_started
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert not screen._bars.live.is_started
    assert screen._bars.tasks == []


# Results

NAMES = ("dog", "giraffe", "[b]house")


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert err == ""
    assert max(map(len, out.splitlines())) <= 80
    return "\n".join(line.rstrip() for line in out.splitlines())


def test_scores_before_and_after(capsys: pytest.CaptureFixture[str]) -> None:
    before = Scores(NAMES, np.array([[600, 400, 0], [0, 0, 0], [1, 1, 2]]))
    after = Scores(NAMES, np.array([[996, 0, 4], [0, 0, 0], [2, 1, 1]]), n_unknown=12)
    show_scores(Screen(), {"source_only": before, "wemnet": after})
    assert (
        shown(capsys)
        == """
Accuracy on the target in %, 1,004 labelled images

Class           Images  source_only  wemnet  Change
───────────────────────────────────────────────────
dog              1,000         60.0    99.6   +39.6
giraffe              0            -       -       -
[b]house             4         50.0    25.0   -25.0

Mean per class                 55.0    62.3    +7.3
Overall          1,004         60.0    99.3   +39.3

Not scored: 12 with no label, or one that is not a class of the source.

Confusion of wemnet: % of a true class (row) by predicted class (column)

               1   2   3
────────────────────────
 1 dog       100   .   0
 2 giraffe     .   .   .
 3 [b]house   50  25  25"""
    )


def test_scores_of_one_method_have_nothing_to_differ_from(capsys: pytest.CaptureFixture[str]) -> None:
    show_scores(Screen(), {"wemnet": Scores(NAMES, np.diag([1, 2, 3]))})
    text = shown(capsys)
    assert "Class           Images  wemnet\n" in text
    assert "Overall              6   100.0\n" in text
    assert "Not scored" not in text


@pytest.mark.parametrize(("K", "digits", "drawn"), [(12, 5, True), (16, 3, True), (20, 3, False), (21, 1, False)])
def test_a_confusion_matrix_is_drawn_where_it_fits(
    capsys: pytest.CaptureFixture[str], K: int, digits: int, drawn: bool
) -> None:
    confusion = np.random.default_rng(0).integers(10 ** (digits - 1), 10**digits, (K, K))
    show_scores(Screen(), {"dann": Scores(tuple(f"a class {k}" for k in range(K)), confusion)})
    text = shown(capsys)
    assert ("Confusion of dann" in text) == drawn
    assert "…" not in text


@pytest.mark.parametrize(("K", "drawn"), [(20, True), (21, False)])
def test_a_confusion_matrix_has_at_most_twenty_classes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, K: int, drawn: bool
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    show_scores(Screen(), {"dann": Scores(tuple(map(str, range(K))), np.ones((K, K), dtype=int))})
    assert ("Confusion of dann" in capsys.readouterr().out) == drawn


def test_long_class_names_do_not_squeeze_the_figures(capsys: pytest.CaptureFixture[str]) -> None:
    scores = Scores(("n" * 150, "b"), np.array([[10_000, 1], [0, 3]]))
    show_scores(Screen(), {"source_only": scores, "wemnet": scores})
    text = shown(capsys)
    assert "Images  source_only  wemnet  Change" in text
    assert text.count("n" * 20) >= 5  # folded in the table; shortened only in the matrix
    assert f" 1 {'n' * 17} " in text


def test_what_changed_without_labels(capsys: pytest.CaptureFixture[str]) -> None:
    before = np.array([[0.8, 0.2, 0]] * 1100 + [[0.4, 0.6, 0]] * 900)
    after = np.array([[0.1, 0.9, 0]] * 1900 + [[0.9, 0.1, 0]] * 100)
    show_changes(Screen(), changes(before, after), NAMES, "source_only", "wemnet")
    assert (
        "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())
        == """
Predicted classes of the target's 2,000 images, which have no labels

Class     source_only  wemnet  Change
─────────────────────────────────────
dog             1,100     100  -1,000
giraffe           900   1,900  +1,000
[b]house            0       0      +0

wemnet predicts another class than source_only for 60.0 % of the images. The mean confidence was 71.0 % and is \
90.0 %; that is not an accuracy."""
    )


def test_files_of_a_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("predictions.csv", "model.safetensors", "notes.txt"):
        (tmp_path / name).touch()
    show_files(Screen(), tmp_path)
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "",
        f"Written to {tmp_path}",
        "  predictions.csv    the target's images: class, confidence, probabilities",
        "  model.safetensors  the model's weights",
    ]


# The closing lines of a fit


def closing_lines(record: RunRecord, capsys: pytest.CaptureFixture[str]) -> list[str]:
    show_run(record, Path("runs/a"), Screen())
    return capsys.readouterr().out.splitlines()


def warned(record: RunRecord) -> RunRecord:
    """A record with a bound, a note and a warning, in this order."""
    assert record.trust is not None
    found = [
        FindingRecord(check="bound", level="fact", sentence="It cannot have moved.", figures={}),
        FindingRecord(check="settled", level="note", sentence="It had not settled.", figures={}),
        FindingRecord(check="collapse", level="warning", sentence=f"It hardly predicts {NASTY}.", figures={}),
    ]
    told = {"verdict": "look before you use it", "level": "warning", "findings": tuple(found)}
    return structs.replace(record, trust=structs.replace(record.trust, **told))


def test_the_verdict_comes_first_then_warnings_and_notes_then_the_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    for scores in (None, run_record().scores):
        lines = closing_lines(structs.replace(warned(run_record()), scores=scores), capsys)
        assert lines[1:6] == [
            "Look before you use it.",
            f"Warning: It hardly predicts {SHOWN}.",
            "Note: It had not settled.",
            "Estimated without labels: about 80 % of the images are classified correctly, range 60 to 95 %.",
            "It cannot have moved.",
        ]
        assert "how often the members agree: two of them say the same class for 70 %" in lines[6]
        text = "\n".join(lines)
        assert ("Accuracy on the target in %" in text) == (scores is not None)
        assert ("which have no labels" in text) == (scores is None)


def test_members_are_shown_with_the_best_marked_where_labels_tell(capsys: pytest.CaptureFixture[str]) -> None:
    record = run_record()
    assert record.trust is not None
    lines = closing_lines(record, capsys)
    start = next(n for n, line in enumerate(lines) if line.startswith("Member  "))
    assert lines[start].split() == ["Member", "with", "others", "with", "result", "Accuracy", "Training"]
    assert lines[start + 2].split() == ["source-only", "50.0", "75.0", "best", "75.0", "2", "s"]
    assert lines[start + 3].split() == ["JAN", "50.0", "62.5", "75.0", "2", "s"]
    assert lines[start + 4] == "CRST has no vote: Training diverged."
    blind = tuple(structs.replace(member, accuracy=None) for member in record.trust.members)
    lines = closing_lines(structs.replace(record, trust=structs.replace(record.trust, members=blind)), capsys)
    assert "Accuracy" not in next(line for line in lines if line.startswith("Member  "))
    assert not any("best" in line for line in lines)


def test_a_run_that_nobody_judged_shows_its_figures_alone(capsys: pytest.CaptureFixture[str]) -> None:
    lines = closing_lines(structs.replace(run_record(), trust=None), capsys)
    assert lines[1].startswith("Accuracy on the target in %")


def test_predict_repeats_a_warning_in_one_line(tmp_path: Path) -> None:
    source, target = vectors(tmp_path / "s.npz"), vectors(tmp_path / "t.npz", shift=0.5)
    run = tmp_path / "run"
    succeeds("fit", "--source", source, "--target", target, "--out", run, "--method", "source_only", "--steps", "5")
    record = read_record(run / "record.json")
    predict = ("predict", run, target, "--out", tmp_path / "p.csv")
    assert "Warning" not in succeeds(*predict).stderr
    write_record(run / "record.json", structs.replace(record, trust=warned(run_record()).trust))
    (line,) = (line for line in succeeds(*predict).stderr.splitlines() if line.startswith("Warning: "))
    assert "look before you use it" in line
    assert SHOWN in line
    assert "1 more" in line
    (run / "record.json").unlink()  # the model alone is enough
    assert "Warning" not in succeeds(*predict).stderr
