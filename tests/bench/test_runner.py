"""Benches: what a grid means, that a kill costs nothing but time, and that one failure is one line."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import forks
from acclimate.bench import papers, runner, workers
from acclimate.bench.grid import Grid, Row, grid_of, settings_of
from acclimate.bench.plan import PlannedRun, Tasks, plan
from acclimate.errors import DataError, OptionError
from acclimate.locks import locked
from acclimate.methods import registry
from acclimate.runs import run as experiment
from acclimate.screen import Screen
from acclimate.settings import Settings
from benches import GRID, written
from standins import make
from tiny import acclimate, refused, succeeds

QUIET = Screen(quiet=True)
HOW = workers.How(threads=1, command=("bench", "grid.toml"), keep_models=False)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rows, one task, two seeds: a grid.toml beside its source.npz and target.npz."""
    return written(tmp_path_factory.mktemp("grid"))


@pytest.fixture(scope="module")
def whole(grid: Path) -> Path:
    """The bench of the grid, unbroken."""
    out = grid.parent / "whole"
    succeeds("bench", grid, "--out", out, "-q")
    return out


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "records.jsonl").read_text(encoding="utf-8").splitlines()]


def made(out: Path) -> dict[str, int]:
    """When each run was made."""
    return {file.parent.name: file.stat().st_mtime_ns for file in (out / "runs").glob("*/record.json")}


def edited(grid: Path, folder: Path, *changes: tuple[str, str]) -> Path:
    """The grid with these texts replaced, in another folder."""
    text = GRID
    for old, new in (*changes, ('S = "', f'S = "{grid.parent}/'), ('T = "', f'T = "{grid.parent}/')):
        assert old in text
        text = text.replace(old, new, 1)
    (folder / "grid.toml").write_text(text, encoding="utf-8")
    return folder / "grid.toml"


# --- the records ---------------------------------------------------------------------------------------------------


def test_a_record_a_run_in_the_order_of_the_grid(whole: Path) -> None:
    found = records(whole)
    assert [(r["row"], r["seed"]) for r in found] == [("source-only", 0), ("source-only", 1), ("ours", 0), ("ours", 1)]
    for r in found:
        run = whole / "runs" / next(name for name in made(whole) if name.startswith(f"{r['method']}-S-T-{r['seed']}-"))
        told = json.loads((run / "record.json").read_text())
        assert (r["status"], r["error"], r["source"], r["target"]) == ("done", None, "S", "T")
        assert r["scores"]["accuracy"] == told["scores"]["accuracy"]
        assert r["scores"]["per_class"] == told["scores"]["per_class"]
        assert r["domain_error"] == told["domain_error"]
        assert r["terms"] == {name: value["last"] for name, value in told["terms"].items()}
        assert r["trained"] == {
            "backbone": None,
            "tune": "head",
            "bf16": False,
            "selection": "last step",
            "threads": 1,
        }
    assert found[2]["options"] == {"trade_off": 0.5}
    assert found[2]["baselines"] == ["source-only"]
    assert (found[0]["settings"]["steps"], found[2]["settings"]["steps"]) == (6, 8)
    assert found[0]["settings"]["lr"] == 1.0


def test_nothing_in_the_records_depends_on_where_or_when(grid: Path, whole: Path, tmp_path: Path) -> None:
    shown = succeeds("bench", grid, "--out", tmp_path / "again").stdout
    assert (tmp_path / "again" / "records.jsonl").read_bytes() == (whole / "records.jsonl").read_bytes()
    assert shown.startswith("\nAccuracy over all images in %, at the last step\n")
    assert str(grid.parent) not in (whole / "records.jsonl").read_text()


def test_weights_are_kept_only_if_asked_for(grid: Path, whole: Path, tmp_path: Path) -> None:
    assert len(list(whole.glob("runs/*/predictions.csv"))) == 4
    assert not list(whole.glob("runs/*/model.safetensors"))
    succeeds("bench", grid, "--out", tmp_path, "--keep-models", "--methods", "dann", "--seeds", "0")
    assert len(list(tmp_path.glob("runs/*/model.safetensors"))) == 1


