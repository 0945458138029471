"""Files that are no regular files, and small images that would take much memory: refused with a reason, at once."""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from acclimate.data import decode
from acclimate.data.broken import BrokenImages
from acclimate.data.decode import BrokenImageError, decoded, read_image
from acclimate.data.read import read_source, read_target
from acclimate.data.room import Room
from acclimate.errors import DataError

SIDE = 13_000  # pixels: below the limit of pixels


def reason(path: Path, at_least: int | None = 1) -> str:
    with pytest.raises(BrokenImageError) as caught:
        read_image(path, at_least)
    return caught.value.reason


class TestSpecialFiles:
    @pytest.fixture
    def pipe(self, tmp_path: Path) -> Path:
        os.mkfifo(tmp_path / "pipe")
        return tmp_path / "pipe"

    def test_a_link_to_a_pipe_is_a_broken_image(self, tmp_path: Path, pipe: Path) -> None:
        folder = tmp_path / "images"
        folder.mkdir()
        for i in range(11):
            Image.new("RGB", (4, 4)).save(folder / f"{i:02}.png")
        (folder / "pipe.png").symlink_to(pipe)
        broken = BrokenImages(read_target(folder))
        broken.check()
        assert broken.skipped == [("pipe.png", "it is a pipe, a device or a socket, not a regular file")]

    @pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
    def test_a_link_to_a_device(self, tmp_path: Path, device: str) -> None:
        (tmp_path / "x.png").symlink_to(device)
        assert reason(tmp_path / "x.png") == "it is a pipe, a device or a socket, not a regular file"

    def test_a_folder(self, tmp_path: Path) -> None:
        assert reason(tmp_path) == "Is a directory"

    def test_a_sparse_file(self, tmp_path: Path) -> None:
        with (tmp_path / "x.jpg").open("wb") as file:
            file.truncate(6 * 10**9)
        assert reason(tmp_path / "x.jpg") == "it has 6,000,000,000 bytes, more than 536,870,912"

    @pytest.mark.parametrize("suffix", [".txt", ".csv"])
    def test_a_list_that_is_a_pipe_or_too_large(self, tmp_path: Path, pipe: Path, suffix: str) -> None:
        listing = pipe.rename(tmp_path / f"list{suffix}")
        with pytest.raises(DataError, match=f"list{suffix} cannot be read \\(it is a pipe, a device or a socket"):
            read_source(listing)
        listing.unlink()
        with listing.open("wb") as file:
            file.truncate(6 * 10**9)
        with pytest.raises(DataError, match="it has 6,000,000,000 bytes, more than"):
            read_source(listing)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(depth: int, colours: int) -> bytes:
    """The start of a PNG: whoever begins to decode it takes the memory of all its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, depth, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0"))


def tiff(*entries: tuple[int, int, int, int]) -> bytes:
    """A TIFF whose directory has these entries: tag, type, count, value."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4)


def webp(form: bytes, sides: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 22) + b"WEBP" + form + struct.pack("<I", 10) + sides.ljust(10, b"\0")


def jpeg(folder: Path, size: tuple[int, int], **options: object) -> bytes:
    """A JPEG whose header says that it is larger than it is."""
    Image.new("RGB", (16, 16)).save(folder / "small.jpg", **options)
    content = bytearray((folder / "small.jpg").read_bytes())
    at = max(content.find(b"\xff\xc0"), content.find(b"\xff\xc2"))
    content[at + 5 : at + 9] = struct.pack(">HH", *size)
    return bytes(content)


ONE_TILE = ((322, 4, 1, 32_000), (323, 4, 1, 32_000), (324, 4, 1, 8), (325, 4, 1, 8))

