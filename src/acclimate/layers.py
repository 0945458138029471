"""Layers that more than one method uses."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Critic: TypeAlias = Literal["mlp", "linear"]


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, coefficient: float) -> Tensor:
        ctx.coefficient = coefficient
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.coefficient * grad[0], None


def reverse(x: Tensor, coefficient: float) -> Tensor:
    """Gradient reversal: x itself forwards, and backwards the gradient times -coefficient.

    What stands behind it descends on its loss with weight 1, whatever the coefficient; what stands before it ascends.

    Source: Ganin and Lempitsky, ICML 2015, equations 14 to 16.
    """
    y: Tensor = _Reverse.apply(x, coefficient)
    return y


class Discriminator(nn.Module):
    """Tells source (1) from target (0) by one logit, without a sigmoid: losses take logits.

    Args:
        dim: Length of the feature it reads.
        kind: "mlp" is Linear-BatchNorm-ReLU twice and a linear layer, as in TLL; "linear" is one linear layer.
        hidden: Width of the MLP.

    Attributes:
        layers: The layers in order; the first reads the feature and the last makes the logit.
    """

    def __init__(self, dim: int, *, kind: Critic = "mlp", hidden: int = 1024) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for width in [hidden, hidden] if kind == "mlp" else []:
            self.layers.extend([nn.Linear(dim, width), nn.BatchNorm1d(width), nn.ReLU()])
            dim = width
        self.layers.append(nn.Linear(dim, 1))

    def forward(self, f: Tensor) -> Tensor:
        """Logits (B,) of the features (B, d)."""
        logits: Tensor = self.layers(f)
        return logits.squeeze(1)


class MovingCentroids(nn.Module):
    """The centroid of each class in both domains, an exponential moving average over batches.

    The gradient flows through the current batch's part alone: what was averaged before is a constant. A class that
    is absent from a batch keeps its centroid. They start at zero, as the paper's code does.

    Source: Xie et al., ICML 2018, Algorithm 1. `theta` is the weight of the past.
    """

    C_s: Tensor
    C_t: Tensor

    def __init__(self, num_classes: int, dim: int, theta: float = 0.7) -> None:
        super().__init__()
        self.theta = theta
        self.register_buffer("C_s", torch.zeros(num_classes, dim))
        self.register_buffer("C_t", torch.zeros(num_classes, dim))

    def forward(self, f_s: Tensor, y_s: Tensor, f_t: Tensor, y_t: Tensor) -> tuple[Tensor, Tensor]:
        """Both domains' centroids (K, d) with this batch averaged in, and stored for the next one.

        Args:
            f_s: Source features (B, d).
            y_s: Source labels (B,).
            f_t: Target features (B, d).
            y_t: Target pseudo-labels (B,).
        """
        C_s, C_t = self._moved(self.C_s, f_s, y_s), self._moved(self.C_t, f_t, y_t)
        self.C_s, self.C_t = C_s.detach(), C_t.detach()
        return C_s, C_t

    def _moved(self, old: Tensor, f: Tensor, y: Tensor) -> Tensor:
        members = F.one_hot(y, len(old)).to(f.dtype)  # (B, K)
        count = members.sum(0).unsqueeze(1)  # (K, 1)
        current = members.T @ f / count.clamp(min=1)  # (K, d)
        return torch.where(count > 0, self.theta * old + (1 - self.theta) * current, old)
