"""CRST: rounds of self-training on the target's most confident predictions, class by class, and not too confidently."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acclimate.data.batches import Labelled, Pair, Unlabelled
from acclimate.errors import OptionError
from acclimate.methods.base import Method, Objective, Stage, over_all
from acclimate.methods.parts.layers import Fitted
from acclimate.networks.network import Network

Regularizer = Literal["none", "lrent", "mrkld", "mrl2", "mrent", "mrkld+lrent"]

# What each model regulariser makes of log p (B, K): one number a sample (B,), the lower the less confident.
MODEL_REGULARIZERS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "mrkld": lambda log_p: -log_p.mean(1),
    "mrl2": lambda log_p: log_p.exp().square().sum(1),
    "mrent": lambda log_p: (log_p.exp() * log_p).sum(1),
}


class CRST(Method):
    """Confidence Regularized Self-Training (Zou, Yu, Liu, Kumar and Wang, ICCV 2019), and CBST (Zou et al., ECCV 2018).

    After training on the source, rounds follow: label the whole target by prediction, keep the same portion of each
    class, the most confident, and train on the source and these. CRST keeps the network from being overconfident in
    labels that may be wrong, by soft labels (LRENT) and by a regulariser of its predictions (MRKLD, MRL2, MRENT).

        lambda_k = the n-th largest max p among the target samples predicted k, n = floor(portion N_k); 1 if n = 0
        label    = onehot(argmax p / lambda),      kept where max p / lambda >= 1                          (N_t, K)
        LRENT:     softmax(log(p / lambda) / alpha_lrent),  kept where sum (p / lambda)^(1 / alpha_lrent) >= 1
        L = CE(classifier(f_s), y_s) + mean over the kept of [CE(classifier(f_t), label) + alpha r(p_t)]
        r = -mean of log p (MRKLD), sum of p^2 (MRL2) or sum of p log p (MRENT) over the K classes

    Differences from the paper:
        Target batches are drawn from the whole target and the loss is over the kept samples in them, where the
        authors draw from those alone: BatchNorm's statistics hold the others too, and both domains weigh the same
        however few are kept. A round is an equal share of the steps, not a pass over the target. The learning rate of
        self-training is lower because the schedule has come down by then, from 0.26 to 0.17 of its first value with
        the defaults, where the authors set a smaller constant one. Their code has >= where the paper prints >. Their
        segmentation code multiplies MRKLD by its weight twice; here it is once, as printed.

    Args:
        net: The network.
        num_classes: K.
        regularizer: "none" (CBST), soft labels "lrent", a model regulariser "mrkld", "mrl2" or "mrent", or both,
            "mrkld+lrent".
        alpha: Weight of the model regulariser.
        alpha_lrent: How soft LRENT's labels are: 1 is p / lambda itself, towards 0 they become one-hot.
        pretrain: The part of the run that the source stage takes.
        rounds: How often the target is labelled anew.
        portion: The part of each class that the first round keeps.
        portion_step: What each round adds to it.
        portion_max: The most that a round keeps.

    Raises:
        OptionError: `pretrain` leaves a stage without a step, `portion_max` is above 1, or `alpha_lrent` is 0.
    """

    paper = "Zou et al., Confidence Regularized Self-Training, ICCV 2019"
    year = 2019
    family = "self-training"
    rows: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "CBST": {"regularizer": "none"},
        "CRST": {},
        "CRST (MRKLD)": {"regularizer": "mrkld"},
        "CRST (LRENT)": {"regularizer": "lrent"},
    }
    good_for = "a small, steady gain by careful self-training"
    recipe: ClassVar[Mapping[str, Any]] = {"weight_decay": 5e-4}

    def __init__(
        self,
        net: Network,
        num_classes: int,
        *,
        regularizer: Regularizer = "mrkld+lrent",
        alpha: float = 0.1,
        alpha_lrent: float = 0.25,
        pretrain: float = 0.5,
        rounds: int = 10,
        portion: float = 0.2,
        portion_step: float = 0.05,
        portion_max: float = 0.5,
    ) -> None:
        super().__init__(net, num_classes)
        if not 0 < pretrain < 1:
            raise OptionError(f"The option pretrain of crst must lie between 0 and 1, not at {pretrain}.")
        if portion_max > 1:
            raise OptionError(f"The option portion_max of crst must be at most 1, not {portion_max}.")
        soft = "lrent" in regularizer
        if soft and alpha_lrent == 0:
            raise OptionError("The option alpha_lrent of crst must be above 0; regularizer=none has one-hot labels.")
        self.model_regularizer = regularizer.removesuffix("+lrent")
        self.alpha = alpha
        self.softness = alpha_lrent if soft else None
        self.pretrain = pretrain
        self.rounds = rounds
        self.portion, self.portion_step, self.portion_max = portion, portion_step, portion_max
        self.classifier = nn.Linear(net.dim, num_classes)
        self.pseudo = Fitted()

    def stages(self, data: Pair) -> Iterator[Stage]:
        """The source stage, and the rounds, each after labelling the whole target anew."""
        yield Stage(self.step, self.pretrain, "source")
        for i in range(self.rounds):
            p = over_all(self, lambda x: self.predict(x).cpu().double().softmax(1), data.target, device=data.device)
            thresholds = class_thresholds(p, min(self.portion + self.portion_step * i, self.portion_max))
            labels = pseudo_labels(p, thresholds, self.softness)  # (N_t, K)
            self.pseudo.put(labels=labels.to(self.classifier.weight))
            yield Stage(self.adapt, (1 - self.pretrain) / self.rounds, f"round {i + 1}")
        self.pseudo = Fitted()  # a model does not carry the labels of what it was trained on

    def step(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        """Of the source stage, one objective: the classification of the source, without the target."""
        yield Objective(classification=F.cross_entropy(self.predict(s.x), s.y))

    def adapt(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        """Of a round, one objective: both domains' classification, and the model regulariser if there is one."""
        f_s, f_t = self.net.pair(s.x, t.x)  # (B, d)
        log_p = self.classifier(f_t).log_softmax(1)  # (B, K)
        y_t = self.pseudo["labels"][t.index]  # (B, K)
        kept = y_t.any(1)  # (B,)
        terms = {
            "classification": F.cross_entropy(self.classifier(f_s), s.y),
            "self_training": _mean_where(kept, -(y_t * log_p).sum(1)),
        }
        if self.model_regularizer in MODEL_REGULARIZERS:
            r = MODEL_REGULARIZERS[self.model_regularizer](log_p)  # (B,)
            terms["regularizer"] = self.alpha * _mean_where(kept, r)
        yield Objective(**terms)

    def predict(self, x: Tensor) -> Tensor:
        """Class logits (B, K)."""
        z: Tensor = self.classifier(self.net(x))
        return z


