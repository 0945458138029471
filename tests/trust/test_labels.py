from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acclimate.errors import OptionError
from acclimate.trust.labels import (
    Draw,
    accuracy,
    allocate,
    choose,
    class_accuracies,
    compare,
    draw,
    draw_changed,
    draw_disputed,
)


def normal(n: int, seed: int = 0) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=n)


def everything(n: int) -> Draw:
    return Draw(np.arange(n), np.zeros(n, dtype=np.int64), np.array([n]))


# Drawing


@given(st.integers(20, 300), st.integers(20, 60), st.integers(0, 5))
def test_a_draw_has_as_many_different_images_as_asked_for_of_every_stratum_its_share(N: int, n: int, seed: int) -> None:
    n = min(n, N)
    found = draw(normal(N), n, seed)
    assert len(set(found.chosen.tolist())) == n
    assert len(found.sizes) == (4 if n >= 30 else 2)
    counts = np.bincount(found.stratum, minlength=len(found.sizes))
    assert found.sizes.sum() == N
    assert (np.abs(counts - n * found.sizes / N) < 1).all()


def test_the_strata_go_from_the_least_certain_to_the_most_certain() -> None:
    certainty = normal(200)
    found = draw(certainty, 40, 0)
    quarter = np.argsort(np.argsort(certainty)) // 50
    assert (quarter[found.chosen] == found.stratum).all()


def test_the_order_of_showing_tells_nothing_of_the_strata() -> None:
    strata = [draw(normal(400), 40, seed).stratum for seed in range(50)]
    assert np.mean(strata, axis=0) == pytest.approx(np.full(40, 1.5), abs=0.7)


