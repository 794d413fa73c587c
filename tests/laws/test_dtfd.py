"""DTFD-MIL and a step of its training keep the laws, with fewer instances than groups too. The order of instances decides its groups."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from mil_jax import aggregators
from mil_jax.bags import Bag
from mil_jax.strategies import optimizers
from mil_jax.strategies.base import Batch, TrainState
from mil_jax.strategies.dtfd import TwoTiers
from mil_jax.strategies.lr_schedule import Schedule
from mil_jax.tasks.classification import Classification
from tests.laws import law

TASK = Classification(("a", "b", "c"))
FEATURES = (6,)
GROUPS, K = 3, 2
SIZES = (1, GROUPS - 1, GROUPS, GROUPS + 1, GROUPS * K - 1, GROUPS * K, 15, 16, 17)
PROMISES = [promise for promise in law.PROMISES if promise != "permutation"]
DISTILLATIONS = ("pooled", "max", "max_min", "max_attention")
DROPOUT = {"feature_dropout": 0.25, "dropout": 0.25}


def small(distillation: str, **settings: Any) -> Any:
    widths = {"feature_dim": 8, "attention_dim": 4, "num_groups": GROUPS, "instances_per_group": K, "num_partitions": 2}
    return aggregators.create("dtfd", TASK.num_outputs, distillation=distillation, **{**widths, **settings})


def two_tiers(distillation: str, optimizer: str = "adam", *, joint: bool = False, **settings: Any) -> TwoTiers:
    clipped = optimizers.make(optimizers.OptimizerSettings(optimizer, clip_norm=0.5))
    return TwoTiers(small(distillation, joint=joint, **DROPOUT), TASK, clipped, Schedule(), **settings)


def _initial(strategy: TwoTiers, key: jax.Array) -> TrainState:
    hyper = {"optimizer.lr": jnp.float32(1e-2), "optimizer.weight_decay": jnp.float32(1e-3)}
    return strategy.init(key, law.make_bag(0, 4, law.SMALL_BUCKET, FEATURES, 0.0), hyper, {}, None)


def _step(strategy: TwoTiers, state: TrainState, bag: Bag, key: jax.Array) -> Any:
    batch = Batch(bags=jax.tree.map(lambda x: x[None], bag), targets=jnp.array([1]), weights=jnp.ones(1))
    state, metrics = strategy.step(state, batch, {"lr": jnp.float32(1e-2)}, key)
    return state.params, metrics, strategy.predict(state, bag).logits


def check_step(strategy: TwoTiers, bare_sizes: tuple[int, ...]) -> None:
    state = jax.jit(functools.partial(_initial, strategy))(jax.random.key(3))
    step = jax.jit(functools.partial(_step, strategy))
    law.check_padding(lambda bag, key: law.Seen(step(state, bag, key), {}), FEATURES, bare_sizes=bare_sizes)


@pytest.mark.parametrize("promise", PROMISES)
def test_law(promise):
    law.check_aggregator(small("max_min", num_residual=1), FEATURES, promises=[promise], bare_sizes=(1,))


def test_a_step_is_exact_under_padding():
    check_step(two_tiers("max_min", "sgd"), bare_sizes=(GROUPS - 1,))


@pytest.mark.full
@pytest.mark.parametrize("distillation", DISTILLATIONS)
def test_law_of_every_distillation(distillation):
    law.check_aggregator(small(distillation, **DROPOUT), FEATURES, promises=PROMISES, bare_sizes=SIZES)


@pytest.mark.full
@pytest.mark.parametrize("distillation", DISTILLATIONS)
def test_a_step_of_every_distillation_is_exact_under_padding(distillation):
    check_step(two_tiers(distillation, "sgd"), bare_sizes=SIZES)
    check_step(two_tiers(distillation, "sgd", joint=True), bare_sizes=SIZES)
    check_step(two_tiers(distillation, "sgd", normalize="l2", sample_instances=5), bare_sizes=(1, 4, 5, 6))


@pytest.mark.full
@pytest.mark.parametrize("distillation", DISTILLATIONS)
def test_replicas_together_take_the_steps_of_single_ones(distillation):
    strategy = two_tiers(distillation, "sgd")
    keys = jax.random.split(jax.random.key(0), law.NUM_REPLICAS)
    states = jax.jit(jax.vmap(functools.partial(_initial, strategy)))(keys)
    step = jax.jit(functools.partial(_step, strategy))
    for n in (1, GROUPS - 1, 9):
        law.check_replicas(step, states, law.make_bag(0, n, law.SMALL_BUCKET, FEATURES))
