"""Moving averages of parameters and outputs: a teacher that follows its student, a centre that follows the teacher's outputs."""

from __future__ import annotations

import jax

from mil_jax.types import Array, PyTree


def ema_update(average: PyTree, new: PyTree, rate: Array | float) -> PyTree:
    """The average after `new`: average + rate (new - average). The rate is 1 - momentum."""
    return jax.tree.map(lambda old, value: old + rate * (value - old), average, new)
