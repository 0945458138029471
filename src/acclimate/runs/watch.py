"""Is it still that target? New images beside the target that a run was made for."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from acclimate.choices import Side
from acclimate.data.broken import BrokenImages
from acclimate.data.domain import Domain, Indices
from acclimate.data.read import read_targets
from acclimate.errors import DataError
from acclimate.evaluation.predict import predict
from acclimate.evaluation.scores import Probabilities
from acclimate.model import Model
from acclimate.progress import NOBODY, Listener, Track
from acclimate.runs.hub import located
from acclimate.runs.record import read_record
from acclimate.runs.reference import FILE, features, read_reference
from acclimate.runs.use import in_parts, load
from acclimate.trust.drift import FEWEST, MOST, Drift, Features, Reference, Sign, SignKind, drift

Distances: TypeAlias = npt.NDArray[np.float64]

NAMES: dict[SignKind, str] = {
    "classifier": "Telling them apart",
    "outputs": "What the model says",
    "shares": "Class shares",
    "novelty": "Novel images",
    "confidence": "Confidence",
}

LABELS = 30  # images to label where there is a doubt


@dataclass(frozen=True, eq=False)
class Watched:
    """New images beside the target of a run.

    Attributes:
        run: The run directory, as it was named, or a name on the hub.
        classes: K class names.
        source: Where the source was from; None where the run does not tell.
        target: The same of the target.
        n: Images of the target in the reference.
        drift: What the checks have found.
        images: The new images that could be read.
        data: What was named.
        probabilities: (m, K) of each of them.
        distances: (m,) of each from the nearest of the reference; beyond 1 it is novel.
        skipped: Names and reasons of the images that could not be read.
    """

    run: str
    classes: tuple[str, ...]
    source: str | None
    target: str | None
    n: int
    drift: Drift
    images: Domain
    data: tuple[str, ...]
    probabilities: Probabilities
    distances: Distances
    skipped: tuple[tuple[str, str], ...]

    @property
    def verdict(self) -> str:
        """What to make of it, in a few words."""
        found = set(self.drift.drifted)
        if not found:
            return "No sign of drift"
        return "The class shares have moved" if found == {"shares"} else "This is no longer that target"

    def most_novel(self, count: int) -> list[int]:
        """The positions of the images that are furthest from all of the reference, the furthest first."""
        return [int(i) for i in np.argsort(-self.distances, kind="stable")[:count]]

    def sentence(self, sign: Sign) -> str:
        """What a check has found."""
        d, size = self.drift, sign.size
        match sign.check:
            case "classifier":
                return (
                    f"A linear classifier tells the new images from the target's with an area under the curve of "
                    f"{size:.2f}, where chance has 0.5."
                )
            case "outputs":
                name = self.classes[int(d.outputs.argmax())]
                return f"The probabilities of '{name}' are distributed differently, by {size:.2f} of 1 at most."
            case "shares":
                k = int(np.abs(d.shares_after - d.shares_before).argmax())
                before, after = 100 * d.shares_before[k], 100 * d.shares_after[k]
                return (
                    f"{100 * size:.1f} % of the class shares have moved, most of all that of '{self.classes[k]}': "
                    f"{before:.1f} % before, {after:.1f} % now."
                )
            case "novelty":
                return f"{100 * size:.1f} % of the images are novel; of the target's, 1 % are."
        before, after = 100 * d.confidence_before, 100 * d.confidence_after
        return f"The mean confidence is {after:.1f} %; on the target it was {before:.1f} %."

    @property
    def advice(self) -> str:
        """What to do about it, in a sentence or two."""
        found = set(self.drift.drifted)
        if not found:
            return (
                "Nothing needs to be done. The checks see how images look, not whether the predictions are right: "
                "a few labels now and then tell that."
            )
        if found == {"shares"}:
            return (
                "The images look as they did, but the classes come in other shares. The model can go on; expect other "
                f"totals, and label {LABELS} of the images if they matter."
            )
        return (
            "What was known of the model's accuracy does not hold for these images. "
            f"Label {LABELS} of them and measure, or adapt to them, which takes no label."
        )

    @property
    def commands(self) -> list[list[str]]:
        """The commands that do what the advice says."""
        if set(self.drift.drifted) <= {"shares"}:
            return []
        again = ["acclimate", "fit", "--source", shlex.quote(self.source or "SOURCE"), "--target"]
        return [
            ["acclimate", "evaluate", shlex.quote(self.run), "LABELLED"],
            [*again, shlex.quote(self.data[0]) if len(self.data) == 1 else "NEW", "--out", "runs/new"],
        ]

    def as_dict(self, novel: int = 16) -> dict[str, Any]:
        """Everything, for JSON; of the images, only the most novel ones."""
        d = self.drift
        return {
            "verdict": self.verdict,
            "drifted": list(d.drifted),
            "images": d.m,
            "reference": self.n,
            "checks": {
                sign.check: {
                    "size": sign.size,
                    "bound": sign.bound,
                    "p": sign.p,
                    "drifted": sign.drifted,
                    "sentence": self.sentence(sign),
                }
                for sign in d.signs
            },
            "shares": {
                name: {"before": before, "after": after}
                for name, before, after in zip(
                    self.classes, d.shares_before.tolist(), d.shares_after.tolist(), strict=True
                )
            },
            "novel": [
                {"path": self.images.names[i], "distance": float(self.distances[i])} for i in self.most_novel(novel)
            ],
            "skipped": [{"path": name, "reason": reason} for name, reason in self.skipped],
            "advice": self.advice,
            "commands": [" ".join(command) for command in self.commands],
        }


def watch(
    run: str | Path,
    new: str | Path | Sequence[str | Path],
    screen: Listener = NOBODY,
    *,
    device: str = "auto",
    method: str | None = None,
    backbone: str | None = None,
    seed: int = 0,
) -> Watched:
    """Compare new images with the target that a run was made for.

    Args:
        run: The run directory, which `fit` has written, or a name on the hub as for `load`.
        new: At least 100 images, as for `acclimate predict`: a folder, a list, files, or several of these.
        screen: Where progress and warnings are shown.
        device: Where the model runs.
        method: The method again, as for `Model.load`.
        backbone: The backbone again, as for `Model.load`.
        seed: Of samples, folds and permutations.

    Raises:
        DataError: The run keeps no sample of its target, or there are too few images, or they cannot be used.
        OptionError: The method or the backbone has to be given again.
    """
    named, run = run, located(run)
    model = load(run, device, method=method, backbone=backbone)
    reference = read_reference(run, len(model.spec.classes))
    data = tuple(map(str, (new,) if isinstance(new, str | Path) else new))
    found = read_targets(data)
    model.check(found)
    if len(found) < FEWEST:
        raise DataError(f"{found.origin} holds {len(found)} images, too few to tell: give at least {FEWEST}.")
    skipped: list[tuple[str, str]] = []
    look = _Look(model, reference, np.random.default_rng(seed).permutation(len(found)) < MOST)
    seen = [part for _, part in in_parts(found, look, skipped, screen, "Comparing")]
    positions, p, distances, f = (np.concatenate(parts) for parts in zip(*seen, strict=True))
    chosen = np.flatnonzero(look.sampled[positions])
    return Watched(
        run=str(named),
        classes=model.spec.classes,
        source=_origin(run, "source"),
        target=_origin(run, "target"),
        n=len(reference.features),
        drift=drift(reference, f, p, distances, chosen, seed),
        images=found.select(positions),
        data=data,
        probabilities=p,
        distances=distances,
        skipped=tuple(skipped),
    )


class _Seen(NamedTuple):
    """Of k images that could be read: their positions, (k, K), (k,), and (l, D) of those in the sample."""

    positions: Indices
    probabilities: Probabilities
    distances: Distances
    features: Features


class _Look:
    """What is kept of new images, part by part.

    Args:
        model: The model.
        reference: What they are compared with.
        sampled: (N,) bool, which of all N are in the sample.
    """

    def __init__(self, model: Model, reference: Reference, sampled: npt.NDArray[np.bool_]) -> None:
        self.model, self.reference, self.sampled = model, reference, sampled
        self._start = 0

    def __call__(self, part: Domain, track: Track, broken: BrokenImages) -> _Seen:
        inputs = self.model.inputs(part, broken=broken, track=track)
        p = predict(self.model.method, inputs, device=self.model.device, track=track)
        if broken.reasons:
            inputs = self.model.inputs(part.select(broken.readable))
        f = features(self.model, inputs) if len(p) else self.reference.features[:0]
        if f.shape[1] != self.reference.features.shape[1]:
            raise DataError(f"{FILE} is not that of this model: make the run again with acclimate fit.")
        positions = self._start + broken.readable
        self._start += len(part)
        return _Seen(positions, p, self.reference.distances(f), f[self.sampled[positions]])


def _origin(run: Path, side: Side) -> str | None:
    """Where the source or the target of a run was from; None of a model without a record."""
    try:
        data = read_record(run / "record.json").data
    except DataError:
        return None
    return data.source.origin if side == "source" else data.target.origin
