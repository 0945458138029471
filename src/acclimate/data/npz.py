"""Arrays from an .npz file: large ones are mapped, so that they may be larger than the memory."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from acclimate.errors import DataError

# What NumPy and zipfile raise on damaged files: RuntimeError where a member says that it is encrypted, and
# NotImplementedError where it says that it is packed in a way that nobody has written, MemoryError where its size lies.
# TokenError comes from the header of an array, which NumPy reads as Python.
UNLOADABLE = (ValueError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error, tokenize.TokenError)
MAP_FROM = 2**28  # bytes: a smaller array is loaded, so that whoever writes the file anew does not disturb a run
NAME_LENGTHS = struct.Struct("<26xHH")  # where a member's own header says how long its name and its extra field are


def load_npz(path: Path, names: Iterable[str]) -> dict[str, npt.NDArray[np.generic]]:
    """Those of the arrays that the file has; `numpy.memmap`, read-only, where an array is large and not compressed.

    The file is opened once, so that all arrays are of one file even where another takes its place meanwhile.

    Raises:
        DataError: The file is not an .npz, or one of the arrays cannot be loaded without unpickling it.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise DataError(f"{path} is not an .npz file: save it with numpy.savez(file, x=..., y=...).")
        file.seek(0)
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return {name: _array(file, arrays, name) for name in names if name in arrays}
        except UNLOADABLE as error:
            raise DataError(
                f"{path} holds an array that cannot be loaded: save it again as plain numbers or text, without objects."
            ) from error


def _array(file: IO[bytes], arrays: np.lib.npyio.NpzFile, name: str) -> npt.NDArray[np.generic]:
    archive, member = arrays.zip, f"{name}.npy"
    assert archive is not None  # until it is closed
    mapped = _mapped(file, archive, member) if member in archive.namelist() else None
    return np.asarray(arrays[name]) if mapped is None else mapped


def _mapped(
    file: IO[bytes], archive: zipfile.ZipFile, name: str
) -> np.memmap[tuple[int, ...], np.dtype[np.generic]] | None:
    """The array that lies in the archive as it is in memory; None if it is small, compressed or holds objects."""
    member = archive.getinfo(name)
    if member.compress_type != zipfile.ZIP_STORED or member.file_size < MAP_FROM:
        return None
    with archive.open(member) as array:
        version = np.lib.format.read_magic(array)
        if version not in ((1, 0), (2, 0)):
            return None
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(array)
        inside = array.tell()
    if dtype.hasobject:
        return None
    file.seek(member.header_offset)  # zipfile seeks before each of its own reads
    header = file.read(NAME_LENGTHS.size)
    start = member.header_offset + len(header) + sum(NAME_LENGTHS.unpack(header)) + inside
    return np.memmap(file, dtype, "r", start, shape, "F" if fortran else "C")
