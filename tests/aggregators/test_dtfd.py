"""What DTFD-MIL gives beside the laws (tests/laws) and the references' numbers (tests/parity)."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax import aggregators
from mil_jax.aggregators import reembedding
from mil_jax.aggregators.dtfd import group_numbers, last_class_order
from mil_jax.bags import Bag
from mil_jax.errors import ConfigError
from mil_jax.interop.torch_checkpoints import export_state_dict, import_state_dict
from mil_jax.layers.topk import random_ranks
from mil_jax.strategies import optimizers
from mil_jax.strategies.base import Batch
from mil_jax.strategies.dtfd import TwoTiers
from mil_jax.strategies.lr_schedule import Schedule
from mil_jax.tasks.classification import Classification

TASK = Classification(("a", "b", "c"))
BAG = Bag(jnp.asarray(np.random.default_rng(0).standard_normal((12, 6)), jnp.float32), jnp.arange(12) < 10)


@functools.cache
def model(**fields: Any) -> tuple[Any, Any]:
    settings = {"feature_dim": 8, "attention_dim": 4, "num_groups": 3, **fields}
    module = aggregators.create("dtfd", TASK.num_outputs, **settings)
    return module, jax.jit(module.init)(jax.random.key(0), BAG)["params"]


def strategy(module: Any, **settings: Any) -> TwoTiers:
    return TwoTiers(module, TASK, optimizers.make(optimizers.OptimizerSettings("sgd", **settings)), Schedule())


def stepped(the_strategy: TwoTiers, params: Any) -> tuple[Any, dict[str, Any]]:
    hyper = {"optimizer.lr": jnp.float32(1.0), "optimizer.weight_decay": jnp.float32(0.0)}
    state = jax.jit(lambda: the_strategy.init(jax.random.key(0), BAG, hyper, {}, None))().replace(params=params)
    batch = Batch(jax.tree.map(lambda x: x[None], BAG), jnp.array([1]), jnp.ones(1))
    state, metrics = jax.jit(the_strategy.step)(state, batch, {"lr": jnp.float32(1.0)}, jax.random.key(1))
    return state.params, metrics


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 9, 10, 11])
def test_groups_are_cut_as_array_split_does(n):
    expected = np.concatenate([np.full(len(part), g) for g, part in enumerate(np.array_split(np.arange(n), 4))])
    found = group_numbers(jnp.arange(n), jnp.int32(n), 4)
    np.testing.assert_array_equal(found, expected)


def test_a_random_order_is_one_and_padding_comes_last():
    orders = {tuple(np.asarray(random_ranks(jax.random.key(seed), BAG.mask)).tolist()) for seed in range(5)}
    assert len(orders) == 5
    for order in orders:
        assert sorted(order) == list(range(12))
        assert set(order[10:]) == {10, 11}


def test_the_order_is_that_of_the_last_classs_probability_and_has_no_ties_near_equal_classes():
    activations = np.random.default_rng(0).standard_normal((50, 3))
    p = np.exp(activations[:, -1]) / np.exp(activations).sum(axis=1)
    np.testing.assert_array_equal(np.argsort(last_class_order(jnp.asarray(activations))), np.argsort(p))
    tiny = jnp.asarray(np.arange(20)[:, None] * [0.0, 0.0, 1e-12], jnp.float32)
    assert len(np.unique(jax.nn.softmax(tiny)[:, -1])) == 1
    np.testing.assert_array_equal(np.argsort(last_class_order(tiny)), np.arange(20))


def test_evaluation_averages_the_probabilities_of_its_partitions_and_repeats_itself():
    module, params = model(num_partitions=4)
    apply = jax.jit(module.apply)
    first, second = (apply({"params": params}, BAG) for _ in range(2))
    each = jax.nn.softmax(first.aux["partition_logits"])
    assert len(np.unique(np.asarray(each)[:, 0])) == 4
    np.testing.assert_allclose(jax.nn.softmax(first.logits), each.mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(first.logits, second.logits)


def test_tier_2_does_not_move_tier_1():
    """The loss of tier 2 alone has no gradient in the networks of tier 1."""
    module, params = model(distillation="max_min")

    def loss(params: Any) -> Any:
        return module.apply({"params": params}, BAG).logits[0]

    gradient = jax.jit(jax.grad(loss))(params)
    assert len(gradient) >= 2
    assert "tier2" in gradient
    for name, network in gradient.items():
        assert any(np.any(leaf) for leaf in jax.tree.leaves(network)) == (name == "tier2")


@pytest.mark.full
def test_each_network_is_clipped_on_its_own_and_the_loss_is_the_sum_of_the_tiers():
    module, params = model()
    (free, metrics), (clipped, _) = (stepped(strategy(module, clip_norm=norm), params) for norm in (0.0, 1e-3))
    np.testing.assert_allclose(metrics["loss"], metrics["loss_tier1"] + metrics["loss_tier2"], rtol=1e-6)
    for name in params:
        moved = [jax.tree.map(jnp.subtract, after[name], params[name]) for after in (free, clipped)]
        norms = [float(jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(tree)))) for tree in moved]
        assert norms[0] > 1e-3
        np.testing.assert_allclose(norms[1], 1e-3, rtol=2e-2)


@pytest.mark.full
@pytest.mark.parametrize("distillation", ["pooled", "max_min", "max_attention"])
def test_joint_tiers_learn_from_one_weighted_loss(distillation):
    module, params = model(distillation=distillation, joint=True, tier1_weight=0.0)
    moved, metrics = stepped(strategy(module), params)
    np.testing.assert_allclose(metrics["loss"], metrics["loss_tier2"], rtol=1e-6)
    for name in ("dim_reduction", "tier2"):
        assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(moved[name]), jax.tree.leaves(params[name])))
    jax.tree.map(np.testing.assert_array_equal, moved["classifier"], params["classifier"])

    module, _ = model(distillation=distillation, joint=True, tier1_weight=0.25)
    _, metrics = stepped(strategy(module), params)
    np.testing.assert_allclose(metrics["loss"], 0.25 * metrics["loss_tier1"] + 0.75 * metrics["loss_tier2"], rtol=1e-6)
    clipped = stepped(strategy(module, clip_norm=1e-3), params)[0]
    way = [a - b for a, b in zip(jax.tree.leaves(clipped), jax.tree.leaves(params))]
    np.testing.assert_allclose(np.sqrt(sum(np.sum(x**2) for x in way)), 1e-3, rtol=2e-2)


@pytest.mark.full
def test_a_re_embedding_is_trained_with_tier_1():
    settings = {"name": "rrt", "feature_dim": 8, "num_heads": 2, "cross_region_heads": 2, "region_num": 2}
    module = reembedding.reembedded(model()[0], settings)
    the_strategy = strategy(module, clip_norm=1.0)
    params = jax.jit(module.init)(jax.random.key(0), BAG)["params"]
    moved = stepped(the_strategy, params)[0]
    assert jax.tree.structure(moved) == jax.tree.structure(params)
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(moved["reembed"]), jax.tree.leaves(params["reembed"])))


def test_a_checkpoint_is_a_dict_of_four_state_dicts():
    module, params = model(num_residual=1)
    flat = export_state_dict(module, params, "dtfd")
    parts: dict[str, dict[str, Any]] = {}
    for name, value in flat.items():
        entry, _, rest = name.partition(".")
        parts.setdefault(entry, {})[f"module.{rest}" if entry == "classifier" else rest] = value
    assert set(parts) == {"dim_reduction", "attention", "classifier", "att_classifier"}
    found = import_state_dict(module, parts, "dtfd")
    jax.tree.map(np.testing.assert_array_equal, found, params)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"distillation": "AFS"}, "choose one of max, max_min, max_attention, pooled"),
        ({"num_groups": 0}, r"aggregator\.num_groups=0 must be a positive whole number"),
        ({"instances_per_group": 0}, r"aggregator\.instances_per_group=0 must be a positive whole number"),
        ({"num_partitions": 1.5}, r"aggregator\.num_partitions=1.5 must be a positive whole number"),
        ({"num_residual": -1}, r"aggregator\.num_residual=-1 must be"),
        ({"tier1_weight": 1.5}, r"aggregator\.tier1_weight=1.5 must be a number in \[0, 1\]"),
        ({"dropout": 1.0}, r"number in \[0, 1\)"),
        ({"num_outputs": 1}, "at least two classes"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(fields, complaint):
    with pytest.raises(ConfigError, match=complaint):
        aggregators.create("dtfd", **{"num_outputs": 2, **fields})


def test_a_task_of_sigmoids_is_refused():
    task = Classification(("a", "b"), "binary_cross_entropy")
    with pytest.raises(ConfigError, match=r"task\.loss_name='binary_cross_entropy' does not go with DTFD"):
        TwoTiers(model()[0], task, optimizers.make(optimizers.OptimizerSettings()), Schedule())


def test_instances_that_are_images_are_refused():
    with pytest.raises(ConfigError, match="reads feature vectors"):
        model()[0].init(jax.random.key(0), BAG.replace(features=jnp.zeros((12, 4, 4))))
