"""Clusters of a bag's instances by their features: k-means, and the graph without its edges between clusters.

It begins with the instance farthest from the mean, then the one farthest from those chosen, and so on, and takes a fixed number of
Lloyd's rounds: nothing is drawn, so that a bag has the same clusters in every step, padded or not, whatever the order of its instances.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mil_jax.layers import masked
from mil_jax.types import Array

ROUNDS = 10


def feature_clusters(features: Array, mask: Array, number: int) -> Array:
    """int32 [N]: which of `number` clusters each instance belongs to, -1 for padding. features: [N, D]; no gradient passes."""
    x = jax.lax.stop_gradient(masked.zero_padding(features, mask)).astype(jnp.float32)
    x = masked.zero_padding(x - masked.mean(x, mask), mask)  # distances of what lies far from 0 would be rounded

    def farther(far: Array, _: None) -> tuple[Array, Array]:
        """far: [N], the squared distance to the nearest centre so far."""
        centre = x[jnp.argmax(jnp.where(mask, far, -1.0))]
        return jnp.minimum(far, jnp.sum((x - centre) ** 2, axis=1)), centre

    first = x[jnp.argmax(jnp.sum(x**2, axis=1))]
    _, others = jax.lax.scan(farther, jnp.sum((x - first) ** 2, axis=1), None, number - 1)
    centres = jnp.concatenate([first[None], others])

    def nearest(centres: Array) -> Array:
        products = jnp.matmul(x, centres.T, precision=jax.lax.Precision.HIGHEST)
        return jnp.argmin(jnp.sum(centres**2, axis=1) - 2 * products, axis=1).astype(jnp.int32)

    def moved(_: int, centres: Array) -> Array:
        members = jax.nn.one_hot(nearest(centres), number) * mask[:, None]  # [N, k]
        count = jnp.sum(members, axis=0)[:, None]
        sums = jnp.matmul(members.T, x, precision=jax.lax.Precision.HIGHEST)
        return jnp.where(count > 0, sums / jnp.maximum(count, 1), centres)

    return jnp.where(mask, nearest(jax.lax.fori_loop(0, ROUNDS, moved, centres)), -1)


def within(neighbors: Array, cluster: Array) -> Array:
    """neighbors [N, K] without those of another cluster, which become -1. cluster: [N]."""
    same = cluster[jnp.maximum(neighbors, 0)] == cluster[:, None]
    return jnp.where((neighbors >= 0) & same, neighbors, -1)
