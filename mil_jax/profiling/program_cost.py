"""What the compiled programs of an experiment cost: operations, memory, seconds per step and bucket.

Measured by the engine itself, on invented bags: one array on the device, of which every bag is a window that fills its bucket. Times
do not depend on the values of features or on the size of the cohort, so none has to be read. A loop with a known length counts as
often as it runs; XLA's own count, which takes every loop for one round, is used for memory traffic only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from mil_jax.data.loading.resident import ResidentBags
from mil_jax.engine.bag_order import EpochOrder
from mil_jax.engine.early_stopping import Selection
from mil_jax.engine.engine import Engine
from mil_jax.engine.mesh import wait
from mil_jax.engine.plan import Plan
from mil_jax.engine.types import EngineData, EngineSettings, Phase
from mil_jax.strategies.base import Strategy
from mil_jax.tasks.base import Task

MOST_STEPS = 64  # of a measured dispatch; as many as a dispatch of training has at most
MOST_BAGS, WINDOW_BYTES = (
    16,
    64 << 20,
)  # so many bags of a bucket, within so many bytes: small bags are not all in the cache


@dataclass(frozen=True)
class ProgramCost:
    """One compiled program. All of it per device.

    operations: of one step, of the matrix products and convolutions (a multiplication and an addition are two), for all runs that
    the program takes a step with at once: `side_by_side`. temporary_bytes: memory beside arguments and results. traffic_bytes: what
    the compiler counts as read and written in a step. compile_seconds: with tracing.
    """

    operations: float
    side_by_side: int
    temporary_bytes: int
    argument_bytes: int
    traffic_bytes: float
    compile_seconds: float


@dataclass(frozen=True)
class Measured:
    """seconds: of one step of every run (`runs` of them). idle_seconds: of a dispatch without steps, waited for; 0 where runs go side by
    side, as a program then makes all its steps.
    """

    seconds: float
    idle_seconds: float
    runs: int


class Bench:
    """The programs of a plan, to be analysed and timed bucket by bucket.

    lengths: the bucket ladder. feature_shape, dtype: of an instance. targets: [num_targets, M, ...], whose first rows are used.
    order: an epoch of the experiment; the programs have its shapes. at_once: by bucket, steps that a program makes where runs go side
    by side. first_row: of each target's folds in the split table.
    num_neighbors: of an instance, for methods on graphs. num_parts: tiles of a region, where instances are such.
    covariates: [M, V] of the cohort, whose first rows are used, or None.
    """

    def __init__(
        self,
        strategy: Strategy,
        task: Task,
        plan: Plan,
        lengths: tuple[int, ...],
        settings: EngineSettings,
        feature_shape: tuple[int, ...],
        dtype: np.dtype,
        targets: np.ndarray,
        order: EpochOrder,
        at_once: Sequence[int],
        first_row: tuple[int, ...] = (0,),
        num_neighbors: int = 0,
        num_parts: int = 0,
        covariates: np.ndarray | None = None,
    ) -> None:
        self.plan, self.lengths, self.settings = plan, lengths, settings
        self.row_bytes = math.prod(feature_shape) * dtype.itemsize
        self.bags_of = [max(1, min(MOST_BAGS, WINDOW_BYTES // (length * self.row_bytes))) for length in lengths]
        bucket = np.repeat(np.arange(len(lengths)), self.bags_of)
        sizes = np.asarray(lengths, np.int32)[bucket]
        rows = 1 + max(first_row[replica.target] + replica.fold for replica in plan.replicas)
        everything = np.ones((rows, len(bucket)), bool)
        data = EngineData(
            bags=_windows(sizes, lengths[-1], feature_shape, dtype, num_neighbors, num_parts),
            targets=targets[:, np.arange(len(bucket)) % targets.shape[1]],
            training=everything,
            selection=everything,
            test=everything,
            lengths=lengths,
            bucket=bucket,
            first_row=first_row,
            covariates=None if covariates is None else covariates[np.arange(len(bucket)) % len(covariates)],
        )
        self.bucket, self.at_once = bucket, at_once
        self.engine = Engine(data, task, plan, settings)
        self.engine.steps["train"] = [*at_once]
        self.phase = Phase(strategy, 1, Selection("last"))
        self.carry = self.engine.begin(strategy, None)
        self.order = self._within_bench(order)
        self.most_steps = min(MOST_STEPS, order.bags.shape[1])

    @property
    def working_set(self) -> int:
        """Bytes that the steps of all runs go through: the bags and the states."""
        bags = sum(count * length for count, length in zip(self.bags_of, self.lengths)) * self.row_bytes
        return min(bags, WINDOW_BYTES) + self.state_bytes * len(self.plan.replicas)

    @property
    def state_bytes(self) -> int:
        """Of one run while it trains: parameters, optimiser, constants, and the parameters of its best epoch."""
        state = self.carry.state
        return sum(x.nbytes for x in jax.tree.leaves((state, state.params))) // state.step.shape[0]

    def compile(self, bucket: int) -> tuple[ProgramCost, ProgramCost]:
        """The costs of a bucket's programs, (training step, evaluation)."""
        self._dispatch(bucket, 0, self._epoch(bucket))
        self._evaluate(bucket)
        return self._cost("train", bucket), self._cost("evaluate", bucket)

    def time_steps(self, bucket: int, seconds: float) -> Measured:
        """Times training steps of a bucket for about `seconds`: at the least a dispatch of the fewest steps, after one to warm up."""
        epoch, least = self._epoch(bucket), self.at_once[bucket]
        self._dispatch(bucket, least, epoch)
        one = self._timed(lambda: self._dispatch(bucket, least, epoch)) / least
        idle = 0.0
        if not self.engine.vectorised:
            idle = _median(self._timed(lambda: self._dispatch(bucket, 0, epoch)) for _ in range(5))
        steps = math.ceil(np.clip(seconds / 3 / one, 1, self.most_steps) / least) * least
        rounds = int(np.clip(seconds / (one * steps), 1, 3))
        times = [self._timed(lambda: self._dispatch(bucket, steps, epoch)) for _ in range(rounds)]
        return Measured(max(_median(times) - idle, 0.0) / steps, idle, len(self.plan.replicas))

    def time_order(self, seconds: float) -> tuple[float, tuple[tuple[int, np.ndarray, np.ndarray], ...]]:
        """(seconds, dispatches) of the beginning of the epoch, sent one after another as in training, for about `seconds`."""
        epoch = self.engine.lay_out(self.phase, self.order, 0)
        runs = self.order.dispatches
        wait(epoch)
        begun, sent = time.perf_counter(), 0
        for window in self.engine.loader.windows(self.order.bags, runs):
            self.carry = self.engine.dispatch(self.carry, epoch, window)
            sent += window.ends_dispatch
            if time.perf_counter() - begun > seconds:
                break
        wait(self.carry)
        return time.perf_counter() - begun, runs[:sent]

    def time_evaluation(self, bucket: int, seconds: float) -> tuple[float, float]:
        """(seconds of evaluating one bag of the bucket in every run, seconds of what surrounds an evaluation)."""
        around = _median(self._timed(lambda: self._evaluate(-1)) for _ in range(3))
        once = self._timed(lambda: self._evaluate(bucket))
        rounds = int(np.clip(seconds / 3 / once, 1, 10))
        whole = _median(self._timed(lambda: self._evaluate(bucket)) for _ in range(rounds))
        return max(whole - around, 0.0) / self.bags_of[bucket], around

    def run_steps(self, bucket: int, steps: int) -> None:
        """Makes at most MOST_STEPS steps of every run, as a trace would show them."""
        self._dispatch(bucket, min(steps, self.most_steps), self._epoch(bucket))

    def time_laying_out(self) -> float:
        """Seconds of computing an epoch's schedules and sending them and its order to the devices."""
        return self._timed(lambda: wait(self.engine.lay_out(self.phase, self.order, 0)))

    def _dispatch(self, bucket: int, steps: int, epoch: Any) -> None:
        """`steps` steps of every run."""
        lo = np.zeros(len(self.plan.replicas), np.int32)
        for window in self.engine.loader.windows(self.order.bags, [(bucket, lo, lo + np.int32(steps))]):
            self.carry = self.engine.dispatch(self.carry, epoch, window)
        wait(self.carry)

    def _evaluate(self, bucket: int) -> None:
        """The bags of a bucket in every run; -1: none."""
        part = np.broadcast_to(self.bucket == bucket, self.engine.data.selection.shape)
        wait(self.engine.evaluate(self.carry.state, part))

    def _epoch(self, bucket: int) -> Any:
        """An epoch whose steps all have bags of this bucket, on the devices."""
        bags = np.resize(np.flatnonzero(self.bucket == bucket), self.order.bags.shape).astype(np.int32)
        return self.engine.lay_out(self.phase, EpochOrder(bags, (), self.order.counts), 0)

    def _within_bench(self, order: EpochOrder) -> EpochOrder:
        """The same order with a bag of the bench in place of each bag."""
        bags = np.zeros_like(order.bags)
        for bucket, lo, hi in order.dispatches:
            own = np.flatnonzero(self.bucket == bucket)
            for r in np.flatnonzero(hi > lo):
                bags[r, lo[r] : hi[r]] = np.resize(own, (hi[r] - lo[r], bags.shape[2]))
        return EpochOrder(np.where(order.bags >= 0, bags, -1), order.dispatches, order.counts)

    def _timed(self, work: Callable[[], object]) -> float:
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun

    def _cost(self, name: str, bucket: int) -> ProgramCost:
        built = self.engine.programs.built(name, bucket)
        memory: Any = built.program.memory_analysis()
        counted: Any = built.program.cost_analysis()
        programs, vectorised = self.engine.programs, self.engine.vectorised
        return ProgramCost(
            operations=operations(built.jaxpr) / (programs.steps[name][bucket] if vectorised else 1),
            side_by_side=programs.chunks[self.lengths[bucket]] if vectorised else 1,
            temporary_bytes=int(memory.temp_size_in_bytes),
            argument_bytes=int(memory.argument_size_in_bytes),
            traffic_bytes=float(counted.get("bytes accessed", math.nan)),
            compile_seconds=built.seconds,
        )


