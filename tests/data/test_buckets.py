"""Ladders: least padding for a number of shapes, the fewest shapes that keep the waste limit."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mil_jax.data.buckets import fit_ladder, round_up


def test_lengths_are_multiples_of_8_below_1024_and_of_128_from_there():
    assert round_up([0, 1, 8, 9, 1000, 1017, 1024, 1025, 1152]).tolist() == [8, 8, 8, 16, 1000, 1024, 1024, 1152, 1152]


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 4000), min_size=1, max_size=25),
    max_padding=st.sampled_from([0.0, 0.05, 0.15, 0.4]),
    max_buckets=st.integers(1, 4),
)
def test_ladder_is_the_best_of_all_ladders(sizes, max_padding, max_buckets):
    lengths = np.unique(round_up(sizes)).tolist()

    def least_waste(shapes: int) -> float:
        ladders = (c for c in itertools.combinations(lengths, shapes) if c[-1] == lengths[-1])
        padded = min(sum(min(length for length in ladder if length >= n) for n in sizes) for ladder in ladders)
        return 1 - sum(sizes) / padded

    wastes = {shapes: least_waste(shapes) for shapes in range(1, min(max_buckets, len(lengths)) + 1)}
    shapes = next((shapes for shapes, waste in wastes.items() if waste <= max_padding), max(wastes))
    ladder = fit_ladder(sizes, max_padding=max_padding, max_buckets=max_buckets)
    assert len(ladder.lengths) == shapes
    assert ladder.waste == pytest.approx(wastes[shapes], abs=1e-12)


def test_waste_is_that_of_the_buckets_bags_get():
    sizes = np.random.default_rng(0).integers(1, 9000, 200)
    ladder = fit_ladder(sizes)
    padded = np.asarray(ladder.lengths)[ladder.bucket(sizes)]
    assert (padded >= sizes).all()
    assert ladder.waste == pytest.approx(1 - sizes.sum() / padded.sum())
    assert ladder.waste <= 0.15


def test_typical_slides_need_at_most_12_shapes_for_15_percent():
    sizes = np.random.default_rng(0).lognormal(9.0, 0.56, 400).astype(int)
    ladder = fit_ladder(sizes)
    assert len(ladder.lengths) <= 12
    assert ladder.waste <= 0.15


def test_a_hundred_thousand_bags_are_fast():
    sizes = np.random.default_rng(0).lognormal(9.0, 1.0, 100_000).astype(int) + 1
    start = time.perf_counter()
    fit_ladder(sizes, max_padding=0.001)
    assert time.perf_counter() - start < 2.0


def test_a_bag_longer_than_the_ladder_is_refused():
    with pytest.raises(ValueError, match="5000"):
        fit_ladder([10, 20]).bucket([5000])


@pytest.mark.parametrize("sizes", [[], [3, 0]])
def test_no_bags_and_empty_bags_are_refused(sizes):
    with pytest.raises(ValueError, match="at least one"):
        fit_ladder(sizes)
