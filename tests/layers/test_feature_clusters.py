"""k-means of a bag's features: planted groups are found, whatever the padding and the order, and edges between them are cut."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from mil_jax.layers.feature_clusters import feature_clusters, within

found = jax.jit(feature_clusters, static_argnums=2)


def groups(n: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    group = rng.integers(0, number, n)
    return (100 + 5 * rng.standard_normal((number, 16))[group] + rng.standard_normal((n, 16))).astype(np.float32), group


@pytest.mark.parametrize("number", [1, 4])
def test_planted_groups_are_found_padded_or_not_and_in_any_order(number):
    x, group = groups(50, number)
    bare = found(x, np.ones(50, bool), number)
    assert adjusted_rand_score(group, bare) == 1.0
    rows = np.random.default_rng(1).permutation(64)[:50]
    padded, mask = np.full((64, 16), np.nan, np.float32), np.zeros(64, bool)
    padded[rows], mask[rows] = x, True
    again = np.asarray(found(padded, mask, number))
    np.testing.assert_array_equal(again[rows], bare)
    assert (again[~mask] == -1).all()


def test_fewer_instances_than_clusters_are_clusters_of_their_own():
    assert len(set(np.asarray(found(groups(3, 3)[0], np.ones(3, bool), 5)).tolist())) == 3


def test_edges_between_clusters_are_cut():
    neighbors = np.array([[1, 2], [0, -1], [3, 0], [2, 1]], np.int32)
    np.testing.assert_array_equal(within(neighbors, np.array([0, 0, 1, 1])), [[1, -1], [0, -1], [3, -1], [2, -1]])
