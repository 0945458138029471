"""Layers that more than one method uses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acclimate.choices import Critic, HeadInit, Shallow
from acclimate.errors import DataError


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
        kind: "mlp" is Linear-BatchNorm-ReLU twice and a linear layer, as in TLL; "dropout" is Linear-ReLU-Dropout twice
            and a linear layer, from Xavier's normal weights, as in CDAN's code; "linear" is one linear layer.
        hidden: Width of the hidden layers.

    Attributes:
        layers: The layers in order; the first reads the feature and the last makes the logit.
    """

    def __init__(self, dim: int, *, kind: Critic = "mlp", hidden: int = 1024) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for width in [] if kind == "linear" else [hidden, hidden]:
            after = [nn.BatchNorm1d(width), nn.ReLU()] if kind == "mlp" else [nn.ReLU(), nn.Dropout(0.5)]
            self.layers.extend([nn.Linear(dim, width), *after])
            dim = width
        self.layers.append(nn.Linear(dim, 1))
        if kind == "dropout":
            for layer in self.layers:
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_normal_(layer.weight)
                    nn.init.zeros_(layer.bias)

    def forward(self, f: Tensor) -> Tensor:
        """Logits (B,) of the features (B, d)."""
        logits: Tensor = self.layers(f)
        return logits.squeeze(1)


class Discriminators(nn.Module):
    """G discriminators that share no weight, each of a feature of its own, computed as one.

    Each is Linear-ReLU-Dropout twice and a linear layer, without BatchNorm: its logit of a sample depends on that
    sample alone. The weights are drawn as those of `nn.Linear`.

    Args:
        count: G.
        dim: Length d of the feature that each reads.
        hidden: Width of each.
        dropout: Part of the hidden units that training leaves out.
    """

    def __init__(self, count: int, dim: int, *, hidden: int = 1024, dropout: float = 0.0) -> None:
        super().__init__()
        self.count = count
        self.layers = nn.Sequential()
        for width in [hidden, hidden]:
            self.layers.extend([Linears(count, dim, width), nn.ReLU(), nn.Dropout(dropout)])
            dim = width
        self.layers.append(Linears(count, dim, 1))

    def forward(self, f: Tensor) -> Tensor:
        """Logits (B, G) of the features (B, G, d), source positive."""
        # One copy where a feature's entries lie apart in memory; each matrix product would make its own, and slower.
        logits: Tensor = self.layers(f.contiguous().transpose(0, 1))  # (G, B, 1)
        return logits.squeeze(2).T