BOMBS: dict[str, Callable[[Path], bytes]] = {
    "16-bit grey PNG": lambda _: png(16, 0),
    "RGBA PNG": lambda _: png(8, 6),
    "16-bit grey and alpha PNG": lambda _: png(16, 4),
    "deep TIFF": lambda _: tiff(
        (256, 4, 1, SIDE), (257, 4, 1, SIDE), (258, 3, 1, 32), (259, 3, 1, 8), (262, 3, 1, 1), (339, 3, 1, 2),
        (273, 4, 1, 8), (278, 4, 1, SIDE), (279, 4, 1, 8),
    ),
    "TIFF of one huge tile": lambda _: tiff(
        (256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), *ONE_TILE
    ),
    "lossless WebP": lambda _: webp(b"VP8L", b"\x2f" + ((SIDE - 1) | (SIDE - 1) << 14).to_bytes(4, "little")),
    "WebP with a canvas": lambda _: webp(b"VP8X", bytes(4) + 2 * (SIDE - 1).to_bytes(3, "little")),
    "progressive JPEG": lambda folder: jpeg(folder, (SIDE, SIDE), progressive=True, subsampling=0),
}  # fmt: skip


class TestBombs:
    @pytest.mark.parametrize("name", BOMBS)
    def test_refused_before_anything_is_decoded(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(decode, "_to_rgb", None)
        (tmp_path / "x").write_bytes(BOMBS[name](tmp_path))
        assert reason(tmp_path / "x").startswith("decoding it would take ")

    def test_a_tiff_of_many_numbers(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(tiff((256, 4, 1, 8), (257, 4, 1, 8), (273, 4, 2**30, 8)))
        assert reason(tmp_path / "x") == "its directory has 1,073,741,826 numbers, more than 1,048,576"

    def test_a_large_jpeg_that_is_decoded_at_a_fraction(self, tmp_path: Path) -> None:
        path = tmp_path / "x.jpg"
        path.write_bytes(jpeg(tmp_path, (SIDE, SIDE)))
        assert read_image(path, at_least=1).size == (SIDE // 8, SIDE // 8)

    def test_parts_make_the_same_image(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (31, 17, 4), dtype=np.uint8)
        images = {
            "rgba.png": Image.fromarray(pixels),
            "deep.png": Image.fromarray(pixels[..., 0].astype(np.uint16) * 200),
            "wide.tif": Image.fromarray(pixels[..., 0].astype(np.float32) - 50),
            "palette.gif": Image.fromarray(pixels[..., :3]).quantize(16),
        }
        for name, image in images.items():
            image.save(tmp_path / name)
        whole = {name: read_image(tmp_path / name).tobytes() for name in images}
        for part in (1, 5, 40):
            monkeypatch.setattr(decode, "PART", part)
            assert {name: read_image(tmp_path / name).tobytes() for name in images} == whole


class TestRoom:
    @settings(max_examples=20, deadline=None, derandomize=True, database=None)
    @given(st.lists(st.integers(0, 10), min_size=1, max_size=30))
    def test_threads_never_take_more_than_there_is(self, counts: list[int]) -> None:
        room, lock, taken, most = Room(10), threading.Lock(), [0], [0]

        def work(count: int) -> None:
            with room.taken(count):
                with lock:
                    taken[0] += count
                    most[0] = max(most[0], taken[0])
                with lock:
                    taken[0] -= count

        threads = [threading.Thread(target=work, args=(count,)) for count in counts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        assert most[0] <= 10

    def test_more_than_there_is(self) -> None:
        with pytest.raises(ValueError, match="decoding it would take 3 MB, more than 2 MB"):
            Room(2 * 10**6).taken(3 * 10**6).__enter__()

    def test_room_is_held_while_the_image_is_used_and_given_back_whatever_happens(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        room = Room(1000)
        monkeypatch.setattr(decode, "_room", room)
        Image.new("RGB", (8, 8)).save(tmp_path / "x.bmp")
        second = threading.Thread(target=read_image, args=(tmp_path / "x.bmp",))
        with decoded(tmp_path / "x.bmp"):
            second.start()
            second.join(0.1)
            assert second.is_alive()  # it waits
        second.join(10)
        assert not second.is_alive()
        (tmp_path / "x.bmp").write_bytes((tmp_path / "x.bmp").read_bytes()[:100])
        for _ in range(20):
            assert reason(tmp_path / "x.bmp") == "the file is truncated"
