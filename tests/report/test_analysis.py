"""The analyses, against values that can be known by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from acclimate.choices import Side
from acclimate.data.batches import Labelled, Unlabelled
from acclimate.data.inputs import ArrayInputs
from acclimate.data.preprocess import Preprocess
from acclimate.evaluation import scores
from acclimate.methods import registry
from acclimate.methods.base import Method, Objective
from acclimate.model import Model, ModelSpec
from acclimate.networks.backbones import load_backbone
from acclimate.networks.network import Network
from acclimate.report import embedding, saliency
from acclimate.runs import masks as analysis

CPU = torch.device("cpu")


# --- samples and features ------------------------------------------------------------------------------------------


def test_a_sample_is_drawn_without_repeats_in_rising_order() -> None:
    drawn = embedding.sample(1000, 50)
    assert len(drawn) == len({*drawn.tolist()}) == 50
    assert (np.diff(drawn) > 0).all()
    assert drawn.max() < 1000
    assert (drawn == embedding.sample(1000, 50)).all()
    assert (drawn != embedding.sample(1000, 50, seed=1)).any()
    assert embedding.sample(3, 50).tolist() == [0, 1, 2]


class Sided(Method):
    """A stand-in whose domains have features of their own, and which attends to what is bright."""

    def __init__(self, net: Network) -> None:
        super().__init__(net, 2)
        self.norm = nn.BatchNorm1d(3)

    def step(self, s: Labelled, t: Unlabelled) -> Iterator[Objective]:
        yield Objective()

    def feature(self, x: Tensor, domain: Side) -> Tensor:
        f: Tensor = self.norm(x) + (10 if domain == "target" else 0)
        return f

    def predict(self, x: Tensor) -> Tensor:
        return self.attended(x).sum((2, 3))[:, :2]

    def attended(self, x: Tensor) -> Tensor:
        return (1 + self.attention(x)["bright"]).unsqueeze(1) * self.net.map(x)

    def attention(self, x: Tensor) -> dict[str, Tensor]:
        return {"bright": self.net.map(x).detach().mean(1)}


def test_features_are_the_method_s_own_in_evaluation_mode() -> None:
    method = Sided(Network(nn.Identity(), nn.Identity(), 3, bottleneck=0, level="vector"))
    method.train()
    x = np.random.default_rng(0).normal(size=(1, 5, 3)).astype(np.float32)
    expected = x[0] / np.sqrt(1 + 1e-5)
    for side, shift in (("source", 0), ("target", 10)):
        f = embedding.features(method, ArrayInputs(x), side, device=CPU)  # type: ignore[arg-type]
        assert f == pytest.approx(expected + shift, abs=1e-5)
    assert method.training


@pytest.mark.parametrize(("shape", "axes"), [((3,), ()), ((4, 3), (1,)), ((3, 2, 2), (2, 3))])
def test_frozen_features_are_means_over_positions(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=(1, 5, *shape)).astype(np.float32)
    assert embedding.frozen_features(ArrayInputs(x)) == pytest.approx(x[0].astype(np.float64).mean(axes))


# --- the plane -----------------------------------------------------------------------------------------------------


def test_tsne_keeps_groups_together() -> None:
    rng = np.random.default_rng(0)
    group = np.arange(40) % 2
    f = rng.normal(size=(40, 60)) + 30 * group[:, None]
    f_s, f_t = f[:24], f[24:]
    p_s, p_t = embedding.tsne(f_s, f_t)
    assert p_s.shape == (24, 2)
    assert p_t.shape == (16, 2)
    plane = np.concatenate([p_s, p_t])
    assert plane.min() >= 0
    assert plane.max() <= 1
    assert (plane.max(0) - plane.min(0)).max() == pytest.approx(1)
    distance = np.linalg.norm(plane[:, None] - plane[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (group[distance.argmin(1)] == group).all()
    again = np.concatenate(embedding.tsne(f_s, f_t))
    assert (again == plane).all()


@pytest.mark.parametrize(("n", "d"), [(1, 4), (2, 2), (3, 1)])
def test_tsne_of_very_few(n: int, d: int) -> None:
    f = np.random.default_rng(0).normal(size=(2 * n, d))
    p_s, p_t = embedding.tsne(f[:n], f[n:])
    assert p_s.shape == p_t.shape == (n, 2)
    assert np.isfinite([p_s, p_t]).all()


def test_tsne_of_equal_features_is_one_place() -> None:
    p_s, p_t = embedding.tsne(np.ones((5, 3)), np.ones((4, 3)))
    assert (np.concatenate([p_s, p_t]) == 0.5).all()


# --- the A-distance ------------------------------------------------------------------------------------------------


def test_the_a_distance_of_domains_that_a_line_divides_is_two() -> None:
    rng = np.random.default_rng(0)
    f_s, f_t = rng.normal(size=(60, 8)), rng.normal(size=(30, 8)) + 20
    assert embedding.a_distance(f_s, f_t) == 2.0


def test_the_a_distance_of_one_distribution_is_near_zero() -> None:
    rng = np.random.default_rng(0)
    assert embedding.a_distance(rng.normal(size=(2000, 4)), rng.normal(size=(2000, 4))) < 0.15
    few = [embedding.a_distance(rng.normal(size=(10, 4)), rng.normal(size=(10, 4))) for _ in range(10)]
    assert min(few) == 0.0  # an error above a half is chance


def test_the_a_distance_is_of_samples_that_the_classifier_has_not_seen() -> None:
    rng = np.random.default_rng(0)
    f = rng.normal(size=(60, 600))  # any labels of so few are linearly separable
    assert embedding.a_distance(f[:30], f[30:]) < 1


def test_the_a_distance_weighs_both_domains_the_same() -> None:
    """On a feature that is 1 for a tenth of the source and all of the target, the best line errs on a twentieth."""
    f_s = np.repeat([0.0, 1.0], [900, 100])[:, None]
    assert embedding.a_distance(f_s, np.ones((100, 1))) == pytest.approx(2 * (1 - 2 * 0.05), abs=0.05)


# --- what a model looks at -----------------------------------------------------------------------------------------


def weights_of(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    file = folder / f"{name}.safetensors"
    save_file(timm.create_model(name).state_dict(), file)
    return file


def built(folder: Path, tune: str, *, name: str = "test_resnet", method: str = "source_only", **options: Any) -> Model:
    backbone = load_backbone(name, weights=weights_of(name, folder))
    spec = ModelSpec(method, options, ("a", "b", "c"), name, None, tune, None, backbone.preprocess, bf16=False)  # type: ignore[arg-type]
    torch.manual_seed(1)
    return Model(spec, backbone)


def images(model: Model, n: int = 3) -> Tensor:
    assert isinstance(model.spec.preprocess, Preprocess)
    side = model.spec.preprocess.size
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(3))


def activation_by_hand(body: nn.Module, W: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Zhou et al., equation 2, of the logit above the mean logit: the pool is a mean and the classifier linear."""
    with torch.no_grad():
        h = body(x)  # (B, C, H, W)
        k = (h.mean((2, 3)) @ W.T).argmax(1)
        maps = torch.einsum("bc,bchw->bhw", W[k] - W.mean(0), h).clamp(min=0)
        return maps / maps.amax((1, 2), keepdim=True), k


