"""What profile says of a program: operations counted by hand, memory, seconds, and forecasts that follow from them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax.engine.bag_order import BagOrder
from mil_jax.engine.types import EngineSettings
from mil_jax.profiling.forecast import BucketFigures, count_steps
from mil_jax.profiling.machine_peaks import Ceilings
from mil_jax.profiling.program_cost import Bench, Measured, ProgramCost, operations
from mil_jax.profiling.report import duration, rooflines
from tests.engine import cohorts


def traced(function, *arguments):
    return operations(jax.make_jaxpr(function)(*arguments))


def test_products_are_counted_as_often_as_they_run():
    x, w = jnp.ones((8, 5)), jnp.ones((5, 5))
    one = 2 * 8 * 5 * 5
    assert traced(lambda x, w: jnp.tanh(x @ w), x, w) == one
    assert traced(lambda x, w: jax.lax.fori_loop(0, 7, lambda _, x: x @ w, x), x, w) == 7 * one
    assert traced(lambda x, w: jax.lax.map(lambda row: row @ w, x), x, w) == one
    assert traced(lambda x, w, n: jax.lax.fori_loop(0, n, lambda _, x: x @ w, x), x, w, 7) == one
    assert traced(jax.vmap(lambda x, w: x @ w, in_axes=(None, 0)), x, jnp.ones((3, 5, 5))) == 3 * one
    assert traced(lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x), x, w) == one


def test_convolutions_are_counted_by_group():
    x, kernel = jnp.ones((1, 9, 9, 6)), jnp.ones((3, 3, 2, 12))
    count = traced(
        lambda x, k: jax.lax.conv_general_dilated(
            x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3
        ),
        x,
        kernel,
    )
    assert count == 2 * (9 * 9 * 12) * (3 * 3 * 2)


@pytest.fixture(scope="module")
def bench() -> Bench:
    data, plan = cohorts.engine_data(), cohorts.plan()
    order = BagOrder(data.training, data.bucket, 2).epoch(plan.replicas, np.ones(4, bool), 0)
    settings, dtype = EngineSettings(), np.dtype(np.float16)
    return Bench(
        cohorts.strategy(), cohorts.TASK, plan, data.lengths, settings, (6,), dtype, data.targets, order, [1, 1]
    )


def test_the_operations_of_a_step_are_those_counted_by_hand(bench):
    train, evaluate = bench.compile(1)
    n, width, features, attention = 16, 6, 16, 8
    first, gates, pooled = 2 * n * width * features, 2 * 2 * n * features * attention, 2 * n * features
    rest = 2 * n * attention + 2 * features * 2  # the scores and the classifier
    forward = first + gates + pooled + rest
    assert evaluate.operations == forward
    # Backward twice the forward, but no gradient of the features.
    assert train.operations == pytest.approx(3 * forward - first, rel=0.02)
    assert train.side_by_side == 1
    assert train.temporary_bytes > 0
    assert train.compile_seconds > 0


def test_a_bench_takes_the_epochs_steps_and_leaves_a_time_for_each_part(bench):
    for bucket in range(2):
        bench.compile(bucket)
        step = bench.time_steps(bucket, 0.01)
        assert step.seconds >= 0 < step.idle_seconds
        assert step.runs == 4
        assert min(bench.time_evaluation(bucket, 0.01)) >= 0
    before = np.asarray(bench.carry.state.step)[:4]
    seconds, runs = bench.time_order(float("inf"))
    steps, slots = count_steps(runs, [1, 1])
    assert seconds > 0
    assert runs == bench.order.dispatches
    np.testing.assert_array_equal(np.asarray(bench.carry.state.step)[:4] - before, steps.sum(axis=1))
    np.testing.assert_array_equal(steps.sum(axis=1), bench.order.counts)
    assert (slots >= steps.max(axis=0)).all()
    assert bench.time_laying_out() > 0


def test_the_roofline_is_the_tighter_of_the_two_ceilings():
    cost = ProgramCost(1e9, 1, 0, 0, 1e9, 1.0)
    bucket = BucketFigures(1000, cost, cost, Measured(seconds=1.0, idle_seconds=0.0, runs=2), 0.0)
    ceilings = Ceilings({"float32": 8e9}, copy=1e9, near=1e9)
    (line,) = rooflines([bucket], ceilings, "float32", row_bytes=4, state_bytes=0, batch=1)
    assert (line.bound, line.share) == ("products", pytest.approx(2e9 / 8e9))
    assert line.traffic == pytest.approx(2.0)
    (line,) = rooflines([bucket], ceilings, "float32", row_bytes=400_000, state_bytes=0, batch=1)
    assert (line.bound, line.share) == ("memory", pytest.approx(2 * 2 * 1000 * 400_000 / 1e9))
    slower = dataclasses.replace(bucket, step=Measured(4.0, 0.0, 2))
    assert rooflines([slower], ceilings, "float32", 4, 0, 1)[0].share == pytest.approx(2e9 / 8e9 / 4)


def test_durations_are_said_in_the_unit_that_fits():
    said = [duration(seconds) for seconds in (2e-6, 0.0123, 1.5, 119, 600, 7300, 86_400 * 3)]
    assert said == ["2 us", "12.3 ms", "1.5 s", "119 s", "10 min", "2.03 h", "3 days"]
