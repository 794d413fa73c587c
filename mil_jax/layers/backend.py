"""What a layer's program is traced for. A layer with two forms asks here: one suits the caches of a CPU, the other an accelerator."""

from __future__ import annotations

import jax


def is_cpu() -> bool:
    """Whether programs are traced for CPUs: then what is small is computed piece by piece, otherwise all at once."""
    return jax.default_backend() == "cpu"
