"""Reductions over the real instances of a padded bag.

Every function takes `mask` [N] (True = real) and gives the same result for any content of the padded rows, NaN
included, except where it says that padding must have been zeroed. Masking happens before the reduction, never by a
multiplication after it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mil_jax.types import Array


def _over(mask: Array, values: Array) -> Array:
    """`mask` [N] with as many axes as `values` [N, ...]."""
    return mask.reshape(mask.shape + (1,) * (values.ndim - 1))


def zero_padding(features: Array, mask: Array) -> Array:
    """[N, *F] with padded rows replaced by zero, so that no NaN in them ever meets a zero weight or cotangent."""
    return jnp.where(_over(mask, features), features, jnp.zeros((), features.dtype))


def softmax(scores: Array, mask: Array) -> Array:
    """Softmax over the last axis of `scores` [..., N], in float32: exactly 0 on padding, all zeros for a bag without
    instances.
    """
    scores = scores.astype(jnp.float32)
    largest = jnp.max(jnp.where(mask, scores, jnp.finfo(jnp.float32).min), axis=-1, keepdims=True)
    largest = jax.lax.stop_gradient(largest)
    # The padding's score is replaced before exp: its exponential may overflow, and inf * 0 in the gradient is NaN.
    weights = jnp.where(mask, jnp.exp(jnp.where(mask, scores, largest) - largest), 0.0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)


def hide_padding(scores: Array, mask: Array) -> Array:
    """Scores [..., N] with -inf on padding, for output; `softmax` does its own masking."""
    return jnp.where(mask, scores, -jnp.inf)


def mean(values: Array, mask: Array) -> Array:
    """Mean of `values` [N, ...] over real instances -> [...]; 0 for a bag without instances. Padding must be finite.

    Written as a matrix product, which on a CPU is faster than a masked sum.
    """
    weights = mask.astype(values.dtype) / jnp.maximum(jnp.sum(mask), 1).astype(values.dtype)
    return jnp.tensordot(weights, values, axes=1)


def argmax(values: Array, mask: Array) -> Array:
    """Number of the real instance with the largest value, the first of equals: [N, ...] -> int32 [...]; 0 without
    instances.
    """
    return jnp.argmax(jnp.where(_over(mask, values), values, -jnp.inf), axis=0).astype(jnp.int32)
