"""Patch-GCN keeps the laws on the graph of its tiles: with one instance, with fewer than k, and at the edge of the bucket."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from mil_jax import aggregators
from mil_jax.bags import Bag, Prediction
from tests.laws import law

K, FAR = 4, 2**30
# Alone, a pair, fewer than K + 1, exactly K + 1, one more, and the smaller bucket's edge.
SIZES = (1, 2, K, K + 1, K + 2, 16)


class OnNearestTiles(nn.Module):
    """`inner` on the graph of each bag's K nearest tiles; what lies in the padding of the lists is garbage."""

    inner: nn.Module

    @nn.compact
    def __call__(self, bag: Bag, train: bool = False) -> Prediction:
        return self.inner(bag.replace(neighbors=nearest(bag)), train=train)


def nearest(bag: Bag) -> jax.Array:
    """[N, K] by brute force. Ties are broken by place, not by number: the order of the instances must not matter."""
    xy = jnp.where(bag.mask[:, None], bag.coords, 0) // 256
    apart = xy[:, None] - xy
    distance = jnp.sum(apart**2, axis=-1) * 4096 + apart[..., 0] * 7 + apart[..., 1]
    distance = jnp.where(bag.mask & ~jnp.eye(len(xy), dtype=bool), distance, FAR)
    order = jnp.argsort(distance, axis=1)[:, :K]
    lists = jnp.where(jnp.take_along_axis(distance, order, axis=1) < FAR, order, -1)
    return jnp.where(bag.mask[:, None], lists, jnp.arange(len(xy))[:, None] % 3)


def small(**fields: Any) -> nn.Module:
    return OnNearestTiles(aggregators.create("patch_gcn", 2, **{"hidden_dim": 8, "num_convolutions": 2, **fields}))


@pytest.mark.parametrize("promise", ["padding_train", "permutation", "replicas"])
def test_law(promise):
    law.check_aggregator(small(), (12,), promises=[promise], bare_sizes=(K,))


@pytest.mark.full
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_convolutions": 3, "mlp_bias": True},
        {"block": "res+"},
        {"readout": "mean"},
        {"readout": "max"},
        {"coarse_graph": "parallel", "cell_tiles": 2},
        {"coarse_graph": "sequential", "cell_tiles": 3},
        {"feature_clusters": 3},
        {"feature_clusters": 2, "coarse_graph": "parallel", "cell_tiles": 2},
    ],
)
def test_law_of_every_form(fields):
    law.check_aggregator(small(**fields), (12,), bare_sizes=SIZES)
