"""The data loader of streamed cohorts: bags stay in their shards, and are prefetched window by window while others are computed on.

A window has the arrays of a resident cohort, so the compiled programs do not know the difference. There are WINDOWS of them in host
memory, and no more: while one is computed on, the next is transferred and the one after it is read. Host memory is

    WINDOWS x (rows of the largest window) x (bytes of an instance's features + 12, 4 for each neighbour, 1 for each tile of a region).

A window is filled again only when the dispatch that read it has ended: a CPU device computes on the host's memory itself.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import jax
import numpy as np

from mil_jax.data.loading.resident import (
    Put,
    ResidentBags,
    SplitBags,
    Window,
    bag_sizes,
    new_rows,
    real_features,
    row_bytes,
    slide_rows,
)
from mil_jax.data.loading.windows import Dispatch, WindowPlan, bags_wanted, split_dispatches, steps_of_windows
from mil_jax.data.shards.reader import Shards
from mil_jax.errors import DataError
from mil_jax.machine import usable_cores
from mil_jax.types import Array

Job = TypeVar("Job")
Result = TypeVar("Result")
WINDOWS = 3
THREAD_NAMES = "mil_jax-stream"
_MOST_READERS = 8


@dataclass(frozen=True)
class StreamedBags:
    """A cohort in its shards. slides[b]: numbers of the slides of bag b. most_bytes: of host memory, for all windows together.
    num_neighbors: of each instance; 0 = no graph.
    """

    shards: Shards
    slides: Sequence[np.ndarray]
    most_bytes: int
    num_neighbors: int = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one instance in a window."""
        return row_bytes(self.shards, self.num_neighbors)

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """int32 [num_bags], instances of each bag."""
        return bag_sizes(self.shards, self.slides).astype(np.int32)


class Order(Protocol):
    """Which bags are read in an epoch: bags [R, T, B], -1 for none, and the dispatches over them."""

    @property
    def bags(self) -> np.ndarray:
        """See the class."""

    @property
    def dispatches(self) -> Sequence[Dispatch]:
        """See the class."""


class _Window:
    """Rows in host memory. done: ready when the last dispatch that read them has ended."""

    def __init__(self, bags: StreamedBags, rows: int) -> None:
        self.rows = new_rows(bags.shards, rows, bags.num_neighbors)
        for array in self.rows.arrays:
            array.fill(0)  # what was never read is finite: a place without a bag reads it with weight 0
        self.done: Array | None = None


