"""A step of supervised training is exact under padding, and the same alone and beside other replicas."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from mil_jax import aggregators
from mil_jax.bags import Bag
from mil_jax.data.cohort.settings import CohortSettings
from mil_jax.strategies import optimizers
from mil_jax.strategies.base import Batch, TrainState
from mil_jax.strategies.lr_schedule import Schedule
from mil_jax.strategies.supervised import Supervised
from mil_jax.tasks.survival import Survival
from mil_jax.tasks.survival_losses import cox
from tests.engine.cohorts import strategy
from tests.laws import law

FEATURES = (6,)
# Adam would turn the rounding noise in the gradient of the last attention bias, which is truly zero, into steps of size lr.
SGD = functools.partial(strategy, optimizer="sgd")


def _constants(the_strategy: Supervised) -> dict[str, jax.Array]:
    constants = {}
    if the_strategy.normalize == "zscore":
        constants = {"mean": jnp.linspace(-1.0, 1.0, *FEATURES), "scale": jnp.linspace(0.5, 2.0, *FEATURES)}
    if the_strategy.class_weights:
        constants["class_weights"] = jnp.array([0.5, 1.5])
    return constants


def _initial(the_strategy: Supervised, key: jax.Array) -> TrainState:
    hyper = {"optimizer.lr": jnp.float32(1e-2), "optimizer.weight_decay": jnp.float32(1e-3)}
    bag = law.make_bag(0, 4, law.SMALL_BUCKET, FEATURES, 0.0)
    return the_strategy.init(key, bag, hyper, _constants(the_strategy), None)


def _step(the_strategy: Supervised, state: TrainState, bag: Bag, key: jax.Array) -> Any:
    batch = Batch(bags=jax.tree.map(lambda x: x[None], bag), targets=jnp.array([1]), weights=jnp.ones(1))
    state, metrics = the_strategy.step(state, batch, {"lr": jnp.float32(1e-2)}, key)
    return state.params, metrics, the_strategy.predict(state, bag).logits


@pytest.mark.parametrize(
    "settings",
    [{}, {"normalize": "zscore", "class_weights": True}, {"normalize": "l2"}, {"sample_instances": 3}],
    ids=str,
)
def test_a_step_and_a_prediction_are_exact_under_padding(settings):
    the_strategy = SGD(**settings)
    state = jax.jit(functools.partial(_initial, the_strategy))(jax.random.key(3))
    step = jax.jit(functools.partial(_step, the_strategy))
    law.check_padding(lambda bag, key: law.Seen(step(state, bag, key), {}), FEATURES)


def test_replicas_together_take_the_steps_of_single_ones():
    the_strategy = SGD(normalize="zscore")
    states = jax.vmap(functools.partial(_initial, the_strategy))(jax.random.split(jax.random.key(0), law.NUM_REPLICAS))
    step = jax.jit(functools.partial(_step, the_strategy))
    law.check_replicas(step, states, law.make_bag(0, 9, law.SMALL_BUCKET, FEATURES))


def test_a_place_without_a_bag_moves_nothing_but_what_others_move():
    """A batch of two places of which one is empty is a batch of one."""
    the_strategy = SGD()
    state = _initial(the_strategy, jax.random.key(0))
    bag = law.make_bag(0, 9, law.SMALL_BUCKET, FEATURES)
    empty = bag.replace(mask=jnp.zeros_like(bag.mask))
    pair = jax.tree.map(lambda *x: jnp.stack(x), bag, empty)
    extras, key, step = {"lr": jnp.float32(1e-2)}, jax.random.key(5), jax.jit(the_strategy.step)
    two = Batch(bags=pair, targets=jnp.array([1, 0]), weights=jnp.array([1.0, 0.0]))
    one = Batch(bags=jax.tree.map(lambda x: x[:1], pair), targets=jnp.array([1]), weights=jnp.ones(1))
    law.assert_close(
        step(state, two, extras, key)[0].params,
        step(state, one, extras, key)[0].params,
        "a batch with an empty place",
    )


def test_a_step_reads_so_many_instances_of_a_bag_in_their_order_and_others_in_the_next():
    the_strategy = SGD(sample_instances=5)
    bag = law.make_bag(0, 11, law.SMALL_BUCKET, FEATURES)
    draw = jax.jit(the_strategy._sampled)
    seen = set()
    for number in range(30):
        drawn = draw(bag, {"train.sample_instances": jnp.float32(4)}, jax.random.key(number))
        assert drawn.mask.tolist() == [True] * 4 + [False]
        rows = [int(np.flatnonzero((np.asarray(bag.features) == row).all(axis=1))[0]) for row in drawn.features[:4]]
        assert rows == sorted(set(rows))
        assert max(rows) < 11
        seen |= set(rows)
    assert seen == set(range(11))
    assert draw(bag, {}, jax.random.key(0)).mask.all()


def test_a_bag_with_fewer_instances_than_are_drawn_is_read_whole():
    the_strategy = SGD(sample_instances=12)
    bag = law.make_bag(0, 3, law.SMALL_BUCKET, FEATURES)
    drawn = the_strategy._sampled(bag, {}, jax.random.key(0))
    np.testing.assert_array_equal(drawn.features[:3], bag.features[:3])
    assert int(drawn.mask.sum()) == 3


def test_coxs_loss_over_bags_a_few_at_a_time_is_that_of_the_full_batch():
    """In value and gradient, with dropout, ties, censored bags and an empty place; the risk sets hold bags of all chunks."""
    labels = pd.DataFrame({"months": [3, 1, 4, 1, 4], "died": [1, 0, 1, 1, 1]})
    settings = CohortSettings("labels.csv", ("months", "died"), numbers=("months",), events=("died",))
    task = Survival.for_labels(labels, settings, {"loss_name": "cox", "ties": "efron"})
    module = aggregators.create("abmil", 1, feature_dim=16, attention_dim=8, dropout=0.25)
    bags = [law.make_bag(seed, 3 + seed, law.SMALL_BUCKET, FEATURES) for seed in range(6)]
    targets = np.concatenate([task.targets(labels), [[np.nan, np.nan]]])
    weights = jnp.array([1.0] * 5 + [0.0])
    batch = Batch(bags=jax.tree.map(lambda *x: jnp.stack(x), *bags), targets=jnp.asarray(targets), weights=weights)
    key, extras = jax.random.key(4), {"lr": jnp.float32(1.0)}
    hyper = {"optimizer.lr": jnp.float32(1.0), "optimizer.weight_decay": jnp.float32(0.0)}
    optimizer = optimizers.make(optimizers.OptimizerSettings("sgd"))  # at rate 1 an update is minus the gradient
    method = Supervised(module, task, optimizer, Schedule("constant"), microbatch_size=4)
    state = method.init(jax.random.key(0), bags[0], hyper, {}, None)
    after, metrics = jax.jit(method.step)(state, batch, extras, key)
    found = jax.tree.map(jnp.subtract, state.params, after.params), metrics["loss"]

    def by_hand(params: Any) -> jax.Array:
        keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(jnp.arange(6))
        answer = functools.partial(module.apply, {"params": params}, train=True)
        theta = jax.vmap(lambda bag, key: answer(bag, rngs={"dropout": key}).logits)(batch.bags, keys)[:5, 0]
        return cox(theta, *jnp.asarray(targets[:5]).T, jnp.ones(5, bool), ties="efron")

    loss, gradient = jax.jit(jax.value_and_grad(by_hand))(state.params)
    law.assert_close(found, (gradient, loss), "full batch")
    assert float(loss) > 0.1
