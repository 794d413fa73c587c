"""Several processes that train together, by `jax.distributed`: how they start, agree, and leave files to the first of them.

Every process runs the same program and computes the same decisions from the same fetched numbers. What could differ between them
(a signal, a clock) is put to the vote. The first process alone writes and prints; all see the same files.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mil_jax.errors import ConfigError, UserError
from mil_jax.types import Array

CONNECT_SECONDS = 300  # how long processes wait for one another at the start
LEAVE_SECONDS = 30  # how long a process that ends alone waits for the others
VOTES_IN_FLIGHT = 2  # votes that are not yet counted: nobody waits for the device


def start(coordinator: str, num_processes: int, process_id: int) -> None:
    """Joins the other processes; nothing for coordinator "". Call before JAX is first used.

    coordinator: "host:port" of the first process, or "auto" where the launcher (Slurm, Open MPI, ...) knows it and the rest.
    Raises ConfigError for numbers that do not fit together, and when the others are not found.
    """
    if not coordinator:
        if num_processes or process_id >= 0:
            raise ConfigError(
                "distributed.num_processes and distributed.process_id need distributed.coordinator, HOST:PORT of the first process"
            )
        return
    arguments: dict[str, Any] = {}
    if coordinator != "auto":
        host, _, port = coordinator.rpartition(":")
        if not (host and port.isdecimal()):
            raise ConfigError(f"distributed.coordinator={coordinator} must be HOST:PORT of the first process, or auto")
        if not 0 <= process_id < num_processes:
            raise ConfigError(
                f"distributed.process_id={process_id} must be one of 0 to distributed.num_processes-1={num_processes - 1}, "
                "another for each process"
            )
        arguments = {"coordinator_address": coordinator, "num_processes": num_processes, "process_id": process_id}
    failed: list[BaseException] = []

    def join() -> None:
        try:
            jax.distributed.initialize(
                **arguments, initialization_timeout=10 * CONNECT_SECONDS, shutdown_timeout_seconds=LEAVE_SECONDS
            )
        except (ValueError, RuntimeError) as error:
            failed.append(error)

    # JAX ends a process that waited in vain with a stack trace, so this is waited for here.
    thread = threading.Thread(target=join, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if thread.is_alive():
        raise ConfigError(
            f"not all processes of distributed.coordinator={coordinator} were there within {CONNECT_SECONDS} seconds: start "
            "distributed.num_processes of them, each with its own distributed.process_id"
        )
    if failed:
        reason = str(failed[0]).strip().splitlines()[0].rstrip(".")
        raise ConfigError(
            f"distributed.coordinator={coordinator} cannot be used ({reason}): name HOST:PORT of the first process, "
            "distributed.num_processes and distributed.process_id"
        ) from failed[0]
    # Devices connect at their first collective, and wait half a minute for it only: now, while all are here.
    global_min(0.0)


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def global_min(value: float) -> float:
    """The smallest of what the processes say, as a float32; each must ask."""
    return value if jax.process_count() == 1 else -float(np.asarray(_vote(-value)))


class Vote:
    """Votes of the processes: yes when one of them says yes. Each must ask the same questions in the same order."""

    def __init__(self) -> None:
        self.alone = jax.process_count() == 1
        self._waiting: collections.deque[Array] = collections.deque()

    def blocking(self, said: bool) -> bool:
        """The answer; waits for all processes."""
        return said if self.alone else bool(np.asarray(_vote(said)))

    def delayed(self, said: bool) -> bool:
        """The answer to the question asked VOTES_IN_FLIGHT questions ago, at once; of one process, the answer to this one."""
        if self.alone:
            return said
        self._waiting.append(_vote(said))
        return len(self._waiting) > VOTES_IN_FLIGHT and bool(np.asarray(self._waiting.popleft()))


@contextmanager
def first_before_others() -> Iterator[None]:
    """The first process goes through the body before the others enter it: they find what it wrote, such as a cache.

    Raises UserError in the others where the first failed.
    """
    vote = Vote()
    if not is_first() and vote.blocking(False):
        raise UserError(f"process {jax.process_index()} stopped because the first one did, whose error says why")
    failed = True
    try:
        yield
        failed = False
    finally:
        if is_first():
            vote.blocking(failed)


@cache
def _ballot() -> tuple[Mesh, jax.stages.Wrapped]:
    devices = jax.devices()
    mesh = jax.make_mesh((len(devices),), ("all",), axis_types=(AxisType.Auto,), devices=devices)
    return mesh, jax.jit(lambda said: said.max(), out_shardings=NamedSharding(mesh, P()))


def _vote(said: float) -> Array:
    """The largest of what the processes say, as an array that is being computed."""
    mesh, count = _ballot()
    mine = np.full(mesh.local_mesh.size, said, np.float32)
    return count(jax.make_array_from_process_local_data(NamedSharding(mesh, P("all")), mine, (mesh.size,)))
