"""Losses of single labels, as functions of logits: what classification and multi-label tasks are made of."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mil_jax.types import Array


def mean_over_present(per_bag: Callable[[Array], Array], logits: Array, known: Array, weights: Array) -> Array:
    """The mean of weight * loss over the bags whose weight is positive and whose label is `known` [B]; 0 when there is none.

    per_bag: logits [B, C] -> losses [B]. Logits of empty places are replaced before it: a NaN there would reach the gradient
    as 0 * NaN.
    """
    present = (weights > 0) & known
    losses = per_bag(jnp.where(present[:, None], at_least_float32(logits), 0.0))
    return jnp.sum(jnp.where(present, weights * losses, 0.0)) / jnp.maximum(jnp.sum(present), 1)


def at_least_float32(logits: Array) -> Array:
    """Losses are computed in float32, or in float64 where a caller has that."""
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def binary_cross_entropy(logits: Array, y: Array) -> Array:
    """-y log p - (1 - y) log(1 - p), elementwise, p = sigmoid(logits)."""
    return -(y * jax.nn.log_sigmoid(logits) + (1.0 - y) * jax.nn.log_sigmoid(-logits))


def binary_focal(logits: Array, y: Array, gamma: float) -> Array:
    """(1 - p_t)^gamma times the cross entropy (Lin et al. 2017), p_t the probability of what is true."""
    loss = binary_cross_entropy(logits, y)
    return (-jnp.expm1(-loss)) ** gamma * loss


def binary_asymmetric(logits: Array, y: Array, gamma: float, gamma_negative: float, margin: float) -> Array:
    """The asymmetric loss (Ridnik et al. 2021, eq. 7): positives as in the focal loss with `gamma`; negatives with `gamma_negative` on
    p_m = max(p - margin, 0), so that easy negatives, of which a rare label has most, count for nothing.
    """
    p = jax.nn.sigmoid(logits)
    shifted = jnp.maximum(p - margin, 0.0)
    positive = -y * (1.0 - p) ** gamma * jax.nn.log_sigmoid(logits)
    # 0^gamma has no derivative at 0 for gamma < 1: what the margin removes is removed before it.
    base = jnp.where(shifted > 0, shifted, 0.5)
    negative = -(1.0 - y) * jnp.where(shifted > 0, base**gamma_negative * jnp.log1p(-base), 0.0)
    return positive + negative
