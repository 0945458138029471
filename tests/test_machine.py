"""Memory that is freed stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

import forks

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")

PROGRAM = """
import resource, torch
from acclimate.machine import keep_freed_memory
print(keep_freed_memory())
def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)  # 64 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([step() for _ in range(20)][-1])
"""


def kept_and_faults(**environment: str) -> tuple[bool, int]:
    """What the function said, and how many pages the system had to provide when the same was done for the 20th time."""
    code, printed = forks.run(PROGRAM, **environment)
    assert code == 0
    kept, faults = printed.split()
    return kept == "True", int(faults)


@glibc
def test_a_freed_block_is_used_again() -> None:
    kept, faults = kept_and_faults()
    assert kept
    assert faults < 100


@glibc
def test_the_environment_prevents_it() -> None:
    kept, faults = kept_and_faults(ACCLIMATE_KEEP_MEMORY="0")
    assert not kept
    assert faults > 1000  # of 16,384: the system may give large pages


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from acclimate.machine import keep_freed_memory

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory.__wrapped__()


NOISY = """
import io, sys
from acclimate.machine import silence_pillow

silence_pillow()  # before anything else imports Pillow, as the command does

import numpy as np
from PIL import Image
from acclimate.data.decode import read_image

content = io.BytesIO()
Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)).save(content, "TIFF", compression="tiff_lzw")
whole = content.getvalue()
for start in (100, len(whole) - 150, len(whole) - 80):
    damaged = bytearray(whole)
    damaged[start : start + 60] = bytes([255]) * 60
    open(sys.argv[1], "wb").write(damaged[:-4])
    try:
        read_image(sys.argv[1])
    except ValueError as error:
        print(error)
"""


def test_pillow_writes_nothing_about_damaged_files(tmp_path: Path) -> None:
    command = [sys.executable, "-c", NOISY, str(tmp_path / "x.tif")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "x.tif cannot be read as an image" in done.stdout
    assert done.stderr == ""
