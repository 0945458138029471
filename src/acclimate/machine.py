"""The process's memory: what one step frees is kept for the next one."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

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
