"""A small grid on vectors, for benches."""

from __future__ import annotations

from pathlib import Path

from tiny import vectors

GRID = """
seeds = [0, 1]

[data]
tasks = ["S-T"]

[data.domains]
S = "source.npz"
T = "target.npz"

[settings]
steps = 6
batch_size = 6
bottleneck = 8
lr = 1

[[row]]
name = "source-only"

[[row]]
name = "ours"
method = "dann"
options = { trade_off = 0.5 }
settings = { steps = 8 }
baseline = "source-only"
"""


def written(folder: Path) -> Path:
    """The grid in a folder, beside its source.npz and target.npz."""
    vectors(folder / "source.npz")
    vectors(folder / "target.npz", shift=0.5)
    (folder / "grid.toml").write_text(GRID, encoding="utf-8")
    return folder / "grid.toml"