def operations(jaxpr: Any) -> float:
    """Floating-point operations of the matrix products and convolutions of a (closed) jaxpr.

    A `scan` counts as often as it runs; a `while`, whose length is not known, counts once; of the branches of a `cond` the dearest. What
    nothing depends on is not counted: the compiler leaves it out.
    """
    total = 0.0
    for equation in _needed(getattr(jaxpr, "jaxpr", jaxpr)):
        name, params = equation.primitive.name, equation.params
        inner = [operations(part) for part in _inner(params)]
        if name == "dot_general":
            (left, _), _ = params["dimension_numbers"]
            contracted = math.prod(equation.invars[0].aval.shape[axis] for axis in left)
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * contracted
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / outputs
        elif name == "cond":
            total += max(inner)
        else:
            total += sum(inner) * (params["length"] if name == "scan" else 1)
    return total


def _needed(jaxpr: Any) -> list[Any]:
    """The equations that an output or an effect depends on, last first."""
    wanted = {variable for variable in jaxpr.outvars if not isinstance(variable, Literal)}
    needed = []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or not wanted.isdisjoint(equation.outvars):
            wanted.update(variable for variable in equation.invars if not isinstance(variable, Literal))
            needed.append(equation)
    return needed


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if hasattr(getattr(part, "jaxpr", part), "eqns"):
                yield part


