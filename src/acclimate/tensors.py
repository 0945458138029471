"""Tensors in a file, written whole, with a checksum by which damage is noticed."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from acclimate.files import replacing


class DamagedTensorsError(Exception):
    """A file does not hold the tensors that were written."""


def write_tensors(temporary: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file within `replacing`.

    Raises:
        OSError: It cannot be written.
    """
    moved = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(moved, temporary, metadata=dict(metadata) if metadata is not None else None)
    except SafetensorError as error:
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(temporary)) from error
        raise


def save_tensors(path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any] | None = None) -> None:
    """Write tensors and a note that JSON can hold; a kill at any moment leaves the old file or the new one.

    Raises:
        OSError: It cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(note)
    sealed = json.dumps({"checksum": _checksum(tensors, text), "note": text})
    with replacing(path) as temporary:
        write_tensors(temporary, tensors, {"acclimate": sealed})  # of several entries the order would be left to chance


def load_tensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Read what `save_tensors` wrote: the tensors, and the note.

    Raises:
        DamagedTensorsError: It was altered.
        OSError: It cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            metadata = file.metadata() or {}
        sealed = json.loads(metadata["acclimate"])
        if sealed["checksum"] != _checksum(tensors, sealed["note"]):
            raise ValueError("its checksum is another")
        return tensors, json.loads(sealed["note"])
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise DamagedTensorsError("it was altered") from error


def _checksum(tensors: Mapping[str, Tensor], note: str) -> int:
    """A number (CRC-32) that the least change of a tensor, its name, its form or the note changes."""
    number = zlib.crc32(note.encode())
    for name, tensor in sorted(tensors.items()):
        number = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), number)
        number = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, number)
    return number
