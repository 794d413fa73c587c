"""A cohort's features where training reads them: one flat array [total + longest bucket, *F] with an offset for each bag.

The array ends with as many zero rows as the longest bucket has, because `dynamic_slice` silently shifts a window that would pass
the end. The host array is aligned, so that a CPU device uses it in place, however many such devices there are.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mil_jax.bags import Array, Bag
from mil_jax.data.shards import Shards
from mil_jax.errors import DataError

_ALIGNMENT = 64  # bytes; what XLA's CPU client asks of a buffer that it is to use in place


class ResidentBags(flax.struct.PyTreeNode):
    """The bags of a cohort on a device.

    features: [total + longest bucket, *F]. coords: [total + longest bucket, 2] int32. slide_index: [total + longest bucket] int32.
    offsets, sizes: int32 [num_bags], first row and number of rows of each bag.
    """

    features: Array
    coords: Array
    slide_index: Array
    offsets: Array
    sizes: Array

    def bag(self, number: jax.Array, length: int) -> Bag:
        """Bag `number`, padded to the static `length`."""
        start = self.offsets[number]
        mask = jnp.arange(length) < self.sizes[number]
        features = jax.lax.dynamic_slice_in_dim(self.features, start, length)
        return Bag(
            features=features.astype(jnp.float32),
            mask=mask,
            coords=jax.lax.dynamic_slice_in_dim(self.coords, start, length),
            slide_index=jax.lax.dynamic_slice_in_dim(self.slide_index, start, length),
        )


def load_bags(shards: Shards, slides: Sequence[np.ndarray], longest: int) -> ResidentBags:
    """Reads all bags into host memory. `slides[b]`: numbers of the slides of bag b, whose instances are laid end to end.

    Every record's checksum is verified. Raises ShardError for a torn or altered record, DataError for a cohort that does not fit in
    memory.
    """
    sizes = np.array([sum(int(shards.num_instances[i]) for i in numbers) for numbers in slides], np.int64)
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    total = int(sizes.sum()) + longest
    _require_room(total, math.prod(shards.feature_shape) * shards.dtype.itemsize)
    features = _aligned((total, *shards.feature_shape), shards.dtype)
    coords = _aligned((total, 2), np.dtype(np.int32))
    slide_index = _aligned((total,), np.dtype(np.int32))
    for bag, numbers in enumerate(slides):
        row = int(offsets[bag])
        for position, number in enumerate(numbers):
            stop = row + int(shards.num_instances[number])
            shards.verify(number)
            shards.read_features(number, features[row:stop])
            xy = shards.read_coords(number)
            coords[row:stop] = -1 if xy is None else xy
            slide_index[row:stop] = position
            row = stop
    for array in (features, coords, slide_index):
        array[total - longest :] = 0
    return ResidentBags(features, coords, slide_index, offsets.astype(np.int32), sizes.astype(np.int32))


def moments(bags: ResidentBags, training: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population standard deviation, float64 [*F], of all instances of the bags marked in `training` [num_bags]."""
    offsets, sizes = np.asarray(bags.offsets), np.asarray(bags.sizes)
    shape = bags.features.shape[1:]
    count, total, squares = 0, np.zeros(shape), np.zeros(shape)
    # Sums are taken about a first guess of the mean: without it, large means would cancel the digits of small deviations.
    numbers = np.flatnonzero(training)
    first = offsets[numbers[0]]
    guess = np.asarray(bags.features[first : first + sizes[numbers[0]]], np.float64).mean(axis=0)
    for number in numbers:
        rows = np.asarray(bags.features[offsets[number] : offsets[number] + sizes[number]], np.float64) - guess
        count += len(rows)
        total += rows.sum(axis=0)
        squares += (rows**2).sum(axis=0)
    mean = total / count
    variance = np.maximum(squares / count - mean**2, 0.0)
    # A constant column has a variance of rounding noise; its deviation is exactly 0.
    variance[variance <= 1e-12 * np.maximum(np.abs(mean + guess), 1e-30) ** 2] = 0.0
    return guess + mean, np.sqrt(variance)


def _require_room(total: int, row_bytes: int) -> None:
    """Raises DataError for a cohort that cannot lie in memory as one array."""
    needed = total * (row_bytes + 12)  # coordinates and slide numbers, too
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    what = f"the cohort has {total:,} instances, {needed / 2**30:.1f} GiB"
    less = "leave slides out with data.filter, or write shards with data_prep.shard --dtype=float16"
    if total > np.iinfo(np.int32).max:  # offsets are int32 on the device, JAX's default integer width
        raise DataError(f"{what}: more than {np.iinfo(np.int32).max:,} instances cannot be held as one array; {less}")
    if needed > 0.9 * memory:
        raise DataError(f"{what}, but this machine has {memory / 2**30:.1f} GiB of memory for it; {less}")


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    num_bytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(num_bytes + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + num_bytes].view(dtype).reshape(shape)
