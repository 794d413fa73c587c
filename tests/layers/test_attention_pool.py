"""Attention pooling against its formula."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax.layers.attention_pool import attention_pool, attention_scores, branch_scores
from mil_jax.layers.initializers import Affine
from tests.accelerator import forms_of_accelerators

GENERATOR = np.random.default_rng(0)
H = GENERATOR.standard_normal((6, 5)).astype(np.float32)


def _layer(inputs: int, outputs: int, bias: bool) -> Affine:
    kernel = GENERATOR.standard_normal((inputs, outputs)).astype(np.float32)
    return Affine(jnp.asarray(kernel), jnp.asarray(GENERATOR.standard_normal(outputs), jnp.float32) if bias else None)


@pytest.mark.parametrize("bias", [True, False])
def test_plain_scores_follow_the_formula(bias):
    v, w = _layer(5, 4, bias), _layer(4, 1, bias)
    expected = np.tanh(v(H)) @ w.kernel[:, 0] + (w.bias if bias else 0.0)
    np.testing.assert_allclose(attention_scores(H, v, w), expected, rtol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_gated_scores_follow_the_formula(bias):
    v, u, w = _layer(5, 4, bias), _layer(5, 4, bias), _layer(4, 1, bias)
    expected = (np.tanh(v(H)) * jax.nn.sigmoid(u(H))) @ w.kernel[:, 0] + (w.bias if bias else 0.0)
    np.testing.assert_allclose(attention_scores(H, v, w, u), expected, rtol=1e-5)


@pytest.mark.parametrize("activation", [jnp.tanh, jax.nn.relu])
@pytest.mark.parametrize("branches", [1, 3])
def test_both_forms_have_the_same_scores_and_gradients(branches, activation):
    v, u, w = _layer(5, 4, True), _layer(5, 4, True), _layer(4, branches, True)
    cotangent = jnp.asarray(GENERATOR.standard_normal((6, branches)), jnp.float32)
    settings = {"activation": activation, "dropout_rate": 0.25, "dropout_key": jax.random.key(1)}

    def found() -> tuple[object, object]:
        def total(h, v, u, w):
            return jnp.sum(branch_scores(h, v, w, u, **settings) * cotangent)

        return branch_scores(jnp.asarray(H), v, w, u, **settings), jax.grad(total, (0, 1, 2, 3))(
            jnp.asarray(H), v, u, w
        )

    expected = found()
    with forms_of_accelerators():
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found(), expected)


def test_the_branches_of_the_gated_form_are_dropped_out_independently():
    v, u, w = _layer(5, 400, False), _layer(5, 400, False), Affine(jnp.ones((400, 1)), None)
    ones = jnp.ones((50, 5))
    scores = attention_scores(ones, v, w, u, dropout_rate=0.5, dropout_key=jax.random.key(0))
    value = np.tanh(v(ones)) * jax.nn.sigmoid(u(ones))  # kept where both branches are: a quarter, scaled by 4
    second_moment = 16 * 0.25 * np.sum(value[0] ** 2) - np.sum(value[0] ** 2)
    assert abs(np.std(scores) / np.sqrt(second_moment) - 1) < 0.3


def test_scores_of_half_precision_features_are_float32():
    v, w = _layer(5, 4, True), _layer(4, 1, True)
    half = Affine(*(x.astype(jnp.bfloat16) for x in v)), Affine(*(x.astype(jnp.bfloat16) for x in w))
    assert attention_scores(jnp.asarray(H, jnp.bfloat16), *half).dtype == jnp.float32


def test_pooling_is_the_weighted_mean():
    a = jax.nn.softmax(jnp.arange(6.0))
    np.testing.assert_allclose(attention_pool(a, H), (np.asarray(a)[:, None] * H).sum(0), rtol=1e-5)
