"""Losses that more than one method uses. All take logits, never probabilities."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Reduction: TypeAlias = Literal["mean", "sum"]


def domain_loss(critic: nn.Module, f_s: Tensor, f_t: Tensor) -> Tensor:
    """How badly the critic tells the domains apart: its cross-entropy, both domains weighing a half.

    Both go through the critic in one pass, so that BatchNorm layers in it see the mixture.

    Args:
        critic: From features (B, d) to logits (B,); source is 1, target 0.
        f_s: Source features (B_s, d).
        f_t: Target features (B_t, d).

    Returns:
        A scalar, log 2 for a critic that knows nothing.

    Source: Ganin et al., JMLR 2016, equation 9, in the form of TLL.
    """
    d_s, d_t = critic(torch.cat([f_s, f_t])).split([len(f_s), len(f_t)])  # (B_s,), (B_t,)
    # -log sigmoid(d) = softplus(-d) and -log(1 - sigmoid(d)) = softplus(d)
    return 0.5 * (F.softplus(-d_s).mean() + F.softplus(d_t).mean())


def semantic_loss(C_s: Tensor, C_t: Tensor, reduction: Reduction = "mean") -> Tensor:
    """Squared distance between the two domains' centroids (K, d) of the same class.

    Args:
        C_s: Source centroids (K, d).
        C_t: Target centroids (K, d).
        reduction: "mean" over all K d entries, as the authors' code has it; "sum" as the paper prints it.

    Source: Xie et al., ICML 2018, equation 5.
    """
    return F.mse_loss(C_s, C_t, reduction=reduction)
