"""Whether a cohort is held in memory, by each device or by all together, or streamed: chosen by its bytes against the memory there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jax.sharding import Mesh

from mil_jax.data.loading.resident import Put, ResidentBags
from mil_jax.data.loading.resident_loader import LazyBags, ResidentLoader
from mil_jax.data.loading.sharded import ShardedBags, ShardedLoader, fullest
from mil_jax.data.loading.streamed import WINDOWS, Order, StreamedBags, StreamingLoader
from mil_jax.data.shards.reader import Shards
from mil_jax.errors import DataError
from mil_jax.machine import Memory

AUTO, RESIDENT, STREAMED = "auto", "resident", "streamed"
MOST_SHARE = 0.7  # of the memory, for the cohort; models, activations and the system take from the rest
_MOST_ROWS = np.iinfo(np.int32).max  # offsets are int32 on the device, JAX's default integer width


@dataclass(frozen=True)
class Residency:
    """kind: "resident" or "streamed". note: which, why and the bytes, in a sentence. spread: resident, each bag on one device only."""

    kind: str
    note: str
    spread: bool = False


def choose_residency(
    asked: str, sizes: np.ndarray, longest: int, row_bytes: int, prefetch_gib: float, memory: Memory
) -> Residency:
    """asked: "auto", "resident" or "streamed". sizes: [num_bags], instances of each bag. longest: the last bucket's length. row_bytes: of
    an instance. prefetch_gib: memory for windows.

    Raises DataError for "resident" where the cohort does not fit.
    """
    rows = int(sizes.sum()) + longest
    needed, (there, kind) = rows * row_bytes, memory.of_an_array
    size = f"the cohort's features take {_shown(needed)}"
    windows = f"at most {prefetch_gib:,.3g} GiB together"
    if rows > _MOST_ROWS:
        obstacle = f"more than {_MOST_ROWS:,} instances cannot be held as one array"
    elif needed > MOST_SHARE * there:
        obstacle = f"that is more than {MOST_SHARE:.0%} of this machine's {_shown(there)} of {kind} memory"
    else:
        obstacle = ""
    if asked != STREAMED and obstacle and memory.own and memory.devices > 1:
        held = fullest(sizes, memory.devices) * row_bytes
        if held + prefetch_gib * 2**30 <= MOST_SHARE * memory.device and held <= MOST_SHARE * memory.host:
            why = f"{'as asked; ' * (asked == RESIDENT)}{obstacle}"
            shares = (
                f"at most {_shown(held)} of bags and {WINDOWS} windows, {windows}, on each of {memory.devices} devices"
            )
            return Residency(RESIDENT, f"{size}; held by all devices together ({why}): {shares}", spread=True)
        obstacle += f", and {_shown(held)} on each of {memory.devices} devices, with windows of {windows}, are too much"
    if asked == RESIDENT and obstacle:
        raise DataError(f"{size}, and {obstacle}: set data.residency=streamed, or leave slides out with data.filter")
    if asked == STREAMED or obstacle:
        why = obstacle if asked == AUTO else "as asked"
        return Residency(
            STREAMED, f"{size}; streamed ({why}): {WINDOWS} windows of host memory, {windows}, are read ahead"
        )
    why = f"{'as asked; ' * (asked == RESIDENT)}there are {_shown(there)} of {kind} memory"
    return Residency(RESIDENT, f"{size}; held in memory ({why})")


def open_bags(
    residency: Residency,
    shards: Shards,
    slides: Sequence[np.ndarray],
    longest: int,
    prefetch_gib: float,
    num_neighbors: int = 0,
) -> LazyBags | StreamedBags:
    """The bags, to be read. `slides[b]`: numbers of the slides of bag b. longest: the last bucket's length. num_neighbors: of
    each instance; 0 = no graph.
    """
    if residency.kind == RESIDENT and not residency.spread:
        return LazyBags(shards, slides, longest, num_neighbors)
    kind = ShardedBags if residency.spread else StreamedBags
    return kind(shards, slides, int(prefetch_gib * 2**30), num_neighbors)


class Devices(Protocol):
    """How host arrays come to the devices of a mesh: `replicate`, whole on each, or `split`, the second axis in parts over the devices
    that share a bag, None where none do.
    """

    mesh: Mesh
    split: Put | None

    def replicate(self, tree: object) -> object:
        """See the class."""


def make_loader(
    bags: ResidentBags | LazyBags | StreamedBags,
    lengths: tuple[int, ...],
    devices: Devices,
    first: Callable[[], Order],
) -> ResidentLoader | ShardedLoader | StreamingLoader:
    """What brings the bags to the devices; the kinds are used alike. first: gives the order of the first epoch."""
    if isinstance(bags, ShardedBags):
        return ShardedLoader(bags, lengths, devices.replicate, devices.mesh, first())
    if isinstance(bags, StreamedBags):
        return StreamingLoader(bags, lengths, devices.replicate, first(), devices.split)
    return ResidentLoader(bags, devices.replicate)


def _shown(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.3g} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.3g} MiB"
