"""Losses for rare labels, and unknown labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax.bags import Prediction
from mil_jax.errors import ConfigError
from mil_jax.tasks import MultiLabel
from mil_jax.tasks.losses import binary_asymmetric, binary_cross_entropy, binary_focal


def invented(number: int = 40, labels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    targets = (rng.random((number, labels)) < 0.3).astype(np.float32)
    targets[rng.random(targets.shape) < 0.2] = np.nan
    return 2 * rng.normal(size=(number, labels)).astype(np.float32), targets


@pytest.mark.parametrize("loss_name", MultiLabel.losses)
def test_the_validation_loss_is_the_loss_of_training(loss_name):
    task, (logits, targets) = MultiLabel(("a", "b", "c"), loss_name), invented()
    loss = task.loss(Prediction(logits=jnp.asarray(logits)), jnp.asarray(targets), jnp.ones(40))
    assert task.monitor("val_loss", logits, targets) == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize("loss_name", MultiLabel.losses)
def test_an_unknown_label_has_no_gradient_and_leaves_the_others(loss_name):
    task = MultiLabel(("a", "b"), loss_name)
    logits, targets = jnp.array([[1.0, np.nan], [2.0, -1.0]]), jnp.array([[1.0, np.nan], [np.nan, np.nan]])
    logits = jnp.nan_to_num(logits, nan=5.0)
    gradient = jax.grad(lambda x: task.loss(Prediction(logits=x), targets, jnp.ones(2)))(logits)
    assert float(gradient[0, 0]) != 0
    assert (np.asarray(gradient).ravel()[1:] == 0).all()


def test_focal_and_asymmetric_losses_are_the_cross_entropy_without_their_settings():
    logits, targets = invented()
    y = np.nan_to_num(targets)
    plain = binary_cross_entropy(logits, y)
    np.testing.assert_allclose(binary_focal(logits, y, 0.0), plain, rtol=1e-5)
    np.testing.assert_allclose(binary_asymmetric(logits, y, 0.0, 0.0, 0.0), plain, rtol=1e-5, atol=1e-6)


def test_easy_negatives_cost_nothing_in_the_asymmetric_loss():
    def loss(x: jax.Array) -> jax.Array:
        return binary_asymmetric(x, jnp.zeros(()), 1.0, 4.0, 0.05)

    value, gradient = jax.value_and_grad(loss)(jnp.float32(-4.0))  # p = 0.018
    assert (float(value), float(gradient)) == (0.0, 0.0)
    p = 1 / (1 + np.exp(1.0)) - 0.05
    assert float(loss(jnp.float32(-1.0))) == pytest.approx(-(p**4) * np.log(1 - p), rel=1e-5)


def test_one_column_is_no_multilabel_task():
    with pytest.raises(ConfigError, match="names a column twice"):
        MultiLabel(("a", "a"))
