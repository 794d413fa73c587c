"""What ABMIL gives beside the laws (tests/laws) and the references' numbers (tests/parity)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax import aggregators
from mil_jax.bags import Bag
from mil_jax.errors import ConfigError

SMALL = {"feature_dim": 8, "attention_dim": 4}


def _bag(num_real: int = 5, bucket: int = 8, shape: tuple[int, ...] = (6,)) -> Bag:
    features = np.random.default_rng(0).standard_normal((bucket, *shape)).astype(np.float32)
    return Bag(jnp.asarray(features), jnp.arange(bucket) < num_real)


def _apply(module, bag, hyper=None, seed=0, train=True):
    params = module.init(jax.random.key(0), bag)["params"]
    variables = {"params": params} | ({"hyper": hyper} if hyper else {})
    return module.apply(variables, bag, train=train, rngs={"dropout": jax.random.key(seed)})


def test_attention_sums_to_one_over_real_instances():
    prediction = _apply(aggregators.create("abmil", 3, **SMALL), _bag(), train=False)
    assert prediction.logits.shape == (3,)
    np.testing.assert_allclose(prediction.attention.sum(), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(prediction.attention[5:], 0.0)


def test_parameters_carry_words_for_names():
    params = aggregators.create("abmil", 3, **SMALL).init(jax.random.key(0), _bag())["params"]
    assert set(params) == {"feature", "attention_v", "attention_u", "attention_w", "classifier"}
    assert all(set(layer) == {"kernel", "bias"} for layer in params.values())


def test_dropout_changes_training_and_not_evaluation():
    module, bag = aggregators.create("abmil", 3, **SMALL), _bag()
    assert not np.array_equal(_apply(module, bag, seed=1).logits, _apply(module, bag, seed=2).logits)
    first, second = (_apply(module, bag, seed=seed, train=False).logits for seed in (1, 2))
    np.testing.assert_array_equal(first, second)


def test_rates_of_zero_in_hyper_undo_the_dropout_of_the_fields():
    module, bag = aggregators.create("abmil", 3, **SMALL), _bag()
    silenced = _apply(module, bag, hyper={"dropout": jnp.float32(0), "attention_dropout": jnp.float32(0)})
    np.testing.assert_allclose(silenced.logits, _apply(module, bag, train=False).logits, rtol=1e-6)


def test_no_random_key_is_needed_without_dropout():
    module = aggregators.create("abmil", 3, **SMALL, dropout=0.0, attention_dropout=0.0)
    params = module.init(jax.random.key(0), _bag())
    assert np.isfinite(module.apply(params, _bag(), train=True).logits).all()


def test_replicas_differ_in_their_dropout_rate_without_recompiling():
    module, bag = aggregators.create("abmil", 3, **SMALL), _bag()
    params = module.init(jax.random.key(0), bag)["params"]

    def logits(rate):
        hyper = {"dropout": rate, "attention_dropout": rate}
        variables = {"params": params, "hyper": hyper}
        return module.apply(variables, bag, train=True, rngs={"dropout": jax.random.key(1)}).logits

    rates = jnp.array([0.0, 0.25, 0.5])
    together = jax.jit(jax.vmap(logits))(rates)
    for index, rate in enumerate(rates):
        np.testing.assert_allclose(together[index], jax.jit(logits)(rate), rtol=1e-5, atol=1e-6)


def test_attention_without_a_width_is_as_wide_as_the_instances():
    _, fields = aggregators.variants()["pathgene"]
    params = aggregators.create("abmil", 2, **fields).init(jax.random.key(0), _bag())["params"]
    assert params["attention_v"]["kernel"].shape == (6, 6)


def test_float16_features_are_computed_in_float32():
    bag = _bag()
    half = Bag(bag.features.astype(jnp.float16), bag.mask)
    prediction = _apply(aggregators.create("abmil", 2, **SMALL), half, train=False)
    assert prediction.embedding.dtype == jnp.float32


@pytest.mark.parametrize(("layer", "shape"), [("linear", (28, 28, 1)), ("lenet", (6,))])
def test_instances_of_the_wrong_shape_are_refused(layer, shape):
    module = aggregators.create("abmil", 2, **SMALL, feature_layer=layer)
    with pytest.raises(ConfigError, match="the bag has the shape"):
        module.init(jax.random.key(0), _bag(shape=shape))
