"""Acclimate: unsupervised domain adaptation for image classification."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["AdaptiveClassifier", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported when it is asked for, so that the command line's help need not wait for torch.
    if name == "AdaptiveClassifier":
        from acclimate.estimator import AdaptiveClassifier

        return AdaptiveClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
