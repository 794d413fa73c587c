"""Activations by the names used in configs. `gelu` is the exact form with erf, as in PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mil_jax.types import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "tanh": jnp.tanh,
}
