"""How many runs fit side by side into a device's memory, from what the compiler says of a program, before anything is run; where they are
trained sequentially, whether one does.

A program over k runs needs about a + b k bytes. All runs are tried first, which is one compilation where they fit; else one run, and
the largest k that the line through both allows. Trials are compilations, and counted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax

from mil_jax.engine.distributed import global_min
from mil_jax.machine import Memory, memory_bytes

# Of a device's memory; the rest is for what lies beside a program: best parameters, outputs of an evaluation.
SHARE = 0.9


class DoesNotFit(Exception):
    """One run at a time needs more than there is. needed, limit: bytes."""

    def __init__(self, needed: int, limit: int) -> None:
        super().__init__(f"{needed} bytes of {limit}")
        self.needed, self.limit = needed, limit


@cache
def min_memory() -> Memory:
    """What there is, of all processes the least, so that they decide alike. Asked once, by all processes at the same time."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]  # None on a CPU
    host, own = memory_bytes(), all("bytes_limit" in one for one in stats)
    device = min(one["bytes_limit"] for one in stats) if own else host // len(stats)
    return Memory(int(global_min(host)), int(global_min(device)), bool(global_min(own)), jax.device_count())


def available_memory(gib: float) -> Memory:
    """`min_memory`, with `gib` of each device where it is not 0."""
    return dataclasses.replace(min_memory(), device=int(gib * 2**30), own=True) if gib else min_memory()


def device_limit(gib: float) -> int:
    """Bytes that a program may use of each device: `gib`, or for 0 a share of the memory that the smallest device has.

    Devices of a CPU share the host's memory.
    """
    return int(gib * 2**30) if gib else int(SHARE * min_memory().device)


def needed(program: jax.stages.Compiled) -> int:
    """Bytes on a device while the program runs: its arguments, results that are not written over them, and what is between."""
    analysis = program.memory_analysis()
    if analysis is None:
        return 0
    return int(
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        - analysis.alias_size_in_bytes
        + analysis.temp_size_in_bytes
    )


def require_room(program: jax.stages.Compiled, limit: int, common: int) -> None:
    """Raises DoesNotFit where the program needs more than `limit` bytes of a device. common: bytes of its arguments that are the same on
    every device, of which those of a CPU have a part each, since they use one array.
    """
    needs = needed(program)
    if jax.default_backend() == "cpu":
        needs -= common - common // jax.local_device_count()
    if needs > limit:
        raise DoesNotFit(needs, limit)


def side_by_side(choices: Mapping[str, Any]) -> dict[str, dict[int, int]]:
    """{phase: {bucket length: runs at once}} from the choices of a run folder, whose JSON has text for numbers."""
    chosen = choices.get("runs_side_by_side", {})
    return {phase: {int(length): count for length, count in counts.items()} for phase, counts in chosen.items()}


def largest_that_fits(
    most: int, limit: int, compile: Callable[[int], jax.stages.Compiled]
) -> tuple[int, jax.stages.Compiled, int]:
    """(k, its program, programs compiled in vain) for the largest k <= most that fits, spread evenly over most runs.

    Raises DoesNotFit where one run does not.
    """
    whole = compile(most)
    if needed(whole) <= limit:
        return most, whole, 0
    one = whole if most == 1 else compile(1)
    if needed(one) > limit:
        raise DoesNotFit(needed(one), limit)
    trials = 1
    each = max((needed(whole) - needed(one)) / (most - 1), 1.0)
    k = even(most, max(1, min(most - 1, 1 + int((limit - needed(one)) / each))))
    while k > 1:
        program = compile(k)
        trials += 1
        if needed(program) <= limit:
            return k, program, trials
        k = even(most, k - 1)
    return 1, one, trials


def even(most: int, k: int) -> int:
    """The size of chunks when `most` are cut into as few chunks as chunks of k would give."""
    return -(-most // -(-most // k))
