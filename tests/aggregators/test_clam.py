"""What CLAM gives beside the laws (tests/laws) and the references' numbers (tests/parity)."""

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
from mil_jax.tasks.classification import Classification
from mil_jax.tasks.regression import Regression

TASK = Classification(("a", "b", "c"))
BAG = Bag(jnp.asarray(np.random.default_rng(0).standard_normal((12, 6)), jnp.float32), jnp.arange(12) < 10)


@functools.cache
def model(name: str = "clam_sb", num_outputs: int = 3, **fields: Any) -> tuple[Any, Any]:
    settings = {"feature_dim": 8, "attention_dim": 4, "num_sampled": 3, **fields}
    module = aggregators.create(name, num_outputs, **settings)
    return module, jax.jit(module.init)(jax.random.key(0), BAG)["params"]


def batch(module: Any, params: Any, *bags: Bag, **variables: Any) -> Any:
    apply = jax.jit(module.apply)
    predictions = [apply({"params": params, **variables}, bag) for bag in bags]
    return jax.tree.map(lambda *x: jnp.stack(x), *predictions)


@pytest.mark.parametrize(("name", "attention", "embedding"), [("clam_sb", (12,), (8,)), ("clam_mb", (3, 12), (3, 8))])
def test_attention_sums_to_one_for_each_branch(name, attention, embedding):
    prediction = batch(*model(name), BAG)
    assert prediction.logits.shape == (1, 3)
    assert prediction.attention.shape == (1, *attention)
    assert prediction.embedding.shape == (1, *embedding)
    np.testing.assert_allclose(prediction.attention.sum(axis=-1), 1.0, rtol=1e-6)


def test_a_class_of_several_branches_reads_its_own_embedding_only():
    module, params = model("clam_mb")
    changed = {
        **params,
        "attention_w": {**params["attention_w"], "kernel": params["attention_w"]["kernel"].at[:, 0].set(9.0)},
    }
    before, after = batch(module, params, BAG).logits[0], batch(module, changed, BAG).logits[0]
    assert before[0] != after[0]
    np.testing.assert_array_equal(before[1:], after[1:])


def test_the_most_and_least_attended_instances_are_chosen_by_raw_score():
    prediction = batch(*model(), BAG)
    order = np.argsort(-np.asarray(prediction.scores[0, :10]), kind="stable")
    np.testing.assert_array_equal(prediction.aux["top"][0, 0], order[:3])
    np.testing.assert_array_equal(prediction.aux["bottom"][0, 0], order[::-1][:3])


def test_scores_that_underflow_in_the_softmax_still_have_an_order():
    module, params = model()
    steep = {**params, "attention_w": jax.tree.map(lambda x: 1000 * x, params["attention_w"])}
    prediction = batch(module, steep, BAG)
    lowest = np.argsort(np.asarray(prediction.scores[0, :10]))[:3]
    assert (np.asarray(prediction.attention[0])[lowest] == 0).all()
    np.testing.assert_array_equal(prediction.aux["bottom"][0, 0], lowest)


def test_with_fewer_instances_than_k_all_are_used_once_for_each_label():
    module, params = model(num_sampled=8, instance_loss="cross_entropy")
    bag = Bag(BAG.features, jnp.arange(12) < 2)
    prediction = batch(module, params, bag)
    top, bottom = (np.asarray(prediction.aux[name][0, 1, :2]) for name in ("top_logits", "bottom_logits"))
    log_p = jax.nn.log_softmax(np.concatenate([top, bottom]))
    expected = -np.mean([log_p[0, 1], log_p[1, 1], log_p[2, 0], log_p[3, 0]])
    np.testing.assert_allclose(module.instance_loss_value(prediction, jnp.array([1]), jnp.ones(1)), expected, rtol=1e-5)


def test_k_may_exceed_the_bucket():
    module, params = model(num_sampled=50)
    assert np.isfinite(module.training_loss(TASK, batch(module, params, BAG), jnp.array([1]), jnp.ones(1)))


