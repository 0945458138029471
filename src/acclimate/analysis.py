"""The analyses of the papers: where the domains lie, how far apart they are, and what a model looks at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from acclimate.choices import Side
from acclimate.data.domain import Indices
from acclimate.data.inputs import Inputs
from acclimate.methods.base import Method, over_all
from acclimate.model import Model

Array: TypeAlias = npt.NDArray[np.float64]

COMPONENTS = 50  # of a feature that t-SNE sees, as its authors recommend
PERPLEXITY = 30.0
ITERATIONS = 500  # half of scikit-learn's: the divergence of 800 photos ends 2 % higher, in half of the time
REGULARISATION = 0.01  # C of the classifier behind the A-distance: there are about as many samples as channels


def sample(n: int, most: int, seed: int = 0) -> Indices:
    """The positions of at most `most` of `n` items, drawn without replacement, in rising order."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False))


# --- features ------------------------------------------------------------------------------------------------------


def features(method: Method, inputs: Inputs, side: Side, *, device: torch.device) -> Array:
    """The features (N, d) in which a method compares the domains, of one domain, un-augmented."""
    f = over_all(method, lambda x: method.feature(x, side), inputs, device=device)
    return f.double().cpu().numpy()


def frozen_features(inputs: Inputs) -> Array:
    """What the method is given, before anything is trained: (N, C), the mean over the positions of a map or tokens.

    Args:
        inputs: Cached features: vectors (C), maps (C, H, W) or tokens (T, C).
    """
    x = inputs.batch(np.arange(len(inputs)), None).double()
    if x.ndim == 4:
        x = x.mean((2, 3))
    elif x.ndim == 3:
        x = x.mean(1)
    return x.numpy()


def tsne(f_s: Array, f_t: Array, seed: int = 0) -> tuple[Array, Array]:
    """Both domains' features, (N_s, d) and (N_t, d), in one plane: positions in [0, 1] with one scale for both axes.

    Neighbours in the plane are neighbours among the features; distances between groups and their sizes mean nothing.

    Source: van der Maaten and Hinton, JMLR 2008; as in figure 2 of TADA, before and after adaptation.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    f = np.concatenate([f_s, f_t])
    f = f - f.mean(0)
    plane = np.zeros((len(f), 2))
    if f.any():  # else all features are the same, and there is nothing to lay out
        f = np.pad(f / np.abs(f).max(), ((0, 0), (0, max(2 - f.shape[1], 0))))  # it begins with two components
        f = PCA(min(COMPONENTS, *f.shape), svd_solver="full").fit_transform(f)
        perplexity = min(PERPLEXITY, (len(f) - 1) / 3)
        layout = TSNE(perplexity=perplexity, init="pca", max_iter=ITERATIONS, random_state=seed)
        plane = layout.fit_transform(f).astype(np.float64)
    low, high = plane.min(0), plane.max(0)
    extent = max(float((high - low).max()), 1e-12)
    plane = 0.5 + (plane - (low + high) / 2) / extent
    return plane[: len(f_s)], plane[len(f_s) :]


def a_distance(f_s: Array, f_t: Array, seed: int = 0) -> float:
    """The proxy A-distance 2 (1 - 2 err) of two domains: 0 when they cannot be told apart, 2 when always.

    err is the error of a linear classifier of the domains on the half of the samples that it was not trained on, as
    the mean over both halves. It is logistic regression on standardised features; both domains weigh the same.

    Source: Ben-David, Blitzer, Crammer and Pereira, NeurIPS 2006, section 3.

    Args:
        f_s: Features (N_s, d) of the source, at least two.
        f_t: Features (N_t, d) of the target, at least two.
        seed: Of the halves.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    f = np.concatenate([f_s, f_t])
    is_target = np.repeat([0, 1], [len(f_s), len(f_t)])
    accuracies = []
    for train, test in StratifiedKFold(2, shuffle=True, random_state=seed).split(f, is_target):
        tell = LogisticRegression(C=REGULARISATION, class_weight="balanced", max_iter=5000)
        classifier = make_pipeline(StandardScaler(), tell).fit(f[train], is_target[train])
        accuracies.append(balanced_accuracy_score(is_target[test], classifier.predict(f[test])))
    error = 1 - float(np.mean(accuracies))
    return max(2 * (1 - 2 * error), 0.0)