# --- the same command again ----------------------------------------------------------------------------------------


def test_finished_runs_are_not_repeated(grid: Path, whole: Path) -> None:
    before = made(whole)
    result = succeeds("bench", grid, "--out", whole, "--json")
    assert json.loads(result.stdout) == {
        "records": str(whole / "records.jsonl"),
        "done": 4,
        "failed": 0,
        "missing": 0,
    }
    assert "4 of 4 runs are finished already." in result.stderr
    assert made(whole) == before


def test_a_changed_option_makes_its_own_runs_anew_and_no_other(grid: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    succeeds("bench", edited(grid, tmp_path), "--out", out, "-q")
    before = made(out)
    succeeds("bench", edited(grid, tmp_path, ("trade_off = 0.5", "trade_off = 0.25")), "--out", out, "-q")
    after = made(out)
    assert before.items() <= after.items()
    assert len(after) == 6
    assert [r["options"] for r in records(out)] == [{}, {}, {"trade_off": 0.25}, {"trade_off": 0.25}]


KILLED = """
import json, os, signal, sys
import torch
import acclimate.bench.runner, acclimate.runs.run as experiment, acclimate.training
from acclimate.__main__ import main
from acclimate.training import Checkpoint

torch.set_num_threads(1)
write_record, save, count = experiment.write_record, Checkpoint.save, 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def between_runs(path, record):
    global count
    count += 1
    write_record(path, record)
    if count == 2:
        die()

def within_a_run(self, path):
    global count
    count += 1
    save(self, path)
    if count == 10:
        die()

ends = []
for number, out in enumerate(sys.argv[2:]):
    if os.fork() == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        if number == 0:
            experiment.write_record = between_runs
        else:
            Checkpoint.save = within_a_run
        sys.argv[1:] = ["bench", sys.argv[1], "--out", out, "-q"]
        main()
    ends.append(os.waitstatus_to_exitcode(os.wait()[1]))
print(json.dumps(ends))
"""


def test_a_killed_bench_goes_on_to_the_same_bytes(grid: Path, tmp_path: Path) -> None:
    eager = edited(grid, tmp_path, ("lr = 1", "lr = 0.1\ncheckpoint_seconds = 0"))
    outs = [tmp_path / name for name in ("between_runs", "within_a_run")]
    code, printed = forks.run(KILLED, eager, *outs)
    assert (code, json.loads(printed)) == (0, [-signal.SIGKILL] * 2)
    succeeds("bench", eager, "--out", tmp_path / "whole", "-q")
    for out, finished in zip(outs, (2, 1), strict=True):
        before = made(out)
        assert len(before) == finished
        assert [r["status"] for r in records(out)].count("missing") > 0
        assert "missing" in succeeds("table", out).stdout
        succeeds("bench", eager, "--out", out, "-q")
        assert before.items() <= made(out).items()
        assert not list(out.glob("runs/*/checkpoint"))
        assert (out / "records.jsonl").read_bytes() == (tmp_path / "whole" / "records.jsonl").read_bytes()
        tables = [succeeds("table", folder, "--format", "csv").stdout for folder in (out, tmp_path / "whole")]
        assert tables[0] == tables[1]
    resumed = [json.loads(f.read_text())["resumed_at"] for f in outs[1].glob("runs/*/record.json")]
    assert sum(step is not None for step in resumed) == 1


def test_an_interrupt_says_that_the_same_command_goes_on(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("acclimate.runs.fit.run", interrupted)
    result = acclimate("bench", grid, "--out", tmp_path, "-q")
    assert result.exit_code == 130
    assert result.stderr == "Error: Interrupted: the same command goes on where it stopped.\n"


# --- failures ------------------------------------------------------------------------------------------------------


def test_a_failure_is_recorded_and_the_rest_goes_on(grid: Path, tmp_path: Path) -> None:
    bad = edited(grid, tmp_path, ("[[row]]", '[[row]]\nname = "TADA"\n\n[[row]]'))
    out = tmp_path / "out"
    result = acclimate("bench", bad, "--out", out, "-q")
    assert result.exit_code == 2
    reason = "The method tada needs maps, not feature vectors: give it images, or choose another --method"
    assert result.stderr == (
        f"Error: 2 of 6 runs failed, the first of them TADA on S-T with seed 0 ({reason}); "
        f"{out / 'records.jsonl'} names them all.\n"
    )
    told = {r["row"]: (r["status"], r["error"], r["scores"] is None) for r in records(out)}
    assert told == {
        "TADA": ("failed", f"{reason}.", True),
        "source-only": ("done", None, False),
        "ours": ("done", None, False),
    }
    assert "2 missing" in result.stdout


def test_any_exception_is_a_failure_in_one_line_until_it_is_mended(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **more: Any) -> None:
        raise RuntimeError("first line\nsecond line")

    command = ("bench", grid, "--out", tmp_path, "--methods", "ours", "--seeds", "0", "-q")
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "prepare", broken)
        assert acclimate(*command).exit_code == 2
        assert [r["error"] for r in records(tmp_path)] == ["RuntimeError: first line"]
    succeeds(*command)
    assert [(r["status"], r["error"]) for r in records(tmp_path)] == [("done", None)]
    assert not list(tmp_path.glob("runs/*/failed.json"))


# --- processes -----------------------------------------------------------------------------------------------------


def test_a_process_makes_the_same_run(grid: Path, whole: Path, tmp_path: Path) -> None:
    cells = plan(grid_of(str(grid)), tmp_path, Tasks(QUIET))[-2:]
    runs = [cell.run for cell in cells]
    assert list(workers.side_by_side(runs, jobs=1, how=HOW)) == runs
    for run in runs:
        assert json.loads((run.folder / "record.json").read_text())["command"] == ["bench", "grid.toml"]
        assert sorted(file.name for file in run.folder.iterdir()) == sorted(
            file.name for file in (whole / "runs" / run.folder.name).iterdir()
        )
        for name in ("predictions.csv", "metrics.jsonl"):
            assert (run.folder / name).read_bytes() == (whole / "runs" / run.folder.name / name).read_bytes()


class Dying:
    """A process that ends at its first run."""

    exitcode = -9

    def __init__(self, context: Any, how: workers.How) -> None:
        del context, how

    def join(self) -> None:
        pass

    terminate = join


def test_a_process_that_dies_fails_its_run_alone(grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from multiprocessing import Pipe

    def worker(*args: Any) -> tuple[Any, Dying]:
        ours, theirs = Pipe()

        def end() -> None:
            theirs.recv()
            theirs.close()

        threading.Thread(target=end).start()
        return ours, Dying(*args)

    monkeypatch.setattr(workers, "_worker", worker)
    result = acclimate("bench", grid, "--out", tmp_path, "--jobs", "2", "-q")
    assert result.exit_code == 2
    assert [r["error"] for r in records(tmp_path)] == ["Its process ended with exit code -9."] * 4


def test_a_run_that_another_process_makes_is_not_started_twice(grid: Path, tmp_path: Path) -> None:
    (first, *_) = plan(grid_of(str(grid)), tmp_path, Tasks(QUIET))
    maker = workers.Maker(Tasks(QUIET), QUIET, HOW)
    first.run.folder.mkdir(parents=True)
    with locked(first.run.folder / "lock", wait=False) as mine:
        assert mine
        assert not maker.make(first.run, wait=False)
    assert not first.run.finished
    assert maker.make(first.run, wait=False)
    assert first.run.finished


def test_what_another_process_makes_comes_last() -> None:
    class Busy:
        def __init__(self) -> None:
            self.asked: list[tuple[str, bool]] = []

        def make(self, wanted: PlannedRun, *, wait: bool) -> bool:
            self.asked.append((wanted.folder.name, wait))
            return wait or wanted.folder.name != "a"

    runs = [PlannedRun(Settings("s", "t"), Path(name)) for name in "abc"]
    busy: Any = Busy()
    assert [run.folder.name for run in workers.in_turn(runs, busy)] == ["b", "c", "a"]
    assert busy.asked == [("a", False), ("b", False), ("c", False), ("a", True)]


def test_the_first_seed_of_everything_is_made_first(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []

    def note(runs: Any, maker: Any) -> Iterator[PlannedRun]:
        order.extend(run.folder.name.rpartition("-")[0] for run in runs)
        yield from ()

    monkeypatch.setattr(runner, "in_turn", note)
    runner.bench(grid_of(str(grid)), tmp_path, QUIET)
    assert order == ["source_only-S-T-0", "dann-S-T-0", "source_only-S-T-1", "dann-S-T-1"]
    assert [r["status"] for r in records(tmp_path)] == ["missing"] * 4


def test_rows_with_the_same_settings_share_their_runs(grid: Path, tmp_path: Path) -> None:
    twice = edited(grid, tmp_path, ("[[row]]", '[[row]]\nname = "twin"\nmethod = "source_only"\n\n[[row]]'))
    text = twice.read_text().split("[[row]]")
    twice.write_text("[[row]]".join([*text[:3]]))  # the twin and source-only
    cells = plan(grid_of(str(twice)), tmp_path, Tasks(QUIET))
    assert len(cells) == 4
    assert len({cell.run.folder for cell in cells}) == 2


# --- the grid ------------------------------------------------------------------------------------------------------


def grid_with(*rows: Row, **more: Any) -> Grid:
    return Grid({"S": "s", "T": "t"}, (("S", "T"),), rows, **more)


def settings_for(row: Row) -> Settings:
    return settings_of(grid_with(row), row, ("S", "T"), 0)


def test_the_methods_own_recipe_holds_where_the_grid_is_silent() -> None:
    own = registry.load("dan").recipe
    assert own["lr"] == 0.003
    assert settings_for(Row("DAN", "dan")).recipe.lr == 0.003
    given = settings_for(Row("DAN", "dan", settings={"lr": 0.5})).recipe
    assert (given.lr, given.decay) == (0.5, own["decay"])


def test_the_command_line_is_above_the_row_and_the_row_above_the_grid(grid: Path) -> None:
    rows = grid_of(str(grid), overrides={"batch_size": 4}).rows
    assert [(r.settings["steps"], r.settings["batch_size"]) for r in rows] == [(6, 4), (8, 4)]
    rows = grid_of(str(grid), overrides={"steps": 3, "bottleneck": 0}).rows
    assert [(r.settings["steps"], r.settings["bottleneck"]) for r in rows] == [(3, 0)] * 2


def test_rows_are_chosen_by_their_names_or_their_methods(grid: Path) -> None:
    assert [row.name for row in grid_of(str(grid), only=["Source_Only"]).rows] == ["source-only"]
    assert [row.name for row in grid_of(str(grid), only=["dann"]).rows] == ["ours"]
    assert [row.name for row in grid_of(str(grid), only=["ours", "source-only"]).rows] == ["source-only", "ours"]


def test_a_row_that_is_not_chosen_need_not_be_known(grid: Path, tmp_path: Path) -> None:
    unknown = edited(grid, tmp_path, ('name = "source-only"\n', 'name = "Nothing"\n'))
    assert [row.name for row in grid_of(str(unknown), only=["ours"]).rows] == ["ours"]
    with pytest.raises(OptionError, match="No method has a row called 'Nothing'"):
        grid_of(str(unknown))


def test_the_papers_names_stand_for_methods_and_options(tmp_path: Path) -> None:
    make("office31", tmp_path)
    found = grid_of(None, benchmark="office31", root=tmp_path, only=["CDAN", "CDAN+E", "WEMNet †", "dann"]).rows
    assert [(row.method, row.options) for row in found] == [
        ("cdan", {"entropy": False}),
        ("cdan", {}),
        ("wemnet", {"mstn": True}),
        ("dann", {}),
    ]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("seeds =", "seed =", "The grid has no entry 'seed'; did you mean seeds?"),
        ("tasks = [", "task = [", r"[data] has no entry 'task'; did you mean tasks?"),
        ('tasks = ["S-T"]', 'tasks = ["S-U"]', "There is no task 'S-U'; did you mean S-T?"),
        ("batch_size", "batchsize", "[settings] has no setting 'batchsize'; did you mean batch_size?"),
        ("steps = 6", 'steps = "6"', "[settings]: steps must be a whole number from 1 to 1,000,000,000, not '6'."),
        ("steps = 6", "steps = true", "[settings]: steps must be a whole number from 1 to 1,000,000,000, not True."),
        ("steps = 6", "steps = 0", "[settings]: steps must be a whole number from 1 to 1,000,000,000, not 0."),
        ('name = "ours"\n', "", "Row 2 has no name: give it one."),
        ('name = "ours"', 'name = "source-only"', "The grid has several rows called source-only: give each once."),
        ("seeds = [0, 1]", "seeds = [1, 1]", "The grid has several seeds called 1: give each once."),
        ("seeds = [0, 1]", 'seeds = ["a"]', "seeds must be whole numbers, not 'a'."),
        ("options = {", "option = {", "Row 2 has no entry 'option'; did you mean options?"),
        ("trade_off", "tradeoff", "dann has no option 'tradeoff'; did you mean trade_off?"),
        ('method = "dann"', 'method = "dan_"', "There is no method 'dan_'; did you mean dan"),
        ("[settings]", "[settings", "is not TOML"),
        ('S = "source.npz"\nT = "target.npz"', "", "The grid has no domains"),
        ('S = "source.npz"', 'S = "nothing.npz"', "nothing.npz does not exist"),
        ('baseline = "source-only"', "baseline = 1", "baseline in Row 2 must be text or a list, not 1."),
        ('S = "source.npz"', "S = 1", "S in [data.domains] must be text, not 1."),
    ],
)
def test_what_a_grid_cannot_say_is_refused(grid: Path, tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in GRID
    wrong = grid.parent / f"{abs(hash((old, new)))}.toml"
    wrong.write_text(GRID.replace(old, new, 1), encoding="utf-8")
    assert sentence in refused("bench", wrong, "--out", tmp_path / "out", "-q")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--methods", "our"), "The grid has no row 'our'; did you mean ours?"),
        (("--tasks", "T-U"), "There is no task 'T-U'"),
        (("--seeds", "0,a"), "--seeds takes whole numbers with commas between, not '0,a'."),
        (("--jobs", "0"), "--jobs must be a whole number from 1 to 1,024, not 0."),
        (("--threads", "0"), "--threads must be a whole number from 1 to 1,024, not 0."),
        (("--benchmark", "pacs"), "--benchmark does not go with the grid"),
    ],
)
def test_what_the_command_cannot_say_is_refused(
    grid: Path, tmp_path: Path, options: tuple[str, ...], sentence: str
) -> None:
    assert sentence in refused("bench", grid, "--out", tmp_path / "out", *options, "-q")


