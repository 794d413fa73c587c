"""What the engine's programs compute: steps of training, predictions and initial states, each over all replicas.

On a CPU replicas run sequentially on each device (`map`), each making all its steps of a dispatch while its state is in the cache;
on a GPU they run side by side (`vmap`), as many as the memory takes in that bucket, and a replica without a bag keeps its state by a
select. The replica axis is sharded over the device mesh; replicas never communicate. Where devices share a bag, its instances are
sharded over them, and XLA's partitioner does the reductions.

A program of training or evaluation is given the cohort, what it changes and returns (donated), what it reads of each replica
(`StepInputs`, `EvaluationInputs`), and how many replicas each device really has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mil_jax.bags import Bag
from mil_jax.data.loading.resident import ResidentBags
from mil_jax.strategies.base import Analysis, Batch, Strategy, TrainState
from mil_jax.types import AnyArray, Array, PyTree

AXIS = "replica"
DATA_AXIS = "data"  # devices that share the bags of a batch; a mesh without it has one device for each batch
INSTANCE_AXIS = "instance"  # devices that share the instances of a bag; a mesh without it has one device for each bag
INIT_STREAM = (
    2**32 - 1
)  # folded into a replica's key for its initial state; updates fold in their number, which stays below


class DeviceCohort(flax.struct.PyTreeNode):
    """What all replicas read: the bags and, to train on them, for each target column one target a bag: [num_targets, num_bags, ...];
    covariates [num_bags, V], or None.
    """

    bags: ResidentBags
    targets: AnyArray = None
    covariates: AnyArray | None = None


class ReplicaIds(flax.struct.PyTreeNode):
    """What tells replicas apart: their key [R] and the number of their target column [R]."""

    key: Array
    target: Array


class EpochInputs(flax.struct.PyTreeNode):
    """One epoch's order: bags [R, T, B] (-1 for none) and the strategy's schedule, each [R, T]."""

    bags: AnyArray
    extras: dict[str, AnyArray]


class StepCarry(flax.struct.PyTreeNode):
    """What a step changes: the state, and the sums of the step metrics over the epoch. Every leaf has the leading axis [R]."""

    state: TrainState
    metrics: dict[str, AnyArray]


class StepInputs(flax.struct.PyTreeNode):
    """What the steps of a dispatch read: replica r makes its steps lo..hi = ends[r] of the epoch, all in one bucket. Every leaf has the
    leading axis [R].
    """

    ids: ReplicaIds
    epoch: EpochInputs
    ends: AnyArray


class EvaluationInputs(flax.struct.PyTreeNode):
    """What an evaluation reads: replica r predicts bags[r, lo:hi] of bags [R, V], lo..hi = ends[r], all in one bucket. Every leaf has
    the leading axis [R].
    """

    state: TrainState
    bags: AnyArray
    ends: AnyArray


Inputs = TypeVar("Inputs", StepInputs, EvaluationInputs)


def replica_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis sharded over the devices."""
    return NamedSharding(mesh, P(AXIS))


def fully_replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, P())


def read_bag(cohort: DeviceCohort, number: Array, length: int) -> Bag:
    """A bag, its instances sharded over the devices that share it."""
    bag = cohort.bags.bag(number, length)
    if INSTANCE_AXIS in jax.sharding.get_abstract_mesh().axis_names:
        bag = jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, P(INSTANCE_AXIS)), bag)
    return bag if cohort.covariates is None else bag.replace(covariates=cohort.covariates[number])


def read_batch(cohort: DeviceCohort, numbers: Array, target: Array, length: int, axis: str | None = None) -> Batch:
    """The bags `numbers` [B], -1 for none, padded to `length`; a place without a bag holds bag 0 with weight 0.

    axis: of the devices that share the batch; each reads its own part of the bags.
    """
    return _batch(cohort, _read_bags(cohort, numbers, length, axis), numbers, target, axis)


def _read_bags(cohort: DeviceCohort, numbers: Array, length: int, axis: str | None) -> Bag:
    """As in `read_batch`, with the leading axis [B], or this device's part of it."""
    mine = jnp.maximum(numbers, 0)
    if axis:
        share = len(numbers) // jax.lax.axis_size(axis)
        mine = jax.lax.dynamic_slice_in_dim(mine, jax.lax.axis_index(axis) * share, share)
    if mine.shape[0] == 1:
        return jax.tree.map(lambda x: x[None], read_bag(cohort, mine[0], length))
    return jax.vmap(lambda number: read_bag(cohort, number, length))(mine)


def _batch(cohort: DeviceCohort, bags: Bag, numbers: Array, target: Array, axis: str | None) -> Batch:
    """The bags `numbers` [B] that were read."""
    targets = cohort.targets[target, jnp.maximum(numbers, 0)]
    return Batch(bags=bags, targets=targets, weights=(numbers >= 0).astype(jnp.float32), axis=axis)


