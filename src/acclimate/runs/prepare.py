"""Before training: the model, and what it is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from acclimate.choices import Augment, Extractor, KeepImages, Tune, View
from acclimate.data.batches import Pair
from acclimate.data.broken import BrokenImages
from acclimate.data.domain import Domain, LabelledDomain
from acclimate.data.inputs import ImageInputs, Inputs, SelectedInputs
from acclimate.data.preprocess import Preprocess
from acclimate.errors import OptionError
from acclimate.machine import fast_bf16, seed_random_numbers
from acclimate.methods import registry
from acclimate.methods.registry import CONSENSUS, Found
from acclimate.model import Model, ModelSpec
from acclimate.networks import engine
from acclimate.networks.backbone import Backbone
from acclimate.networks.backbones import load_backbone
from acclimate.parallel import world
from acclimate.progress import Track
from acclimate.runs.task import Task
from acclimate.settings import Settings


class Prepared(NamedTuple):
    """What a run trains and measures on.

    Attributes:
        model: The model before training.
        pair: What it is trained on.
        target: The target as evaluation sees it.
        test: The images that are measured on, where they are not the target.
        held: The part of the source that stays out of training; None where nothing does.
        task: The task without its broken images.
    """

    model: Model
    pair: Pair
    target: Inputs
    test: Inputs | None
    held: HeldOut | None
    task: Task


class HeldOut(NamedTuple):
    """The part of the source that stays out of training: its inputs, and the images with their labels."""

    inputs: Inputs
    source: LabelledDomain


def prepare(settings: Settings, task: Task, device: torch.device, track: Track) -> Prepared:
    """Make the model and read all that it is trained and measured on, which finds the images that are broken.

    Raises:
        DataError: Too many images are broken.
        OptionError: The settings do not fit the backbone or the data.
    """
    for broken in task.broken.values():
        broken.recall()  # what is known to be unusable is refused before anything is computed
    seed_random_numbers(settings.seed, device)  # a network from scratch draws its weights here
    backbone = None
    if task.source.domain.kind != "vectors":
        weights = Path(settings.weights) if settings.weights else None
        backbone = load_backbone(settings.backbone, weights=weights)
    found = registry.find(settings.method)
    domains = [broken.domain for broken in task.broken.values()]
    spec = resolve(settings, found, task.source.classes, domains, backbone, device)
    seed_random_numbers(settings.seed, device)
    model = Model(spec, backbone, device, method=found.method)
    augment = augment_of(settings, spec.tune, backbone)
    views = views_of(augment)
    inputs = {
        name: _read(model, broken, views, augment, settings.keep_images, track) for name, broken in task.broken.items()
    }
    task = task.readable()
    source, labels, held = _divided(inputs["source"], task.source, settings.recipe.hold_out, settings.seed)
    pair = Pair(
        source,
        labels,
        inputs["target"],
        batch_size=settings.recipe.batch_size,
        seed=settings.seed,
        device=device,
        prefetch=2 if model.method.net.level == "image" else 0,
    )
    return Prepared(model, pair, inputs["target"], inputs.get("test"), held, task)


def _divided(
    inputs: Inputs, source: LabelledDomain, share: float, seed: int
) -> tuple[Inputs, npt.NDArray[np.int64], HeldOut | None]:
    """The inputs and the labels of the source that are trained on, and the part that stays out of training."""
    out = source.held_out(share, seed) if share else np.zeros(len(source), dtype=np.bool_)
    held, kept = np.flatnonzero(out), np.flatnonzero(~out)
    if not len(held):
        return inputs, source.labels, None
    return (
        SelectedInputs(inputs, kept),
        source.labels[kept],
        HeldOut(SelectedInputs(inputs, held), source.select(held)),
    )


def _read(
    model: Model,
    broken: BrokenImages,
    views: tuple[View, ...],
    augment: Augment,
    images: KeepImages,
    track: Track,
) -> Inputs:
    """What the batches of a domain are drawn from. Images are decoded once, and then it is known which are broken."""
    with broken.found(track):
        inputs = model.inputs(broken.domain, views=views, augment=augment, images=images, broken=broken, track=track)
        if isinstance(inputs, ImageInputs) and not broken.known:
            inputs.read(track)
    return inputs


def resolve(
    settings: Settings,
    method: Found,
    classes: tuple[str, ...],
    domains: Sequence[Domain],
    backbone: Backbone | None,
    device: torch.device,
) -> ModelSpec:
    """The spec of the model, every "auto" decided.

    Args:
        settings: Of the run.
        method: The method that they name.
        classes: The names of the source's classes.
        domains: All data of the run, the source first.
        backbone: The backbone that they name; None where the data are vectors.
        device: Where it runs.

    Raises:
        OptionError: The settings do not fit the backbone or the data.
    """
    items = domains[0].items
    scratch = backbone is not None and not backbone.pretrained
    tune: Tune
    if settings.tune != "auto":
        tune = settings.tune
    elif backbone is None:
        tune = "head"
    else:
        on_gpu = device.type == "cuda" and method.name != CONSENSUS  # which is measured on frozen features
        tune = "all" if scratch or on_gpu else "head"
    if backbone is not None and scratch and tune != "all":
        raise OptionError(f"{backbone.name} has no pretrained weights: use --tune all, or give --weights FILE.")
    if backbone is None and tune != "head":
        raise OptionError("Feature vectors have no backbone to train: use --tune head, or give images.")
    if tune == "head" and world().size > 1:
        raise OptionError(
            "Several processes would not train a head faster than one, since a step on cached features takes less time "
            "than the exchange of its gradients: run it without torchrun, or use --tune top or all."
        )
    if backbone is None and settings.weights is not None:
        raise OptionError("Feature vectors have no backbone to load weights into: leave out --weights, or give images.")
    bf16 = settings.precision == "bf16" or (settings.precision == "auto" and fast_bf16(device))
    return ModelSpec(
        method=method.name,
        options=dict(settings.options),
        classes=classes,
        backbone=backbone.name if backbone is not None else None,
        vector=int(items.shape[1]) if backbone is None and not isinstance(items, tuple) else None,
        tune=tune,
        bottleneck=settings.bottleneck,
        preprocess=_preprocess(settings, backbone),
        bf16=bf16 and backbone is not None,
        cache_precision=settings.cache_precision,
        extractor=_extractor(settings, tune, domains, backbone, device),
        origin=method.origin,
        backbone_origin=backbone.origin if backbone is not None else None,
    )


def _preprocess(settings: Settings, backbone: Backbone | None) -> Preprocess | None:
    """How images become inputs; None where there are none."""
    if backbone is None:
        if settings.resize != "auto":
            raise OptionError("Feature vectors are not resized: leave out --resize, or give images.")
        return None
    return backbone.preprocess if settings.resize == "auto" else replace(backbone.preprocess, aspect=settings.resize)


def _extractor(
    settings: Settings, tune: Tune, domains: Sequence[Domain], backbone: Backbone | None, device: torch.device
) -> Extractor:
    """What computes features. It depends on no cache, so that the same command ends with the same bits."""
    if settings.extractor == "torch" or backbone is None or tune == "all":
        return "torch"
    if settings.extractor == "openvino":
        engine.check(device)
        return "openvino"
    pays = device.type == "cpu" and engine.version() is not None and sum(map(len, domains)) >= engine.PAYS
    return "openvino" if pays else "torch"


def augment_of(settings: Settings, tune: Tune, backbone: Backbone | None) -> Augment:
    """The random views of a run, decided.

    Raises:
        OptionError: The data, or what is trained, know no such views.
    """
    if settings.augment == "auto":
        return "crop+flip" if tune == "all" and backbone is not None and backbone.pretrained else "none"
    if backbone is None and settings.augment != "none":
        raise OptionError("Feature vectors cannot be augmented: use --augment none, or give images.")
    if tune != "all" and settings.augment not in ("none", "flip"):
        raise OptionError(
            f"Cached features cannot be cropped at random: use --augment flip with --tune {tune}, or --tune all."
        )
    return settings.augment


def views_of(augment: Augment) -> tuple[View, ...]:
    """The views of each image that are cached, where features are."""
    return ("plain", "flip") if augment == "flip" else ("plain",)
