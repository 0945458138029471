"""Decoding in a process of its own, for formats whose decoders do not keep to the size that a file's header tells.

It may take the memory that the header says, and little more (on Linux); where a file needs more, or a decoder crashes,
that process ends and this one goes on. It imports nothing of this package.
"""

from __future__ import annotations

import subprocess
import sys

from PIL import Image

SPARE = 2**26  # bytes beside what the header says

PATIENCE = 120  # seconds for one image

PROGRAM = """
import io, sys
from PIL import Image
name, most = sys.argv[1], int(sys.argv[2])
if name == "AVIF":
    from PIL import AvifImagePlugin
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
else:
    import pillow_heif
    pillow_heif.options.DECODE_THREADS = 1
    pillow_heif.register_heif_opener()
content = io.BytesIO(sys.stdin.buffer.read())
try:
    import resource
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + most, taken + most))
except (ImportError, OSError):
    pass
image = Image.OPEN[name][0](content, "")
told = image.size
image.load()
if image.size != told:
    sys.exit("it is of another size than its header says")
turn = image.getexif().get(0x0112, 1)
image = image.convert("RGBA" if image.has_transparency_data else "RGB")
sys.stdout.buffer.write(f"{image.mode} {image.width} {image.height} {turn}\\n".encode())
sys.stdout.buffer.write(image.tobytes())
"""


def decoded_apart(content: bytes, name: str, most: int) -> tuple[Image.Image, int]:
    """The image, RGB or RGBA, and its orientation.

    Args:
        content: The file's.
        name: AVIF or HEIF.
        most: Bytes that decoding it may take, beside `SPARE`.

    Raises:
        ValueError: It cannot be decoded, or not with that memory.
    """
    command = [sys.executable, "-I", "-c", PROGRAM, name, str(most + SPARE)]
    done = subprocess.run(command, input=content, capture_output=True, check=False, timeout=PATIENCE)
    header, _, pixels = done.stdout.partition(b"\n")
    if done.returncode != 0 or not header:
        raise ValueError("it cannot be decoded, or not with the memory that its header tells")
    mode, width, height, turn = header.decode().split()
    return Image.frombytes(mode, (int(width), int(height)), pixels), int(turn)
