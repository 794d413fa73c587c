"""Whether a cohort is held in memory or streamed, chosen by its bytes against the memory there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from mil_jax.data.residency import UnreadBags
from mil_jax.data.shards import Shards
from mil_jax.data.streaming import WINDOWS, StreamedBags
from mil_jax.errors import DataError
from mil_jax.machine import memory_bytes

AUTO, RESIDENT, STREAMED = "auto", "resident", "streamed"
MOST_SHARE = 0.7  # of the memory, for the cohort; models, activations and the system take from the rest
_MOST_ROWS = np.iinfo(np.int32).max  # offsets are int32 on the device, JAX's default integer width


@dataclass(frozen=True)
class Residency:
    """kind: "resident" or "streamed". note: which, why and the bytes, in a sentence."""

    kind: str
    note: str


def choose_residency(asked: str, rows: int, row_bytes: int, stream_gib: float) -> Residency:
    """asked: "auto", "resident" or "streamed". rows, row_bytes: of the cohort as one array. stream_gib: host memory for windows.

    Raises DataError for "resident" where the cohort does not fit.
    """
    needed, memory, kind = rows * row_bytes, *_least_memory()
    size = f"the cohort's features take {_shown(needed)}"
    if rows > _MOST_ROWS:
        obstacle = f"more than {_MOST_ROWS:,} instances cannot be held as one array"
    elif needed > MOST_SHARE * memory:
        obstacle = f"that is more than {MOST_SHARE:.0%} of this machine's {_shown(memory)} of {kind} memory"
    else:
        obstacle = ""
    if asked == RESIDENT and obstacle:
        raise DataError(f"{size}, and {obstacle}: set data.residency=streamed, or leave slides out with data.filter")
    if asked == STREAMED or obstacle:
        why = obstacle if asked == AUTO else "as asked"
        windows = f"{WINDOWS} windows of host memory, at most {stream_gib:,.3g} GiB together, are read ahead"
        return Residency(STREAMED, f"{size}; streamed ({why}): {windows}")
    why = f"{'as asked; ' * (asked == RESIDENT)}there are {_shown(memory)} of {kind} memory"
    return Residency(RESIDENT, f"{size}; held in memory ({why})")


def open_bags(
    kind: str, shards: Shards, slides: Sequence[np.ndarray], longest: int, stream_gib: float, num_neighbors: int = 0
) -> UnreadBags | StreamedBags:
    """The bags, to be read. `slides[b]`: numbers of the slides of bag b. longest: the last bucket's length. num_neighbors: of
    each instance; 0 = no graph.
    """
    if kind == STREAMED:
        return StreamedBags(shards, slides, int(stream_gib * 2**30), num_neighbors)
    return UnreadBags(shards, slides, longest, num_neighbors)


def _least_memory() -> tuple[int, str]:
    """Bytes of the smaller of host memory, through which every cohort is read, and that of one device."""
    host = memory_bytes()
    stats = jax.local_devices()[0].memory_stats() or {}  # None on a CPU
    device = stats.get("bytes_limit", host)
    return (host, "host") if host <= device else (device, "device")


def _shown(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.3g} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.3g} MiB"
