"""What TransMIL gives beside the laws (tests/laws) and the references' numbers (tests/parity)."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax import aggregators
from mil_jax.aggregators import transmil
from mil_jax.bags import Bag
from mil_jax.errors import ConfigError, DataError
from mil_jax.interop.torch_checkpoints import export_state_dict, import_state_dict

SMALL = {"feature_dim": 8, "num_heads": 2, "num_landmarks": 4, "residual_kernel": 3}


def _bag(num_real: int = 5, bucket: int = 8, width: int = 6) -> Bag:
    features = np.random.default_rng(0).standard_normal((bucket, width)).astype(np.float32)
    return Bag(jnp.asarray(features), jnp.arange(bucket) < num_real)


def _init(module: nn.Module, bag: Bag | None = None) -> Any:
    return jax.jit(module.init)(jax.random.key(0), _bag() if bag is None else bag)["params"]


def test_attention_is_the_last_layers_mean_over_heads_and_zero_on_padding():
    module = aggregators.create("transmil", 3, **SMALL)
    prediction = jax.jit(module.apply)({"params": _init(module)}, _bag())
    assert prediction.logits.shape == (3,)
    assert prediction.aux["class_attention"].shape == (2, 2, 8)
    np.testing.assert_allclose(prediction.attention, prediction.aux["class_attention"][1].mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(prediction.attention[5:], 0.0)


def test_attention_costs_nothing_unless_it_is_asked_for():
    module, bag = aggregators.create("transmil", 2, **SMALL), _bag()
    params = _init(module)

    def cost(wanted) -> float:
        program = jax.jit(lambda params: wanted(module.apply({"params": params}, bag))).lower(params).compile()
        return program.cost_analysis()["flops"]

    assert cost(lambda prediction: prediction.logits) < cost(
        lambda prediction: (prediction.logits, prediction.attention)
    )


def test_order_of_the_instances_matters():
    module, bag = aggregators.create("transmil", 2, **SMALL), _bag()
    params = _init(module)
    reversed_bag = bag.replace(features=jnp.concatenate([bag.features[4::-1], bag.features[5:]]))
    apply = jax.jit(module.apply)
    assert not np.allclose(apply({"params": params}, bag).logits, apply({"params": params}, reversed_bag).logits)


def test_dropout_rates_of_zero_in_hyper_undo_the_dropout_of_the_fields():
    module, bag = aggregators.create("transmil", 2, **SMALL, dropout=0.5, attention_dropout=0.5), _bag()
    params, hyper = _init(module), {"dropout": jnp.float32(0), "attention_dropout": jnp.float32(0)}

    @functools.partial(jax.jit, static_argnames="train")
    def logits(variables, train):
        return module.apply(
            {"params": params, **variables}, bag, train=train, rngs={"dropout": jax.random.key(1)}
        ).logits

    plain = logits({}, False)
    assert not np.allclose(logits({}, True), plain)
    np.testing.assert_allclose(logits({"hyper": hyper}, True), plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", transmil.VARIANTS)
def test_export_gives_the_published_layout_and_import_reads_it_back(variant):
    fields = {**transmil.VARIANTS[variant], **SMALL}
    module = aggregators.create("transmil", 2, **fields)
    params = _init(module)
    exported = export_state_dict(module, params, variant)
    name = next(name for name in exported if name.endswith("res_conv.weight"))
    assert exported[name].shape == (2, 1, 3, 1)
    read = import_state_dict(module, exported, variant)
    assert jax.tree.structure(read) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, read, params)


def test_a_checkpoint_of_another_layout_names_the_missing_and_unexpected_keys():
    module = aggregators.create("transmil", 2, **SMALL)
    exported = export_state_dict(module, _init(module), "transmil_original")
    with pytest.raises(DataError, match=r"missing: .*classifier.bias.*unexpected: .*_fc2.bias"):
        import_state_dict(module, exported, "transmil_mhim")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 3}, "does not divide"),
        ({"num_landmarks": 0}, "num_landmarks"),
        ({"residual_kernel": 4}, "must be odd"),
        ({"position": "sincos"}, "position"),
        ({"feature_layer": "none", "dropout": 0.1}, "dropout"),
    ],
)
def test_settings_that_cannot_work_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        aggregators.create("transmil", 2, **{**SMALL, **fields})


def test_heads_that_do_not_divide_the_width_of_the_instances_are_refused():
    module = aggregators.create("transmil", 2, **{**SMALL, "num_heads": 4}, feature_layer="none")
    with pytest.raises(ConfigError, match="does not divide the width 6"):
        module.init(jax.random.key(0), _bag())


def test_images_are_refused():
    images = Bag(jnp.zeros((2, 4, 4, 1)), jnp.ones(2, bool))
    with pytest.raises(ConfigError, match="the bag has the shape"):
        aggregators.create("transmil", 2, **SMALL).init(jax.random.key(0), images)
