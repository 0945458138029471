"""Where results that can be computed again are kept between runs."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def cache_folder() -> Path:
    """$ACCLIMATE_CACHE, else $XDG_CACHE_HOME/acclimate, else ~/.cache/acclimate; it need not exist."""
    if own := os.environ.get("ACCLIMATE_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "acclimate"
    return Path.home() / ".cache" / "acclimate"


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that others see complete or not at all, making its folder if need be.

    Raises:
        OSError: The folder cannot be written to; what was at `path` is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
