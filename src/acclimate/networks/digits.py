"""Small networks for digits, which start from random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from acclimate.data.preprocess import Preprocess
from acclimate.networks.backbone import Backbone
from acclimate.networks.weights import fit_weights, read_weights

GREY = Preprocess(resize=28, size=28, mean=(0.5,), std=(0.5,), interpolation="bilinear", channels=1)


def _lenet() -> Backbone:
    """LeNet as ADDA and CDAN use it for digits; where the two dropouts are, is from CDAN's code."""
    body = nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(20, 50, 5),
        nn.Dropout2d(0.5),
        nn.MaxPool2d(2),
        nn.ReLU(),
    )  # (B, 50, 4, 4)
    pool = nn.Sequential(nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Dropout(0.5))
    return Backbone("lenet", GREY, body, pool, 500, pretrained=False)


def _digits_cnn() -> Backbone:
    """The convolutions of MCD's code for MNIST and USPS; its fully connected layers are the heads."""
    return Backbone("digits_cnn", GREY, _normalised(32, 48), nn.Flatten(), 768, pretrained=False)


def _lenet_bn() -> Backbone:
    """The convolutions of ADR's code for MNIST and USPS: LeNet's, with BatchNorm."""
    return Backbone("lenet_bn", GREY, _normalised(20, 50), nn.Flatten(), 800, pretrained=False)


def _normalised(first: int, second: int) -> nn.Sequential:
    """Two convolutions with BatchNorm: (B, 1, 28, 28) to (B, second, 4, 4)."""
    layers = []
    for before, after in ((1, first), (first, second)):
        # The papers have ReLU before the pool: the same values, in a tenth more time.
        layers += [nn.Conv2d(before, after, 5), nn.BatchNorm2d(after), nn.MaxPool2d(2), nn.ReLU()]
    return nn.Sequential(*layers)


def digits_network(name: str, weights: Path | None) -> Backbone:
    """The digits network of this name, in evaluation mode; with weights it counts as pretrained."""
    backbone = DIGITS[name]()
    if weights is not None:
        fit_weights(backbone, read_weights(weights), name, weights)
        backbone.pretrained = True
    return backbone.eval()


DIGITS: dict[str, Callable[[], Backbone]] = {"lenet": _lenet, "lenet_bn": _lenet_bn, "digits_cnn": _digits_cnn}
