"""Masks by scores: the promised numbers of instances, of any bucket, and never all of a bag."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax.layers.instance_masks import (
    MaskCounts,
    chosen_by_heads,
    count,
    high_counts,
    masked_instances,
    ranks,
)


def made(scores, n, size, **counts):
    """The mask of n instances with these scores in a bucket of `size`."""
    padded = np.full((len(scores), size), np.nan, np.float32)
    padded[:, :n] = np.asarray(scores)[:, :n]
    draws = jax.random.uniform(jax.random.key(0), (size, 2))
    mask = jnp.arange(size) < n
    found = masked_instances(jnp.asarray(padded), mask, MaskCounts(**counts), (draws[:, 0], draws[:, 1]))
    return np.asarray(found)


def test_counts_are_those_of_float64():
    assert count(np.array([100]), 0.07).tolist() == [8]  # 7.000000000000001
    assert count(np.array([10, 57]), 0.5).tolist() == [5, 29]
    assert [x.tolist() for x in high_counts(np.array([57, 57]), 0.2, 0.5)] == [[23, 23], [12, 12]]
    assert [int(x) for x in high_counts(np.array(57), 0.6, 0.5)] == [57, 35]  # the pool would be larger than the bag


def test_low_and_high_parts_are_of_the_lowest_and_highest_scores():
    scores = [[5.0, 1.0, 4.0, 2.0, 3.0, 0.0]]
    assert np.flatnonzero(made(scores, 6, 9, low=2)).tolist() == [1, 5]
    assert np.flatnonzero(made(scores, 6, 9, pool=2)).tolist() == [0, 2]
    assert made(scores, 6, 9, pool=4, high=2).sum() == 2
    assert made(scores, 6, 9, random=3).sum() == 3


def test_the_bucket_changes_nothing():
    scores = np.random.default_rng(0).standard_normal((3, 20))
    for n in (1, 2, 5, 20):
        parts = {"random": n // 2, "low": n // 3, "pool": n // 2, "high": n // 4}
        np.testing.assert_array_equal(made(scores, n, 20, **parts)[:n], made(scores, n, 33, **parts)[:n])
        assert not made(scores, n, 33, **parts)[n:].any()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_one_instance_stays_whatever_is_asked_for(n):
    scores = [[3.0, 1.0, 2.0]]
    assert np.flatnonzero(~made(scores, n, 4, random=n)[:n]).tolist() == [0]
    assert (~made(scores, n, 4, pool=n)[:n]).sum() == 1
    assert not made(scores, 0, 4, random=0).any()


def test_heads_vote_and_the_first_of_equals_wins():
    scores = jnp.array([[0.0, 1.0, 2.0, 3.0], [1.0, 0.0, 3.0, 2.0], [3.0, 2.0, 0.0, 1.0]])
    mask = jnp.ones(4, bool)
    of_heads = ranks(scores, mask)
    assert np.flatnonzero(chosen_by_heads(of_heads, mask, 2, "vote")).tolist() == [0, 1]
    assert np.flatnonzero(chosen_by_heads(of_heads, mask, 3, "mean")).tolist() == [0, 1, 2]  # one of each head
    assert np.flatnonzero(chosen_by_heads(of_heads, mask, 1, "vote")).tolist() == [0]
