"""What a layer's program is traced for. A layer with two forms asks here: one suits the caches of a CPU, the other an accelerator."""

from __future__ import annotations

import re

import jax


def is_cpu() -> bool:
    """Whether programs are traced for CPUs: then what is small is computed piece by piece, otherwise all at once."""
    return jax.default_backend() == "cpu"


def multiplies_tf32() -> bool:
    """Whether there are matrix units for TF32: NVIDIA GPUs have them from compute capability 8.0 (Ampere) on."""
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))
    return re.fullmatch(r"\d+\.\d+", capability) is not None and float(capability) >= 8.0
