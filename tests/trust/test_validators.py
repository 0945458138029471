"""Validators: against cases by hand and independent references, and what they make of models that have collapsed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.special import softmax
from scipy.stats import entropy as scipy_entropy
from sklearn.metrics import adjusted_mutual_info_score, balanced_accuracy_score

from acclimate.errors import DataError, OptionError
from acclimate.trust.validators import (
    VALIDATORS,
    Evidence,
    agreement,
    balanced_accuracy,
    ballots,
    density_ratio,
    mixing_pairs,
    tally,
    temperature,
    tempered,
    validator,
)

LN2 = np.log(2)

# Three images, two classes: sure of the first, sure of the second, undecided with a leaning to the first.
P = np.array([[1.0, 0.0], [0.0, 1.0], [0.75, 0.25]])
H = np.array([0.0, 0.0, 0.75 * np.log(4 / 3) + 0.25 * np.log(4)])
MEAN = np.array([1.75, 1.25]) / 3


def of(name: str, **arrays: Any) -> float:
    return VALIDATORS[name](Evidence(**{k: np.asarray(v) for k, v in arrays.items()}))


# --- by hand, 3 x 2 -------------------------------------------------------------------------------------------------


def test_entropy_diversity_and_their_sum() -> None:
    h_of_mean = -(MEAN * np.log(MEAN)).sum()
    assert of("entropy", p_target=P) == pytest.approx(-H.mean() / LN2)
    assert of("diversity", p_target=P) == pytest.approx(h_of_mean / LN2)
    assert of("im", p_target=P) == pytest.approx((h_of_mean - H.mean()) / LN2)


def test_im_with_shares_punishes_shares_that_differ_from_them() -> None:
    q = (3 * np.array([0.9, 0.1]) + 1) / 5  # one image a class more than estimated
    divergence = scipy_entropy(MEAN, q)
    assert of("im_shares", p_target=P, shares=[0.9, 0.1]) == pytest.approx(1 - (divergence + H.mean()) / LN2)
    assert of("im_shares", p_target=P, shares=[0.5, 0.5]) == pytest.approx(of("im", p_target=P))
    assert np.isfinite(of("im_shares", p_target=P, shares=[1.0, 0.0]))


def test_nuclear_norm_and_the_correlation_of_classes() -> None:
    # A = P'P = [[25, 3], [3, 17]] / 16, whose eigenvalues are (21 +- 5) / 16 = 26/16 and 16/16.
    assert of("nuclear_norm", p_target=P) == pytest.approx((np.sqrt(26 / 16) + 1) / np.sqrt(3 * 2))
    assert of("corr_c", p_target=P) == pytest.approx(42 / np.sqrt(25**2 + 17**2 + 2 * 3**2))


def test_neighbourhood_density() -> None:
    unit = P / np.array([[1], [1], [np.sqrt(10) / 4]])
    to_third = np.array([3, 1]) / np.sqrt(10)  # the similarities of the first two images to the third
    rows = [[-1, 0, to_third[0]], [0, -1, to_third[1]], [to_third[0], to_third[1], -1]]
    assert unit[:2] @ unit[2] == pytest.approx(to_third)
    expected = np.mean([scipy_entropy(softmax(np.array(row) / 0.05)) for row in rows])
    assert of("snd", p_target=P) == pytest.approx(expected)


def test_average_confidence() -> None:
    assert of("ac", p_target=P) == pytest.approx(2.75 / 3)


def test_mano_of_small_and_of_large_logits() -> None:
    z = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    # 1 + z + z^2/2 = (2.5, 1), (1, 5), (1, 1); less the smallest, in parts of the sum: (1, 0), (0, 1), equal
    assert of("mano", z_target=z) == pytest.approx(((1 + 1 + 2 / 16) / 6) ** 0.25)
    large = np.array([[30.0, 0.0], [0.0, 30.0], [0.0, 30.0]])  # mean of -log softmax 15 > 5: softmax
    assert of("mano", z_target=large) == pytest.approx(0.5**0.25)


def test_aetta() -> None:
    passes = np.stack([P, P[:, ::-1]])  # the second pass changes every prediction: half of them disagree
    assert of("aetta", p_target=P, p_dropout=passes) == pytest.approx(0.5)
    collapsed = np.tile([1.0, 0.0], (3, 1))
    assert of("aetta", p_target=collapsed, p_dropout=collapsed[None]) == 0.5  # no better than chance
    h = of("diversity", p_target=P)
    third = np.stack([P] * 2 + [P[[1, 1, 2]]])  # one of nine
    assert of("aetta", p_target=P, p_dropout=third) == pytest.approx(1 - 1 / 9 / h**3)


def test_accuracy_and_confidence_on_the_held_out_source() -> None:
    assert of("source_accuracy", p_source=P, y_source=[0, 1, 1]) == pytest.approx(2 / 3)
    calibrated = np.tile([0.75, 0.25], (4, 1))  # right three times in four, so no temperature helps
    certain = np.tile([0.95, 0.05], (3, 1))
    assert of("doc", p_target=certain, p_source=calibrated, y_source=[0, 0, 0, 1]) == pytest.approx(0.95, abs=1e-3)


def test_average_thresholded_confidence_puts_as_much_below_the_threshold_as_is_wrong() -> None:
    confidence = np.linspace(0.6, 0.99, 40)
    p = np.stack([confidence, 1 - confidence], axis=1)
    y = np.zeros(40, dtype=int)
    y[:10] = 1  # the ten least certain are wrong
    assert of("atc", p_target=p, p_source=p, y_source=y) == pytest.approx(0.75)
    assert of("atc", p_target=p[20:], p_source=p, y_source=y) == 1
    assert of("atc", p_target=p[:20], p_source=p, y_source=y) == pytest.approx(0.5)


def test_average_thresholded_confidence_needs_errors() -> None:
    p = np.tile([0.9, 0.1], (100, 1))
    with pytest.raises(DataError, match="at least 10 errors on the held-out source, not 0"):
        of("atc", p_target=p, p_source=p, y_source=np.zeros(100, int))


def test_reverse_accuracy_is_balanced() -> None:
    y = np.array([0, 0, 1])
    assert of("reverse_accuracy", p_reverse=P, y_source=y) == pytest.approx(balanced_accuracy_score(y, [0, 1, 0]))
    assert of("reverse_accuracy", p_reverse=np.tile([1.0, 0.0], (3, 1)), y_source=y) == 0.5


def test_mixed_images_keep_the_class_of_their_larger_part() -> None:
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    pairs = [[0, 1], [1, 2], [2, 0]]  # one pair of one class, two of different ones
    mixed = [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]]
    assert of("mixval_intra", p_target=p, p_mixed=mixed, pairs=pairs) == 1
    assert of("mixval_inter", p_target=p, p_mixed=mixed, pairs=pairs) == 0.5
    assert of("mixval", p_target=p, p_mixed=mixed, pairs=pairs) == 0.75
    with pytest.raises(DataError, match="No pair of mixed images is predicted to be of different classes"):
        of("mixval", p_target=p[:2], p_mixed=mixed[:1], pairs=pairs[:1])


def test_each_image_is_mixed_with_another() -> None:
    pairs = mixing_pairs(50, seed=3)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert sorted(pairs[:, 0]) == sorted(pairs[:, 1]) == list(range(50))
    assert (pairs == mixing_pairs(50, seed=3)).all()


# --- several candidates ---------------------------------------------------------------------------------------------

SURE, UNSURE = 0.999, 0.55


def one_hot(classes: list[int], confidence: float, K: int = 3) -> np.ndarray:
    p = np.full((len(classes), K), (1 - confidence) / (K - 1))
    p[np.arange(len(classes)), classes] = confidence
    return p


def test_one_over_confident_candidate_is_the_mean_but_not_the_majority() -> None:
    collapsed = one_hot([0, 0, 0, 0], SURE)
    sound = [one_hot([0, 1, 2, 1], 0.45), one_hot([0, 1, 2, 2], 0.45)]
    everyone = np.stack([collapsed, *sound])
    assert of("ensv", p_target=collapsed, p_candidates=everyone) == 1
    assert of("vote", p_target=sound[0], p_candidates=everyone) == pytest.approx((1 + 1 + 1 + 1 / 3) / 4)
    assert of("vote", p_target=collapsed, p_candidates=everyone) == pytest.approx((1 + 1 / 3) / 4)


def test_near_duplicates_and_seeds_of_a_row_share_a_vote() -> None:
    a, b = np.zeros(100, int), np.arange(100) % 3
    nearly = a.copy()
    nearly[0] = 1
    assert ballots(np.stack([a, nearly, b])) == pytest.approx([0.5, 0.5, 1])
    assert ballots(np.stack([a, b, (b + 1) % 3]), rows=["x", "y", "y"]) == pytest.approx([1, 0.5, 0.5])
    votes = tally(np.stack([a, nearly, b]), ballots(np.stack([a, nearly, b])), 3)
    assert votes[:3].tolist() == [[1.5, 0.5, 0], [1, 1, 0], [1, 0, 1]]
    assert agreement(b, votes[:3].repeat(1, axis=0)[np.arange(100) % 3]) == pytest.approx((34 * 1 + 66 * 0.5) / 100)


# --- against independent references ---------------------------------------------------------------------------------


def blobs(n: int = 120, K: int = 3, d: int = 6, seed: int = 0, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, d) around K centres, and the classes."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % K
    centres = 4 * np.eye(K, d)
    return centres[y] + rng.normal(size=(n, d)) + shift, y


def test_clusters_of_sound_features_are_the_classes() -> None:
    f, y = blobs()
    p = one_hot(y.tolist(), 0.9)
    for name, key in (("class_ami", "f_target"), ("frozen_class_ami", "frozen_target")):
        assert of(name, p_target=p, **{key: f}) > 0.9
    assert of("class_ami", p_target=one_hot([0] * 120, 0.9), f_target=f) == adjusted_mutual_info_score([0, 0], [0, 1])
    assert 0 < of("class_ss", p_target=p, f_target=f) < of("class_ss", p_target=p, f_target=4 * np.eye(3, 6)[y] + f / 9)


def test_features_that_collapsed_have_no_silhouette() -> None:
    with pytest.raises(DataError, match="fewer than two clusters"):
        of("class_ss", p_target=P, f_target=np.ones((3, 4)))


def test_reverse_accuracy_on_frozen_features() -> None:
    f_t, y_t = blobs(seed=1, shift=1.0)
    f_s, y_s = blobs(seed=2)
    frozen = {"frozen_target": f_t, "frozen_source": f_s, "y_source": y_s}
    right, swapped = one_hot(y_t.tolist(), 0.9), one_hot(((y_t + 1) % 3).tolist(), 0.9)
    assert of("frozen_reverse_accuracy", p_target=right, **frozen) > 0.9
    assert of("frozen_reverse_accuracy", p_target=swapped, **frozen) < 0.1
    assert of("frozen_reverse_accuracy", p_target=one_hot([0] * 120, 0.9), **frozen) == pytest.approx(1 / 3)


def test_the_estimated_gain_is_of_the_candidate_over_source_only() -> None:
    rng = np.random.default_rng(0)
    truth = np.arange(120) % 3
    frozen = {"frozen_target": 6 * np.eye(3, 8)[truth] + rng.normal(size=(120, 8))}
    y = np.arange(60) % 3
    frozen |= {"frozen_source": 6 * np.eye(3, 8)[y] + rng.normal(size=(60, 8)) + 2, "y_source": y}
    before = one_hot(np.where(np.arange(120) < 40, (truth + 1) % 3, truth).tolist(), 0.9)
    right, poor = one_hot(truth.tolist(), 0.9), one_hot(((truth + 1) % 3).tolist(), 0.9)
    assert of("estimated_gain", p_target=right, p_before=before, **frozen) == pytest.approx(1 / 3, abs=0.02)
    assert of("estimated_gain", p_target=poor, p_before=before, **frozen) < -0.5
    assert of("estimated_gain", p_target=before, p_before=before, **frozen) == 0


def test_balanced_accuracy_is_that_of_scikit_learn() -> None:
    y, said = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 0, 2])
    assert balanced_accuracy(said, y) == pytest.approx(balanced_accuracy_score(y, said))


def test_neighbours_against_all_distances() -> None:
    f, y = blobs(40)
    unit = f - f.mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    distance = cdist(unit, unit)
    np.fill_diagonal(distance, np.inf)
    predicted = np.where(np.arange(40) % 7 == 0, 0, y)
    nearest = distance.argsort(1)[:, :5]
    expected = (predicted[nearest] == predicted[:, None]).mean()
    assert of("neighbour_consistency", p_target=one_hot(predicted.tolist(), 0.9), frozen_target=f) == pytest.approx(
        expected
    )


def test_the_ratio_of_densities_of_two_normal_distributions() -> None:
    rng = np.random.default_rng(0)
    f_s, f_t = rng.normal(0, 1, (400, 1)), rng.normal(1, 1, (800, 1))
    w = density_ratio("dev", Evidence(f_source=f_s, f_target=f_t))
    truth = np.exp(f_s[:, 0] - 0.5)  # N(1, 1) / N(0, 1)
    assert np.corrcoef(np.log(w), np.log(truth))[0, 1] > 0.99
    assert w.mean() == pytest.approx(1, abs=0.15)
    y = (f_s[:, 0] > 0).astype(int)
    p = np.where((f_s > 1) | (f_s < 0), [[0.9, 0.1]], [[0.1, 0.9]])  # right on all but what lies above 1
    p[f_s[:, 0] < 0] = [0.9, 0.1]
    arrays = {"p_source": p, "y_source": y, "f_source": f_s, "f_target": f_t}
    right = p.argmax(1) == y
    assert of("iwcv", **arrays) == pytest.approx((truth * right).sum() / truth.sum(), abs=0.03)
    assert of("iwcv", **arrays) < of("source_accuracy", **arrays) - 0.2
    loss = np.where(right, -np.log(0.9), -np.log(0.1))
    fit = np.polyfit(truth, truth * loss, 1)  # the control variate is a regression of w l on w, read at w = 1
    assert -of("dev", **arrays) == pytest.approx(np.polyval(fit, 1), abs=0.1)


def test_bounded_weights_keep_the_risk_near_the_losses() -> None:
    f_s, y = blobs(60, seed=3)
    f_t, _ = blobs(90, seed=4, shift=0.3)
    p = one_hot(y.tolist(), 0.9)
    p[0] = [0.05, 0.9, 0.05]
    loss = -np.log(np.where(np.arange(60) == 0, 0.05, 0.9))
    value = of("devn", p_source=p, y_source=y, f_source=f_s, f_target=f_t)
    assert -loss.max() < value < 0


def test_where_all_weights_are_equal_the_risk_is_the_mean_loss() -> None:
    f = np.ones((20, 2))
    p = one_hot([0] * 20, 0.8)
    assert of("dev", p_source=p, y_source=[0] * 20, f_source=f, f_target=f) == pytest.approx(np.log(0.8))


def test_domains_that_do_not_overlap_are_refused() -> None:
    f_s, y = blobs(60)
    f_t, _ = blobs(60, shift=1e3)
    with pytest.raises(DataError, match="overlap too little"):
        of("iwcv", p_source=one_hot(y.tolist(), 0.9), y_source=y, f_source=f_s, f_target=f_t)


@pytest.mark.parametrize("T", [0.5, 1, 2])
def test_the_temperature_is_that_by_which_logits_were_made_too_sharp(T: float) -> None:
    rng = np.random.default_rng(0)
    truth = softmax(rng.normal(size=(500, 3)), axis=1)
    y = (truth.cumsum(1) > rng.random((500, 1))).argmax(1)
    p = tempered(truth, 1 / T)
    assert temperature(p, y) == pytest.approx(T * temperature(truth, y), rel=0.01)
    assert tempered(p, T) == pytest.approx(truth, abs=1e-3)


# --- order ----------------------------------------------------------------------------------------------------------


def full(seed: int, n_t: int = 60, n_s: int = 45, K: int = 3) -> Evidence:
    """Evidence with every array, without ties."""
    rng = np.random.default_rng(seed)
    z_t, z_s = 2 * rng.normal(size=(n_t, K)), 2 * rng.normal(size=(n_s, K))
    y = np.arange(n_s) % K
    p_t = softmax(z_t, axis=1)
    return Evidence(
        p_target=p_t,
        z_target=z_t,
        f_target=rng.normal(size=(n_t, 4)) + z_t[:, [0, 1, 2, 0]],
        p_source=softmax(z_s, axis=1),
        y_source=y,
        f_source=rng.normal(size=(n_s, 4)) + z_s[:, [0, 1, 2, 0]],
        frozen_target=rng.normal(size=(n_t, 5)) + z_t[:, [0, 1, 2, 0, 1]],
        frozen_source=rng.normal(size=(n_s, 5)) + 2 * np.eye(K)[y][:, [0, 1, 2, 0, 1]],
        shares=rng.dirichlet(np.ones(K)),
        p_candidates=np.stack([p_t, softmax(2 * rng.normal(size=(n_t, K)), 1), softmax(rng.normal(size=(n_t, K)), 1)]),
        p_mixed=softmax(rng.normal(size=(n_t, K)), axis=1),
        pairs=mixing_pairs(n_t, seed),
        p_reverse=softmax(rng.normal(size=(n_s, K)), axis=1),
        p_dropout=softmax(rng.normal(size=(2, n_t, K)), axis=2),
        p_before=softmax(z_t + rng.normal(size=(n_t, K)), axis=1),
    )


SHUFFLED = [name for name in VALIDATORS if name != "iwcv"]  # its weights may be worth too little: see above


@pytest.mark.parametrize("name", SHUFFLED)
@given(seed=st.integers(0, 10**6), images=st.permutations(range(60)), sources=st.permutations(range(45)))
@settings(deadline=None, max_examples=5)
def test_the_order_of_the_images_does_not_matter(name: str, seed: int, images: list[int], sources: list[int]) -> None:
    evidence = full(seed)
    i, j = np.array(images), np.array(sources)
    place = np.empty(60, int)
    place[i] = np.arange(60)  # where each image has gone
    assert evidence.p_candidates is not None
    assert evidence.p_dropout is not None
    assert evidence.pairs is not None
    moved = {k: getattr(evidence, k)[i] for k in ("p_target", "p_before", "z_target", "f_target", "frozen_target")}
    moved |= {k: getattr(evidence, k)[j] for k in ("p_source", "y_source", "f_source", "frozen_source", "p_reverse")}
    moved |= {"p_candidates": evidence.p_candidates[:, i], "p_dropout": evidence.p_dropout[:, i]}
    moved |= {"pairs": place[evidence.pairs]}
    tolerance = 1e-3 if name == "frozen_reverse_accuracy" else 1e-9
    assert VALIDATORS[name](replace(evidence, **moved)) == pytest.approx(VALIDATORS[name](evidence), abs=tolerance)


@pytest.mark.parametrize("name", SHUFFLED)
@given(seed=st.integers(0, 10**6), classes=st.permutations(range(3)))
@settings(deadline=None, max_examples=5)
def test_the_order_of_the_classes_does_not_matter(name: str, seed: int, classes: list[int]) -> None:
    evidence = full(seed)
    new = np.array(classes)  # the class that each place now holds
    columns = (
        "p_target", "p_before", "z_target", "p_source", "shares", "p_candidates", "p_mixed", "p_reverse", "p_dropout"
    )  # fmt: skip
    moved = {k: getattr(evidence, k)[..., new] for k in columns}
    place = np.argsort(new)
    renamed = replace(evidence, **moved, y_source=place[evidence.y_source])
    tolerance = 1e-3 if name == "frozen_reverse_accuracy" else 1e-9
    assert VALIDATORS[name](renamed) == pytest.approx(VALIDATORS[name](evidence), abs=tolerance)


# --- what each makes of a model that has collapsed ------------------------------------------------------------------

# A good model, one that says the first class everywhere, and one that says all classes equally (of which the first is
# taken); None is a refusal. The three are also all the candidates that ensv and vote know.
COLLAPSE_TABLE: dict[str, tuple[float | None, float | None, float | None]] = {
    "entropy": (-0.359, -0.021, -1.0),
    "diversity": (1.0, 0.021, 1.0),
    "im": (0.641, 0.0, 0.0),
    "im_shares": (0.641, 0.0, 0.0),
    "nuclear_norm": (0.896, 0.576, 0.333),
    "corr_c": (1.708, 1.0, 1.0),
    "snd": (3.661, 4.779, 4.779),
    "ac": (0.893, 0.997, 0.333),
    "mano": (0.711, 0.757, 0.333),
    "aetta": (0.969, 1.0, 0.36),
    "source_accuracy": (0.875, 0.333, 0.333),
    "doc": (0.873, 0.333, 0.333),
    "atc": (0.85, 0.175, 1.0),
    "iwcv": (0.862, 0.342, 0.337),
    "dev": (-0.514, -4.243, -1.099),
    "devn": (-0.488, -4.33, -1.099),
    "class_ami": (0.964, 0.0, 0.0),
    "frozen_class_ami": (0.964, 0.0, 0.0),
    "class_ss": (0.477, 0.157, 0.152),
    "frozen_reverse_accuracy": (1.0, 0.333, 0.333),
    "reverse_accuracy": (0.875, 0.333, 0.333),
    "neighbour_consistency": (0.983, 1.0, 1.0),
    "estimated_gain": (0.25, -0.417, -0.417),
    "ensv": (0.333, 1.0, 1.0),
    "vote": (0.667, 0.667, 0.667),
    "mixval_intra": (1.0, 1.0, 1.0),
    "mixval_inter": (0.961, None, None),
    "mixval": (0.98, None, None),
}
FOND_OF_COLLAPSE = {  # those that put one of the collapsed models beside the good one, or above it
    "entropy", "diversity", "snd", "ac", "mano", "aetta", "atc", "neighbour_consistency", "ensv", "vote",
    "mixval_intra",
}  # fmt: skip


def models() -> list[Evidence]:
    """The three models of the table."""
    rng = np.random.default_rng(0)
    frozen_t, y_t = blobs(seed=1, shift=0.2)
    frozen_s, y_s = blobs(seed=2)
    y_wrong = np.where(np.arange(120) % 8 == 0, (y_s + 1) % 3, y_s)  # 15 errors on the source
    z_t, z_s = (3 * np.eye(3)[y] + rng.normal(0, 0.5, (120, 3)) for y in (y_t, y_wrong))
    one_class = [6.5 * np.eye(3)[0] + rng.normal(0, 0.1, (120, 3)) for _ in range(2)]
    logits = [(z_t, z_s), tuple(one_class), (np.zeros((120, 3)), np.zeros((120, 3)))]
    features = [(frozen_t, frozen_s), tuple(rng.normal(size=(2, 120, 6))), tuple(rng.normal(size=(2, 120, 6)))]
    pairs = mixing_pairs(120)
    everyone = np.stack([softmax(z, axis=1) for z, _ in logits])
    before = 0.1 + 0.7 * np.eye(3)[np.where(np.arange(120) % 4 == 0, (y_t + 1) % 3, y_t)]  # right on three quarters
    return [
        Evidence(
            p_target=p,
            z_target=z[0],
            f_target=f[0],
            p_source=softmax(z[1], axis=1),
            y_source=y_s,
            f_source=f[1],
            frozen_target=frozen_t,
            frozen_source=frozen_s,
            shares=np.ones(3) / 3,
            p_candidates=everyone,
            p_mixed=0.55 * p[pairs[:, 0]] + 0.45 * p[pairs[:, 1]],
            pairs=pairs,
            p_reverse=softmax(z[1], axis=1),
            p_dropout=softmax(z[0] + rng.normal(size=(4, 120, 3)), axis=2),
            p_before=before,
        )
        for p, z, f in zip(everyone, logits, features, strict=True)
    ]


def value(name: str, evidence: Evidence) -> float | None:
    try:
        return VALIDATORS[name](evidence)
    except DataError:
        return None


@pytest.fixture(scope="module")
def three() -> list[Evidence]:
    return models()


def test_the_table_is_complete() -> None:
    assert set(COLLAPSE_TABLE) == set(VALIDATORS)


@pytest.mark.parametrize("name", COLLAPSE_TABLE)
def test_what_a_validator_makes_of_a_collapsed_model(name: str, three: list[Evidence]) -> None:
    scores = [value(name, evidence) for evidence in three]
    for score, pinned in zip(scores, COLLAPSE_TABLE[name], strict=True):
        assert score == (pinned if pinned is None else pytest.approx(pinned, abs=0.01, rel=0.01))
    good, collapsed, uniform = (-np.inf if score is None else score for score in scores)
    assert (max(collapsed, uniform) >= good) == (name in FOND_OF_COLLAPSE)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VALIDATORS)
def test_a_validator_without_evidence_says_what_it_needs(name: str) -> None:
    with pytest.raises(DataError, match=r"^The validator \w+ needs .+: give \w+\.$"):
        VALIDATORS[name](Evidence())


def test_values_that_are_not_finite_are_refused_by_who_reads_them() -> None:
    z = np.full((3, 2), np.nan)
    evidence = Evidence(p_target=P, z_target=z)
    assert VALIDATORS["entropy"](evidence) < 0
    with pytest.raises(DataError, match="z_target has values that are not finite"):
        VALIDATORS["mano"](evidence)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"p_target": np.ones(3)}, "p_target must have 2 dimensions, not 1."),
        ({"p_target": 2 * P}, "p_target must hold probabilities that add up to 1."),
        ({"p_target": P, "f_target": np.ones((2, 5))}, "f_target has the shape (2, 5), which does not fit"),
        ({"p_target": P, "shares": np.ones(3) / 3}, "shares has the shape (3,), which does not fit"),
        ({"p_target": np.ones((3, 1))}, "at least two classes"),
        ({"p_source": P, "y_source": [0, 1, 2]}, "y_source must hold positions in the classes."),
        ({"p_target": P, "pairs": [[0, 3]]}, "pairs must hold positions of target images."),
        ({"p_target": np.ones((0, 2))}, "p_target has the shape (0, 2)"),
    ],
)
def test_evidence_that_cannot_be(arrays: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError) as caught:
        Evidence(**{k: np.asarray(v) for k, v in arrays.items()})
    assert sentence in str(caught.value)


def test_an_unknown_validator() -> None:
    assert validator("im") is VALIDATORS["im"]
    with pytest.raises(OptionError, match="There is no validator 'imm': choose one of entropy, "):
        validator("imm")


def test_large_targets_are_sampled_with_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acclimate.trust.validators.SAMPLE", 500)
    p = softmax(3 * np.random.default_rng(0).normal(size=(600, 3)), axis=1)
    one, same, other = (VALIDATORS["snd"](Evidence(p_target=p, seed=seed)) for seed in (0, 0, 1))
    assert one == same != other
    assert one == pytest.approx(other, abs=0.05)