@pytest.mark.parametrize("tune", ["head", "top", "all"])
def test_class_activation_is_zhou_s_wherever_the_backbone_is_divided(tmp_path: Path, tune: str) -> None:
    model = built(tmp_path, tune)
    classifier = model.method.classifier
    assert isinstance(classifier, nn.Linear)
    nn.init.zeros_(classifier.bias)
    x = images(model)
    expected, k = activation_by_hand(
        load_backbone("test_resnet", weights=weights_of("test_resnet", tmp_path)).body, classifier.weight, x
    )
    found = saliency.class_activation(model, x)
    assert found is not None
    assert found[1].tolist() == k.tolist()
    assert found[0] == pytest.approx(expected.numpy(), abs=1e-4)
    assert found[0].max((1, 2)) == pytest.approx(np.ones(3))
    again = saliency.class_activation(model, x)  # nothing is left behind
    assert again is not None
    assert (again[0] == found[0]).all()
    assert all(parameter.grad is None for parameter in model.method.parameters())
    assert not any(module._forward_hooks for module in model.method.modules())


def test_class_activation_is_of_the_network_that_predicts(tmp_path: Path) -> None:
    model = built(tmp_path, "all", method="adda")
    target_net, classifier = model.method.target_net, model.method.target_classifier
    assert isinstance(target_net, Network)
    assert isinstance(classifier, nn.Linear)
    nn.init.zeros_(classifier.bias)
    with torch.no_grad():
        for parameter in model.method.net.parameters():
            parameter.zero_()  # if it were looked at, nothing would be seen
    x = images(model)
    expected, k = activation_by_hand(target_net.encoder, classifier.weight, x)
    found = saliency.class_activation(model, x)
    assert found is not None
    assert found[1].tolist() == k.tolist()
    assert found[0] == pytest.approx(expected.numpy(), abs=1e-4)


