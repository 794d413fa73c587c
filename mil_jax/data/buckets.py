"""Ladders: the few lengths that bags are padded to, fitted to a cohort's sizes by dynamic programming.

Lengths are multiples of 128, and of 8 below 1,024. Among ladders of s lengths the one with the least padding is found
exactly, for s = 1, 2, ..., until the padding is under the waste limit or the number of shapes is used up. With sorted
lengths the cost of a bucket is a line in its length, so the program runs along a lower hull in O(lengths) per shape:
100,000 bags take well under a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Ladder:
    """Bucket lengths in rising order, and their waste: the share of all padded instances that is padding."""

    lengths: tuple[int, ...]
    waste: float

    def bucket(self, sizes: ArrayLike) -> np.ndarray:
        """sizes [num_bags] -> int64 [num_bags], the shortest bucket that holds each bag.

        Raises ValueError for a bag longer than the last bucket.
        """
        sizes = np.asarray(sizes)
        indices = np.searchsorted(np.asarray(self.lengths), sizes, side="left")
        if np.any(indices == len(self.lengths)):
            raise ValueError(f"a bag of {sizes.max()} instances is longer than the last bucket, {self.lengths[-1]}")
        return indices


def round_up(sizes: ArrayLike) -> np.ndarray:
    """The shortest allowed length >= each size: a multiple of 8 below 1,024, of 128 from there; int64, at least 8."""
    sizes = np.maximum(np.asarray(sizes, np.int64), 1)
    step = np.where(sizes <= 1024, 8, 128)
    return -(-sizes // step) * step


def fit_ladder(sizes: ArrayLike, *, max_padding: float = 0.15, max_buckets: int = 12) -> Ladder:
    """The shortest ladder whose padding is at most `max_padding` of all padded instances, within `max_buckets` lengths.

    sizes: [num_bags], instances per bag, all at least 1. When `max_buckets` lengths cannot keep this limit, the
    best ladder of that many is returned; `Ladder.waste` says what it costs.

    Raises ValueError for no bags, an empty bag, or a limit that makes no sense.
    """
    sizes = np.asarray(sizes, np.int64).ravel()
    if sizes.size == 0 or sizes.min() < 1:
        raise ValueError("a ladder needs at least one bag, and every bag at least one instance")
    if max_buckets < 1 or not 0 <= max_padding < 1:
        raise ValueError(
            f"max_buckets must be at least 1 and max_padding in [0, 1), not {max_buckets} and {max_padding}"
        )
    unique, counts = np.unique(round_up(sizes), return_counts=True)
    lengths = [int(length) for length in unique]
    below = [0, *(int(count) for count in np.cumsum(counts))]  # below[k]: bags no longer than the first k lengths
    total = int(sizes.sum())

    # cost[k]: least padded total of the bags of the first k lengths. choices[s][k]: where the last of s + 1 buckets
    # begins.
    cost = [0, *(length * count for length, count in zip(lengths, below[1:]))]
    choices = [[0] * len(cost)]
    while 1.0 - total / cost[-1] > max_padding and len(choices) < min(max_buckets, len(lengths)):
        cost, choice = _one_more_bucket(cost, lengths, below)
        choices.append(choice)

    chosen = []
    end = len(lengths)
    for choice in reversed(choices):
        if end > 0:
            chosen.append(lengths[end - 1])
            end = choice[end]
    return Ladder(tuple(reversed(chosen)), 1.0 - total / cost[-1])


def given_ladder(sizes: np.ndarray, lengths: Sequence[int] | None) -> Ladder | None:
    """The ladder of these lengths, chosen earlier, for bags of these sizes [num_bags]; None without any, or where one is too short."""
    if not lengths or sizes.max() > lengths[-1]:
        return None
    padded = np.asarray(lengths)[Ladder(tuple(lengths), 0.0).bucket(sizes)].sum()
    return Ladder(tuple(lengths), 1.0 - sizes.sum() / padded)


def _one_more_bucket(cost: Sequence[int], lengths: Sequence[int], below: Sequence[int]) -> tuple[list[int], list[int]]:
    """For every k, min over j < k of cost[j] + lengths[k-1] * (below[k] - below[j]): a lower hull of lines."""
    result, choice = [0], [0]
    hull: list[int] = []  # line j: cost[j] - below[j] * length; slopes fall with j while the lengths asked for rise
    first = 0

    def value(j: int, length: int) -> int:
        return cost[j] - below[j] * length

    for k, length in enumerate(lengths, start=1):
        while len(hull) - first >= 2 and _is_hidden(hull[-2], hull[-1], k - 1, cost, below):
            hull.pop()
        hull.append(k - 1)
        while len(hull) - first >= 2 and value(hull[first + 1], length) <= value(hull[first], length):
            first += 1
        choice.append(hull[first])
        result.append(value(hull[first], length) + below[k] * length)
    return result, choice


def _is_hidden(a: int, b: int, c: int, cost: Sequence[int], below: Sequence[int]) -> bool:
    """Whether line b never lies below both line a (before it) and line c (after it)."""
    return (cost[c] - cost[a]) * (below[b] - below[a]) <= (cost[b] - cost[a]) * (below[c] - below[a])
