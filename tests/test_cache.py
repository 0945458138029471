from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from acclimate.data.domains import Domain, domain_of
from acclimate.data.images import Preprocess, View
from acclimate.errors import DataError
from acclimate.features.cache import features

T = TypeVar("T")
PREPROCESS = Preprocess(resize=18, size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
BOTH: tuple[View, ...] = ("plain", "flip")


class Encoder(nn.Module):
    """A small frozen network that counts the images it is given and may fail on the way."""

    def __init__(self, fail_after: int = 10**9) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.images = 0
        self.fail_after = fail_after

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        if self.images > self.fail_after:
            raise RuntimeError("the encoder fails")
        out: Tensor = self.layers(x)
        return out


@pytest.fixture
def domain(tmp_path: Path) -> Domain:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(7)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return domain_of(paths, "photos")


def compute(
    encoder: nn.Module,
    domain: Domain,
    *,
    key: str = "weights",
    views: tuple[View, ...] = ("plain",),
    bf16: bool = False,
) -> npt.NDArray[np.float32]:
    return features(encoder, domain, PREPROCESS, key=key, views=views, bf16=bf16, device="cpu", batch_size=3)


def entries(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "cache" / "features"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def test_equals_the_network_in_evaluation_mode(domain: Domain) -> None:
    encoder = Encoder().train()
    found = compute(encoder, domain)
    assert isinstance(domain.items, tuple)
    images = np.stack([PREPROCESS.plain(PREPROCESS.resized(Image.open(path))) for path in domain.items])
    with torch.no_grad():
        expected = encoder.eval()(PREPROCESS.normalised(images))
    assert found.shape == (1, 7, 4, 7, 7)
    np.testing.assert_allclose(found[0], expected.numpy(), atol=1e-6)


def test_the_second_time_reads_the_same_bits_from_disk(domain: Domain, tmp_path: Path) -> None:
    encoder = Encoder()
    first = compute(encoder, domain)
    assert encoder.images == 7
    second = compute(encoder, domain)
    assert encoder.images == 7
    assert isinstance(second, np.memmap)
    assert not second.flags.writeable
    np.testing.assert_array_equal(first, second)
    assert len(entries(tmp_path)) == 1


def test_computing_again_gives_the_same_bits(domain: Domain, tmp_path: Path) -> None:
    first = np.array(compute(Encoder(), domain))
    entries(tmp_path)[0].unlink()
    np.testing.assert_array_equal(compute(Encoder(), domain), first)


def test_other_inputs_make_other_entries(domain: Domain, tmp_path: Path) -> None:
    encoder = Encoder()
    compute(encoder, domain)
    compute(encoder, domain, key="other weights")
    compute(encoder, domain, views=BOTH)
    compute(encoder, domain, bf16=True)
    compute(encoder, domain.select([0, 1]))
    other = Preprocess(**{**vars(PREPROCESS), "aspect": "squash"})
    features(encoder, domain, other, key="weights", bf16=False, device="cpu")
    assert len(entries(tmp_path)) == 6


def test_a_changed_file_is_computed_again(domain: Domain) -> None:
    encoder = Encoder()
    before = compute(encoder, domain)
    assert isinstance(domain.items, tuple)
    Image.new("RGB", (24, 20), "red").save(domain.items[2])
    os.utime(domain.items[2], ns=(1, 1))
    after = compute(encoder, domain)
    assert encoder.images == 14
    assert [bool((before[0, i] == after[0, i]).all()) for i in range(7)] == [i != 2 for i in range(7)]


@pytest.mark.parametrize("left", [0, 5, 200, -1])
def test_a_damaged_entry_is_rebuilt(domain: Domain, tmp_path: Path, left: int) -> None:
    expected = np.array(compute(Encoder(), domain))
    path = entries(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:left])
    np.testing.assert_array_equal(compute(Encoder(), domain), expected)
    np.testing.assert_array_equal(np.load(path), expected)


def test_an_entry_of_another_length_is_rebuilt(domain: Domain, tmp_path: Path) -> None:
    expected = np.array(compute(Encoder(), domain))
    np.save(entries(tmp_path)[0], expected[:, :5])
    np.testing.assert_array_equal(compute(Encoder(), domain), expected)


def test_a_failure_in_the_middle_leaves_nothing(domain: Domain, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the encoder fails"):
        compute(Encoder(fail_after=5), domain)
    assert entries(tmp_path) == []


def test_the_flipped_view_is_of_the_mirrored_image() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 18, 18, 3), dtype=np.uint8)
    both = compute(Encoder(), domain_of(images), views=BOTH)
    mirrored = compute(Encoder(), domain_of(np.ascontiguousarray(images[:, :, ::-1])))
    assert both.shape[:2] == (2, 5)
    np.testing.assert_array_equal(both[1], mirrored[0])
    assert not np.array_equal(both[0], both[1])


