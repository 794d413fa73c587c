"""What JAX is told before it is first used: devices, memory, the compilation cache."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import sys
from pathlib import Path

import jax

from mil_jax.machine import usable_cores

# Of glibc's malloc.h: parameters of mallopt.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


def use_one_device_per_core() -> None:
    """On a CPU, one host device per core, so that replicas spread over the cores. Call before JAX is first used.

    Of several processes each has one device: it is their number that spreads runs over the cores. Where JAX has been used already, as in
    a notebook, its devices stay as they are.
    """
    keep_freed_memory()
    if (
        "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", "")
        and not jax.distributed.is_initialized()
    ):
        with contextlib.suppress(RuntimeError):  # JAX has been used already
            jax.config.update("jax_num_cpu_devices", usable_cores())


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


def use_most_gpu_memory() -> None:
    """Reserves 92 % of each GPU rather than JAX's 75 %, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise. Call before JAX is first
    used.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")


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
