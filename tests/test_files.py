"""Files are written whole, to names that nobody can guess; and where the cache lies."""

from __future__ import annotations

import json
import math
import os
import secrets
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acclimate.files import (
    cache_folder,
    leftovers,
    open_no_follow,
    replacing,
    write_json,
    write_jsonl,
    write_whole,
)
from acclimate.locks import locked
from acclimate.runs.files import write_skipped
from acclimate.training import Checkpoint

WRITERS: dict[str, Callable[[Path, str], None]] = {
    "bytes": lambda path, word: write_whole(path, word.encode()),
    "JSON": lambda path, word: write_json(path, [word]),
    "JSONL": lambda path, word: write_jsonl(path, [{"word": word}]),
    "CSV": lambda path, word: write_skipped(path, [(word, "")]),
    "checkpoint": lambda path, word: Checkpoint({word: torch.zeros(2)}, 0, 0).save(path),
}
every_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


@pytest.fixture
def _umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@every_writer
def test_what_is_written_takes_the_place_of_the_old(write: Callable[[Path, str], None], tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, "former")
    write(path, "latter")
    assert b"latter" in path.read_bytes()
    assert b"former" not in path.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


@every_writer
@pytest.mark.usefixtures("_umask")
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
def test_the_umask_says_who_may_read_it(write: Callable[[Path, str], None], tmp_path: Path) -> None:
    write(tmp_path / "file", "word")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


@every_writer
def test_a_disk_that_fails_leaves_the_old_file_and_no_other(
    write: Callable[[Path, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(path, "new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_value_that_json_does_not_have_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="JSON"):
        write_jsonl(path, [{"term": 1.0}, {"term": float("nan")}])
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_whole_makes_the_folder(tmp_path: Path) -> None:
    write_whole(tmp_path / "a" / "b" / "file", b"content", durable=False)
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"content"


# --- JSON ----------------------------------------------------------------------------------------------------------

# Whatever a disk, a list or an archive can hold: any text, and any bytes as Python reads them from a file system.
nasty = st.text() | st.binary().map(lambda name: name.decode("utf-8", "surrogateescape"))

files = settings(max_examples=30)  # each writes a file and waits for the disk


def test_json_is_readable_by_people(tmp_path: Path) -> None:
    value = {"z": "Käse", "a": {"confusion": [[1, -2], [3, 4.5e-7]], "none": [], "names": ["[1,", "2]"]}}
    write_json(tmp_path / "r.json", value)
    text = (tmp_path / "r.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert text.startswith('{\n  "z": "Käse",\n  "a": {\n    "confusion": [\n      [1, -2],\n      [3, 4.5e-07]\n    ]')
    assert text.endswith("}\n")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | nasty,
    lambda inner: st.lists(inner) | st.dictionaries(nasty, inner),
    max_leaves=12,
)


@files
@given(json_values)
def test_json_reads_back(value: object) -> None:
    with TemporaryDirectory() as folder:
        write_json(Path(folder) / "value.json", value)
        assert json.loads((Path(folder) / "value.json").read_text(encoding="utf-8")) == value


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_json_refuses_what_json_does_not_have(tmp_path: Path, bad: float) -> None:
    path = tmp_path / "r.json"
    write_json(path, {"accuracy": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"accuracy": [0.5, bad]})
    assert json.loads(path.read_text()) == {"accuracy": 0.5}
    assert list(tmp_path.iterdir()) == [path]


# --- links ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file of somebody else's, which a link in the folder that is written to may lead to."""
    path = tmp_path / "victim"
    path.write_bytes(b"precious")
    return path


@every_writer
def test_a_link_at_the_place_of_the_file_is_replaced(
    write: Callable[[Path, str], None], tmp_path: Path, victim: Path
) -> None:
    path = tmp_path / "file"
    path.symlink_to(victim)
    write(path, "word")
    assert not path.is_symlink()
    assert victim.read_bytes() == b"precious"


@every_writer
def test_a_link_at_a_name_that_was_guessed_is_not_followed(
    write: Callable[[Path, str], None], tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    monkeypatch.setattr(secrets, "token_hex", lambda n: "0" * 2 * n)
    with replacing(path) as guessed:
        pass
    guessed.symlink_to(victim)
    path.unlink()
    with pytest.raises(FileExistsError):
        write(path, "word")
    assert not path.exists()
    assert guessed.is_symlink()
    assert victim.read_bytes() == b"precious"


def test_two_writes_at_the_same_time_do_not_share_a_name(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path) as first, replacing(path) as second:
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert path.read_bytes() == b"first"  # which ended last
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="this system cannot refuse links")
@pytest.mark.parametrize("mode", ["wb", "ab", "rb+", "w"])
def test_a_link_is_not_opened(mode: str, tmp_path: Path, victim: Path) -> None:
    (tmp_path / "link").symlink_to(victim)
    with pytest.raises(OSError, match="link"):
        open_no_follow(tmp_path / "link", mode)
    assert victim.read_bytes() == b"precious"


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="this system cannot refuse links")
def test_a_lock_that_is_a_link_makes_no_file_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="link"), locked(tmp_path / "lock"):
        pass
    assert not (tmp_path / "elsewhere").exists()


# --- kills ---------------------------------------------------------------------------------------------------------


def test_what_a_kill_leaves_is_found_and_is_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a[b].json"
    write_whole(path, b"old")
    for name in ("a[b].json.tmp", ".a[b].json.notes.tmp", "ab.json", ".ab.json.0123456789abcdef.tmp"):
        (tmp_path / name).touch()
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from acclimate.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as half:\n"
        "    half.write_bytes(b'n')\n"
        f"    os.kill(os.getpid(), {int(signal.SIGTERM)})\n"
    )
    assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode != 0
    assert path.read_bytes() == b"old"
    (left,) = leftovers(path)
    assert left.read_bytes() == b"n"
    write_whole(path, b"new")
    assert leftovers(path) == [left]


# --- the cache's folder --------------------------------------------------------------------------------------------


def test_order_of_the_settings_of_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("ACCLIMATE_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("ACCLIMATE_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "acclimate"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / "home" / ".cache" / "acclimate"
