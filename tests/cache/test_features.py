"""The cache of features: what is computed when, and what is left after kills, damage and a full disk."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import forks
from acclimate import files, locks
from acclimate.cache import identity, index, upkeep, writer
from acclimate.cache.content import Content, stores_folder
from acclimate.cache.features import features
from acclimate.cache.identity import identities
from acclimate.cache.note import write_note
from acclimate.cache.store import Store
from acclimate.choices import Precision, View
from acclimate.data.broken import BrokenImages
from acclimate.data.domain import Domain
from acclimate.data.inputs import ArrayInputs, RowInputs
from acclimate.data.preprocess import Preprocess
from acclimate.data.read import domain_of
from acclimate.errors import DataError, OptionError
from acclimate.locks import locked
from acclimate.shard import Shard
from tiny import acclimate, full_after, succeeds

T = TypeVar("T")
PREPROCESS = Preprocess(resize=18, size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
CONTENT = Content("tiny", "weights", "map", "head", PREPROCESS)
BOTH: tuple[View, ...] = ("plain", "flip")

HERE = Path(__file__).parent


class Encoder(nn.Module):
    """A small frozen network that counts its batches and the images in them, and may fail on the way."""

    def __init__(self, fail_after: int = 10**9, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.scale = scale
        self.batches: list[int] = []
        self.fail_after = fail_after

    @property
    def images(self) -> int:
        return sum(self.batches)

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append(int((x.flatten(1) != 0).any(1).sum()))  # a batch is filled up with zeros
        if self.images > self.fail_after:
            raise RuntimeError("the encoder fails")
        out: Tensor = self.layers(x) * self.scale
        return out


def photo(path: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="BMP")
    return path


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    (tmp_path / "photos").mkdir()
    return [photo(tmp_path / "photos" / f"{i}.bmp", i) for i in range(7)]


@pytest.fixture
def domain(photos: list[Path]) -> Domain:
    return domain_of(photos, "photos")


def compute(encoder: nn.Module, domain: Domain, content: Content = CONTENT, **more: Any) -> RowInputs:
    return features(lambda: encoder, domain, content, device="cpu", **{"batch_size": 3, **more})


def values(inputs: RowInputs) -> npt.NDArray[np.float32]:
    """All features and views as they come in batches, (V, N, ...)."""
    plain = inputs.batch(np.arange(len(inputs)), None).numpy()
    rows = [RowInputs(inputs.rows[:, v : v + 1], inputs.positions) for v in range(inputs.rows.shape[1])]
    every = np.stack([view.batch(np.arange(len(inputs)), None).numpy() for view in rows])
    np.testing.assert_array_equal(every[0], plain)
    return every


def fresh(domain: Domain, content: Content = CONTENT) -> npt.NDArray[np.float32]:
    """The features computed anew, in another cache."""
    before = os.environ["ACCLIMATE_CACHE"]
    os.environ["ACCLIMATE_CACHE"] = before + "-fresh"
    try:
        shutil.rmtree(before + "-fresh", ignore_errors=True)
        return values(compute(Encoder(), domain, content))
    finally:
        os.environ["ACCLIMATE_CACHE"] = before


def stores() -> list[Path]:
    folder = stores_folder()
    return sorted(folder.iterdir()) if folder.is_dir() else []


def part(kind: str) -> Path:
    """One of the files of the only store."""
    (found,) = (path for folder in stores() if not folder.is_symlink() for path in folder.glob(f"{kind}-????????.bin"))
    return found


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return found


# --- what is computed ----------------------------------------------------------------------------------------------


def test_equals_the_network_in_evaluation_mode(domain: Domain, photos: list[Path]) -> None:
    encoder = Encoder().train()
    found = values(compute(encoder, domain))
    images = np.stack([PREPROCESS.plain(PREPROCESS.resized(Image.open(path))) for path in photos])
    with torch.no_grad():
        expected = encoder.eval()(PREPROCESS.normalised(images))
    assert found.shape == (1, 7, 4, 7, 7)
    np.testing.assert_allclose(found[0], expected.numpy(), atol=1e-6)


def test_the_second_time_reads_the_same_bits_from_disk(domain: Domain) -> None:
    encoder = Encoder()
    first, second = compute(encoder, domain), compute(encoder, domain)
    assert encoder.batches == [3, 3, 1]
    for inputs in (first, second):
        assert isinstance(inputs.rows.base, np.memmap)
        assert not inputs.rows.flags.writeable
    np.testing.assert_array_equal(values(first), values(second))
    np.testing.assert_array_equal(values(first), fresh(domain))
    assert len(stores()) == 1


def test_other_contents_make_other_stores(domain: Domain) -> None:
    others: list[dict[str, Any]] = [
        {},
        {"backbone": "other"},
        {"weights": "other"},
        {"level": "vector"},
        {"tune": "top"},
        {"views": BOTH},
        {"bf16": True},
        {"precision": "fp16"},
        {"preprocess": replace(PREPROCESS, aspect="squash")},
    ]
    encoder = Encoder()
    for number, other in enumerate(others, 1):
        compute(encoder, domain, replace(CONTENT, **other))
        assert len(stores()) == number
    before = encoder.images
    compute(encoder, domain.select([4, 1]))
    assert encoder.images == before
    assert len(stores()) == len(others)


def test_a_new_or_changed_image_costs_itself_alone(domain: Domain, photos: list[Path]) -> None:
    encoder = Encoder()
    before = values(compute(encoder, domain))
    photo(photos[2], seed=50)
    new = [photo(photos[0].with_name(f"new{i}.bmp"), 60 + i) for i in range(2)]
    more = domain_of([*new, *photos])
    after = values(compute(encoder, more))
    assert encoder.batches == [3, 3, 1, 3]
    np.testing.assert_array_equal(after, fresh(more))
    assert [bool((before[0, i] == after[0, 2 + i]).all()) for i in range(7)] == [i != 2 for i in range(7)]


def test_removed_images_subsets_and_links_cost_nothing(domain: Domain, photos: list[Path], tmp_path: Path) -> None:
    encoder = Encoder()
    whole = values(compute(encoder, domain))
    (tmp_path / "links").mkdir()
    (tmp_path / "linked").symlink_to(photos[0].parent)
    links = [tmp_path / "links" / path.name for path in photos[:2]]
    for link, path in zip(links, photos[:2], strict=True):
        link.symlink_to(path)
    photos[4].unlink()
    others = [photos[6], *links, tmp_path / "linked" / "3.bmp", photos[6]]
    np.testing.assert_array_equal(values(compute(encoder, domain_of(others))), whole[:, [6, 0, 1, 3, 6]])
    assert encoder.images == 7


def test_an_image_that_comes_twice_is_computed_once(photos: list[Path]) -> None:
    encoder = Encoder()
    twice = domain_of([photos[0], photos[1], photos[0], photos[0], photos[2], photos[1]])
    np.testing.assert_array_equal(values(compute(encoder, twice)), fresh(twice))
    assert encoder.images == 3


def test_images_in_an_array_are_known_by_their_bytes() -> None:
    x = np.random.default_rng(0).integers(0, 256, (5, 18, 18, 3), dtype=np.uint8)
    encoder = Encoder()
    found = values(compute(encoder, domain_of(x)))
    np.testing.assert_array_equal(values(compute(encoder, domain_of(x[::-2].copy()))), found[:, ::-2])
    assert encoder.images == 5
    compute(encoder, domain_of(np.repeat(x[:1, :, :, :1], 3, 3)))
    assert encoder.images == 6


def test_images_known_by_their_content(domain: Domain, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCLIMATE_CACHE_BY", "content")
    encoder = Encoder()
    found = values(compute(encoder, domain))
    moved = [path.rename(path.with_name(f"moved{path.name}")) for path in photos]
    for path in moved:
        os.utime(path, ns=(1, 1))
    np.testing.assert_array_equal(values(compute(encoder, domain_of(moved))), found)
    assert encoder.images == 7
    photo(moved[0], seed=9)
    os.utime(moved[0], ns=(1, 1))
    compute(encoder, domain_of(moved))
    assert encoder.images == 8
    monkeypatch.setenv("ACCLIMATE_CACHE_BY", "name")
    with pytest.raises(OptionError, match="must be time or content"):
        compute(encoder, domain)


def test_the_flipped_view_is_of_the_mirrored_image() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 18, 18, 3), dtype=np.uint8)
    both = values(compute(Encoder(), domain_of(images), replace(CONTENT, views=BOTH)))
    mirrored = values(compute(Encoder(), domain_of(np.ascontiguousarray(images[:, :, ::-1]))))
    assert both.shape[:2] == (2, 5)
    np.testing.assert_array_equal(both[1], mirrored[0])
    assert not np.array_equal(both[0], both[1])


def test_the_batch_size_changes_rounding_at_most(domain: Domain) -> None:
    whole = compute(Encoder(), domain, batch_size=64)
    single = compute(Encoder(), domain, replace(CONTENT, weights="b"), batch_size=1)
    np.testing.assert_allclose(values(whole), values(single), atol=1e-5)


def test_images_whose_identities_share_a_half_are_never_mixed_up() -> None:
    known = np.array([b"A" * 8 + b"1" * 8, b"A" * 8 + b"2" * 8, b"B" * 16])
    records = np.zeros(3, index.RECORD)
    records["identity"] = known
    records["guard"] = index.guards(records, np.arange(3))
    first, second, third, unknown = index.find_rows(records, np.array([*known, b"A" * 16]))
    assert {first, second} in ({0, -1}, {-1, 1})  # one of both is computed again
    assert (third, unknown) == (2, -1)


def test_every_batch_has_the_same_size(domain: Domain) -> None:
    sizes: list[int] = []

    class Sized(Encoder):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return super().forward(x)

    compute(Sized(), domain)
    assert sizes == [3, 3, 3]


@pytest.mark.parametrize("threads", [2, 5])
def test_the_number_of_threads_changes_nothing(domain: Domain, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = values(compute(Encoder(), domain, batch_size=1))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(
        found, values(compute(Encoder(), domain, replace(CONTENT, weights="b"), batch_size=1))
    )


def test_bf16_arithmetic_rounds_and_returns_float32(domain: Domain) -> None:
    exact, rounded = values(compute(Encoder(), domain)), values(compute(Encoder(), domain, replace(CONTENT, bf16=True)))
    np.testing.assert_allclose(rounded, exact, atol=0.05)
    assert not np.array_equal(rounded, exact)


def test_training_draws_the_views_as_from_an_array(domain: Domain) -> None:
    inputs = compute(Encoder(), domain, replace(CONTENT, views=BOTH))
    array, index = ArrayInputs(values(inputs)), np.array([3, 3, 0, 6, 1, 3, 2, 2])
    for seed in range(5):
        drawn = [each.batch(index, np.random.default_rng(seed)) for each in (inputs, array)]
        assert torch.equal(*drawn)
        drawn[0].add_(1)  # a copy, not the file
    assert not torch.equal(drawn[0], inputs.batch(index, None))
    assert torch.equal(inputs.batch(index, None), array.batch(index, None))


def test_vectors_of_a_whole_network_are_cached_too(domain: Domain) -> None:
    encoder = nn.Sequential(Encoder(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = values(compute(encoder, domain, replace(CONTENT, level="vector", views=BOTH)))
    assert found.shape == (2, 7, 4)
    maps = values(compute(Encoder(), domain, replace(CONTENT, views=BOTH)))
    np.testing.assert_allclose(found, maps.mean((-2, -1)), atol=1e-5)


def test_progress_counts_the_batches_that_are_computed(domain: Domain) -> None:
    seen: list[tuple[str, int]] = []

    def track(items: Iterable[T], description: str, total: int) -> Iterable[T]:
        kept = list(items)
        seen.append((description, total))
        assert len(kept) == total
        return kept

    compute(Encoder(), domain.select([0, 1, 2, 3]), track=track)
    compute(Encoder(), domain, track=track)
    compute(Encoder(), domain, track=track)
    assert seen == [("Computing features", 2), ("Computing features", 1)]


def test_vectors_and_broken_images_are_refused(domain: Domain, photos: list[Path]) -> None:
    with pytest.raises(DataError, match="holds feature vectors"):
        compute(Encoder(), domain_of(np.zeros((3, 4), dtype=np.float32), "vectors"))
    photos[5].write_bytes(b"not an image")
    encoder = Encoder()
    with pytest.raises(DataError, match=r"5\.bmp"):
        compute(encoder, domain)
    photo(photos[5], seed=5)
    np.testing.assert_array_equal(values(compute(encoder, domain)), fresh(domain))
    assert encoder.images in (7, 8)  # the batch before the broken one was not lost, that of photo 6 was in flight
    domain = domain_of(photos, "photos")
    photos[6].unlink()
    with pytest.raises(DataError, match="there is no such file"):
        compute(encoder, domain)


# --- broken images -------------------------------------------------------------------------------------------------


def whole_and_broken(photos: list[Path], *positions: int) -> tuple[Domain, Domain]:
    """The photos of which these are broken, and the others alone."""
    for i in positions:
        photos[i].write_bytes(b"not an image")
    return domain_of(photos, "photos"), domain_of([path for i, path in enumerate(photos) if i not in positions])


@pytest.mark.parametrize("positions", [(1,), (0, 6), (3, 4, 5)])
def test_a_broken_image_is_noted_and_gets_no_row(photos: list[Path], positions: tuple[int, ...]) -> None:
    domain, rest = whole_and_broken(photos, *positions)
    encoder, broken = Encoder(), BrokenImages(domain, most=0.5)
    with broken.found():
        found = values(compute(encoder, domain, broken=broken))
    assert sorted(broken.reasons) == list(positions)
    np.testing.assert_array_equal(found, fresh(rest))
    assert len(np.fromfile(part("index"), index.RECORD)) == encoder.images == 7 - len(positions)
    again = BrokenImages(domain_of(photos), most=0.5)
    again.recall()
    assert again.reasons == broken.reasons
    np.testing.assert_array_equal(values(compute(encoder, again.left)), found)
    assert encoder.images == 7 - len(positions)


def test_a_broken_image_that_is_listed_twice_is_left_out_twice(photos: list[Path]) -> None:
    whole_and_broken(photos, 2)
    domain = domain_of([photos[2], *photos, photos[2], photos[0]])
    broken = BrokenImages(domain, most=0.5)
    with broken.found():
        found = values(compute(Encoder(), domain, broken=broken))
    assert sorted(broken.reasons) == [0, 3, 8]
    np.testing.assert_array_equal(found, fresh(broken.left))


def test_an_extraction_that_fails_on_its_way_keeps_its_rows_and_knows_nothing(photos: list[Path]) -> None:
    domain, rest = whole_and_broken(photos, 1)
    first = BrokenImages(domain, most=0.5)
    with pytest.raises(RuntimeError, match="the encoder fails"), first.found():
        compute(Encoder(fail_after=3), domain, broken=first)
    assert not first.known
    encoder, second = Encoder(), BrokenImages(domain, most=0.5)
    with second.found():
        found = values(compute(encoder, domain, broken=second))
    assert sorted(second.reasons) == [1]
    assert encoder.images < 6
    np.testing.assert_array_equal(found, fresh(rest))


def test_too_many_broken_images_end_the_computing(photos: list[Path]) -> None:
    domain, _ = whole_and_broken(photos, 0, 1, 5)
    encoder, broken = Encoder(), BrokenImages(domain, most=0.2)
    sentence = r"^3 of the 7 images of photos cannot be read, for example '.*0\.bmp'"
    with pytest.raises(DataError, match=sentence), broken.found():
        compute(encoder, domain, batch_size=1, broken=broken)
    assert encoder.images <= 1  # that which was in flight
    whole = domain_of([photo(path, i) for i, path in enumerate(photos)])
    np.testing.assert_array_equal(values(compute(encoder, whole)), fresh(whole))


def test_broken_images_where_nothing_can_be_cached(photos: list[Path], tmp_path: Path) -> None:
    domain, rest = whole_and_broken(photos, 2, 6)
    expected = values(compute(Encoder(), rest))
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("a file where the folder should be")
    broken = BrokenImages(domain, most=0.5)
    with broken.found():
        found = compute(Encoder(), domain, broken=broken)
    assert not isinstance(found.rows.base, np.memmap)
    np.testing.assert_array_equal(values(found), expected)


def test_broken_images_among_features_that_are_too_large(photos: list[Path]) -> None:
    domain, rest = whole_and_broken(photos, 2)
    half = replace(CONTENT, precision="fp16")
    expected = values(compute(Encoder(scale=1e5), rest, replace(half, weights="b")))
    broken = BrokenImages(domain, most=0.5)
    with broken.found():
        np.testing.assert_array_equal(values(compute(Encoder(scale=1e5), domain, half, broken=broken)), expected)


# --- precision on the disk -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_values_are_rounded_once(domain: Domain, precision: Precision, dtype: torch.dtype) -> None:
    exact = torch.from_numpy(fresh(domain, replace(CONTENT, views=BOTH)))
    inputs = compute(Encoder(), domain, replace(CONTENT, views=BOTH, precision=precision))
    assert torch.equal(torch.from_numpy(values(inputs)), exact.to(dtype).float())
    assert part("rows").stat().st_size == exact.numel() * dtype.itemsize
    assert inputs.batch(np.array([1, 0]), np.random.default_rng(0)).dtype == torch.float32


def test_values_too_large_for_fp16_are_cached_as_fp32(domain: Domain, caplog: pytest.LogCaptureFixture) -> None:
    half = replace(CONTENT, precision="fp16")
    compute(Encoder(), domain.select([0, 1]), half)
    large = Encoder(scale=1e5)
    found = values(compute(large, domain, half))
    assert np.isfinite(found).all()
    assert np.abs(found).max() > 65_504
    assert warnings(caplog) == ["Some features are too large for fp16, so they are cached as fp32."]
    before = large.images
    np.testing.assert_array_equal(values(compute(large, domain, half)), found)
    assert large.images == before
    assert [entry.images for entry in upkeep.entries()] in ([7, 0], [0, 7])
    np.testing.assert_array_equal(
        values(compute(large, domain, replace(CONTENT, precision="bf16"))).astype(int) != 0, True
    )


def test_infinities_of_the_network_itself_are_kept(domain: Domain, caplog: pytest.LogCaptureFixture) -> None:
    found = values(compute(Encoder(scale=float("inf")), domain, replace(CONTENT, precision="fp16")))
    assert np.isinf(found).any()
    assert warnings(caplog) == []


# --- kills ---------------------------------------------------------------------------------------------------------

DRIVER = """
import json, os, shutil, signal, sys
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
from acclimate.data.read import domain_of
from acclimate.cache import features as cache, index, note, packing, rows, store, upkeep, writer
sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]).parent)]
from test_features import CONTENT, Encoder, compute, values

