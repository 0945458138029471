"""The command line as it is seen: help, what goes to which stream, and names that are only data."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from typer.testing import CliRunner

import acclimate as package
from acclimate.cli.app import app
from acclimate.datasets import digits
from acclimate.methods import options as method_options
from acclimate.methods import registry
from acclimate.methods.options import describe
from acclimate.networks.backbones import list_backbones
from tiny import AtOnce, acclimate, pictures, refused, succeeds, vectors

GROUP: Any = typer.main.get_command(app)
COMMANDS = {
    " ".join((name, *inner)): command
    for name, top in sorted(GROUP.commands.items())
    for inner, command in ([((n,), c) for n, c in top.commands.items()] if hasattr(top, "commands") else [((), top)])
}
SMALL = ("--bottleneck", "8", "--batch-size", "6", "--steps", "3")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on vectors, beside its source.npz and target.npz."""
    folder = tmp_path_factory.mktemp("vectors")
    source, target = vectors(folder / "source.npz"), vectors(folder / "target.npz", shift=0.5)
    succeeds("fit", "--source", source, "--target", target, "--out", folder / "run", *SMALL)
    return folder / "run"


def fit(run: Path, out: Path, *options: str) -> tuple[str | Path, ...]:
    data = ("--source", run.parent / "source.npz", "--target", run.parent / "target.npz")
    return ("fit", *data, "--out", out, *SMALL, *options)


def test_source_and_target_may_be_named_by_place(run: Path, tmp_path: Path) -> None:
    source, target = run.parent / "source.npz", run.parent / "target.npz"
    for args in ((source, target), (source, "--target", target)):
        out = tmp_path / str(len(args))
        succeeds("fit", *args, "--out", out, *SMALL)
        assert (out / "predictions.csv").read_bytes() == (run / "predictions.csv").read_bytes()