class StreamingLoader:
    """Reads windows in the background. Use it from one thread, and close it on every way out.

    put: brings host arrays to every device. first: the order of the first epoch, by which windows are sized. split: where devices share
    a bag, brings arrays [places, L, ...] to them, the second axis in parts; windows are then such arrays.
    Raises DataError when a window cannot hold one step's bags.
    """

    def __init__(
        self,
        bags: StreamedBags,
        lengths: tuple[int, ...],
        put: Put,
        first: Order,
        split: Put | None = None,
    ) -> None:
        self.bags, self.shards, self.lengths, self.put, self.split = bags, bags.shards, lengths, put, split
        self.rows = window_rows(bags, lengths, first.bags, first.dispatches)
        self.sizes = bags.sizes
        self.steps = steps_of_windows(self._plans(first.bags, first.dispatches), len(lengths))
        self._device_sizes = put(self.sizes)
        self._placed = (split or put)(np.zeros((1, lengths[0]), np.int32)).sharding  # of the arrays of a window
        self._windows = collections.deque(_Window(bags, max(self.rows)) for _ in range(WINDOWS))
        self._verified = np.zeros(len(self.shards), bool)
        readers = min(_MOST_READERS, usable_cores())
        # Windows are read one after another, each by all readers: the next one needed is complete as early as can be.
        self._readers = ThreadPoolExecutor(readers, THREAD_NAMES)
        self._reading = ThreadPoolExecutor(1, THREAD_NAMES)
        self._placing = ThreadPoolExecutor(1, THREAD_NAMES)

    def read(self) -> None:
        """Bags are read as they are needed."""

    @property
    def host_bytes(self) -> int:
        """Host memory of all windows, as in the module's docstring."""
        return WINDOWS * max(self.rows) * self.bags.row_bytes

    def shapes(self, bucket: int) -> ResidentBags:
        """Shapes of what a dispatch of the bucket reads."""
        rows, length = self.rows[bucket], self.lengths[bucket]
        if self.split:
            return SplitBags(*window_shapes(self.bags, (rows // length, length), self._placed, self._device_sizes))
        return ResidentBags(*window_shapes(self.bags, (rows,), self._placed, self._device_sizes))

    def windows(self, bags: np.ndarray, dispatches: Sequence[Dispatch]) -> Iterator[Window]:
        """The windows of dispatches (bucket, lo [R], hi [R]) over bags [R, T, B], split so that each one's bags fit into a window.

        Raises ShardError for a torn or altered record.
        """

        def job(plan: WindowPlan) -> tuple[WindowPlan, Callable[[_Window], Future[ResidentBags]]]:
            return plan, lambda window: self._placing.submit(
                self._place, window, plan, self._reading.submit(self._read, window, plan.offsets)
            )

        for plan, window, placed in self._in_turn(map(job, self._plans(bags, dispatches))):
            piece = Window(plan.bucket, plan.lo, plan.hi, placed, plan.ends_dispatch)
            try:
                yield piece
            finally:
                window.done = piece.done

    def _plans(self, bags: np.ndarray, dispatches: Sequence[Dispatch]) -> Iterator[WindowPlan]:
        padded = self.split is not None
        return split_dispatches(bags, dispatches, self.sizes, self.lengths, self.rows, padded=padded)

    def instances(self, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(number, features [n, *F]) of each bag, on the host, in a window: use them before the next. Of regions as in memory."""

        def job(number: int) -> tuple[int, Callable[[_Window], Future[None]]]:
            return number, lambda window: self._reading.submit(self._read, window, {number: 0})

        for number, window, _ in self._in_turn(map(job, numbers.tolist())):
            yield number, real_features(window.rows, slice(self.sizes[number]))
            window.done = None

    def _in_turn(
        self, jobs: Iterator[tuple[Job, Callable[[_Window], Future[Result]]]]
    ) -> Iterator[tuple[Job, _Window, Result]]:
        """Begins jobs, as many ahead as there are windows, and gives each one's window and result, in order."""
        ahead: collections.deque[tuple[Job, _Window, Future[Result]]] = collections.deque()

        def begin_next() -> None:
            for job, begin in itertools.islice(jobs, 1):
                window = self._windows.popleft()
                ahead.append((job, window, begin(window)))

        try:
            for _ in range(WINDOWS):
                begin_next()
            while ahead:
                job, window, future = ahead.popleft()
                try:
                    yield job, window, future.result()
                finally:
                    self._windows.append(window)
                begin_next()
        finally:  # left early: what was begun is waited for
            for _, window, future in ahead:
                with contextlib.suppress(CancelledError):
                    future.exception()
                self._windows.append(window)

    def verify_rest(self) -> None:
        """Checks the records of the cohort that were not read yet. Raises ShardError for a torn or altered one."""
        numbers = np.concatenate(self.bags.slides)
        list(self._readers.map(self._verify, numbers[~self._verified[numbers]].tolist()))

    def close(self) -> None:
        """Stops reading and waits for the threads to end."""
        for pool in (self._placing, self._reading, self._readers):
            pool.shutdown(cancel_futures=True)

    def _read(self, window: _Window, offsets: dict[int, int]) -> None:
        if window.done is not None:
            window.done.block_until_ready()
        jobs = [
            (window, *place, position, row)
            for bag, row in offsets.items()
            for position, place in enumerate(slide_rows(self.shards, self.bags.slides[bag], row))
        ]
        list(self._readers.map(self._read_slide, jobs))

    def _read_slide(self, job: tuple[_Window, int, int, int, int, int]) -> None:
        window, slide, start, stop, position, first_row = job
        self._verify(slide)
        window.rows.read_slide(self.shards, slide, slice(start, stop), position, first_row)

    def _verify(self, slide: int) -> None:
        if not self._verified[slide]:
            self.shards.verify(slide)
            self._verified[slide] = True

    def _place(self, window: _Window, plan: WindowPlan, read: Future[None]) -> ResidentBags:
        read.result()
        offsets = np.zeros(len(self.sizes), np.int32)
        offsets[list(plan.offsets)] = list(plan.offsets.values())
        host = window.rows.bags(slice(self.rows[plan.bucket]), offsets, None)
        if self.split is None:
            return self.put(host).replace(sizes=self._device_sizes)
        length, split = self.lengths[plan.bucket], self.split
        features, coords, slide_index, neighbors, parts = (
            None if x is None else split(x.reshape(-1, length, *x.shape[1:]))
            for x in (host.features, host.coords, host.slide_index, host.neighbors, host.part_mask)
        )
        places = self.put(offsets // length)
        return SplitBags(features, coords, slide_index, places, self._device_sizes, neighbors, parts)


def window_shapes(
    bags: StreamedBags, axes: tuple[int, ...], placed: jax.sharding.Sharding, sizes: Array
) -> tuple[jax.ShapeDtypeStruct | None, ...]:
    """Shapes of the arrays of a window, in the order of `ResidentBags`. axes: those that its instances lie along, which are `placed`
    so. sizes: of the bags, on the devices.
    """

    def shape(*more: int, dtype: np.dtype | type = np.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*axes, *more), dtype, sharding=placed)

    features = shape(*bags.shards.feature_shape, dtype=bags.shards.dtype)
    neighbors = shape(bags.num_neighbors) if bags.num_neighbors else None
    parts = shape(bags.shards.num_parts, dtype=bool) if bags.shards.num_parts else None
    numbers = jax.ShapeDtypeStruct(sizes.shape, sizes.dtype, sharding=sizes.sharding)
    return features, shape(2), shape(), numbers, numbers, neighbors, parts


def window_rows(
    bags: StreamedBags, lengths: tuple[int, ...], order: np.ndarray, dispatches: Sequence[Dispatch]
) -> tuple[int, ...]:
    """Rows of a window, by bucket: for the bags wanted at once, as far as the memory allows, and at least for one step."""
    batch_size, instance = order.shape[2], bags.row_bytes
    most_rows = bags.most_bytes // (WINDOWS * instance)
    needed = batch_size * lengths[-1]
    if needed > most_rows:
        raise DataError(
            f"data.prefetch_gib={bags.most_bytes / 2**30:g} is too little to stream this cohort: one step needs up to "
            f"{needed:,} instances in memory, three times; set it to at least {WINDOWS * needed * instance / 2**30:.3g}"
        )
    wanted = np.maximum(bags_wanted(order, dispatches, len(lengths)), batch_size)
    return tuple(min(int(count), most_rows // length) * length for count, length in zip(wanted, lengths))