def test_the_seed_decides_the_draw() -> None:
    first, again, other = (draw(normal(100), 30, seed).chosen.tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_labels_are_shared_out_in_proportion_but_two_at_least() -> None:
    assert allocate(np.array([500, 500, 500, 500]), 50).tolist() == [13, 13, 12, 12]
    assert allocate(np.array([900, 60, 40]), 20).tolist() == [16, 2, 2]
    assert allocate(np.array([1, 99]), 20).tolist() == [1, 19]


def test_too_few_labels_or_images_are_refused() -> None:
    with pytest.raises(OptionError, match=r"19 labels say too little: label at least 20 images\."):
        draw(normal(100), 19, 0)
    with pytest.raises(OptionError, match=r"only 30 images in the target, fewer than the 40 to be labelled\."):
        draw(normal(30), 40, 0)
    with pytest.raises(OptionError, match="agree on every image"):
        draw_changed(np.arange(50), np.arange(50), 30, 0)


def test_only_what_changed_is_drawn_and_no_more_than_that() -> None:
    before = np.zeros(100, dtype=np.int64)
    after = np.where(np.arange(100) < 25, 1, 0)
    found = draw_changed(before, after, 20, 0)
    assert len(found.chosen) == 20
    assert (found.chosen < 25).all()
    assert found.sizes.tolist() == [25]
    assert sorted(draw_changed(before, after, 60, 0).chosen) == list(range(25))


def test_only_what_is_disputed_is_drawn() -> None:
    predictions = np.zeros((3, 100), dtype=np.int64)
    predictions[1, :30], predictions[2, 20:50] = 1, 2
    found = draw_disputed(predictions, 40, 0)
    assert found.sizes.tolist() == [50]
    assert (found.chosen < 50).all()


# The accuracy


def test_the_accuracy_by_hand() -> None:
    # Strata of 60 and 40 images; 7 of 12 and 8 of 8 labels are right.
    found = Draw(np.arange(20), np.repeat([0, 1], [12, 8]), np.array([60, 40]))
    right = np.array([True] * 7 + [False] * 5 + [True] * 8)
    a = 0.6 * 7 / 12 + 0.4
    r_0, r_1 = 7.5 / 13, 8.5 / 9
    v = 0.36 * r_0 * (1 - r_0) / 12 * 48 / 60 + 0.16 * r_1 * (1 - r_1) / 8 * 32 / 40
    n_e = a * (1 - a) / v
    assert 20 < n_e < 60
    z = 1.959964
    half = z / (1 + z**2 / n_e) * np.sqrt(a * (1 - a) / n_e + z**2 / (4 * n_e**2))
    low = (a + z**2 / (2 * n_e)) / (1 + z**2 / n_e) - half
    estimate = accuracy(found, right)
    assert (estimate.value, estimate.n) == (pytest.approx(0.75), 20)
    assert estimate.low == pytest.approx(low)
    assert estimate.high == pytest.approx(low + 2 * half)


def test_one_error_among_fifty_leaves_room_for_an_error_in_a_thousand() -> None:
    found = Draw(np.arange(50), np.zeros(50, dtype=np.int64), np.array([10**6]))
    estimate = accuracy(found, np.arange(50) > 0)
    assert estimate.high == pytest.approx(1 - 0.05129 / 50, abs=2e-4)  # -log(0.95) = 0.05129


def test_all_images_labelled_leave_no_doubt() -> None:
    right = normal(60) > 0
    found = draw(normal(60), 60, 0)
    estimate = accuracy(found, right[found.chosen])
    assert estimate.value == estimate.low == estimate.high == pytest.approx(right.mean())


@given(st.integers(20, 60), st.integers(0, 60), st.integers(0, 9))
def test_the_interval_holds_the_estimate_and_lies_between_0_and_1(n: int, k: int, seed: int) -> None:
    found = draw(normal(500, seed), n, seed)
    estimate = accuracy(found, np.arange(n) < k)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.low < estimate.high


@pytest.mark.parametrize("knows", [0, 3], ids=["certainty says nothing", "certainty says much"])
@pytest.mark.parametrize("n", [20, 100])
@pytest.mark.parametrize("share", [0.3, 0.8, 0.95, 0.99])
def test_the_interval_covers_the_accuracy_in_93_of_100_draws(share: float, n: int, knows: float) -> None:
    N, rng = 1000, np.random.default_rng(7)
    certainty = rng.normal(size=N)
    luck = knows * certainty + rng.logistic(size=N)
    right = luck > np.sort(luck)[round((1 - share) * N) - 1]
    covered = 0
    for seed in range(300):
        found = draw(certainty, n, seed)
        estimate = accuracy(found, right[found.chosen])
        covered += estimate.low <= share <= estimate.high
    assert covered / 300 >= 0.93 - 0.03  # two standard deviations of 300 draws


def test_strata_that_know_something_make_the_interval_narrower() -> None:
    certainty = normal(2000)
    right = certainty + 0.3 * normal(2000, 1) > -0.8
    widths = []
    for score in (certainty, normal(2000, 2)):
        found = [draw(score, 100, seed) for seed in range(20)]
        estimates = [accuracy(f, right[f.chosen]) for f in found]
        widths.append(np.mean([e.high - e.low for e in estimates]))
    assert widths[0] < 0.75 * widths[1]


def test_accuracies_of_classes_need_ten_labels_each() -> None:
    truth = np.repeat([0, 1, 2, -1], [12, 9, 20, 4])
    right = np.concatenate([np.arange(12) < 9, np.ones(9), np.ones(20), np.zeros(4)]).astype(bool)
    first, second, third = class_accuracies(truth, right, 3)
    assert first is not None
    assert (first.value, first.n) == (0.75, 12)
    assert first.low == pytest.approx(0.4677, abs=1e-3)
    assert first.high == pytest.approx(1 - 0.8177 / 12, abs=1e-4)  # Poisson's limit for 3, of one side
    assert second is None
    assert third is not None
    assert third.high == 1


# The comparison


def test_the_comparison_by_hand() -> None:
    after = np.array([True] * 18 + [False] * 12)
    before = np.array([False] * 18 + [True] * 6 + [False] * 6)
    found = Draw(np.arange(30), np.zeros(30, dtype=np.int64), np.array([10**9]))
    comparison = compare(found, after, before, 4 * 10**9)
    assert (comparison.gained, comparison.lost, comparison.n) == (18, 6, 30)
    assert comparison.difference == pytest.approx(0.25 * 12 / 30)
    assert comparison.p == pytest.approx(0.02266, abs=1e-5)  # 2 P(Binomial(24, 1/2) <= 6)
    (l_1, u_1), (l_2, u_2) = (0.4232, 0.7541), (0.0951, 0.3731)  # Wilson's, for 18 and 6 of 30
    phi = -18 * 6 / np.sqrt(18 * 12 * 6 * 24)
    low = 0.4 - np.sqrt((0.6 - l_1) ** 2 - 2 * phi * (0.6 - l_1) * (u_2 - 0.2) + (u_2 - 0.2) ** 2)
    high = 0.4 + np.sqrt((u_1 - 0.6) ** 2 - 2 * phi * (u_1 - 0.6) * (0.2 - l_2) + (0.2 - l_2) ** 2)
    assert (4 * comparison.low, 4 * comparison.high) == (pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))


