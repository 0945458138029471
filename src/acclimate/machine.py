"""The machine: its memory, threads and random numbers, its devices and their arithmetic."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import torch

from acclimate.errors import OptionError, brief

# From malloc.h: large blocks are no mappings of their own, and the end of the heap is never given back.
M_MMAP_MAX, NO_MAPPINGS = -4, 0

M_TRIM_THRESHOLD, NEVER = -1, -1


def begin_computing() -> None:
    """What a process does first that computes and belongs to this package: the command's, and its workers'."""
    keep_freed_memory()
    silence_pillow()


@cache
def keep_freed_memory() -> bool:
    """Make the C library keep the memory that is freed, where it is glibc; the process does not shrink any more.

    glibc makes a mapping of its own of every block above 32 MB and gives it back when it is freed, so the system
    zeroes the activations of a batch page by page in every step. Without that, fine-tuning and the extraction of
    features on a CPU take up to half the time (docs/results/speed.md). It holds for the whole process and changes no
    result, so whoever owns the process decides: the command line calls it, the library never does.
    ACCLIMATE_KEEP_MEMORY=0 in the environment prevents it.

    Returns:
        Whether memory is kept.
    """
    if platform.libc_ver()[0] != "glibc" or os.environ.get("ACCLIMATE_KEEP_MEMORY") == "0":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, NO_MAPPINGS) and mallopt(M_TRIM_THRESHOLD, NEVER))


def silence_pillow() -> None:
    """Keep Pillow from writing on standard error what is wrong with a file: if it matters, an error says it too.

    Its libtiff does so behind Python's back. It holds for the whole process, so the command line calls it, the library
    never does.
    """
    from PIL import Image  # noqa: F401 (so that libtiff is there to be told)

    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # or Python writes for it
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return
    for path in {line.split(maxsplit=5)[5] for line in maps if "/libtiff" in line}:
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(path)  # the same one, not another
            library.TIFFSetErrorHandler(None)
            library.TIFFSetWarningHandler(None)


def return_freed_memory() -> None:
    """Give the memory that is free back to the system, once, where the C library is glibc.

    For what takes far more than all else: each thread keeps its own, so that many would keep it many times.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with so many threads; afterwards it has as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_setting = threading.Lock()


def compute_alone() -> None:
    """Let torch compute with one thread wherever the calling thread, a new one, asks for it.

    `torch.set_num_threads` also sets the number of every thread that has not computed yet, and one of the host's that
    begins to would keep it for its life. So that number is put back at once, by a thread that goes away: nothing but
    `torch.set_num_threads` itself can tell a thread its own.
    """
    torch.get_num_threads()  # a thread takes over the common number when it first asks, and so not later
    with _setting, ThreadPoolExecutor(1) as other:
        common = other.submit(torch.get_num_threads).result()
        torch.set_num_threads(1)
        other.submit(torch.set_num_threads, common).result()


def jobs_that_pay(device: str) -> int:
    """How many processes of one thread to train in at a time: one a core, and a single one on a GPU.

    Args:
        device: As for `pick_device`.

    Raises:
        OptionError: It is not available.
    """
    if pick_device(device).type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores or 1


def gpus_in_use() -> bool:
    """Whether this process has used a GPU, so that asking for its state costs nothing."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Give torch's random numbers back in the state in which they were: the CPU's, and those of all GPUs.

    No other thread may draw from them meanwhile. GPUs that nobody has used yet and that `device` is none of are left
    alone, since looking at their state would initialise them.
    """
    gpus = range(torch.cuda.device_count()) if device.type == "cuda" or gpus_in_use() else ()
    with torch.random.fork_rng(devices=gpus):
        yield


def seed_random_numbers(seed: int, device: torch.device) -> None:
    """Seed the random numbers of torch that work on this device draws from.

    For a CPU that leaves GPUs alone, which need not even be initialised then.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


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

    A GPU has its number: without one, another thread would take the first, whatever this one's current GPU is.

    Raises:
        OptionError: It is not available.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        if device == torch.device("cuda"):
            device = torch.device("cuda", torch.cuda.current_device())
        torch.zeros(1, device=device).item()
    except Exception as error:  # what is not installed is missing in many ways
        raise OptionError(f"The device {brief(name)} is not available here: use --device auto or cpu.") from error
    return device
