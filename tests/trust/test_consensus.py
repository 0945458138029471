from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from acclimate.errors import DataError
from acclimate.trust.consensus import (
    agreement,
    agreements,
    ballots,
    certainty,
    class_means,
    confidence_ranks,
    consensus,
    directions,
    familiarity,
    largest,
    neighbours,
    of_each_class,
    sample,
    spread,
)
from tiny import clouds

Floats = npt.NDArray[np.float64]
Classes = npt.NDArray[np.int64]


def erring(y: Classes, M: int, share: float, seed: int = 0) -> Classes:
    """M members that are right on a share of the images, and elsewhere say any class."""
    rng = np.random.default_rng(seed)
    K = int(y.max()) + 1
    return np.where(rng.random((M, len(y))) < share, y, rng.integers(K, size=(M, len(y))))


# Votes


def test_ballots_and_agreement_by_hand() -> None:
    predictions = np.array([[0, 1, 2, 2], [0, 1, 1, 2], [0, 2, 0, 2]])
    wanted = [[1, 0, 0], [0, 2 / 3, 1 / 3], [1 / 3, 1 / 3, 1 / 3], [0, 0, 1]]
    assert ballots(predictions, 3) == pytest.approx(np.array(wanted))
    assert agreement(predictions) == pytest.approx((3 / 4 + 2 / 4 + 2 / 4) / 3)
    assert agreements(predictions) == pytest.approx([5 / 8, 5 / 8, 1 / 2])


def test_a_consensus_of_nobody_is_refused() -> None:
    with pytest.raises(DataError, match="needs at least one member"):
        ballots(np.zeros((0, 5), dtype=np.int64), 3)


@settings(max_examples=50)
@given(st.integers(1, 7), st.integers(1, 20), st.integers(2, 5), st.integers(0, 99))
def test_ballots_sum_to_1_whoever_votes_first(M: int, N: int, K: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    predictions = rng.integers(K, size=(M, N))
    found = ballots(predictions, K)
    assert found.sum(1) == pytest.approx(np.ones(N))
    assert (found == ballots(predictions[rng.permutation(M)], K)).all()


# The graph


def test_the_graph_by_hand() -> None:
    angles = np.radians([0, 10, 30, 180, 185, 210])
    x = np.stack([np.cos(angles), np.sin(angles)], 1)
    x -= x.mean(0)
    cosine = (x @ x.T) / np.outer(*[np.linalg.norm(x, axis=1)] * 2)
    np.fill_diagonal(cosine, -2)
    w = np.zeros((6, 6))
    for i in range(6):
        for j in np.argsort(-cosine[i])[:2]:
            w[i, j] = max(cosine[i, j], 0) ** 3
    W = (w + w.T) / 2
    d = W.sum(1)
    assert neighbours(x + 5, k=2).toarray() == pytest.approx(W / np.sqrt(np.outer(d, d)), abs=1e-6)


def test_of_equally_near_images_the_first_are_taken() -> None:
    assert largest(np.array([1.0, 3, 2, 3, 2, 2, 0]), 4).tolist() == [1, 2, 3, 4]
    assert largest(np.zeros(5), 2).tolist() == [0, 1]
    assert largest(np.zeros(5), 5).tolist() == [0, 1, 2, 3, 4]


def test_neither_the_number_of_threads_nor_the_order_of_the_sums_changes_a_bit() -> None:
    features, y = clouds(40, D=300)
    votes = erring(y, 5, 0.5)
    with threadpool_limits(1):
        Z = consensus(votes, neighbours(features), 3)
    assert (consensus(votes, neighbours(features), 3) == Z).all()
    order = np.random.default_rng(0).permutation(300)  # sums in another order: directions differ in their last bits
    x = np.rint(directions(features) * 2**26)
    assert (x @ x.T == x[:, order] @ x[:, order].T).all()


def test_an_image_like_no_other_keeps_its_own_vote() -> None:
    x = np.array([[1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0], [0, -1.0, 0], [0, 0, 0]])
    S = neighbours(x, k=2)
    assert S.nnz == 0 or (S.toarray() == 0).all()
    votes = np.array([[0, 1, 0, 1, 1]] * 3)
    assert consensus(votes, neighbours(x), 2).argmax(1).tolist() == [0, 1, 0, 1, 1]


@pytest.mark.parametrize("N", [1, 2, 5])
def test_there_may_be_fewer_images_than_neighbours(N: int) -> None:
    features = np.random.default_rng(0).normal(size=(N, 4))
    votes = np.tile(np.arange(N) % 2, (3, 1))
    Z = consensus(votes, neighbours(features), 2)
    assert Z.shape == (N, 2)
    assert np.isfinite(Z).all()


# Spreading


def test_spreading_by_hand() -> None:
    V, S = np.array([[1.0, 0], [0, 1], [0, 0]]), np.array([[0, 0, 1.0], [0, 0, 0], [1, 0, 0]])
    once = 0.5 * S @ V + 0.5 * V
    assert spread(V, S, reach=0.5, rounds=1, background=0) == pytest.approx(once)
    assert spread(V, S, reach=0.5, rounds=2, background=0) == pytest.approx(0.5 * S @ once + 0.5 * V)
    less = V - 0.5 * V.mean(0)
    assert spread(V, S, reach=0.5, rounds=1) == pytest.approx(0.5 * S @ less + 0.5 * less)


def test_without_reach_the_evidence_stays() -> None:
    V = np.random.default_rng(0).random((6, 3))
    assert spread(V, neighbours(V), reach=0, background=0) == pytest.approx(V)


def test_neighbours_put_right_what_members_get_wrong() -> None:
    features, y = clouds(60)
    votes = erring(y, 5, 0.4)
    vote = ballots(votes, 3).argmax(1)
    Z = consensus(votes, neighbours(features), 3)
    assert (vote == y).mean() < 0.9
    assert (Z.argmax(1) == y).mean() > 0.99


def test_what_members_agree_on_weighs_more_than_what_most_of_them_say() -> None:
    # In one cloud three members of five say class 1 of 70 images; on the other 30 all five say class 0.
    features, _ = clouds(100, K=2)
    votes = np.zeros((5, 200), dtype=np.int64)
    votes[:3, :70] = 1
    votes[3:, :70] = np.array([[2], [3]])
    votes[:, 100:] = 4
    assert (consensus(votes, neighbours(features), 5).argmax(1)[:100] == 0).all()


def test_a_class_that_members_see_too_often_does_not_swallow_its_neighbour() -> None:
    # Two clouds that touch; each member sees the first class in half of the second cloud too.
    features, y = clouds(150, K=2, far=2.5)
    rng = np.random.default_rng(1)
    votes = np.where(rng.random((5, 300)) < 0.5, 0, y)
    S = neighbours(features)
    V = ballots(votes, 2) ** 4
    swallowed = spread(V, S, background=0).argmax(1)
    kept = spread(V, S).argmax(1)
    assert (kept == y).mean() > (swallowed == y).mean() + 0.1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99))
