"""What the engine's arrays will be: schedules of an epoch, and the shapes of what programs read and write.

Shapes are known before any bag is read, so that programs are compiled meanwhile.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from mil_jax.engine import programs
from mil_jax.engine.bag_order import EpochOrder
from mil_jax.engine.plan import Plan
from mil_jax.engine.types import EngineData
from mil_jax.strategies.base import Steps, Strategy, TrainState
from mil_jax.types import Array, PyTree


def schedules(
    strategy: Strategy, plan: Plan, order: EpochOrder, sizes: np.ndarray, epoch: int, epochs: int
) -> dict[str, np.ndarray]:
    """The schedules of all replicas in an epoch, [R, T], cast from float64. sizes: [num_bags], instances of each bag."""
    stacked: dict[str, np.ndarray] = {}
    for r, replica in enumerate(plan.replicas):
        steps = Steps(epoch=epoch, epochs=epochs, count=int(order.counts[r]))
        numbers = order.bags[r, : steps.count]
        of_steps = np.where(numbers >= 0, sizes[np.maximum(numbers, 0)], 0)
        for name, values in strategy.schedule(plan.replica_hyper(replica), of_steps, steps).items():
            if name not in stacked:
                stacked[name] = np.zeros((*order.bags.shape[:2], *values.shape[1:]), _narrow(values))
            stacked[name][r, : steps.count] = values
    return stacked


def fitted_shapes(
    strategy: Strategy, plan: Plan, data: EngineData, rows: int, feature_shape: tuple[int, ...]
) -> tuple[dict[str, Any], PyTree]:
    """Of (hyper, constants) of all replicas. rows: of the leading axis on all devices. Constants are fitted once, to made-up moments."""
    first = plan.replicas[0]
    nothing = np.zeros(feature_shape)
    constants = strategy.constants(data.training_bags(first, lambda: (nothing, nothing)))
    one: tuple[dict[str, Any], PyTree] = {name: np.float32(0) for name in plan.hyper}, constants
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *np.shape(x)), x.dtype), one)


def carry_shapes(
    strategy: Strategy,
    plan: Plan,
    state: TrainState,
    cohort: programs.DeviceCohort,
    length: int,
    batch_size: int,
    sharding: Sharding,
) -> programs.StepCarry:
    """Of what a step changes; `state`: shapes of all replicas. sharding: of the leading axis."""
    rows = state.step.shape[0]
    metrics = step_metrics(strategy, plan, state, cohort, length, batch_size)
    sums = {name: jax.ShapeDtypeStruct((rows, *x.shape), x.dtype) for name, x in metrics.items()}
    carry: programs.StepCarry = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), programs.StepCarry(state, sums)
    )
    return carry


def step_metrics(
    strategy: Strategy, plan: Plan, state: TrainState, cohort: programs.DeviceCohort, length: int, batch_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of one replica's step metrics. state, cohort: arrays or shapes, of all replicas. length: of any bucket."""

    def names(state: TrainState, cohort: programs.DeviceCohort) -> dict[str, Array]:
        one = jax.tree.map(lambda x: x[0], state)
        numbers = jnp.zeros(batch_size, jnp.int32)
        batch = programs.read_batch(cohort, numbers, jnp.int32(0), length)
        extras = {
            name: jnp.asarray(values[0], values.dtype) for name, values in _one_step(strategy, plan, batch_size).items()
        }
        return strategy.step(one, batch, extras, jax.random.key(0))[1]

    shapes: dict[str, jax.ShapeDtypeStruct] = jax.eval_shape(names, state, cohort)
    return shapes


def epoch_shapes(
    strategy: Strategy, plan: Plan, rows: int, steps: int, batch_size: int, sharding: Sharding
) -> programs.EpochInputs:
    """Of an epoch of so many steps. rows: of the leading axis on all devices, whose sharding is `sharding`."""

    def shape(axes: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, steps, *axes), dtype, sharding=sharding)

    extras = {name: shape(x.shape[1:], x.dtype) for name, x in _one_step(strategy, plan, batch_size).items()}
    return programs.EpochInputs(bags=shape((batch_size,), np.int32), extras=extras)


def _one_step(strategy: Strategy, plan: Plan, batch_size: int) -> dict[str, np.ndarray]:
    """The schedule of an epoch of one step."""
    sizes = np.ones((1, batch_size), np.int64)
    rows = strategy.schedule(plan.replica_hyper(plan.replicas[0]), sizes, Steps(epoch=0, epochs=1, count=1))
    return {name: values.astype(_narrow(values)) for name, values in rows.items()}


def _narrow(values: np.ndarray) -> np.dtype:
    """The device's type for a host schedule."""
    return np.dtype(np.float32) if np.issubdtype(values.dtype, np.floating) else np.dtype(np.int32)
