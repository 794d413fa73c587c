"""A shared order where replicas go side by side: a bag is read once for all of them, and trained on as if each had read its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from mil_jax.engine import programs
from mil_jax.engine.bag_order import BagOrder
from mil_jax.engine.early_stopping import Selection
from mil_jax.engine.fit import fit
from mil_jax.engine.types import EngineSettings, FitResult, Phase
from mil_jax.strategies.base import TrainingBags
from tests.engine.cohorts import TASK, Silent, engine_data, plan, strategy

WIDTH = 7  # of an instance; no other axis is as long
REPLICAS = 3
COVARIATES = np.random.default_rng(0).normal(3, 2, (40, 2)).astype(np.float32)


def _fit(replica_axis: str, lengths: tuple[int, ...], covariates: np.ndarray | None = None, **settings) -> FitResult:
    return fit(
        [Phase(strategy(), 2, Selection("val_loss"))],
        dataclasses.replace(engine_data(num_bags=40, folds=3, width=WIDTH, lengths=lengths), covariates=covariates),
        TASK,
        plan(folds=3),
        EngineSettings(order="shared", replica_axis=replica_axis, **settings),
        Silent(),
    )


def _assert_close(one: FitResult, other: FitResult) -> None:
    leaves = jax.tree_util.tree_leaves_with_path((one.state, one.logits))
    for (path, ours), theirs in zip(leaves, jax.tree.leaves((other.state, other.logits)), strict=True):
        # The last bias of the attention has no gradient but round-off, of which Adam makes steps; no output depends on it.
        if not jax.tree_util.keystr(path).endswith("['attention_w']['bias']"):
            np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("lengths", "settings"),
    [
        ((16,), {}),
        pytest.param((8, 16), {"batch_size": 3}, marks=pytest.mark.full),
        pytest.param((8, 16), {"covariates": COVARIATES, "batch_size": 2}, marks=pytest.mark.full),
        pytest.param((8, 16), {"side_by_side": {"supervised": {8: 1, 16: 2}}}, marks=pytest.mark.full),
    ],
)
def test_bags_read_once_for_all_replicas_train_them_as_bags_read_for_each(lengths, settings):
    _assert_close(_fit("vmap", lengths, **settings), _fit("map", lengths, **settings))


def _features_read(train: Callable[..., Any]) -> set[tuple[int, ...]]:
    """Shapes of what a training program of bags of 16 computes that end in the axes of their features."""
    data, the_plan, method = engine_data(width=WIDTH), plan(folds=1, seeds=REPLICAS), strategy(feature_dim=10)
    ends = np.zeros(REPLICAS, np.int32)
    cohort = programs.DeviceCohort(data.bags, data.targets)
    ids = programs.ReplicaIds(the_plan.keys(), ends)
    fitted = the_plan.stacked_hyper(), method.constants(TrainingBags(data.targets[0], lambda: (ends, ends)))
    state = jax.eval_shape(partial(programs.initial, method, 8), cohort, ids, fitted, None, ends)
    carry = programs.StepCarry(state, {"loss": np.zeros(REPLICAS, np.float32)})
    epoch = programs.EpochInputs(np.zeros((REPLICAS, 5, 1), np.int32), {"lr": np.zeros((REPLICAS, 5), np.float32)})
    inputs = programs.StepInputs(ids, epoch, ends, ends)
    traced = jax.make_jaxpr(partial(train, method, 16, None, REPLICAS))(cohort, carry, inputs, ends)
    return {shape for shape in _shapes(traced.jaxpr) if shape[-2:] == (16, WIDTH)}


def _shapes(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from _shapes(inner)


def test_the_features_of_a_shared_order_have_no_replica_axis():
    shared, independent = (
        _features_read(train) for train in (programs.train_vmapped_shared_order, programs.train_vmapped)
    )
    assert shared
    assert not [shape for shape in shared if REPLICAS in shape[:-2]]
    assert [shape for shape in independent if REPLICAS in shape[:-2]], "the shapes do not show the case"


def test_an_order_laid_out_by_slot_has_the_same_steps():
    data, replicas = engine_data(num_bags=40, folds=3), plan(folds=3).replicas
    active = np.arange(len(replicas)) != 1

    def order(by_slot: bool):
        drawn = BagOrder(
            data.training, data.bucket, 2, batch_size=3, shared=True, by_slot=by_slot, steps_per_dispatch=2
        )
        return drawn.epoch(replicas, active, 4)

    by_step, by_slot = order(False), order(True)
    np.testing.assert_array_equal(by_step.counts, by_slot.counts)
    assert len(by_step.dispatches) == len(by_slot.dispatches)
    for (bucket, *ends), (other, lo, hi) in zip(by_step.dispatches, by_slot.dispatches, strict=True):
        assert bucket == other
        assert len({*lo, *hi}) == 2, "all replicas go through the same slots"
        np.testing.assert_array_equal(by_step.steps(*ends), by_slot.steps(lo, hi))
    for r in range(len(replicas)):
        busy = (by_slot.bags[r] >= 0).any(axis=1)
        np.testing.assert_array_equal(by_slot.bags[r, busy], by_step.bags[r, : by_step.counts[r]])
    together = by_slot.bags.max(axis=0)
    assert ((by_slot.bags == together) | (by_slot.bags == -1)).all()