# --- what a model looks at -----------------------------------------------------------------------------------------


def attention_maps(model: Model, x: Tensor) -> dict[str, Array]:
    """Where the method attends in images (B, C, H, W): weights (B, h, w) over the regions of the map, by name.

    Source: TADA, figure 3.
    """
    model.method.eval()
    with torch.inference_mode():
        x = x.to(model.device)
        maps = model.method.attention(x if model.frozen is None else model.frozen(x))
    return {name: weights.double().cpu().numpy() for name, weights in maps.items()}


def class_activation(model: Model, x: Tensor) -> tuple[Array, npt.NDArray[np.int64]] | None:
    """What speaks for the predicted class in images (B, C, H, W), by the regions of the backbone's last map.

    The map of an image is max(0, sum over the channels of h dz/dh), where h is the last map and z the logit of the
    predicted class above the mean logit. Where the map is averaged and read by linear layers, that is Zhou et al.'s
    class activation map; unlike Grad-CAM it stays right where regions count differently, as they do under attention.
    It needs the images and `Method.predict` alone: so it holds for every method, whatever is frozen or cached. Where
    the last map consists of tokens, of which the class may be read off one, the one before the last block is taken.

    Source: Draelos and Carin, arXiv 2011.08891 (HiResCAM); Zhou et al., CVPR 2016.

    Returns:
        Maps (B, h, w) with values from 0 to 1, an image's largest being 1 unless nothing speaks for the class, and
        the predicted classes (B,). None where the method's logits have no gradient.
    """
    parts = _map_makers(model)
    found = _maps_and_gradients(model, x, parts)
    if found is not None and found[0].ndim == 3:
        found = _maps_and_gradients(model, x, [_before_last_stage(model, part) for part in parts])
    if found is None:
        return None
    h, gradient, predicted = found
    evidence = (h * gradient).double()
    if h.ndim == 3:
        tokens = evidence.sum(2)  # (B, T)
        side = math.isqrt(tokens.shape[1])
        maps = tokens[:, -side * side :].reshape(-1, side, side)  # without the class token, which comes first
    else:
        maps = evidence.sum(1)  # (B, h, w)
    maps = maps.clamp(min=0)
    largest = maps.amax((1, 2), keepdim=True)
    return (maps / torch.where(largest > 0, largest, 1)).cpu().numpy(), predicted.cpu().numpy()


def _maps_and_gradients(model: Model, x: Tensor, parts: list[nn.Module]) -> tuple[Tensor, Tensor, Tensor] | None:
    """The output of the last of `parts` to run, the gradient of the logit with respect to it, and the classes."""
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_())
        return outputs[-1]

    handles = [part.register_forward_hook(keep) for part in parts]
    model.method.eval()
    try:
        with torch.enable_grad():
            x = x.to(model.device)
            z = model.method.predict(x if model.frozen is None else model.frozen(x))  # (B, K)
            predicted = z.argmax(1)
            if not z.requires_grad:
                return None
            above = z.gather(1, predicted[:, None]).squeeze(1) - z.mean(1)  # (B,)
            (gradient,) = torch.autograd.grad(above.sum(), outputs[-1], materialize_grads=True)
    finally:
        for handle in handles:
            handle.remove()
    return outputs[-1].detach(), gradient, predicted


def _map_makers(model: Model) -> list[nn.Module]:
    """The modules whose output is the backbone's last map: one, or one a network of the method."""
    net = model.method.net
    if model.frozen is None or not isinstance(net.encoder, nn.Identity):
        return [network.encoder for network in model.method.networks]
    return [model.frozen.get_submodule("body") if net.level == "vector" else model.frozen]


