"""Each image is decoded once, and those that turn out to be broken on the way are left out or refuse the run."""

from __future__ import annotations

import csv
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from acclimate.data import decode
from acclimate.errors import DataError
from acclimate.estimator import AdaptiveClassifier
from acclimate.runs.files import Metrics, MetricsLog
from tiny import AtOnce, acclimate, pictures, refused, succeeds

TRAINING = ("--batch-size", "12", "--steps", "3", "--bottleneck", "8", "--method", "source_only")
LENET = ("--backbone", "lenet", *TRAINING)
NETWORKS = {"head": ("--tune", "head", *TRAINING), "all": ("--tune", "all", *LENET)}
N = 11  # images of each class


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return pictures(tmp_path / "source", n=N), pictures(tmp_path / "target", n=N, shade=20)


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each image was opened for decoding, by its path below the test's folder."""
    counts: Counter[str] = Counter()
    lock, original = threading.Lock(), decode.open_regular

    def counted(name: str, most: int) -> IO[bytes]:
        path = Path(name)
        if path.suffix == ".png":
            with lock:
                counts[path.relative_to(tmp_path).as_posix()] += 1
        return original(name, most)

    monkeypatch.setattr(decode, "open_regular", counted)
    return counts


@contextmanager
def unreadable(*names: str) -> Iterator[None]:
    """The files with these names may not be opened; nothing else that can be seen of them changes."""
    original = decode.open_regular

    def refusing(path: str, most: int) -> IO[bytes]:
        if Path(path).name in names:
            raise PermissionError(13, "Permission denied", path)
        return original(path, most)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "open_regular", refusing)
        yield


def images(*folders: Path) -> Counter[str]:
    """Each image in the folders once."""
    return Counter(path.relative_to(folder.parent).as_posix() for folder in folders for path in folder.rglob("*.png"))


def fit(folders: tuple[Path, Path], out: Path, *options: str | Path) -> tuple[str | Path, ...]:
    return ("fit", "--source", folders[0], "--target", folders[1], "--out", out, *options)


def record(out: Path) -> Any:
    return json.loads((out / "record.json").read_text())


def skipped(out: Path) -> dict[str, str]:
    with (out / "skipped.csv").open(newline="") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}


