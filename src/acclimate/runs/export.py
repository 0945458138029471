"""A run as one file that other programs can run: ONNX, or PyTorch's own .pt2."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

import acclimate
from acclimate.cache.features import as_cached
from acclimate.data.decode import pictured_in_hand
from acclimate.data.read import read_target
from acclimate.errors import AcclimateError, DataError, OptionError
from acclimate.files import digest, replacing, write_whole
from acclimate.model import Model
from acclimate.outputs import ONNX, PT2, READER, check_output
from acclimate.runs.frozen import place
from acclimate.runs.hub import located
from acclimate.runs.record import read_record
from acclimate.runs.use import load

if TYPE_CHECKING:
    from torch.export import ExportedProgram

TOLERANCE = 1e-4  # by which a probability may differ in the file

COMPARED = 32  # images of the target on which the file is compared with the model

SCHEMA = "1"  # of the metadata in the file, as `onnx_predict.py` has it

SCRIPT = "onnx_predict.py"

INPUT, OUTPUTS = "input", ("probabilities", "features")


class Exported(NamedTuple):
    """What an export wrote.

    Attributes:
        path: The file.
        script: The reader beside it, if it was asked for.
        size: Bytes of the file.
        compared: How many samples it was compared on.
        of_target: Whether these were the target's, not noise.
        difference: The largest difference of a probability.
        changed: How many of their classes differ from the run's, if that computes in bfloat16; else None.
    """

    path: Path
    script: Path | None
    size: int
    compared: int
    of_target: bool
    difference: float
    changed: int | None


def export(
    run: Path, out: Path, *, with_script: bool = False, method: str | None = None, backbone: str | None = None
) -> Exported:
    """Write the model of a run as a file, once it has shown that it predicts as the model does.

    It takes pixels (B, size, size, C) uint8, resized and cropped, or feature vectors (B, D), and gives probabilities
    (B, K) and features (B, d), in float32 for any B. What a reader needs is in its metadata.

    Args:
        run: The run directory.
        out: The file: `.onnx`, or `.pt2` for `torch.export`.
        with_script: Put `onnx_predict.py` beside it.
        method: The method again, as for `Model.load`.
        backbone: The backbone again, as for `Model.load`.

    Raises:
        DataError: There is no model, the file cannot be written, or it does not predict as the model does.
        OptionError: A package is missing, the ending is another one, or the method or the backbone has to be given
            again.
    """
    _check_file(out, with_script)
    run = located(run)
    model = load(run, "cpu", method=method, backbone=backbone)
    samples, of_target = _samples(run, model)
    own = None
    if model.spec.bf16:
        own = model.predict(samples).predicted
        model = _in_float32(load(run, "cpu", method=method, backbone=backbone))
    expected, features = model.predict(samples), model.features(samples)
    program = exported_program(Deployed(model), _example(model))
    try:
        with replacing(out) as temporary:
            if out.suffix == ".pt2":
                _write_pt2(program, temporary, _metadata(run, model))
                found = _run_pt2(temporary, samples, model)
            else:
                _write_onnx(program, temporary, _metadata(run, model))
                found = _run_onnx(temporary, samples)
            difference = _difference(out, (expected.probabilities, features), found)
        script = None
        if with_script:
            script = out.with_name(SCRIPT)
            write_whole(script, Path(__file__).with_name(SCRIPT).read_bytes())
    except OSError as error:
        raise DataError(f"The file {out} cannot be written ({error.strerror}): name another with --out.") from error
    changed = None if own is None else sum(a != b for a, b in zip(own, expected.predicted, strict=True))
    return Exported(out, script, out.stat().st_size, len(samples), of_target, difference, changed)


class Deployed(nn.Module):
    """A model as it is deployed: from pixels or vectors to probabilities (B, K) and features (B, d).

    Args:
        model: It shares its weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.frozen, self.method = model.frozen, model.method
        self._precision = model.spec.cache_precision
        self._scaled = model.spec.preprocess is not None
        if model.spec.preprocess is not None:
            self.register_buffer("mean", torch.tensor(model.spec.preprocess.mean), persistent=False)
            self.register_buffer("std", torch.tensor(model.spec.preprocess.std), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The probabilities and the features of a batch of pixels (B, size, size, C) uint8, or vectors (B, D)."""
        if self._scaled:
            x = ((x.float() / 255 - self.mean) / self.std).permute(0, 3, 1, 2)  # (B, C, size, size)
        if self.frozen is not None:
            x = as_cached(self.frozen(x), self._precision)
        return self.method.predict(x).softmax(1), self.method.feature(x, "target")


def exported_program(network: nn.Module, x: Tensor) -> ExportedProgram:
    """The graph of a network in evaluation mode, for batches of any size.

    Args:
        network: From a batch to tensors.
        x: A batch of at least two, or the graph would be for batches of one alone.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch's own parts, which say what they will change
        return torch.export.export(network.eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


def onnx_program(program: ExportedProgram, outputs: Sequence[str] = OUTPUTS) -> Any:
    """The same as a `torch.onnx.ONNXProgram`."""
    with _quiet():
        return torch.onnx.export(program, input_names=[INPUT], output_names=outputs, dynamo=True, verbose=False)


def _check_file(out: Path, with_script: bool) -> None:
    """Refuse what cannot be written, before computing anything."""
    if out.suffix not in (".onnx", ".pt2"):
        raise OptionError(f"{out} ends neither in .onnx nor in .pt2: name a file that does with --out.")
    check_output(out, PT2 if out.suffix == ".pt2" else ONNX)
    if out.suffix == ".onnx":
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise OptionError(
                "An ONNX file needs three more packages: install them with `pip install acclimate[onnx]`."
            ) from error
        if with_script:
            check_output(out.with_name(SCRIPT), READER)
    elif with_script:
        raise OptionError("--with-script is for ONNX files: a .pt2 is read by PyTorch.")


def _samples(run: Path, model: Model) -> tuple[list[Any], bool]:
    """Some of the run's target, as `Model.predict` takes them; noise where it is not to be found any more."""
    try:
        record = read_record(run / "record.json")
        domain = read_target(place(record, record.data.target.origin))
        model.check(domain)
        chosen = np.linspace(0, len(domain) - 1, min(COMPARED, len(domain))).astype(np.int64)
        samples = [domain.items[i] for i in chosen]
        model.predict(samples)
    except AcclimateError:
        rng = np.random.default_rng(0)
        if model.spec.preprocess is None:
            return list(rng.normal(size=(COMPARED, model.spec.vector or 0)).astype(np.float32)), False
        return list(rng.integers(0, 256, (COMPARED, 64, 64, 3), dtype=np.uint8)), False
    return samples, True


def _in_float32(model: Model) -> Model:
    """A model that has predicted nothing yet, without bfloat16, with which not every program can compute."""
    model.spec = replace(model.spec, bf16=False)
    for network in model.method.networks:
        network.bf16 = False
    return model


def _example(model: Model) -> Tensor:
    recipe = model.spec.preprocess
    if recipe is None:
        return torch.zeros(2, model.spec.vector or 0)
    return torch.zeros(2, recipe.size, recipe.size, recipe.channels, dtype=torch.uint8)


def _metadata(run: Path, model: Model) -> dict[str, str]:
    recipe = model.spec.preprocess
    return {
        "schema": SCHEMA,
        "acclimate": acclimate.__version__,
        "method": model.spec.method,
        "classes": json.dumps(model.spec.classes),
        "preprocess": json.dumps(None if recipe is None else asdict(recipe)),
        "sha256 of model.safetensors": digest(run / "model.safetensors"),
    }


def _write_onnx(program: ExportedProgram, path: Path, metadata: dict[str, str]) -> None:
    written = onnx_program(program)
    written.model.metadata_props.update(metadata)
    written.save(path, external_data=False)


def _run_onnx(path: Path, samples: Sequence[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    from acclimate.runs.onnx_predict import Reader

    is_image = [isinstance(sample, np.ndarray) and sample.dtype == np.uint8 for sample in samples]
    items = [Image.fromarray(s) if image else s for s, image in zip(samples, is_image, strict=True)]
    return Reader(path)(items)


def _write_pt2(program: ExportedProgram, path: Path, metadata: dict[str, str]) -> None:
    with path.open("wb") as file:
        torch.export.save(program.run_decompositions({}), file, extra_files=metadata)


def _run_pt2(path: Path, samples: Sequence[Any], model: Model) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    with path.open("rb") as file:
        network = torch.export.load(file).module()
    with torch.inference_mode():
        p, f = network(_batch(model, samples))
    return p.numpy(), f.numpy()


def _batch(model: Model, samples: Sequence[Any]) -> Tensor:
    """Samples as `Deployed` takes them."""
    recipe = model.spec.preprocess
    if recipe is None:
        return torch.from_numpy(np.stack(samples))
    views = []
    for sample in samples:
        with pictured_in_hand(sample, "A sample", at_least=recipe.resize) as image:
            views.append(recipe.plain(recipe.resized(image)))
    return torch.from_numpy(np.stack(views))


def _difference(out: Path, expected: Sequence[npt.NDArray[Any]], found: Sequence[npt.NDArray[Any]]) -> float:
    """The largest difference of a probability.

    Raises:
        DataError: It is too large, or a class is another one, or the features differ.
    """
    (p, f), (q, g) = expected, found
    difference = float(np.abs(p - q).max())
    others = int((p.argmax(1) != q.argmax(1)).sum())
    sure = np.diff(np.sort(p, 1)[:, -2:], axis=1)[:, 0] > 2 * TOLERANCE  # classes that are not as good as tied
    if not difference <= TOLERANCE or (others and sure[p.argmax(1) != q.argmax(1)].any()):
        raise DataError(
            f"The file does not predict as the model does: probabilities differ by {difference:.2g}, and {others} of "
            f"{len(p)} classes; {out} is not written. Try another version of torch, onnxscript or onnxruntime."
        )
    if not np.allclose(f, g, rtol=1e-3, atol=1e-3 * float(np.abs(f).max())):
        raise DataError(f"The file does not give the features of the model; {out} is not written.")
    return difference


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks of PyTorch's exporter, which are for its makers."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