def _before_last_stage(model: Model, part: nn.Module) -> nn.Module:
    """The module after which the last stage of a timm model begins."""
    if model.setup.tune == "top" and model.frozen is not None:
        return model.frozen
    network: Any = part.get_submodule("model")
    before: nn.Module = network.get_submodule(network.feature_info[-2]["module"])
    return before


# --- channel masks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mask:
    """A method's mask: its name, the length d of a row, and how many channels each row marks."""

    name: str
    width: int
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Overlap:
    """How many channels two masks share, as the mean over all pairs of their rows.

    Attributes:
        first: Name of a mask.
        second: Name of another; the same name means the pairs of different rows of one mask.
        observed: Channels in both.
        expected: Channels that would be in both, if each row marked as many at random: n_1 n_2 / d.
    """

    first: str
    second: str
    observed: float
    expected: float


def compare_masks(masks: Mapping[str, Tensor]) -> tuple[list[Mask], list[Overlap]]:
    """How many channels masks mark, and how many they share, against chance.

    Args:
        masks: By name, bool (rows, d).
    """
    rows = {name: M.cpu().numpy().astype(np.int64) for name, M in masks.items()}
    described = [Mask(name, M.shape[1], tuple(M.sum(1).tolist())) for name, M in rows.items()]
    overlaps = []
    names = list(rows)
    for i, first in enumerate(names):
        for second in names[i:]:
            a, b = rows[first], rows[second]
            if a.shape[1] != b.shape[1] or (first == second and len(a) == 1):
                continue  # channels of different features, or no pair
            pairs = (
                np.triu_indices(len(a), 1) if first == second else tuple(np.indices((len(a), len(b))).reshape(2, -1))
            )
            observed = (a @ b.T)[pairs].mean()
            expected = (np.outer(a.sum(1), b.sum(1)) / a.shape[1])[pairs].mean()
            overlaps.append(Overlap(first, second, float(observed), float(expected)))
    return described, overlaps


def pack_masks(masks: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Masks as text that a log can hold: of each the length d of a row, and its rows in hexadecimal."""
    return {
        name: {"width": M.shape[1], "rows": [row.tobytes().hex() for row in np.packbits(M.cpu().numpy(), axis=1)]}
        for name, M in masks.items()
    }


def mask_figures(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl with what their packed masks say in place of these, in per cent.

    Of each mask: the channels that its rows mark, on average; those that are marked now or were in the line before and
    are so in both (how stable it is); and of several rows, the same share between two of them, on average over the
    pairs (how much the classes' masks overlap).
    """
    lines = []
    before: dict[str, npt.NDArray[np.bool_]] = {}
    for row in metrics:
        figures = {name: value for name, value in row.items() if name != "masks"}
        for name, packed in row.get("masks", {}).items():
            bits = np.frombuffer(bytes.fromhex("".join(packed["rows"])), np.uint8).reshape(len(packed["rows"]), -1)
            M = np.unpackbits(bits, axis=1, count=packed["width"]).astype(bool)  # (rows, d)
            figures[f"{name} mask: channels, %"] = 100 * float(M.mean())
            if name in before:
                figures[f"{name} mask: kept, %"] = _shared(M, before[name])
            if len(M) > 1:
                i, j = np.triu_indices(len(M), 1)
                figures[f"{name} masks: shared, %"] = _shared(M[i], M[j])
            before[name] = M
        lines.append(figures)
    return lines


def _shared(a: npt.NDArray[np.bool_], b: npt.NDArray[np.bool_]) -> float:
    """The intersection over the union of each row of a with that of b, on average, in per cent."""
    either = (a | b).sum(1)
    return 100 * float(np.mean(np.where(either > 0, (a & b).sum(1) / np.maximum(either, 1), 1.0)))


# --- how far to trust a figure -------------------------------------------------------------------------------------


def interval(correct: int, n: int) -> tuple[float, float]:
    """Wilson's interval of 95 % for a fraction of which `correct` of `n` random samples were found.

    Source: Wilson, JASA 1927.
    """
    z = 1.959964
    p = correct / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)
