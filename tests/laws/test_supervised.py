"""A step of supervised training is exact under padding, and the same alone and beside other replicas."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax.bags import Bag
from mil_jax.strategies.base import Batch, TrainState
from mil_jax.strategies.supervised import Supervised
from tests.laws import law
from tests.training.cohorts import strategy

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
