"""The order in which bags are trained on: an epoch is a shuffled list of slots, each of one bucket.

The number of slots per bucket and their order come from the split table alone, never from which replicas run, so that a replica
sees the same order alone and together with others. Each replica fills the slots with its own shuffle (independent), or all see the
same bag at the same time (shared); where a replica has no bag for a slot it idles. Consecutive slots of one bucket are dispatched
together, which changes no order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter

import numpy as np

from mil_jax.engine.plan import Replica


@dataclass(frozen=True)
class EpochOrder:
    """What every replica trains on in one epoch.

    bags: int32 [R, T, B], numbers of bags in training order, -1 where a batch is not full; without idle slots, or, laid out by slot,
        with them: then row t is the same for all replicas, but for what they hold out.
    dispatches: (bucket, lo [R], hi [R]): replica r makes its steps lo[r]..hi[r] in that bucket.
    counts: int64 [R], the steps of each replica.
    """

    bags: np.ndarray
    dispatches: tuple[tuple[int, np.ndarray, np.ndarray], ...]
    counts: np.ndarray

    @cached_property
    def _done(self) -> np.ndarray:
        """[R, T + 1], the steps of each replica before row t of `bags`."""
        done = np.zeros((self.bags.shape[0], self.bags.shape[1] + 1), np.int64)
        np.cumsum((self.bags >= 0).any(axis=2), axis=1, out=done[:, 1:])
        return done

    def steps(self, lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
        """int64 [R], how many of the rows lo..hi of each replica are steps."""
        everyone = np.arange(len(lo))
        return self._done[everyone, hi] - self._done[everyone, lo]


class BagOrder:
    """Draws the order of every epoch.

    training: bool [rows, num_bags]. bucket: int [num_bags], the bucket each bag fits in, in ascending order of length.
    sampling: None (each bag once an epoch), or float [rows, num_bags]: weights to draw bags by, with replacement.
    row: the row of a replica; its fold, where there is one target. shared: all replicas go through one shuffle of all training bags, and
    those that hold a bag out idle; not with `sampling`. by_slot: how a shared order is laid out, see `EpochOrder`.
    """

    def __init__(
        self,
        training: np.ndarray,
        bucket: np.ndarray,
        num_buckets: int,
        *,
        batch_size: int = 1,
        data_seed: int = 0,
        steps_per_dispatch: int = 64,
        sampling: np.ndarray | None = None,
        row: Callable[[Replica], int] = attrgetter("fold"),
        shared: bool = False,
        by_slot: bool = False,
    ) -> None:
        assert not (shared and sampling is not None), "what is drawn for one replica is not shared"
        assert shared or not by_slot, "replicas with orders of their own have nothing in common in a slot"
        self.shared, self.by_slot = shared, by_slot
        self.row = row
        self.training = training
        self.bucket = bucket
        self.num_buckets = num_buckets
        self.batch_size = batch_size
        self.data_seed = data_seed
        self.steps_per_dispatch = steps_per_dispatch
        self.sampling = sampling
        self.slot_counts = self._slot_counts()
        self.max_steps = int(self.slot_counts.sum())

    def _slot_counts(self) -> np.ndarray:
        """[num_buckets]: per bucket the largest number of batches of any row, or the batches of all training bags together."""
        if self.shared:
            in_bucket = np.bincount(self.bucket[self.training.any(axis=0)], minlength=self.num_buckets)
            return np.ceil(in_bucket / self.batch_size).astype(np.int64)
        per_row = np.zeros((len(self.training), self.num_buckets))
        for row, part in enumerate(self.training):
            if self.sampling is None:
                per_row[row] = np.bincount(self.bucket[part], minlength=self.num_buckets)
            else:
                share = np.bincount(self.bucket[part], self.sampling[row, part], self.num_buckets)
                expected = part.sum() * share / share.sum()
                # Draws vary from epoch to epoch: four standard deviations of room, so that hardly a draw finds no slot.
                per_row[row] = np.minimum(np.ceil(expected + 4 * np.sqrt(expected)) * (expected > 0), part.sum())
        return np.ceil(per_row / self.batch_size).astype(np.int64).max(axis=0)

    def epoch(self, replicas: Sequence[Replica], active: np.ndarray, epoch: int) -> EpochOrder:
        """The order of epoch `epoch`; replicas that are not `active` [R] have no steps."""
        slots = np.repeat(np.arange(self.num_buckets), self.slot_counts)
        np.random.default_rng([self.data_seed, epoch]).shuffle(slots)
        filled: dict[tuple[int, int], np.ndarray] = {}  # replicas that differ only in their overrides share theirs
        bags = np.full((len(replicas), self.max_steps, self.batch_size), -1, np.int32)
        busy = np.zeros((len(replicas), len(slots)), bool)
        for r, replica in enumerate(replicas):
            if not active[r]:
                continue
            who = (replica.seed, self.row(replica))
            if who not in filled:
                filled[who] = self._fill(slots, replica, epoch)
            mine = filled[who]
            busy[r] = (mine >= 0).any(axis=1)
            steps = mine if self.by_slot else mine[busy[r]]
            bags[r, : len(steps)] = steps
        row = np.ones_like(busy) if self.by_slot else busy
        done = np.concatenate([np.zeros((len(replicas), 1), np.int64), np.cumsum(row, axis=1)], axis=1)
        dispatches = []
        for start, stop in _stretches(slots, self.steps_per_dispatch):
            if busy[:, start:stop].any():
                dispatches.append((int(slots[start]), done[:, start].astype(np.int32), done[:, stop].astype(np.int32)))
        return EpochOrder(bags, tuple(dispatches), busy.sum(axis=1))

    def _fill(self, slots: np.ndarray, replica: Replica, epoch: int) -> np.ndarray:
        """[num_slots, B] bag numbers, -1 for none: one replica's bags, shuffled into the slots they fit."""
        row = self.row(replica)
        if self.shared:
            rng = np.random.default_rng([self.data_seed, epoch, 2])
            everyone = self._shuffled(slots, rng.permutation(np.flatnonzero(self.training.any(axis=0))), rng)
            return np.where((everyone >= 0) & self.training[row][everyone], everyone, -1)
        rng = np.random.default_rng([self.data_seed, replica.seed, replica.fold, epoch, 1])
        part = np.flatnonzero(self.training[row])
        if self.sampling is None:
            drawn = rng.permutation(part)
        else:
            weights = self.sampling[row, part]
            drawn = rng.choice(part, size=len(part), p=weights / weights.sum())
        return self._shuffled(slots, drawn, rng)

    def _shuffled(self, slots: np.ndarray, drawn: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The bags `drawn`, each in a slot that it fits, [num_slots, B]."""
        filled = np.full((len(slots), self.batch_size), -1, np.int32)
        waiting = np.empty(0, np.int64)
        for bucket in range(self.num_buckets):
            # Bags that found no slot of their own bucket take one of the next larger.
            here = np.concatenate([waiting, drawn[self.bucket[drawn] == bucket]])
            places = np.flatnonzero(slots == bucket)
            used = rng.choice(places, size=min(len(places), math.ceil(len(here) / self.batch_size)), replace=False)
            fits = here[: len(used) * self.batch_size]
            waiting = here[len(fits) :]
            padded = np.full(len(used) * self.batch_size, -1, np.int32)
            padded[: len(fits)] = fits
            filled[used] = padded.reshape(len(used), self.batch_size)
        return filled


def order_by_bucket(bags: np.ndarray, bucket: np.ndarray, num_buckets: int, longest: int) -> EpochOrder:
    """The order in which bags [R, V], -1 for none, are predicted that are sorted by bucket: a bag a step, `longest` in a dispatch."""
    buckets = np.where(bags >= 0, bucket[np.maximum(bags, 0)], num_buckets)
    edges = [(buckets < number).sum(axis=1).astype(np.int32) for number in range(num_buckets + 1)]
    dispatches = [
        (number, np.minimum(lo + start, hi), np.minimum(lo + start + longest, hi))
        for number, (lo, hi) in enumerate(itertools.pairwise(edges))
        for start in range(0, int((hi - lo).max()), longest)
    ]
    return EpochOrder(bags[..., None], tuple(dispatches), edges[-1])


def _stretches(slots: np.ndarray, longest: int) -> list[tuple[int, int]]:
    """(start, stop) of the stretches of equal slots, none longer than `longest`."""
    edges = [0, *(np.flatnonzero(np.diff(slots)) + 1).tolist(), len(slots)]
    return [
        (start, min(start + longest, stop))
        for begin, stop in itertools.pairwise(edges)
        for start in range(begin, stop, longest)
    ]
