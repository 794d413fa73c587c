"""Parameters and inputs of parity cases, drawn from their names.

The rule: a tensor called `name` is made of z = default_rng(crc32("<salt>/<name>")).standard_normal(shape). Two or
more axes: z divided by sqrt(product of all axes but the first). One axis or none: 1 + 0.1 z when the name ends in
"weight", else 0.1 z. Batch-norm buffers: "running_mean" 0.1 z, "running_var" 1 + 0.1 |z|, "num_batches_tracked" 0.
An input `name` is the z of "input/<name>".
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence

import numpy as np


def normal(name: str, shape: Sequence[int], salt: str) -> np.ndarray:
    """z, float64."""
    generator = np.random.default_rng(zlib.crc32(f"{salt}/{name}".encode()))
    return generator.standard_normal(tuple(shape))


def parameter(name: str, shape: Sequence[int], salt: str) -> np.ndarray:
    """float32; int64 zeros for "num_batches_tracked"."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(tuple(shape), np.int64)
    z = normal(name, shape, salt)
    if name.endswith("running_mean"):
        value = 0.1 * z
    elif name.endswith("running_var"):
        value = 1.0 + 0.1 * np.abs(z)
    elif len(shape) > 1:
        value = z / math.sqrt(math.prod(shape[1:]))
    else:
        value = 0.1 * z + (1.0 if name.endswith("weight") else 0.0)
    return np.asarray(value, np.float32)


def parameters(shapes: Mapping[str, Sequence[int]], salt: str) -> dict[str, np.ndarray]:
    return {name: parameter(name, shape, salt) for name, shape in shapes.items()}


def input_array(name: str, shape: Sequence[int], salt: str) -> np.ndarray:
    """float32."""
    return normal(f"input/{name}", shape, salt).astype(np.float32)
