"""Devices: how many there are, the mesh over them, and the engine's single way of bringing anything back to the host."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from mil_jax.training.programs import AXIS


def use_one_device_per_core() -> None:
    """On a CPU, one host device per core, so that replicas spread over the cores. Call before JAX is first used."""
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


def use_compilation_cache(folder: Path) -> None:
    """Keeps compiled programs in a folder, for the next run, unless JAX was told another.

    One folder for each kind of processor: programs for one may not run on another that shares the home folder.
    """
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
        kind = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
        name = hashlib.sha256("\n".join([platform.machine(), *kind]).encode()).hexdigest()[:8]
        jax.config.update("jax_compilation_cache_dir", str(folder / f"compiled-{name}"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


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
