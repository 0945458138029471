"""Resized images on the disk: equal batches wherever they come from, and what is decoded again after damage."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import forks
from acclimate import files
from acclimate.cache import images as pixels
from acclimate.cache import index, writer
from acclimate.cache.content import stores_folder
from acclimate.cache.images import DiskShelf, image_inputs
from acclimate.choices import KeepImages
from acclimate.data import inputs as drawn_from
from acclimate.data.broken import BrokenImages
from acclimate.data.decode import pictured
from acclimate.data.domain import Domain
from acclimate.data.inputs import ImageInputs
from acclimate.data.preprocess import Preprocess
from acclimate.data.read import domain_of
from acclimate.errors import DataError
from tiny import full_after, succeeds

KEEP = Preprocess(resize=16, size=12, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2), interpolation="bicubic")
SQUASH = replace(KEEP, aspect="squash")
GREY = Preprocess(resize=16, size=12, mean=(0.5,), std=(0.2,), channels=1)
SIDES = [(20, 20), (16, 20), (20, 16), (24, 20), (30, 20), (20, 35), (90, 20), (200, 10), (12, 16)]
N = len(SIDES)


def photo(path: Path, seed: int, sides: tuple[int, int] = (20, 20)) -> Path:
    content = np.random.default_rng(seed).integers(0, 256, (*sides[::-1], 3), dtype=np.uint8)
    Image.fromarray(content).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    (tmp_path / "photos").mkdir()
    return [photo(tmp_path / "photos" / f"{i}.png", i, sides) for i, sides in enumerate(SIDES)]


@pytest.fixture
def domain(photos: list[Path]) -> Domain:
    return domain_of(photos, "photos")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The positions that are decoded."""
    calls: list[int] = []

    def counted(domain: Domain, position: int, at_least: int | None = None) -> AbstractContextManager[Image.Image]:
        calls.append(position)
        return pictured(domain, position, at_least)

    monkeypatch.setattr(drawn_from, "pictured", counted)
    return calls


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second or third image is followed by a write."""
    monkeypatch.setattr(pixels, "BLOCK", 2 * 16 * 16 * 3)


def on_disk(domain: Domain, preprocess: Preprocess = KEEP) -> ImageInputs:
    return image_inputs(domain, preprocess, "crop+flip", images="disk", memory=0)


def epochs(inputs: ImageInputs, count: int = 2) -> list[Tensor]:
    """Batches of training, in other orders, and one of evaluation."""
    orders = [np.random.default_rng((7, epoch)).permutation(len(inputs)) for epoch in range(count)]
    parts = [part for order in orders for part in (order[:5], order[5:])]
    random = [inputs.batch(part, np.random.default_rng(i)) for i, part in enumerate(parts)]
    return [*random, inputs.batch(np.arange(len(inputs)), None)]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def expected(domain: Domain, preprocess: Preprocess = KEEP) -> list[Tensor]:
    return epochs(ImageInputs(domain, preprocess, "crop+flip", memory=0))


def stores() -> list[Path]:
    folder = stores_folder()
    return sorted(folder.iterdir()) if folder.is_dir() else []


def part(kind: str) -> list[Path]:
    return [path for folder in stores() for path in folder.glob(f"{kind}-????????.bin")]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return found


# --- where batches come from ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("preprocess", [KEEP, SQUASH, GREY], ids=["keep", "squash", "grey"])
@pytest.mark.parametrize("block", [1, 3000, 2**26])
def test_batches_are_equal_wherever_they_come_from(
    domain: Domain, preprocess: Preprocess, block: int, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "BLOCK", block)
    anew = expected(domain, preprocess)
    assert len(decoded) == 3 * N
    decoded.clear()
    assert same(epochs(image_inputs(domain, preprocess, "crop+flip", images="memory")), anew)
    assert stores() == []
    assert len(decoded) == N
    decoded.clear()
    assert same(epochs(on_disk(domain, preprocess)), anew)
    assert sorted(decoded) == list(range(N))
    decoded.clear()
    assert same(epochs(on_disk(domain, preprocess)), anew)  # a later run
    assert decoded == []
    assert len(stores()) == (1 if preprocess.aspect == "squash" else 6)


def test_only_what_changes_the_resized_image_matters(domain: Domain, decoded: list[int]) -> None:
    epochs(on_disk(domain))
    decoded.clear()
    for other in ({"size": 16}, {"mean": (0.0,) * 3}, {"std": (1.0,) * 3}):
        epochs(on_disk(domain, replace(KEEP, **other)))
    assert decoded == []
    for other in ({"resize": 17}, {"interpolation": "nearest"}, {"aspect": "squash"}):
        epochs(on_disk(domain, replace(KEEP, **other)))
        assert len(decoded) == N
        decoded.clear()


def test_new_changed_and_repeated_images(domain: Domain, photos: list[Path], decoded: list[int]) -> None:
    epochs(on_disk(domain))
    photo(photos[2], 50, (22, 21))
    new = photo(photos[0].with_name("new.png"), 51)
    more = domain_of([new, *photos, photos[0], new])
    anew = expected(more)
    decoded.clear()
    assert same(epochs(on_disk(more)), anew)
    assert {0, 3} <= set(decoded) <= {0, 3, len(more) - 1}  # the new one may be decoded at both of its positions
    decoded.clear()
    assert same(epochs(on_disk(more)), anew)
    assert decoded == []


def test_arrays(decoded: list[int]) -> None:
    array = domain_of(np.random.default_rng(0).integers(0, 256, (7, 18, 20, 3), dtype=np.uint8))
    anew = expected(array)
    decoded.clear()
    for _ in range(2):
        assert same(epochs(on_disk(array)), anew)
    assert len(decoded) == 7
    with pytest.raises(DataError, match="holds feature vectors"):
        image_inputs(domain_of(np.eye(3)), KEEP)


def test_evaluation_writes_nothing_and_reads_what_is_there(domain: Domain, decoded: list[int]) -> None:
    on_disk(domain).batch(np.arange(N), None)
    assert stores() == []
    epochs(on_disk(domain))
    decoded.clear()
    on_disk(domain).batch(np.arange(N), None)
    assert decoded == []


NEEDED = N * 23 * 16 * 3  # the estimate: sides of 1.4 to 1


@pytest.mark.parametrize(
    ("choice", "memory", "free", "kept", "told"),
    [
        ("auto", NEEDED, 10**9, False, False),
        ("auto", NEEDED - 1, 2 * NEEDED, True, False),
        ("auto", NEEDED - 1, 2 * NEEDED - 1, False, True),
        ("memory", 0, 10**9, False, False),
        ("disk", 10**9, NEEDED, True, False),
    ],
)
def test_where_images_are_kept(
    domain: Domain,
    choice: KeepImages,
    memory: int,
    free: int,
    kept: bool,
    told: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    inputs = image_inputs(domain, KEEP, "crop+flip", images=choice, memory=memory)
    assert same(epochs(inputs), expected(domain))
    assert (stores() != []) == kept
    assert [told] * told == ["2 times that room" in sentence for sentence in warnings(caplog)]


def test_images_in_an_array_stay_in_memory_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    array = domain_of(np.zeros((7, 18, 20, 3), np.uint8))
    epochs(image_inputs(array, KEEP, memory=0))
    assert stores() == []


# --- read before training ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_images_that_are_read_before_training_are_decoded_once(
    photos: list[Path], where: KeepImages, decoded: list[int]
) -> None:
    for i in (0, 4):
        photos[i].write_bytes(b"no image")
    domain = domain_of(photos, "photos")
    broken = BrokenImages(domain, most=0.5)
    with broken.found():
        inputs = image_inputs(domain, KEEP, "crop+flip", images=where, broken=broken)
        inputs.read()
    assert sorted(broken.reasons) == [0, 4]
    found = epochs(inputs)
    assert sorted(decoded) == list(range(N))
    assert len(inputs) == N - 2
    assert same(found, expected(broken.left))
    rows = sum(len(np.fromfile(path, index.RECORD)) for path in part("index"))
    assert rows == (N - 2 if where == "disk" else 0)


def test_what_the_memory_cannot_hold_is_checked_all_the_same(
    photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    photos[7].write_bytes(b"no image")
    domain = domain_of(photos, "photos")
    sizes: list[int | None] = []

    def noted(domain: Domain, position: int, at_least: int | None = None) -> AbstractContextManager[Image.Image]:
        sizes.append(at_least)
        return pictured(domain, position, at_least)

    monkeypatch.setattr(drawn_from, "THREADS", 1)
    monkeypatch.setattr(drawn_from, "pictured", noted)
    broken = BrokenImages(domain, most=0.5)
    with broken.found():
        inputs = image_inputs(domain, SQUASH, images="memory", memory=3 * 16 * 16 * 3, broken=broken)
        inputs.read()
    assert sizes == [16] * 4 + [1] * 5  # the fourth did not fit any more; a file is checked at a fraction of its size
    assert sorted(broken.reasons) == [7]
    sizes.clear()
    assert same(epochs(inputs, 1), epochs(ImageInputs(broken.left, SQUASH, memory=0), 1))
    assert len(sizes) == 2 * (N - 1 - 3) + 2 * (N - 1)


def test_a_file_that_breaks_while_a_run_trains_ends_it(photos: list[Path]) -> None:
    broken = BrokenImages(domain_of(photos, "photos"))
    with broken.found():
        inputs = image_inputs(broken.domain, SQUASH, images="memory", memory=0, broken=broken)
        inputs.read()
    photos[3].unlink()
    with pytest.raises(DataError, match=r"3\.png cannot be read as an image \(there is no such file\)"):
        inputs.batch(np.arange(N), np.random.default_rng(0))
    assert len(broken.readable) == N


def test_reading_goes_on_after_a_kill(photos: list[Path], decoded: list[int]) -> None:
    epochs(on_disk(domain_of(photos[:6])))  # what a kill left behind
    decoded.clear()
    domain = domain_of(photos, "photos")
    broken = BrokenImages(domain)
    with broken.found():
        inputs = image_inputs(domain, KEEP, "crop+flip", images="disk", broken=broken)
        inputs.read()
    assert sorted(decoded) == [6, 7, 8]
    assert same(epochs(inputs), expected(domain))


# --- damage, kills, and disks that cannot be written to ------------------------------------------------------------


def test_a_damaged_row_is_decoded_again(domain: Domain, decoded: list[int], caplog: pytest.LogCaptureFixture) -> None:
    anew = expected(domain, SQUASH)
    epochs(on_disk(domain, SQUASH))
    (path,) = part("rows")
    content = bytearray(path.read_bytes())
    content[len(content) // N * 3 + 100] ^= 1
    path.write_bytes(content)
    decoded.clear()
    assert same(epochs(on_disk(domain, SQUASH)), anew)
    assert len(decoded) == 1
    (told,) = warnings(caplog)
    assert told.startswith(f"1 of the {N} cached rows in ")
    decoded.clear()
    assert same(epochs(on_disk(domain, SQUASH)), anew)
    assert decoded == []


KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}, {tests!r} + '/..']
import torch
torch.set_num_threads(1)
from acclimate.cache import images as pixels, writer
from test_images import domain_of, epochs, on_disk
pixels.BLOCK = 1600
original, count = writer._write, 0
def write(file, content):
    global count
    count += 1
    if count == int(sys.argv[1]):
        file.write(content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    original(file, content)
writer._write = write
epochs(on_disk(domain_of(sys.argv[2:])))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_writer_leaves_whole_rows(
    domain: Domain, photos: list[Path], decoded: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    anew = expected(domain)
    program = KILLED.format(tests=str(Path(__file__).parent))
    assert forks.run(program, "10", *photos)[0] == -9
    decoded.clear()
    assert same(epochs(on_disk(domain)), anew)
    assert 0 < len(decoded) < N
    decoded.clear()
    assert same(epochs(on_disk(domain)), anew)
    assert decoded == []
    assert warnings(caplog) == []


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("memory", [0, 10**9])
def test_a_folder_that_cannot_be_written_to(
    domain: Domain, memory: int, tmp_path: Path, decoded: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    anew = expected(domain)
    decoded.clear()
    (tmp_path / "cache").write_text("a file where the folder should be")
    inputs = image_inputs(domain, KEEP, "crop+flip", images="disk", memory=memory)
    assert same(epochs(inputs), anew)
    (told,) = warnings(caplog)
    assert told.startswith("The resized images of photos are not kept in ")
    assert len(decoded) == 3 * N if memory == 0 else N <= len(decoded) < 2 * N


def test_a_complete_folder_that_may_only_be_read(
    domain: Domain, decoded: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs(on_disk(domain.select(range(6))))

    def refuse(*args: object, **more: object) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(files, "open_no_follow", refuse)
    monkeypatch.setattr(os, "utime", refuse)
    anew = expected(domain)
    decoded.clear()
    assert same(epochs(on_disk(domain.select(range(6)))), expected(domain.select(range(6))))
    assert len(decoded) == 3 * 6  # by `expected` alone
    assert warnings(caplog) == []
    decoded.clear()
    assert same(epochs(on_disk(domain)), anew)
    assert set(decoded) == {6, 7, 8}
    assert len(warnings(caplog)) == 1


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("write", range(0, 12, 2))
def test_a_disk_that_fills_up_on_the_way(
    domain: Domain, write: int, decoded: list[int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    anew = expected(domain)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "_write", full_after(write, writer._write))
        assert same(epochs(on_disk(domain)), anew)
    (told,) = warnings(caplog)
    assert told.endswith("[Errno 28] No space left on device.")
    assert same(epochs(on_disk(domain)), anew)
    decoded.clear()
    assert same(epochs(on_disk(domain)), anew)
    assert decoded == []
    assert warnings(caplog) == []


def test_deleted_or_pruned_while_a_run_trains(domain: Domain, photos: list[Path], decoded: list[int]) -> None:
    inputs = on_disk(domain)
    anew = expected(domain)
    assert same(epochs(inputs), anew)
    succeeds("cache", "clear", "--yes")
    assert stores() == []
    decoded.clear()
    assert same(epochs(inputs), anew)  # the files are gone, the map is not
    assert decoded == []
    assert same(epochs(on_disk(domain)), anew)
    half = on_disk(domain_of([photo(photos[0].with_name("new.png"), 99), *photos[1:]]))
    photos[1].unlink()
    succeeds("cache", "prune")
    rest = np.array([0, 2, 3])
    before = half.batch(rest, np.random.default_rng(0))  # the first is decoded, written, and all are found anew
    assert torch.equal(before, half.batch(rest, np.random.default_rng(0)))


# --- several at a time ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_blocks")
def test_threads_share_the_images(domain: Domain, decoded: list[int]) -> None:
    anew = expected(domain)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: epochs(on_disk(domain)), range(4)):
            assert same(found, anew)
    rows = sum(len(np.fromfile(path, index.RECORD)) for path in part("index"))
    assert rows == N
    shared = on_disk(domain)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: epochs(shared), range(4)):
            assert same(found, anew)


def test_two_processes(domain: Domain, photos: list[Path], decoded: list[int]) -> None:
    anew = expected(domain)
    code = KILLED.format(tests=str(Path(__file__).parent))
    other = forks.Forked(code, "-1", *photos)
    found = [epochs(on_disk(domain)) for _ in range(3)]
    assert other.wait()[0] == 0
    assert all(same(each, anew) for each in found)
    rows = sum(len(np.fromfile(path, index.RECORD)) for path in part("index"))
    assert rows == N
    decoded.clear()
    assert same(epochs(on_disk(domain)), anew)
    assert decoded == []


def test_an_image_that_waits_to_be_written_is_not_decoded_again(domain: Domain, decoded: list[int]) -> None:
    inputs, some = on_disk(domain), np.arange(4)
    first = inputs.batch(some, np.random.default_rng(0))
    assert stores() == []
    assert torch.equal(inputs.batch(some, np.random.default_rng(0)), first)
    assert len(decoded) == 4


def test_images_that_come_while_others_are_written_are_written_too(
    domain: Domain, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, resized = DiskShelf(domain, SQUASH), np.zeros((16, 16, 3), np.uint8)
    monkeypatch.setattr(pixels, "BLOCK", resized.nbytes * 4)
    original: Callable[..., None] = DiskShelf._write
    late = threading.Event()

    def slowly(self: DiskShelf, *args: Any) -> None:
        if not late.is_set():
            late.set()
            for position in range(4, N):
                shelf.put(position, resized)  # this one cannot write: it is another's turn
        original(self, *args)

    monkeypatch.setattr(DiskShelf, "_write", slowly)
    assert all(shelf.put(position, resized) for position in range(4))
    assert len(np.fromfile(part("index")[0], index.RECORD)) == N


# --- upkeep --------------------------------------------------------------------------------------------------------


def test_list_prune_and_clear(domain: Domain, photos: list[Path], decoded: list[int]) -> None:
    epochs(on_disk(domain, SQUASH))
    shown = succeeds("cache", "list").stdout
    assert all(text in shown for text in ("resized images", "1 to 1", "all", "uint8", f" {N} "))
    (entry,) = json.loads(succeeds("cache", "list", "--json").stdout)["entries"]
    assert entry["images"] == N
    photos[0].unlink()
    photo(photos[1], seed=70)
    assert json.loads(succeeds("cache", "prune", "--json").stdout)["rows"] == 2
    rest = domain.select(range(2, N))
    decoded.clear()
    epochs(on_disk(rest, SQUASH))
    assert decoded == []
    succeeds("cache", "clear", "--yes")
    assert stores() == []