def _take(tree: PyTree, r: Array) -> PyTree:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, r, keepdims=False), tree)


def _put(tree: PyTree, one: PyTree, r: Array) -> PyTree:
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y.astype(x.dtype), r, 0), tree, one)


def _over_replicas(count: Array, body: Callable[[Array, PyTree], PyTree], carry: PyTree) -> PyTree:
    """One replica after another. The number of replicas is an argument of the program: a loop of known length 1 would be compiled
    differently, and a replica alone would then not be bit-identical to the same replica together with others.
    """
    return jax.lax.fori_loop(0, count[0], body, carry)


def _one_step(
    strategy: Strategy, ids: ReplicaIds, carry: StepCarry, epoch: EpochInputs, at: Array, batch: Batch
) -> StepCarry:
    extras = {name: values[at] for name, values in epoch.extras.items()}
    key = jax.random.fold_in(ids.key, carry.state.step)
    state, metrics = strategy.step(carry.state, batch, extras, key)
    return StepCarry(state=state, metrics=jax.tree.map(jnp.add, carry.metrics, metrics))


def train_sequential(
    strategy: Strategy,
    length: int,
    axis: str | None,
    cohort: DeviceCohort,
    carry: StepCarry,
    inputs: StepInputs,
    count: Array,
) -> tuple[StepCarry, Array]:
    """The steps of a dispatch, one replica after another; and how many steps were made. axis: of a shared batch. count: [devices]."""

    def replica(r: Array, carry: StepCarry) -> StepCarry:
        mine = _take(inputs, r)

        def step(at: Array, one: StepCarry) -> StepCarry:
            batch = read_batch(cohort, mine.epoch.bags[at], mine.ids.target, length, axis)
            return _one_step(strategy, mine.ids, one, mine.epoch, at, batch)

        lo, hi = mine.ends
        return _put(carry, jax.lax.fori_loop(lo, hi, step, _take(carry, r)), r)

    return _over_replicas(count, replica, carry), _done(inputs)


def _done(inputs: StepInputs | EvaluationInputs) -> Array:
    return jnp.sum(inputs.ends[:, 1] - inputs.ends[:, 0])[None]