# --- one decoding --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tune", NETWORKS)
def test_a_first_fit_decodes_each_image_once(
    tune: str, folders: tuple[Path, Path], tmp_path: Path, opened: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acclimate.screen.Timer", AtOnce)
    test = pictures(tmp_path / "test", n=2, shade=10)
    for folder in folders:
        (folder / "b" / "broken.png").write_bytes(b"no image")
    command = fit(folders, tmp_path / "run", *NETWORKS[tune], "--test", test)
    told = succeeds(*command).stderr
    assert opened == images(*folders, test)
    assert "2 images that cannot be read are left out" in told
    assert ("Computing features" in told) == (tune == "head")
    assert ("Reading images" in told) == (tune == "all")
    assert "Checking" not in told

    opened.clear()
    assert "finished already" in succeeds(*command).stderr
    assert opened == {}


def test_images_that_are_kept_on_the_disk_are_decoded_once_for_all_runs(
    folders: tuple[Path, Path], tmp_path: Path, opened: Counter[str]
) -> None:
    for seed in ("0", "1"):
        out = tmp_path / f"run{seed}"
        succeeds(*fit(folders, out, *NETWORKS["all"], "--keep-images", "disk", "--seed", seed))
        assert opened == images(*folders)


def test_what_is_cached_is_neither_decoded_nor_checked(
    folders: tuple[Path, Path], tmp_path: Path, opened: Counter[str]
) -> None:
    succeeds(*fit(folders, tmp_path / "a", *NETWORKS["head"]))
    opened.clear()
    told = succeeds(*fit(folders, tmp_path / "b", *NETWORKS["head"], "--seed", "1")).stderr
    assert opened == {}
    assert "images:" not in told
    assert "features:" not in told


def test_broken_images_are_tried_again_and_nothing_else(
    folders: tuple[Path, Path], tmp_path: Path, opened: Counter[str]
) -> None:
    (folders[1] / "b" / "broken.png").write_bytes(b"no image")
    for tune, name in (("head", "a"), ("head", "b"), ("all", "c")):
        opened.clear()
        succeeds(*fit(folders, tmp_path / name, *NETWORKS[tune], "--seed", "1" if name == "b" else "0"))
        assert skipped(tmp_path / name).keys() == {f"{folders[1]}: b/broken.png"}
    assert opened["target/b/broken.png"] == 1


@pytest.mark.parametrize("tune", NETWORKS)
@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_predicting_decodes_each_image_once(
    command: str, tune: str, folders: tuple[Path, Path], tmp_path: Path, opened: Counter[str]
) -> None:
    succeeds(*fit(folders, tmp_path / "run", *NETWORKS[tune]))
    new = pictures(tmp_path / "new", n=N, shade=10)
    (new / "b" / "broken.png").write_bytes(b"no image")
    opened.clear()
    out = ("--out", tmp_path / "p.csv") if command == "predict" else ()
    result = succeeds(command, tmp_path / "run", new, *out)
    assert opened == images(new)
    assert "Warning: b/broken.png is left out: it is not a JPEG" in result.stderr
    assert "Checking" not in result.stderr


def test_the_estimator_decodes_each_image_once(folders: tuple[Path, Path], opened: Counter[str]) -> None:
    paths = [[*sorted(folder.rglob("*.png"))] for folder in folders]
    y = [path.parent.name for path in paths[0]]
    classifier = AdaptiveClassifier(method="wemnet", backbone="lenet", steps=2, batch_size=8, bottleneck=4)
    classifier.fit(paths[0], y, X_target=paths[1])
    assert opened == images(*folders)


def test_a_bench_decodes_each_image_once(folders: tuple[Path, Path], tmp_path: Path, opened: Counter[str]) -> None:
    (folders[1] / "b" / "broken.png").write_bytes(b"no image")
    grid = grid_of(tmp_path, target="target")
    result = succeeds("bench", grid, "--out", tmp_path / "bench")
    assert opened == images(*folders)
    assert result.stderr.count("1 images that cannot be read are left out") == 1


# --- the same results ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tune", NETWORKS)
def test_broken_images_change_no_bit_of_a_run(
    tune: str, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that meets broken images, one that knows of them, and one on data without them are the same."""
    succeeds(*fit(folders, tmp_path / "whole", *NETWORKS[tune]))
    broken = [folders[0] / "a" / "00.png", folders[0] / "c" / "x.png", folders[1] / "b" / "5x.png"]
    for path in broken:
        path.write_bytes(b"no image")
    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path / "another cache"))
    for name in ("met", "known"):
        succeeds(*fit(folders, tmp_path / name, *NETWORKS[tune]))
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    for name in ("met", "known"):
        model = load_file(tmp_path / name / "model.safetensors")
        assert all(np.array_equal(whole[key], model[key]) for key in whole)
        for file in ("predictions.csv", "metrics.jsonl"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
        assert len(skipped(tmp_path / name)) == record(tmp_path / name)["data"]["skipped"] == 3
        assert record(tmp_path / name)["data"]["source"]["items"] == 3 * N


@pytest.mark.parametrize("tune", NETWORKS)
def test_predictions_do_not_depend_on_when_broken_images_are_met(
    tune: str, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    succeeds(*fit(folders, tmp_path / "run", *NETWORKS[tune]))
    new = pictures(tmp_path / "new", n=N, shade=10)
    succeeds("predict", tmp_path / "run", new, "--out", tmp_path / "whole.csv")
    (new / "b" / "broken.png").write_bytes(b"no image")
    for name in ("met.csv", "known.csv"):
        succeeds("predict", tmp_path / "run", new, "--out", tmp_path / name)
        assert (tmp_path / name).read_bytes() == (tmp_path / "whole.csv").read_bytes()


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tune", NETWORKS)
@pytest.mark.parametrize("side", [0, 1])
def test_too_many_broken_images_refuse_a_fit_whenever_they_are_met(
    side: int, tune: str, folders: tuple[Path, Path], tmp_path: Path, opened: Counter[str]
) -> None:
    for i in range(4):
        (folders[side] / "b" / f"x{i}.png").write_bytes(b"")
    command = fit(folders, tmp_path / "run", *NETWORKS[tune])
    sentence = (
        f"4 of the 37 images of {folders[side]} cannot be read, for example 'b/x0.png' (the file is empty): "
        "replace or remove them."
    )
    assert refused(*command) == sentence
    assert not (tmp_path / "run").exists()
    opened.clear()
    assert refused(*command) == sentence
    assert opened == {f"{folders[side].name}/b/x{i}.png": 1 for i in range(4)}  # the rest is not even begun


@pytest.mark.parametrize("tune", NETWORKS)
def test_a_class_of_which_all_images_are_broken_refuses_a_fit(
    tune: str, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    (folders[0] / "d").mkdir()
    (folders[0] / "d" / "x.png").write_bytes(b"")
    sentence = f"No image of the class 'd' in {folders[0]} can be read: replace them or remove it."
    command = fit(folders, tmp_path / "run", *NETWORKS[tune], "--allow-class-mismatch")
    for _ in range(2):
        assert refused(*command) == sentence


def test_broken_test_images_are_met_before_training(folders: tuple[Path, Path], tmp_path: Path) -> None:
    test = pictures(tmp_path / "test", n=2, shade=10)
    (test / "a" / "0.png").write_bytes(b"")
    command = fit(folders, tmp_path / "run", *NETWORKS["all"], "--test", test)
    assert f"1 of the 6 images of {test} cannot be read" in refused(*command)


@pytest.mark.parametrize(("tune", "backbone"), [("all", "lenet"), ("head", "efficientnet_lite0")])
def test_the_estimator_refuses_a_single_broken_image(tune: str, backbone: str, folders: tuple[Path, Path]) -> None:
    paths = [*sorted(folders[0].rglob("*.png"))]
    y = [path.parent.name for path in paths]
    paths[4].write_bytes(b"")
    classifier = AdaptiveClassifier(backbone=backbone, tune=tune, steps=2, batch_size=8, bottleneck=4)
    sentence = f"1 of the 33 images of X cannot be read, for example '{paths[4]}' (the file is empty): "
    for _ in range(2):
        with pytest.raises(DataError) as raised:
            classifier.fit(paths, y)
        assert str(raised.value) == sentence + "replace or remove them."


def grid_of(folder: Path, **domains: str) -> Path:
    """A grid of two runs on each of these targets."""
    path = folder / "grid.toml"
    names = "\n".join(f'{name} = "{place}"' for name, place in {"S": "source", **domains}.items())
    tasks = ", ".join(f'"S-{name}"' for name in domains)
    path.write_text(
        f"seeds = [0, 1]\n[data]\ntasks = [{tasks}]\n[data.domains]\n{names}\n"
        '[settings]\nsteps = 2\nbatch_size = 6\nbottleneck = 8\ntune = "head"\n[[row]]\nname = "source-only"\n'
    )
    return path


def test_a_task_of_a_bench_that_cannot_be_used_fails_alone_and_at_once(
    folders: tuple[Path, Path], tmp_path: Path, opened: Counter[str]
) -> None:
    bad = pictures(tmp_path / "bad", n=2, shade=30)
    (bad / "a" / "0.png").write_bytes(b"")
    result = acclimate("bench", grid_of(tmp_path, bad="bad", good="target"), "--out", tmp_path / "bench")
    assert result.exit_code == 2
    lines = (tmp_path / "bench" / "records.jsonl").read_text().splitlines()
    told = {(r["target"], r["seed"]): (r["status"], r["error"]) for r in map(json.loads, lines)}
    reason = f"1 of the 6 images of {bad} cannot be read, for example 'a/0.png' (the file is empty): "
    assert told == {
        **dict.fromkeys([("bad", 0), ("bad", 1)], ("failed", f"{reason}replace or remove them.")),
        **dict.fromkeys([("good", 0), ("good", 1)], ("done", None)),
    }
    assert all(opened[name] == 1 for name in images(*folders))


# --- files that can be read at one time and not at another -----------------------------------------------------------


def test_a_checkpoint_of_other_images_is_not_gone_on_with(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (*NETWORKS["all"], "--checkpoint-seconds", "0")
    (folders[1] / "b" / "later.png").write_bytes((folders[1] / "b" / "0.png").read_bytes())

    def interrupted(self: MetricsLog, line: Metrics) -> None:
        if line.step == 3:
            raise KeyboardInterrupt

    with unreadable("later.png"), monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "append", interrupted)
        assert acclimate(*fit(folders, tmp_path / "run", *command)).exit_code == 130
    result = succeeds(*fit(folders, tmp_path / "run", *command))
    assert "Other images can be read than when the run began, so it begins anew." in result.stderr
    assert record(tmp_path / "run")["resumed_at"] is None
    succeeds(*fit(folders, tmp_path / "unbroken", *command))
    for name in ("model.safetensors", "predictions.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()


def test_runs_on_other_images_are_not_compared(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (folders[1] / "b" / "later.png").write_bytes((folders[1] / "b" / "0.png").read_bytes())
    options = (*NETWORKS["all"], "--method", "dann")
    with unreadable("later.png"):
        succeeds(*fit(folders, tmp_path / "run" / "source_only", *NETWORKS["all"]))
    result = acclimate(*fit(folders, tmp_path / "run", *options, "--compare"))
    assert result.exit_code == 2
    assert f"The run in {tmp_path / 'run' / 'source_only'} could read other images than that" in result.stderr
    succeeds(*fit(folders, tmp_path / "run", *options, "--compare", "--overwrite"))
