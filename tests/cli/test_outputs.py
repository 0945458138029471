"""Whatever a command is told to write, nothing is lost: it replaces an earlier file of the same kind and no other."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from acclimate.errors import DataError
from acclimate.model import Model
from acclimate.outputs import RUN_NAMES
from acclimate.runs.files import RUN_FILES
from tiny import pictures, refused, succeeds, vectors


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs")
    source, target = vectors(folder / "source.npz"), vectors(folder / "target.npz", shift=0.5)
    succeeds("fit", "--source", source, "--target", target, "--steps", "2", "--out", folder / "run")
    return folder / "run"


COMMANDS: dict[str, Callable[[Path, Path], tuple[str | Path, ...]]] = {
    "predict": lambda run, out: ("predict", run, run.parent / "target.npz", "--out", out),
    "report": lambda run, out: ("report", run, "--out", out),
    "export": lambda run, out: ("export", run, "--out", out.with_name(f"{out.name}.pt2")),
}
every_command = pytest.mark.parametrize("command", COMMANDS)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@every_command
def test_it_writes_twice_and_then_no_file_of_another_kind(command: str, run: Path, tmp_path: Path) -> None:
    args = COMMANDS[command](run, tmp_path / "out")
    succeeds(*args)
    succeeds(*args)
    (out,) = tmp_path.iterdir()
    for other in (b"a,b\r\n1,2\r\n", b"<!doctype html><p>", b"\x89PNG\r\n\x1a\n", b"\0" * 100):
        out.write_bytes(other)
        assert refused(*args).startswith(f"{out} holds something else than ")
        assert out.read_bytes() == other
    out.write_bytes(b"")  # in which there is nothing to lose
    succeeds(*args)


@every_command
def test_it_replaces_no_special_file(command: str, run: Path, tmp_path: Path) -> None:
    suffix = ".pt2" if command == "export" else ""
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"null{suffix}").symlink_to("/dev/null")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / f"socket{suffix}"))
    (tmp_path / f"folder{suffix}").mkdir()
    before = {path: path.lstat().st_mode for path in tmp_path.iterdir()}
    for name in ("pipe", "null", "socket"):
        sentence = refused(*COMMANDS[command](run, tmp_path / name))
        assert sentence.startswith(f"{tmp_path / name}{suffix} is a device, a pipe or a socket: name another file")
    assert refused(*COMMANDS[command](run, tmp_path / "folder")).startswith(
        f"{tmp_path / 'folder'}{suffix} is a folder"
    )
    assert {path: path.lstat().st_mode for path in tmp_path.iterdir()} == before
    listening.close()


@pytest.mark.parametrize("command", ["predict", "report"])
@pytest.mark.parametrize("name", sorted(RUN_FILES))
def test_it_takes_no_other_place_in_a_run(command: str, name: str, run: Path, tmp_path: Path) -> None:
    if (command, name) == ("report", "report.html"):
        return
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / name).unlink(missing_ok=True)
    before = contents(copy)
    assert refused(*COMMANDS[command](run, copy / name)) == (
        f"{copy / name} belongs to the run or to the data: name another file with --out."
    )
    assert contents(copy) == before


def test_the_names_of_a_run_are_all_known() -> None:
    assert RUN_FILES.keys() <= RUN_NAMES


def test_it_puts_no_image_and_no_links_into_the_input(run: Path, tmp_path: Path) -> None:
    images = pictures(tmp_path / "images")
    before = contents(images)
    image = next(path for path in before if path.suffix == ".png")
    for out in (image, images / "new.JPG"):
        assert "would be taken for an image of the input" in refused("predict", run, images, "--out", out)
    assert "lies in the input" in refused("predict", run, images, "--link", images / "sorted")
    assert contents(images) == before


def test_a_list_that_is_read_is_not_replaced_by_what_is_said_of_it(run: Path, tmp_path: Path) -> None:
    listed = shutil.copy(run / "predictions.csv", tmp_path / "list.csv")
    (tmp_path / "link.csv").symlink_to(listed)
    for out in (listed, tmp_path / "link.csv"):
        assert "belongs to the run or to the data" in refused("predict", run, listed, "--out", out)


def test_a_model_replaces_a_model_alone(run: Path, tmp_path: Path) -> None:
    model = Model.load(run)
    model.save(tmp_path)
    model.save(tmp_path)
    Model.load(tmp_path)
    with pytest.raises(DataError, match="belongs to the run"):
        model.save(run)
    (tmp_path / "model.safetensors").write_bytes(b"precious")
    with pytest.raises(DataError, match=r"model\.safetensors holds something else than a model's weights"):
        model.save(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == b"precious"
