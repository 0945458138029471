"""How often the intervals of a few labels cover the truth, and how wide they are; prints the tables of docs/labels.md.

A target of 2,000 images, of which a model has a fixed share right, and 2,000 draws a cell. "Much": the confidence tells
right from wrong as a logit of slope 3 does; "nothing": it is noise.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from acclimate.trust.labels import Draw, Estimate, accuracy, compare, draw, draw_disputed

N, DRAWS = 2000, 2000


def main() -> None:
    print("| accuracy | confidence tells | 20 labels | 50 | 100 | 50, the first of 100 |")
    print("|---:|---|---:|---:|---:|---:|")
    for share in (0.6, 0.8, 0.95):
        for knows, name in ((0.0, "nothing"), (3.0, "much")):
            cells = (_cell(_accuracies(share, knows, n, used), share) for n, used in _PLANS)
            print(f"| {share} | {name} | {' | '.join(cells)} |")
    print("\n| changed | put right / wrong, of these | 30 labels | 50 | 100 | 50, the first of 100 |")
    print("|---:|---|---:|---:|---:|---:|")
    for d, right, wrong in ((0.1, 0.6, 0.2), (0.1, 0.4, 0.4), (0.25, 0.6, 0.2), (0.25, 0.2, 0.6)):
        cells = (_cell(_differences(d, right, wrong, n, used), d * (right - wrong)) for n, used in _CHANGED)
        print(f"| {100 * d:.0f} % | {100 * right:.0f} / {100 * wrong:.0f} % | {' | '.join(cells)} |")


_PLANS = ((20, 20), (50, 50), (100, 100), (100, 50))  # drawn, and labelled
_CHANGED = ((30, 30), (50, 50), (100, 100), (100, 50))


def _accuracies(share: float, knows: float, n: int, used: int) -> Iterator[tuple[float, float]]:
    """The ends of the intervals of the accuracy."""
    rng = np.random.default_rng(7)
    certainty = rng.normal(size=N)
    luck = knows * certainty + rng.logistic(size=N)
    right = luck > np.sort(luck)[round((1 - share) * N) - 1]
    for seed in range(DRAWS):
        found = _first(draw(certainty, n, seed), used)
        if len(set(found.stratum.tolist())) < len(found.sizes):
            continue  # evaluate asks for another label
        estimate: Estimate = accuracy(found, right[found.chosen])
        yield estimate.low, estimate.high


def _differences(d: float, right: float, wrong: float, n: int, used: int) -> Iterator[tuple[float, float]]:
    """The ends of the intervals of the difference."""
    changed, place = round(d * N), np.arange(N)
    b, c = round(right * changed), round(wrong * changed)
    after, before = place < b, (place >= b) & (place < b + c)
    predictions = np.stack([np.zeros(N, dtype=np.int64), (place < changed).astype(np.int64)])
    for seed in range(DRAWS):
        found = _first(draw_disputed(predictions, n, seed), used)
        difference = compare(found, after[found.chosen], before[found.chosen], N)
        yield difference.low, difference.high


def _first(found: Draw, used: int) -> Draw:
    return Draw(found.chosen[:used], found.stratum[:used], found.sizes)


def _cell(ends: Iterator[tuple[float, float]], truth: float) -> str:
    """How many intervals in % hold the truth, and their mean half width in points."""
    low, high = np.array(list(ends)).T
    covered = ((low <= truth + 1e-9) & (high >= truth - 1e-9)).mean()
    return f"{100 * covered:.0f} / ±{100 * (high - low).mean() / 2:.1f}"


if __name__ == "__main__":
    main()
