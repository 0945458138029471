"""Losses that more than one method uses. All take logits, never probabilities."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acclimate.choices import Estimator, Reduction


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


def entropy(z: Tensor) -> Tensor:
    """Entropy (B,) of softmax(z), in nats.

    Args:
        z: Logits (B, K).
    """
    return -(z.softmax(1) * z.log_softmax(1)).sum(1)


def squared_distances(f: Tensor) -> Tensor:
    """||f_i - f_j||^2 (N, N) of the rows of f (N, d); the diagonal is exactly zero."""
    f = f - f.mean(0).detach()  # a shift changes no distance, and the inner products lose fewer digits
    return distances_from_gram(f @ f.T)


def distances_from_gram(G: Tensor) -> Tensor:
    """||z_i - z_j||^2 = G_ii + G_jj - 2 G_ij (N, N) of vectors known by their inner products alone.

    Rounding may leave a small negative number between equal vectors; it becomes zero.

    Args:
        G: Gram matrix (N, N), <z_i, z_j>.
    """
    squares = G.diagonal()
    return (squares[:, None] + squares - 2 * G).clamp(min=0)


def gaussian_kernels(d2: Tensor) -> Tensor:
    """Sum of five Gaussians of different widths, (N, N); 5 where the distance is zero.

        k_ij = sum over c in {1/4, 1/2, 1, 2, 4} of exp(-d2_ij / (c b)),  b = mean of d2 off the diagonal

    The bandwidth b carries no gradient: a network could otherwise lower the discrepancy by widening the kernels.

    Args:
        d2: Squared distances (N, N) within the joint batch of both domains, N >= 2.

    Source: Long et al., ICML 2015, with weights of one for the kernels, as in TLL.
    """
    b = _mean_off_diagonal(d2.detach())
    scaled = d2 / b.clamp(min=torch.finfo(d2.dtype).eps)  # b = 0 where all features are equal
    return torch.stack([torch.exp(-scaled / c) for c in (0.25, 0.5, 1.0, 2.0, 4.0)]).sum(0)


def mmd(k: Tensor, n_s: int, estimator: Estimator = "unbiased") -> Tensor:
    """Estimate of the squared maximum mean discrepancy between the domains, from the kernel of their joint batch.

    With ss, tt and st the blocks (n_s, n_s), (n_t, n_t) and (n_s, n_t) of k, n = min(n_s, n_t) and j = i + 1:

        biased    mean(ss) + mean(tt) - 2 mean(st)
        unbiased  the same, with the means of ss and tt off the diagonal
        linear    mean over i = 1 ... n of ss_ij + tt_ij - st_ij - st_ji, the last sample's neighbour being the first
        pairs     the same mean over i = 1, 3, 5, ... alone, so that no sample is in two pairs

    All but "biased" are unbiased, so that they may be negative.

    Args:
        k: Kernel (N, N), symmetric; the first n_s rows and columns are the source.
        n_s: Source samples.
        estimator: See above.

    Returns:
        A scalar.

    Raises:
        ValueError: A domain has fewer samples than the estimator needs: one for "biased", else two.

    Source: Gretton et al., JMLR 2012, equations 3 and 5 and lemma 14; "linear" as in TLL.
    """
    n = min(n_s, len(k) - n_s)
    least = 1 if estimator == "biased" else 2
    if n < least:
        raise ValueError(f"the {estimator} estimate of the MMD needs {least} samples of each domain, not {n}")
    ss, tt, st = k[:n_s, :n_s], k[n_s:, n_s:], k[:n_s, n_s:]
    if estimator == "biased":
        return ss.mean() + tt.mean() - 2 * st.mean()
    if estimator == "unbiased":
        return _mean_off_diagonal(ss) + _mean_off_diagonal(tt) - 2 * st.mean()
    i = torch.arange(n, device=k.device) if estimator == "linear" else torch.arange(0, n - 1, 2, device=k.device)
    j = (i + 1) % n
    return (ss[i, j] + tt[i, j] - st[i, j] - st[j, i]).mean()


def _mean_off_diagonal(a: Tensor) -> Tensor:
    n = len(a)
    return (a.sum() - a.trace()) / (n * (n - 1))


def class_balance_loss(z: Tensor) -> Tensor:
    """How far the mean prediction of a batch is from naming all classes equally often: log K or more.

    Args:
        z: Logits (B, K).

    Returns:
        A scalar: -mean over k of log(p_k + 1e-6), where p is the mean over the batch of softmax(z).

    Source: Saito et al., CVPR 2018, the authors' code for VisDA-2017.
    """
    return -torch.log(z.softmax(1).mean(0) + 1e-6).mean()
