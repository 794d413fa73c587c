"""The pseudo-inverse and its gradient against the reference's iteration written out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax.layers import pseudo_inverse
from tests.layers.test_nystrom import reference_inverse, softmax

apply_pseudo_inverse = jax.jit(pseudo_inverse.apply_pseudo_inverse, static_argnames=("iterations", "transposed"))


@pytest.mark.parametrize("iterations", [1, 2, 6])
@pytest.mark.parametrize("sharpness", [0.01, 1.0, 10.0])
@pytest.mark.parametrize("columns", [1, 6])  # few are treated apart
def test_pseudo_inverse_is_the_iteration_of_the_reference(iterations, sharpness, columns):
    generator = np.random.default_rng(3)
    a = softmax(sharpness * generator.standard_normal((3, 16, 16)))
    w = generator.standard_normal((3, 16, columns))
    z = reference_inverse(a, iterations)
    for transposed in (False, True):
        found = apply_pseudo_inverse(jnp.asarray(a), jnp.asarray(w), iterations=iterations, transposed=transposed)
        expected = (z.swapaxes(1, 2) if transposed else z) @ w
        np.testing.assert_allclose(found, expected, atol=3e-4 * np.abs(expected).max())


@pytest.mark.parametrize("columns", [1, 6])
def test_gradient_of_the_pseudo_inverse_is_that_of_the_iteration(columns):
    generator = np.random.default_rng(4)
    logits = jnp.asarray(generator.standard_normal((2, 8, 8)), jnp.float32)
    w = jnp.asarray(generator.standard_normal((2, 8, columns)), jnp.float32)
    cotangent = jnp.asarray(generator.standard_normal((2, 8, columns)), jnp.float32)

    def ours(logits, w):
        return jnp.sum(pseudo_inverse.apply_pseudo_inverse(jax.nn.softmax(logits), w, 6) * cotangent)

    def plain(logits, w):
        a = jax.nn.softmax(logits)
        z = a.mT / jnp.max(jnp.sum(a, axis=-2))
        identity = jnp.eye(8)
        for _ in range(6):
            az = a @ z
            z = 0.25 * z @ (13 * identity - az @ (15 * identity - az @ (7 * identity - az)))
        return jnp.sum((z @ w) * cotangent)

    for found, expected in zip(
        jax.jit(jax.grad(ours, (0, 1)))(logits, w), jax.jit(jax.grad(plain, (0, 1)))(logits, w), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