photos = domain_of(sorted(Path(sys.argv[2]).glob("*.bmp")))

def lines(work, at=None):
    '''Runs `work` and counts the lines of the store's and the cache's code; dies at line `at`.'''
    count = 0
    files = {module.__file__ for module in (cache, index, note, packing, rows, store, upkeep, writer)}
    def trace(frame, event, argument):
        nonlocal count
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace
    sys.settrace(trace)
    work()
    sys.settrace(None)
    return count

def extract():
    return compute(Encoder(), photos)

def killed(work, folders, step, start_from=None):
    at, results = 1, []
    while True:
        folder = f"{sys.argv[3]}/{folders}{at}"
        if start_from:
            shutil.copytree(start_from, folder)
        os.environ["ACCLIMATE_CACHE"] = folder
        pid = os.fork()
        if pid == 0:
            lines(work, at)
            os._exit(0)
        code = os.waitpid(pid, 0)[1]
        if code == 0:
            return results
        assert code == signal.SIGKILL, code
        results.append(folder)
        at += step

extracting = killed(extract, "extract", 41)
os.environ["ACCLIMATE_CACHE"] = whole = sys.argv[3] + "/whole"
if os.fork() == 0:
    extract()
    os._exit(0)
os.wait()
for path in sorted(Path(sys.argv[2]).glob("*.bmp"))[::3]:
    os.utime(path, ns=(1, 1))