def _mean_where(kept: Tensor, values: Tensor) -> Tensor:
    """The mean of the values (B,) that are kept; 0 if none is, with a gradient of zeros."""
    return (values * kept).sum() / kept.sum().clamp(min=1)


def class_thresholds(p: Tensor, portion: float) -> Tensor:
    """The thresholds lambda (K,): how probable a class must be for a sample to be labelled with it.

    Args:
        p: Probabilities (N, K) of the target, float64.
        portion: The part of the samples predicted to be of a class that it keeps.

    Source: Zou et al., ECCV 2018, Algorithm 1 (class-balanced, by the samples predicted as each class).
    """
    confidence, predicted = p.max(1)  # (N,)
    thresholds = torch.ones_like(p[0])  # (K,)
    for k in range(len(thresholds)):
        of_class = confidence[predicted == k].sort(descending=True).values  # (N_k,)
        n = math.floor(portion * len(of_class) + 1e-9)  # 0.29 * 100 is 28.999...
        if n:
            thresholds[k] = of_class[n - 1]
    return thresholds


def pseudo_labels(p: Tensor, thresholds: Tensor, softness: float | None) -> Tensor:
    """The labels (N, K) of the target, with a row of zeros for a sample that is not kept.

    With soft labels y, a sample is kept if its energy -sum y log p + softness sum y log y is below -sum y log lambda,
    that of no label. With the y that minimises it the difference is -softness log sum (p / lambda)^(1 / softness).

    Args:
        p: Probabilities (N, K), float64.
        thresholds: lambda (K,).
        softness: LRENT's alpha; None means one-hot labels.

    Source: Zou et al., ICCV 2019, section 4 and the authors' code.
    """
    score = (p / thresholds).log()  # (N, K)
    if softness is None:
        labels, kept = F.one_hot(score.argmax(1), p.shape[1]).to(p.dtype), score.amax(1) >= 0
    else:  # the threshold's own sample is kept even where rounding takes the rest of its sum away
        labels, kept = (score / softness).softmax(1), (score / softness).logsumexp(1) >= 0
    return labels * kept.unsqueeze(1)
