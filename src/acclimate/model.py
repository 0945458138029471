"""A model: a backbone, a method on it, and all that is needed to predict again exactly as in training."""

from __future__ import annotations

import copy
import json
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import acclimate
from acclimate.cache.content import Content
from acclimate.cache.features import OfPixels, as_cached, features
from acclimate.cache.images import image_inputs
from acclimate.choices import Augment, Extractor, Interpolation, KeepImages, Level, Precision, Tune, View
from acclimate.data.broken import BrokenImages
from acclimate.data.decode import BrokenImageError, ImageInHand, Pixels, in_hand, pictured
from acclimate.data.domain import Domain
from acclimate.data.inputs import ArrayInputs, InHandInputs, Inputs, MappedInputs
from acclimate.data.preprocess import Preprocess
from acclimate.data.read import domain_of
from acclimate.errors import AcclimateError, DataError, OptionError
from acclimate.evaluation import predict as scores
from acclimate.evaluation.scores import Probabilities
from acclimate.files import digest, read_regular, replacing, write_json
from acclimate.machine import fast_bf16, random_state_kept
from acclimate.methods import registry
from acclimate.methods.base import Method, evaluation_mode
from acclimate.methods.options import check_options
from acclimate.networks import engine
from acclimate.networks.backbone import Backbone, weights_fingerprint
from acclimate.networks.backbones import BackboneSource, given_again, named_backbone
from acclimate.networks.folding import cast, folded
from acclimate.networks.network import Network, lay_out_convolutions
from acclimate.networks.outside import behaviour
from acclimate.networks.stages import split_top
from acclimate.outputs import DESCRIPTION, WEIGHTS, check_output
from acclimate.outside import Origin, shown
from acclimate.progress import Track, silent
from acclimate.schema import CHECKSUM, checksum
from acclimate.shard import Shard
from acclimate.tensors import write_tensors

Images: TypeAlias = ImageInHand | Iterable[ImageInHand]

MOST_DESCRIPTION = 2**26  # bytes of a model.json: a hundred thousand classes

MOST_MEAN = 1000  # of a pixel's value, which lies between 0 and 1

MOST_VECTOR = 2**24  # numbers of a feature vector

AT_ONCE = 256  # images of a domain that are computed at once, where they have up to so many pixels a side:

AT_ONCE_UP_TO = 384

IN_HAND = 8  # images that are computed at once: a CPU's caches hold what becomes of them

_one_at_a_time = threading.Lock()

log = logging.getLogger("acclimate")


@dataclass(frozen=True)
class ModelSpec:
    """What a model is built from: the content of model.json.

    Attributes:
        method: The method's name, as `registry.Found` has it.
        options: Its hyper-parameters, where they differ from the defaults.
        classes: K class names.
        backbone: The backbone's name, as `Backbone` has it; None for a model of feature vectors.
        vector: Length of the feature vectors, where there is no backbone.
        tune: What is trained: the "head" on the frozen backbone's vectors, the "top" stage of the backbone as well,
            on the frozen trunk's maps, or "all".
        bottleneck: Length d of the feature that methods work on; 0 for the backbone's own.
        preprocess: How an image becomes an input; None where there is no backbone.
        bf16: Whether the backbone ran in bfloat16.
        cache_precision: How exactly the frozen part's output is cached.
        origin: Where the method is from; None means from this package.
        backbone_origin: Where the backbone is from; None means from this package or from timm.
        extractor: What computed the frozen part's output.
    """

    method: str
    options: dict[str, Any]
    classes: tuple[str, ...]
    backbone: str | None
    vector: int | None
    tune: Tune
    bottleneck: int
    preprocess: Preprocess | None
    bf16: bool
    cache_precision: Precision = "fp16"
    origin: Origin | None = None
    backbone_origin: Origin | None = None
    extractor: Extractor = "torch"

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> ModelSpec:
        """Read what `dataclasses.asdict` made of a spec.

        Raises:
            KeyError: An entry is missing.
            TypeError: An entry is of another type.
            ValueError: An entry has an impossible value.
        """
        given = {name: entry[name] for name in cls.__dataclass_fields__}
        _check_entries(given)
        given["classes"] = tuple(given["classes"])
        for name in ("origin", "backbone_origin"):
            given[name] = Origin.from_dict(given[name]) if given[name] is not None else None
        if given["preprocess"] is not None:
            given["preprocess"] = Preprocess(**given["preprocess"])
            _check_numbers(given["preprocess"])
        return cls(**given)


