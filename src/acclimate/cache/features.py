"""The cache of frozen features: computed once for an image and a network, then read from disk."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from acclimate.cache.content import Content
from acclimate.cache.identity import Identities, file_paths, identities
from acclimate.cache.rows import Array
from acclimate.cache.stores import Stores
from acclimate.choices import Precision
from acclimate.data.broken import BrokenImages
from acclimate.data.decode import Pixels
from acclimate.data.domain import Domain, Indices
from acclimate.data.inputs import ImageInputs, RowInputs
from acclimate.data.preprocess import in_view, pixels_in_view
from acclimate.errors import DataError
from acclimate.machine import compute_alone
from acclimate.progress import Track, silent
from acclimate.shard import Shard
from acclimate.threads import in_order

TORCH: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

Blocks = Iterator[tuple[Indices, Array]]

OfPixels = Callable[[Pixels], Tensor]

T = TypeVar("T")

log = logging.getLogger("acclimate")


def features(
    network: Callable[[], nn.Module | OfPixels],
    domain: Domain,
    content: Content,
    *,
    device: torch.device | str,
    batch_size: int | None = None,
    broken: BrokenImages | None = None,
    shard: Shard | None = None,
    track: Track = silent,
) -> RowInputs:
    """What a frozen network makes of a domain's images; only those images are computed that are not in the cache.

    What is computed is in the cache batch by batch, so that an interrupted call is continued by the next one. Another
    process that computes features of the same network is waited for. Where the cache cannot be written to, the
    features are kept in memory; where a value is too large for the cache's precision, fp32 is taken instead. Both log
    a warning.

    As many threads as PyTorch has work on a batch each, from the files to the features, and each of them alone: so
    nothing waits within a batch, and the result does not depend on how many there are.

    Args:
        network: Makes the network, from images (B, C, H, W) to an array a sample (B, ...). It is called only if there
            is something to compute. A module is put on `device` in evaluation mode; any other function is given pixels
            (B, H, W, C) uint8, and returns the features of each alone.
        domain: Image files or an array of images.
        content: What the network is and how it is to be run.
        device: Where the network runs.
        batch_size: Images a forward pass; None is 8 on a CPU and 64 elsewhere. It may change the last bits of what a
            module computes, but what else is in a batch may not: each has this size, if need be with empty images.
        broken: Notes the images that cannot be read, which have no features then. None refuses them.
        shard: The part of an extraction that these images are, whose features go into a store of its own, or nowhere;
            None is no part.
        track: Reports the progress, in batches.

    Returns:
        The features of the images that can be read, memory-mapped, so that they may be larger than the memory.

    Raises:
        DataError: An image cannot be read and nobody notes such, or too many; the domain holds vectors, which need no
            features; or neither the disk nor the memory can hold the features, or, of a part, the disk.
    """
    images = ImageInputs(domain, content.preprocess, memory=0, broken=broken)  # each image is read once
    wanted = identities(domain)
    size = batch_size or (8 if torch.device(device).type == "cpu" else 64)  # 8: a CPU's caches hold the activations

    def blocks(positions: Indices) -> Blocks:
        return _blocks(network, images, positions, content, torch.device(device), size, broken, track)

    stores = Stores(content, shard)
    try:
        try:
            if stores.overflow():
                raise _OverflowError
            return _cached(stores, domain, wanted, blocks, broken)
        except OSError as error:
            if shard is not None:  # nobody would have them from this process's memory
                raise DataError(
                    f"The features of {domain.origin} cannot be written to {stores.own.folder} ({error.strerror}): "
                    "name a folder with more room in the environment variable ACCLIMATE_CACHE."
                ) from error
            reason = "The features of %s are not cached, because %s cannot be written: %s."
            log.warning(reason, domain.origin, stores.own.folder, error)
            return _in_memory(stores, domain, wanted, blocks, broken)
    except _OverflowError:
        with suppress(OSError):
            stores.own.refuse(content)
        log.warning("Some features are too large for %s, so they are cached as fp32.", content.precision)
        wider = replace(content, precision="fp32")
        return features(
            network, domain, wider, device=device, batch_size=batch_size, broken=broken, shard=shard, track=track
        )


class _OverflowError(Exception):
    """A value is too large for the precision of the cache."""


def _cached(
    stores: Stores,
    domain: Domain,
    wanted: Identities,
    blocks: Callable[[Indices], Blocks],
    broken: BrokenImages | None,
) -> RowInputs:
    rows, positions = stores.read(wanted)
    lacking = np.flatnonzero(positions < 0)
    if len(lacking):
        with stores.own.writing(stores.content) as writer:
            missing = lacking[stores.own.missing(wanted[lacking])]  # another process may have been quicker
            for number, (part, block) in enumerate(blocks(missing)):
                if number == 0:
                    writer.reserve(len(missing), block)
                writer.append(wanted[part], file_paths(domain, part), block)
        rows, positions = stores.read(wanted)
    if broken is not None:
        _note_twins(broken, wanted, np.flatnonzero(positions < 0))
        positions = positions[broken.readable]
        if not len(positions):
            return RowInputs(np.empty((0, 1)), positions)  # all are broken
    if rows is None or (positions < 0).any():
        raise FileNotFoundError(errno.ENOENT, "it was deleted meanwhile")
    return RowInputs(rows, positions)


def _note_twins(broken: BrokenImages, wanted: Identities, lacking: Indices) -> None:
    """Notes those of the items that lack a row of which another name was found to be broken: each is decoded once."""
    reasons = {wanted[i]: reason for i, reason in broken.reasons.items()}
    for i in lacking.tolist():
        if wanted[i] in reasons:
            broken.note(i, reasons[wanted[i]])


def _in_memory(
    stores: Stores,
    domain: Domain,
    wanted: Identities,
    blocks: Callable[[Indices], Blocks],
    broken: BrokenImages | None,
) -> RowInputs:
    """The features in memory; those that the stores have are taken from them."""
    stored, positions = None, np.full(len(wanted), -1, dtype=np.int64)
    with suppress(OSError):
        stored, positions = stores.read(wanted)
    rows: Array | None = None
    for part, block in blocks(np.flatnonzero(positions < 0)):
        if rows is None:
            rows = _array_for(len(wanted), block, domain)
            has = np.flatnonzero(positions >= 0)
            if stored is not None:
                for view in range(rows.shape[1]):
                    rows[has, view] = stored[positions[has], view]
        rows[part] = block
    readable = broken.readable if broken is not None else np.arange(len(wanted))
    if rows is None:
        assert stored is not None
        return RowInputs(stored, positions[readable])
    rows.setflags(write=False)
    return RowInputs(rows, readable)


def _array_for(n: int, block: Array, domain: Domain) -> Array:
    """An array for n rows like those of `block`, if the machine has the memory."""
    size = n * block[0].nbytes
    if hasattr(os, "sysconf") and size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        raise DataError(
            f"The features of {domain.origin} need {size / 1e9:.1f} GB, which neither the cache folder nor the memory "
            "has: name a folder with more room in the environment variable ACCLIMATE_CACHE."
        )
    return np.empty((n, *block.shape[1:]), dtype=block.dtype)


def _blocks(
    network: Callable[[], nn.Module | OfPixels],
    images: ImageInputs,
    positions: Indices,
    content: Content,
    device: torch.device,
    batch_size: int,
    broken: BrokenImages | None,
    track: Track,
) -> Blocks:
    """The features of batches of images: their positions (B,), and (B, V, ...) as it is kept on the disk.

    Images that are noted as broken are missing, and a batch that has no others is, too.
    """
    if not len(positions):
        return
    encode = network()
    if isinstance(encode, nn.Module):
        encode.to(device).eval()

    def block(part: Indices) -> tuple[Indices, Array]:
        pixels = images.pixels(part, None)
        readable = broken.without(part) if broken is not None else part
        if not len(readable):
            return readable, np.empty(0)
        if isinstance(encode, nn.Module):
            f = _by_module(encode, content, pixels, device, batch_size)
        else:
            f = torch.stack([encode(pixels_in_view(pixels, view)) for view in content.views], dim=1)  # (B, V, ...)
        return readable, _on_disk(f.contiguous(), content.precision)

    parts = [positions[start : start + batch_size] for start in range(0, len(positions), batch_size)]
    for readable, rows in track(_in_threads(block, parts), "Computing features", len(parts)):
        if len(readable):
            yield readable, rows


def _by_module(encode: nn.Module, content: Content, pixels: Pixels, device: torch.device, batch_size: int) -> Tensor:
    """What a module makes of pixels (B, H, W, C), in all views: (B, V, ...), on the CPU."""
    x = content.preprocess.normalised(pixels)
    # A batch always has the same size, because for another one a layer may add its products in another order.
    x = torch.cat([x, x.new_zeros(batch_size - len(x), *x.shape[1:])])
    x = x.to(device, memory_format=torch.channels_last)  # a third less time for convolutions on a CPU
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=content.bf16):
        f = torch.stack([encode(in_view(x, view)).float() for view in content.views], dim=1)
    return f[: len(pixels)].cpu()


def as_cached(f: Tensor, precision: Precision) -> Tensor:
    """A frozen network's output (B, ...) rounded as the cache keeps it, which is what a method is trained on.

    A number that is too large for the precision stays as it is.
    """
    rounded = f.to(TORCH[precision]).float()
    return torch.where(rounded.isfinite(), rounded, f)


def _on_disk(f: Tensor, precision: str) -> Array:
    """Features as they are kept, with the bits of bfloat16 as int16."""
    kept = f.to(TORCH[precision])
    if kept.dtype != f.dtype and (kept.isinf() & f.isfinite()).any():
        raise _OverflowError
    array: Array = (kept.view(torch.int16) if precision == "bf16" else kept).numpy()
    return array


def _in_threads(work: Callable[[Indices], T], parts: Iterable[Indices]) -> Iterator[T]:
    """What `work` returns for each part, in order, from as many threads as PyTorch has, which has one in each."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=compute_alone)
    return in_order(pool, work, parts, ahead=threads)  # so that one is ready to begin whenever one ends