def _in_chunks(chunk: int, body: Callable[[PyTree, Inputs], PyTree], carry: PyTree, inputs: Inputs) -> PyTree:
    """`body(carry, inputs) -> carry` on `chunk` replicas after the other."""
    rows = inputs.ends.shape[0]
    if chunk >= rows:
        return body(carry, inputs)

    def one(number: Array, carry: PyTree) -> PyTree:
        # The last chunk begins earlier, so that it is whole; what another chunk has done is not done again.
        start = jnp.minimum(number * chunk, rows - chunk)
        mine, part = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, chunk), (carry, inputs))
        due = start + jnp.arange(chunk) >= number * chunk
        part = part.replace(ends=jnp.where(due[:, None], part.ends, part.ends[:, :1]))
        moved = body(mine, part)
        return jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, start, 0), carry, moved)

    return jax.lax.fori_loop(0, -(-rows // chunk), one, carry)


def train_vmapped(
    strategy: Strategy,
    length: int,
    axis: str | None,
    chunk: int,
    steps: int,
    same: int,
    cohort: DeviceCohort,
    carry: StepCarry,
    inputs: StepInputs,
    count: Array,
) -> tuple[StepCarry, Array]:
    """As `train_sequential`, with `chunk` replicas at a time and at most `steps` steps: a loop of known length, before whose rounds the
    host need not wait for the device. same: so many neighbouring replicas go through the same bags, which are read once for them, so that
    the first layer of all of them is one product with their kernels side by side.
    """
    del count  # replicas that only fill the mesh have no steps: lo = hi

    def group(carry: StepCarry, ids: ReplicaIds, epoch: EpochInputs, at: Array, busy: Array) -> StepCarry:
        numbers = _common(epoch.bags, at, busy)
        bags = _read_bags(cohort, numbers, length, axis)

        def replica(mine: StepCarry, ids: ReplicaIds, epoch: EpochInputs, at: Array, busy: Array) -> StepCarry:
            moved = _one_step(strategy, ids, mine, epoch, at, _batch(cohort, bags, numbers, ids.target, axis))
            return jax.tree.map(lambda new, old: jnp.where(busy, new, old), moved, mine)

        return _each(replica, carry, ids, epoch, at, busy)

    def of_chunk(carry: StepCarry, part: StepInputs) -> StepCarry:
        def step(t: Array | int, carry: StepCarry) -> StepCarry:
            return _by_group(same, group, carry, part.ids, part.epoch, *_place(part.ends, t, part.epoch.bags.shape[1]))

        return _repeat(steps, step, carry)

    return _in_chunks(chunk, of_chunk, carry, inputs), _done(inputs)


def _by_group(same: int, group: Callable[..., PyTree], *trees: PyTree) -> PyTree:
    """`group` over `same` neighbours of the leading axis at a time, or as many as divide both `same` and that axis."""
    together = math.gcd(same, jax.tree.leaves(trees)[0].shape[0])
    split = jax.tree.map(lambda x: x.reshape(-1, together, *x.shape[1:]), trees)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.vmap(group)(*split))


def _each(replica: Callable[..., PyTree], *trees: PyTree) -> PyTree:
    """`replica` over the leading axis. An axis of one is left out: XLA would copy arrays for it."""
    if jax.tree.leaves(trees)[0].shape[0] > 1:
        return jax.vmap(replica)(*trees)
    return jax.tree.map(lambda x: x[None], replica(*jax.tree.map(lambda x: x[0], trees)))


def _common(bags: Array, at: Array, busy: Array) -> Array:
    """bags[r, at[r]], which are the same for all that are `busy`; -1 where none is. bags: [S, T, ...]."""
    mine = jax.vmap(lambda bags, at: bags[at])(bags, at)
    return jnp.where(busy.reshape(-1, *(1,) * (mine.ndim - 1)), mine, -1).max(axis=0)


def _place(ends: Array, t: Array | int, most: int) -> tuple[Array, Array]:
    """(where each replica's step `t` of its steps lo..hi = ends[r] lies among `most`, whether there is one): both [R]."""
    at = ends[:, 0] + t
    return jnp.clip(at, 0, most - 1), at < ends[:, 1]


def _repeat(times: int, body: Callable[[Array | int, PyTree], PyTree], carry: PyTree) -> PyTree:
    return body(0, carry) if times == 1 else jax.lax.fori_loop(0, times, body, carry)


def evaluate(
    strategy: Strategy | Analysis,
    length: int,
    chunk: int | None,
    steps: int,
    same: int,
    cohort: DeviceCohort,
    logits: Array,
    inputs: EvaluationInputs,
    count: Array,
) -> tuple[Array, Array]:
    """Logits [R, V, C] with those of the inputs filled in, and how many. chunk: replicas at a time, each with at most `steps` bags, of
    which so many neighbours as `same` says have the same; None: one after another.
    """
    if chunk is not None:

        def group(logits: Array, state: TrainState, bags: Array, at: Array, busy: Array) -> Array:
            bag = read_bag(cohort, jnp.maximum(_common(bags, at, busy), 0), length)

            def replica(logits: Array, state: TrainState, at: Array, busy: Array) -> Array:
                return logits.at[at].set(jnp.where(busy, strategy.predict(state, bag).logits, logits[at]))

            return _each(replica, logits, state, at, busy)

        def of_chunk(logits: Array, part: EvaluationInputs) -> Array:
            def step(t: Array | int, logits: Array) -> Array:
                return _by_group(same, group, logits, part.state, part.bags, *_place(part.ends, t, part.bags.shape[1]))

            return _repeat(steps, step, logits)

        return _in_chunks(chunk, of_chunk, logits, inputs), _done(inputs)

    def replica(r: Array, logits: Array) -> Array:
        mine = _take(inputs, r)

        def step(at: Array, out: Array) -> Array:
            bag = read_bag(cohort, jnp.maximum(mine.bags[at], 0), length)
            return out.at[at].set(strategy.predict(mine.state, bag).logits)

        lo, hi = mine.ends
        return _put(logits, jax.lax.fori_loop(lo, hi, step, _take(logits, r)), r)

    return _over_replicas(count, replica, logits), _done(inputs)


def initial(
    strategy: Strategy,
    length: int,
    cohort: DeviceCohort,
    ids: ReplicaIds,
    fitted: PyTree,
    previous: TrainState | None,
    count: Array,
) -> TrainState:
    """The initial states; fitted: (hyper, constants) with the leading axis [R]. count [devices]: replicas on each."""
    bag = read_bag(cohort, jnp.int32(0), length)

    def fresh(r: Array) -> TrainState:
        hyper, constants = _take(fitted, r)
        key = jax.random.fold_in(ids.key[r], INIT_STREAM)
        before = None if previous is None else _take(previous, r)
        return strategy.init(key, bag, hyper, constants, before)

    shapes = jax.eval_shape(fresh, jnp.int32(0))
    # Replicas that only fill the mesh keep these zeros and never step.
    empty = jax.tree.map(lambda x: jnp.zeros((ids.target.shape[0], *x.shape), x.dtype), shapes)
    return _over_replicas(count, lambda r, states: _put(states, fresh(r), r), empty)


def keep_improved(best: PyTree, now: PyTree, improved: Array) -> PyTree:
    """`now` where a replica improved, else `best`."""

    def choose(old: Array, new: Array) -> Array:
        return jnp.where(improved.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

    return jax.tree.map(choose, best, now)
