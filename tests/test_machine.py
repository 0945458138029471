"""Memory that is freed stays with the process."""

from __future__ import annotations

import platform

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
