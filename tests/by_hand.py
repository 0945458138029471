"""What references in plain tensor operations share: a network's layers, kernels as sums over i and j, gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)


# The network


def copies(method: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone().requires_grad_() for name, p in method.named_parameters()}


def gradients(term: Tensor, of: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradient by name; zeros where there is none."""
    found = torch.autograd.grad(term, list(of.values()), retain_graph=True, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(of.items(), found, strict=True)}


def layer(P: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ P[f"{name}.weight"].T + P[f"{name}.bias"]


def batch_norm(u: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = u.sum(0) / len(u)
    variance = ((u - mean) ** 2).sum(0) / len(u)
    return (u - mean) / (variance + 1e-5).sqrt() * weight + bias


def features(P: dict[str, Tensor], x: Tensor) -> Tensor:
    """The bottleneck's features of one batch in training mode: Linear, BatchNorm, ReLU."""
    u = layer(P, "net.bottleneck.0", layer(P, "net.encoder", x))
    u = batch_norm(u, P["net.bottleneck.1.weight"], P["net.bottleneck.1.bias"])
    return u * (u > 0)


def softmax(z: Tensor) -> Tensor:
    return z.exp() / z.exp().sum(1, keepdim=True)


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    p = softmax(z)
    return -torch.stack([p[i, y[i]].log() for i in range(len(z))]).sum() / len(z)


# The discrepancy


def distance(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b) * (a - b)).sum()


def mean_distance(rows: Tensor) -> Tensor:
    n = len(rows)
    return sum(distance(rows[i], rows[j]) for i in range(n) for j in range(n) if i != j) / (n * n - n)


def gaussians(rows: Tensor, b: Tensor | float | None = None) -> Tensor:
    """The kernel (N, N); b is the mean distance, a number without a gradient, unless it is given."""
    b = mean_distance(rows).item() if b is None else b
    entries = [sum(torch.exp(-distance(x, y) / (c * b)) for c in FACTORS) for x in rows for y in rows]
    return torch.stack(entries).reshape(len(rows), len(rows))


def mmd(k: Tensor, n_s: int, estimator: str) -> Tensor:
    n_t = len(k) - n_s
    S, T = range(n_s), range(n_s, n_s + n_t)
    if estimator in ("biased", "unbiased"):
        other = estimator == "unbiased"
        ss = sum(k[i, j] for i in S for j in S if not (other and i == j)) / (n_s * (n_s - other))
        tt = sum(k[i, j] for i in T for j in T if not (other and i == j)) / (n_t * (n_t - other))
        return ss + tt - 2 * sum(k[i, j] for i in S for j in T) / (n_s * n_t)
    n = min(n_s, n_t)
    if estimator == "linear":
        pairs = [(i, i + 1) for i in range(n - 1)] + [(n - 1, 0)]
    else:
        pairs = [(2 * i, 2 * i + 1) for i in range(n // 2)]
    return sum(k[S[i], S[j]] + k[T[i], T[j]] - k[S[i], T[j]] - k[S[j], T[i]] for i, j in pairs) / len(pairs)
