"""The cache of frozen features: computed once for a domain and a network, then read from disk."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from acclimate.data.cache_folder import cache_folder
from acclimate.data.domains import Domain
from acclimate.data.images import ImageInputs, Preprocess, View, in_view
from acclimate.track import Track, silent

FORMAT = 1  # part of every entry's name: a change of what is computed must raise it

Array = npt.NDArray[np.float32]

log = logging.getLogger("acclimate")


def features(
    encode: nn.Module,
    domain: Domain,
    preprocess: Preprocess,
    *,
    key: str,
    views: tuple[View, ...] = ("plain",),
    bf16: bool,
    device: torch.device | str,
    batch_size: int | None = None,
    track: Track = silent,
) -> Array:
    """What a frozen network makes of a domain's images, from the cache if it has been computed before.

    An entry is found again by the data, `preprocess`, `key`, `views` and `bf16`. Where the cache cannot be written
    to, the features are kept in memory and a warning is logged.

    Args:
        encode: From images (B, C, H, W) to an array a sample (B, ...). It is put on `device` in evaluation mode.
        domain: Image files or an array of images.
        preprocess: How the images become inputs.
        key: Stands for `encode`: the fingerprint of its weights and the stage whose output it gives.
        views: The views of each image to compute, in the order of the result's first axis.
        bf16: Run `encode` in bfloat16.
        device: Where `encode` runs.
        batch_size: Images a forward pass; None is 8 on a CPU and 64 elsewhere. It may change the result's last bits.
        track: Reports the progress, in batches.

    Returns:
        (V, N, ...) float32, read-only; memory-mapped, so that it may be larger than the memory.

    Raises:
        DataError: An image cannot be read, or the domain holds vectors, which need no features.
    """
    inputs = ImageInputs(domain, preprocess, memory=0)  # each image is read once
    path = _entry(domain.fingerprint(), preprocess, key, views, bf16)
    stored = _stored(path, (len(views), len(domain)))
    if stored is not None:
        return stored

    # On a CPU larger batches are slower: their activations are too large for the allocator to keep, so the system
    # takes the memory back after each layer and zeroes it for the next.
    batch_size = batch_size or (8 if torch.device(device).type == "cpu" else 64)

    def blocks() -> Iterator[Array]:
        return _blocks(encode, inputs, views, bf16, torch.device(device), batch_size, track)

    try:
        return _store(path, blocks(), len(domain))
    except OSError as error:
        log.warning("The features of %s are not cached, because %s cannot be written: %s.", domain.origin, path, error)
        return _in_memory(blocks(), len(domain))


def _entry(data: str, preprocess: Preprocess, key: str, views: tuple[View, ...], bf16: bool) -> Path:
    digest = hashlib.sha256(repr((FORMAT, data, preprocess, key, views, bf16)).encode()).hexdigest()
    return cache_folder() / "features" / f"{digest}.npy"


def _stored(path: Path, shape: tuple[int, int]) -> Array | None:
    """The entry at `path`, None if there is none or it is damaged."""
    try:
        entry: Array = np.lib.format.open_memmap(path, mode="r")
    except (OSError, EOFError, ValueError):  # a truncated file cannot be mapped at the length its header gives
        return None
    return entry if entry.shape[:2] == shape and entry.dtype == np.float32 else None


def _store(path: Path, blocks: Iterable[Array], n: int) -> Array:
    """Writes an entry that other processes see complete or not at all.

    The blocks are written to the file rather than through a memory map, which would crash on a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            _write(file, blocks, n)
            file.flush()
            os.fsync(file.fileno())  # before the rename, or a power cut could leave an entry of zeros
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    entry: Array = np.lib.format.open_memmap(path, mode="r")
    return entry


def _write(file: BinaryIO, blocks: Iterable[Array], n: int) -> None:
    """Writes blocks (V, B, ...) of consecutive samples as one array (V, N, ...) in NumPy's format."""
    first = done = 0
    for block in blocks:
        if not done:
            first = _write_header(file, (len(block), n, *block.shape[2:]))
        for view, rows in enumerate(block):
            file.seek(first + (view * n + done) * rows[0].nbytes)
            file.write(rows.data)
        done += block.shape[1]


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> int:
    """Writes the header and returns where the data starts, in bytes."""
    size = int(np.prod(shape)) * np.dtype(np.float32).itemsize
    if shutil.disk_usage(Path(file.name).parent).free < size:  # better known now than after hours
        raise OSError(errno.ENOSPC, f"{size / 1e9:.1f} GB do not fit on the disk")
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.tell()


def _in_memory(blocks: Iterator[Array], n: int) -> Array:
    first = next(blocks)
    entry = np.empty((len(first), n, *first.shape[2:]), dtype=np.float32)
    entry[:, : first.shape[1]] = first
    done = first.shape[1]
    for block in blocks:
        entry[:, done : done + block.shape[1]] = block
        done += block.shape[1]
    entry.setflags(write=False)
    return entry


def _blocks(
    encode: nn.Module,
    inputs: ImageInputs,
    views: tuple[View, ...],
    bf16: bool,
    device: torch.device,
    batch_size: int,
    track: Track,
) -> Iterator[Array]:
    """The features of consecutive batches, (V, B, ...) each."""
    encode.to(device).eval()

    def load(start: int) -> Tensor:
        return inputs.batch(np.arange(start, min(start + batch_size, len(inputs))), None)

    starts = range(0, len(inputs), batch_size)
    for x in track(_one_ahead(load, starts), "Computing features", len(starts)):
        x = x.to(device, memory_format=torch.channels_last)  # a third less time for convolutions on a CPU
        with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            block = torch.stack([encode(in_view(x, view)).float() for view in views])  # (V, B, ...)
        yield block.cpu().contiguous().numpy()


def _one_ahead(load: Callable[[int], Tensor], starts: Iterable[int]) -> Iterator[Tensor]:
    """What `load` returns for each start; the next one is loaded while the caller works on this one."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead: Future[Tensor] | None = None
        for start in starts:
            ready, ahead = ahead, pool.submit(load, start)
            if ready is not None:
                yield ready.result()
        if ahead is not None:
            yield ahead.result()
