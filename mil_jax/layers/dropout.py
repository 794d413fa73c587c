"""Dropout that is cheap on a CPU, keeps its draws under padding, and takes a traced rate.

One random byte decides about one element (`flax.linen.Dropout` spends a 32-bit word and a float conversion), so the
rate is a multiple of 1/256; 0.25 is exact. The instance axis leads in the draw: with JAX's partitionable threefry a
longer bucket then has the same prefix. A replica may have its own rate: `hyper` reads it from the read-only
collection "hyper".
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mil_jax.types import Array


def hyper(module: nn.Module, name: str, default: Any) -> Any:
    """A numeric setting of a module: the entry `name` of its collection "hyper" (may be traced), else `default`."""
    return module.get_variable("hyper", name, default)


def draws(module: nn.Module, name: str, default: float, train: bool) -> bool:
    """Whether dropout `name` draws anything: only in training, and not for a rate that is statically zero."""
    return train and (module.has_variable("hyper", name) or default > 0)


def draw_key(module: nn.Module, name: str, default: float, train: bool, number: int) -> Array | None:
    """The key of draw `number` of a module, by the rate `name`; None where nothing is drawn.

    In training a key is taken even then: Flax counts the keys that a module asks for, and a rate of 0 must leave the draws after it
    as they are with a rate that is 0 in one run and positive in another.
    """
    drawn = draws(module, name, default, train)
    if not drawn and not (train and module.has_rng("dropout")):
        return None
    key = jax.random.fold_in(module.make_rng("dropout"), number)
    return key if drawn else None


def dropout_factors(key: Array, shape: tuple[int, ...], rate: float | Array) -> Array:
    """Factors of inverted dropout, float32 [N, ...]: 0 with probability q, else 1 / (1 - q); q = `rate` rounded to
    1/256.

    The expectation is exactly 1 because the scale is that of the rounded rate.
    """
    return factors_of(dropout_bytes(key, shape), rate)


def dropout_bytes(key: Array, shape: tuple[int, ...]) -> Array:
    """The random bytes that `dropout_factors` compares with a rate, uint8 [N, ...]."""
    num_instances, width = shape[0], math.prod(shape[1:])
    words = jax.random.bits(key, (num_instances, -(-width // 4)), jnp.uint32)
    return jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(num_instances, -1)[:, :width].reshape(shape)


def factors_of(drawn: Array, rate: float | Array) -> Array:
    """Factors of inverted dropout from bytes."""
    dropped = jnp.clip(jnp.round(jnp.asarray(rate, jnp.float32) * 256.0), 0, 255)  # of 256 byte values
    return jnp.where(drawn >= dropped.astype(jnp.uint8), 256.0 / (256.0 - dropped), 0.0)


def dropout(x: Array, rate: float | Array, key: Array) -> Array:
    """Inverted dropout of `x` [N, ...] with `rate` in [0, 1), a Python number or a traced scalar."""
    return x * dropout_factors(key, x.shape, rate).astype(x.dtype)
