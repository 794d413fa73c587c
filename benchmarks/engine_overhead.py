"""What the engine costs beyond the steps themselves: its time per epoch against a bare `lax.map` of the same step.

    python -m benchmarks.engine_overhead --machine laptop

"small": 50 replicas (10 folds x 5 seeds) of gated ABMIL 256/128 on 92 invented bags of MUSK1's sizes (2 to 40 instances, 166 features),
in two ladders: one length for all bags (one bare program an epoch), and the fitted one. "large": 2 replicas (2 folds) of gated ABMIL
512/384 on 16 bags of 4,096 x 1,024. One host device per core for all ways. "engine" is the time from the end of one epoch of `fit` to the
end of the next: order, schedules, dispatches, steps, the fetch, the decision. "bare" is a jitted program for each bucket length:
`lax.map` over the replicas of a `fori_loop` over the bags of that length, all state and bags on the device beforehand; or, stricter, a
loop over the replicas that updates their states in place. Nothing compiles while the clock runs. Bars: a ratio of at most 1.2 over
`lax.map`, 1.05 for large bags.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.common import MACHINE, median_ratio, write_result
from mil_jax import aggregators
from mil_jax.data.buckets import fit_ladder
from mil_jax.data.loading.resident import ResidentBags
from mil_jax.engine.early_stopping import Selection
from mil_jax.engine.fit import fit
from mil_jax.engine.mesh import replica_mesh
from mil_jax.engine.plan import Plan, Replica
from mil_jax.engine.programs import AXIS
from mil_jax.engine.runtime import use_one_device_per_core
from mil_jax.engine.types import EngineData, EngineSettings, Phase
from mil_jax.strategies import optimizers
from mil_jax.strategies.base import Batch, TrainState
from mil_jax.strategies.lr_schedule import Schedule
from mil_jax.strategies.supervised import Supervised
from mil_jax.tasks.classification import Classification
from mil_jax.types import PyTree

_ROUNDS = flags.DEFINE_integer("rounds", 9, "Epochs of the engine; after each, one of each bare way.")

HYPER = {"optimizer.lr": 5e-4, "optimizer.weight_decay": 5e-3}
MUSK1 = np.repeat([2, 3, 4, 5, 6, 8, 9, 16, 32, 40], [32, 4, 31, 6, 2, 11, 2, 1, 1, 2])  # sizes of its bags


@dataclass(frozen=True)
class Case:
    """What is trained. sizes: of the bags. widths: of gated ABMIL."""

    name: str
    sizes: np.ndarray
    dim: int
    widths: dict[str, int]
    folds: int
    seeds: int
    lengths: tuple[int, ...]
    bar: float


_SMALL = {
    "sizes": MUSK1,
    "dim": 166,
    "widths": {"feature_dim": 256, "attention_dim": 128},
    "folds": 10,
    "seeds": 5,
    "bar": 1.2,
}
CASES = (
    Case("small bags, one length", **_SMALL, lengths=fit_ladder(MUSK1, max_padding=0.0, max_buckets=1).lengths),
    Case("small bags, fitted ladder", **_SMALL, lengths=fit_ladder(MUSK1).lengths),
    Case("large bags", np.full(16, 4096), 1024, {"feature_dim": 512, "attention_dim": 384}, 2, 1, (4096,), 1.05),
)

Over = Callable[[Callable[[PyTree, jax.Array], PyTree], PyTree, jax.Array], PyTree]


def _map(replica: Callable[[PyTree, jax.Array], PyTree], states: PyTree, order: jax.Array) -> PyTree:
    return jax.lax.map(lambda both: replica(*both), (states, order))


def _in_place(replica: Callable[[PyTree, jax.Array], PyTree], states: PyTree, order: jax.Array) -> PyTree:
    def body(r: jax.Array, states: PyTree) -> PyTree:
        moved = replica(jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, r, keepdims=False), states), order[r])
        return jax.tree.map(lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, r, 0), states, moved)

    return jax.lax.fori_loop(0, len(order), body, states)


BARE_WAYS: dict[str, Over] = {"lax.map": _map, "fori_loop in place": _in_place}


def main(_: list[str]) -> None:
    use_one_device_per_core()
    figures: dict[str, Any] = {}
    table = []
    for case in CASES:
        clock = _Clock(case, _data(case), _strategy(case), _ROUNDS.value)
        clock.run()
        figures[case.name] = {
            "lengths": case.lengths,
            "dispatches_per_epoch": clock.dispatches,
            "seconds_per_epoch": clock.seconds,
        }
        for way in BARE_WAYS:
            ratio = median_ratio(clock.seconds["engine"], clock.seconds[way])
            figures[case.name][f"ratio to {way}"] = ratio
            what = f"engine over a bare {way}, {case.folds * case.seeds} runs, {case.name} ({len(case.lengths)})"
            table.append((what, f"at most {case.bar}" if way == "lax.map" else "", f"{ratio:.2f}"))
    write_result("engine_overhead", MACHINE.value, figures, table)


def _data(case: Case) -> EngineData:
    rng = np.random.default_rng(0)
    sizes = rng.permutation(case.sizes).astype(np.int32)
    rows = int(sizes.sum()) + case.lengths[-1]
    bags = ResidentBags(
        features=rng.standard_normal((rows, case.dim), np.float32),
        coords=np.zeros((rows, 2), np.int32),
        slide_index=np.zeros(rows, np.int32),
        offsets=(np.cumsum(sizes) - sizes).astype(np.int32),
        sizes=sizes,
    )
    test = np.arange(len(sizes)) % case.folds == np.arange(case.folds)[:, None]
    return EngineData(
        bags=bags,
        targets=rng.integers(2, size=(1, len(sizes))).astype(np.int32),
        training=~test,
        selection=np.zeros_like(test),
        test=test,
        lengths=case.lengths,
        bucket=np.searchsorted(case.lengths, sizes),
    )


def _strategy(case: Case) -> Supervised:
    task = Classification(("0", "1"), "bernoulli")
    settings = {**case.widths, "gated": True, "dropout": 0.0, "attention_dropout": 0.0}
    module = aggregators.create("abmil", task.num_outputs, **settings)
    return Supervised(module, task, optimizers.make(optimizers.OptimizerSettings()), Schedule())


class _Clock:
    """Listens to `fit`, and after each of its epochs runs and times a bare one of each kind."""

    def __init__(self, case: Case, data: EngineData, strategy: Supervised, rounds: int) -> None:
        self.data, self.strategy, self.rounds = data, strategy, rounds
        self.plan = Plan(tuple(Replica(fold, seed) for seed in range(case.seeds) for fold in range(case.folds)), HYPER)
        self.seconds: dict[str, list[float]] = {"engine": [], **{way: [] for way in BARE_WAYS}}
        self.dispatches = 0
        self.bare = {way: _BareEpoch(data, strategy, self.plan, over) for way, over in BARE_WAYS.items()}

    def run(self) -> None:
        phase = Phase(self.strategy, self.rounds + 1, Selection("last"))
        fit([phase], self.data, self.strategy.task, self.plan, EngineSettings(), self)

    def phase(self, name: str, epoch: int, epochs: int) -> None:
        self.begun, self.calls = time.perf_counter(), 0

    def steps(self, count: int) -> None:
        self.calls += 1

    def epoch(self, rows: list[dict[str, Any]]) -> None:
        self.seconds["engine"].append(time.perf_counter() - self.begun)
        for way, bare in self.bare.items():
            start = time.perf_counter()
            bare.run()
            self.seconds[way].append(time.perf_counter() - start)
        if rows[0]["epoch"] == 0:  # the engine compiled its programs in this one
            for seconds in self.seconds.values():
                seconds.clear()
        self.dispatches = self.calls
        self.begun, self.calls = time.perf_counter(), 0

    def stop_requested(self) -> bool:
        return False


class _BareEpoch:
    """The steps of one epoch of all replicas, with nothing around them: a program per bucket length."""

    def __init__(self, data: EngineData, strategy: Supervised, plan: Plan, over: Over) -> None:
        mesh = replica_mesh()
        self.spread = NamedSharding(mesh, P(AXIS))
        # The same number of replicas on each device; a filled-up one repeats the last.
        per_device = -(-len(plan.replicas) // mesh.size)
        rows = np.minimum(np.arange(per_device * mesh.size), len(plan.replicas) - 1)
        folds = np.array([replica.fold for replica in plan.replicas])[rows]
        self.cohort = jax.device_put((data.bags, data.targets[0]), NamedSharding(mesh, P()))
        hyper = {name: jnp.float32(value) for name, value in HYPER.items()}
        init = jax.jit(
            lambda keys, bag: jax.lax.map(lambda key: strategy.init(key, bag, hyper, {}, None), keys),
            out_shardings=self.spread,
        )
        bag = data.bags.bag(jnp.int32(0), data.lengths[0])
        self.state: TrainState = init(plan.keys()[rows], bag)
        self.programs, self.orders = [], []
        for bucket, length in enumerate(data.lengths):
            order = self._order(data.training & (data.bucket == bucket), folds)
            one = partial(_train, over, strategy, length)
            mapped = jax.shard_map(one, mesh=mesh, in_specs=(P(), P(AXIS), P(AXIS)), out_specs=P(AXIS), check_vma=False)
            program = jax.jit(mapped, donate_argnums=1).lower(self.cohort, self.state, order).compile()
            self.programs.append(program)
            self.orders.append(order)

    def _order(self, part: np.ndarray, folds: np.ndarray) -> jax.Array:
        """[R, T] bag numbers; -1 fills rows up, which the loop skips by its length."""
        order = np.full((len(folds), int(part.sum(axis=1).max())), -1, np.int32)
        for row, fold in enumerate(folds):
            numbers = np.flatnonzero(part[fold])
            order[row, : len(numbers)] = np.random.default_rng(row).permutation(numbers)
        return jax.device_put(order, self.spread)

    def run(self) -> None:
        for program, order in zip(self.programs, self.orders):
            self.state = program(self.cohort, self.state, order)
        jax.block_until_ready(self.state)


def _train(
    over: Over, strategy: Supervised, length: int, cohort: Any, states: TrainState, order: jax.Array
) -> TrainState:
    bags, targets = cohort

    def step(at: jax.Array, carry: tuple[TrainState, jax.Array]) -> tuple[TrainState, jax.Array]:
        state, numbers = carry
        bag = jax.tree.map(lambda x: x[None], bags.bag(numbers[at], length))
        batch = Batch(bags=bag, targets=targets[numbers[at]][None], weights=jnp.ones(1))
        extras = {"lr": state.hyper["optimizer.lr"]}
        return strategy.step(state, batch, extras, jax.random.key(0))[0], numbers

    def replica(state: TrainState, numbers: jax.Array) -> TrainState:
        return jax.lax.fori_loop(0, jnp.sum(numbers >= 0), step, (state, numbers))[0]

    return over(replica, states, order)


if __name__ == "__main__":
    app.run(main)
