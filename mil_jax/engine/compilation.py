"""Ahead-of-time compilation of the engine's programs, once each: two per bucket (train, evaluate) and one for initial states.

Several are compiled at once, in the background. Where replicas go side by side, how many is decided here, bucket by bucket, from what
the compiler says of the memory that a program needs. Compilations are counted, those in vain included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from mil_jax.engine import programs
from mil_jax.engine.bag_order import portions
from mil_jax.engine.device_memory import DoesNotFit, even, largest_that_fits, require_room
from mil_jax.engine.programs import (
    AXIS,
    DATA_AXIS,
    INSTANCE_AXIS,
    DeviceCohort,
    EvaluationInputs,
    ReplicaIds,
    StepCarry,
    StepInputs,
    replica_sharding,
)
from mil_jax.errors import ConfigError
from mil_jax.machine import usable_cores
from mil_jax.strategies.base import Analysis, Strategy, TrainState
from mil_jax.types import AnyArray, Array, PyTree


class Built(NamedTuple):
    """A program as compiled, what was compiled, and the seconds that took, tracing included."""

    program: jax.stages.Compiled
    jaxpr: Any
    seconds: float


class Programs:
    """The programs of one strategy by name and bucket; a shape that was not planned raises instead of recompiling.

    limit: bytes of a device's memory that a program may use. vectorised: whether replicas go side by side; then `steps` says by name and
    bucket how many steps a program makes, `same` by name how many neighbouring replicas have the same bags, and `chunks` how many
    replicas of a device go at once by bucket length: what was chosen before, to which is added what is chosen.
    """

    def __init__(
        self,
        strategy: Strategy | Analysis,
        mesh: Mesh,
        lengths: tuple[int, ...],
        vectorised: bool,
        limit: int,
        steps: Mapping[str, Sequence[int]],
        same: Mapping[str, int],
        chunks: dict[int, int] | None = None,
    ) -> None:
        self.strategy: Any = strategy  # of an analysis predictions alone are compiled
        self.mesh, self.lengths, self.vectorised, self.limit = mesh, lengths, vectorised, limit
        self.steps, self.same = steps, same
        self.chunks = {} if chunks is None else chunks
        self.axis = DATA_AXIS if DATA_AXIS in mesh.axis_names else None
        self._compiled: dict[tuple[str, int], Future[Built]] = {}
        self._trials = 0
        self._unchecked: list[
            tuple[str, int, int]
        ] = []  # name, bucket, bytes of the cohort: what must fit before a step is made
        self._compiler = ThreadPoolExecutor(usable_cores(), "mil_jax-compile")

    @property
    def compilations(self) -> int:
        """How many programs were compiled so far, those included that were compiled to see what they need."""
        return len(self._compiled) + self._trials

    @property
    def seconds(self) -> float:
        """Of compiling the programs of steps and evaluations that are there, as many at once as there are cores."""
        built = [future for (name, _), future in self._compiled.items() if name != "init"]
        return sum(future.result().seconds for future in built) / max(min(usable_cores(), len(built)), 1)

    def for_fewer(self, most: int, same: Mapping[str, int]) -> Programs:
        """The same for at most so many replicas on each device; no more of them at a time than here. To be compiled yet."""
        chunks = {length: even(most, min(chunk, most)) for length, chunk in self.chunks.items()}
        return Programs(self.strategy, self.mesh, self.lengths, self.vectorised, self.limit, self.steps, same, chunks)

    def compile_ahead(
        self,
        train: Sequence[int],
        evaluate: Sequence[int],
        cohorts: Sequence[DeviceCohort],
        carry: StepCarry,
        inputs: StepInputs,
        logits: tuple[int, ...],
        count: Array,
    ) -> None:
        """Starts to compile the programs of these buckets, several at once, beside whatever the caller does next.

        cohorts: of each bucket. logits: their shape (V, C) for each replica. The rest is as in `train`; arrays or shapes.
        """
        # The longest bucket first: no step is made before it is known to fit.
        train = sorted(train, key=lambda bucket: bucket != max(train))
        if train and not self.vectorised and ("train", train[0]) not in self._compiled:
            longest = ("train", train[0]) if train[0] >= max(evaluate, default=0) else ("evaluate", max(evaluate))
            bags = jax.tree.leaves(cohorts[longest[1]].bags)
            self._unchecked.append((*longest, sum(x.size * x.dtype.itemsize for x in bags)))
        for bucket in train:
            self._start("train", bucket, cohorts[bucket], carry, inputs, count)
        self.compile_evaluation(evaluate, cohorts, carry.state, inputs.ends, logits, count)

    def compile_evaluation(
        self,
        buckets: Sequence[int],
        cohorts: Sequence[DeviceCohort],
        state: TrainState,
        ends: AnyArray,
        logits: tuple[int, ...],
        count: Array,
    ) -> None:
        """As `compile_ahead`, of evaluation alone. ends: of the shape that the programs are given."""

        def of_replicas(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((ends.shape[0], *shape), dtype, sharding=ends.sharding)

        inputs = EvaluationInputs(state, of_replicas(logits[:1], jnp.int32), ends)
        for bucket in buckets:
            self._start("evaluate", bucket, cohorts[bucket], of_replicas(logits, jnp.float32), inputs, count)

    def decide(self) -> None:
        """Waits until it is known of each training program that was begun how many replicas go side by side.

        Raises ConfigError where not one fits.
        """
        for (name, bucket), program in list(self._compiled.items()):
            if self.vectorised and name == "train" and self.lengths[bucket] not in self.chunks:
                program.result()

    def built(self, name: str, bucket: int) -> Built:
        """The program "init", "train" or "evaluate" of a bucket, which was called or compiled ahead."""
        return self._compiled[name, bucket].result()

    def portions(self, name: str, bucket: int, lo: np.ndarray, hi: np.ndarray) -> Iterator[np.ndarray]:
        """The steps lo[r]..hi[r] of a dispatch in what one call of a program makes, see `bag_order.portions`."""
        return portions(lo, hi, self.steps[name][bucket] if self.vectorised else np.iinfo(np.int32).max)

    def close(self) -> None:
        """Compilations that have not begun are given up."""
        self._compiler.shutdown(wait=False, cancel_futures=True)

    def init(
        self, cohort: DeviceCohort, ids: ReplicaIds, fitted: PyTree, previous: TrainState | None, count: Array
    ) -> TrainState:
        """The initial states; `fitted`: (hyper, constants) with the leading axis [R]. `count` [devices]: replicas on each."""
        return self._call("init", 0, cohort, ids, fitted, previous, count)

    def train(
        self, bucket: int, cohort: DeviceCohort, carry: StepCarry, inputs: StepInputs, count: Array
    ) -> tuple[StepCarry, Array]:
        """The steps of a dispatch in bucket number `bucket`. `carry` is donated. Also says how many steps were made.

        Raises ConfigError before the first step where the longest bucket does not fit.
        """
        while self._unchecked:
            self._require_room(*self._unchecked.pop())
        return self._call("train", bucket, cohort, carry, inputs, count)

    def evaluate(
        self, bucket: int, cohort: DeviceCohort, logits: Array, inputs: EvaluationInputs, count: Array
    ) -> tuple[Array, Array]:
        """Fills in logits [R, V, C], all in bucket number `bucket`. `logits` is donated. Also says how many."""
        return self._call("evaluate", bucket, cohort, logits, inputs, count)

    def _call(self, name: str, bucket: int, *arguments: PyTree) -> Any:
        return self._start(name, bucket, *arguments).result().program(*arguments)

    def _start(self, name: str, bucket: int, *arguments: PyTree) -> Future[Built]:
        """The program, being compiled."""
        if (name, bucket) not in self._compiled:
            if self.vectorised and name != "init":
                trained_on = self._compiled.get(("train", bucket)) if name == "evaluate" else None
                job: Callable[[], Any] = partial(self._compile_side_by_side, name, bucket, trained_on, *arguments)
            else:
                # Traced here: settings of JAX may be those of the calling thread.
                job = self._traced(name, bucket, None, *arguments)
            self._compiled[name, bucket] = self._compiler.submit(job)
        return self._compiled[name, bucket]

    def _traced(self, name: str, bucket: int, chunk: int | None, *arguments: PyTree) -> Callable[[], Built]:
        """Traces a program; what compiles it, in any thread."""
        begun = time.perf_counter()
        length = self.lengths[bucket]
        function: Callable[..., Any]
        if name == "init":
            function = partial(programs.initial, self.strategy, length)
        elif name == "evaluate":
            function = partial(
                programs.evaluate, self.strategy, length, chunk, self.steps[name][bucket], self.same[name]
            )
        elif chunk is None:
            function = partial(programs.train_sequential, self.strategy, length, self.axis)
        else:
            steps, same = self.steps[name][bucket], self.same[name]
            function = partial(programs.train_vmapped, self.strategy, length, self.axis, chunk, steps, same)
        donate = () if name == "init" else (1,)  # what the program changes
        specs = (P(), *(P(AXIS) for _ in arguments[1:]))
        # XLA itself divides the work among the devices that share a bag: that axis is left to it.
        manual = set(self.mesh.axis_names) - {INSTANCE_AXIS}
        mapped = jax.shard_map(
            function, mesh=self.mesh, in_specs=specs, out_specs=P(AXIS), axis_names=manual, check_vma=False
        )
        placed = replica_sharding(self.mesh)
        traced = jax.jit(mapped, donate_argnums=donate, out_shardings=placed).trace(*arguments)
        lowered = traced.lower()
        before = time.perf_counter() - begun

        def compile() -> Built:
            begun = time.perf_counter()
            program = lowered.compile()
            return Built(program, traced.jaxpr, before + time.perf_counter() - begun)

        return compile

    def _compile_side_by_side(self, name: str, bucket: int, before: Future[Any] | None, *arguments: PyTree) -> Built:
        """With as many replicas at a time as fit, or as were chosen; `before` is waited for, since it chooses."""
        if before:
            before.result()
        length = self.lengths[bucket]
        built: dict[int, Built] = {}

        def compile_for(chunk: int) -> jax.stages.Compiled:
            built[chunk] = self._traced(name, bucket, chunk, *arguments)()
            return built[chunk].program

        if length in self.chunks:
            compile_for(self.chunks[length])
            return built[self.chunks[length]]
        *_, inputs, count = arguments
        try:
            chunk, _, trials = largest_that_fits(inputs.ends.shape[0] // count.shape[0], self.limit, compile_for)
        except DoesNotFit as error:
            raise _too_large(length, error) from error
        self.chunks[length] = chunk
        self._trials += trials
        return built[chunk]

    def _require_room(self, name: str, bucket: int, common: int) -> None:
        try:
            require_room(self.built(name, bucket).program, self.limit, common)
        except DoesNotFit as error:
            raise _too_large(self.lengths[bucket], error) from error


def _too_large(length: int, error: DoesNotFit) -> ConfigError:
    devices = f"each of {jax.local_device_count()} CPU cores" if jax.default_backend() == "cpu" else "a device"
    return ConfigError(
        f"bags of up to {length} instances need {error.needed / 2**30:.3g} GiB of {devices} for one run at a time, and "
        f"{error.limit / 2**30:.3g} GiB may be used: leave the largest bags out with data.filter, or lower train.batch_size or the "
        "widths of the aggregator, or raise train.memory_gib where it is set"
    )
