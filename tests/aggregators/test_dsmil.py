"""What DSMIL gives beside the laws (tests/laws) and the references' numbers (tests/parity)."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax import aggregators
from mil_jax.bags import Bag
from mil_jax.errors import ConfigError
from mil_jax.tasks.multilabel import MultiLabel

TASK = MultiLabel(("a", "b"))
BAG = Bag(jnp.asarray(np.random.default_rng(0).standard_normal((12, 6)), jnp.float32), jnp.arange(12) < 10)


@functools.cache
def model(num_outputs: int = 2, **fields: Any) -> tuple[Any, Any]:
    module = aggregators.create("dsmil", num_outputs, **{"query_dim": 8, **fields})
    return module, jax.jit(module.init)(jax.random.key(0), BAG)["params"]


def apply(module: Any, params: Any, bag: Bag = BAG, **arguments: Any) -> Any:
    return jax.jit(functools.partial(module.apply, **arguments))({"params": params}, bag)


def test_the_critical_instance_is_the_best_of_each_class_under_the_mask():
    module, params = model()
    large = BAG.replace(features=BAG.features.at[10:].set(1e6))
    prediction = apply(module, params, large)
    logits = np.asarray(prediction.instance_logits)[:10]
    np.testing.assert_array_equal(prediction.aux["critical"], logits.argmax(axis=0))
    np.testing.assert_allclose(prediction.aux["max_logits"], logits.max(axis=0), rtol=1e-6)


def test_of_equal_instances_the_first_is_critical_and_takes_the_gradient():
    module, params = model()
    twins = Bag(jnp.tile(BAG.features[:1], (12, 1)), BAG.mask)

    def largest(features):
        return apply(module, params, twins.replace(features=features)).aux["max_logits"][0]

    np.testing.assert_array_equal(apply(module, params, twins).aux["critical"], 0)
    assert not np.any(jax.grad(largest)(twins.features)[1:])


@pytest.mark.parametrize("value", ["relu", "linear"])
def test_scores_and_values_follow_the_definition(value):
    """A linear query and a linear value are never formed for all instances; the numbers are the same."""
    module, params = model(nonlinear_query=False, value=value)
    prediction, x = apply(module, params), np.asarray(BAG.features)[:10]
    q = x @ params["query"]["kernel"] + params["query"]["bias"]
    scores = q[prediction.aux["critical"]] @ q.T / np.sqrt(8)
    v = x @ params["value"]["kernel"] + params["value"]["bias"]
    np.testing.assert_allclose(prediction.scores[:, :10], scores, rtol=1e-4, atol=1e-5)
    pooled = jax.nn.softmax(scores) @ (np.maximum(v, 0) if value == "relu" else v)
    np.testing.assert_allclose(prediction.embedding, pooled, rtol=1e-4, atol=1e-5)


def test_every_bag_logit_reads_the_embeddings_of_all_classes():
    module, params = model()
    kernel = params["classifier"]["kernel"].at[1, :, 0].add(1.0)  # what logit 0 reads of class 1
    prediction = apply(module, {**params, "classifier": {**params["classifier"], "kernel": kernel}})
    expected = apply(module, params).logits[0] + prediction.embedding[1].sum()
    np.testing.assert_allclose(prediction.logits[0], expected, rtol=1e-4, atol=1e-5)


def test_the_mean_probability_is_the_mean_of_both_sigmoids():
    module, params = model(prediction="mean_probability")
    prediction = apply(module, params)
    streams = [jax.nn.sigmoid(prediction.aux[name]) for name in ("bag_logits", "max_logits")]
    np.testing.assert_allclose(jax.nn.sigmoid(prediction.logits), sum(streams) / 2, rtol=1e-5)


def test_the_loss_weighs_both_streams_and_its_weights_are_numeric():
    module, params = model()
    hyper = {"bag_weight": jnp.float32(0.25), "max_weight": jnp.float32(2.0)}
    prediction = jax.tree.map(lambda x: x[None], module.apply({"params": params, "hyper": hyper}, BAG))
    targets, weights = jnp.array([[1.0, 0.0]]), jnp.ones(1)
    bag, largest = (
        TASK.loss(prediction.replace(logits=prediction.aux[name]), targets, weights)
        for name in ("bag_logits", "max_logits")
    )
    np.testing.assert_allclose(
        module.training_loss(TASK, prediction, targets, weights), 0.25 * bag + 2.0 * largest, rtol=1e-6
    )


def test_without_weight_on_the_maximum_the_instance_classifier_gets_no_gradient():
    module, params = model(max_weight=0.0)

    def loss(params):
        prediction = jax.tree.map(lambda x: x[None], apply(module, params))
        return module.training_loss(TASK, prediction, jnp.array([[1.0, 0.0]]), jnp.ones(1))

    assert not np.any(jax.grad(loss)(params)["instance_classifier"]["kernel"])


@pytest.mark.parametrize(("rate", "kept"), [(0.1, 9), (0.25, 7), (0.5, 5), (0.99, 1)])
def test_instance_dropout_keeps_a_whole_number_of_instances_in_training_only(rate, kept):
    module, params = model(instance_dropout=rate)
    training = apply(module, params, train=True, rngs={"dropout": jax.random.key(0)})
    assert np.count_nonzero(training.attention[0]) == kept
    assert np.count_nonzero(apply(module, params).attention[0]) == 10


def test_xavier_normal_leaves_the_convolution_at_pytorchs_default():
    _, params = model(initializer="xavier_normal")
    assert np.any(params["classifier"]["bias"])
    assert not np.any(params["instance_classifier"]["bias"])


def test_images_are_refused():
    with pytest.raises(ConfigError, match="the bag has the shape"):
        model()[0].init(jax.random.key(0), BAG.replace(features=jnp.zeros((12, 2, 2))))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"query_dim": 0}, "positive whole number"),
        ({"value": "gelu"}, "choose one of identity, relu, linear"),
        ({"prediction": "max"}, "choose one of bag, mean_logit, mean_probability"),
        ({"loss": "bce"}, "choose one of streams, prediction"),
        ({"feature_layer": "lenet"}, "choose one of none, linear"),
        ({"dropout": 0.25}, "with aggregator.feature_layer='none' set it to 0"),
        ({"value_dropout": 0.25}, "with aggregator.value='identity' set it to 0"),
        ({"instance_dropout": 1.0}, r"number in \[0, 1\)"),
        ({"max_weight": -1.0}, "not negative"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(fields, complaint):
    with pytest.raises(ConfigError, match=complaint):
        aggregators.create("dsmil", 2, **fields)
