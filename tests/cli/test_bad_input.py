"""What users get wrong, through the command line: each mistake is answered by one sentence and exit code 2."""

from __future__ import annotations

import csv
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from acclimate.methods import registry
from tiny import acclimate, network, pictures, refused, samples_for, succeeds, trained_alone, vectors

SMALL_NET = ("--backbone", "lenet", "--batch-size", "4", "--steps", "1", "--bottleneck", "4")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return pictures(tmp_path / "source"), pictures(tmp_path / "target", shade=20)


@pytest.fixture
def arrays(tmp_path: Path) -> tuple[Path, Path]:
    return vectors(tmp_path / "source.npz"), vectors(tmp_path / "target.npz", shift=0.5)


@pytest.fixture(scope="module")
def vector_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectors")
    source, target = vectors(folder / "source.npz"), vectors(folder / "target.npz", shift=0.5)
    options = ("--steps", "1", "--bottleneck", "4", "--method", "source_only")
    succeeds("fit", "--source", source, "--target", target, "--out", folder / "run", *options)
    return folder / "run"


@pytest.fixture(scope="module")
def image_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    source, target = pictures(folder / "source"), pictures(folder / "target", shade=20)
    options = (*SMALL_NET, "--method", "source_only")
    succeeds("fit", "--source", source, "--target", target, "--out", folder / "run", *options)
    return folder / "run"


def fit(source: str | Path, target: str | Path, *options: str | Path) -> str:
    """The sentence that refuses a fit, which leaves no run directory behind."""
    out = Path(source).parent / "run"
    sentence = refused("fit", "--source", source, "--target", target, "--out", out, *SMALL_NET, *options)
    assert not out.exists() or not any(out.iterdir())
    return sentence


# --- folders -------------------------------------------------------------------------------------------------------


def test_a_path_that_does_not_exist(folders: tuple[Path, Path], tmp_path: Path) -> None:
    source, target = folders
    assert fit(tmp_path / "nowhere", target) == f"{tmp_path / 'nowhere'} does not exist: check the path."
    assert fit(source, tmp_path / "nowhere") == f"{tmp_path / 'nowhere'} does not exist: check the path."


def test_an_empty_folder(folders: tuple[Path, Path], tmp_path: Path) -> None:
    source, target = folders
    empty = tmp_path / "empty"
    empty.mkdir()
    assert fit(empty, target).startswith(f"{empty} holds no images: name a folder with")
    assert fit(source, empty).startswith(f"{empty} holds no images: name a folder with")


def test_a_target_without_images(folders: tuple[Path, Path], tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "readme.md").write_text("nothing to see")
    assert "holds no images" in fit(folders[0], notes)


def test_a_flat_source(folders: tuple[Path, Path], tmp_path: Path) -> None:
    flat = pictures(tmp_path / "flat", ("",))
    assert "holds 4 images but no class folders: put the images of each class into a folder" in fit(flat, folders[1])


def test_a_source_of_one_class(folders: tuple[Path, Path], tmp_path: Path) -> None:
    one = pictures(tmp_path / "one", ("only",))
    assert "has only the class 'only': give at least two classes" in fit(one, folders[1])


def test_a_class_folder_without_images(folders: tuple[Path, Path]) -> None:
    (folders[0] / "d").mkdir()
    assert "source/d holds no image: add images to it or remove it." in fit(*folders)


@pytest.mark.parametrize(
    ("kind", "classes", "problem"),
    [
        ("target", ("a", "b", "c", "d"), "has classes that the source lacks (d)"),
        ("target", ("a", "b"), "has no images of source classes (c)"),
        ("target", ("a", "b", "x"), "has classes that the source lacks (x) and has no images of source classes (c)"),
    ],
)
def test_a_class_on_one_side_only(
    folders: tuple[Path, Path], kind: str, classes: tuple[str, ...], problem: str
) -> None:
    source, target = folders[0], pictures(folders[1].parent / "other", classes, shade=30)
    sentence = fit(source, target)
    assert problem in sentence
    assert "--allow-class-mismatch" in sentence
    out = source.parent / "accepted"
    options = (*SMALL_NET, "--method", "source_only", "--allow-class-mismatch")
    result = succeeds("fit", "--source", source, "--target", target, "--out", out, *options)
    scores = json.loads((out / "record.json").read_text())["scores"]
    assert scores["n"] == 4 * len({*"abc"} & {*classes})
    assert scores["n_unknown"] == 4 * len({*classes} - {*"abc"})
    assert ("Not scored: 4" in result.stdout) == bool(scores["n_unknown"])


