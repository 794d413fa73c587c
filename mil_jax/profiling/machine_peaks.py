"""What this machine can do at most, measured on the spot: matrix products, and copies in memory.

A step is held against these, not against a data sheet: they come from the same JAX, on all devices at once, as training uses them.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from mil_jax.engine.mesh import replica_mesh, wait
from mil_jax.engine.programs import replica_sharding
from mil_jax.types import Array

ENOUGH_SECONDS = 0.05  # a measured call is made larger until it takes so long
LARGEST_MATRIX, LARGE_COPY = 16_384, 256 << 20  # edge; bytes on each device
ROUNDS, MOST_ROUNDS = 5, 4**9


@dataclass(frozen=True)
class Ceilings:
    """products: operations per second of a square matrix product, by type. copy: bytes per second, read and written both counted,
    of arrays too large for any cache; near: of arrays of the size asked for, which may lie in a cache.

    All are of all devices together.
    """

    products: dict[str, float]
    copy: float
    near: float


def measure_ceilings(working_set: int) -> Ceilings:
    """Takes a second or two. working_set: bytes that the devices work on together. bfloat16 is measured on an accelerator."""
    kinds = ("float32",) if jax.default_backend() == "cpu" else ("float32", "bfloat16")
    size = max(working_set // jax.local_device_count(), 1 << 16)
    copy = _copy(LARGE_COPY)
    near = _copy(size) if size < LARGE_COPY else copy
    return Ceilings({kind: _product(jnp.dtype(kind)) for kind in kinds}, copy, max(near, copy))


def _product(kind: Any) -> float:
    devices = jax.local_device_count()
    edge = 512
    while True:
        x = _on_all((edge, edge), kind)
        seconds = _best(jax.jit(lambda x: x @ x), x)
        if seconds >= ENOUGH_SECONDS or 2 * edge > LARGEST_MATRIX:
            return devices * 2.0 * edge**3 / seconds
        edge *= 2


def _copy(size: int) -> float:
    """Bytes per second of adding 1 to an array of `size` bytes on every device, again and again."""
    x, rounds = _on_all((size // 4,), jnp.float32), 1
    # The rounds are part of the program: before each of an unknown number a GPU would wait for the host.
    again = jax.jit(
        lambda x, rounds: jax.lax.fori_loop(0, rounds, lambda _, x: x + 1, x), donate_argnums=0, static_argnums=1
    )
    x = wait(again(x, rounds))
    while True:
        seconds = []
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            x = wait(again(x, rounds))
            seconds.append(time.perf_counter() - begun)
        if min(seconds) >= ENOUGH_SECONDS or rounds >= MOST_ROUNDS:
            return jax.local_device_count() * 2.0 * size * rounds / min(seconds)
        rounds *= 4


def _on_all(shape: tuple[int, ...], kind: Any) -> Array:
    """Random numbers, an array of this shape on every device: of constant ones, multiplying takes less power, and a GPU is faster."""
    mesh = replica_mesh()
    draw = functools.partial(jax.random.uniform, shape=(mesh.size, *shape), dtype=kind)
    drawn: Array = jax.jit(draw, out_shardings=replica_sharding(mesh))(jax.random.key(0))
    return drawn


def _best(function: Callable[[Array], Array], x: Array) -> float:
    wait(function(x))
    seconds = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        wait(function(x))
        seconds.append(time.perf_counter() - begun)
    return min(seconds)
