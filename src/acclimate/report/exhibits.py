"""What a report exhibits: the run, its data read anew, its images, and what the model makes of them."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from acclimate.data.broken import BrokenImages
from acclimate.data.decode import pictured
from acclimate.data.domain import Domain, Indices
from acclimate.data.inputs import ImageInputs, Inputs
from acclimate.errors import AcclimateError
from acclimate.methods.registry import BASELINE
from acclimate.model import Model
from acclimate.progress import Track
from acclimate.report import saliency
from acclimate.report.embedding import Array, a_distance, features, frozen_features, sample, tsne
from acclimate.report.run import Data, Run
from acclimate.report.words import Section, shown
from acclimate.runs.directory import baseline
from acclimate.runs.masks import compare_masks

POINTS = 400  # images of each domain in the embedding and behind the A-distance

GALLERY = 16  # images of a gallery

LOOKED_AT = 8  # images with maps of what the model looks at

DOT, TILE, VIEW = 64, 112, 192  # sides in pixels: of an image under the pointer, in a gallery, under a map

COLUMNS = 25  # of the sheet of images under the pointer

QUALITY = 76  # of JPEG

WARM = (255, 140, 0)  # colour of what a model looks at, over the image in grey

COLOURS = 10  # of classes in the embedding

SCALE, MARGIN = 1000, 20  # side of the embedding's plane and what stays free, in its units


def exhibits(
    run: Run,
    data: Data | None,
    votes: Mapping[str, Indices],
    left_out: list[str],
    track: Track,
    *,
    method: str | None = None,
    backbone: str | None = None,
) -> Section:
    """The sections for which the model or the images are needed; None for each that cannot be made.

    Args:
        run: The run.
        data: Its data; None where they are no longer what they were.
        votes: What the members of a consensus predict, as `read_votes` gives it.
        left_out: Gets a sentence for each thing that cannot be shown.
        track: Shows the progress.
        method: The run's method again, as for `Model.load`.
        backbone: The run's backbone again, as for `Model.load`.
    """
    sections: Section = dict.fromkeys(("embedding", "sheet", "first", "galleries", "looks", "masks", "cloud"))
    try:
        model = Model.load(run.folder, method=method, backbone=backbone)
        other = baseline(run.folder) if run.before is not None else None
        before = Model.load(other, backbone=backbone) if other is not None else None
    except AcclimateError as error:
        left_out.append(f"Without the model there is no embedding and no map of what it looks at: {error}")
        return sections
    sections["masks"] = _masks(model)
    if data is None:
        return sections
    try:
        sections |= _embedding(run, data, model, before, track)
        if data.pictured:
            sections["first"] = _first(run, data, votes)
            sections["galleries"] = _galleries(run, data)
            sections["looks"] = _looks(run, data, model, before)
    except AcclimateError as error:
        left_out.append(f"The images, the embedding and the maps of what the model looks at are not shown: {error}")
    return sections


def _masks(model: Model) -> Section | None:
    found = model.method.masks()
    if not found:
        return None
    masks, overlaps = compare_masks(found)
    return {"masks": masks, "overlaps": overlaps}


def _embedding(run: Run, data: Data, model: Model, before: Model | None, track: Track) -> Section:
    """Both domains in a plane, before and after adaptation, with the images under the pointer."""
    i_s, i_t = sample(len(data.source), POINTS), sample(len(data.target), POINTS)
    if data.pictured:
        broken = BrokenImages(data.source.domain.select(i_s))
        broken.check()
        i_s = i_s[broken.readable]
    source, target = data.source.domain.select(i_s), data.target.select(i_t)
    plots = _plots(run, model, before, source, target, track)
    truth_t = data.answers[i_t] if data.answers is not None else np.full(len(i_t), -1)
    truth = np.concatenate([data.source.labels[i_s], truth_t])
    predicted = np.concatenate([np.full(len(i_s), -1), run.predicted[i_t]])
    wrong = (predicted >= 0) & (truth >= 0) & (predicted != truth)
    colour = np.where(truth >= 0, truth, predicted) % COLOURS
    sides = ["s"] * len(i_s) + ["t"] * len(i_t)
    dots = [
        f"{side} k{k} w" if is_wrong else f"{side} k{k}"
        for side, k, is_wrong in zip(sides, colour.tolist(), wrong.tolist(), strict=True)
    ]
    embedding = {
        "plots": plots,
        "dots": dots,
        "order": np.random.default_rng(0).permutation(len(dots)).tolist(),  # of drawing: neither domain on top
        "coloured": len(run.classes) <= COLOURS,
        "scored": data.answers is not None,
        "sources": len(i_s),
        "targets": len(i_t),
    }
    cloud = {
        "classes": [shown(name) for name in run.classes],
        "sources": len(i_s),
        "names": [shown(name) for name in (*source.names, *target.names)],
        "truth": truth.tolist(),
        "predicted": predicted.tolist(),
        "confidence": [None] * len(i_s) + [round(100 * c, 1) for c in run.confidence[i_t].tolist()],
        "places": [plot["places"] for plot in plots],
        "columns": COLUMNS,
    }
    sheet = _sheet([source, target], track) if data.pictured else None
    return {"embedding": embedding, "cloud": cloud, "sheet": sheet}


def _plots(run: Run, model: Model, before: Model | None, source: Domain, target: Domain, track: Track) -> list[Section]:
    """The planes in which the domains lie, before and after."""
    x_s, x_t = (model.inputs(domain, track=track) for domain in (source, target))
    found = []
    if before is not None:
        old_s, old_t = (before.inputs(domain, track=track) for domain in (source, target))
        found.append(("Source-only", *_both_features(before, old_s, old_t)))
    elif model.method.net.level != "image":
        found.append(("Before training", frozen_features(x_s), frozen_features(x_t)))
    adapted = "Trained on the source" if run.method == BASELINE else f"Adapted by {run.method}"
    found.append((adapted, *_both_features(model, x_s, x_t)))
    plots = []
    for title, f_s, f_t in track(found, "Embedding", len(found)):
        places = np.concatenate(tsne(f_s, f_t))
        plots.append(
            {
                "title": title,
                "a_distance": a_distance(f_s, f_t) if min(len(f_s), len(f_t)) > 1 else None,
                "places": np.rint(MARGIN + (SCALE - 2 * MARGIN) * places).astype(int).tolist(),
            }
        )
    return plots


def _both_features(model: Model, x_s: Inputs, x_t: Inputs) -> tuple[Array, Array]:
    f_s = features(model.method, x_s, "source", device=model.device)
    return f_s, features(model.method, x_t, "target", device=model.device)


def _first(run: Run, data: Data, votes: Mapping[str, Indices]) -> list[Section]:
    """The images to look at first, with how many members say what."""
    chosen = run.doubtful[:GALLERY].tolist()
    said = np.stack(list(votes.values())) if votes else np.empty((0, len(run.names)), dtype=np.int64)
    return [{**_card(run, data, i), "votes": _tally(said[:, i], run.classes)} for i in chosen]


def _tally(said: Indices, classes: Sequence[str]) -> list[tuple[str, int]]:
    """The classes that members say of an image, and how many do, the most frequent first."""
    counts = np.bincount(said, minlength=len(classes))
    order = np.argsort(-counts, kind="stable")
    return [(classes[k], int(counts[k])) for k in order.tolist() if counts[k]]


def _galleries(run: Run, data: Data) -> list[Section]:
    """Images by what the model makes of them."""
    order = np.argsort(-run.confidence, kind="stable")
    chosen: list[tuple[str, str, Indices]] = []
    if run.predicted_before is not None:
        changed = order[run.predicted[order] != run.predicted_before[order]]
        count = f"{len(changed):,} of {len(order):,} images"
        chosen.append(("Changed by adaptation", f"The most confident of {count} whose class is another now.", changed))
    if data.answers is not None:
        known = data.answers[order] >= 0
        wrong = order[known & (run.predicted[order] != data.answers[order])]
        chosen.append(("Confident and wrong", "The mistakes of which the model is most certain.", wrong))
    chosen.append(("Most confident", "The most certain image of each class in turn.", _by_class(run, order)))
    galleries = []
    for title, note, positions in chosen:
        cards = [_card(run, data, i) for i in positions[:GALLERY].tolist()]
        if cards:
            galleries.append({"title": title, "note": note, "cards": cards})
    return galleries


def _by_class(run: Run, order: Indices) -> Indices:
    """The first of each predicted class, then the second of each, and so on."""
    seen = np.zeros(len(run.classes), dtype=np.int64)
    rank = np.empty(len(order), dtype=np.int64)
    for place, i in enumerate(order.tolist()):
        rank[place] = seen[run.predicted[i]]
        seen[run.predicted[i]] += 1
    return order[np.lexsort((run.predicted[order], rank))]


def _card(run: Run, data: Data, i: int) -> Section:
    """An image, and what is known of it."""
    card = _facts(run, data, i)
    card["image"] = jpeg(square(data.target, i, TILE))
    return card


def _facts(run: Run, data: Data, i: int) -> Section:
    truth = int(data.answers[i]) if data.answers is not None else -1
    old = int(run.predicted_before[i]) if run.predicted_before is not None else -1
    new = int(run.predicted[i])
    return {
        "name": run.names[i],
        "predicted": run.classes[new],
        "confidence": float(run.confidence[i]),
        "before": run.classes[old] if old not in (-1, new) else None,
        "truth": run.classes[truth] if truth >= 0 else None,
        "right": new == truth if truth >= 0 else None,
    }


def _looks(run: Run, data: Data, model: Model, before: Model | None) -> Section | None:
    """A few images with what speaks for the predicted class, by both models, and where the method attends."""
    preprocess = model.spec.preprocess
    assert preprocess is not None  # there are images
    order = np.argsort(-run.confidence, kind="stable")
    changed = order if run.predicted_before is None else order[run.predicted[order] != run.predicted_before[order]]
    positions = list(dict.fromkeys([*changed[: LOOKED_AT // 2].tolist(), *_by_class(run, order).tolist()]))[:LOOKED_AT]
    x = ImageInputs(data.target.select(positions), preprocess, memory=0).batch(np.arange(len(positions)), None)
    layers: list[tuple[str, npt.NDArray[np.float64], Indices | None]] = []
    for title, one in (("source-only", before), (run.method, model)):
        found = saliency.class_activation(one, x) if one is not None else None
        if found is not None:
            layers.append((title, *found))
    for name, weights in saliency.attention_maps(model, x).items():
        layers.append((f"attention: {name}", _spread(weights), None))
    if not layers:
        return None
    rows = []
    for n, i in enumerate(positions):
        with pictured(data.target, i, preprocess.resize) as image:
            view = preprocess.plain(preprocess.resized(image))
        base = Image.fromarray(view[:, :, 0] if view.shape[2] == 1 else view)
        grey = base.convert("L").convert("RGB")
        maps = [
            {
                "title": title,
                "predicted": run.classes[int(classes[n])] if classes is not None else None,
                "image": jpeg(_heated(grey, values[n])),
            }
            for title, values, classes in layers
        ]
        rows.append({**_facts(run, data, i), "image": jpeg(_sized(base)), "maps": maps})
    return {"rows": rows, "attention": any(classes is None for _, _, classes in layers)}


def _spread(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Each image's weights (h, w) from 0 for its least to 1 for its largest."""
    low, high = weights.min((1, 2), keepdims=True), weights.max((1, 2), keepdims=True)
    spread: npt.NDArray[np.float64] = (weights - low) / np.maximum(high - low, 1e-12)
    return spread


