"""Benchmarks of the field: what belongs to each, where it lies, and how it is fetched."""
