"""The order in which bags are trained on: an epoch is a shuffled list of blocks, each of some slots of one bucket.

A slot is a step of every replica. The blocks and their order come from the split table alone, never from which replicas run, so that a
replica sees the same order alone and together with others. Each replica fills the slots with its own shuffle (independent), or all
replicas of a fold with one (fold), whose bags are then read once for all of them; where a replica has no bag for a slot it idles. Blocks
are there because a device is sent steps of one bucket at a time: slot by slot, nearly every step would be sent alone. Bags are assigned to
the slots of their bucket over the whole epoch, so a block is a random draw of bags of similar size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from mil_jax.engine.plan import Replica

# Of an epoch: enough blocks for its shuffle to mix sizes well, and few enough for a device to be busy with one while the next is sent.
LEAST_BLOCKS, MOST_SLOTS = 24, 12
INDEPENDENT, FOLD = ORDERS = "independent", "fold"


@dataclass(frozen=True)
class EpochOrder:
    """What every replica trains on in one epoch.

    bags: int32 [R, T, B], numbers of bags in training order, without idle slots; -1 where a batch is not full.
    dispatches: (bucket, lo [R], hi [R]): replica r makes its steps lo[r]..hi[r] in that bucket.
    counts: int64 [R], the steps of each replica.
    """

    bags: np.ndarray
    dispatches: tuple[tuple[int, np.ndarray, np.ndarray], ...]
    counts: np.ndarray

    def of(self, active: np.ndarray) -> EpochOrder:
        """The same for the replicas that are `active` [R]; the others have no steps."""
        bags = np.where(active[:, None, None], self.bags, -1)
        dispatches = ((bucket, np.where(active, lo, 0), np.where(active, hi, 0)) for bucket, lo, hi in self.dispatches)
        busy = tuple((bucket, lo, hi) for bucket, lo, hi in dispatches if (lo < hi).any())
        return EpochOrder(bags, busy, np.where(active, self.counts, 0))


class BagOrder:
    """Draws the order of every epoch.

    training: bool [rows, num_bags]. bucket: int [num_bags], the bucket each bag fits in, in ascending order of length.
    sampling: None (each bag once an epoch), or float [rows, num_bags]: weights to draw bags by, with replacement.
    row: the row of a replica; its fold, where there is one target. order: INDEPENDENT, or FOLD for one shuffle (and one draw) for all
    replicas of a row. blocks: False for blocks of one slot, as in runs that were begun before there were others.

    block_slots: int64 [num_buckets], slots of a bucket's blocks; its last one may be shorter.
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
        order: str = INDEPENDENT,
        blocks: bool = True,
    ) -> None:
        self.order = order
        self.row = row
        self.training = training
        self.bucket = bucket
        self.num_buckets = num_buckets
        self.batch_size = batch_size
        self.data_seed = data_seed
        self.steps_per_dispatch = steps_per_dispatch
        self.sampling = sampling
        self._drawing = ThreadPoolExecutor(1, "order")
        self._ahead: tuple[Sequence[Replica], int, np.ndarray, Future[EpochOrder]] | None = None
        self.slot_counts = self._slot_counts()
        self.max_steps = int(self.slot_counts.sum())
        most = min(self.max_steps // LEAST_BLOCKS, MOST_SLOTS) if blocks else 1
        self.block_slots = np.array([_block_slots(count, most) for count in self.slot_counts.tolist()])

    def _slot_counts(self) -> np.ndarray:
        """[num_buckets]: per bucket the largest number of batches of any row."""
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

    def draw_ahead(self, replicas: Sequence[Replica], active: np.ndarray, epoch: int) -> None:
        """Begins to draw the order of epoch `epoch` in the background, for replicas of which fewer may be active by then."""
        drawn_for = active.copy()
        self._ahead = replicas, epoch, drawn_for, self._drawing.submit(self._draw, replicas, drawn_for, epoch)

    def epoch(self, replicas: Sequence[Replica], active: np.ndarray, epoch: int) -> EpochOrder:
        """The order of epoch `epoch`; replicas that are not `active` [R] have no steps."""
        if self._ahead:
            theirs, number, drawn_for, order = self._ahead
            if theirs is replicas and number == epoch and not (active & ~drawn_for).any():
                return order.result().of(active)
        return self._draw(replicas, active, epoch)

    def _draw(self, replicas: Sequence[Replica], active: np.ndarray, epoch: int) -> EpochOrder:
        slots = self._slots(epoch)
        filled: dict[
            tuple[int, int], np.ndarray
        ] = {}  # some replicas share theirs, such as those that differ only in overrides
        bags = np.full((len(replicas), self.max_steps, self.batch_size), -1, np.int32)
        busy = np.zeros((len(replicas), len(slots)), bool)
        for r, replica in enumerate(replicas):
            if not active[r]:
                continue
            who = (0 if self.order == FOLD else replica.seed, self.row(replica))
            if who not in filled:
                filled[who] = self._fill(slots, replica, epoch)
            mine = filled[who]
            busy[r] = (mine >= 0).any(axis=1)
            steps = mine[busy[r]]
            bags[r, : len(steps)] = steps
        done = np.concatenate([np.zeros((len(replicas), 1), np.int64), np.cumsum(busy, axis=1)], axis=1)
        dispatches = []
        for start, stop in _stretches(slots, self.steps_per_dispatch):
            if busy[:, start:stop].any():
                dispatches.append((int(slots[start]), done[:, start].astype(np.int32), done[:, stop].astype(np.int32)))
        return EpochOrder(bags, tuple(dispatches), busy.sum(axis=1))

    def _slots(self, epoch: int) -> np.ndarray:
        """int [T], the bucket of every slot."""
        blocks = -(-self.slot_counts // self.block_slots)
        of_block = np.repeat(np.arange(self.num_buckets), blocks)
        slots = np.repeat(self.block_slots, blocks)
        last = np.cumsum(blocks)[blocks > 0] - 1
        slots[last] -= (blocks * self.block_slots - self.slot_counts)[blocks > 0]
        order = np.arange(len(slots))
        np.random.default_rng([self.data_seed, epoch]).shuffle(order)
        return np.repeat(of_block[order], slots[order])

    def _fill(self, slots: np.ndarray, replica: Replica, epoch: int) -> np.ndarray:
        """[num_slots, B] bag numbers, -1 for none: one replica's bags, shuffled into the slots they fit."""
        row = self.row(replica)
        whose = [replica.fold, epoch, 2] if self.order == FOLD else [replica.seed, replica.fold, epoch, 1]
        rng = np.random.default_rng([self.data_seed, *whose])
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


def _block_slots(count: int, most: int) -> int:
    """Slots of each block of a bucket of `count` slots: at most `most`, and such that its last block lacks the fewest."""
    if count <= most:
        return max(1, count)
    sizes = range(max(1, most // 2), max(1, most) + 1)
    return min(sizes, key=lambda slots: (-count % slots, -slots))


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


def portions(lo: np.ndarray, hi: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """int32 [R, 2]: the steps lo[r]..hi[r] of each replica, at most `most` at a time, in sequence; one portion where there are none."""
    for start in range(0, max(int((hi - lo).max()), 1), most):
        begun = lo + np.minimum(start, hi - lo)
        yield np.stack([begun, begun + np.minimum(most, hi - begun)], axis=1).astype(np.int32)


def _stretches(slots: np.ndarray, longest: int) -> list[tuple[int, int]]:
    """(start, stop) of the stretches of equal slots, none longer than `longest`."""
    edges = [0, *(np.flatnonzero(np.diff(slots)) + 1).tolist(), len(slots)]
    return [
        (start, min(start + longest, stop))
        for begin, stop in itertools.pairwise(edges)
        for start in range(begin, stop, longest)
    ]
