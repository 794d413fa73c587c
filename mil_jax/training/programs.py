"""The compiled programs of the engine: two per bucket (train, evaluate) and one for initial states, each over all replicas.

On a CPU replicas run one after another on each device (`map`), each making all its steps of a dispatch while its state is in the
cache; on a GPU they run side by side (`vmap`), and a replica without a bag keeps its state by a select. The replica axis is
spread over the mesh; replicas never communicate.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mil_jax.data.residency import ResidentBags
from mil_jax.strategies.base import Batch, Strategy, TrainState

PyTree = Any
Array = jax.Array
AXIS = "replica"
INIT_STREAM = (
    2**32 - 1
)  # folded into a replica's key for its initial state; updates fold in their number, which stays below


class Cohort(flax.struct.PyTreeNode):
    """What all replicas read: the bags and, for each target column, one target a bag: [num_targets, num_bags, ...]."""

    bags: ResidentBags
    targets: Any


class Who(flax.struct.PyTreeNode):
    """What tells replicas apart: their key [R] and the number of their target column [R]."""

    key: Array
    target: Array


class Epoch(flax.struct.PyTreeNode):
    """One epoch's order: bags [R, T, B] (-1 for none) and the strategy's schedule, each [R, T]."""

    bags: Any
    extras: dict[str, Any]


class Moving(flax.struct.PyTreeNode):
    """What a step changes: the state, and the sums of the step metrics over the epoch. Every leaf has the leading axis [R]."""

    state: TrainState
    metrics: dict[str, Array]


def replica_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis spread over the devices."""
    return NamedSharding(mesh, P(AXIS))


def shared_sharding(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, P())


def read_batch(cohort: Cohort, numbers: Array, target: Array, length: int) -> Batch:
    """The bags `numbers` [B], -1 for none, padded to `length`; a place without a bag holds bag 0 with weight 0."""
    present = numbers >= 0
    safe = jnp.maximum(numbers, 0)
    if numbers.shape[0] == 1:
        bags = jax.tree.map(lambda x: x[None], cohort.bags.bag(safe[0], length))
    else:
        bags = jax.vmap(lambda number: cohort.bags.bag(number, length))(safe)
    return Batch(bags=bags, targets=cohort.targets[target, safe], weights=present.astype(jnp.float32))


def _take(tree: PyTree, r: Array) -> PyTree:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, r, keepdims=False), tree)


def _put(tree: PyTree, one: PyTree, r: Array) -> PyTree:
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y.astype(x.dtype), r, 0), tree, one)


def _over_replicas(count: Array, body: Callable[[Array, PyTree], PyTree], carry: PyTree) -> PyTree:
    """One replica after another. The number of replicas is an argument of the program: a loop of known length 1 would be
    compiled differently, and a replica alone would then not be bit-identical to the same replica in company."""
    return jax.lax.fori_loop(0, count[0], body, carry)


def _one_step(
    strategy: Strategy, length: int, cohort: Cohort, who: Who, moving: Moving, epoch: Epoch, at: Array
) -> Moving:
    batch = read_batch(cohort, epoch.bags[at], who.target, length)
    extras = {name: values[at] for name, values in epoch.extras.items()}
    key = jax.random.fold_in(who.key, moving.state.step)
    state, metrics = strategy.step(moving.state, batch, extras, key)
    return Moving(state=state, metrics=jax.tree.map(jnp.add, moving.metrics, metrics))


def _train_map(
    strategy: Strategy,
    length: int,
    cohort: Cohort,
    who: Who,
    moving: Moving,
    epoch: Epoch,
    lo: Array,
    hi: Array,
    count: Array,
) -> tuple[Moving, Array]:
    def replica(r: Array, moving: Moving) -> Moving:
        mine, my_who, order = _take(moving, r), _take(who, r), _take(epoch, r)
        step = partial(_one_step, strategy, length, cohort, my_who)
        return _put(moving, jax.lax.fori_loop(lo[r], hi[r], lambda at, one: step(one, order, at), mine), r)

    return _over_replicas(count, replica, moving), jnp.sum(hi - lo)[None]


