"""The choices that settings and methods offer, by name. Importing them imports no torch."""

from __future__ import annotations

from typing import Literal, TypeAlias

Level: TypeAlias = Literal["vector", "map", "image"]

DomainKind: TypeAlias = Literal["files", "images", "vectors"]

Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos"]

Aspect: TypeAlias = Literal["keep", "squash"]

Augment: TypeAlias = Literal["none", "flip", "crop", "crop+flip"]

View: TypeAlias = Literal["plain", "flip"]

Precision: TypeAlias = Literal["fp16", "bf16", "fp32"]

Extractor: TypeAlias = Literal["torch", "openvino"]  # what runs the frozen part of a backbone

KeepImages: TypeAlias = Literal["auto", "memory", "disk"]

Tune: TypeAlias = Literal["head", "top", "all"]

Side: TypeAlias = Literal["source", "target"]

Family: TypeAlias = Literal[
    "baseline", "shallow", "discrepancy", "adversarial", "generative", "self-training", "ensemble"
]

Critic: TypeAlias = Literal["mlp", "dropout", "linear"]

HeadInit: TypeAlias = Literal["small", "pytorch"]

Shallow: TypeAlias = Literal["svm", "logistic", "1nn"]

Reduction: TypeAlias = Literal["mean", "sum"]

Estimator: TypeAlias = Literal["unbiased", "biased", "linear", "pairs"]

Optimizer: TypeAlias = Literal["sgd", "adam"]

Schedule: TypeAlias = Literal["paper", "tll", "constant"]

TrackerName: TypeAlias = Literal["none", "tensorboard", "mlflow", "wandb"]

Split: TypeAlias = Literal["train", "test"]

Metric: TypeAlias = Literal["accuracy", "mean_per_class"]

PublishedMetric: TypeAlias = Literal["accuracy", "mean_per_class", "domain_error"]

PredictionFormat: TypeAlias = Literal["csv", "jsonl", "npz"]

TableFormat: TypeAlias = Literal["terminal", "markdown", "latex", "csv"]

OriginKind: TypeAlias = Literal["file", "package", "python"]

Purpose: TypeAlias = Literal["accuracy", "comparison", "choice"]  # of labels that a person gives

IMAGE_SUFFIXES = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

HEIF_SUFFIXES = (".heic", ".heif", ".hif")

AVIF_SUFFIXES = (".avif",)

READ_SUFFIXES = IMAGE_SUFFIXES + HEIF_SUFFIXES + AVIF_SUFFIXES  # of images that are read, here or with a plug-in
