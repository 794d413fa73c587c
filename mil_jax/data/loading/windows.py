"""Which bags lie together in a window: dispatches split into shorter ones whose bags fit into a fixed number of rows.

A dispatch lets replica r make its steps lo[r]..hi[r] of one bucket. Where the bags it reads are more than a window holds it
becomes several, in sequence, each with bags of its own; no replica's order changes, so no result does. A window has room for the same
number of rows in every dispatch of a bucket, so that nothing is compiled twice. Two replicas, a dispatch of four and three steps, bags
a to e of 4, 3, 2, 4 and 3 instances in a bucket of length 4, windows of 12 rows:

    slot          0   1 | 2   3
    replica 0     a   b | c   d        lo = 0, hi = 4
    replica 1     b   a | e            lo = 0, hi = 3
                        |
    window 1  aaaabbb.....             lo = 0 0, hi = 2 2       slot 2 adds c and e: e would begin at row 9, and a slice of
    window 2  cceeedddd...             lo = 2 2, hi = 4 3       the bucket's length from there leads out of the window
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

Dispatch = tuple[int, np.ndarray, np.ndarray]  # bucket, lo [R], hi [R]


@dataclass(frozen=True)
class WindowPlan:
    """A part of a dispatch, and the bags it reads. offsets: first row in the window, by bag. ends_dispatch: whether it is the
    dispatch's last."""

    bucket: int
    lo: np.ndarray
    hi: np.ndarray
    offsets: dict[int, int]
    ends_dispatch: bool


def split_dispatches(
    bags: np.ndarray,
    dispatches: Sequence[Dispatch],
    sizes: np.ndarray,
    lengths: Sequence[int],
    rows: Sequence[int],
    padded: bool = False,
) -> Iterator[WindowPlan]:
    """The plans of all dispatches, in order.

    bags: int [R, T, B], -1 for none. sizes: [num_bags]. rows: [num_buckets], rows of a window: at least B times the bucket's length.
    padded: each bag takes the bucket's length, else bags lie end to end.
    """
    for bucket, lo, hi in dispatches:
        taken = np.full_like(sizes, lengths[bucket]) if padded else sizes
        plans = [*_split(bags, lo, hi, taken, lengths[bucket], rows[bucket])]
        for number, (start, stop, offsets) in enumerate(plans, start=1):
            yield WindowPlan(bucket, start, stop, offsets, ends_dispatch=number == len(plans))


def bags_wanted(bags: np.ndarray, dispatches: Sequence[Dispatch], num_buckets: int) -> np.ndarray:
    """int [num_buckets], bags that a window should hold: those of the fullest slot, or of the median dispatch where these are more.

    A slot is one step of all replicas that have one. A bucket without dispatches gets as many as the fullest slot of any.
    """
    in_slot = np.zeros(num_buckets, np.int64)
    in_dispatches: list[list[int]] = [[] for _ in range(num_buckets)]
    for bucket, lo, hi in dispatches:
        slots = [_numbers(bags, lo, hi, t) for t in range(int((hi - lo).max()))]
        in_slot[bucket] = max(in_slot[bucket], *map(len, slots))
        in_dispatches[bucket].append(len(np.unique(np.concatenate(slots))))
    wanted = np.maximum(in_slot, [int(np.median(counts)) if counts else 0 for counts in in_dispatches])
    return np.where(wanted > 0, wanted, max(1, int(in_slot.max())))


def steps_of_windows(plans: Iterable[WindowPlan], num_buckets: int) -> list[int]:
    """By bucket, the steps of the replica that has most in the median window; 1 where there is none."""
    found: list[list[int]] = [[] for _ in range(num_buckets)]
    for plan in plans:
        found[plan.bucket].append(int((plan.hi - plan.lo).max()))
    return [max(1, int(np.median(steps))) if steps else 1 for steps in found]


class _Packing:
    """Bags laid end to end, so that a slice of the bucket's length from the first row of each stays within the window."""

    def __init__(self, sizes: np.ndarray, length: int, rows: int) -> None:
        self.sizes, self.length, self.rows = sizes, length, rows
        self.offsets: dict[int, int] = {}
        self.used = 0

    def add(self, numbers: np.ndarray) -> bool:
        """Adds those that are not there yet; False, and none added, when they do not fit."""
        new = [number for number in numbers.tolist() if number not in self.offsets]
        stops = self.used + np.cumsum(self.sizes[new])
        starts = [self.used, *stops.tolist()]
        if new and starts[-2] + self.length > self.rows:
            return False
        self.offsets.update(zip(new, starts))
        self.used = starts[-1]
        return True


def _split(
    bags: np.ndarray, lo: np.ndarray, hi: np.ndarray, sizes: np.ndarray, length: int, rows: int
) -> Iterator[tuple[np.ndarray, np.ndarray, dict[int, int]]]:
    start, at, packing = lo, lo.copy(), _Packing(sizes, length, rows)
    for t in range(int((hi - lo).max())):
        busy, numbers = np.flatnonzero(lo + t < hi), _numbers(bags, lo, hi, t)
        if packing.add(numbers):
            at[busy] += 1
            continue
        # The slot begins a new window, or, where even that is too small, its replicas go one by one.
        for group in [busy] if len(numbers) * length <= rows else busy[:, None]:
            numbers = _numbers(bags[group], lo[group], hi[group], t)
            if not packing.add(numbers):
                yield start, at.copy(), packing.offsets
                start, packing = at.copy(), _Packing(sizes, length, rows)
                packing.add(numbers)
            at[group] += 1
    if (at > start).any():
        yield start, at, packing.offsets


def _numbers(bags: np.ndarray, lo: np.ndarray, hi: np.ndarray, t: int) -> np.ndarray:
    """The different bags of slot t of a dispatch."""
    busy = np.flatnonzero(lo + t < hi)
    numbers = np.unique(bags[busy, lo[busy] + t])
    return numbers[numbers >= 0]
