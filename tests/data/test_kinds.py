"""Nothing that looks like an image vanishes: AVIF and HEIC are read where they can be, and all others are named."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from acclimate.data import apart, kinds, room
from acclimate.data.decode import BrokenImageError, read_image
from acclimate.data.read import read_target, read_targets
from tiny import pictures, refused, succeeds

needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")


def heic_start() -> bytes:
    return (24).to_bytes(4) + b"ftypheic\0\0\0\0mif1heic" + bytes(99)


def gradient(side: int = 32) -> Image.Image:
    ramp = np.linspace(0, 250, side).astype(np.uint8)
    return Image.fromarray(
        np.dstack([np.tile(ramp, (side, 1)), np.tile(ramp[:, None], (1, side)), np.zeros((side, side), np.uint8)])
    )


def avif(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "AVIF", quality=95, speed=10, **options)
    return buffer.getvalue()


@needs_avif
def test_an_avif_is_read_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = gradient()
    (tmp_path / "a.avif").write_bytes(avif(image))
    (tmp_path / "turned.jpg").write_bytes(avif(image, exif=exif))  # whatever its name says
    found, turned = (np.asarray(read_image(tmp_path / name), dtype=int) for name in ("a.avif", "turned.jpg"))
    assert np.abs(found - np.asarray(image, dtype=int)).max() < 16
    assert np.abs(turned - np.rot90(np.asarray(image, dtype=int), -1)).max() < 16
    assert read_target(tmp_path).names == ("a.avif", "turned.jpg")


@needs_avif
def test_an_avif_that_says_it_is_huge_is_not_decoded(tmp_path: Path) -> None:
    content = bytearray(avif(gradient()))
    at = content.index(b"ispe") + 8
    content[at : at + 8] = (13_000).to_bytes(4) * 2
    (tmp_path / "huge.avif").write_bytes(content)
    with pytest.raises(BrokenImageError, match=r"decoding it would take 3,042 MB, more than 900 MB"):
        read_image(tmp_path / "huge.avif")


@needs_avif
@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells how much a process has taken")
def test_an_avif_that_holds_more_than_it_says_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "SPARE", 2**23)
    content = bytearray(avif(Image.new("RGB", (3200, 3200))))
    at = content.index(b"ispe") + 8
    content[at : at + 8] = (16).to_bytes(4) * 2
    (tmp_path / "liar.avif").write_bytes(content)
    with pytest.raises(BrokenImageError, match="not with the memory that its header tells"):
        read_image(tmp_path / "liar.avif")
    monkeypatch.setattr(apart, "SPARE", 2**26)
    (tmp_path / "half.avif").write_bytes(content[: len(content) - 9])
    with pytest.raises(BrokenImageError):
        read_image(tmp_path / "half.avif")


def test_room_for_an_avif_is_taken_before_it_is_decoded() -> None:
    image = Image.new("RGB", (4000, 3000))
    image.format = "AVIF"
    assert room.needed(image, image.size) == 18 * 12_000_000


def test_a_heic_without_its_plugin_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "HEIF", False)
    (tmp_path / "one.jpg").write_bytes(heic_start())
    with pytest.raises(BrokenImageError, match=r"pip install acclimate\[heic\]"):
        read_image(tmp_path / "one.jpg")


def test_an_avif_without_support_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "AVIF", False)
    (tmp_path / "one.avif").write_bytes((24).to_bytes(4) + b"ftypavif\0\0\0\0mif1avif")
    with pytest.raises(BrokenImageError, match="AVIF images need Pillow"):
        read_image(tmp_path / "one.avif")
    assert "AVIF images need Pillow" in str(kinds.unread("one.AVIF"))


def test_a_video_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "one.jpg").write_bytes((24).to_bytes(4) + b"ftypmp42\0\0\0\0mp42isom")
    with pytest.raises(BrokenImageError, match="it is not a JPEG"):
        read_image(tmp_path / "one.jpg")


def test_a_heic_is_read_where_its_plugin_is(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    image = gradient(64)
    image.save(tmp_path / "a.HEIC", "HEIF", quality=95, chroma=444)
    found = np.asarray(read_image(tmp_path / "a.HEIC", at_least=8), dtype=int)
    assert np.abs(found - np.asarray(image, dtype=int)).max() < 16
    assert read_target(tmp_path).names == ("a.HEIC",)


# --- folders -------------------------------------------------------------------------------------------------------


@pytest.fixture
def camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A target with files of a telephone, of a camera and of a program beside its images."""
    monkeypatch.setattr(kinds, "HEIF", False)
    folder = pictures(tmp_path / "target", n=8, shade=20)
    (folder / "a" / "IMG_1.HEIC").write_bytes(heic_start())
    (folder / "b" / "IMG_2.CR2").write_bytes(b"II*\0")
    (folder / "plan.psd").write_bytes(b"8BPS")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_fit_names_all_that_looks_like_an_image(camera: Path, tmp_path: Path) -> None:
    source, out = pictures(tmp_path / "source"), tmp_path / "run"
    given = ("--source", source, "--target", camera, "--backbone", "lenet", "--bottleneck", "8", "--steps", "1")
    told = succeeds("fit", *given, "--out", out).stderr
    assert "3 images that cannot be read are left out; skipped.csv in the run directory names them." in told
    with (out / "skipped.csv").open() as file:
        reasons = {row["path"].rpartition(": ")[2]: row["reason"] for row in csv.DictReader(file)}
    assert [*reasons] == ["a/IMG_1.HEIC", "b/IMG_2.CR2", "plan.psd"]
    assert reasons["a/IMG_1.HEIC"] == kinds.NO_HEIF
    assert "export it as a JPEG or PNG" in reasons["plan.psd"]
    said = succeeds("predict", out, camera)
    assert "a/IMG_1.HEIC is left out: HEIC images need a plug-in" in said.stderr
    assert len(said.stdout.splitlines()) == 1 + 24


def test_several_folders_keep_what_is_not_read(camera: Path) -> None:
    found = read_targets([str(camera), str(camera / "a")])
    assert {name for name, _ in found.unread} >= {str(camera / "a" / "IMG_1.HEIC"), str(camera / "plan.psd")}


def test_a_folder_of_such_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "HEIF", False)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.heic").write_bytes(heic_start())
    said = refused("fit", "--source", tmp_path / "photos", "--target", tmp_path / "photos", "--out", tmp_path / "run")
    assert "holds no images that can be read, only such as '1.heic' (HEIC images need a plug-in" in said