def test_the_batch_size_changes_rounding_at_most(domain: Domain) -> None:
    whole = features(Encoder(), domain, PREPROCESS, key="a", views=BOTH, bf16=False, device="cpu", batch_size=64)
    single = features(Encoder(), domain, PREPROCESS, key="b", views=BOTH, bf16=False, device="cpu", batch_size=1)
    np.testing.assert_allclose(whole, single, atol=1e-5)


def test_bf16_rounds_and_returns_float32(domain: Domain) -> None:
    exact, rounded = compute(Encoder(), domain), compute(Encoder(), domain, bf16=True)
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded, exact, atol=0.05)
    assert not np.array_equal(rounded, exact)


def in_memory_with_a_warning(domain: Domain, caplog: pytest.LogCaptureFixture) -> None:
    encoder = Encoder()
    with caplog.at_level(logging.WARNING, logger="acclimate"):
        found = compute(encoder, domain, views=BOTH)
    (record,) = caplog.records
    assert record.getMessage().startswith("The features of photos are not cached, because ")
    assert not isinstance(found, np.memmap)
    assert not found.flags.writeable
    assert found.shape == (2, 7, 4, 7, 7)
    caplog.clear()


def test_a_folder_that_cannot_be_written_to(domain: Domain, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    in_memory_with_a_warning(domain, caplog)


def test_a_full_disk(
    domain: Domain, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
        in_memory_with_a_warning(domain, caplog)
    assert entries(tmp_path) == []
    monkeypatch.setattr(os, "fsync", _no_space)
    in_memory_with_a_warning(domain, caplog)
    assert entries(tmp_path) == []


def _no_space(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def test_writers_of_the_same_entry_do_not_disturb_each_other(domain: Domain, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        encoders = [Encoder() for _ in range(4)]
        found = list(pool.map(lambda encoder: compute(encoder, domain, views=BOTH), encoders))
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)
    (path,) = entries(tmp_path)
    np.testing.assert_array_equal(np.load(path), found[0])


def test_vectors_of_a_whole_network_are_cached_too(domain: Domain) -> None:
    encoder = nn.Sequential(Encoder(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = features(encoder, domain, PREPROCESS, key="a", views=BOTH, bf16=False, device="cpu", batch_size=3)
    assert found.shape == (2, 7, 4)
    maps = compute(Encoder(), domain, views=BOTH)
    np.testing.assert_allclose(found, maps.mean((-2, -1)), atol=1e-5)


def test_progress_counts_batches(domain: Domain) -> None:
    seen: list[tuple[str, int]] = []

    def track(items: Iterable[T], description: str, total: int) -> Iterable[T]:
        kept = list(items)
        seen.append((description, total))
        assert len(kept) == total
        return kept

    features(Encoder(), domain, PREPROCESS, key="a", bf16=False, device="cpu", batch_size=3, track=track)
    assert seen == [("Computing features", 3)]


def test_vectors_and_broken_images_are_refused(domain: Domain, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds feature vectors"):
        compute(Encoder(), domain_of(np.zeros((3, 4), dtype=np.float32), "vectors"))
    assert isinstance(domain.items, tuple)
    domain.items[5].write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"5\.png"):
        compute(Encoder(), domain)
    assert entries(tmp_path) == []
