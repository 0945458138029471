"""A frozen network in OpenVINO: its features on a CPU in less time than PyTorch takes."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from acclimate.cache.engines import GRAPH, VERDICT, WEIGHTS, engines_folder
from acclimate.cache.rows import LOCK
from acclimate.data.decode import Pixels
from acclimate.data.preprocess import Preprocess
from acclimate.errors import OptionError
from acclimate.files import cache_may_change, check_cache_may_change, write_whole
from acclimate.locks import locked

if TYPE_CHECKING:
    import openvino

FORMAT = 1  # a change of what is converted, or how, must raise it

PAYS = 1000  # images from which on a run saves what it takes to convert a network: some seconds, once

TOLERANCE = 1e-4  # of the length of an image's feature, by which it may differ from PyTorch's

COMPARED = 4  # images on which features are compared

log = logging.getLogger("acclimate")


@cache
def version() -> str | None:
    """The version of OpenVINO, without importing it; None where it is not installed."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("openvino")
    return None


def check(device: torch.device) -> None:
    """Check that OpenVINO can be asked for.

    Raises:
        OptionError: It is not installed, or the device is no CPU.
    """
    if device.type != "cpu":
        raise OptionError("OpenVINO computes on a CPU: use --device cpu, or --extractor auto.")
    if version() is None:
        raise OptionError("--extractor openvino needs a package: install it with `pip install acclimate[fast]`.")


@cache
def imported() -> Any:
    """OpenVINO, imported without its telemetry: a mere `import openvino` reports itself to its makers by the internet.

    Its own stand-in, for where the package openvino_telemetry is not installed, takes the place of that.
    """
    name = "openvino_telemetry"
    before = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]  # so that importing it fails
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("openvino")
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


class DisagreesError(Exception):
    """The engine cannot run a network, or not as PyTorch does; the text says why, in a few words."""


class Engine:
    """A frozen network in OpenVINO, from pixels to features.

    It computes an image at a time, on one thread, so that a feature's bits depend neither on what else there is nor on
    how many threads call it at once. The networks that were tried took no longer than in batches of 8.

    Args:
        graph: The converted network.
        bf16: Compute in bfloat16.
        threads: How many images it may compute at a time.
    """

    def __init__(self, graph: openvino.Model, *, bf16: bool, threads: int) -> None:
        self._compiled = (
            imported()
            .Core()
            .compile_model(
                graph,
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
                    "NUM_STREAMS": threads,
                    "INFERENCE_NUM_THREADS": threads,  # so that each stream has one
                    "ENABLE_CPU_PINNING": False,  # or processes side by side would share a core
                },
            )
        )
        self._idle: list[openvino.InferRequest] = []

    def __call__(self, pixels: Pixels) -> Tensor:
        """The features (B, ...) float32 of pixels (B, size, size, C) uint8. Several threads may call it at once."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        rows = [request.infer({0: pixels[i : i + 1]}, share_inputs=True)[0] for i in range(len(pixels))]
        self._idle.append(request)
        return torch.from_numpy(np.concatenate(rows))


class Place:
    """Where the cache keeps a converted network, and what a comparison with PyTorch showed.

    Args:
        network: What tells a network from others, such as its name and the fingerprint of its weights.
        preprocess: How its images are prepared.
        bf16: Whether it computes in bfloat16.
    """

    def __init__(self, network: tuple[str, ...], preprocess: Preprocess, *, bf16: bool) -> None:
        recipe = (preprocess.size, preprocess.channels, preprocess.mean, preprocess.std)
        key = repr((FORMAT, network, recipe, bf16, version(), torch.__version__))
        self._network = network
        self.folder = engines_folder() / hashlib.sha256(key.encode()).hexdigest()

    def verdict(self) -> str | None:
        """Why the engine is not to be used for this network, "" if it is, None if nobody has compared yet."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            refused = json.loads((self.folder / VERDICT).read_bytes())["refused"]
            if cache_may_change():
                with suppress(OSError):  # last used
                    os.utime(self.folder / VERDICT)
            return refused if isinstance(refused, str) else None
        return None

    def note(self, refused: str) -> None:
        """Remember a verdict, where the cache can be written to."""
        with suppress(OSError):
            check_cache_may_change(self.folder)
            write_whole(self.folder / VERDICT, json.dumps({"refused": refused, "network": self._network}).encode())

    def graph(self, network: nn.Module, preprocess: Preprocess, *, anew: bool = False) -> openvino.Model:
        """The converted network, from the cache if it is there.

        Raises:
            DisagreesError: It cannot be converted.
        """
        if not cache_may_change() and not anew and (self.folder / GRAPH).exists():
            with suppress(RuntimeError):  # a damaged file is made again below
                return _read(self.folder)
        try:
            check_cache_may_change(self.folder)
            with locked(self.folder / LOCK):
                if not anew and (self.folder / GRAPH).exists():
                    with suppress(RuntimeError):  # a damaged file is written again
                        return _read(self.folder)
                _write(converted(network, preprocess), self.folder)
                return _read(self.folder)
        except OSError:  # the cache cannot be written to
            with tempfile.TemporaryDirectory() as folder:
                _write(converted(network, preprocess), Path(folder))
                return _read(Path(folder))


