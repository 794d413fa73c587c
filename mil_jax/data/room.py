"""Whether a cohort is held in memory or streamed, chosen by its bytes against the memory there is."""

from __future__ import annotations

import jax
import numpy as np

from mil_jax.data.streaming import WINDOWS
from mil_jax.errors import DataError
from mil_jax.machine import memory_bytes

AUTO, RESIDENT, STREAMED = "auto", "resident", "streamed"
MOST_SHARE = 0.7  # of the memory, for the cohort; models, activations and the system take from the rest
_MOST_ROWS = np.iinfo(np.int32).max  # offsets are int32 on the device, JAX's default integer width


def choose_residency(asked: str, rows: int, row_bytes: int, stream_bytes: int) -> tuple[str, str]:
    """("resident" or "streamed", the sentence that says which, why and the bytes).

    asked: "auto", "resident" or "streamed". rows, row_bytes: of the cohort as one array. stream_bytes: host memory for windows.
    Raises DataError for "resident" where the cohort does not fit.
    """
    needed, memory, kind = rows * row_bytes, *_least_memory()
    size = f"the cohort's {rows:,} instances are {_gib(needed)}"
    if rows > _MOST_ROWS:
        obstacle = f"more than {_MOST_ROWS:,} instances cannot be held as one array"
    elif needed > MOST_SHARE * memory:
        obstacle = f"that is more than {MOST_SHARE:.0%} of this machine's {_gib(memory)} of {kind} memory"
    else:
        obstacle = ""
    if asked == RESIDENT and obstacle:
        raise DataError(f"{size}, and {obstacle}: set data.residency=streamed, or leave slides out with data.filter")
    if asked == STREAMED or obstacle:
        why = obstacle if asked == AUTO else "as asked"
        windows = f"{WINDOWS} windows of host memory, at most {_gib(stream_bytes)} together, are read ahead"
        return STREAMED, f"{size}; streamed ({why}): {windows}"
    return (
        RESIDENT,
        f"{size}; held in memory ({'as asked; ' * (asked == RESIDENT)}there are {_gib(memory)} of {kind} memory)",
    )


def _least_memory() -> tuple[int, str]:
    """Bytes of the smaller of host memory, through which every cohort is read, and that of one device."""
    host = memory_bytes()
    stats = jax.local_devices()[0].memory_stats() or {}  # None on a CPU
    device = stats.get("bytes_limit", host)
    return (host, "host") if host <= device else (device, "device")


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.3g} GiB"
