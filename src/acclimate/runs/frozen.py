"""The data of a finished run by the untouched backbone: features that no method has moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from acclimate.data.broken import BrokenImages
from acclimate.data.domain import Domain, LabelledDomain
from acclimate.data.read import read_source, read_target
from acclimate.errors import DataError
from acclimate.machine import pick_device
from acclimate.methods.registry import BASELINE
from acclimate.model import Model
from acclimate.networks.backbones import named_backbone
from acclimate.progress import Track, silent
from acclimate.runs.record import DomainData, RunRecord

BATCH = 1024  # rows that are read at a time


def frozen_features(
    record: RunRecord, names: Sequence[str], *, device: str = "auto", track: Track = silent
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], LabelledDomain]:
    """The features of a run's data by its backbone as it was pretrained; of vectors, these themselves.

    They come from the cache, or are computed again from the images, where the record found them. An image is known by
    its name; the rows of an array have none, so all of them must be what they were.

    Args:
        record: The run's.
        names: The target's items, in the order of its predictions.
        device: Where the backbone runs.
        track: Shows the progress.

    Returns:
        The features of these items (n_T, D), those of the source (n_S, D), and the source.

    Raises:
        DataError: There are no such features, or the data are no longer what they were.
        OptionError: The weights of the backbone are not there any more.
    """
    source = read_source(place(record, record.settings["source"]))
    target = read_target(place(record, record.settings["target"]))
    model = _untouched(record, pick_device(device))
    f_t, left = _features(model, BrokenImages(target), track)
    broken = BrokenImages(source)
    f_s, _ = _features(model, broken, track)
    source = source.select(broken.readable)
    sides = ((left, record.data.target), (source.domain, record.data.source))
    if left.names != tuple(names) or any(_has_changed(domain, noted) for domain, noted in sides):
        raise DataError("The data have changed since the runs were made: make them again.")
    return f_t, f_s, source


def _has_changed(domain: Domain, noted: DomainData) -> bool:
    """Whether a domain is not what a record noted, as far as its names or its bytes tell."""
    if domain.kind == "files":
        return len(domain) != noted.items
    return domain.fingerprint() != noted.fingerprint


def place(record: RunRecord, path: str) -> Path:
    """Where a path of the settings leads from the folder that the run was started in, or else from this one."""
    found = Path(record.data.paths_start_from, path)
    return found if found.exists() or found.parent.is_file() else Path(path)  # a part of an .npz lies below a file


def _untouched(record: RunRecord, device: torch.device) -> Model | None:
    """The backbone of a run as it was before the training; None for vectors, which have none."""
    spec = record.model
    if spec.backbone is None:
        return None
    if spec.backbone_origin is not None:
        raise DataError("The backbone is from outside, whose code is run by nobody who is not asked to.")
    weights = record.settings.get("weights")
    backbone = named_backbone(spec.backbone, weights=place(record, weights) if weights else None)
    if not backbone.pretrained:
        raise DataError(f"{spec.backbone} was trained from scratch and has no features of its own.")
    spec = replace(spec, method=BASELINE, origin=None, options={}, tune="head", bottleneck=0)
    return Model(spec, backbone, device)


def _features(model: Model | None, broken: BrokenImages, track: Track) -> tuple[npt.NDArray[Any], Domain]:
    """The features of a domain's readable images, and these."""
    if model is None:
        return np.asarray(broken.domain.items), broken.domain
    with broken.found(track):
        inputs = model.inputs(broken.domain, broken=broken, track=track)
    starts = range(0, len(inputs), BATCH)
    rows = [inputs.batch(np.arange(i, min(i + BATCH, len(inputs))), None).numpy() for i in starts]
    return np.concatenate(rows), broken.left
