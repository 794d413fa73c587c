"""What the engine's programs compute: steps of training, predictions and initial states, each over all replicas.

On a CPU replicas run sequentially on each device (`map`), each making all its steps of a dispatch while its state is in the cache;
on a GPU they run side by side (`vmap`), as many as the memory takes in that bucket, and a replica without a bag keeps its state by a
select. The replica axis is sharded over the device mesh; replicas never communicate. Where devices share a bag, its instances are
sharded over them, and XLA's partitioner does the reductions.

A program of training or evaluation is given the cohort, what it changes and returns (donated), what it reads of each replica
(`StepInputs`, `EvaluationInputs`), and how many replicas each device really has.
"""

from __future__ import annotations

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
    """What the steps of a dispatch read: replica r makes its steps lo[r]..hi[r] of the epoch, all in one bucket. Every leaf has the
    leading axis [R].
    """

    ids: ReplicaIds
    epoch: EpochInputs
    lo: AnyArray
    hi: AnyArray


class EvaluationInputs(flax.struct.PyTreeNode):
    """What an evaluation reads: replica r predicts bags[r, lo[r]:hi[r]] of bags [R, V], all in one bucket. Every leaf has the leading
    axis [R].
    """

    state: TrainState
    bags: AnyArray
    lo: AnyArray
    hi: AnyArray


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
    bags = _read_bags(cohort, numbers, length, axis)
    return _batch(cohort, bags, numbers, numbers >= 0, target, axis)


def _read_bags(cohort: DeviceCohort, numbers: Array, length: int, axis: str | None) -> Bag:
    """As in `read_batch`, with the leading axis [B], or this device's part of it."""
    mine = jnp.maximum(numbers, 0)
    if axis:
        share = len(numbers) // jax.lax.axis_size(axis)
        mine = jax.lax.dynamic_slice_in_dim(mine, jax.lax.axis_index(axis) * share, share)
    if mine.shape[0] == 1:
        return jax.tree.map(lambda x: x[None], read_bag(cohort, mine[0], length))
    return jax.vmap(lambda number: read_bag(cohort, number, length))(mine)


def _batch(cohort: DeviceCohort, bags: Bag, numbers: Array, present: Array, target: Array, axis: str | None) -> Batch:
    """The bags `numbers` [B] that were read, of which those count that are `present` [B]."""
    targets = cohort.targets[target, jnp.maximum(numbers, 0)]
    return Batch(bags=bags, targets=targets, weights=present.astype(jnp.float32), axis=axis)


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

        return _put(carry, jax.lax.fori_loop(mine.lo, mine.hi, step, _take(carry, r)), r)

    return _over_replicas(count, replica, carry), _done(inputs)


def _done(inputs: StepInputs | EvaluationInputs) -> Array:
    return jnp.sum(inputs.hi - inputs.lo)[None]


