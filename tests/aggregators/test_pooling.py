"""Pooling of instance logits: which instances count, and where the gradient goes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax import aggregators
from mil_jax.bags import Bag

BAG = Bag(
    jnp.asarray(np.random.default_rng(0).standard_normal((9, 6)), jnp.float32),
    jnp.arange(9) < 7,
)


def _module(name: str, num_outputs: int = 3, **fields):
    module = aggregators.create(name, num_outputs, feature_dim=8, **fields)
    return module, module.init(jax.random.key(0), BAG)


def test_mean_pooling_is_the_mean_of_the_instance_logits():
    module, params = _module("mean_pooling")
    prediction = module.apply(params, BAG)
    np.testing.assert_allclose(prediction.logits, prediction.instance_logits[:7].mean(axis=0), rtol=1e-5, atol=1e-6)


def test_max_pooling_is_the_largest_instance_logit_of_each_class():
    module, params = _module("max_pooling")
    prediction = module.apply(params, BAG)
    np.testing.assert_allclose(prediction.logits, prediction.instance_logits[:7].max(axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("choose", "num_outputs"), [("positive", 2), ("any", 3)])
def test_all_logits_are_those_of_the_most_probable_instance(choose, num_outputs):
    module, params = _module("max_pooling", num_outputs, choose=choose)
    prediction = module.apply(params, BAG)
    probabilities = jax.nn.softmax(prediction.instance_logits[:7], axis=-1)
    best = probabilities[:, 1] if choose == "positive" else probabilities.max(axis=-1)
    assert int(prediction.aux["chosen"][0]) == int(jnp.argmax(best))
    np.testing.assert_allclose(prediction.logits, prediction.instance_logits[jnp.argmax(best)], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "fields"), [("mean_pooling", {}), ("max_pooling", {"choose": "feature"})])
def test_without_feature_layer_the_pooled_features_are_classified(name, fields):
    module, params = _module(name, feature_layer="none", dropout=0.0, **fields)
    prediction = module.apply(params, BAG)
    pooled = {"mean_pooling": np.mean, "max_pooling": np.max}[name](np.asarray(BAG.features[:7]), axis=0)
    np.testing.assert_allclose(prediction.embedding, pooled, rtol=1e-5, atol=1e-6)
    assert set(params["params"]) == {"classifier"}


def test_of_equal_instances_the_first_is_chosen():
    module, params = _module("max_pooling")
    twins = Bag(jnp.tile(BAG.features[:1], (9, 1)), BAG.mask)
    np.testing.assert_array_equal(module.apply(params, twins).aux["chosen"], 0)


def test_the_gradient_equals_that_through_all_instance_logits():
    module, params = _module("max_pooling")
    weights = jnp.array([1.0, -2.0, 0.5])

    def through_all(params):
        return jnp.max(module.apply(params, BAG).instance_logits[:7], axis=0) @ weights

    ours, expected = jax.grad(lambda p: module.apply(p, BAG).logits @ weights)(params), jax.grad(through_all)(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, expected)


def test_the_chosen_instance_keeps_its_dropout():
    module, params = _module("max_pooling", dropout=0.5)
    prediction = module.apply(params, BAG, train=True, rngs={"dropout": jax.random.key(4)})
    np.testing.assert_allclose(prediction.logits, prediction.instance_logits[:7].max(axis=0), rtol=1e-5, atol=1e-6)