def test_the_bag_weight_divides_the_loss_and_may_be_numeric():
    module, params = model()
    hyper = {"bag_weight": jnp.float32(0.25)}
    prediction = batch(module, params, BAG, hyper=hyper)
    targets, weights = jnp.array([2]), jnp.ones(1)
    bag = module.bag_loss_value(TASK, prediction, targets, weights)
    instance = module.instance_loss_value(prediction, targets, weights)
    found = module.training_loss(TASK, prediction, targets, weights)
    np.testing.assert_allclose(found, 0.25 * bag + 0.75 * instance, rtol=1e-6)


def test_without_an_instance_loss_the_bag_loss_is_taken_whole():
    module, params = model(instance_loss="none")
    prediction, targets, weights = batch(module, params, BAG), jnp.array([2]), jnp.ones(1)
    assert module.training_loss(TASK, prediction, targets, weights) == TASK.loss(prediction, targets, weights)


def test_an_empty_place_and_an_unlabelled_bag_do_not_count():
    module, params = model(subtyping=True)
    three = batch(module, params, BAG, BAG.replace(mask=jnp.zeros(12, bool)), BAG)
    one = batch(module, params, BAG)
    found = module.training_loss(TASK, three, jnp.array([1, 0, -1]), jnp.array([1.0, 0.0, 1.0]))
    np.testing.assert_allclose(found, module.training_loss(TASK, one, jnp.array([1]), jnp.ones(1)), rtol=1e-6)


def test_multi_hot_targets_label_the_instances_of_every_class_present():
    module, params = model(instance_loss="cross_entropy")
    prediction, weights = batch(module, params, BAG), jnp.ones(1)
    both = module.instance_loss_value(prediction, jnp.array([[1.0, 0.0, 1.0]]), weights)
    single = [module.instance_loss_value(prediction, jnp.array([c]), weights) for c in (0, 2)]
    np.testing.assert_allclose(both, sum(single), rtol=1e-6)


def test_one_output_stands_for_the_positive_class_of_two():
    module, params = model(num_outputs=1)
    prediction, weights = batch(module, params, BAG), jnp.ones(1)
    assert module.instance_loss_value(prediction, jnp.array([0]), weights) == 0.0
    assert module.instance_loss_value(prediction, jnp.array([1]), weights) > 0.0


def test_targets_that_are_no_classes_are_refused():
    module, params = model()
    with pytest.raises(ConfigError, match="instance_loss='none'"):
        module.instance_loss_value(batch(module, params, BAG), jnp.array([0.5]), jnp.ones(1))
    numbers = Regression(("a", "b", "c"), center=np.zeros(3), spread=np.ones(3))  # as many as outputs
    with pytest.raises(ConfigError, match="instance_loss='none'"):
        module.training_loss(numbers, batch(module, params, BAG), jnp.ones((1, 3)), jnp.ones(1))


def test_images_are_refused():
    with pytest.raises(ConfigError, match="the bag has the shape"):
        model()[0].init(jax.random.key(0), BAG.replace(features=jnp.zeros((12, 2, 2))))


@pytest.mark.parametrize(
    ("name", "num_outputs", "fields", "complaint"),
    [
        ("clam_mb", 1, {}, "needs at least two outputs, not 1; use clam_sb"),
        ("clam_sb", 2, {"num_sampled": 0}, "positive whole number"),
        ("clam_sb", 2, {"instance_loss": "hinge"}, "choose one of svm, cross_entropy, none"),
        ("clam_sb", 2, {"bag_loss": "ce"}, "choose one of task, svm"),
        ("clam_sb", 1, {"bag_loss": "svm"}, "at least two outputs"),
        ("clam_sb", 2, {"bag_weight": 1.5}, "choose at most 1"),
        ("clam_sb", 2, {"bag_weight": -0.5}, "not negative"),
        ("clam_sb", 2, {"instance_weight": "half"}, "not negative"),
        ("clam_sb", 2, {"pre_feature_dim": -1}, "positive whole number"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(name, num_outputs, fields, complaint):
    with pytest.raises(ConfigError, match=complaint):
        aggregators.create(name, num_outputs, **fields)
