"""A step of MHIM-MIL keeps the laws: in a longer bucket, and beside other runs, of other mask ratios too."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax import aggregators
from mil_jax.bags import Bag
from mil_jax.strategies import optimizers
from mil_jax.strategies.base import Batch, Steps, TrainState
from mil_jax.strategies.lr_schedule import Schedule
from mil_jax.strategies.mhim import MHIM
from mil_jax.strategies.mhim_merging import MergingMHIM
from mil_jax.strategies.mhim_settings import MHIMSettings
from mil_jax.tasks.classification import Classification
from tests.laws import law

TASK = Classification(("a", "b"))
FEATURES = (6,)
HYPER = {"optimizer.lr": 1e-2, "optimizer.weight_decay": 1e-3}
MASKING = MHIMSettings(
    mask_random=0.3, mask_low=0.2, mask_high=0.2, mask_high_share=0.5, momentum=0.9, consistency_weight=0.5
)
STEPS = Steps(epoch=0, epochs=2, count=3)
DSMIL = {"feature_layer": "linear", "value": "relu", "prediction": "mean_softmax"}
TRANSMIL = {"squaring": False, "num_heads": 2, "head_dim": 4, "num_landmarks": 4, "residual_kernel": 3}
FIELDS: dict[str, dict[str, Any]] = {
    "abmil": {"attention_dim": 4},
    "dsmil": {**DSMIL, "dropout": 0.25, "query_dim": 4},
    "transmil": {**TRANSMIL, "dropout": 0.25},
    "clam_sb": {"attention_dim": 4},
}


def mhim(name: str, masking: MHIMSettings = MASKING, kind: type[MHIM] = MHIM, **settings: Any) -> MHIM:
    module = aggregators.create(name, TASK.num_outputs, feature_dim=8, **FIELDS[name])
    sgd = optimizers.make(optimizers.OptimizerSettings("sgd"))
    return kind(module, TASK, sgd, Schedule(), masking=masking, **settings)


def initial(strategy: MHIM, key: jax.Array) -> TrainState:
    """A student, and a teacher that is someone else."""
    bag = law.make_bag(0, 4, law.SMALL_BUCKET, FEATURES, 0.0)
    hyper = {name: jnp.float32(value) for name, value in HYPER.items()}
    before = strategy.init(jax.random.fold_in(key, 1), bag, hyper, {}, None)
    return strategy.init(key, bag, hyper, {}, before)


def extras_of(strategy: MHIM, size: int, hyper: dict[str, float] = HYPER) -> dict[str, jax.Array]:
    """As the engine lays them out, of the last step of the epoch."""
    rows = strategy.schedule(hyper, np.full((STEPS.count, 1), size), STEPS)
    kinds = {True: jnp.float32, False: jnp.int32}
    return {name: jnp.asarray(x[-1], kinds[np.issubdtype(x.dtype, np.floating)]) for name, x in rows.items()}


def step(strategy: MHIM, state: TrainState, extras: dict[str, jax.Array], bag: Bag, key: jax.Array) -> Any:
    batch = Batch(bags=jax.tree.map(lambda x: x[None], bag), targets=jnp.array([1]), weights=jnp.ones(1))
    state, metrics = strategy.step(state, batch, extras, key)
    return state.params, state.optimizer, metrics, strategy.predict(state, bag).logits


def check_padding(strategy: MHIM, bare_sizes: tuple[int, ...]) -> None:
    state = jax.jit(functools.partial(initial, strategy))(jax.random.key(3))
    compiled = jax.jit(functools.partial(step, strategy))

    def run(bag: Bag, key: jax.Array) -> law.Seen:
        return law.Seen(compiled(state, extras_of(strategy, int(bag.mask.sum())), bag, key), {})

    law.check_padding(run, FEATURES, bare_sizes=bare_sizes)


def test_a_step_is_exact_under_padding():
    check_padding(mhim("abmil", least_masked=0.3), bare_sizes=(1,))


@pytest.mark.full
@pytest.mark.parametrize("fusion", ["vote", "mean"])
@pytest.mark.parametrize("name", FIELDS)
def test_a_step_over_any_aggregator_is_exact_under_padding(name, fusion):
    masking = dataclasses.replace(MASKING, fusion=fusion, scores="class" if name == "dsmil" else "attention")
    strategy = mhim(name, masking, least_masked=masking.least_masked(), normalize="l2")
    check_padding(strategy, bare_sizes=(1, 2, 7, 16))
    check_padding(mhim(name, masking, sample_instances=5), bare_sizes=(1, 6))


def test_runs_of_other_mask_ratios_take_the_steps_of_single_ones():
    ratios = (0.1, 0.4, 0.7)
    strategy = mhim("abmil", least_masked=0.1)
    states = jax.jit(jax.vmap(functools.partial(initial, strategy)))(jax.random.split(jax.random.key(0), len(ratios)))
    bag = law.make_bag(0, 13, law.SMALL_BUCKET, FEATURES)
    one = [extras_of(strategy, 13, {**HYPER, "strategy.mask_random": ratio}) for ratio in ratios]
    assert [int(extras["mask_random"][0]) for extras in one] == [2, 6, 10]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *one)
    compiled = jax.jit(lambda both, bag, key: step(strategy, *both, bag, key))
    law.check_replicas(compiled, (states, stacked), bag)


@pytest.mark.full
@pytest.mark.parametrize("name", ["abmil", "dsmil", "transmil"])
def test_a_step_with_merging_is_exact_under_padding(name):
    masking = MHIMSettings(
        mask_high=0.2, scores="class", momentum=0.9, merge_queries=2, merge_ratio=0.5, merge_test=True
    )
    check_padding(mhim(name, masking, MergingMHIM), bare_sizes=(1, 2, 7))


@pytest.mark.full
def test_runs_with_merging_take_the_steps_of_single_ones():
    strategy = mhim("abmil", MHIMSettings(mask_high=0.2, scores="class", merge_queries=2, merge_test=True), MergingMHIM)
    states = jax.jit(jax.vmap(functools.partial(initial, strategy)))(jax.random.split(jax.random.key(0), 3))
    bag, extras = law.make_bag(0, 13, law.SMALL_BUCKET, FEATURES), extras_of(strategy, 13)
    law.check_replicas(jax.jit(lambda state, bag, key: step(strategy, state, extras, bag, key)), states, bag)