def test_the_shell_completes_commands_options_and_methods() -> None:
    for words, expected in (("acclimate pre", "predict"), ("acclimate fit --back", "--backbone"),
                            ("acclimate fit --method wem", "wemnet"), ("acclimate fit --tune to", "top")):  # fmt: skip
        asked = {"_ACCLIMATE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        shown = CliRunner(env=asked).invoke(app, prog_name="acclimate").stdout
        assert expected in shown.split()


# --- help ----------------------------------------------------------------------------------------------------------


def test_the_commands() -> None:
    shown = succeeds("--help").stdout
    assert {"fit", "demo", "predict", "evaluate", "methods", "backbones"} <= {*COMMANDS}
    for command in GROUP.commands:
        assert f" {command} " in shown
    assert "acclimate demo" in shown  # where to begin
    for args in ((), ("-h",)):
        assert succeeds(*args).stdout.strip() == shown.strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_of_every_option(command: str) -> None:
    shown = " ".join(succeeds(*command.split(), "--help", columns=300).stdout.split())
    described = COMMANDS[command]
    assert described.help.split("\n")[0] in shown
    assert described.params
    for parameter in described.params:
        text = parameter.help
        assert text, parameter.name
        assert text.endswith(".")
        assert " ".join(text.split()[:4]) in shown
        for name in parameter.opts if isinstance(parameter, click.Option) else ():
            assert name in shown
        if isinstance(parameter, click.Option) and parameter.default not in (None, False):
            assert f"[default: {parameter.default}]" in shown


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from acclimate.cli.app import app\n"
        "for args in (['--help'], ['--version'], [], *([*command.split(), '--help'] for command in sys.argv[1:])):\n"
        "    result = CliRunner().invoke(app, args)\n"
        "    assert result.exit_code == 0, (args, result.output)\n"
        "print(*sorted({'torch', 'torchvision', 'timm', 'sklearn', 'numpy', 'PIL'} & sys.modules.keys()))\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, *COMMANDS]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "\n"


def test_the_version() -> None:
    assert succeeds("--version").stdout == f"acclimate {package.__version__}\n"
    done = subprocess.run([sys.executable, "-m", "acclimate", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"acclimate {package.__version__}\n"


# --- looking up ----------------------------------------------------------------------------------------------------


def test_methods_lists_every_method() -> None:
    result = succeeds("methods", columns=200)
    assert result.stderr == ""
    for name in registry.names():
        assert name in result.stdout
        assert describe(name)["good_for"] in result.stdout
    assert "acclimate methods NAME" in result.stdout


@pytest.mark.parametrize("name", registry.names())
def test_a_method_is_described(name: str) -> None:
    shown = succeeds("methods", name, columns=200).stdout
    assert describe(name)["title"] in shown
    assert "Differences from the paper" in shown
    rows = [line.split() for line in shown.partition("--set OPTION=VALUE")[2].splitlines()]
    options = method_options.options(name)
    for option in options.values():
        assert [option.name, *str(option.default).split()] in [
            row[: 1 + len(str(option.default).split())] for row in rows
        ]
    assert ("--set OPTION=VALUE" in shown) == bool(options)


def test_backbones_lists_what_needs_no_download() -> None:
    result = succeeds("backbones", columns=200)
    for info in list_backbones():
        assert (f"{info.name} " in result.stdout) == (not info.downloads)
    assert "more are timm's: acclimate backbones PATTERN finds them by name." in result.stderr


def test_backbones_finds_names() -> None:
    result = succeeds("backbones", "resnet18", columns=200)
    lines = result.stdout.splitlines()[2:]
    assert [line.split()[0] for line in lines if line.strip()] == [info.name for info in list_backbones("resnet18")]
    assert any(line.startswith("resnet18 ") and "224 px" in line for line in lines)
    assert result.stderr == ""


# --- streams -------------------------------------------------------------------------------------------------------


def test_json_is_all_that_is_on_stdout(run: Path, tmp_path: Path) -> None:
    target = run.parent / "target.npz"
    answers = {
        name: json.loads(succeeds(*args, "--json").stdout)
        for name, args in {
            "fit": fit(run, tmp_path / "run", "--compare"),
            "predict": ("predict", run, target, "--out", tmp_path / "p.csv"),
            "evaluate": ("evaluate", run, target),
            "methods": ("methods",),
            "method": ("methods", "dann"),
            "backbones": ("backbones",),
            "resnets": ("backbones", "resnet18"),
        }.items()
    }
    assert answers["fit"] == json.loads((tmp_path / "run" / "record.json").read_text())
    with (tmp_path / "p.csv").open(newline="") as file:
        predicted = [row["predicted"] for row in csv.DictReader(file)]
    assert answers["predict"] == {
        "items": 24,
        "skipped": [],
        "classes": {name: predicted.count(name) for name in "abc"},
        "out": str(tmp_path / "p.csv"),
    }
    assert answers["evaluate"] == json.loads((run / "record.json").read_text())["scores"]
    assert [entry["name"] for entry in answers["methods"]] == list(registry.names())
    assert answers["method"] == [json.loads(json.dumps(describe("dann")))]
    assert [entry["name"] for entry in answers["resnets"]] == [info.name for info in list_backbones("resnet18")]
    assert not any(entry["downloads"] for entry in answers["backbones"])


def test_an_error_with_json_leaves_stdout_empty() -> None:
    assert "no method" in refused("methods", "nonsense", "--json")


def test_progress_goes_to_stderr_and_results_to_stdout(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acclimate.screen.Timer", AtOnce)
    result = succeeds(*fit(run, tmp_path / "run", "--compare"))
    assert "Source: 24 items of 3 classes. Target: 24 items (labelled, for evaluation alone)." in result.stderr
    assert "Training wemnet: 0 of 3" in result.stderr
    for shown in ("Accuracy on the target in %, 24 labelled images", "Overall", "predictions.csv"):
        assert shown in result.stdout
        assert shown not in result.stderr
    assert "Training" not in result.stdout


def test_quiet(run: Path, tmp_path: Path) -> None:
    target = run.parent / "target.npz"
    for args in (
        fit(run, tmp_path / "run"),
        ("predict", run, target, "--out", tmp_path / "p.csv"),
        ("evaluate", run, target),
    ):
        assert succeeds(*args, "-q").stderr == ""
    assert "Overall" in succeeds("evaluate", run, target, "--quiet").stdout
    assert succeeds("predict", run, target, "--out", tmp_path / "p.csv", "--quiet").stdout == ""
    assert "no method" in refused("fit", *fit(run, tmp_path / "b")[1:], "--quiet", "--method", "x")


def test_predict_tells_where_the_predictions_are(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.csv"
    assert f"24 predictions are in {out}." in succeeds("predict", run, run.parent / "target.npz", "--out", out).stderr


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    result = acclimate("methods", "nonsense", "--debug")
    assert result.exit_code == 2
    assert result.stderr.startswith("Traceback (most recent call last):")
    assert result.stderr.rstrip().split("\n")[-1].startswith("Error: There is no method 'nonsense'")
    monkeypatch.setenv("ACCLIMATE_DEBUG", "1")
    assert "Traceback" in acclimate("methods", "nonsense").stderr


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (RuntimeError("what nobody expected"), 1, "RuntimeError: what nobody expected (--debug shows where.)"),
        (MemoryError(), 2, "The memory does not suffice: use a smaller --batch-size or a smaller backbone."),
        (RuntimeError("CUDA out of memory"), 2, "The memory does not suffice: use a smaller --batch-size"),
        (OSError(28, "No space left on device", "/d/f"), 2, "/d/f: No space left on device."),
        (KeyboardInterrupt(), 130, "Interrupted."),
    ],
)
def test_what_goes_wrong_elsewhere(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, sentence: str
) -> None:
    def fails(name: str) -> None:
        raise error

    monkeypatch.setattr(method_options, "describe", fails)
    result = acclimate("methods", "dann")
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith(f"Error: {sentence}")
    assert result.stderr.count("\n") == 1
    debugged = acclimate("methods", "dann", "--debug")
    assert debugged.exit_code == code
    assert ("Traceback" in debugged.stderr) == (code != 130)
    assert "--debug" not in debugged.stderr


# --- the demo ------------------------------------------------------------------------------------------------------


def test_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for load, total, stride in (("_uci", "UCI_IMAGES", 36), ("_mnist", "MNIST_IMAGES", 100)):
        images, labels = getattr(digits, load)()
        few = (list(images)[::stride], labels[::stride])  # the real ones, but not all
        monkeypatch.setattr(digits, load, lambda few=few: few)
        monkeypatch.setattr(digits, total, len(few[1]))
    monkeypatch.chdir(tmp_path)
    command = ("demo", "--method", "wemnet")
    first = succeeds(*command, "--steps", "3")
    out = tmp_path / "runs" / "demo" / "wemnet"
    record = json.loads((out / "record.json").read_text())
    assert record["steps"] == 3
    assert record["data"]["source"]["items"] == record["data"]["target"]["items"] == 50
    for accuracy in (record["compare"]["scores"]["accuracy"], record["scores"]["accuracy"]):
        assert f" {100 * accuracy:.1f}" in first.stdout
    for shown in ("Accuracy on the target in %, 50 labelled images", "source_only", "wemnet", "Change", "Overall"):
        assert shown in first.stdout

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    again = succeeds(*command, "--steps", "3")
    assert again.stdout == first.stdout
    assert "Training" not in again.stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == before

    assert "other settings (steps): name another --out, or use --overwrite" in refused(*command, "--steps", "4")
    succeeds(*command, "--steps", "4", "--overwrite")
    assert json.loads((out / "record.json").read_text())["steps"] == 4
    succeeds("demo", "--steps", "3", "--method", "mstn")
    assert (out.parent / "mstn" / "record.json").exists()
    assert json.loads((out / "record.json").read_text())["steps"] == 4


def test_a_mistaken_demo_writes_nothing(tmp_path: Path) -> None:
    assert "did you mean wemnet" in refused("demo", "--out", tmp_path / "demo", "--method", "wemnt")
    assert "steps must be a whole number from 1" in refused("demo", "--out", tmp_path / "demo", "--steps", "0")
    assert not (tmp_path / "demo").exists()
    (tmp_path / "file").touch()
    assert "cannot be written" in refused("demo", "--out", tmp_path / "file", "--steps", "1")


# --- names are data ------------------------------------------------------------------------------------------------

STRANGE = ("=cmd|' -C calc'!A0", "[bold red]b", "c\x1b[31m\x07:smile:", "d\nline,two")


@pytest.mark.skipif(os.name == "nt", reason="such files cannot be made there")
def test_strange_names_are_shown_and_written_as_they_are(tmp_path: Path) -> None:
    source, target = pictures(tmp_path / "source", STRANGE), pictures(tmp_path / "[i]t", STRANGE, shade=20)
    out = tmp_path / "[red]run"
    options = ("--backbone", "lenet", "--method", "source_only", *SMALL)
    result = succeeds("fit", "--source", source, "--target", target, "--out", out, *options, columns=300)
    for shown in (STRANGE[0], STRANGE[1], r"c\x1b[31m\x07:smile:", r"d\nline,two", "[red]run"):
        assert shown in result.stdout
    assert "\x1b" not in result.output
    assert "\x07" not in result.output
    with (out / "predictions.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header[3:]) == tuple(sorted(STRANGE))
    assert [row[0] for row in rows] == [f"{name}/{i}.png" for name in sorted(STRANGE) for i in range(4)]
    assert {row[1] for row in rows} <= {*STRANGE}
    record = json.loads((out / "record.json").read_text())
    assert tuple(record["data"]["source"]["classes"]) == tuple(sorted(STRANGE))
    assert record["data"]["target"]["origin"] == str(target)

    evaluated = json.loads(succeeds("evaluate", out, target, "--json").stdout)
    assert [entry["name"] for entry in evaluated["per_class"]] == sorted(STRANGE)
    sentence = refused("predict", out, tmp_path / "\x1b[31m[b]gone", "--out", tmp_path / "p.csv")
    assert sentence.endswith(r"\x1b[31m[b]gone does not exist: check the path.")
