"""A Ray cluster, for as long as a command uses it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mil_jax.errors import ConfigError


@contextmanager
def ray_cluster(address: str) -> Iterator[Any]:
    """Gives the module `ray`, connected. address: of the cluster, empty: one on this machine, for as long as it lasts.

    Raises ConfigError where Ray is not installed or the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError("--engine=ray needs Ray: pip install 'mil-jax[ray]'") from error
    try:
        ray.init(address=address or None, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises many types; each means that there is no cluster to work on
        where = (
            f"--ray-address={address}: no Ray cluster can be reached there" if address else "Ray cannot be started here"
        )
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{where} ({reason})") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def worker_share(ray: Any, workers: int) -> dict[str, float]:
    """The CPUs and GPUs of each of so many workers: whole ones, or less than one, so that all find room."""
    of_cluster = ray.cluster_resources()
    parts = {name: of_cluster.get(name, 0) / workers for name in ("CPU", "GPU")}
    return {name: int(part) if part >= 1 else part for name, part in parts.items()}
