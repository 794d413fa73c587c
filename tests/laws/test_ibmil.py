"""A step of IBMIL keeps the laws, over every aggregator: in a longer bucket, and beside other runs, of other dictionaries too."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax import aggregators
from mil_jax.bags import Bag
from mil_jax.strategies import optimizers
from mil_jax.strategies.base import Batch, TrainState
from mil_jax.strategies.ibmil import BRANCH, IBMIL, TwoTierIBMIL
from mil_jax.strategies.ibmil_settings import DICTIONARY, IBMILSettings
from mil_jax.strategies.lr_schedule import Schedule
from mil_jax.tasks.classification import Classification
from tests.laws import law

TASK = Classification(("a", "b"))
FEATURES = (6,)
HYPER = {"optimizer.lr": 1e-2, "optimizer.weight_decay": 1e-3}
CONFOUNDERS = IBMILSettings("3", query_dim=4, dictionary_dropout=0.1)
TRANSMIL = {"num_heads": 2, "head_dim": 4, "num_landmarks": 4, "residual_kernel": 3, "dropout": 0.25}
FIELDS: dict[str, dict[str, Any]] = {
    "abmil": {"feature_dim": 8, "attention_dim": 4},
    "clam_sb": {"feature_dim": 8, "attention_dim": 4},
    "clam_mb": {"feature_dim": 8, "attention_dim": 4},
    "dsmil": {"query_dim": 4},
    "dtfd": {"feature_dim": 8, "attention_dim": 4, "dropout": 0.25},
    "max_pooling": {"feature_dim": 8, "choose": "feature"},
    "mean_pooling": {"feature_layer": "none", "dropout": 0.0},
    "patch_gcn": {"hidden_dim": 8},
    "rrt": {"feature_dim": 8, "num_heads": 2, "attention_dim": 4},
    "transmil": {"feature_dim": 8, **TRANSMIL},
}


def ibmil(name: str, confounders: IBMILSettings = CONFOUNDERS, **settings: Any) -> IBMIL:
    module = aggregators.create(name, TASK.num_outputs, **FIELDS[name])
    sgd = optimizers.make(optimizers.OptimizerSettings("sgd"))
    kind = TwoTierIBMIL if name == "dtfd" else IBMIL
    return kind(module, TASK, sgd, Schedule(), confounders=confounders, **settings)


def graph(bag: Bag) -> Bag:
    """With neighbours, for those that read them: the instances before and behind."""
    place = jnp.arange(len(bag.mask), dtype=jnp.int32)[:, None] + jnp.array([-1, 1], jnp.int32)
    return bag.replace(neighbors=jnp.where((place >= 0) & (place < bag.num_instances), place, -1))


def initial(strategy: IBMIL, key: jax.Array) -> TrainState:
    bag = graph(law.make_bag(0, 4, law.SMALL_BUCKET, FEATURES, 0.0))
    hyper = {name: jnp.float32(value) for name, value in HYPER.items()}
    shape = strategy.parameter_shapes(bag)[DICTIONARY].shape
    made = TrainState.ended_with({DICTIONARY: jax.random.normal(jax.random.fold_in(key, 1), shape)}, 1)
    return strategy.init(key, bag, hyper, {}, made)


def step(strategy: IBMIL, state: TrainState, bag: Bag, key: jax.Array) -> Any:
    bag = graph(bag)
    batch = Batch(bags=jax.tree.map(lambda x: x[None], bag), targets=jnp.array([1]), weights=jnp.ones(1))
    state, metrics = strategy.step(state, batch, {"lr": jnp.float32(0.01)}, key)
    return state.params, metrics, strategy.predict(state, bag).logits


def check_padding(strategy: IBMIL, bare_sizes: tuple[int, ...]) -> None:
    state = jax.jit(functools.partial(initial, strategy))(jax.random.key(3))
    compiled = jax.jit(functools.partial(step, strategy))
    law.check_padding(lambda bag, key: law.Seen(compiled(state, bag, key), {}), FEATURES, bare_sizes=bare_sizes)


def test_a_step_is_exact_under_padding():
    check_padding(ibmil("dsmil", IBMILSettings("3", "specific", query_dim=4, dictionary_dropout=0.1)), bare_sizes=(1,))


@pytest.mark.full
@pytest.mark.parametrize("name", FIELDS)
def test_a_step_over_any_aggregator_is_exact_under_padding(name):
    check_padding(ibmil(name), bare_sizes=(1, 7, 16))
    merged = IBMILSettings("2,3", merge="sub", merged_norm=True, learn_dictionary=True, query_dim=4)
    check_padding(ibmil(name, merged, normalize="l2"), bare_sizes=(6,))


@pytest.mark.parametrize(
    "name", ["abmil", *(pytest.param(name, marks=pytest.mark.full) for name in FIELDS if name != "abmil")]
)
def test_runs_of_other_dictionaries_take_the_steps_of_single_ones(name):
    strategy = ibmil(name)
    states = jax.jit(jax.vmap(functools.partial(initial, strategy)))(jax.random.split(jax.random.key(0), 3))
    bag = law.make_bag(0, 13, law.SMALL_BUCKET, FEATURES)
    law.check_replicas(jax.jit(functools.partial(step, strategy)), states, bag)


@pytest.mark.parametrize("name", ["abmil", pytest.param("dtfd", marks=pytest.mark.full)])
def test_a_dictionary_moves_only_where_it_is_learned(name):
    bag, key = law.make_bag(0, 13, law.SMALL_BUCKET, FEATURES), jax.random.key(0)
    for learned in (False, True):
        strategy = ibmil(name, IBMILSettings("3", learn_dictionary=learned))
        state = jax.jit(functools.partial(initial, strategy))(key)
        params = jax.jit(functools.partial(step, strategy))(state, bag, key)[0]
        assert np.array_equal(params[DICTIONARY], state.params[DICTIONARY]) == (not learned)
        assert not np.array_equal(params[BRANCH]["query"]["kernel"], state.params[BRANCH]["query"]["kernel"])