def square(domain: Domain, i: int, side: int) -> Image.Image:
    """The middle of an image, as a square of this side."""
    with pictured(domain, i, at_least=side) as image:
        few = min(image.size) < side / 2  # pixels that are meant to be seen
        return ImageOps.fit(image, (side, side), Image.Resampling.NEAREST if few else Image.Resampling.LANCZOS)


def _sized(image: Image.Image) -> Image.Image:
    few = image.width < VIEW / 2
    return image.resize((VIEW, VIEW), Image.Resampling.NEAREST if few else Image.Resampling.LANCZOS).convert("RGB")


def _heated(grey: Image.Image, values: npt.NDArray[np.float64]) -> Image.Image:
    """A grey image, in a warm colour where the map (h, w) is large."""
    heat = Image.fromarray(np.rint(190 * values).astype(np.uint8)).resize((VIEW, VIEW), Image.Resampling.BICUBIC)
    image = _sized(grey)
    image.paste(WARM, (0, 0), heat)
    return image


def _sheet(domains: Sequence[Domain], track: Track) -> str:
    """Small images of all items in rows, one after another, as a data URI."""
    items = [(domain, i) for domain in domains for i in range(len(domain))]
    sheet = Image.new("RGB", (DOT * COLUMNS, DOT * math.ceil(len(items) / COLUMNS)), "white")
    for place, (domain, i) in enumerate(track(items, "Small images", len(items))):
        row, column = divmod(place, COLUMNS)
        sheet.paste(square(domain, i, DOT), (DOT * column, DOT * row))
    return jpeg(sheet)


def jpeg(image: Image.Image) -> str:
    """An image as a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