def attending(folder: Path) -> tuple[Model, Sided]:
    """A stand-in on a frozen body's maps, as TADA is."""
    model = built(folder, "head")
    assert model.frozen is not None
    body = model.frozen.get_submodule("body")
    method = Sided(Network(nn.Identity(), nn.Identity(), 3, bottleneck=0, level="map"))
    model.frozen, model.method = body, method
    return model, method


def test_class_activation_counts_what_attention_weighs(tmp_path: Path) -> None:
    """With z the sums of the attended channels, a region's evidence is its weight times its channel above the mean."""
    model, method = attending(tmp_path)
    assert model.frozen is not None
    x = images(model)
    with torch.no_grad():
        h = model.frozen(x)
        weighed = method.attended(h)  # the weights carry no gradient
        z = weighed.sum((2, 3))[:, :2]
        k = z.argmax(1)
        maps = (weighed[range(3), k] - weighed[:, :2].mean(1)).clamp(min=0)
    found = saliency.class_activation(model, x)
    assert found is not None
    assert found[1].tolist() == k.tolist()
    assert found[0] == pytest.approx((maps / maps.amax((1, 2), keepdim=True)).numpy(), abs=1e-4)


def test_attention_maps_are_the_method_s(tmp_path: Path) -> None:
    model, _ = attending(tmp_path)
    assert model.frozen is not None
    x = images(model)
    with torch.no_grad():
        expected = model.frozen(x).mean(1)
    found = saliency.attention_maps(model, x)
    assert list(found) == ["bright"]
    assert found["bright"] == pytest.approx(expected.numpy(), abs=1e-6)
    assert saliency.attention_maps(built(tmp_path, "head"), x) == {}


@pytest.mark.parametrize("tune", ["head", "top", "all"])
def test_class_activation_of_tokens_comes_from_before_the_last_block(tmp_path: Path, tune: str) -> None:
    """The class is read off the class token: after the last block no other token would count."""
    model = built(tmp_path, tune, name="test_vit")
    found = saliency.class_activation(model, images(model))
    assert found is not None
    maps = found[0]
    assert maps.ndim == 3
    assert maps.shape[1] == maps.shape[2] == 10  # 160 pixels in patches of 16
    assert (maps.reshape(3, -1) > 0).sum(1).min() > 1
    head = saliency.class_activation(built(tmp_path, "head", name="test_vit"), images(model))
    assert head is not None
    assert maps == pytest.approx(head[0], abs=1e-3)


def test_logits_without_a_gradient_have_no_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(tmp_path, "head")
    monkeypatch.setattr(type(model.method), "predict", lambda self, x: x.detach()[:, :3].round())
    assert saliency.class_activation(model, images(model)) is None