print(json.dumps([extracting, killed(upkeep.prune, "prune", 59, whole)]))
"""


def test_killed_at_any_moment(
    domain: Domain,
    photos: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "killed"
    folder.mkdir()
    before = {path: path.stat().st_mtime_ns for path in photos}
    code, printed = forks.run(DRIVER, HERE, photos[0].parent, folder)
    assert code == 0
    extracting, pruning = json.loads(printed)
    assert len(extracting) > 10
    assert len(pruning) > 10
    expected = fresh(domain)

    counts = []
    for left in pruning:
        monkeypatch.setenv("ACCLIMATE_CACHE", left)
        encoder = Encoder()
        np.testing.assert_array_equal(values(compute(encoder, domain)), expected)
        counts.append(encoder.images)
        upkeep.prune()
        (entry,) = upkeep.entries()
        assert entry.images == 7
        assert len(list(entry.path.iterdir())) == 5  # nothing is left behind
    assert set(counts) == {3}

    for path, changed in before.items():
        os.utime(path, ns=(changed, changed))
    domain = domain_of(photos, "photos")
    counts = []
    for left in extracting:
        monkeypatch.setenv("ACCLIMATE_CACHE", left)
        encoder = Encoder()
        np.testing.assert_array_equal(values(compute(encoder, domain)), expected)
        np.testing.assert_array_equal(values(compute(encoder, domain)), expected)
        counts.append(encoder.images)
    assert counts == sorted(counts, reverse=True)  # a batch is kept as soon as its records are written
    assert set(counts) == {7, 4, 1, 0}
    assert warnings(caplog) == []


@pytest.mark.parametrize("fail_after", [0, 3, 5, 6])
def test_a_failure_on_the_way_loses_one_batch(domain: Domain, fail_after: int) -> None:
    with pytest.raises(RuntimeError, match="the encoder fails"):
        compute(Encoder(fail_after), domain)
    encoder = Encoder()
    np.testing.assert_array_equal(values(compute(encoder, domain)), fresh(domain))
    assert encoder.images == 7 - fail_after // 3 * 3


# --- damage --------------------------------------------------------------------------------------------------------


def truncated(left: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:left]


def altered(at: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def zeros(content: bytes) -> bytes:
    return bytes(len(content))


ROW = 4 * 7 * 7 * 4
RECORD = index.RECORD.itemsize


@pytest.mark.parametrize(
    ("kind", "damage", "lost"),
    [
        ("rows", truncated(0), 7),
        ("rows", truncated(3 * ROW + 1), 4),
        ("rows", truncated(-1), 1),
        ("rows", altered(0), 1),
        ("rows", altered(5 * ROW - 1), 1),
        ("rows", zeros, 7),
        ("rows", lambda content: content + b"more", 0),
        ("index", truncated(0), 7),
        ("index", truncated(2 * RECORD + 5), 5),
        ("index", truncated(-1), 1),
        *[("index", altered(4 * RECORD + i), 1) for i in range(0, RECORD, 3)],
        ("index", zeros, 7),
        ("index", lambda content: content[RECORD:] + content[:RECORD], 7),  # valid records of other rows
        ("paths", zeros, 0),
    ],
)
def test_only_what_is_damaged_is_computed_again(
    domain: Domain,
    kind: str,
    damage: Callable[[bytes], bytes],
    lost: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = values(compute(Encoder(), domain)).copy()
    path = part(kind)
    content = damage(path.read_bytes())
    path.unlink()  # a file that is mapped must not shrink
    path.write_bytes(content)
    encoder = Encoder()
    for _ in range(2):
        np.testing.assert_array_equal(values(compute(encoder, domain)), expected)
    assert encoder.images == lost
    told = warnings(caplog)
    assert len(told) == (lost > 0)
    assert all("damaged" in sentence for sentence in told)


@pytest.mark.parametrize("kind", ["rows", "index", "paths"])
def test_a_missing_file_is_made_again(domain: Domain, kind: str) -> None:
    expected = values(compute(Encoder(), domain)).copy()
    part(kind).unlink()
    np.testing.assert_array_equal(values(compute(Encoder(), domain)), expected)
    np.testing.assert_array_equal(values(compute(Encoder(0), domain)), expected)


@pytest.mark.parametrize(
    "damage",
    [
        truncated(0),
        truncated(-1),
        zeros,
        lambda content: b"[]",
        lambda content: b'{"shape": 1}',
        lambda content: content.replace(b'"<f4"', b'"<i4"'),
        lambda content: content.replace(b"    7,", b"    6,", 1),
    ],
)
def test_a_damaged_note_begins_the_store_anew(
    domain: Domain, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    expected = values(compute(Encoder(), domain)).copy()
    path = stores()[0] / "store.json"
    content = damage(path.read_bytes())
    assert content != path.read_bytes()
    path.write_bytes(content)
    assert upkeep.entries()[0].images is None
    np.testing.assert_array_equal(values(compute(Encoder(), domain)), expected)
    (told,) = warnings(caplog)
    assert "The index of the cached rows" in told
    np.testing.assert_array_equal(values(compute(Encoder(0), domain)), expected)


def test_a_file_that_was_only_touched_is_verified_and_kept(domain: Domain, caplog: pytest.LogCaptureFixture) -> None:
    expected = values(compute(Encoder(), domain))
    os.utime(part("rows"), ns=(1, 1))
    np.testing.assert_array_equal(values(compute(Encoder(0), domain)), expected)
    assert warnings(caplog) == []
    assert json.loads((stores()[0] / "store.json").read_bytes())["mtime_ns"] == 1, "the next reader need not verify it"


def test_rows_that_the_power_took_are_found_missing(domain: Domain, caplog: pytest.LogCaptureFixture) -> None:
    expected = values(compute(Encoder(), domain.select([0, 1, 2]))).copy()
    before, noted = part("rows").read_bytes(), (stores()[0] / "store.json").read_bytes()
    status = part("rows").stat()
    compute(Encoder(), domain)
    rows = part("rows")
    rows.unlink()
    rows.write_bytes(before)
    os.utime(rows, ns=(status.st_atime_ns, status.st_mtime_ns))
    (stores()[0] / "store.json").write_bytes(noted)
    encoder = Encoder()
    np.testing.assert_array_equal(values(compute(encoder, domain))[:, :3], expected)
    assert encoder.images == 4
    assert len(warnings(caplog)) == 1


def test_rows_of_another_shape_give_way(domain: Domain, caplog: pytest.LogCaptureFixture) -> None:
    compute(Encoder(), domain.select([0, 1]))
    pooled = nn.Sequential(Encoder(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert values(compute(pooled, domain)).shape == (1, 7, 4)
    assert "its rows had the shape (1, 4, 7, 7) and were deleted" in warnings(caplog)[0]
    assert isinstance(compute(pooled, domain).rows.base, np.memmap)
    assert isinstance(compute(pooled, domain).rows.base, np.memmap)
    assert warnings(caplog) == []


def test_rows_that_somebody_has_mapped_are_never_overwritten(domain: Domain) -> None:
    inputs = compute(Encoder(), domain)
    expected = values(inputs).copy()
    part("index").write_bytes(b"")
    compute(Encoder(), domain.select([6, 5, 4, 3, 2, 1, 0]))
    np.testing.assert_array_equal(values(inputs), expected)


def test_a_cache_deleted_while_it_is_read(domain: Domain) -> None:
    inputs = compute(Encoder(), domain)
    expected = values(inputs).copy()
    shutil.rmtree(stores()[0])
    np.testing.assert_array_equal(values(inputs), expected)
    np.testing.assert_array_equal(values(compute(Encoder(), domain)), expected)


def test_a_cache_deleted_while_it_grows(domain: Domain, caplog: pytest.LogCaptureFixture) -> None:
    class Deleting(Encoder):
        def forward(self, x: Tensor) -> Tensor:
            if len(self.batches) == 1:
                shutil.rmtree(stores()[0])
            return super().forward(x)

    np.testing.assert_array_equal(values(compute(Deleting(), domain)), fresh(domain))
    assert warnings(caplog)[0].startswith("The features of photos are not cached, because ")
    np.testing.assert_array_equal(values(compute(Encoder(), domain)), fresh(domain))


# --- a disk that is full or may not be written to ------------------------------------------------------------------


def in_memory_with_a_warning(domain: Domain, caplog: pytest.LogCaptureFixture, encoder: Encoder | None = None) -> None:
    found = compute(encoder or Encoder(), domain, replace(CONTENT, views=BOTH))
    (sentence,) = warnings(caplog)
    assert sentence.startswith("The features of photos are not cached, because ")
    assert not isinstance(found.rows.base, np.memmap)
    assert not found.rows.flags.writeable
    np.testing.assert_array_equal(values(found), fresh(domain, replace(CONTENT, views=BOTH)))


def test_a_folder_that_cannot_be_written_to(domain: Domain, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    in_memory_with_a_warning(domain, caplog)


def test_room_is_looked_for_before_anything_is_written(
    domain: Domain, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * 7 * ROW - 1))
        found = compute(Encoder(), domain, replace(CONTENT, views=BOTH))
    assert not isinstance(found.rows.base, np.memmap)
    assert "GB do not fit on the disk" in warnings(caplog)[0]
    assert [*stores()[0].glob("rows-*")] == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * 7 * ROW))
    assert isinstance(compute(Encoder(), domain, replace(CONTENT, views=BOTH)).rows.base, np.memmap)


@pytest.mark.parametrize("write", range(0, 9, 2))
def test_a_disk_that_fills_up_on_the_way(
    domain: Domain, write: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder()
    both = replace(CONTENT, views=BOTH)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "_write", full_after(write, writer._write))
        found = values(compute(encoder, domain, both))
    np.testing.assert_array_equal(found, fresh(domain, both))
    again = min(2 * 3, 7 - write // 3 * 3)  # the batch that was written and the one that was computed meanwhile
    assert encoder.images <= 2 * (7 + again)  # views
    (told,) = warnings(caplog)
    assert told.endswith("[Errno 28] No space left on device.")
    np.testing.assert_array_equal(values(compute(Encoder(), domain, both)), fresh(domain, both))
    assert warnings(caplog) == []


def test_features_that_fit_nowhere(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    monkeypatch.setattr(os, "sysconf", lambda name: 10)
    with pytest.raises(DataError, match="neither the cache folder nor the memory"):
        compute(Encoder(), domain)


def test_a_complete_cache_that_may_only_be_read_is_read(
    domain: Domain, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = values(compute(Encoder(), domain.select(range(6))))

    def refuse(*args: object, **more: object) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(files, "open_no_follow", refuse)
    monkeypatch.setattr(locks, "open_no_follow", refuse)
    monkeypatch.setattr(os, "utime", refuse)
    np.testing.assert_array_equal(values(compute(Encoder(0), domain.select(range(6)))), expected)
    assert warnings(caplog) == []
    encoder = Encoder()
    np.testing.assert_array_equal(values(compute(encoder, domain))[:, :6], expected)
    assert encoder.images == 1
    assert len(warnings(caplog)) == 1
    path = part("rows")
    path.chmod(0o644)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(altered(3)(content))
    encoder = Encoder()
    np.testing.assert_array_equal(values(compute(encoder, domain))[:, :6], expected)
    assert encoder.images == 2  # the damaged one and the missing one
    assert len(warnings(caplog)) == 1


# --- stores of parts -----------------------------------------------------------------------------------------------


def plain(inputs: RowInputs) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = inputs.batch(np.arange(len(inputs)), None).numpy()
    return found


def in_parts(domain: Domain, content: Content = CONTENT, of: int = 3) -> None:
    for number in range(of):
        compute(Encoder(), domain.select(range(number, 7, of)), content, shard=Shard(number, of))


def test_views_are_drawn_from_parts_as_from_one_store(domain: Domain) -> None:
    both = replace(CONTENT, views=BOTH)
    in_parts(domain, both)
    joined = compute(Encoder(0), domain, both)
    assert len(stores()) == 3
    shutil.rmtree(stores_folder())
    whole = compute(Encoder(), domain, both)
    drawn = np.array([3, 3, 0, 6, 1, 3, 2, 2])
    for seed in range(5):
        ours, theirs = (each.batch(drawn, np.random.default_rng(seed)) for each in (joined, whole))
        assert torch.equal(ours, theirs)


def test_a_part_that_is_being_written_elsewhere_is_verified_row_by_row(domain: Domain) -> None:
    in_parts(domain)
    expected = fresh(domain)[0]
    store = Store(next(path for path in stores() if path.name.endswith("-0-of-3")))
    (rows,) = store.folder.glob("rows-*.bin")
    torn = bytearray(rows.read_bytes())
    torn[0] ^= 1
    rows.unlink()
    rows.write_bytes(torn)
    encoder = Encoder()
    with locked(store.lock):
        np.testing.assert_array_equal(plain(compute(encoder, domain)), expected)
    assert encoder.images == 1


def test_a_value_that_one_part_cannot_hold_is_heeded_by_all(domain: Domain) -> None:
    half = replace(CONTENT, precision="fp16")
    compute(Encoder(), domain.select([0, 1, 2]), half, shard=Shard(0, 2))
    compute(Encoder(scale=1e5), domain.select([3, 4, 5, 6]), half, shard=Shard(1, 2))
    encoder = Encoder(scale=1e5)
    np.testing.assert_allclose(plain(compute(encoder, domain, half)), 1e5 * fresh(domain)[0], rtol=1e-5)
    assert encoder.images == 3


def test_parts_need_no_locks(domain: Domain, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    expected = fresh(domain)[0]

    def refuse(file: object) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks, "_lock", refuse)
    in_parts(domain)
    np.testing.assert_array_equal(plain(compute(Encoder(0), domain)), expected)
    assert warnings(caplog) == []


def test_parts_with_broken_images(photos: list[Path]) -> None:
    photos[4].write_bytes(b"not an image")
    domain = domain_of(photos, "photos")
    for number in range(2):
        part = domain.select(range(number, 7, 2))
        broken = BrokenImages(part, 1.0)
        with broken.found():
            compute(Encoder(), part, broken=broken, shard=Shard(number, 2))
    encoder, broken = Encoder(), BrokenImages(domain, 0.5)
    with broken.found():
        found = plain(compute(encoder, domain, broken=broken))
    assert sorted(broken.reasons) == [4]
    assert len(found) == 6
    assert encoder.images == 0


def test_parts_are_listed_pruned_and_cleared(domain: Domain, photos: list[Path]) -> None:
    in_parts(domain)
    assert {entry.part for entry in upkeep.entries()} == {"0/3", "1/3", "2/3"}
    shown = succeeds("cache", "list", columns=200).stdout
    assert "part 1/3" in shown
    photos[1].unlink()
    assert upkeep.prune().rows == 1
    assert sum(entry.images or 0 for entry in upkeep.entries()) == 6
    assert upkeep.clear().entries == 3
    assert stores() == []


# --- several at a time ---------------------------------------------------------------------------------------------


def test_threads_that_want_the_same_compute_it_once(domain: Domain) -> None:
    encoders = [Encoder() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = [values(inputs) for inputs in pool.map(lambda encoder: compute(encoder, domain), encoders)]
    for other in found:
        np.testing.assert_array_equal(other, fresh(domain))
    assert sum(encoder.images for encoder in encoders) == 7
    assert part("rows").stat().st_size == 7 * ROW


def test_two_processes(domain: Domain, photos: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    code = (
        "import sys, time, torch\n"
        "torch.set_num_threads(1)\n"
        f"sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]\n"
        "from test_features import Encoder, compute, domain_of\n"
        "class Slow(Encoder):\n"
        "    def forward(self, x):\n"
        "        print(len(self.batches), flush=True)\n"
        "        time.sleep(0.2)\n"
        "        return super().forward(x)\n"
        "compute(Slow(), domain_of(sys.argv[1:]))\n"
    )
    other = forks.Forked(code, *photos)
    while other.printed() == "" and other.process.is_alive():
        time.sleep(0.01)
    encoder = Encoder()  # while the other computes
    found = values(compute(encoder, domain))
    assert other.wait()[0] == 0
    assert encoder.images == 0
    np.testing.assert_array_equal(found, fresh(domain))
    assert warnings(caplog) == []


def test_waiting_is_mentioned_and_what_is_there_is_not_waited_for(
    domain: Domain, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "PATIENCE", 0.05)
    monkeypatch.setattr(locks, "POLL", 0.01)
    some = values(compute(Encoder(), domain.select([0, 1, 2])))
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with locks.locked(stores()[0] / "lock"):
            held.set()
            free.wait(10)

    with ThreadPoolExecutor(2) as pool:
        pool.submit(hold)
        held.wait(10)
        np.testing.assert_array_equal(values(compute(Encoder(0), domain.select([2, 1, 0]))), some[:, ::-1])
        waiting = pool.submit(compute, Encoder(), domain)
        time.sleep(0.3)
        assert not waiting.done()
        free.set()
        np.testing.assert_array_equal(values(waiting.result()), fresh(domain))
    assert warnings(caplog) == [f"Waiting for another process that works in {stores()[0]}."]


def test_rows_that_are_being_verified_are_waited_for(domain: Domain) -> None:
    compute(Encoder(), domain)
    kept = Store(stores()[0])
    note = kept.note()
    assert note is not None
    with locks.locked(kept.lock):
        assert kept.read(identities(domain))[0] is not None
        write_note(kept.folder, replace(note, size=-1))  # as in the middle of a check
        assert kept.read(identities(domain))[0] is None
    compute(Encoder(0), domain)


def test_the_lock_on_a_file_that_was_just_deleted_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, original = tmp_path / "folder" / "lock", locks._lock

    def late(file: Any) -> bool:
        monkeypatch.setattr(locks, "_lock", original)
        shutil.rmtree(path.parent)
        return original(file)

    monkeypatch.setattr(locks, "_lock", late)
    with locks.locked(path) as mine, locks.locked(path, wait=False) as second:
        assert mine
        assert not second


# --- any sequence of changes ---------------------------------------------------------------------------------------

EDITS = st.lists(
    st.tuples(st.sampled_from(["add", "remove", "change", "rename", "prune"]), st.integers(0, 5)), max_size=8
)


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(edits=EDITS, data=st.data())
def test_any_sequence_of_changes(tmp_path: Path, edits: list[tuple[str, int]], data: st.DataObject) -> None:
    shutil.rmtree(tmp_path, ignore_errors=True)
    folder = tmp_path / "images"
    folder.mkdir(parents=True)
    for seed, (edit, number) in enumerate([("add", 0), *edits]):
        path = folder / f"{number}.bmp"
        if edit == "add" or (edit == "change" and path.exists()):
            photo(path, seed)
        elif edit == "remove":
            path.unlink(missing_ok=True)
        elif edit == "rename" and path.exists():
            path.rename(folder / f"{(number + 1) % 6}.bmp")
        elif edit == "prune":
            upkeep.prune()
        present = sorted(folder.iterdir())
        if present:
            chosen = data.draw(st.lists(st.sampled_from(present), min_size=1, max_size=6))
            domain = domain_of(chosen)
            np.testing.assert_array_equal(values(compute(Encoder(), domain)), fresh(domain))


# --- upkeep --------------------------------------------------------------------------------------------------------


@pytest.fixture
def foreign(tmp_path: Path, domain: Domain) -> list[Path]:
    """Files and folders that nobody may delete, around a store and in it."""
    compute(Encoder(), domain)
    outside = tmp_path / "outside"
    outside.mkdir()
    features_folder = stores_folder()
    paths = [
        outside / "rows-0.bin",
        tmp_path / "cache" / "mine.txt",
        features_folder / "mine.npy",
        features_folder / f"{'0a' * 32}.npy",
        features_folder / "short" / "store.json",
        features_folder / ("b" * 64 + ".txt"),
        stores()[0] / "notes.txt",
        stores()[0] / "rows-00000000.bin.bak",
        stores()[0] / "rows-0.bin",
    ]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    (features_folder / ("c" * 64)).symlink_to(outside)
    (features_folder / f"{'d' * 64}.npy").symlink_to(outside / "rows-0.bin")
    return [*paths, features_folder / ("c" * 64), features_folder / f"{'d' * 64}.npy"]


def test_list(domain: Domain) -> None:
    compute(Encoder(), domain, replace(CONTENT, views=BOTH, precision="fp16"))
    shown = succeeds("cache", "list").stdout
    for text in ("tiny", "map", "head", "plain flip", "fp16", " 7 "):
        assert text in shown
    listed = json.loads(succeeds("cache", "list", "--json").stdout)
    (entry,) = listed["entries"]
    assert entry["images"] == 7
    assert entry["views"] == ["plain", "flip"]
    assert entry["bytes"] == sum(path.stat().st_size for path in Path(entry["path"]).iterdir()) == listed["bytes"]
    assert time.time() - entry["used"] < 60
    note = json.loads((Path(entry["path"]) / "store.json").read_text())
    assert note["what"].startswith("Features that Acclimate computed")
    assert note["content"]["backbone"] == "tiny"


def test_clear_asks_and_deletes_what_it_made_alone(foreign: list[Path], domain: Domain) -> None:
    inputs = compute(Encoder(), domain)
    expected = values(inputs).copy()
    assert "use --yes" in acclimate("cache", "clear").stderr
    assert len(upkeep.entries()) == 1
    succeeds("cache", "clear", "--yes")
    assert upkeep.entries() == []
    assert all(path.exists() for path in foreign)
    np.testing.assert_array_equal(values(inputs), expected)
    np.testing.assert_array_equal(values(compute(Encoder(), domain)), expected)


def test_prune_drops_the_rows_of_images_that_changed_or_are_gone(
    domain: Domain, photos: list[Path], foreign: list[Path]
) -> None:
    inputs = compute(Encoder(), domain)
    compute(Encoder(), domain_of(np.zeros((2, 18, 18, 3), np.uint8)))
    expected = values(inputs).copy()
    photos[0].unlink()
    photo(photos[1], seed=70)
    freed = json.loads(succeeds("cache", "prune", "--json").stdout)
    assert freed["rows"] == 2
    assert freed["bytes"] > 2 * ROW
    assert part("rows").stat().st_size == 6 * ROW
    np.testing.assert_array_equal(values(inputs), expected)  # the old file is still mapped
    rest = domain.select([6, 2, 3, 4, 5])
    np.testing.assert_array_equal(values(compute(Encoder(0), rest)), expected[:, [6, 2, 3, 4, 5]])
    encoder = Encoder()
    compute(encoder, domain.select([1, 2]))
    assert encoder.images == 1
    assert json.loads(succeeds("cache", "prune", "--json").stdout)["rows"] == 0
    photos[6].unlink()
    assert json.loads(succeeds("cache", "prune", "--json").stdout)["rows"] == 1
    assert all(path.exists() for path in foreign)


def test_prune_deletes_what_kills_have_left(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    compute(Encoder(), domain)
    whole = sorted(stores()[0].iterdir())
    left = [stores()[0] / name for name in ("rows-0123abcd.bin", ".store.json.0123456789abcdef.tmp")]
    for path in left:
        path.write_bytes(b"half")
    assert upkeep.entries()[0].bytes == sum(path.stat().st_size for path in [*whole, *left])
    assert upkeep.prune().bytes == 8
    assert sorted(stores()[0].iterdir()) == whole


def test_prune_keeps_images_whose_identity_ends_in_zeros(domain: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
    original = identity._digest
    monkeypatch.setattr(identity, "_digest", lambda *parts: original(*parts)[:-2] + bytes(2))
    compute(Encoder(), domain)
    assert upkeep.prune().rows == 0
    compute(Encoder(0), domain)


def test_prune_by_age_and_size(domain: Domain) -> None:
    for name in ("aaa", "bbb", "ccc"):
        compute(Encoder(), domain, replace(CONTENT, weights=name))
    folders = {name: replace(CONTENT, weights=name).folder for name in ("aaa", "bbb", "ccc")}
    now = time.time()
    for age, name in enumerate(folders):
        os.utime(folders[name] / "store.json", (now - age * upkeep.DAY, now - age * upkeep.DAY))
    assert upkeep.prune(older_than=1.5).entries == 1
    assert [entry.path for entry in upkeep.entries()] == [folders["aaa"], folders["bbb"]]
    newer, older = (entry.bytes for entry in upkeep.entries())
    assert upkeep.prune(larger_than=newer + older).entries == 0
    assert upkeep.prune(larger_than=newer + older - 1).bytes == older
    assert [entry.path for entry in upkeep.entries()] == [folders["aaa"]]
    compute(Encoder(0), domain, replace(CONTENT, weights="aaa"))


def test_a_store_in_use_is_left_alone(domain: Domain) -> None:
    compute(Encoder(), domain)
    with locks.locked(stores()[0] / "lock"):
        assert upkeep.clear().busy == (stores()[0],)
        done = acclimate("cache", "prune", "--older-than", "0")
        assert f"{stores()[0]} is in use and stays" in " ".join(done.stderr.split())
    compute(Encoder(0), domain)
    assert upkeep.clear().entries == 1


def test_an_empty_cache(tmp_path: Path) -> None:
    assert "0.00 GB" in succeeds("cache", "list").stdout
    succeeds("cache", "prune")
    succeeds("cache", "clear")
    assert not (tmp_path / "cache").exists()
