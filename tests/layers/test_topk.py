"""Selections by rank: padding is never chosen before a real instance, and ties go to the first."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mil_jax.layers.topk import random_subset, top_k

BUCKET = 24


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, BUCKET), seed=st.integers(0, 1000))
def test_the_k_best_are_those_of_a_sort_whatever_the_padding(n, seed):
    values = np.random.default_rng(seed).integers(-3, 4, n).astype(np.float32)  # with many ties
    padded = np.full(BUCKET, 1e9, np.float32)
    padded[:n] = values
    found = top_k(jnp.asarray(padded), jnp.arange(BUCKET) < n, 5)
    expected = np.argsort(-values, kind="stable")[:5]
    np.testing.assert_array_equal(found[: len(expected)], expected)


def test_nan_in_the_padding_is_not_chosen():
    values = jnp.array([1.0, 3.0, 2.0, jnp.nan])
    np.testing.assert_array_equal(top_k(values, jnp.arange(4) < 3, 2), [1, 2])


def test_several_rows_are_ranked_at_once():
    values = jnp.array([[1.0, 3.0, 2.0], [3.0, 1.0, 2.0]])
    np.testing.assert_array_equal(top_k(values, jnp.ones(3, bool), 2), [[1, 2], [0, 2]])


def test_a_bucket_shorter_than_k_gives_k_valid_numbers():
    found = top_k(jnp.array([1.0, 2.0]), jnp.ones(2, bool), 4)
    np.testing.assert_array_equal(found, [1, 0, 0, 0])


def test_a_selection_carries_no_gradient():
    def chosen_sum(values):
        return jnp.sum(values[top_k(values, jnp.ones(4, bool), 2)])

    np.testing.assert_array_equal(jax.grad(chosen_sum)(jnp.arange(4.0)), [0.0, 0.0, 1.0, 1.0])


@pytest.mark.parametrize("count", [0, 1, 7, 11])
def test_a_random_subset_has_as_many_real_instances_as_asked(count):
    mask = jnp.arange(BUCKET) < 11
    subset = random_subset(jax.random.key(0), mask, count)
    assert int(subset.sum()) == count
    assert not np.any(subset & ~mask)


def test_a_random_subset_is_the_same_in_a_longer_bucket():
    short, long = (random_subset(jax.random.key(3), jnp.arange(bucket) < 11, 6) for bucket in (16, 40))
    np.testing.assert_array_equal(short[:11], long[:11])


def test_every_instance_is_drawn_equally_often():
    draw = jax.jit(jax.vmap(lambda key: random_subset(key, jnp.arange(10) < 8, 2)))
    share = draw(jax.random.split(jax.random.key(0), 4000)).mean(axis=0)
    np.testing.assert_allclose(share, [0.25] * 8 + [0.0] * 2, atol=0.03)