def engine(network: nn.Module, preprocess: Preprocess, place: Place, pixels: Pixels, *, bf16: bool) -> Engine:
    """A network in OpenVINO, which has shown that it computes what the network does.

    Args:
        network: In evaluation mode, on the CPU, from images (B, C, size, size) to features (B, ...).
        preprocess: How its images are prepared.
        place: Where the converted network is kept.
        pixels: Images (B, size, size, C) to compare on: of those that it is wanted for.
        bf16: Compute in bfloat16.

    Raises:
        DisagreesError: It cannot be converted, or its features are others.
    """
    threads = torch.get_num_threads()
    try:
        made = Engine(place.graph(network, preprocess), bf16=bf16, threads=threads)
        try:
            compare(made, network, preprocess, pixels, bf16=bf16)
        except DisagreesError:  # the file may be damaged
            made = Engine(place.graph(network, preprocess, anew=True), bf16=bf16, threads=threads)
            compare(made, network, preprocess, pixels, bf16=bf16)
    except (RuntimeError, ImportError) as error:  # OpenVINO's own are RuntimeErrors
        raise DisagreesError(f"it fails ({_first_line(error)})") from error
    return made


def compare(made: Engine, network: nn.Module, preprocess: Preprocess, pixels: Pixels, *, bf16: bool) -> None:
    """Compare an engine with PyTorch in float32, image by image.

    The length of the difference may be `TOLERANCE` of a feature's own length. In bfloat16, where PyTorch differs from
    itself, it may be twice as large as that difference besides.

    Raises:
        DisagreesError: It is larger.
    """
    x = preprocess.normalised(pixels)
    with torch.inference_mode():
        expected = network(x).flatten(1)
        bound = TOLERANCE * expected.norm(dim=1)  # (B,)
        if bf16:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                rounded = network(x).flatten(1).float()
            bound = bound + 2 * (rounded - expected).norm(dim=1).max()
        found = made(pixels).flatten(1)
        if found.shape != expected.shape:
            raise DisagreesError("its features have another shape")
        difference = (found - expected).norm(dim=1)
    if not (difference <= bound).all():  # NaN is not
        share = float((difference / expected.norm(dim=1)).max())
        raise DisagreesError(f"its features differ from PyTorch's by {share:.2g} of their length")


class _OfPixels(nn.Module):
    """A network on pixels (B, H, W, C) uint8 in place of images (B, C, H, W) float32."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(preprocess.mean))
        self.register_buffer("std", torch.tensor(preprocess.std))

    def forward(self, pixels: Tensor) -> Tensor:
        f: Tensor = self.network(((pixels.float() / 255 - self.mean) / self.std).permute(0, 3, 1, 2))
        return f


def converted(network: nn.Module, preprocess: Preprocess) -> openvino.Model:
    """A network as OpenVINO has it, from pixels (1, size, size, C) uint8.

    `openvino.convert_model` would report that to OpenVINO's makers; the parts that it is made of report nothing.

    Raises:
        DisagreesError: It has parts that cannot be converted.
    """
    imported()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder
    from torch.fx.experimental.proxy_tensor import make_fx  # which takes a second to import

    side = preprocess.size
    pixels = torch.zeros(1, side, side, preprocess.channels, dtype=torch.uint8)
    try:
        with torch.no_grad(), _quiet():
            # One graph without modules: a trunk that leaves some in the middle would confuse torch.export.
            flat = make_fx(_OfPixels(network, preprocess).eval(), tracing_mode="fake", _allow_non_fake_inputs=True)
            program = torch.export.export(flat(pixels), (pixels,))
            decoder = TorchFXPythonDecoder.from_exported_program(program, dynamic_shapes=False)
            front = FrontEndManager().load_by_framework("pytorch")
            return front.convert(front.load(decoder))
    except Exception as error:  # whatever a network holds that PyTorch or OpenVINO cannot convert
        raise DisagreesError(f"it cannot convert the network ({_first_line(error)})") from error


def _write(graph: openvino.Model, folder: Path) -> None:
    """Write both files whole, the graph last."""
    with tempfile.TemporaryDirectory(dir=folder) as beside:  # OpenVINO asks for the ending .xml
        graph_file, weights_file = Path(beside, GRAPH), Path(beside, WEIGHTS)
        imported().serialize(graph, str(graph_file), str(weights_file))
        weights_file.replace(folder / WEIGHTS)
        graph_file.replace(folder / GRAPH)


def _read(folder: Path) -> openvino.Model:
    """A graph as it was written. It is always read, because one that was just made computes other last bits."""
    core = imported().Core()
    core.set_property({"ENABLE_MMAP": False})  # so that the files can be replaced on Windows too
    return core.read_model(folder / GRAPH, folder / WEIGHTS)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what PyTorch and OpenVINO say of their own parts."""

    def drop(record: logging.LogRecord) -> bool:
        return False

    root, handler = logging.getLogger(), logging.NullHandler()  # or the root, to which OpenVINO logs, gets Python's own
    root.addHandler(handler)
    root.addFilter(drop)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.removeFilter(drop)
        root.removeHandler(handler)