class Linears(nn.Module):
    """G linear layers side by side: x_g weight_g + bias_g.

    Args:
        count: G.
        d_in: Length of what each reads.
        d_out: Length of what each makes.
    """

    def __init__(self, count: int, d_in: int, d_out: int) -> None:
        super().__init__()
        bound = d_in**-0.5  # what nn.Linear draws from
        self.weight = nn.Parameter(torch.empty(count, d_in, d_out).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(count, 1, d_out).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """(G, B, d_out) of x (G, B, d_in)."""
        return torch.baddbmm(self.bias, x, self.weight)


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
        current, present = class_means(f, y, len(old))  # (K, d), (K, 1)
        return torch.where(present, self.theta * old + (1 - self.theta) * current, old)


def class_means(f: Tensor, y: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The mean (K, d) of the features f (N, d) of each class in y (N,), and whether there are any (K, 1)."""
    members = F.one_hot(y, num_classes).to(f.dtype)  # (N, K)
    count = members.sum(0).unsqueeze(1)  # (K, 1)
    return members.T @ f / count.clamp(min=1), count > 0


class Fitted(nn.Module):
    """Tensors whose shapes only the data decide, such as a closed form's projection: saved and moved with the model.

    Loading a state dict takes over the shapes in it.
    """

    def put(self, **tensors: Tensor) -> None:
        """Keep these tensors, by name, in place of earlier ones."""
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.detach())

    def __getitem__(self, name: str) -> Tensor:
        return self.get_buffer(name)

    def __contains__(self, name: str) -> bool:
        return name in self._buffers

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        here = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        for name, tensor in here.items():
            device = self[name].device if name in self else tensor.device
            self.put(**{name: torch.empty_like(tensor, device=device)})
        super()._load_from_state_dict(state_dict, prefix, *args)


class DropoutHead(nn.Module):
    """A classifier with dropout: Dropout-Linear-BatchNorm-ReLU some times over, and a linear layer.

    Source: Saito et al., CVPR 2018, the authors' code for VisDA-2017; with `last_dropout` and `init="pytorch"` their
    code for MNIST and USPS.

    Args:
        dim: Length of the feature it reads.
        num_classes: K.
        hidden: Width of the hidden layers.
        hidden_layers: How many they are.
        dropout: Part of each hidden layer's input that is dropped in training.
        last_dropout: Drop as much of the last layer's input.
        init: Where the weights and biases of the linear layers start: "small" is N(0, 0.01^2), "pytorch" is what
            `nn.Linear` draws.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        hidden: int = 1000,
        hidden_layers: int = 2,
        dropout: float = 0.5,
        last_dropout: bool = False,
        init: HeadInit = "small",
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for _ in range(hidden_layers):
            self.layers.extend([nn.Dropout(dropout), nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU()])
            dim = hidden
        if last_dropout:
            self.layers.append(nn.Dropout(dropout))
        self.layers.append(nn.Linear(dim, num_classes))
        for layer in self.layers:
            if isinstance(layer, nn.Linear) and init == "small":
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.normal_(layer.bias, std=0.01)

    def forward(self, f: Tensor) -> Tensor:
        """Logits (B, K) of the features (B, d)."""
        z: Tensor = self.layers(f)
        return z


class ShallowClassifier(nn.Module):
    """A classifier of features that are final: scikit-learn fits it, and what it learnt is kept as tensors.

    One factor, the same for every entry, brings the features to a mean variance of 1 first, so that the weight of
    scikit-learn's penalty (C = 1) means the same on any scale. A class without a sample has the logit -inf.

    Args:
        num_classes: K.
        kind: "svm" is linear with the squared hinge, each class against the others; "logistic" is the multinomial
            regression; "1nn" is the nearest neighbour, whose logits are minus the distances to the nearest of each
            class.
    """

    def __init__(self, num_classes: int, *, kind: Shallow = "svm") -> None:
        super().__init__()
        self.num_classes = num_classes
        self.kind: Shallow = kind
        self.fitted = Fitted()

    def fit(self, z: Tensor, y: Tensor) -> None:
        """Fit to features z (N, d) in float64 with labels y (N,), both on the CPU.

        Raises:
            DataError: A linear classifier has samples of one class alone.
        """
        scale = z.var(0, correction=0).mean().clamp(min=1e-12).rsqrt()
        if self.kind == "1nn":
            self.fitted.put(z=z, y=y, scale=scale)
        else:
            weight, bias = self._linear(scale * z, y)
            self.fitted.put(weight=scale * weight, bias=bias)

    def forward(self, z: Tensor) -> Tensor:
        """Logits (B, K) of features (B, d)."""
        if self.kind != "1nn":
            return F.linear(z, self.fitted["weight"], self.fitted["bias"])
        # Distances by a matrix product would depend, in the last bits, on what else is in the batch.
        d = torch.cdist(z, self.fitted["z"], compute_mode="donot_use_mm_for_euclid_dist")  # (B, N)
        nearest = d.new_full((len(z), self.num_classes), torch.inf)  # (B, K)
        nearest = nearest.scatter_reduce(1, self.fitted["y"].expand_as(d), d, "amin")
        return -self.fitted["scale"] * nearest

    def _linear(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The weight (K, d) and bias (K,) of a linear classifier."""
        from sklearn.linear_model import LogisticRegression  # takes a second, which other methods need not wait for
        from sklearn.svm import LinearSVC

        found = y.bincount().nonzero().squeeze(1)
        if len(found) < 2:
            raise DataError("The source has samples of one class alone: give at least two classes.")
        if self.kind == "svm":
            model = LinearSVC(dual=False, max_iter=10_000, random_state=0)  # it would draw from NumPy's, for nothing
        else:
            model = LogisticRegression(max_iter=10_000)
        model.fit(z.numpy(), y.numpy())
        w, b = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
        if len(found) == 2:  # scikit-learn has the logit of the second class over the first, and no more
            w, b = torch.cat([-w, w]) / 2, torch.cat([-b, b]) / 2
        weight, bias = z.new_zeros(self.num_classes, z.shape[1]), z.new_full((self.num_classes,), -torch.inf)
        weight[found], bias[found] = w, b
        return weight, bias


def deviation(f: Tensor) -> Tensor:
    """What to divide each feature of f (N, d) by to give it the variance 1: (d,), 1 for a feature that is constant."""
    found = f.std(0, correction=0)
    return torch.where(found > 1e-6 * f.abs().amax(0), found, 1.0)
