"""The data loader of a cohort larger than one device: each bag whole on one device, its owner; windows of bags filled from their owners.

A window has the arrays of a resident cohort, so the compiled programs do not know the difference. To fill one, each device puts the
rows that it owns into an array of zeros, and the sum of these arrays goes to every device. That is one pass over the links between
the devices in place of one over the disk; it is not overlapped with the steps. On each device there are the bags that it owns and
WINDOWS windows.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mil_jax.data.loading.resident import Put, ResidentBags, Window, in_step, load_bags, real_features
from mil_jax.data.loading.streamed import Order, StreamedBags, window_rows, window_shapes
from mil_jax.data.loading.windows import Dispatch, WindowPlan, split_dispatches, steps_of_windows
from mil_jax.types import Array


class ShardedBags(StreamedBags):
    """A cohort in its shards, to be read once and held by all devices together. most_bytes: of each device, for all windows."""


def deal(sizes: np.ndarray, devices: int) -> np.ndarray:
    """int [num_bags], the owner of each bag: the longest bags first, each to the device that has least."""
    owner = np.zeros(len(sizes), np.int32)
    held = [(0, device) for device in range(devices)]
    for bag in np.argsort(-sizes, kind="stable"):
        rows, device = heapq.heappop(held)
        owner[bag] = device
        heapq.heappush(held, (rows + int(sizes[bag]), device))
    return owner


def fullest(sizes: np.ndarray, devices: int) -> int:
    """Rows of the device that owns most."""
    return int(np.bincount(deal(sizes, devices), sizes, devices).max())


class ShardedLoader:
    """Fills windows from the devices that own their bags. Owners are read sequentially, by the process that has the device.

    put: brings host arrays to every device of the mesh. first: the order of the first epoch, by which windows are sized.
    Raises DataError when a window cannot hold one step's bags, ShardError for a torn or altered record.
    """

    def __init__(self, bags: ShardedBags, lengths: tuple[int, ...], put: Put, mesh: Mesh, first: Order) -> None:
        self.bags, self.lengths, self.put = bags, lengths, put
        self.rows = window_rows(bags, lengths, first.bags, first.dispatches)
        self.sizes = bags.sizes
        plans = split_dispatches(first.bags, first.dispatches, self.sizes, lengths, self.rows)
        self.steps = steps_of_windows(plans, len(lengths))
        self._device_sizes = put(self.sizes)
        self._owner = deal(self.sizes, mesh.size)
        self._most_rows = fullest(self.sizes, mesh.size)
        self._first_row = np.zeros(len(self.sizes), np.int32)
        for device in range(mesh.size):
            mine = np.flatnonzero(self._owner == device)
            self._first_row[mine] = np.cumsum(self.sizes[mine]) - self.sizes[mine]
        everywhere = P(mesh.axis_names)
        self._owned = self._read(mesh, NamedSharding(mesh, everywhere))

        def fill(owned: ResidentBags, source: Array) -> ResidentBags:
            owner, row = source
            here = jnp.where(owner == jax.lax.axis_index(mesh.axis_names), row, self._most_rows)
            mine = jax.tree.map(lambda x: x.at[here].get(mode="fill", fill_value=0), owned)
            return jax.lax.psum(mine, mesh.axis_names)

        mapped = jax.shard_map(fill, mesh=mesh, in_specs=(everywhere, P()), out_specs=P(), check_vma=False)
        self._fill = jax.jit(mapped)

    def read(self) -> None:
        """Bags are read as they are needed."""

    @property
    def host_bytes(self) -> int:
        """Host memory that the bags of one owner take while they are read."""
        return self._most_rows * self.bags.row_bytes

    def shapes(self, bucket: int) -> ResidentBags:
        """Shapes of what a dispatch of the bucket reads."""
        sizes = self._device_sizes
        return ResidentBags(*window_shapes(self.bags, (self.rows[bucket],), sizes.sharding, sizes))

    def windows(self, bags: np.ndarray, dispatches: Sequence[Dispatch]) -> Iterator[Window]:
        """The windows of dispatches (bucket, lo [R], hi [R]) over bags [R, T, B], split so that each one's bags fit into a window."""
        plans = split_dispatches(bags, dispatches, self.sizes, self.lengths, self.rows)
        return in_step(Window(plan.bucket, plan.lo, plan.hi, self._window(plan), plan.ends_dispatch) for plan in plans)

    def instances(self, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(number, features [n, *F]) of each bag, on the host, from the shards."""
        for number in numbers.tolist():
            yield number, real_features(load_bags(self.bags.shards, [self.bags.slides[number]], 0), slice(None))

    def verify_rest(self) -> None:
        """Every record was checked when it was read."""

    def close(self) -> None:
        """Nothing is open."""

    def _read(self, mesh: Mesh, sharding: NamedSharding) -> ResidentBags:
        """The bags of each device of this process, end to end, as one array [devices x rows, ...] over all devices."""
        parts = []
        for number, device in enumerate(mesh.devices.flat):
            if device.process_index == jax.process_index():
                mine = np.flatnonzero(self._owner == number)
                slides = [self.bags.slides[bag] for bag in mine.tolist()]
                unused = self._most_rows - int(self.sizes[mine].sum())
                host = load_bags(self.bags.shards, slides, unused, self.bags.num_neighbors)
                part = jax.device_put(host.replace(offsets=None, sizes=None), device)
                parts.append(jax.block_until_ready(part))

        def whole(*arrays: Array) -> Array:
            shape = (mesh.size * self._most_rows, *arrays[0].shape[1:])
            return jax.make_array_from_single_device_arrays(shape, sharding, list(arrays))

        owned: ResidentBags = jax.tree.map(whole, *parts)
        return owned

    def _window(self, plan: WindowPlan) -> ResidentBags:
        source = np.full((2, self.rows[plan.bucket]), -1, np.int32)  # of each row: its owner, and where it lies there
        offsets = np.zeros(len(self.sizes), np.int32)
        for bag, start in plan.offsets.items():
            size, first = self.sizes[bag], self._first_row[bag]
            source[0, start : start + size] = self._owner[bag]
            source[1, start : start + size] = np.arange(first, first + size)
            offsets[bag] = start
        filled: ResidentBags = self._fill(self._owned, self.put(source))
        return filled.replace(offsets=self.put(offsets), sizes=self._device_sizes)