def _train_vmap(
    strategy: Strategy,
    length: int,
    cohort: Cohort,
    who: Who,
    moving: Moving,
    epoch: Epoch,
    lo: Array,
    hi: Array,
    count: Array,
) -> tuple[Moving, Array]:
    del count  # replicas that only fill the mesh have no steps: lo = hi

    def replica(mine: Moving, my_who: Who, order: Epoch, at: Array, busy: Array) -> Moving:
        moved = _one_step(strategy, length, cohort, my_who, mine, order, at)
        return jax.tree.map(lambda new, old: jnp.where(busy, new, old), moved, mine)

    def step(t: Array, moving: Moving) -> Moving:
        return jax.vmap(replica)(moving, who, epoch, jnp.clip(lo + t, 0, epoch.bags.shape[1] - 1), lo + t < hi)

    return jax.lax.fori_loop(0, jnp.max(hi - lo), step, moving), jnp.sum(hi - lo)[None]


def _evaluate(
    strategy: Strategy,
    length: int,
    vectorised: bool,
    cohort: Cohort,
    state: TrainState,
    bags: Array,
    logits: Array,
    lo: Array,
    hi: Array,
    count: Array,
) -> tuple[Array, Array]:
    done = jnp.sum(hi - lo)[None]

    def one(state: TrainState, numbers: Array, logits: Array, at: Array) -> Array:
        bag = cohort.bags.bag(jnp.maximum(numbers[at], 0), length)
        return logits.at[at].set(strategy.predict(state, bag).logits)

    if vectorised:

        def step(t: Array, logits: Array) -> Array:
            moved = jax.vmap(one)(state, bags, logits, jnp.clip(lo + t, 0, bags.shape[1] - 1))
            return jnp.where((lo + t < hi)[:, None, None], moved, logits)

        return jax.lax.fori_loop(0, jnp.max(hi - lo), step, logits), done

    def replica(r: Array, logits: Array) -> Array:
        mine, numbers = _take(state, r), bags[r]
        return _put(
            logits, jax.lax.fori_loop(lo[r], hi[r], lambda at, out: one(mine, numbers, out, at), _take(logits, r)), r
        )

    return _over_replicas(count, replica, logits), done


def _init(
    strategy: Strategy, length: int, cohort: Cohort, who: Who, fitted: PyTree, previous: TrainState | None, count: Array
) -> TrainState:
    bag = cohort.bags.bag(jnp.int32(0), length)

    def fresh(r: Array) -> TrainState:
        hyper, constants = _take(fitted, r)
        key = jax.random.fold_in(who.key[r], INIT_STREAM)
        before = None if previous is None else _take(previous, r)
        return strategy.init(key, bag, hyper, constants, before)

    shapes = jax.eval_shape(fresh, jnp.int32(0))
    # Replicas that only fill the mesh keep these zeros and never step.
    empty = jax.tree.map(lambda x: jnp.zeros((who.target.shape[0], *x.shape), x.dtype), shapes)
    return _over_replicas(count, lambda r, states: _put(states, fresh(r), r), empty)


