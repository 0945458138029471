"""The machine: its memory, its devices and their arithmetic."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

import torch

from acclimate.errors import OptionError

# From malloc.h: large blocks are no mappings of their own, and the end of the heap is never given back.
M_MMAP_MAX, NO_MAPPINGS = -4, 0

M_TRIM_THRESHOLD, NEVER = -1, -1


@cache
def keep_freed_memory() -> bool:
    """Make the C library keep the memory that is freed, where it is glibc; the process does not shrink any more.

    glibc makes a mapping of its own of every block above 32 MB and gives it back when it is freed, so the system
    zeroes the activations of a batch page by page in every step. Without that, fine-tuning and the extraction of
    features on a CPU take up to half the time (docs/results/speed.md). It holds for the whole process and changes no
    result; ACCLIMATE_KEEP_MEMORY=0 in the environment prevents it.

    Returns:
        Whether memory is kept.
    """
    if platform.libc_ver()[0] != "glibc" or os.environ.get("ACCLIMATE_KEEP_MEMORY") == "0":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, NO_MAPPINGS) and mallopt(M_TRIM_THRESHOLD, NEVER))


def fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 runs on the device's own arithmetic units, and so pays."""
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # older than the question
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def pick_device(name: str) -> torch.device:
    """The device of this name; "auto" is a GPU if there is one.

    Raises:
        OptionError: It is not to be had.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"The device {name!r} is not to be had here: use --device auto or cpu.") from error
    return device