def test_the_order_of_images_members_and_classes_does_not_matter(seed: int) -> None:
    features, y = clouds(15, seed=seed)
    votes = erring(y, 4, 0.5, seed)
    rng = np.random.default_rng(seed)
    images, members, classes = rng.permutation(45), rng.permutation(4), rng.permutation(3)
    Z = consensus(votes, neighbours(features), 3)
    moved = consensus(classes[votes[np.ix_(members, images)]], neighbours(features[images]), 3)
    assert moved[:, classes] == pytest.approx(Z[images], abs=1e-9)


def test_the_most_certain_image_counts_most_and_the_mean_is_1() -> None:
    Z = np.array([[0.1, 0.7], [0.4, 0.4], [0.9, 0.2], [0.5, 0.2]])
    assert confidence_ranks(Z) == pytest.approx([1.2, 0.4, 1.6, 0.8])


def test_a_large_source_is_stood_for_by_as_many_of_each_class() -> None:
    y = np.repeat([0, 1, 2], [900, 90, 10])
    assert of_each_class(y, 0, most=1000).tolist() == list(range(1000))
    some = of_each_class(y, 3, most=120)
    assert np.bincount(y[some]).tolist() == [40, 40, 10]
    assert (np.diff(some) > 0).all()


def test_certainty_is_the_lead_of_the_first_class() -> None:
    assert certainty(np.array([[0.1, 0.7, 0.2], [0.4, 0.4, 0.1]])) == pytest.approx([0.5, 0])


def test_a_large_target_is_sampled_and_a_small_one_is_not() -> None:
    assert sample(100, 0, most=100).tolist() == list(range(100))
    some = sample(1000, 3, most=100)
    assert len(set(some.tolist())) == 100
    assert (np.diff(some) > 0).all()
    assert some.tolist() == sample(1000, 3, most=100).tolist() != sample(1000, 4, most=100).tolist()


def test_familiarity_by_hand() -> None:
    shares = np.array([[1.0, 0], [0.5, 0.5], [0.25, 0.75]])
    S = np.array([[0, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0]])
    v, one = shares.max(1), np.ones(3)
    wanted = (0.5 * S @ v + 0.5 * v) / (0.5 * S @ one + 0.5 * one)
    assert familiarity(shares, S, reach=0.5, rounds=1) == pytest.approx(wanted)


def test_images_of_a_class_that_the_source_lacks_are_unfamiliar() -> None:
    features, y = clouds(60, K=4)
    rng = np.random.default_rng(0)
    votes = np.where(y < 3, erring(y % 3, 5, 0.8), rng.integers(3, size=(5, 240)))
    found = familiarity(ballots(votes, 3), neighbours(features))
    assert ((found > 0) & (found <= 1)).all()
    assert found[y == 3].max() < found[y < 3].min()


# Class means


def test_the_class_means_see_through_a_shift_that_all_classes_share() -> None:
    x_s, y_s = clouds(50)
    x_t, y_t = clouds(40, seed=1)
    assert (class_means(x_s, y_s, x_t + 30, 3) == y_t).mean() > 0.97
