"""Consensus: a student that is taught what several methods say together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from scipy.special import log_softmax
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from acclimate.data.batches import Labelled, Pair, Unlabelled
from acclimate.data.inputs import SelectedInputs
from acclimate.errors import OptionError
from acclimate.methods.base import Method, Objective, Stage, over_all
from acclimate.methods.parts.layers import Fitted
from acclimate.networks.network import Network

PENALTY = 1e-4  # on the student's weights


class Consensus(Method):
    """Consensus of methods that err differently (ours): they vote, the votes spread over a graph, one student learns.

    The members are runs of their own, each by its own recipe. Together with the nearest class means they vote on every
    image of the target; the votes are spread over a graph of nearest neighbours among its frozen features
    (`acclimate.trust.consensus` has the equations). The result, a class y_i and a weight w_i for each image, is what
    this method is taught. On frozen features the student is linear and trained to the end, by L-BFGS from 0:

        min over W, b of sum_i (w_i / sum w) -log softmax(W x_i + b)_{y_i} + penalty / 2 |W|^2,   penalty = 0.0001

    with x centred and scaled to a mean square length of 1. Where a network is trained, it is trained by steps:

        L = CE(classifier(f_s), y_s) + mean_i w_i CE(classifier(f_t), y_i)

    Differences from the paper: there is none; the method is Acclimate's own.

    Args:
        net: The network. On frozen features the student reads them as they are, without a bottleneck.
        num_classes: K.
        members: The methods that vote, as the papers' tables call them or by their own names, separated by commas.
    """

    family = "ensemble"
    good_for = "a result without choosing a method"
    recipe: ClassVar[Mapping[str, Any]] = {"hold_out": 0.2}

    def __init__(
        self,
        net: Network,
        num_classes: int,
        *,
        members: str = "source-only, GFK, JAN, CDAN+E, WEMNet on MSTN, CRST",
    ) -> None:
        linear = net.level == "vector"
        super().__init__(net.without_bottleneck() if linear else net, num_classes)
        self.linear = linear
        self.members = members
        self.classifier = nn.Linear(self.net.dim, num_classes)
        self.lesson = Fitted()

    def learn(self, y: npt.NDArray[np.int64], w: npt.NDArray[np.float64]) -> None:
        """Take what is to be taught: the classes y (N,) of the target's images and their weights w (N,), 0 for none."""
        device = self.classifier.weight.device
        self.lesson.put(y=torch.from_numpy(y).to(device), w=torch.from_numpy(w).to(device))

    def stages(self, data: Pair) -> Iterator[Stage]:
        """One stage of steps; on frozen features none, since the student is computed here, in float64.

        Raises:
            OptionError: Nobody has given it a lesson.
        """
        if "y" not in self.lesson:
            raise OptionError("consensus learns from its members: use acclimate fit, a bench or AdaptiveClassifier.")
        if self.linear:
            self._solve(data)
        else:
            yield Stage(self.step)
        self.lesson = Fitted()  # a model does not carry the labels of what it was trained on

    def step(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        """One objective: the source's labels, and what the members say of the target."""
        f_s, f_t = self.net.pair(s.x, t.x)
        y, w = self.lesson["y"][t.index], self.lesson["w"][t.index]
        taught = (w * cross_entropy(self.classifier(f_t), y, reduction="none")).mean().float()
        yield Objective(classification=cross_entropy(self.classifier(f_s), s.y), taught=taught)

    def predict(self, x: Tensor) -> Tensor:
        """Class logits (B, K)."""
        z: Tensor = self.classifier(self.net(x))
        return z

    def _solve(self, data: Pair) -> None:
        y, w = (self.lesson[name].cpu().numpy() for name in ("y", "w"))
        taught = np.flatnonzero(w)
        x = over_all(self, self.net, SelectedInputs(data.target, taught), device=data.device)
        W, b = teach(x.cpu().double().numpy(), y[taught], w[taught], self.num_classes)
        with torch.no_grad():
            self.classifier.weight.copy_(torch.from_numpy(W.T))
            self.classifier.bias.copy_(torch.from_numpy(b))


def teach(
    x: npt.NDArray[np.float64],
    y: npt.NDArray[np.int64],
    w: npt.NDArray[np.float64],
    K: int,
    penalty: float = PENALTY,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The linear classifier that minimises the weighted loss of `Consensus`, by at most 200 steps of L-BFGS.

    One thread computes it, so that the number of threads changes no bit.

    Args:
        x: (N, D) features; they are centred and scaled here.
        y: (N,) classes.
        w: (N,) weights, their sum above 0.
        K: Classes.
        penalty: On the weights, in the scale of the centred features.

    Returns:
        W (D, K) and b (K,) for the features as they were given.
    """
    mean = x.mean(0)
    x = x - mean
    scale = float(np.sqrt((x * x).sum(1).mean())) or 1.0
    x /= scale
    Y, share = np.eye(K)[y], (w / w.sum())[:, None]

    def loss(theta: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        W, b = theta[:-K].reshape(-1, K), theta[-K:]
        log_p = log_softmax(x @ W + b, axis=1)
        error = share * (np.exp(log_p) - Y)  # (N, K)
        value = -float((share * Y * log_p).sum()) + penalty / 2 * float((W * W).sum())
        return value, np.concatenate([(x.T @ error + penalty * W).ravel(), error.sum(0)])

    with threadpool_limits(1, user_api="blas"):
        start = np.zeros(x.shape[1] * K + K)
        options = {"maxiter": 200, "ftol": 1e-9, "gtol": 1e-6}
        theta = minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x
    W = theta[:-K].reshape(-1, K) / scale
    return W, theta[-K:] - mean @ W
