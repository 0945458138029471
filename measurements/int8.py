"""Whether an exported file pays in int8: how often it agrees with float32, and how fast it is; prints a table.

    python measurements/int8.py model.onnx TARGET

Static quantisation by ONNX Runtime, with scales from 256 images of the target: a scale a tensor or a channel, from the
largest values or by entropy. The agreement is that of the predicted classes on 1,000 other images of the target, the
speed that of one thread, the median of paired runs. Agreement bounds what it costs: the accuracy changes by at most one
minus the agreement.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime import quantization

from acclimate.data.read import read_target
from acclimate.runs.onnx_predict import Reader, pixels

CALIBRATED, MEASURED = 256, 1000
PAIRS, BATCHES = 15, (1, 8)
STRIDE = 16  # images whose activations are in memory at once


def main() -> None:
    model, target = Path(sys.argv[1]), read_target(sys.argv[2])
    reader = Reader(model)
    assert reader.preprocess is not None
    order = np.random.default_rng(0).permutation(len(target))[: CALIBRATED + MEASURED]
    x = np.stack([pixels(str(target.items[i]), reader.preprocess) for i in order])
    calibration, others = x[:CALIBRATED], x[CALIBRATED:]
    exact = _session(model)
    expected = _classes(exact, others)
    print(f"float32: {model.stat().st_size / 1e6:.1f} MB; {len(others)} images measured")
    print(f"| scales | calibration | MB | agreement | speed, batches of {BATCHES[0]} | of {BATCHES[1]} |")
    print("|---|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder, "prepared.onnx")
        quantization.shape_inference.quant_pre_process(model, prepared, skip_symbolic_shape=True)
        for per_channel in (False, True):
            for method in (quantization.CalibrationMethod.MinMax, quantization.CalibrationMethod.Entropy):
                out = Path(folder, f"{per_channel}{method}.onnx")
                quantization.quantize_static(
                    prepared,
                    out,
                    Images(calibration),
                    quant_format=quantization.QuantFormat.QDQ,
                    per_channel=per_channel,
                    calibrate_method=method,
                    activation_type=quantization.QuantType.QUInt8,
                    weight_type=quantization.QuantType.QInt8,
                    extra_options={"CalibStridedMinMax": STRIDE},
                )
                small = _session(out)
                agreement = float((_classes(small, others) == expected).mean())
                speeds = " | ".join(f"{_speed(exact, small, others[:n]):.2f}" for n in BATCHES)
                scales = "a channel" if per_channel else "a tensor"
                print(f"| {scales} | {method.name} | {out.stat().st_size / 1e6:.1f} | {agreement:.3f} | {speeds} |")


class Images(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Images, one at a time, as ONNX Runtime asks for them."""

    def __init__(self, x: Any) -> None:
        self.x = x
        self.set_range(0, len(x))

    def __len__(self) -> int:
        return len(self.x)

    def set_range(self, start_index: int, end_index: int) -> None:
        """The images that come next."""
        self.left: Iterator[Any] = iter(self.x[start_index:end_index])

    def get_next(self) -> dict[str, Any] | None:
        """The next image; None at the end."""
        image = next(self.left, None)
        return None if image is None else {"input": image[None]}


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _classes(session: Any, x: Any) -> Any:
    return np.concatenate(
        [session.run(["probabilities"], {"input": x[i : i + 8]})[0].argmax(1) for i in range(0, len(x), 8)]
    )


def _speed(exact: Any, small: Any, x: Any) -> float:
    """Images a second in int8, relative to float32."""
    ratios = []
    for _ in range(PAIRS):
        seconds = []
        for session in (exact, small):
            begun = time.perf_counter()
            session.run(None, {"input": x})
            seconds.append(time.perf_counter() - begun)
        ratios.append(seconds[0] / seconds[1])
    return float(np.median(ratios))


if __name__ == "__main__":
    main()