def test_no_label_that_decides_leaves_it_open() -> None:
    neither = np.zeros(30, dtype=bool)
    comparison = compare(Draw(np.arange(30), np.zeros(30, dtype=np.int64), np.array([500])), neither, neither, 1000)
    assert comparison.difference == 0
    assert comparison.low < 0 < comparison.high
    assert comparison.p == 1


@settings(max_examples=50)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_the_comparison_is_the_opposite_the_other_way_round(b: int, c: int, neither: int) -> None:
    after = np.repeat([True, False, False], [b, c, neither + 1])
    before = np.repeat([False, True, False], [b, c, neither + 1])
    n = len(after)
    found = Draw(np.arange(n), np.zeros(n, dtype=np.int64), np.array([3 * n]))
    there, back = compare(found, after, before, 6 * n), compare(found, before, after, 6 * n)
    assert (there.difference, there.low, there.high) == pytest.approx((-back.difference, -back.high, -back.low))
    assert there.p == pytest.approx(back.p)
    assert there.low <= there.difference <= there.high
    assert there.low >= -0.5
    assert there.high <= 0.5  # accuracy cannot move by more than the share that changed


def test_with_every_change_labelled_the_difference_is_exact() -> None:
    after, before = normal(40) > 0, normal(40) < 0
    comparison = compare(everything(40), after, before, 100)
    exact = (after.mean() - before.mean()) * 0.4
    assert (comparison.difference, comparison.low, comparison.high) == pytest.approx((exact, exact, exact))


@pytest.mark.parametrize("n", [20, 100])
@pytest.mark.parametrize("gain", [(0.7, 0.2), (0.4, 0.4), (0.05, 0.9), (0.97, 0.01)])
def test_the_comparison_covers_in_93_of_100_draws(gain: tuple[float, float], n: int) -> None:
    N, M = 2000, 500
    b, c = (round(M * share) for share in gain)
    after, before = np.zeros(N, dtype=bool), np.zeros(N, dtype=bool)
    after[:b], before[b : b + c] = True, True
    changed = np.arange(N) < M
    covered = 0
    for seed in range(300):
        found = draw_changed(np.zeros(N, dtype=np.int64), changed.astype(np.int64), n, seed)
        comparison = compare(found, after[found.chosen], before[found.chosen], N)
        covered += comparison.low <= (b - c) / N <= comparison.high
    assert covered / 300 >= 0.93 - 0.03


# The choice


def test_what_labels_rule_out_goes_and_what_they_cannot_tell_apart_stays() -> None:
    rng = np.random.default_rng(0)
    good = rng.random(100) < 0.9
    right = np.stack([rng.random(100) < 0.3, good, good ^ (np.arange(100) == 3)])
    choice = choose(Draw(np.arange(100), np.zeros(100, dtype=np.int64), np.array([400])), right, 1000)
    assert choice.leader in (1, 2)
    assert choice.left == (1, 2)
    assert choice.differences[0].low > 0


def test_the_best_of_five_is_seldom_ruled_out() -> None:
    rng, wrong = np.random.default_rng(0), 0
    shares = np.array([0.5, 0.5, 0.5, 0.48, 0.45])
    for _ in range(100):
        right = rng.random((5, 60)) < shares[:, None]
        found = Draw(np.arange(60), np.zeros(60, dtype=np.int64), np.array([10**6]))
        wrong += 0 not in choose(found, right, 10**6).left
    assert wrong / 100 <= 0.05
