"""One process works in a folder at a time, whatever the file system's locks do; a dead one keeps nobody out."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from acclimate import locks
from acclimate.locks import CLAIM, LOCK, Claim, alone

ELSEWHERE = Claim("another kernel", "elsewhere", 1, "2026-01-01 00:00", "0" * 16)


def claimed_by(claim: Claim, folder: Path, *, seconds_ago: float = 0) -> None:
    folder.mkdir(exist_ok=True)
    (folder / CLAIM).write_text("".join(f"{line}\n" for line in claim))
    then = time.time() - seconds_ago
    os.utime(folder / CLAIM, (then, then))


def is_free(folder: Path) -> bool:
    with alone(folder, wait=False) as mine:
        return mine


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


@pytest.fixture(params=["locks", "none", "always"])
def _file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose locks hold, one that has none, and one whose locks succeed on every machine at once."""

    def without(_: object) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    if request.param == "none":
        monkeypatch.setattr(locks, "_lock", without)
    if request.param == "always":
        monkeypatch.setattr(locks, "_lock", lambda _: True)
        monkeypatch.setattr(locks, "_kernel", lambda: os.urandom(4).hex())  # every look is another machine's
    locks._tell_of_no_locks.cache_clear()


@pytest.mark.usefixtures("_file_system")
def test_one_at_a_time_and_nothing_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with alone(folder) as mine:
        assert mine
        assert left(folder) == {LOCK, CLAIM}
        assert not is_free(folder)
    assert not folder.exists()
    assert is_free(folder)
    folder.mkdir()
    assert is_free(folder)
    assert left(folder) == set()


@pytest.mark.usefixtures("_file_system")
def test_a_claim_from_elsewhere_holds_until_it_is_stale(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    claimed_by(ELSEWHERE, folder)
    assert not is_free(folder)
    assert locks.worker_of(folder) == "Process 1 on elsewhere, which began at 2026-01-01 00:00,"
    claimed_by(ELSEWHERE, folder, seconds_ago=locks.STALE - 60)
    assert not is_free(folder)
    claimed_by(ELSEWHERE, folder, seconds_ago=locks.STALE + 60)
    assert is_free(folder)
    assert left(folder) == set()


@pytest.mark.parametrize("content", [b"", b"\0" * 9, b"a\nb\nc\nd\ne\n", b"x" * 9999])
def test_a_damaged_claim_holds_until_it_is_stale(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CLAIM).write_bytes(content)
    assert not is_free(tmp_path)
    os.utime(tmp_path / CLAIM, (0, 0))
    assert is_free(tmp_path)


def test_a_clock_that_is_off_ends_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claimed_by(ELSEWHERE, tmp_path)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert not is_free(tmp_path)


def test_a_claim_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.01)
    with alone(tmp_path):
        os.utime(tmp_path / CLAIM, (0, 0))
        end = time.monotonic() + 10
        while (tmp_path / CLAIM).stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.01)
        assert (tmp_path / CLAIM).stat().st_mtime > 0


def test_whoever_has_lost_a_claim_leaves_that_of_the_other(tmp_path: Path) -> None:
    with alone(tmp_path):
        claimed_by(ELSEWHERE, tmp_path)
    assert (tmp_path / CLAIM).exists()


@pytest.mark.parametrize("has_locks", [True, False])
def test_a_killed_process_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_locks: bool) -> None:
    code = "import sys, time\nfrom pathlib import Path\nfrom acclimate.locks import alone\n"
    code += "with alone(Path(sys.argv[1])):\n    print(flush=True)\n    time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    assert not is_free(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert left(tmp_path) == {LOCK, CLAIM}
    if not has_locks:
        monkeypatch.setattr(locks, "WITHOUT_LOCKS", {0})

        def without(_: object) -> bool:
            raise OSError(0, "No locks available")

        monkeypatch.setattr(locks, "_lock", without)
    assert is_free(tmp_path)


def test_whoever_waits_says_for_whom_and_comes_next(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    claimed_by(ELSEWHERE, tmp_path)

    def leave(_: float) -> None:
        (tmp_path / CLAIM).unlink()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", leave)
        with alone(tmp_path) as mine:
            assert mine
    assert caplog.messages == [
        f"Process 1 on elsewhere, which began at 2026-01-01 00:00, works in {tmp_path}: this one waits for it, until "
        "Ctrl-C."
    ]
