"""A cohort's features where training reads them: one flat array [rows, *F] with an offset for each bag.

Behind the first row of every bag the array has at least as many rows as the bag's bucket, because `dynamic_slice` silently shifts a
slice that would pass the end. The host array is aligned, so that a CPU device uses it in place, however many such devices there are.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mil_jax.bags import Bag
from mil_jax.data.shards.reader import Shards
from mil_jax.types import AnyArray, Array

Put = Callable[[Any], Any]  # a tree of host arrays -> the same on the devices
IN_FLIGHT = 2  # dispatches the host may be ahead of the device: enough to keep it busy, few enough to stop soon
_ALIGNMENT = 64  # bytes; what XLA's CPU client asks of a buffer that it is to use in place
_BLOCK_ROWS = 4096  # instances summed at a time


class ResidentBags(flax.struct.PyTreeNode):
    """The bags of a cohort, or those of a window, on a device.

    features: [rows, *F]. coords: [rows, 2] int32. slide_index: [rows] int32.
    offsets, sizes: int32 [num_bags], first row and number of rows of each bag; in a window the offsets of its own bags hold.
    neighbors: [rows, K] int32, instance numbers in the row's own bag, -1 for none; None where the method reads no graph.
    part_mask: [rows, T] bool, the tiles there are in a region; None where instances are no regions.
    """

    features: AnyArray
    coords: AnyArray
    slide_index: AnyArray
    offsets: AnyArray
    sizes: AnyArray
    neighbors: AnyArray | None = None
    part_mask: AnyArray | None = None

    def bag(self, number: Array, length: int) -> Bag:
        """Bag `number`, padded to the static `length`."""
        start = self.offsets[number]
        mask = jnp.arange(length) < self.sizes[number]

        def own(array: AnyArray) -> Array:
            return jax.lax.dynamic_slice_in_dim(array, start, length)

        return Bag(
            features=own(self.features).astype(jnp.float32),
            mask=mask,
            coords=own(self.coords),
            slide_index=own(self.slide_index),
            part_mask=None if self.part_mask is None else own(self.part_mask),
            neighbors=None if self.neighbors is None else own(self.neighbors),
        )


class SplitBags(ResidentBags):
    """The bags of a window whose instances lie in equal parts on the devices that share a bag: every array is [places, L, ...] with its
    second axis split, each bag in a place of its own, and `offsets` are numbers of places.
    """

    def bag(self, number: Array, length: int) -> Bag:
        """Bag `number`, padded to the static `length`, at most L."""
        place = self.offsets[number]

        def rows(array: AnyArray) -> Array:
            return jax.lax.dynamic_index_in_dim(array, place, keepdims=False)[:length]

        return Bag(
            features=rows(self.features).astype(jnp.float32),
            mask=jnp.arange(length) < self.sizes[number],
            coords=rows(self.coords),
            slide_index=rows(self.slide_index),
            part_mask=None if self.part_mask is None else rows(self.part_mask),
            neighbors=None if self.neighbors is None else rows(self.neighbors),
        )


@dataclass
class Window:
    """One dispatch: the steps lo[r]..hi[r] of each replica r, all in one bucket, and the bags they read, on the devices.

    ends_dispatch: whether its dispatch ends with it. done: set by whoever dispatches it; an array that is ready when the bags were read.
    """

    bucket: int
    lo: np.ndarray
    hi: np.ndarray
    bags: ResidentBags
    ends_dispatch: bool
    done: Array | None = None


def in_step(windows: Iterable[Window]) -> Iterator[Window]:
    """The same pieces, each made when at most IN_FLIGHT of those before it are still computed on."""
    in_flight: collections.deque[Array] = collections.deque()
    for piece in windows:
        yield piece
        if piece.done is not None:
            in_flight.append(piece.done)
        if len(in_flight) > IN_FLIGHT:
            in_flight.popleft().block_until_ready()


def bag_sizes(shards: Shards, slides: Sequence[np.ndarray]) -> np.ndarray:
    """int64 [num_bags], instances of each bag. `slides[b]`: numbers of the slides of bag b."""
    return np.array([sum(int(shards.num_instances[i]) for i in numbers) for numbers in slides], np.int64)


def load_bags(shards: Shards, slides: Sequence[np.ndarray], longest: int, num_neighbors: int = 0) -> ResidentBags:
    """Reads all bags into host memory. `slides[b]`: numbers of the slides of bag b, whose instances are laid end to end.
    num_neighbors: of each instance; 0 = no graph.

    Every record's checksum is verified. Raises ShardError for a torn or altered record.
    """
    sizes = bag_sizes(shards, slides)
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    total = int(sizes.sum()) + longest
    rows = new_rows(shards, total, num_neighbors)
    for bag, numbers in enumerate(slides):
        for position, (number, start, stop) in enumerate(slide_rows(shards, numbers, int(offsets[bag]))):
            shards.verify(number)
            rows.read_slide(shards, number, slice(start, stop), position, int(offsets[bag]))
    for array in rows.arrays:
        array[total - longest :] = 0
    return rows.bags(slice(None), offsets.astype(np.int32), sizes.astype(np.int32))


def real_features(bags: ResidentBags | Rows, rows: slice) -> np.ndarray:
    """Features [n, *F] on the host of the instances in `rows`; of regions those of the tiles there are."""
    features = np.asarray(bags.features)[rows]
    return features if bags.part_mask is None else features[np.asarray(bags.part_mask[rows])]


def row_bytes(shards: Shards, num_neighbors: int = 0) -> int:
    """Bytes of one instance: its features, two coordinates, the number of its slide, its neighbours, and a region's mask."""
    return math.prod(shards.feature_shape) * shards.dtype.itemsize + 12 + 4 * num_neighbors + shards.num_parts


