"""Selections of instances by rank, under a mask: the k best, and a random subset.

Padding never ranks before a real instance, and of equals the first instance wins, so that a longer bucket selects the same
instances. The number selected may be traced; k itself is static. Selections carry no gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mil_jax.types import Array


def top_k(values: Array, mask: Array, k: int) -> Array:
    """Numbers of the k real instances with the largest `values` [..., N], best first: int32 [..., k].

    With n < k real instances only the first n numbers count; those behind them are arbitrary but valid.
    Cost: O(N) for small k.
    """
    hidden = jnp.where(mask, jax.lax.stop_gradient(values), -jnp.inf)
    found = jax.lax.top_k(hidden, min(k, values.shape[-1]))[1].astype(jnp.int32)
    missing = k - found.shape[-1]  # a bucket shorter than k
    return jnp.pad(found, [(0, 0)] * (found.ndim - 1) + [(0, missing)]) if missing else found


def random_subset(key: Array, mask: Array, count: Array | int) -> Array:
    """A uniformly drawn subset of `count` real instances, as a mask [N]. Cost: two sorts of N."""
    return mask & (random_ranks(key, mask) < count)


def random_ranks(key: Array, mask: Array) -> Array:
    """The place of each instance in a uniformly drawn order, padding last: int32 [N]. Cost: two sorts of N."""
    draws = jnp.where(mask, jax.random.uniform(key, mask.shape), jnp.inf)
    return jnp.argsort(jnp.argsort(draws, stable=True), stable=True).astype(jnp.int32)
