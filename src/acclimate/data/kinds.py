"""Which files are images by their names, and which of those can be read here."""

from __future__ import annotations

from importlib.util import find_spec

from PIL import features

from acclimate.choices import AVIF_SUFFIXES, HEIF_SUFFIXES, READ_SUFFIXES

UNREAD_SUFFIXES = (  # of cameras, of programs for drawing, and of formats for which Pillow has nothing that is bounded
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2"),
    *(".sr2", ".srw", ".x3f", ".ai", ".eps", ".psb", ".psd", ".svg", ".svgz", ".xcf"),
    *(".dcm", ".exr", ".hdr", ".ico", ".j2k", ".jp2", ".jpx", ".jxl", ".pbm", ".pgm", ".ppm", ".tga"),
)

HEIF = find_spec("pillow_heif") is not None

AVIF = bool(features.check("avif"))

NO_HEIF = "HEIC images need a plug-in: install it with `pip install acclimate[heic]`"

NO_AVIF = "AVIF images need Pillow 11.3 or newer with AVIF: install it with `pip install -U pillow`"


def is_image(name: str) -> bool:
    """Whether a file's name ends as that of an image does which is read, here or with a plug-in."""
    return name.lower().endswith(READ_SUFFIXES)


def looks_like_image(name: str) -> bool:
    """Whether a file's name ends as that of any image does."""
    return name.lower().endswith(READ_SUFFIXES + UNREAD_SUFFIXES)


def unread(name: str) -> str | None:
    """Why an image of this name is not read here, and what to do about it; None for one that is."""
    name = name.lower()
    if name.endswith(HEIF_SUFFIXES):
        return None if HEIF else NO_HEIF
    if name.endswith(AVIF_SUFFIXES):
        return None if AVIF else NO_AVIF
    if name.endswith(UNREAD_SUFFIXES):
        return "files of this kind are not read: export it as a JPEG or PNG"
    return None
