"""RRT-MIL and the re-embedding R2T: what holds beside the laws (tests/laws) and the reference's numbers (tests/parity)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax import aggregators
from mil_jax.aggregators import Aggregator, reembedding
from mil_jax.aggregators.r2t import R2T
from mil_jax.bags import Bag
from mil_jax.config import parse
from mil_jax.errors import ConfigError, DataError
from mil_jax.interop.torch_checkpoints import export_state_dict, import_state_dict

R2T_FIELDS = {"feature_dim": 8, "num_heads": 2, "cross_region_heads": 2, "epeg_kernel": 3, "region_num": 2}
FIELDS = {**R2T_FIELDS, "attention_dim": 4}


def bag(num_real: int = 11, bucket: int = 16) -> Bag:
    features = np.random.default_rng(0).standard_normal((bucket, 6)).astype(np.float32)
    return Bag(jnp.asarray(features), jnp.arange(bucket) < num_real)


def init(module):
    return jax.jit(module.init)(jax.random.key(0), bag())["params"]


def apply(module, params):
    return jax.jit(module.apply)({"params": params}, bag())


def abmil_behind_r2t(**settings):
    abmil = aggregators.create("abmil", 2, feature_layer="none", dropout=0.0, attention_dim=4)
    return reembedding.reembedded(abmil, {"name": "rrt", **R2T_FIELDS, **settings})


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"region_num": 0}, "region_num=0 must be a positive whole number"),
        ({"region_size": -1}, "region_size=-1 must be a positive whole number"),
        ({"cross_region_num": 0}, "cross_region_num=0 must be a positive"),
        ({"representatives": 0}, "representatives=0 must be a positive"),
        ({"num_layers": 0}, "num_layers=0 must be a positive"),
        ({"num_heads": 3}, "num_heads=3 does not divide the width of the instances, 8"),
        ({"cross_region_heads": 5}, "cross_region_heads=5 does not divide"),
        ({"epeg_kernel": 4}, "epeg_kernel=4 must be odd"),
        ({"position_kernel": 6}, "position_kernel=6 must be odd"),
        ({"position": "sincos"}, "choose one of none, ppeg, peg"),
        ({"position": "ppeg", "position_place": "between"}, "num_layers=2 has none"),
        ({"min_region_ratio": -1.0}, "not negative"),
        ({"num_best_regions": 3}, "set aggregator.region_reweighting, too"),
        ({"feature_layer": "none"}, "set it to 0"),
        ({"transformer_dropout": 1.0}, r"number in \[0, 1\)"),
        ({"attention_activation": "sigmoid"}, "choose one of relu, gelu, tanh"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(fields, complaint):
    with pytest.raises(ConfigError, match=complaint):
        aggregators.create("rrt", 2, **{**FIELDS, **fields})


def test_heads_are_checked_against_the_features_where_there_is_no_feature_layer():
    with pytest.raises(ConfigError, match="num_heads=4 does not divide the width of the instances, 6"):
        jax.eval_shape(R2T(feature_layer="none", dropout=0.0, num_heads=4).init, jax.random.key(0), bag())


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"name": "nystrom"}, "reembed.name='nystrom' is unknown"),
        ({"region_nun": 3}, "reembed.region_nun is not a setting of 'rrt'; did you mean 'region_num'"),
        ({"region_num": 0}, "reembed.region_num=0 must be"),
    ],
)
def test_a_reembedding_that_cannot_work_is_refused(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        abmil_behind_r2t(**settings)


def test_an_empty_name_is_no_reembedding():
    abmil = aggregators.create("abmil", 2)
    assert reembedding.reembedded(abmil, {"name": ""}) is abmil


def test_an_aggregator_behind_r2t_sees_the_bag_that_r2t_makes():
    module = abmil_behind_r2t()
    params = init(module)
    new = apply(R2T(**R2T_FIELDS), params["reembed"])
    assert new.features.shape == (16, 8)
    expected = module.aggregator.apply({"params": params["aggregator"]}, new)
    np.testing.assert_allclose(apply(module, params).logits, expected.logits, rtol=1e-5)


def test_each_rate_reaches_its_own_module():
    module = abmil_behind_r2t(dropout=0.5)
    params = init(module)
    silent = {
        "reembed": {"dropout": jnp.float32(0), "transformer_dropout": jnp.float32(0)},
        "aggregator": {"attention_dropout": jnp.float32(0)},
    }
    variables = {"params": params, "hyper": silent}
    rngs = {"dropout": jax.random.key(1)}
    trained = jax.jit(lambda variables: module.apply(variables, bag(), train=True, rngs=rngs))(variables)
    np.testing.assert_allclose(trained.logits, apply(module, params).logits, rtol=1e-5)


def test_reweighting_at_equal_scores_changes_nothing():
    plain = aggregators.create("rrt", 2, **FIELDS)
    weighted = aggregators.create("rrt", 2, **FIELDS, region_reweighting=True)
    params = init(weighted)
    params["region_score"] = jax.tree.map(jnp.zeros_like, params["region_score"])
    expected = apply(plain, {name: layer for name, layer in params.items() if name != "region_score"})
    np.testing.assert_allclose(apply(weighted, params).logits, expected.logits, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cross_region_mlp": True, "feed_forward": True, "num_layers": 3, "qkv_bias": False},
        {"position": "ppeg", "attention_dropout": 0.25, "epeg_2d": True},
        {"cross_region": False, "epeg_kernel": 0, "attention_gated": True, "attention_bias": True},
    ],
)
def test_published_names_go_out_and_come_back(options):
    module = aggregators.create("rrt", 2, **{**FIELDS, **options})
    params = init(module)
    state = export_state_dict(module, params, "rrtmil")
    assert "online_encoder.layers.0.attn.attn.qkv.weight" in state
    jax.tree.map(np.testing.assert_array_equal, import_state_dict(module, state, "rrtmil"), params)


def test_a_checkpoint_of_another_architecture_is_refused_by_name():
    with_mlp = aggregators.create("rrt", 2, **FIELDS, cross_region_mlp=True)
    plain = aggregators.create("rrt", 2, **FIELDS)
    state = export_state_dict(plain, init(plain), "rrtmil")
    with pytest.raises(DataError, match=r"missing: online_encoder.cr_msa.attn.phi.0.*unexpected: .*cr_msa.attn.phi"):
        import_state_dict(with_mlp, state, "rrtmil")


def test_the_settings_of_a_reembedding_come_with_its_name_on_the_command_line():
    arguments = ["--config", "configs/abmil.py", "--config.reembed.region_num=4", "--config.reembed.name=rrt"]
    config, _, _ = parse(arguments, lambda values: None)
    assert config.reembed.region_num == 4
    assert config.reembed.cross_region_num == 8
    with pytest.raises(ConfigError, match=r"config.reembed.region_num is not a setting"):
        parse(arguments[:-1], lambda values: None)


def test_an_aggregator_keeps_its_own_loss_behind_a_reembedding():
    class WithLoss(Aggregator):
        @nn.nowrap
        def training_loss(self, task, predictions, targets, weights):
            return 7.0

    class Task:
        def loss(self, predictions, targets, weights):
            return 3.0

    nothing = (Task(), None, None, None)
    assert reembedding.reembedded(WithLoss(2), {"name": "rrt", **R2T_FIELDS}).training_loss(*nothing) == 7.0
    assert abmil_behind_r2t().training_loss(*nothing) == 3.0
