"""Decoding every kind of image a folder may hold, the views of evaluation and training, and broken files."""

import json
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import kstest
from torchvision.transforms import RandomResizedCrop

from acclimate.choices import Augment, Interpolation
from acclimate.data import broken, decode
from acclimate.data import inputs as drawn_from
from acclimate.data import preprocess as preparing
from acclimate.data.broken import BrokenImages
from acclimate.data.decode import BrokenImageError, picture, pictured, read_image
from acclimate.data.domain import Domain, LabelledDomain, labelled
from acclimate.data.inputs import ImageInputs
from acclimate.data.preprocess import Preprocess, in_view
from acclimate.data.read import domain_of, read_source, read_target
from acclimate.errors import DataError, OptionError
from acclimate.files import cache_folder
from acclimate.progress import T, Track, silent

RGB = Preprocess(resize=8, size=6, mean=(0.5, 0.4, 0.3), std=(0.5, 0.2, 0.1))


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def colour(image: Image.Image) -> tuple[int, ...]:
    """The one colour of a uniform RGB image."""
    assert image.mode == "RGB"
    colours = np.unique(np.asarray(image).reshape(-1, 3), axis=0)
    assert len(colours) == 1
    return tuple(colours[0].tolist())


class TestModes:
    @pytest.mark.parametrize(
        ("mode", "value", "expected", "suffix"),
        [
            ("1", 1, (255, 255, 255), "png"),
            ("1", 0, (0, 0, 0), "tif"),
            ("L", 77, (77, 77, 77), "png"),
            ("RGB", (1, 2, 3), (1, 2, 3), "bmp"),
            ("RGBA", (200, 0, 0, 0), (255, 255, 255), "png"),
            ("RGBA", (200, 0, 0, 255), (200, 0, 0), "webp"),
            ("RGBA", (0, 0, 0, 51), (204, 204, 204), "png"),
            ("LA", (100, 0), (255, 255, 255), "png"),
            ("LA", (100, 255), (100, 100, 100), "png"),
            ("CMYK", (255, 0, 0, 0), (0, 255, 255), "tif"),
            ("CMYK", (0, 0, 0, 255), (0, 0, 0), "tif"),
            ("I;16", 32768, (128, 128, 128), "png"),
            ("I;16", 65535, (255, 255, 255), "tif"),
            ("I;16", 257, (1, 1, 1), "png"),
            ("I", 32768, (128, 128, 128), "tif"),
            ("I", 65535, (255, 255, 255), "tif"),
            ("F", 0.5, (128, 128, 128), "tif"),
            ("F", 128.0, (128, 128, 128), "tif"),
        ],
    )
    def test_uniform(self, tmp_path: Path, mode: str, value: int, expected: tuple[int, ...], suffix: str) -> None:
        options = {"lossless": True} if suffix == "webp" else {}
        path = saved(Image.new(mode, (4, 3), value), tmp_path / f"x.{suffix}", **options)
        image = read_image(path)
        assert image.size == (4, 3)
        assert colour(image) == expected

    def test_cmyk_jpeg_as_adobe_writes_it(self, tmp_path: Path) -> None:
        path = saved(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), tmp_path / "x.jpg")
        assert np.allclose(colour(read_image(path)), (0, 255, 255), atol=3)

    def test_big_endian_sixteen_bits(self, tmp_path: Path) -> None:
        image = Image.frombytes("I;16B", (2, 1), struct.pack(">HH", 0, 32768))
        assert np.asarray(read_image(saved(image, tmp_path / "x.tif")))[0, :, 0].tolist() == [0, 128]

    def test_values_beyond_any_usual_range_use_their_own(self, tmp_path: Path) -> None:
        values = np.array([[-1000, 1000, 0, np.nan]], np.float32)
        path = saved(Image.fromarray(values), tmp_path / "x.tif")
        assert np.asarray(read_image(path))[0, :, 0].tolist() == [0, 255, 128, 128]
        deep = saved(Image.fromarray(np.array([[0, 100_000]], np.int32)), tmp_path / "y.tif")
        assert np.asarray(read_image(deep))[0, :, 0].tolist() == [0, 255]

    @pytest.mark.parametrize("transparency", [0, b"\x00\xff"])
    def test_transparent_palette(self, tmp_path: Path, transparency: int | bytes) -> None:
        image = Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 40, 50, 60])
        image.putpixel((1, 0), 1)
        path = saved(image, tmp_path / "x.png", transparency=transparency)
        assert np.asarray(read_image(path)).tolist() == [[[255, 255, 255], [40, 50, 60]]]

    def test_transparent_colour_key(self, tmp_path: Path) -> None:
        image = Image.new("RGB", (2, 1), (1, 2, 3))
        image.putpixel((1, 0), (9, 9, 9))
        path = saved(image, tmp_path / "x.png", transparency=(1, 2, 3))
        assert np.asarray(read_image(path)).tolist() == [[[255, 255, 255], [9, 9, 9]]]

    @pytest.mark.parametrize("suffix", ["gif", "tif", "webp", "png"])
    def test_first_frame(self, tmp_path: Path, suffix: str) -> None:
        frames = [Image.new("RGB", (4, 4), name) for name in ("red", "blue")]
        options = {"lossless": True} if suffix == "webp" else {}
        path = saved(frames[0], tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:], **options)
        assert colour(read_image(path)) == (255, 0, 0)

    def test_exif_orientation(self, tmp_path: Path) -> None:
        image = Image.new("RGB", (2, 1))
        image.putpixel((0, 0), (255, 0, 0))
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was turned: the left edge is the top
        turned = read_image(saved(image, tmp_path / "x.png", exif=exif))
        assert turned.size == (1, 2)
        assert turned.getpixel((0, 0)) == (255, 0, 0)

    def test_damaged_exif_is_no_reason_to_refuse(self, tmp_path: Path) -> None:
        path = saved(Image.new("RGB", (4, 4), "red"), tmp_path / "x.png", exif=b"Exif\0\0XX")
        assert colour(read_image(path)) == (255, 0, 0)

    def test_wrong_extension(self, tmp_path: Path) -> None:
        saved(Image.new("RGB", (4, 4), "red"), tmp_path / "x.png").rename(tmp_path / "x.jpg")
        assert colour(read_image(str(tmp_path / "x.jpg"))) == (255, 0, 0)

    def test_scaled_decoding_stays_large_enough(self, tmp_path: Path) -> None:
        path = saved(Image.fromarray(noise(300, 400, 3)), tmp_path / "x.jpg")
        assert read_image(path).size == (400, 300)
        assert read_image(path, at_least=75).size == (100, 75)
        assert read_image(path, at_least=76).size == (200, 150)
        assert read_image(path, at_least=301).size == (400, 300)

    def test_scaled_decoding_looks_the_same(self, tmp_path: Path) -> None:
        ramp = np.linspace(0, 255, 640).astype(np.uint8)[None, :, None].repeat(640, 0).repeat(3, 2)
        path = saved(Image.fromarray(ramp), tmp_path / "x.jpg")
        full, fast = (RGB.resized(image).astype(int) for image in (read_image(path), read_image(path, at_least=8)))
        assert np.abs(full - fast).max() <= 3

    @pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3), (4, 5, 4)])
    def test_arrays_take_the_same_path(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        x = noise(2, *shape)
        path = saved(Image.fromarray(x[1]), tmp_path / "x.png")
        assert picture(domain_of(x), 1).tobytes() == read_image(path).tobytes()
        assert picture(domain_of([path]), 0).tobytes() == read_image(path).tobytes()


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return start + struct.pack(">I", 1000) + b"IDAT"


def reason(path: Path) -> str:
    with pytest.raises(BrokenImageError) as caught:
        read_image(path)
    assert str(caught.value) == f"{path} cannot be read as an image ({caught.value.reason}): replace or remove it."
    return caught.value.reason


class TestBrokenFiles:
    def test_missing_empty_and_foreign(self, tmp_path: Path) -> None:
        assert reason(tmp_path / "no.png") == "there is no such file"
        (tmp_path / "empty.png").touch()
        assert reason(tmp_path / "empty.png") == "the file is empty"
        (tmp_path / "page.jpg").write_text("<html></html>")
        assert reason(tmp_path / "page.jpg") == "it is not a JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF or HEIC image"
        (tmp_path / "program.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n%%EndComments\n")
        assert reason(tmp_path / "program.jpg") == "it is not a JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF or HEIC image"

    @pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "gif", "webp"])
    @pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
    def test_truncated(self, tmp_path: Path, suffix: str, share: float) -> None:
        path = saved(Image.fromarray(noise(64, 64, 3)), tmp_path / f"x.{suffix}")
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        assert reason(path)

    def test_truncated_jpeg_is_called_so(self, tmp_path: Path) -> None:
        path = saved(Image.fromarray(noise(64, 64, 3)), tmp_path / "x.jpg")
        path.write_bytes(path.read_bytes()[:-500])
        assert reason(path) == "the file is truncated"

    def test_not_allowed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(path: Path, most: int) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(decode, "open_regular", refuse)
        assert reason(tmp_path / "x.png") == "it may not be opened"

    def test_absurd_size_is_known_from_the_header(self, tmp_path: Path) -> None:
        (tmp_path / "x.png").write_bytes(png_header(40_000, 40_000))
        assert reason(tmp_path / "x.png") == "it has 1,600,000,000 pixels, more than 178,956,970"

    @pytest.mark.parametrize("suffix", ["png", "tif", "gif", "webp", "jpg"])
    def test_large_images_pass_without_a_warning(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
    ) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
        monkeypatch.setattr(decode, "MAX_PIXELS", 100)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            path = saved(Image.new("RGB", (10, 10)), tmp_path / f"x.{suffix}")
            assert read_image(path).size == (10, 10)
            assert reason(saved(Image.new("RGB", (10, 11)), path)) == "it has 110 pixels, more than 100"
        assert caught == []
        assert Image.MAX_IMAGE_PIXELS == 50

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(
        suffix=st.sampled_from(["jpeg", "png", "bmp", "tiff", "gif", "webp"]),
        edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8),
    )
    def test_damage_ends_in_an_image_or_a_reason(
        self, suffix: str, edits: list[tuple[float, int]], tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = saved(Image.fromarray(noise(9, 11, 3)), tmp_path_factory.mktemp("damage") / "x", format=suffix)
        content = bytearray(path.read_bytes())
        for where, byte in edits:
            content[int(where * (len(content) - 1))] = byte
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on metadata
            outcome = broken._broken_reason(path) or read_image(path).mode
        assert outcome == "RGB" or len(outcome) > 3


class TestPreprocess:
    def test_json_round_trip(self) -> None:
        again = Preprocess(**json.loads(json.dumps(asdict(RGB))))
        assert again == RGB
        assert hash(again) == hash(RGB)

    @pytest.mark.parametrize(("resize", "size", "mean"), [(8, 9, (0.5,) * 3), (8, 0, (0.5,) * 3), (8, 8, (0.5,))])
    def test_what_does_not_fit(self, resize: int, size: int, mean: tuple[float, ...]) -> None:
        with pytest.raises(OptionError):
            Preprocess(resize, size, mean, (0.5, 0.5, 0.5))

    @pytest.mark.parametrize(
        ("aspect", "width", "height", "shape"),
        [
            ("keep", 40, 20, (8, 16, 3)),
            ("keep", 20, 50, (20, 8, 3)),
            ("keep", 3, 3, (8, 8, 3)),
            ("squash", 40, 20, (8, 8, 3)),
            ("keep", 1000, 1, (8, 64, 3)),
            ("keep", 1, 1000, (64, 8, 3)),
        ],
    )
    def test_resized_sides(self, aspect: str, width: int, height: int, shape: tuple[int, ...]) -> None:
        preprocess = Preprocess(8, 6, RGB.mean, RGB.std, aspect=aspect)
        resized = preprocess.resized(Image.new("RGB", (width, height)))
        assert resized.shape == shape
        assert resized.dtype == np.uint8
        assert preprocess.plain(resized).shape == (6, 6, 3)

    def test_no_resizing_changes_no_pixel(self) -> None:
        x = noise(8, 8, 3)
        assert np.array_equal(RGB.resized(Image.fromarray(x)), x)
        assert np.array_equal(RGB.plain(x), x[1:7, 1:7])

    def test_grey(self) -> None:
        grey = Preprocess(8, 8, (0.5,), (0.5,), channels=1)
        x = noise(8, 8)
        assert np.array_equal(grey.resized(Image.fromarray(x).convert("RGB")), x[:, :, None])

    def test_interpolation(self) -> None:
        image = Image.fromarray(noise(4, 4, 3))
        results = {
            Preprocess(8, 8, RGB.mean, RGB.std, interpolation=name).resized(image).tobytes()
            for name in ("nearest", "bilinear", "bicubic", "lanczos")
        }
        assert len(results) == 4

    def test_normalised(self) -> None:
        views = noise(2, 4, 5, 3)
        x = RGB.normalised(views)
        assert x.shape == (2, 3, 4, 5)
        assert x.dtype == torch.float32
        assert x.is_contiguous(memory_format=torch.channels_last)
        expected = (views / 255 - np.array(RGB.mean)) / np.array(RGB.std)
        assert np.allclose(x.numpy(), expected.transpose(0, 3, 1, 2), atol=1e-5)

    def test_flip(self) -> None:
        x = noise(8, 8, 3)
        plain = RGB.plain(x)
        seen = [RGB.augmented(x, "flip", np.random.default_rng(seed)) for seed in range(200)]
        mirrored = [np.array_equal(view, plain[:, ::-1]) for view in seen]
        assert all(m or np.array_equal(view, plain) for m, view in zip(mirrored, seen, strict=True))
        assert 70 < sum(mirrored) < 130

    def test_no_augmentation_is_the_plain_view(self) -> None:
        x = noise(8, 8, 3)
        assert np.array_equal(RGB.augmented(x, "none", np.random.default_rng(0)), RGB.plain(x))

    @pytest.mark.parametrize(("augment", "shape"), [("crop", (8, 11, 3)), ("crop+flip", (8, 8, 1))])
    def test_random_crops(self, augment: Augment, shape: tuple[int, ...]) -> None:
        channels = shape[2]
        preprocess = Preprocess(8, 6, (0.5,) * channels, (0.5,) * channels, channels=channels)
        crops = [preprocess.augmented(noise(*shape), augment, np.random.default_rng(seed)) for seed in range(20)]
        assert {crop.shape for crop in crops} == {(6, 6, channels)}
        assert len({crop.tobytes() for crop in crops}) > 15
        again = preprocess.augmented(noise(*shape), augment, np.random.default_rng(3))
        assert np.array_equal(again, crops[3])

    @pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("size", [20, 90])
    def test_random_crops_are_pillows(self, interpolation: Interpolation, channels: int, size: int) -> None:
        half = (0.5,) * channels
        preprocess = Preprocess(90, size, half, half, interpolation, channels=channels)
        x = noise(90, 120, channels)
        x.setflags(write=False)  # as in a memory map
        for seed in range(5):
            box = preparing._random_box(120, 90, np.random.default_rng(seed))
            image = Image.fromarray(x.squeeze()).crop(box)
            expected = np.asarray(image.resize((size, size), Image.Resampling[interpolation.upper()]))
            view = preprocess.augmented(x, "crop", np.random.default_rng(seed))
            difference = np.abs(view.squeeze().astype(int) - expected)
            assert difference.max() <= 2
            assert difference.mean() < 0.05

    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(width=st.integers(1, 500), height=st.integers(1, 500), seed=st.integers(0, 10**6))
    def test_random_boxes_lie_inside(self, width: int, height: int, seed: int) -> None:
        left, top, right, bottom = preparing._random_box(width, height, np.random.default_rng(seed))
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height

    def test_random_boxes_are_spread_like_torchvisions(self) -> None:
        torch.manual_seed(0)
        image = torch.empty(1, 300, 400)
        theirs = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)]
        boxes = [preparing._random_box(400, 300, np.random.default_rng(seed)) for seed in range(3000)]
        ours = [(top, left, bottom - top, right - left) for left, top, right, bottom in boxes]
        for column in range(4):
            a, b = np.array(ours)[:, column], np.array(theirs)[:, column]
            assert kstest(a, b).pvalue > 0.001
        share = np.array([down * across for _, _, down, across in ours]) / image.numel()
        assert 0.078 < share.min() < 0.09
        assert share.max() > 0.95

    def test_views_of_features(self) -> None:
        x = torch.arange(6.0).view(1, 1, 2, 3)
        assert torch.equal(in_view(x, "plain"), x)
        assert in_view(x, "flip").flatten().tolist() == [2, 1, 0, 5, 4, 3]