def test_domains_that_share_images(folders: tuple[Path, Path], tmp_path: Path) -> None:
    source, _ = folders
    assert "12 of the 12 items of the target" in fit(source, source)
    assert "are also in the source" in fit(source, source / "a")
    assert "12 of the 12" in fit(source, f"{source}/../source/")
    inside = shutil.copytree(source, tmp_path / "outer" / "inner")
    assert "has only the class 'inner'" in fit(tmp_path / "outer", inside)
    assert "are also in the source" in fit(inside, tmp_path / "outer")


# --- broken images -------------------------------------------------------------------------------------------------


def huge_png() -> bytes:
    """A file of some bytes whose header claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def test_few_broken_images_are_left_out_counted_and_named(tmp_path: Path) -> None:
    source, target = pictures(tmp_path / "source", n=15), pictures(tmp_path / "target", n=15, shade=20)
    whole = (source / "a" / "0.png").read_bytes()
    broken = {
        source / "a" / "truncated.png": whole[: len(whole) // 2],
        source / "b" / "zero.png": b"",
        source / "b" / "text.jpg": b"this is no image",
        target / "c" / "huge.png": huge_png(),
    }
    for path, content in broken.items():
        path.write_bytes(content)
    out = tmp_path / "run"
    result = succeeds(
        "fit", "--source", source, "--target", target, "--out", out, *SMALL_NET, "--method", "source_only", "--quiet"
    )
    assert (
        result.stderr
        == "Warning: 4 images that cannot be read are left out; skipped.csv in the run directory names them.\n"
    )
    with (out / "skipped.csv").open(newline="") as file:
        rows = dict(csv.reader(file))
    assert rows == {
        "path": "reason",
        f"{source}: a/truncated.png": "the file is truncated",
        f"{source}: b/zero.png": "the file is empty",
        f"{source}: b/text.jpg": "it is not a JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF or HEIC image",
        f"{target}: c/huge.png": "it has 3,600,000,000 pixels, more than 178,956,970",
    }
    record = json.loads((out / "record.json").read_text())
    assert record["data"]["skipped"] == 4
    assert record["data"]["source"]["items"] == record["data"]["target"]["items"] == record["scores"]["n"] == 45
    predictions = (out / "predictions.csv").read_text()
    assert predictions.count("\n") == 46
    assert "huge" not in predictions

    result = succeeds("predict", out, target, "--out", tmp_path / "p.csv", "--json", "--quiet")
    assert result.stderr == "Warning: c/huge.png is left out: it has 3,600,000,000 pixels, more than 178,956,970.\n"
    answer = json.loads(result.stdout)
    assert answer["items"] == 45
    assert [entry["path"] for entry in answer["skipped"]] == ["c/huge.png"]
    result = succeeds("evaluate", out, target, "--json", "--quiet")
    assert json.loads(result.stdout) == record["scores"]


def test_many_broken_images_of_a_prediction_are_not_all_listed(image_run: Path, tmp_path: Path) -> None:
    target = pictures(tmp_path / "target", n=50, shade=20)
    for i in range(14):
        (target / "a" / f"zero{i}.png").touch()
    result = succeeds("predict", image_run, target, "--out", tmp_path / "p.csv", "--json", "--quiet")
    assert result.stderr.count("the file is empty") == 10
    assert "4 more images are left out; --json names them all." in result.stderr
    assert len(json.loads(result.stdout)["skipped"]) == 14


@pytest.mark.parametrize("side", ["source", "target"])
def test_more_than_a_tenth_broken_stops(folders: tuple[Path, Path], side: str) -> None:
    (folders[side == "target"] / "b" / "x.png").touch()
    (folders[side == "target"] / "b" / "y.png").touch()
    sentence = fit(*folders)
    assert f"2 of the 14 images of {folders[side == 'target']} cannot be read, for example 'b/x.png'" in sentence
    assert "replace or remove them." in sentence


# --- lists, tables and archives ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("s.txt", b"source/a/0.png\n", "Line 1 of {} is not a path and a label: write 'path label'."),
        ("s.txt", b"# nothing\n", "{} names no images: list at least one."),
        ("s.txt", b"gone.png a\nsource/a/0.png a\n", "1 of the 2 files that {} names cannot be found, the first is "),
        ("s.txt", b"\xff\xfe\x00 a\n", "{} is not UTF-8 text: save it with that encoding."),
        ("s.csv", b"image,label\nsource/a/0.png,a\n", "{} has no column 'path': begin it with a header line"),
        ("s.csv", b"path,class\nsource/a/0.png,a\n", "{} has no column 'label': begin it with a header line"),
        ("s.csv", b"path,label\nsource/a/0.png,\n", "Line 2 of {} lacks a path or a label: complete or remove it."),
        ("s.csv", b"", "{} has no column 'path'"),
        ("s.csv", b"path,label\n", "{} names no images: list at least one."),
        ("s.npz", b"no archive", "{} is not an .npz file: save it with numpy.savez"),
        ("s.pkl", b"\x80\x04.", "{} is not a form of data that can be read: give a folder, an image list (.txt)"),
    ],
)
def test_a_bad_list_or_table(folders: tuple[Path, Path], name: str, content: bytes, sentence: str) -> None:
    path = folders[0].parent / name
    path.write_bytes(content)
    assert fit(path, folders[1]).startswith(sentence.format(path))


X, Y = np.ones((6, 2), np.float32), np.arange(6) % 2


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"y": Y}, "has no array 'x': save it with numpy.savez"),
        ({"x": X}, "has no array 'y': save it with numpy.savez"),
        ({"x": X, "y": Y[:5]}, "has 6 items in x but 5 labels in y"),
        ({"x": np.where(np.eye(6, 2), np.nan, X), "y": Y}, "has NaN or infinite values, first in row 0: remove them."),
        ({"x": X[:0], "y": Y[:0]}, "is empty, its shape is (0, 2)"),
        ({"x": X.astype(int), "y": Y}, "is int64 of shape (6, 2): give uint8 images"),
        ({"x": X, "y": X[:, 0]}, "is float32 of shape (6,): give one integer or text an item."),
        (
            {"x": X, "y": np.array([None, {}] * 3)},
            "holds an array that cannot be loaded: save it again as plain numbers",
        ),
        ({"x": X, "y": 0 * Y}, "has only the class '0'"),
    ],
)
def test_a_bad_archive(tmp_path: Path, content: dict[str, np.ndarray], problem: str) -> None:
    np.savez(tmp_path / "source.npz", **content)
    target = vectors(tmp_path / "target.npz")
    assert problem in fit(tmp_path / "source.npz", target)


def test_domains_that_do_not_fit_each_other(folders: tuple[Path, Path], arrays: tuple[Path, Path]) -> None:
    assert "source.npz holds feature vectors but" in fit(arrays[0], folders[1])
    assert "target.npz holds feature vectors but" in fit(folders[0], arrays[1])
    longer = vectors(arrays[0].parent / "longer.npz", d=7)
    assert "have 6 values and those of" in fit(arrays[0], longer)
    assert "12 of the 12" not in fit(arrays[0], arrays[0])
    assert "24 of the 24 items" in fit(arrays[0], arrays[0])


# --- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--method", "wemnt"], "There is no method 'wemnt'; did you mean wemnet?"),
        (["--method", "qqq"], "There is no method 'qqq'; there are adda, "),
        (["--set", "trade_of=1"], "wemnet has no option 'trade_of'; did you mean trade_off?"),
        (["--method", "source_only", "--set", "trade_off=1"], "source_only has no option 'trade_off'; it has none."),
        (["--set", "trade_off"], "--set takes option=value, not 'trade_off'."),
        (["--set", "trade_off=much"], "The option trade_off of wemnet takes a number, not 'much'."),
        (["--set", "trade_off=-1"], "The option trade_off of wemnet must be a number from 0 up, not -1.0."),
        (["--set", "dim=maybe"], "The option dim of wemnet takes true or false, not 'maybe'."),
        (["--set", "mask=none"], "The option mask of wemnet takes weight, random, not 'none'."),
        (["--steps", "0"], "steps must be a whole number from 1 to 1,000,000,000, not 0."),
        (["--steps", "-5"], "steps must be a whole number from 1 to 1,000,000,000, not -5."),
        (["--batch-size", "1"], "batch_size must be a whole number from 2 to 1,048,576, not 1."),
        (["--accumulate", "0"], "accumulate must be a whole number from 1 to 65,536, not 0."),
        (["--lr", "nan"], "lr must be a number from 0 up, not nan."),
        (["--lr", "inf"], "lr must be a number from 0 up, not inf."),
        (["--lr", "-0.1"], "lr must be a number from 0 up, not -0.1."),
        (["--backbone-lr", "-1"], "backbone_lr must be a number from 0 up, not -1.0."),
        (["--momentum", "1"], "momentum must be a number from 0 to below 1, not 1.0."),
        (["--weight-decay", "-1"], "weight_decay must be a number from 0 up, not -1.0."),
        (["--decay", "nan"], "decay must be a number from 0 up, not nan."),
        (["--clip", "0"], "clip must be a number above 0, or none, not 0.0."),
        (["--seed", "-1"], "seed must be a whole number from 0 to 18,446,744,073,709,551,615, not -1."),
        (
            ["--seed", str(2**64)],
            "seed must be a whole number from 0 to 18,446,744,073,709,551,615, not 18446744073709551616.",
        ),
        (["--bottleneck", "-1"], "bottleneck must be a whole number from 0 to 65,536, not -1."),
        (["--checkpoint-seconds", "nan"], "checkpoint_seconds must be a number from 0 up, not nan."),
        (["--device", "gpu"], "The device 'gpu' is not available here: use --device auto or cpu."),
        (["--device", "meta"], "The device 'meta' is not available here: use --device auto or cpu."),
        (["--backbone", "resnet5"], "There is no backbone 'resnet5'; did you mean resnet50"),
        (["--tune", "head"], "lenet has no pretrained weights: use --tune all, or give --weights FILE."),
        (
            ["--backbone", "efficientnet_lite0", "--tune", "head", "--augment", "crop"],
            "Cached features cannot be cropped at random: use --augment flip with --tune head, or --tune all.",
        ),
        (["--weights", "gone.pth"], "There is no weights file gone.pth; check the path."),
    ],
)
def test_a_wrong_option(folders: tuple[Path, Path], options: list[str], sentence: str) -> None:
    assert fit(*folders, *options).startswith(sentence)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(folders: tuple[Path, Path]) -> None:
    assert fit(*folders, "--device", "cuda").startswith("The device 'cuda' is not available here")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--tune", "all"], "Feature vectors have no backbone to train: use --tune head, or give images."),
        (["--augment", "flip"], "Feature vectors cannot be augmented: use --augment none, or give images."),
        (["--resize", "squash"], "Feature vectors are not resized: leave out --resize, or give images."),
        (["--weights", "w.pth"], "Feature vectors have no backbone to load weights into: leave out --weights"),
    ],
)
def test_an_option_for_images_with_vectors(arrays: tuple[Path, Path], options: list[str], sentence: str) -> None:
    assert fit(*arrays, *options).startswith(sentence)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--target", "t"], "There is no source: acclimate fit SOURCE TARGET --out DIR."),
        (["s"], "There is no target: acclimate fit SOURCE TARGET --out DIR."),
        ([], "There is no source and no target: acclimate fit SOURCE TARGET --out DIR."),
        (["s", "t", "--source", "x"], "The source is named twice, as 's' and by --source 'x': name it once."),
    ],
)
def test_domains_that_are_missing_or_named_twice(args: list[str], sentence: str) -> None:
    assert refused("fit", *args, "--out", "o") == sentence


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (["fit", "--source", "s", "--target", "t"], "Missing option '--out'"),
        (["predict", "run"], "Missing argument 'DATA...'"),
        (["predict", "run", "data", "--top", "0"], "Invalid value for '--top'"),
        (["evaluate"], "Missing argument 'RUN'"),
        (["fti"], "No such command 'fti'."),
        (["fit", "--stpes", "3"], "No such option: --stpes"),
        (["demo", "--steps", "many"], "Invalid value for '--steps'"),
        (["fit", "--tune", "most"], "Invalid value for '--tune'"),
        (["fit", "--precision", "fp8"], "Invalid value for '--precision'"),
    ],
)
def test_a_command_that_is_not_understood(args: list[str], problem: str) -> None:
    result = acclimate(*args, columns=200)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert problem in result.stderr


def test_a_mistake_can_be_corrected_in_the_same_folder(folders: tuple[Path, Path], tmp_path: Path) -> None:
    fit(*folders, "--backbone", "lenett")
    source, target = folders
    succeeds("fit", "--source", source, "--target", target, "--out", tmp_path / "run", *SMALL_NET)


def test_an_unknown_method_is_refused_before_the_data_are_read(tmp_path: Path) -> None:
    sentence = refused("fit", "--source", "gone", "--target", "gone", "--out", tmp_path / "run", "--method", "wemnt")
    assert sentence == "There is no method 'wemnt'; did you mean wemnet?"


def test_training_that_diverges(arrays: tuple[Path, Path], tmp_path: Path) -> None:
    source, target = arrays
    result = acclimate(
        "fit", "--source", source, "--target", target, "--out", tmp_path / "run", "--lr", "1e30", "--steps", "50"
    )
    assert result.exit_code == 2
    last = result.stderr.strip().split("\n")[-1]
    assert last.startswith("Error: Training diverged at step ")
    assert last.endswith("try a smaller learning rate (--lr) or gradient clipping (--clip 1).")


# --- weights -------------------------------------------------------------------------------------------------------


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("name", ["evil.pth", "evil.pt", "evil.safetensors"])
def test_weights_that_are_a_program_are_not_run(folders: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    weights, trap = tmp_path / name, tmp_path / "sprung"
    torch.save({"state_dict": Evil(trap)}, tmp_path / "evil.pth")
    torch.load(tmp_path / "evil.pth", weights_only=False)
    trap.rmdir()  # the trap works
    (tmp_path / "evil.pth").rename(weights)
    assert fit(*folders, "--weights", weights).startswith(f"{weights} cannot be loaded safely as weights")
    assert not trap.exists()


def test_weights_of_another_network(folders: tuple[Path, Path], tmp_path: Path) -> None:
    weights = tmp_path / "w.pth"
    torch.save({"fc.weight": torch.zeros(2, 2)}, weights)
    sentence = fit(*folders, "--weights", weights)
    assert sentence.startswith(f"{weights} does not fit lenet: ")
    weights.write_bytes(weights.read_bytes()[:100])
    assert fit(*folders, "--weights", weights).startswith(f"{weights} cannot be loaded safely as weights")


# --- the run directory ---------------------------------------------------------------------------------------------


def test_out_is_a_file(arrays: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    data = ("fit", "--source", arrays[0], "--target", arrays[1])
    assert refused(*data, "--out", file) == f"{file} is a file: name a folder with --out."
    assert refused(*data, "--out", file / "below").startswith(f"The folder {file / 'below'} cannot be made")
    assert file.read_text() == "mine"


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
@pytest.mark.parametrize("name", ["thesis.tex", "record.json", "checkpoint/run.json", "source_only/record.json"])
def test_out_is_a_foreign_folder(
    arrays: tuple[Path, Path], tmp_path: Path, name: str, overwrite: tuple[str, ...]
) -> None:
    mine = tmp_path / "mine" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("{}")
    sentence = refused("fit", "--source", arrays[0], "--target", arrays[1], "--out", tmp_path / "mine", *overwrite)
    assert sentence == f"{tmp_path / 'mine'} is not empty and holds no run: name a new folder with --out."
    assert [path for path in (tmp_path / "mine").rglob("*") if path.is_file()] == [mine]
    assert mine.read_text() == "{}"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_out_is_unwritable(arrays: tuple[Path, Path], tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    for out in (locked, locked / "below"):
        sentence = refused("fit", "--source", arrays[0], "--target", arrays[1], "--out", out)
        assert sentence.startswith(f"The folder {out} cannot be made or written to in {locked}")


def test_a_disk_that_refuses(arrays: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("acclimate.runs.directory.write_json", full)
    sentence = refused("fit", "--source", arrays[0], "--target", arrays[1], "--out", tmp_path / "run")
    assert sentence.startswith(f"The folder {tmp_path / 'run'} cannot be written to (No space left on device)")


def test_out_is_in_the_source(folders: tuple[Path, Path]) -> None:
    source, target = folders
    sentence = refused("fit", "--source", source, "--target", target, "--out", source / "runs" / "a", *SMALL_NET)
    assert "lies in the source" in sentence
    assert not (source / "runs").exists()


def test_out_holds_another_run(vector_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(vector_run, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    data = ("fit", "--source", vector_run.parent / "source.npz", "--target", vector_run.parent / "target.npz")
    same = ("--out", run, "--steps", "1", "--bottleneck", "4", "--method", "source_only")
    assert "(seed, steps): name another --out, or use --overwrite" in refused(
        *data, *same, "--steps", "2", "--seed", "1"
    )
    other = vectors(vector_run.parent / "source.npz", shift=0.0, n=27)
    assert "holds a run with other data, other code or of another version" in refused(
        "fit", "--source", other, *data[3:], *same
    )
    vectors(vector_run.parent / "source.npz")
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


# --- finished runs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_folder_that_is_no_run(command: str, arrays: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    out = ("--out", tmp_path / "p.csv") if command == "predict" else ()
    for run in (tmp_path / "empty", tmp_path / "nowhere", arrays[0]):
        sentence = refused(command, run, arrays[1], *out)
        assert sentence == f"{run} holds no finished model: name the folder that a fit wrote with --out."


def damaged(run: Path, folder: Path, name: str, content: bytes) -> str:
    """The sentence that refuses to predict with a run one of whose files has another content."""
    copy = shutil.copytree(run, folder / "damaged", dirs_exist_ok=True)
    (copy / name).write_bytes(content)
    sentence = refused("predict", copy, run.parent / "target.npz", "--out", folder / "p.csv")
    assert sentence.startswith(f"The model in {copy} is damaged or of another version (")
    assert sentence.endswith("): train it again.")
    return sentence


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"{}", b'{"method": "dann"}', b"\xff\xff"])
def test_a_damaged_description(vector_run: Path, tmp_path: Path, content: bytes) -> None:
    damaged(vector_run, tmp_path, "model.json", content)


def test_damaged_weights(vector_run: Path, tmp_path: Path) -> None:
    weights = (vector_run / "model.safetensors").read_bytes()
    for content in (b"", weights[:5], weights[: len(weights) // 2], weights[:-1], b"\xff" * 99):
        damaged(vector_run, tmp_path, "model.safetensors", content)


def test_data_that_a_model_cannot_read(vector_run: Path, image_run: Path, folders: tuple[Path, Path]) -> None:
    out = ("--out", folders[0].parent / "p.csv")
    longer = vectors(folders[0].parent / "longer.npz", d=7)
    vector_target = vector_run.parent / "target.npz"
    for command, options in (("predict", out), ("evaluate", ())):
        assert "holds images, but the model reads feature vectors" in refused(command, vector_run, folders[1], *options)
        assert "holds feature vectors, but the model reads images" in refused(
            command, image_run, vector_target, *options
        )
        assert "has vectors of 7 numbers, but the model reads 6" in refused(command, vector_run, longer, *options)
        assert "nowhere does not exist" in refused(command, vector_run, folders[0] / "nowhere", *options)
    assert not out[1].exists()


def test_evaluation_without_labels(vector_run: Path, image_run: Path, tmp_path: Path) -> None:
    flat = pictures(tmp_path / "flat", ("",))
    assert "has no labels that the model knows (a, b, c)" in refused("evaluate", image_run, flat)
    bare = vectors(tmp_path / "bare.npz", labelled=False)
    assert "has no labels that the model knows (a, b, c)" in refused("evaluate", vector_run, bare)


def test_an_output_that_cannot_be_written(vector_run: Path, tmp_path: Path) -> None:
    target = shutil.copy(vector_run.parent / "target.npz", tmp_path / "target.npz")
    kept = {path: path.read_bytes() for path in (target, *vector_run.iterdir())}
    for out, sentence in {
        tmp_path / "nowhere" / "p.csv": f"The folder {tmp_path / 'nowhere'} does not exist",
        tmp_path: f"{tmp_path} is a folder: name a file with --out",
        target: f"{target} belongs to the run or to the data",
        vector_run / "predictions.csv": f"{vector_run / 'predictions.csv'} belongs to the run or to the data",
        vector_run / "model.json": f"{vector_run / 'model.json'} belongs to the run or to the data",
    }.items():
        assert refused("predict", vector_run, target, "--out", out).startswith(sentence)
    assert {path: path.read_bytes() for path in kept} == kept


def test_a_pattern_that_no_backbone_has() -> None:
    assert refused("backbones", "nonsense").startswith("No backbone has 'nonsense' in its name")


def test_the_installed_command_answers_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "acclimate", "methods", "wemnt"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: There is no method 'wemnt'; did you mean wemnet?\n"


# --- tiny domains --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", registry.names())
def test_domains_of_five_items_are_enough(method: str, tmp_path: Path) -> None:
    """The third class has one item, and a batch is larger than a domain."""
    source, target = (
        samples_for(method, tmp_path / "s.npz", n=5),
        samples_for(method, tmp_path / "t.npz", n=5, shift=0.5),
    )
    how = (*network(method), "--bottleneck", "8", "--batch-size", "6", "--steps", "8")
    succeeds("fit", "--source", source, "--target", target, "--method", method, *how, "--out", tmp_path / "run")
    assert len((tmp_path / "run" / "predictions.csv").read_text().splitlines()) == 6


@pytest.mark.parametrize("method", [name for name in trained_alone() if registry.load(name).needs != "vector"])
def test_a_method_that_needs_more_than_vectors_says_what_to_change(method: str, tmp_path: Path) -> None:
    source, target = vectors(tmp_path / "s.npz"), vectors(tmp_path / "t.npz", shift=0.5)
    sentence = refused("fit", "--source", source, "--target", target, "--method", method, "--out", tmp_path / "run")
    assert f"The method {method} needs" in sentence
    assert "give it images, or choose another --method." in sentence


def test_a_remark_of_the_library_shows_no_control_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = pictures(tmp_path / "\x1b]0;title\x07"), pictures(tmp_path / "target", ("",), shade=9)
    (tmp_path / "blocked").touch()
    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path / "blocked" / "cache"))
    how = ("--method", "source_only", "--backbone", "lenet", "--tune", "all", "--keep-images", "disk", "--steps", "1")
    said = succeeds("fit", "--source", source, "--target", target, "--out", tmp_path / "run", *how, "--no-report", "-q")
    assert "Warning: The resized images of " in said.stderr
    assert "\\x1b]0;title\\x07" in said.stderr
    assert "\x1b" not in said.stderr
