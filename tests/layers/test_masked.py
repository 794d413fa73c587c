"""Masked reductions see real instances only."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax.layers import masked

MASK = jnp.array([True, True, True, False, False])
VALUES = jnp.array([[1.0, -4.0], [3.0, -2.0], [3.0, -9.0], [jnp.nan, 7.0], [jnp.inf, 8.0]])


def test_zero_padding_stops_nan_from_gradients():
    def loss(w):
        return jnp.sum((masked.zero_padding(VALUES, MASK) @ w) ** 2)

    assert np.isfinite(jax.grad(loss)(jnp.ones((2, 1)))).all()


def test_softmax_equals_that_of_the_bare_scores_and_is_zero_on_padding():
    scores = jnp.array([[0.3, -2.0, 5.0, jnp.nan, 900.0]])
    weights = masked.softmax(scores, MASK)
    np.testing.assert_allclose(weights[:, :3], jax.nn.softmax(scores[:, :3], axis=-1), rtol=1e-6)
    np.testing.assert_array_equal(weights[:, 3:], 0.0)


def test_softmax_gradient_equals_that_of_the_bare_scores():
    scores, cotangent = jnp.array([0.3, -2.0, 5.0, 1e30, -jnp.inf]), jnp.arange(5.0)
    gradient = jax.grad(lambda s: masked.softmax(s, MASK) @ cotangent)(scores)
    expected = jax.grad(lambda s: jax.nn.softmax(s) @ cotangent[:3])(scores[:3])
    np.testing.assert_allclose(gradient[:3], expected, rtol=1e-5)
    np.testing.assert_array_equal(gradient[3:], 0.0)


def test_softmax_of_a_bag_without_instances_is_zero_with_zero_gradient():
    scores, nothing = jnp.array([1.0, jnp.nan]), jnp.zeros(2, bool)
    np.testing.assert_array_equal(masked.softmax(scores, nothing), 0.0)
    np.testing.assert_array_equal(jax.grad(lambda s: masked.softmax(s, nothing)[0])(scores), 0.0)


def test_softmax_is_float32_for_half_precision_scores():
    assert masked.softmax(jnp.ones(5, jnp.bfloat16), MASK).dtype == jnp.float32


def test_mean_divides_by_the_number_of_real_instances():
    mean = masked.mean(masked.zero_padding(VALUES, MASK), MASK)
    np.testing.assert_allclose(mean, [7.0 / 3.0, -5.0], rtol=1e-6)


def test_argmax_takes_the_first_of_equals_and_never_padding():
    np.testing.assert_array_equal(masked.argmax(VALUES, MASK), [1, 1])
