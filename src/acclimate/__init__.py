"""Acclimate: unsupervised domain adaptation for image classification."""

__version__ = "0.1.0"
