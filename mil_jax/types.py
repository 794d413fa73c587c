"""The types that signatures share."""

from __future__ import annotations

from typing import Any

import jax

Array = jax.Array
AnyArray = Any  # a jax.Array, on the host a numpy array, or under `eval_shape` a jax.ShapeDtypeStruct
PyTree = Any  # arrays in nested dicts, tuples and dataclasses: parameters, states, gradients