def test_a_bench_of_nothing_is_refused(tmp_path: Path) -> None:
    assert "give a grid, or --benchmark and --methods" in refused("bench", "--out", tmp_path)
    assert "or one of the tables wemnet-table1," in refused("bench", "wemnet-table7", "--out", tmp_path)
    assert "Nothing says where Office-31 lies: give --root DIR." in refused("bench", "wemnet-table1", "--out", tmp_path)
    with pytest.raises(DataError, match="No task of Office-31 can be run"):
        grid_of("wemnet-table1", root=tmp_path)


# --- benchmarks and the papers' tables -----------------------------------------------------------------------------


def test_the_test_images_are_scored_where_they_are_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("mnist", "usps"):
        arrays = {}
        for part, n in {"train": 40, "test": 20}.items():
            arrays[f"x_{part}"] = rng.integers(0, 255, (n, 16, 16), dtype=np.uint8)
            arrays[f"y_{part}"] = np.arange(n) % 10
        np.savez(tmp_path / f"{name}.npz", **arrays)
    out = tmp_path / "out"
    command = ("--benchmark", "digits", "--root", tmp_path, "--methods", "DANN", "--tasks", "MNIST-USPS")
    succeeds("bench", *command, "--seeds", "0", "--backbone", "lenet", "--steps", "1", "--out", out, "-q")
    (found,) = records(out)
    assert (found["source"], found["target"], found["benchmark"]) == ("MNIST", "USPS", "digits")
    assert found["scores"]["on"] == "its test images"
    assert found["scores"]["n"] == 20


