"""Filling the cache: the frozen features of images, all or one part of several, before the runs that read them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from acclimate.data.broken import MOST_BROKEN, BrokenImages
from acclimate.data.domain import Domain
from acclimate.errors import OptionError
from acclimate.files import cache_may_change
from acclimate.machine import pick_device
from acclimate.methods import registry
from acclimate.methods.registry import CONSENSUS
from acclimate.model import Model
from acclimate.networks import engine
from acclimate.networks.backbones import load_backbone
from acclimate.progress import NOBODY, Listener
from acclimate.runs.members import members_of
from acclimate.runs.prepare import augment_of, resolve, views_of
from acclimate.settings import OF_FEATURES, Settings
from acclimate.shard import Shard

WHOLE = Shard(0, 1)

_ANY = ("a", "b")  # the names of the classes make no difference to features


class Data(NamedTuple):
    """The settings of a run, and all data that it reads: what "auto" means may depend on how many there are."""

    settings: Settings
    domains: tuple[Domain, ...]


class Filled(NamedTuple):
    """What the cache holds now.

    Attributes:
        data: Where the images are from.
        images: How many have features, of those that were asked for.
        skipped: How many cannot be read.
        backbone: The network.
        tune: What is trained on the features.
        level: What they are: vectors or maps.
        extractor: What computed them.
    """

    data: str
    images: int
    skipped: int
    backbone: str
    tune: str
    level: str
    extractor: str


@dataclass
class _Kind:
    """Features of one kind: the first run that reads them, the method that they are for, and the images.

    Attributes:
        run: The run.
        method: The settings of its method, or of one of its members.
        domains: By their fingerprints, so that each comes once.
    """

    run: Data
    method: Settings
    domains: dict[str, Domain] = field(default_factory=dict)


def fill(runs: Sequence[Data], screen: Listener = NOBODY, *, shard: Shard = WHOLE) -> list[Filled]:
    """Put the features that runs read into the cache, so that they compute none. What is there is not computed again.

    It is the extraction of the runs themselves, so the features have the same bits. A kill costs a batch a thread.

    Args:
        runs: What is to be run.
        screen: Who is told how it comes along.
        shard: Take this part of the images alone; it gets a store of its own.

    Returns:
        What is in the cache now, an entry for each kind of features of each domain.

    Raises:
        DataError: Too many images are broken, the cache cannot be written to, or there are no images.
        OptionError: The settings do not fit, or nothing is frozen.
    """
    if not cache_may_change():
        raise OptionError("The cache may only be read: unset ACCLIMATE_CACHE_READONLY to fill it.")
    filled = [entry for kind in _kinds(runs) for entry in _fill(kind, shard, screen)]
    if not filled:
        raise OptionError(
            "Nothing of these data has features to compute: give images, and --tune head or top, by which a part of "
            "the backbone is frozen."
        )
    return filled


def _kinds(runs: Sequence[Data]) -> list[_Kind]:
    """The kinds of features that the runs read, and of which images."""
    kinds: dict[tuple[Any, ...], _Kind] = {}
    for run in runs:
        images = [domain for domain in run.domains if domain.kind != "vectors"]
        for method in _methods(run.settings) if images else ():
            needs = registry.load(method.method).needs
            given = [getattr(run.settings, name) for name in OF_FEATURES if name != "method"]
            pays = sum(map(len, run.domains)) >= engine.PAYS
            kind = kinds.setdefault((*given, needs, run.settings.method == CONSENSUS, pays), _Kind(run, method))
            kind.domains |= {domain.fingerprint(): domain for domain in images}
    return [*kinds.values()]


def _methods(settings: Settings) -> Iterator[Settings]:
    """The settings of a run's method, and of the members that it may have."""
    yield settings
    if settings.method == CONSENSUS:
        yield from (member.settings for member in members_of(settings))


def _fill(kind: _Kind, shard: Shard, screen: Listener) -> Iterator[Filled]:
    """Compute what is missing of one kind of features."""
    settings, device = kind.run.settings, pick_device(kind.run.settings.device)
    found = registry.find(kind.method.method)
    backbone = load_backbone(settings.backbone, weights=Path(settings.weights) if settings.weights else None)
    spec = resolve(settings, registry.find(settings.method), _ANY, kind.run.domains, backbone, device)
    if spec.tune == "all":
        return
    views = views_of(augment_of(settings, spec.tune, backbone))
    spec = replace(spec, method=found.name, options=dict(kind.method.options), origin=found.origin)
    model = Model(spec, backbone, device, method=found.method)
    for domain in kind.domains.values():
        part = _part(domain, shard)
        broken = BrokenImages(part, MOST_BROKEN * len(domain) / max(len(part), 1))  # so many as a run would accept
        if len(part):
            with broken.found(screen.track):
                model.inputs(part, views=views, broken=broken, shard=shard, track=screen.track)
        level, used = model.method.net.level, model.spec.extractor
        skipped = len(broken.reasons)
        yield Filled(domain.origin, len(part) - skipped, skipped, backbone.name, spec.tune, level, used)


def _part(domain: Domain, shard: Shard) -> Domain:
    """The images of a part, each assigned by its name, which is the same on all machines and wherever the data lie."""
    if shard == WHOLE:
        return domain
    return domain.select([i for i, name in enumerate(domain.names) if shard.has(_hash(name))])


def _hash(name: str) -> str:
    return hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).hexdigest()