def _median(values: Iterable[float]) -> float:
    return float(np.median(list(values)))


def _windows(
    sizes: np.ndarray,
    longest: int,
    feature_shape: tuple[int, ...],
    dtype: np.dtype,
    num_neighbors: int,
    num_parts: int,
) -> ResidentBags:
    """Bags of full buckets, whose rows overlap: windows of one array of random numbers that is drawn on the device. Neighbours are
    drawn, too, so that edges that lead out of a shorter bag are missing there.
    """
    rows = int(longest + max(0, min(int(sizes.sum()), WINDOW_BYTES // (math.prod(feature_shape) * dtype.itemsize))))
    kind = dtype if np.issubdtype(dtype, np.floating) else np.dtype(np.float32)
    features = jax.random.normal(jax.random.key(0), (rows, *feature_shape), jnp.float32).astype(kind)
    return ResidentBags(
        features=features,
        coords=np.stack([np.arange(rows) % 256, np.arange(rows) // 256], axis=1).astype(np.int32) * 256,
        slide_index=np.zeros(rows, np.int32),
        offsets=np.linspace(0, rows - longest, len(sizes)).astype(np.int32),
        sizes=sizes.astype(np.int32),
        neighbors=np.random.default_rng(0).integers(0, longest, (rows, num_neighbors), np.int32)
        if num_neighbors
        else None,
        part_mask=np.ones((rows, num_parts), bool) if num_parts else None,
    )
