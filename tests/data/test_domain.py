"""A domain with labels: which of its items stay out of training."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from acclimate.data.domain import Domain, LabelledDomain


@settings(max_examples=50)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.floats(0, 0.99), st.integers(0, 9))
def test_of_each_class_the_share_is_held_out_rounded_down(y: list[int], share: float, seed: int) -> None:
    names = tuple(f"{i}.png" for i in range(len(y)))
    source = LabelledDomain(Domain(names, names, "s"), np.array(y), tuple("abcde"))
    held = source.held_out(share, seed)
    for k in range(5):
        assert held[np.array(y) == k].sum() == int(share * y.count(k))
    assert (held == source.held_out(share, seed)).all()


def test_an_item_stays_where_it_is_when_others_are_added() -> None:
    names = tuple(f"{i}.png" for i in range(1100))
    whole = LabelledDomain(Domain(names, names, "s"), np.zeros(1100, dtype=np.int64), ("a", "b"))
    held, before = whole.held_out(0.2, 0), whole.select(range(1000)).held_out(0.2, 0)
    assert (held[:1000] != before).sum() < 20
    assert (whole.held_out(0.2, 1) != held).sum() > 200
