"""The device mesh over the devices of all processes, and the sharding of the engine's arrays: how they come to it and back."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mil_jax.aggregators.base import Aggregator
from mil_jax.engine.programs import AXIS, DATA_AXIS, INSTANCE_AXIS, fully_replicated, replica_sharding
from mil_jax.errors import ConfigError
from mil_jax.types import AnyArray, Array, PyTree


def wait(tree: PyTree) -> PyTree:
    """The same arrays, computed: for clocks. Nothing comes to the host."""
    return jax.block_until_ready(tree)


def replica_mesh(data_parallel: int = 1, instance_parallel: int = 1) -> Mesh:
    """A mesh of all devices of all processes, also when there are fewer replicas: XLA compiles a program for one device otherwise
    than for several, and a replica alone would then not be bit-identical to the same replica together with others.

    data_parallel: how many devices share a batch. instance_parallel: how many share each bag of it. Their product divides the devices.
    """
    devices = jax.devices()
    axes = {AXIS: len(devices) // (data_parallel * instance_parallel)}
    axes |= {
        name: count for name, count in ((DATA_AXIS, data_parallel), (INSTANCE_AXIS, instance_parallel)) if count > 1
    }
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes), devices=devices)


def sharing(at_most: int, *wholes: int) -> int:
    """How many devices share something: the most, up to `at_most`, that divide all of `wholes`, such as devices and batch size."""
    return max(count for count in range(1, max(at_most, 1) + 1) if not any(whole % count for whole in wholes))


def put(array: AnyArray, sharding: NamedSharding) -> Array:
    """A host array, which every process has whole, or one of a device, on the devices."""
    if jax.process_count() == 1:
        return jax.device_put(array, sharding)
    # Each process gives its own part; `device_put` would first compare the values of all processes.
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def require_devices(module: Aggregator, data_parallel: int, instance_parallel: int) -> None:
    """Raises ConfigError where there are fewer devices than are to share a batch, and where devices cannot share a bag: `module` says
    with `mixes_instances` that it computes each instance from others, all of which every device would need.
    """
    if data_parallel * instance_parallel > jax.device_count():
        raise ConfigError(
            f"train.data_parallel={data_parallel} and train.instance_parallel={instance_parallel} ask for "
            f"{data_parallel * instance_parallel} devices for one batch, and there are "
            f"{jax.device_count()}: lower one of them"
        )
    if instance_parallel > 1 and module.mixes_instances:
        raise ConfigError(
            f"train.instance_parallel={instance_parallel} would save no memory: {type(module).__name__} computes each instance from "
            "others, so every device would need the whole bag; leave it at 1, and where bags are too large set train.sample_instances"
        )


def laid_out(groups: np.ndarray, devices: int) -> tuple[int, np.ndarray]:
    """(S, int [R]): the place of each replica on the leading axis, so that every S places from the first on are of one group.

    groups: [R], the group of each replica. S: the most that need no place more on any of the devices; each has as many.
    """
    per_device = -(-len(groups) // devices)
    kinds, counts = np.unique(groups, return_counts=True)
    same = max(
        size
        for size in range(1, per_device + 1)
        if per_device % size == 0 and (-(-counts // size) * size).sum() <= per_device * devices
    )
    place, used = np.zeros(len(groups), np.int64), 0
    for kind, count in zip(kinds, counts):
        place[groups == kind] = used + np.arange(count)
        used += -(-int(count) // same) * same
    return same, place


class Placement:
    """Where the arrays of R replicas lie: the leading axis in equal parts over the devices, filled up where R does not divide.

    Arrays on the host are always those of all R replicas, in their order; devices have those of the `members`, all of them at first.
    data_parallel, instance_parallel: as many devices hold the same replicas, and share their batches and each bag. groups: [R], of
    replicas that should be neighbours; None: as they come. count: int32 [devices], how many places of each device (or each such group of
    devices) are used. same: how many neighbours are of one group, all along the devices.
    """

    def __init__(
        self,
        num_replicas: int,
        data_parallel: int = 1,
        instance_parallel: int = 1,
        groups: np.ndarray | None = None,
    ) -> None:
        self.num_replicas = num_replicas
        self.mesh = replica_mesh(data_parallel, instance_parallel)
        self.places = self.mesh.shape[AXIS]
        self.groups = np.arange(num_replicas) if groups is None else groups
        self.keep_on_device(np.arange(num_replicas))
        self.split: Callable[[PyTree], PyTree] | None = self._split if INSTANCE_AXIS in self.mesh.axis_names else None
        self.fetches = 0
        self._gather = jax.jit(lambda tree: tree, out_shardings=fully_replicated(self.mesh))

    def keep_on_device(self, members: np.ndarray) -> None:
        """From here on the devices have these replicas, ascending; what they held before is not moved."""
        self.members = members
        self.per_device = -(-len(members) // self.places)
        self.same, self._place = laid_out(self.groups[members], self.places)
        used, before = int(self._place.max()) + 1, self.per_device * np.arange(self.places)
        self.count = put(np.clip(used - before, 0, self.per_device).astype(np.int32), replica_sharding(self.mesh))

    def shard(self, tree: PyTree) -> PyTree:
        """Host arrays [R, ...] over the devices."""

        def place(array: np.ndarray) -> Array:
            full = np.zeros((self.per_device * self.places, *array.shape[1:]), array.dtype)
            full[self._place] = array[self.members]
            return put(full, replica_sharding(self.mesh))

        return jax.tree.map(lambda x: place(np.asarray(x)), tree)

    def replicate(self, tree: PyTree) -> PyTree:
        """Host arrays, or such as a device has, whole on every device."""

        def placed(x: AnyArray) -> Array:
            return put(x if isinstance(x, jax.Array) else np.asarray(x), fully_replicated(self.mesh))

        return jax.tree.map(placed, tree)

    def _split(self, tree: PyTree) -> PyTree:
        """Host arrays [places, L, ...], the second axis in equal parts over the devices that share a bag."""
        in_parts = NamedSharding(self.mesh, P(None, INSTANCE_AXIS))
        return jax.tree.map(lambda x: put(x, in_parts), tree)

    def fetch(self, tree: PyTree) -> PyTree:
        """The same tree of host arrays, with the replicas of all processes. Waits for what is being computed.

        The engine's single way of bringing anything to the host; it counts how often: one fetch an epoch is a promise.
        """
        self.fetches += 1
        if jax.process_count() > 1:
            tree = self._gather(tree)
        # A copy: on a CPU the host array would be the device's own buffer, which the next dispatch may be given to write into.
        return jax.tree.map(np.array, jax.device_get(tree))

    def strip_padding(self, tree: PyTree, others: PyTree = None) -> PyTree:
        """[R, ...] without what only fills the mesh. others: host arrays [R, ...] of the replicas that are no members; else zeros."""
        if isinstance(jax.tree.leaves(tree)[0], jax.ShapeDtypeStruct):
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.num_replicas, *x.shape[1:]), x.dtype), tree)
        if len(self.members) == self.num_replicas:
            return jax.tree.map(lambda x: x[self._place], tree)

        def whole(x: np.ndarray, other: np.ndarray) -> np.ndarray:
            result = other.copy()
            result[self.members] = x[self._place]
            return result

        if others is None:
            others = jax.tree.map(lambda x: np.zeros((self.num_replicas, *x.shape[1:]), x.dtype), tree)
        return jax.tree.map(whole, tree, others)