def _in_chunks(chunk: int, body: Callable[[PyTree, Inputs], PyTree], carry: PyTree, inputs: Inputs) -> PyTree:
    """`body(carry, inputs) -> carry` on `chunk` replicas after the other."""
    rows = inputs.lo.shape[0]
    if chunk >= rows:
        return body(carry, inputs)

    def one(number: Array, carry: PyTree) -> PyTree:
        # The last chunk begins earlier, so that it is whole; what another chunk has done is not done again.
        start = jnp.minimum(number * chunk, rows - chunk)
        mine, part = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, chunk), (carry, inputs))
        part = part.replace(hi=jnp.where(start + jnp.arange(chunk) >= number * chunk, part.hi, part.lo))
        moved = body(mine, part)
        return jax.tree.map(lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, start, 0), carry, moved)

    return jax.lax.fori_loop(0, -(-rows // chunk), one, carry)


def train_vmapped(
    strategy: Strategy,
    length: int,
    axis: str | None,
    chunk: int,
    cohort: DeviceCohort,
    carry: StepCarry,
    inputs: StepInputs,
    count: Array,
) -> tuple[StepCarry, Array]:
    """As `train_sequential`, with `chunk` replicas at a time."""
    del count  # replicas that only fill the mesh have no steps: lo = hi

    def replica(mine: StepCarry, ids: ReplicaIds, epoch: EpochInputs, at: Array, busy: Array) -> StepCarry:
        batch = read_batch(cohort, epoch.bags[at], ids.target, length, axis)
        moved = _one_step(strategy, ids, mine, epoch, at, batch)
        return jax.tree.map(lambda new, old: jnp.where(busy, new, old), moved, mine)

    def steps(carry: StepCarry, part: StepInputs) -> StepCarry:
        def step(t: Array, carry: StepCarry) -> StepCarry:
            at = jnp.clip(part.lo + t, 0, part.epoch.bags.shape[1] - 1)
            return jax.vmap(replica)(carry, part.ids, part.epoch, at, part.lo + t < part.hi)

        return jax.lax.fori_loop(0, jnp.max(part.hi - part.lo), step, carry)

    return _in_chunks(chunk, steps, carry, inputs), _done(inputs)


def train_vmapped_shared_order(
    strategy: Strategy,
    length: int,
    axis: str | None,
    chunk: int,
    cohort: DeviceCohort,
    carry: StepCarry,
    inputs: StepInputs,
    count: Array,
) -> tuple[StepCarry, Array]:
    """As `train_vmapped`, for an order that all replicas share, laid out by slot: a slot's bags are read once, without a replica
    axis, so that the first layer of all replicas is one product with their kernels side by side.
    """
    del count

    def steps(carry: StepCarry, part: StepInputs) -> StepCarry:
        order, lo, hi = part.epoch.bags, part.lo, part.hi

        def step(at: Array, carry: StepCarry) -> StepCarry:
            numbers = jnp.max(order[:, at], axis=0)  # [B]: replicas differ in what they hold out only, which is -1
            bags = _read_bags(cohort, numbers, length, axis)

            def replica(mine: StepCarry, ids: ReplicaIds, epoch: EpochInputs, busy: Array) -> StepCarry:
                present = epoch.bags[at] >= 0
                batch = _batch(cohort, bags, numbers, present, ids.target, axis)
                moved = _one_step(strategy, ids, mine, epoch, at, batch)
                return jax.tree.map(lambda new, old: jnp.where(busy & present.any(), new, old), moved, mine)

            return jax.vmap(replica)(carry, part.ids, part.epoch, (lo <= at) & (at < hi))

        begin = jnp.min(jnp.where(lo < hi, lo, order.shape[1]))
        return jax.lax.fori_loop(begin, jnp.max(jnp.where(lo < hi, hi, 0)), step, carry)

    return _in_chunks(chunk, steps, carry, inputs), _done(inputs)


def evaluate(
    strategy: Strategy | Analysis,
    length: int,
    chunk: int | None,
    cohort: DeviceCohort,
    logits: Array,
    inputs: EvaluationInputs,
    count: Array,
) -> tuple[Array, Array]:
    """Logits [R, V, C] with those of the inputs filled in, and how many. chunk: replicas at a time; None: one after another."""

    def one(state: TrainState, numbers: Array, logits: Array, at: Array) -> Array:
        bag = read_bag(cohort, jnp.maximum(numbers[at], 0), length)
        return logits.at[at].set(strategy.predict(state, bag).logits)

    if chunk is not None:

        def steps(logits: Array, part: EvaluationInputs) -> Array:
            def step(t: Array, logits: Array) -> Array:
                at = part.lo + t
                moved = jax.vmap(one)(part.state, part.bags, logits, jnp.clip(at, 0, part.bags.shape[1] - 1))
                return jnp.where((at < part.hi).reshape(-1, *(1,) * (logits.ndim - 1)), moved, logits)

            return jax.lax.fori_loop(0, jnp.max(part.hi - part.lo), step, logits)

        return _in_chunks(chunk, steps, logits, inputs), _done(inputs)

    def replica(r: Array, logits: Array) -> Array:
        mine = _take(inputs, r)

        def step(at: Array, out: Array) -> Array:
            return one(mine.state, mine.bags, out, at)

        return _put(logits, jax.lax.fori_loop(mine.lo, mine.hi, step, _take(logits, r)), r)

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
