"""What a run keeps of its target, so that new images can be compared with it later."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from acclimate.data.inputs import Inputs, SelectedInputs
from acclimate.errors import DataError
from acclimate.evaluation.scores import Probabilities
from acclimate.methods.base import over_all
from acclimate.model import Model
from acclimate.tensors import DamagedTensorsError, load_tensors, save_tensors
from acclimate.trust.drift import MOST, Features, Reference

FILE = "reference.safetensors"

SCHEMA = "1"

FEWEST = 50  # images of a target, below which nothing can be said of what is usual there


def features(model: Model, inputs: Inputs) -> Features:
    """The features (N, D) of images that drift is looked for in, float16.

    Those of the frozen backbone where there is one, which no method has moved, or the vectors themselves; else those of
    the trained network.
    """
    return over_all(model.method, _network(model), inputs, device=model.device).half().cpu().numpy()


def _network(model: Model) -> Callable[[Tensor], Tensor]:
    if model.spec.tune == "head" or model.method.net.level == "vector":
        return model.method.net.pool
    return lambda x: model.method.feature(x, "target")


def write_reference(folder: Path, model: Model, target: Inputs, probabilities: Probabilities, seed: int) -> None:
    """Write `FILE`: the features and the probabilities of a sample of the target, and the class shares in all of it.

    Args:
        folder: The run directory.
        model: The model of the run.
        target: N images.
        probabilities: (N, K) by the model.
        seed: Of the sample.
    """
    N, K = probabilities.shape
    chosen = np.sort(np.random.default_rng(seed).permutation(N)[:MOST])
    tensors = {
        "features": features(model, SelectedInputs(target, chosen)),
        "probabilities": probabilities[chosen].astype(np.float32),
        "shares": np.bincount(probabilities.argmax(1), minlength=K) / N,
    }
    save_tensors(folder / FILE, {name: torch.from_numpy(array) for name, array in tensors.items()}, {"schema": SCHEMA})


def read_reference(folder: Path, K: int) -> Reference:
    """Read what `write_reference` wrote of a model of K classes.

    Raises:
        DataError: There is none, it is damaged, or the target had too few images.
    """
    path = folder / FILE
    if not path.exists():
        raise DataError(
            f"{folder} keeps no sample of its target to compare with, which acclimate fit writes: a bench, the members "
            "of a consensus and older versions keep none. Make the run again with acclimate fit."
        )
    try:
        tensors, note = load_tensors(path)
        if note != {"schema": SCHEMA}:
            raise ValueError("it is of another version")
        f, p, shares = (tensors[name].numpy() for name in ("features", "probabilities", "shares"))
        if f.ndim != 2 or p.shape != (len(f), K) or shares.shape != (K,):
            raise ValueError("its parts do not fit each other")
        if not all(np.isfinite(part).all() for part in (f, p, shares)):
            raise ValueError("it holds numbers that are not finite")
    except (DamagedTensorsError, OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} is damaged ({error}): make the run again with acclimate fit.") from error
    if len(f) < FEWEST:
        raise DataError(
            f"The target of {folder} has {len(f)} images, too few to tell what is usual there: fit with at least "
            f"{FEWEST}."
        )
    return Reference(f.astype(np.float32), p.astype(np.float64), shares.astype(np.float64))
