"""What a trained method says of all samples of a domain."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from acclimate.errors import DivergedError
from acclimate.evaluation.scores import DomainErrors, Probabilities, domain_error
from acclimate.methods.base import evaluation_mode
from acclimate.progress import Track, silent

if TYPE_CHECKING:
    from torch import Tensor

    from acclimate.data.inputs import Inputs
    from acclimate.methods.base import Method


def predict(
    method: Method,
    inputs: Inputs,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    track: Track = silent,
) -> Probabilities:
    """The class probabilities (N, K) of all inputs, un-augmented, in evaluation mode.

    A method on feature vectors computes in float64, so that what else is predicted changes a vector's probabilities by
    1e-15 or so. In float32 it would change them by 1e-7: the same row comes out of a matrix product with other last
    bits where the product has another number of rows, or the row another place in memory. On images and maps it does.

    Raises:
        DivergedError: The method's logits are not finite.
    """
    method, device, dtype = _exact(method, device)
    with evaluation_mode(method):
        batches = _batches(inputs, batch_size, device, track, "Predicting")
        probabilities = [method.predict(x.to(dtype)).cpu().double().softmax(1).numpy() for x in batches]
    if not all(np.isfinite(p).all() for p in probabilities):
        raise DivergedError("The method's predictions are not finite; train again with a smaller learning rate (--lr).")
    return np.concatenate([np.empty((0, method.num_classes)), *probabilities])  # none where all images are broken


def features(
    method: Method,
    inputs: Inputs,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    track: Track = silent,
) -> npt.NDArray[np.float32]:
    """The features (N, d) of all inputs, taken for the target's: un-augmented, exactly as `predict` computes them."""
    method, device, dtype = _exact(method, device)
    with evaluation_mode(method):
        batches = _batches(inputs, batch_size, device, track, "Computing features")
        return np.concatenate([method.feature(x.to(dtype), "target").cpu().float().numpy() for x in batches])


def _exact(method: Method, device: torch.device | str) -> tuple[Method, torch.device | str, torch.dtype]:
    """A method on vectors in float64, and on the CPU, since not every device has that; others as they are."""
    if method.net.level != "vector":
        return method, device, torch.float32
    return copy.deepcopy(method).cpu().double(), "cpu", torch.float64


def domain_errors(
    method: Method,
    source: Inputs,
    target: Inputs,
    *,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    track: Track = silent,
) -> dict[str, DomainErrors]:
    """The domain error of each feature that the method's discriminators read, un-augmented, in evaluation mode.

    Returns:
        By feature, as in `Method.domain_logits`. Empty when the method has no discriminator.
    """
    errors: dict[str, dict[str, float]] = defaultdict(dict)
    with evaluation_mode(method):
        for domain, inputs in {"source": source, "target": target}.items():
            scores: dict[str, list[npt.NDArray[np.float64]]] = defaultdict(list)
            for x in _batches(inputs, batch_size, device, track, f"Domain error of the {domain}"):
                logits = method.domain_logits(x)
                if not logits:
                    return {}
                for feature, z in logits.items():
                    scores[feature].append(z.cpu().double().sigmoid().numpy())
            for feature, batches in scores.items():
                errors[feature][domain] = domain_error(batches)
    return {feature: DomainErrors(**of_domains) for feature, of_domains in errors.items()}


def _batches(
    inputs: Inputs, batch_size: int, device: torch.device | str, track: Track, description: str
) -> Iterator[Tensor]:
    """All inputs in order, in full batches but for the last, whichever of them turn out to be broken on the way."""
    index = np.arange(len(inputs))
    parts = [index[start : start + batch_size] for start in range(0, len(index), batch_size)]
    waiting: Tensor | None = None
    for part in track(parts, description, len(parts)):
        x = inputs.batch(part, None)
        waiting = x if waiting is None else torch.cat([waiting, x])
        if len(waiting) >= batch_size:
            yield waiting[:batch_size].to(device)
            waiting = waiting[batch_size:] if len(waiting) > batch_size else None
    if waiting is not None and len(waiting):
        yield waiting.to(device)
