"""What the references in float64 share."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from acclimate.data.domain import Indices


class Rows:
    """The rows of an array in float64, without augmentation."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, index: Indices, rng: np.random.Generator | None) -> Tensor:
        return self.rows[torch.from_numpy(index)]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)
