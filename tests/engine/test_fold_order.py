"""Runs of a fold, side by side, have bags in common: each is read once for all of them, and trained on as if each run had read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from mil_jax.engine import programs
from mil_jax.engine.bag_order import FOLD
from mil_jax.engine.early_stopping import Selection
from mil_jax.engine.fit import fit
from mil_jax.engine.mesh import Placement, laid_out
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
        EngineSettings(replica_axis=replica_axis, **settings),
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
        ((16,), {"order": FOLD}),
        pytest.param((8, 16), {}, marks=pytest.mark.full),
        pytest.param((8, 16), {"order": FOLD, "batch_size": 3}, marks=pytest.mark.full),
        pytest.param((8, 16), {"order": FOLD, "covariates": COVARIATES, "batch_size": 2}, marks=pytest.mark.full),
        pytest.param((8, 16), {"order": FOLD, "side_by_side": {"supervised": {8: 1, 16: 4}}}, marks=pytest.mark.full),
    ],
)
def test_bags_read_once_for_the_runs_of_a_fold_train_them_as_bags_read_for_each(lengths, settings):
    _assert_close(_fit("vmap", lengths, **settings), _fit("map", lengths, **settings))


def _features_read(same: int) -> set[tuple[int, ...]]:
    """Shapes of what a training program of bags of 16 computes that end in the axes of their features."""
    data, the_plan, method = engine_data(width=WIDTH), plan(folds=1, seeds=REPLICAS), strategy(feature_dim=10)
    target, ends = np.zeros(REPLICAS, np.int32), np.zeros((REPLICAS, 2), np.int32)
    cohort = programs.DeviceCohort(data.bags, data.targets)
    ids = programs.ReplicaIds(the_plan.keys(), target)
    fitted = the_plan.stacked_hyper(), method.constants(TrainingBags(data.targets[0], lambda: (ends, ends)))
    state = jax.eval_shape(partial(programs.initial, method, 8), cohort, ids, fitted, None, target)
    carry = programs.StepCarry(state, {"loss": np.zeros(REPLICAS, np.float32)})
    epoch = programs.EpochInputs(np.zeros((REPLICAS, 5, 1), np.int32), {"lr": np.zeros((REPLICAS, 5), np.float32)})
    train = partial(programs.train_vmapped, method, 16, None, REPLICAS, 2, same)
    traced = jax.make_jaxpr(train)(cohort, carry, programs.StepInputs(ids, epoch, ends), target)
    return {shape for shape in _shapes(traced.jaxpr) if shape[-2:] == (16, WIDTH)}


def _shapes(jaxpr: Any) -> Iterator[tuple[int, ...]]:
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from _shapes(inner)


def test_features_that_runs_have_in_common_have_no_axis_of_runs():
    common, own = _features_read(REPLICAS), _features_read(1)
    assert common
    assert not [shape for shape in common if REPLICAS in shape[:-2]]
    assert [shape for shape in own if REPLICAS in shape[:-2]], "the shapes do not show the case"


@pytest.mark.parametrize(
    ("groups", "devices", "same"),
    [
        ([0, 1, 2, 0, 1, 2], 1, 2),
        ([0, 1, 2, 0, 1, 2], 3, 2),
        ([0, 1, 2, 0, 1, 2], 2, 1),  # three on each device are no whole pairs
        ([0, 0, 0, 1, 1, 1, 1], 4, 2),
        ([0, 0, 0, 1], 1, 1),  # in pairs they would take six places
        ([3, 3, 3], 1, 3),
        ([4, 2, 0], 1, 1),
    ],
)
def test_runs_of_a_fold_are_neighbours_where_that_takes_no_more_room(groups, devices, same):
    groups = np.array(groups)
    found, place = laid_out(groups, devices)
    assert found == same
    assert len(np.unique(place)) == len(groups)
    assert place.max() < -(-len(groups) // devices) * devices
    for start in range(0, int(place.max()) + 1, same):
        assert len(np.unique(groups[(start <= place) & (place < start + same)])) == 1


@pytest.mark.parametrize("groups", [[0, 1, 2, 0, 1, 2], [1, 0, 1], None])
def test_arrays_of_runs_come_back_in_their_order(groups):
    values = np.arange(10, 16 if groups is None else 10 + len(groups))
    placement = Placement(len(values), groups=None if groups is None else np.array(groups))
    np.testing.assert_array_equal(placement.strip_padding(placement.fetch(placement.shard(values))), values)
    placement.keep_on_device(np.array([0, 2]))
    kept = placement.strip_padding(placement.fetch(placement.shard(values)), np.zeros_like(values))
    np.testing.assert_array_equal(kept, np.where(np.isin(np.arange(len(values)), [0, 2]), values, 0))