@pytest.fixture
def photos(tmp_path: Path) -> Domain:
    for i in range(12):
        saved(Image.fromarray(noise(10, 9, 3, seed=i)), tmp_path / f"{i:02}.png")
    return domain_of(sorted(tmp_path.glob("*.png")))


class TestImageInputs:
    def test_evaluation_view(self, photos: Domain) -> None:
        inputs, index = ImageInputs(photos, RGB, "crop+flip"), np.array([5, 0, 5])
        x = inputs.batch(index, None)
        views = np.stack([RGB.plain(RGB.resized(picture(photos, i))) for i in index])
        assert torch.equal(x, RGB.normalised(views))
        assert len(inputs) == 12

    @pytest.mark.parametrize("augment", ["none", "flip", "crop", "crop+flip"])
    def test_files_and_arrays_agree(self, photos: Domain, augment: Augment) -> None:
        array = domain_of(np.stack([np.asarray(picture(photos, i)) for i in range(12)]))
        a, b = (ImageInputs(domain, RGB, augment) for domain in (photos, array))
        index = np.arange(12)
        assert torch.equal(a.batch(index, np.random.default_rng(0)), b.batch(index, np.random.default_rng(0)))

    def test_views_depend_on_the_generator_alone(self, photos: Domain) -> None:
        inputs, index = ImageInputs(photos, RGB, "crop+flip"), np.arange(12)
        x = inputs.batch(index, np.random.default_rng(1))
        assert torch.equal(x, inputs.batch(index, np.random.default_rng(1)))  # now from memory
        assert not torch.equal(x, inputs.batch(index, np.random.default_rng(2)))
        assert torch.equal(x, ImageInputs(photos, RGB, "crop+flip", memory=0).batch(index, np.random.default_rng(1)))
        rng = np.random.default_rng(1)
        assert not torch.equal(inputs.batch(index, rng), inputs.batch(index, rng))

    def test_views_do_not_depend_on_which_thread_is_first(
        self, photos: Domain, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = ImageInputs(photos, RGB, "crop").batch(np.arange(8), np.random.default_rng(0))
        monkeypatch.setattr(drawn_from, "THREADS", 8)

        def slowly(domain: Domain, position: int, at_least: int | None = None) -> AbstractContextManager[Image.Image]:
            time.sleep(0.005 * (8 - position))
            return pictured(domain, position, at_least)

        monkeypatch.setattr(drawn_from, "pictured", slowly)
        assert torch.equal(ImageInputs(photos, RGB, "crop").batch(np.arange(8), np.random.default_rng(0)), expected)

    @pytest.mark.parametrize(("memory", "decoded"), [(2**30, 12), (5 * 8 * 9 * 3, 12 + 7), (0, 24)])
    def test_decoded_once_while_memory_lasts(
        self, photos: Domain, monkeypatch: pytest.MonkeyPatch, memory: int, decoded: int
    ) -> None:
        calls, lock = [], threading.Lock()

        def counted(domain: Domain, position: int, at_least: int | None = None) -> AbstractContextManager[Image.Image]:
            with lock:
                calls.append(position)
            return pictured(domain, position, at_least)

        monkeypatch.setattr(drawn_from, "pictured", counted)
        inputs = ImageInputs(photos, RGB, memory=memory)
        for _ in range(2):
            inputs.batch(np.arange(12), None)
        assert len(calls) == decoded

    def test_broken_file(self, photos: Domain) -> None:
        Path(photos.items[3]).write_text("x")
        with pytest.raises(BrokenImageError, match=r"03\.png cannot be read as an image"):
            ImageInputs(photos, RGB).batch(np.arange(12), None)

    def test_vectors(self) -> None:
        with pytest.raises(DataError, match=r"^x holds feature vectors: give images"):
            ImageInputs(domain_of(np.eye(3)), RGB)


class Steps:
    """A `Track` that counts."""

    def __init__(self) -> None:
        self.seen = 0
        self.total = 0

    def __call__(self, items: Iterable[T], description: str, total: int) -> Iterable[T]:
        self.total = total
        for item in items:
            self.seen += 1
            yield item


def found_by_checking(domain: Domain, track: Track = silent) -> dict[int, str]:
    broken = BrokenImages(domain, most=1)
    broken.check(track)
    assert broken.known
    return broken.reasons


class TestBrokenImages:
    @pytest.fixture
    def source(self, photos: Domain) -> LabelledDomain:
        return labelled(photos, ["cat"] * 11 + ["dog"])

    def test_positions_and_reasons(self, photos: Domain) -> None:
        Path(photos.items[3]).write_bytes(b"")
        Path(photos.items[7]).unlink()
        steps = Steps()
        assert found_by_checking(photos, steps) == {3: "the file is empty", 7: "there is no such file"}
        assert steps.seen == steps.total == 12

    def test_remembered_until_a_file_changes(self, photos: Domain) -> None:
        Path(photos.items[3]).write_bytes(b"")
        first = found_by_checking(photos)
        again = Steps()
        assert found_by_checking(photos, again) == first
        assert again.seen == 0
        Path(photos.items[5]).write_bytes(b"no image")
        assert set(found_by_checking(domain_of(photos.items), again)) == {3, 5}  # who reads the folder again notices
        assert again.seen == 12

    def test_a_mended_permission_is_noticed(self, photos: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
        opened = decode.open_regular

        def refuse(path: str, most: int) -> IO[bytes]:
            if path.endswith("03.png"):
                raise PermissionError(13, "Permission denied", path)
            return opened(path, most)

        with monkeypatch.context() as patch:
            patch.setattr(decode, "open_regular", refuse)
            assert found_by_checking(photos) == {3: "it may not be opened"}
        assert found_by_checking(photos) == {}

    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b'{"positions": [99]}', b'{"positions": ["3"]}', b'{"positions": [4], "checksum": 1}', b"\xff"],
    )
    def test_a_damaged_record_is_rebuilt(self, photos: Domain, content: bytes) -> None:
        Path(photos.items[3]).write_bytes(b"")
        found_by_checking(photos)
        (record,) = (cache_folder() / "broken").iterdir()
        record.write_bytes(content)
        assert set(found_by_checking(photos)) == {3}
        assert json.loads(record.read_bytes())["positions"] == [3]

    def test_a_cache_that_cannot_be_written(self, photos: Domain, monkeypatch: pytest.MonkeyPatch) -> None:
        blocked = Path(photos.items[0])  # a file where the folder should be
        monkeypatch.setenv("ACCLIMATE_CACHE", str(blocked))
        assert found_by_checking(photos) == {}

    def test_arrays_cannot_be_broken(self) -> None:
        steps = Steps()
        assert found_by_checking(domain_of(noise(3, 4, 4)), steps) == {}
        assert steps.total == 0

    def test_a_few_are_named_and_left_out(self, source: LabelledDomain) -> None:
        Path(source.domain.items[4]).write_bytes(b"")
        for data in (source, source.domain):
            broken = BrokenImages(data)
            broken.check()
            assert broken.readable.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]
            assert broken.readable.dtype == np.int64
            assert broken.skipped == [(source.domain.names[4], "the file is empty")]
            assert len(data.select(broken.readable)) == 11

    def test_too_many(self, photos: Domain) -> None:
        for i in (4, 8):
            Path(photos.items[i]).write_bytes(b"")
        expected = f"2 of the 12 images of x cannot be read, for example '{photos.names[4]}' (the file is empty): "
        for _ in range(2):  # found, and remembered
            with pytest.raises(DataError) as caught:
                BrokenImages(photos).check()
            assert str(caught.value) == expected + "replace or remove them."

    def test_whoever_notes_too_many_stops_and_the_rest_is_counted(self, photos: Domain) -> None:
        for i in (2, 5, 9):
            Path(photos.items[i]).write_bytes(b"")
        broken, noted = BrokenImages(photos), []

        def work() -> None:
            with broken.found():
                for i in (9, 5, 2):
                    noted.append(i)
                    broken.note(i, "the file is empty")

        for _ in range(2):  # what is known to be unusable is not begun again
            with pytest.raises(DataError, match=r"^3 of the 12 images of x cannot be read, for example '.*02\.png'"):
                work()
            assert noted == [9, 5]

    def test_what_is_known_is_not_looked_for_again(self, photos: Domain) -> None:
        broken = BrokenImages(photos)
        with broken.found():
            broken.note(4, "the file is empty")
        assert broken.known
        steps = Steps()
        broken.check(steps)
        assert steps.total == 0
        assert broken.skipped == [(photos.names[4], "the file is empty")]

    def test_nothing_is_known_after_an_interrupt(self, photos: Domain) -> None:
        broken = BrokenImages(photos)
        with pytest.raises(KeyboardInterrupt), broken.found():
            raise KeyboardInterrupt
        assert not broken.known
        assert not (cache_folder() / "broken").exists()

    def test_a_tenth_is_not_too_many(self, photos: Domain) -> None:
        Path(photos.items[4]).write_bytes(b"")
        broken = BrokenImages(photos.select(range(10)))
        broken.check()
        assert len(broken.readable) == 9

    def test_none_may_be_broken(self, photos: Domain) -> None:
        Path(photos.items[4]).write_bytes(b"")
        with pytest.raises(DataError, match=r"^1 of the 12 images of x cannot be read"):
            BrokenImages(photos, most=0).check()

    def test_a_whole_class(self, source: LabelledDomain) -> None:
        Path(source.domain.items[11]).write_bytes(b"")
        for _ in range(2):
            with pytest.raises(DataError, match=r"^No image of the class 'dog' in x can be read: replace"):
                BrokenImages(source).check()
        BrokenImages(source.domain).check()


def test_class_folders_to_batches(tmp_path: Path) -> None:
    for i, name in enumerate(("cat/1.png", "dog/1.jpg")):
        (tmp_path / "pets" / name).parent.mkdir(parents=True)
        saved(Image.new("RGB", (20, 10), (0, 255 * i, 0)), tmp_path / "pets" / name)
    source = read_source(tmp_path / "pets")
    assert len(read_target(tmp_path / "pets")) == 2
    x = ImageInputs(source.domain, RGB).batch(np.array([1, 0]), None)
    green = x[:, 1].mean((1, 2)) * RGB.std[1] + RGB.mean[1]
    assert green.tolist() == pytest.approx([1, 0], abs=0.02)