QUICK = ("--steps", "1", "--batch-size", "4", "--backbone", "lenet", "--bottleneck", "8", "--seeds", "0", "-q")


def test_the_papers_table_on_office_31(tmp_path: Path) -> None:
    make("office31", tmp_path / "data")
    command = ("bench", "wemnet-table1", "--root", tmp_path / "data", "--methods", "DANN,WEMNet", *QUICK)
    succeeds(*command, "--out", tmp_path / "out")
    found = records(tmp_path / "out")
    assert [f"{r['source']}-{r['target']}" for r in found[:6]] == list(papers.load("wemnet-table1").columns)
    assert {r["settings"]["schedule"] for r in found} == {"tll"}
    assert {r["settings"]["augment"] for r in found} == {"crop+flip"}
    assert found[-1]["baselines"] == ["DANN"]
    shown = succeeds("table", tmp_path / "out", "--published", "wemnet-table1", columns=200).stdout
    assert shown.count(", published") == 2
    errors = succeeds("table", tmp_path / "out", "--published", "wemnet-table4", columns=200).stdout
    assert "with f_d" in errors
    assert "5.73" in errors


def test_the_papers_table_on_visda(tmp_path: Path) -> None:
    make("visda2017", tmp_path / "data")
    command = ("bench", "wemnet-table2", "--root", tmp_path / "data", "--methods", "DANN,WEMNet †", *QUICK)
    succeeds(*command, "--out", tmp_path / "out")
    assert {r["settings"]["augment"] for r in records(tmp_path / "out")} == {"flip"}  # central crops
    shown = succeeds("table", tmp_path / "out", "--published", "wemnet-table2", columns=200).stdout
    assert "WEMNet †, published" in shown
    assert "78.8*" in shown
    assert "74.6" in shown


@pytest.mark.parametrize("name", [name for name in papers.names() if papers.load(name).settings])
def test_every_table_of_the_papers_can_be_run(name: str, tmp_path: Path) -> None:
    table = papers.load(name)
    grid = grid_of(name, root=make(table.benchmark, tmp_path, per_class=1))
    assert [row.name for row in grid.rows] == list(dict.fromkeys(row.name for row in table.rows))
    for row in grid.rows:
        settings = settings_of(grid, row, grid.tasks[0], 0)
        assert (settings.backbone, settings.tune) == (table.settings["backbone"], "all")


def test_the_grid_of_the_pacs_page() -> None:
    file = Path(__file__).parents[2] / "docs" / "results" / "pacs.toml"
    grid = grid_of(str(file))
    assert len(grid.rows) == 26
    assert len(grid.tasks) == 6
    names = {row.name for row in grid.rows}
    for row in grid.rows:
        settings_of(grid, row, grid.tasks[0], 0)
        assert set(row.baselines) <= names