# --- channel masks -------------------------------------------------------------------------------------------------


def test_masks_are_counted_and_compared_with_chance() -> None:
    masks = {
        "domain": torch.tensor([[1, 1, 0, 0]]).bool(),
        "class": torch.tensor([[1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1]]).bool(),
    }
    described, overlaps = analysis.compare_masks(masks)
    assert described == [analysis.Mask("domain", 4, (2,)), analysis.Mask("class", 4, (1, 3, 2))]
    assert overlaps == [
        analysis.Overlap("domain", "class", observed=(1 + 2 + 0) / 3, expected=(2 + 6 + 4) / 4 / 3),
        analysis.Overlap("class", "class", observed=(1 + 0 + 1) / 3, expected=(3 + 2 + 6) / 4 / 3),
    ]


def test_random_masks_share_what_chance_gives() -> None:
    M = torch.rand(40, 2000, generator=torch.Generator().manual_seed(0)) < 0.3
    (overlap,) = analysis.compare_masks({"class": M})[1]
    assert overlap.observed == pytest.approx(overlap.expected, rel=0.02)
    assert overlap.expected == pytest.approx(0.09 * 2000, rel=0.05)


def test_masks_of_different_features_are_not_compared() -> None:
    masks = {"domain": torch.ones(1, 6).bool(), "class": torch.ones(2, 4).bool()}
    assert [(o.first, o.second) for o in analysis.compare_masks(masks)[1]] == [("class", "class")]
    assert analysis.compare_masks({}) == ([], [])


def test_wemnet_s_masks_are_those_it_uses() -> None:
    net = Network(nn.Identity(), nn.Identity(), 6, bottleneck=8, level="vector")
    method: Any = registry.load("wemnet")(net, 3)
    masks = method.masks()
    assert masks["domain"].dtype == masks["class"].dtype == torch.bool
    assert (masks["domain"] == (method.domain_mask() > 0)).all()
    assert (masks["class"] == (method.class_masks() > 0)).all()
    without: Any = registry.load("wemnet")(net, 3, dim=False)
    assert list(without.masks()) == ["class"]
    assert registry.load("dann")(net, 3).masks() == {}


# --- intervals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_s_interval(correct: int, n: int, low: float, high: float) -> None:
    """The last row is the example of Newcombe, Statistics in Medicine 1998."""
    assert scores.interval(correct, n) == pytest.approx((low, high), abs=1e-4)


def test_masks_survive_their_packing_and_say_how_many_how_stable_and_how_alike() -> None:
    class_masks = torch.tensor([[1, 1, 0, 0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0, 1]])
    moved = class_masks.clone()
    moved[0] = torch.tensor([1, 0, 0, 0, 0, 0, 0, 0, 0])
    domain = torch.tensor([[1, 0, 0, 1, 0, 0, 0, 0, 0]])
    logged = [
        analysis.pack_masks({"class": class_masks.bool(), "domain": domain.bool()}),
        analysis.pack_masks({"class": moved.bool(), "domain": (1 - domain).bool()}),
    ]
    first, second = analysis.mask_figures(logged)
    assert first == pytest.approx(
        {
            "class mask: channels, %": 100 * 5 / 27,
            "class masks: shared, %": 100 * (1 / 3) / 3,  # channel 1 of 0, 1 and 2 in the first of three pairs
            "domain mask: channels, %": 100 * 2 / 9,
        }
    )
    assert second["class mask: kept, %"] == pytest.approx(100 * (1 / 2 + 1 + 1) / 3)
    assert second["class masks: shared, %"] == 0
    assert second["domain mask: kept, %"] == 0
    assert analysis.mask_figures([{}]) == [{}]


def test_equal_and_empty_masks_are_kept_whole() -> None:
    packed = analysis.pack_masks({"domain": torch.zeros(1, 5, dtype=torch.bool)})
    assert analysis.mask_figures([packed, packed])[1]["domain mask: kept, %"] == 100
