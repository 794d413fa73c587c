"""Devices: how many there are, the mesh over them, and the engine's single way of bringing anything back to the host."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from mil_jax.training.programs import AXIS

# Of glibc's malloc.h: parameters of mallopt.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


def use_one_device_per_core() -> None:
    """On a CPU, one host device per core, so that replicas spread over the cores. Call before JAX is first used."""
    keep_freed_memory()
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


def keep_freed_memory() -> None:
    """Lets the C library keep freed memory of up to 1 GiB a block instead of returning it to the system. Call before JAX is first used.

    XLA's CPU programs allocate their temporary memory anew in every call; from the system it comes page by page, which takes a
    quarter of a TransMIL step. Does nothing where the C library is not glibc.
    """
    if sys.platform.startswith("linux"):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            # Large blocks are kept in the main arena only, so threads must not have arenas of their own.
            for parameter, value in ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, 2**30), (_TRIM_THRESHOLD, 2**31 - 1)):
                mallopt(parameter, value)


def replica_mesh() -> Mesh:
    """A mesh of all local devices, also when there are fewer replicas: XLA compiles a program for one device otherwise than for
    several, and a replica alone would then not be bit-identical to the same replica in company."""
    devices = jax.local_devices()
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


class Fetcher:
    """Brings arrays to the host and counts how often: one fetch an epoch is a promise that a test holds the engine to."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, tree: Any) -> Any:
        """The same tree of host arrays. Waits for what is being computed."""
        self.count += 1
        # A copy: on a CPU the host array would be the device's own buffer, which the next dispatch may be given to write into.
        return jax.tree.map(np.array, jax.device_get(tree))