@dataclass(frozen=True)
class Rows:
    """Aligned host memory for instances.

    features: [rows, *F]. coords: [rows, 2]. slide_index: [rows]. neighbors: [rows, K], or None. These three are int32.
    part_mask: [rows, T] bool, or None.
    """

    features: np.ndarray
    coords: np.ndarray
    slide_index: np.ndarray
    neighbors: np.ndarray | None
    part_mask: np.ndarray | None

    @property
    def arrays(self) -> list[np.ndarray]:
        """Those that there are."""
        every = (self.features, self.coords, self.slide_index, self.neighbors, self.part_mask)
        return [x for x in every if x is not None]

    def read_slide(self, shards: Shards, number: int, rows: slice, position: int, first_row: int) -> None:
        """Reads a slide into its `rows`. position: which of its bag's slides it is. first_row: of the bag, from which neighbours are
        counted. Coordinates are -1 where the features came without.
        """
        shards.read_features(number, self.features[rows])
        xy = shards.read_coords(number)
        self.coords[rows] = -1 if xy is None else xy
        self.slide_index[rows] = position
        if self.neighbors is not None:
            nearest = shards.read_neighbors(number)[:, : self.neighbors.shape[1]]
            self.neighbors[rows] = np.where(nearest >= 0, nearest + (rows.start - first_row), -1)
        if self.part_mask is not None:
            self.part_mask[rows] = shards.read_part_mask(number)

    def bags(self, rows: slice, offsets: np.ndarray, sizes: np.ndarray | None) -> ResidentBags:
        """Bags that lie in `rows`."""
        neighbors, part_mask = (None if x is None else x[rows] for x in (self.neighbors, self.part_mask))
        return ResidentBags(
            self.features[rows], self.coords[rows], self.slide_index[rows], offsets, sizes, neighbors, part_mask
        )


def new_rows(shards: Shards, rows: int, num_neighbors: int = 0) -> Rows:
    """Not yet filled."""
    whole = np.dtype(np.int32)
    neighbors = aligned((rows, num_neighbors), whole) if num_neighbors else None
    features = aligned((rows, *shards.feature_shape), shards.dtype)
    part_mask = aligned((rows, shards.num_parts), np.dtype(bool)) if shards.num_parts else None
    return Rows(features, aligned((rows, 2), whole), aligned((rows,), whole), neighbors, part_mask)


def slide_rows(shards: Shards, numbers: np.ndarray, row: int) -> Iterator[tuple[int, int, int]]:
    """(slide, first row, row behind the last) of the slides of a bag that begins at `row`."""
    for number in numbers.tolist():
        stop = row + int(shards.num_instances[number])
        yield number, row, stop
        row = stop


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array, not yet filled, that a CPU device uses in place."""
    num_bytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + num_bytes].view(dtype).reshape(shape)