def keep_improved(best: PyTree, now: PyTree, improved: jax.Array) -> PyTree:
    """`now` where a replica improved, else `best`."""

    def choose(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(improved.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

    return jax.tree.map(choose, best, now)


class Programs:
    """Compiles each program once, ahead of time, and counts them: a shape that was not planned raises instead of recompiling."""

    def __init__(self, strategy: Strategy, mesh: Mesh, lengths: tuple[int, ...], vectorised: bool) -> None:
        self.strategy, self.mesh, self.lengths, self.vectorised = strategy, mesh, lengths, vectorised
        self._compiled: dict[tuple[str, int], Future[Any]] = {}
        self._compiler = ThreadPoolExecutor(len(os.sched_getaffinity(0)), "mil_jax-compile")

    @property
    def compilations(self) -> int:
        """How many programs were compiled so far."""
        return len(self._compiled)

    def compile_ahead(
        self,
        train: Sequence[int],
        evaluate: Sequence[int],
        cohorts: Sequence[Cohort],
        who: Who,
        moving: Moving,
        epoch: Epoch,
        logits: tuple[int, ...],
        count: Array,
    ) -> None:
        """Starts to compile the programs of these buckets, several at once, beside whatever the caller does next.

        cohorts: of each bucket, arrays or shapes. logits: their shape (V, C) for each replica. The rest is as in `train`.
        """
        ends = who.target  # of the shape of lo and hi

        def spread(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((ends.shape[0], *shape), dtype, sharding=ends.sharding)

        scores = spread(logits[:1], jnp.int32), spread(logits, jnp.float32)
        for bucket in train:
            self._start("train", bucket, cohorts[bucket], who, moving, epoch, ends, ends, count)
        for bucket in evaluate:
            self._start("evaluate", bucket, cohorts[bucket], moving.state, *scores, ends, ends, count)

    def close(self) -> None:
        """Compilations that have not begun are given up."""
        self._compiler.shutdown(wait=False, cancel_futures=True)

    def _start(self, name: str, bucket: int, *arguments: PyTree) -> Future[Any]:
        """The program, being compiled. Traced here: settings of JAX may be those of the calling thread."""
        if (name, bucket) not in self._compiled:
            function, donate = self._function(name, bucket)
            specs = (P(), *(P(AXIS) for _ in arguments[1:]))
            mapped = jax.shard_map(function, mesh=self.mesh, in_specs=specs, out_specs=P(AXIS), check_vma=False)
            lowered = jax.jit(mapped, donate_argnums=donate).lower(*arguments)
            self._compiled[name, bucket] = self._compiler.submit(lowered.compile)
        return self._compiled[name, bucket]

    def _function(self, name: str, bucket: int) -> tuple[Callable[..., Any], tuple[int, ...]]:
        """What a program computes, and the arguments that are donated."""
        length = self.lengths[bucket]
        if name == "train":
            return partial(_train_vmap if self.vectorised else _train_map, self.strategy, length), (2,)
        if name == "evaluate":
            return partial(_evaluate, self.strategy, length, self.vectorised), (3,)
        return partial(_init, self.strategy, length), ()

    def _call(self, name: str, bucket: int, *arguments: PyTree) -> Any:
        return self._start(name, bucket, *arguments).result()(*arguments)

    def init(self, cohort: Cohort, who: Who, fitted: PyTree, previous: TrainState | None, count: Array) -> TrainState:
        """The initial states; `fitted`: (hyper, constants) with the leading axis [R]. `count` [devices]: replicas on each."""
        return self._call("init", 0, cohort, who, fitted, previous, count)

    def train(
        self, bucket: int, cohort: Cohort, who: Who, moving: Moving, epoch: Epoch, lo: Array, hi: Array, count: Array
    ) -> tuple[Moving, Array]:
        """The steps lo..hi of each replica, all in bucket number `bucket`. `moving` is donated. Also says how many steps were made."""
        return self._call("train", bucket, cohort, who, moving, epoch, lo, hi, count)

    def evaluate(
        self,
        bucket: int,
        cohort: Cohort,
        state: TrainState,
        bags: Array,
        logits: Array,
        lo: Array,
        hi: Array,
        count: Array,
    ) -> tuple[Array, Array]:
        """Fills logits [R, V, C] for bags[r, lo[r]:hi[r]], all in bucket number `bucket`. `logits` is donated. Also says how many."""
        return self._call("evaluate", bucket, cohort, state, bags, logits, lo, hi, count)