class Prediction(NamedTuple):
    """What a model says of N images.

    Attributes:
        predicted: The names of the most probable classes.
        probabilities: (N, K), in the order of the model's `spec.classes`.
    """

    predicted: tuple[str, ...]
    probabilities: Probabilities


class Model:
    """A method on a backbone, which turns images into class probabilities.

    Args:
        spec: What it is built from.
        backbone: The backbone with its weights; None for feature vectors. The method trains a part of it in place.
        device: Where it runs.
        method: The method's class; None loads it by the name that the spec has.

    Attributes:
        frozen: The part of the backbone that is not trained, whose output is cached; None where there is none.
        method: The method, on the network that it trains.
    """

    def __init__(
        self,
        spec: ModelSpec,
        backbone: Backbone | None,
        device: torch.device | str = "cpu",
        *,
        method: type[Method] | None = None,
    ) -> None:
        self.spec = spec
        self.device = torch.device(device)
        method = method or registry.load(spec.method)
        self.frozen, network = _divide(spec, backbone, method.needs, method=registry.shown(spec.method))
        self.method = method(network, len(spec.classes), **spec.options).to(self.device)
        if self.device.type == "cpu":
            lay_out_convolutions(self.method, images=network.level == "image")
        if self.frozen is not None:
            self.frozen.to(self.device).eval().requires_grad_(False)
        self._engine_examined = False
        self._engine_made: engine.Engine | None = None

    def inputs(
        self,
        domain: Domain,
        *,
        views: tuple[View, ...] = ("plain",),
        augment: Augment = "none",
        images: KeepImages = "auto",
        broken: BrokenImages | None = None,
        shard: Shard | None = None,
        track: Track = silent,
    ) -> Inputs:
        """What the method's batches of a domain are drawn from: cached features, or the images themselves.

        Args:
            domain: Images, or vectors if that is what the model was made for.
            views: The views to cache, where features are cached.
            augment: The random views to train on, where they are not.
            images: Where resized images are kept, where no features are cached; see `image_inputs`.
            broken: Knows or notes which images of the domain cannot be read; they are left out. None refuses them.
            shard: The part of an extraction that the domain is; see `cache.features.features`.
            track: Shows the progress of the extraction.
        """
        self.check(domain)
        if self.spec.preprocess is None:
            return ArrayInputs(np.asarray(domain.items)[None])
        if broken is not None and broken.known:
            domain, broken = broken.left, None
            if not len(domain):
                return ArrayInputs(np.empty((1, 0)))
        if self.frozen is None:
            return image_inputs(domain, self.spec.preprocess, augment, images=images, broken=broken)
        preprocess = self.spec.preprocess

        def sample() -> Pixels:
            return _some_pixels(domain, preprocess)

        in_engine = self._uses_engine(sample)
        content = Content(
            backbone=self._cached_as,
            weights=self._fingerprint,
            level=self.method.net.level,
            tune=self.spec.tune,
            preprocess=self.spec.preprocess,
            views=views,
            bf16=self.spec.bf16,
            precision=self.spec.cache_precision,
            engine=f"openvino {engine.version()}" if in_engine else "torch",
        )

        def network() -> nn.Module | OfPixels:
            return self._engine(sample) if in_engine else self._extractor

        return features(network, domain, content, device=self.device, broken=broken, shard=shard, track=track)

    def _uses_engine(self, sample: Callable[[], Pixels]) -> bool:
        """Whether OpenVINO runs the frozen part: if the model was made for it, and nothing speaks against it.

        Args:
            sample: Gives images, if nobody has compared it with PyTorch for this network yet.
        """
        if self.frozen is None or self.device.type != "cpu":
            return False
        with _one_at_a_time:
            if self.spec.extractor == "openvino" and not self._engine_examined:
                against = self._examined(sample)
                if against:
                    log.warning("PyTorch computes the features in place of OpenVINO: %s.", against)
                    self.spec = replace(self.spec, extractor="torch")
                self._engine_examined = True
            return self.spec.extractor == "openvino"

    def _examined(self, sample: Callable[[], Pixels]) -> str:
        """What speaks against OpenVINO, or "". The cache remembers it."""
        if engine.version() is None:
            return "that is not installed (pip install acclimate[fast])"
        verdict = self._place.verdict()
        if verdict is None:
            try:
                self._engine_made, verdict = self._make_engine(sample), ""
            except engine.DisagreesError as error:
                verdict = str(error)
            self._place.note(verdict)
        return verdict

    def _engine(self, sample: Callable[[], Pixels]) -> engine.Engine:
        """The frozen part in OpenVINO, compared with PyTorch once a process: a file of the cache may be damaged.

        Raises:
            OptionError: It does not compute what PyTorch does, though it did before.
        """
        with _one_at_a_time:
            if self._engine_made is None:
                try:
                    self._engine_made = self._make_engine(sample)
                except engine.DisagreesError as error:
                    raise OptionError(
                        f"OpenVINO does not run the backbone as PyTorch does any more ({error}): use --extractor torch."
                    ) from error
            return self._engine_made

    def _make_engine(self, sample: Callable[[], Pixels]) -> engine.Engine:
        assert self.frozen is not None
        assert self.spec.preprocess is not None
        return engine.engine(self.frozen, self.spec.preprocess, self._place, sample(), bf16=self.spec.bf16)

    @cached_property
    def _place(self) -> engine.Place:
        assert self.spec.preprocess is not None
        network = (self._cached_as, self._fingerprint, self.method.net.level, self.spec.tune)
        return engine.Place(network, self.spec.preprocess, bf16=self.spec.bf16)

    @cached_property
    def _fingerprint(self) -> str:
        """That of the frozen part's weights, computed once for all domains."""
        assert self.frozen is not None
        return weights_fingerprint(self.frozen)

    @cached_property
    def _cached_as(self) -> str:
        """What the cache knows the backbone by: its name, and of one from outside what tells of its code as well."""
        name, origin = self.spec.backbone or "", self.spec.backbone_origin
        if origin is None:
            return name
        assert self.frozen is not None
        assert self.spec.preprocess is not None
        return f"{shown(name)} {origin.sha256 or origin.kind} {behaviour(self.frozen, self.spec.preprocess)}"

    @cached_property
    def _extractor(self) -> nn.Module:
        """The frozen part as it is fastest, made when there is something to compute."""
        assert self.frozen is not None
        assert self.spec.preprocess is not None
        channels, side = self.spec.preprocess.channels, self.spec.preprocess.size
        x = torch.rand(1, channels, side, side, generator=torch.Generator().manual_seed(0))
        with _one_at_a_time:  # folding looks into the network while it runs
            # On a CPU: a GPU's convolutions in TF32 round so much that nothing seems to fold.
            frozen = self.frozen if self.device.type == "cpu" else copy.deepcopy(self.frozen).cpu()
            network = folded(frozen, x).to(self.device)
            return cast(network, x.to(self.device)) if self.spec.bf16 else network

    def check(self, domain: Domain) -> None:
        """Check, without computing anything, that the model can read a domain.

        Raises:
            DataError: It holds images and the model reads vectors, or the reverse, or vectors of another length.
        """
        if self.spec.preprocess is not None:
            if domain.kind == "vectors":
                raise DataError(f"{domain.origin} holds feature vectors, but the model reads images: give it images.")
        elif isinstance(domain.items, tuple) or domain.kind != "vectors":
            raise DataError(
                f"{domain.origin} holds images, but the model reads feature vectors: give it an .npz of them."
            )
        elif domain.items.shape[1] != self.spec.vector:
            raise DataError(
                f"{domain.origin} has vectors of {domain.items.shape[1]:,} numbers, but the model reads "
                f"{self.spec.vector:,}: compute them with the features that it was trained on."
            )

    def __call__(self, x: Tensor) -> Tensor:
        """Class logits (B, K) of a batch, in evaluation mode, whatever mode the method is in.

        They have gradients unless the caller turns these off. `predict` differs by rounding where a part is frozen: it
        takes that part's output from the cache, which keeps it as `spec.cache_precision` says.

        Args:
            x: Images (B, C, H, W), preprocessed as `spec.preprocess` says, or feature vectors (B, D).
        """
        with evaluation_mode(self.method, gradients=True):
            return self.method.predict(self.method_input(x))

    def method_input(self, x: Tensor) -> Tensor:
        """What the method is given of a batch of images or vectors: the frozen part's output, or the batch itself."""
        x = x.to(self.device)
        return x if self.frozen is None else self.frozen(x)

    def predict(self, images: Domain | Images, track: Track = silent, broken: BrokenImages | None = None) -> Prediction:
        """Classify images, or vectors if that is what the model was made for. Several threads may call it at once.

        How reliable a prediction is, the model cannot say: that is the share of a consensus's members that agree, and
        only their common result is kept. A run's predictions.csv has it for the run's own target.

        Args:
            images: One image or several: paths, the bytes of files, images of Pillow, or uint8 pixels (H, W) or
                (H, W, 1, 3 or 4), in any mixture; an array with one more axis holds several. To a model of vectors, an
                array (D,) or (N, D). Nothing is cached, but of a `Domain`, as `read_target` makes it of a folder.
            track: Shows the progress.
            broken: Knows or notes which images of a domain cannot be read; they have no row. None refuses them.

        Raises:
            DataError: An image cannot be read, or the model reads something else.
            DivergedError: The probabilities are not finite.
        """
        inputs = self._inputs_of(images, track, broken)
        size = _batch_size(images, self.spec.preprocess)
        p = scores.predict(self.method, inputs, device=self.device, batch_size=size, track=track)
        return Prediction(tuple(self.spec.classes[k] for k in p.argmax(1)), p)

    def features(self, images: Domain | Images, track: Track = silent) -> npt.NDArray[np.float32]:
        """The features (N, d) of images, taken for the target's, in which the method compares the domains.

        Args:
            images: As for `predict`.
            track: Shows the progress.

        Raises:
            DataError: An image cannot be read, or the model reads something else.
        """
        inputs = self._inputs_of(images, track)
        size = _batch_size(images, self.spec.preprocess)
        return scores.features(self.method, inputs, device=self.device, batch_size=size, track=track)

    def _inputs_of(self, images: Domain | Images, track: Track, broken: BrokenImages | None = None) -> Inputs:
        """What the method reads of a domain, or of images in hand, which bypass the cache."""
        if isinstance(images, Domain):
            return self.inputs(images, broken=broken, track=track)
        if self.spec.preprocess is None:
            return self.inputs(domain_of(np.atleast_2d(np.asarray(images)), "What was given"))
        inputs = InHandInputs(in_hand(images), self.spec.preprocess)
        return inputs if self.frozen is None else MappedInputs(self._extracted, inputs)

    def _extracted(self, pixels: Pixels) -> Tensor:
        """What the frozen part makes of pixels (B, H, W, C): but for rounding, what the cache would hold of them."""
        assert self.spec.preprocess is not None

        def sample() -> Pixels:
            return pixels[: engine.COMPARED]

        if self._uses_engine(sample):
            return as_cached(self._engine(sample)(pixels), self.spec.cache_precision)
        x = self.spec.preprocess.normalised(pixels).to(self.device, memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.spec.bf16):
            return as_cached(self._extractor(x).float(), self.spec.cache_precision)

    @property
    def feature_length(self) -> int:
        """d, the length of a feature."""
        inputs = self.spec.preprocess
        if inputs is None:
            x = torch.zeros(1, self.spec.vector or 0)
        else:
            x = torch.zeros(1, inputs.channels, inputs.size, inputs.size)
        with evaluation_mode(self.method):
            return int(self.method.feature(self.method_input(x), "target").shape[1])

    def save(self, folder: Path) -> None:
        """Write model.safetensors and model.json, with checksums that `load` compares.

        Raises:
            DataError: The folder holds a finished run, or other files of these names.
            OSError: They cannot be written.
        """
        check_output(folder / "model.json", DESCRIPTION)
        check_output(folder / "model.safetensors", WEIGHTS)
        tensors = {f"method/{name}": tensor for name, tensor in self.method.state_dict().items()}
        if self.frozen is not None:
            tensors |= {f"frozen/{name}": tensor for name, tensor in self.frozen.state_dict().items()}
        with replacing(folder / "model.safetensors") as temporary:
            write_tensors(temporary, tensors)
            sha256 = digest(temporary)
        versions = {"acclimate": acclimate.__version__, "torch": str(torch.__version__)}
        entries = {**asdict(self.spec), "versions": versions, "sha256": sha256}
        write_json(folder / "model.json", {**entries, CHECKSUM: checksum(entries)})

    def _take(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the tensors of a file.

        Raises:
            RuntimeError: They are others than the model has.
        """
        parts = {"method/": self.method, "frozen/": self.frozen}
        for name, module in parts.items():
            of_part = {k.removeprefix(name): tensor for k, tensor in tensors.items() if k.startswith(name)}
            if module is not None:
                module.load_state_dict(of_part)
            elif of_part:
                raise RuntimeError(f"there are tensors of a part {name} that the model does not have")
        if not all(name.startswith(tuple(parts)) for name in tensors):
            raise RuntimeError("there are tensors of no part of the model")

    @classmethod
    @random_state_kept(torch.device("cpu"))  # the weights are drawn before they are read
    def load(
        cls,
        folder: Path,
        device: torch.device | str = "cpu",
        *,
        method: str | type[Method] | None = None,
        backbone: BackboneSource | None = None,
        extractor: Extractor | None = None,
    ) -> Model:
        """Read what `save` wrote. A model from a stranger is safe to open: nothing is unpickled, and no file is run.

        Before a network is built or a tensor is read, the names and shapes of the tensors are compared with those that
        the description asks for, so that a description takes no more memory than its weights do.

        A method or a backbone from a file is run only if it is given again, and only if the file is what it was when
        the model was trained. A class or a module that is handed over is taken as it is, because Python runs it
        already; a model that was trained with one is loaded with it alone. A method of an installed package is found
        by its name; where the package has another version now, it has to be given again.

        Args:
            folder: Where the model lies.
            device: Where it is to run.
            method: The method that it was trained with, as for `registry.find`; None for those of this package.
            backbone: The backbone that it was trained with, as for `load_backbone`; None for those of this package and
                of timm. Its weights and its preprocessing are the model's. A model of feature vectors needs none.
            extractor: What computes the features of a frozen backbone on a CPU; None for what did when it was trained,
                where that is installed. Features differ by rounding.

        Raises:
            DataError: The folder holds no model, or a damaged one.
            OptionError: The method or the backbone has to be given again, is another one, or is not there.
        """
        whose = f"The model in {folder}"
        with _readable(folder):
            entries = _description(folder / "model.json")
            altered = entries.pop(CHECKSUM, None) not in (None, checksum(entries))
            spec = ModelSpec.from_json(entries)
            if spec.origin is None:
                registry.own(spec.method)  # refuses what is none
        if extractor == "openvino":
            engine.check(torch.device(device))
        found = registry.find_again(spec.method, spec.origin, method, whose)
        network = None
        if spec.backbone is not None and spec.preprocess is not None:
            network = given_again(spec.backbone, spec.backbone_origin, backbone, spec.preprocess, whose)
        with _readable(folder):
            check_options(found.method, spec.options)
            if spec.backbone_origin is None:
                _check_weights(spec, found.method, folder / "model.safetensors")
            sha256 = _digest_meanwhile(folder / "model.safetensors")
            tensors = load_file(folder / "model.safetensors")
            if network is not None:
                spec = replace(spec, backbone=network.name, backbone_origin=network.origin)
            elif spec.backbone is not None:
                network = named_backbone(spec.backbone, pretrained=False)
            device = torch.device(device)
            spec = replace(
                spec,
                method=found.name,
                origin=found.origin,
                bf16=spec.bf16 and fast_bf16(device),
                extractor=extractor or spec.extractor,
            )
            model = cls(spec, network, device, method=found.method)
            model._take(tensors)
            if entries.get("sha256") not in (None, sha256.result()):
                raise ValueError("the SHA-256 of model.safetensors is not the one in model.json")
            if altered:
                raise ValueError("the checksum of model.json is another")
            model.method.to(device)  # tensors whose shapes only the file knows were not there to be moved before
        model.method.eval()  # so that no thread that predicts has to change the mode, and have it changed back
        return model


def _some_pixels(domain: Domain, preprocess: Preprocess) -> Pixels:
    """A few of a domain's images as evaluation sees them, (B, size, size, C) uint8; noise if it has none to be read."""
    rng = np.random.default_rng(0)
    views: list[Pixels] = []
    for position in rng.permutation(len(domain))[: 4 * engine.COMPARED].tolist():
        with suppress(BrokenImageError), pictured(domain, position, at_least=preprocess.resize) as image:
            views.append(preprocess.plain(preprocess.resized(image)))
        if len(views) == engine.COMPARED:
            break
    if not views:
        return rng.integers(0, 256, (1, preprocess.size, preprocess.size, preprocess.channels), dtype=np.uint8)
    return np.stack(views)


def check_weights(folder: Path) -> None:
    """Refuse weights that are not those that were saved together with model.json.

    Raises:
        DataError: They are not, or there is no model.
    """
    with _readable(folder):
        expected = _description(folder / "model.json").get("sha256")
        found = digest(folder / "model.safetensors")
    if expected is not None and expected != found:
        raise DataError(
            f"{folder / 'model.safetensors'} is not the file that was saved with model.json: its SHA-256 differs; "
            "copy both again, or train the model again."
        )


def _description(path: Path) -> dict[str, Any]:
    """The entries of a model.json.

    Raises:
        ValueError: It is not JSON, or was altered.
        OSError: It cannot be read.
    """
    try:
        entries = json.loads(read_regular(path, MOST_DESCRIPTION))
    except RecursionError as error:
        raise ValueError("its entries lie too deep in each other") from error
    if not isinstance(entries, dict):
        raise TypeError("model.json is not an object")
    return entries


def _check_weights(spec: ModelSpec, method: type[Method], path: Path) -> None:
    """Check by their names and shapes that the tensors in a file are those of a model; none is read or made.

    Raises:
        RuntimeError: They are others.
    """
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        tensors = {name: torch.empty(part.get_shape(), device="meta") for name, part in slices.items()}
    with torch.device("meta"):
        network = named_backbone(spec.backbone, pretrained=False) if spec.backbone is not None else None
        Model(spec, network, "meta", method=method)._take(tensors)


def _digest_meanwhile(path: Path) -> Future[str]:
    """The SHA-256 of a file, computed while something else is done."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(digest, path)
    pool.shutdown(wait=False)
    return future


def _batch_size(images: object, preprocess: Preprocess | None) -> int:
    """How many images are computed at once; fewer if they are large, or a stranger's model would fill the memory."""
    if not isinstance(images, Domain):
        return IN_HAND
    if preprocess is None or preprocess.size <= AT_ONCE_UP_TO:
        return AT_ONCE
    return max(AT_ONCE * AT_ONCE_UP_TO**2 // preprocess.size**2, IN_HAND)


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Say in a sentence why a model cannot be read."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{folder} holds no finished model: name the folder that a fit wrote with --out.") from error
    except (AcclimateError, OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise DataError(
            f"The model in {folder} is damaged or of another version ({_reason(error)}): train it again."
        ) from error


def _divide(
    spec: ModelSpec, backbone: Backbone | None, needs: Level, *, method: str
) -> tuple[nn.Module | None, Network]:
    """The frozen part of a backbone, and the network that a method trains on its output."""
    if backbone is None:
        if spec.vector is None:
            raise OptionError("It has neither a backbone nor a length of its vectors.")
        if needs != "vector":
            raise OptionError(
                f"The method {method} needs {needs}s, not feature vectors: give it images, or choose another --method."
            )
        return None, Network(nn.Identity(), nn.Identity(), spec.vector, bottleneck=spec.bottleneck, level="vector")
    if needs == "image" and spec.tune != "all":
        raise OptionError(f"The method {method} needs the images themselves: use --tune all.")
    frozen: nn.Module | None = None
    encoder: nn.Module = nn.Identity()
    pool: nn.Module = backbone.pool
    level: Level = "map"
    if spec.tune == "all":
        encoder, level = backbone.body, "image"
    elif spec.tune == "top":
        frozen, encoder = split_top(backbone)
    elif needs == "map":
        frozen = backbone.body
    else:
        frozen, pool, level = backbone, nn.Identity(), "vector"
    network = Network(
        encoder,
        pool,
        backbone.channels,
        bottleneck=spec.bottleneck,
        level=level,
        pretrained=backbone.pretrained,
        bf16=spec.bf16 and level != "vector",
        mean=backbone.preprocess.mean,
        std=backbone.preprocess.std,
        map_shape=_map_shape(backbone) if needs == "map" else None,
    )
    return frozen, network


def _map_shape(backbone: Backbone) -> tuple[int, int, int] | None:
    """(C, H, W) of a backbone's maps; None if its body makes tokens. The map may have more channels than the vector."""
    side = backbone.preprocess.size
    x = torch.zeros(1, backbone.preprocess.channels, side, side, device=next(backbone.parameters()).device)
    with evaluation_mode(backbone):
        h = backbone.body(x)
    return (h.shape[1], h.shape[2], h.shape[3]) if h.ndim == 4 else None


def _check_entries(entry: dict[str, Any]) -> None:
    """Check the content of a model.json, which may come from anywhere."""
    classes, backbone, preprocess = entry["classes"], entry["backbone"], entry["preprocess"]
    if not isinstance(preprocess, dict | None):
        raise ValueError("model.json has an impossible value of preprocess")
    named = isinstance(classes, list | tuple) and all(isinstance(name, str) for name in classes)
    sound = {
        "method": isinstance(entry["method"], str),
        "options": isinstance(entry["options"], dict),
        "classes": named and len(set(classes)) == len(classes) > 1,
        "backbone": backbone is None or isinstance(backbone, str),
        "vector": _is_length(entry["vector"]),
        "tune": entry["tune"] in get_args(Tune),
        "bottleneck": type(entry["bottleneck"]) is int and entry["bottleneck"] >= 0,
        "preprocess": (preprocess is None) == (backbone is None),
        "pixels": preprocess is None or all(type(preprocess.get(name)) is int for name in ("resize", "size")),
        "interpolation": preprocess is None or preprocess["interpolation"] in get_args(Interpolation),
        "bf16": isinstance(entry["bf16"], bool),
        "cache_precision": entry["cache_precision"] in get_args(Precision),
        "extractor": entry["extractor"] in get_args(Extractor),
    }
    wrong = [name for name, right in sound.items() if not right]
    if wrong:
        raise ValueError(f"model.json has an impossible value of {', '.join(wrong)}")


def _check_numbers(preprocess: Preprocess) -> None:
    """Refuse means and deviations of a model.json by which no image can be prepared."""
    numbers = (*preprocess.mean, *preprocess.std)
    if not all(type(number) in (int, float) and abs(number) <= MOST_MEAN for number in numbers) or 0 in preprocess.std:
        raise ValueError("model.json has impossible means or deviations")


def _is_length(value: object) -> bool:
    return value is None or (type(value) is int and 1 <= value <= MOST_VECTOR)


def _reason(error: Exception) -> str:
    """Why a model cannot be loaded, in a few words."""
    if isinstance(error, KeyError):
        return f"model.json lacks {error}"
    if isinstance(error, RuntimeError):
        return "the weights do not fit model.json"
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
