"""Nystrom attention against the formulas written out in numpy, front padding and all."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax.layers import nystrom
from mil_jax.layers.initializers import Affine

HEADS, HEAD_DIM, WIDTH, LANDMARKS, TAPS = 2, 4, 6, 5, 3
SETTINGS = {"num_landmarks": LANDMARKS, "iterations": 6}
# Compiled once for all counts of tokens.
attention = jax.jit(functools.partial(nystrom.nystrom_attention, **SETTINGS))
first_token_attention = jax.jit(functools.partial(nystrom.first_token_attention, **SETTINGS))


def random_weights(seed: int = 0) -> nystrom.NystromWeights:
    generator = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(generator.standard_normal(shape), jnp.float32)

    inner = HEADS * HEAD_DIM
    return nystrom.NystromWeights(
        normal(WIDTH, 3 * inner), Affine(normal(inner, WIDTH), normal(WIDTH)), normal(TAPS, HEADS)
    )


def tokens(count: int, bucket: int) -> jax.Array:
    x = np.zeros((bucket, WIDTH), np.float32)
    x[:count] = np.random.default_rng(count).standard_normal((count, WIDTH))
    return jnp.asarray(x)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def reference_inverse(a: np.ndarray, iterations: int) -> np.ndarray:
    z = a.swapaxes(-1, -2) / (a.sum(axis=-1).max() * a.sum(axis=-2).max())
    identity = np.eye(a.shape[-1])
    for _ in range(iterations):
        az = a @ z
        z = 0.25 * z @ (13 * identity - az @ (15 * identity - az @ (7 * identity - az)))
    return z


def reference(x: np.ndarray, weights: nystrom.NystromWeights) -> tuple[np.ndarray, np.ndarray]:
    """(output [n, D], the first token's attention [heads, n]) in float64, with zero rows in front."""
    qkv, projection, bias, residual = (
        np.asarray(array, np.float64) for array in (weights.qkv, *weights.output, weights.residual)
    )
    count = len(x)
    group = -(-count // LANDMARKS)
    padding = group * LANDMARKS - count
    padded = np.concatenate([np.zeros((padding, WIDTH)), x])
    q, k, v = (padded @ qkv).reshape(len(padded), 3, HEADS, HEAD_DIM).transpose(1, 2, 0, 3)
    q = q / np.sqrt(HEAD_DIM)
    q_marks, k_marks = (part.reshape(HEADS, LANDMARKS, group, HEAD_DIM).mean(axis=2) for part in (q, k))
    a1, a3 = softmax(q @ k_marks.swapaxes(1, 2)), softmax(q_marks @ k.swapaxes(1, 2))
    z = reference_inverse(softmax(q_marks @ k_marks.swapaxes(1, 2)), SETTINGS["iterations"])
    around = np.pad(v, ((0, 0), (TAPS // 2, TAPS // 2), (0, 0)))
    nearby = sum(residual[tap][:, None, None] * around[:, tap : tap + len(padded)] for tap in range(TAPS))
    out = (a1 @ z @ (a3 @ v) + nearby).transpose(1, 0, 2).reshape(len(padded), -1) @ projection + bias
    return out[padding:], (a1 @ z @ a3)[:, padding, padding:]


@pytest.mark.parametrize("count", [1, 4, 5, 6, 10, 23])
def test_attention_is_the_formula_with_zero_rows_in_front(count):
    weights, x = random_weights(), tokens(count, 24)
    out, first = reference(np.asarray(x[:count], np.float64), weights)
    found = attention(x, jnp.int32(count), weights)
    np.testing.assert_allclose(found[:count], out, atol=2e-4 * np.abs(out).max())
    row = first_token_attention(x, jnp.int32(count), weights)
    np.testing.assert_allclose(row[:, :count], first, atol=2e-4 * np.abs(first).max())
    np.testing.assert_array_equal(row[:, count:], 0.0)


@pytest.mark.parametrize("count", [1, 7, 24])
def test_the_first_row_alone_is_the_first_row_of_all(count):
    weights, x = random_weights(), tokens(count, 24)
    everything = attention(x, jnp.int32(count), weights)
    first = nystrom.first_token_output(x, first_token_attention(x, jnp.int32(count), weights), weights)
    assert first.shape == (1, WIDTH)
    np.testing.assert_allclose(first[0], everything[0], atol=2e-4 * np.abs(everything[0]).max())


@pytest.mark.parametrize("count", [1, 4, 5, 6, 12])
def test_landmarks_are_means_of_groups_that_count_the_zero_rows(count):
    x = tokens(count, 12)
    group = -(-count // LANDMARKS)
    padded = np.concatenate([np.zeros((group * LANDMARKS - count, WIDTH)), x[:count]])
    expected = padded.reshape(LANDMARKS, group, WIDTH).mean(axis=1)
    np.testing.assert_allclose(nystrom.landmark_means(x, jnp.int32(count), LANDMARKS), expected, atol=1e-6)


def test_gradient_of_the_landmarks_goes_to_the_tokens_of_each_group():
    count, group = 7, 2  # 3 zero rows in front
    weights = np.arange(1.0, LANDMARKS + 1)

    def total(x):
        return jnp.sum(nystrom.landmark_means(x, jnp.int32(count), LANDMARKS) * weights[:, None])

    expected = np.zeros((12, WIDTH))
    expected[:count] = (weights[(np.arange(count) + 3) // group] / group)[:, None]
    np.testing.assert_allclose(jax.grad(total)(tokens(count, 12)), expected, rtol=1e-6)


@pytest.mark.parametrize(("size", "taps"), [(1, 33), (40, 33), (200, 33), (100, 1), (97, 5)])
def test_token_convolution_is_the_cross_correlation(size, taps):
    generator = np.random.default_rng(5)
    values, kernel = generator.standard_normal((size, 3)), generator.standard_normal(taps)
    around = np.pad(values, ((taps // 2, taps // 2), (0, 0)))
    expected = sum(kernel[tap] * around[tap : tap + size] for tap in range(taps))
    found = nystrom.token_convolution(jnp.asarray(values, jnp.float32), jnp.asarray(kernel, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_no_array_has_two_axes_of_the_sequence_length():
    weights, bucket = random_weights(), 997

    def loss(x):
        return jnp.sum(nystrom.nystrom_attention(x, jnp.int32(900), weights, **SETTINGS))

    text = str(jax.make_jaxpr(jax.grad(loss))(tokens(900, bucket)))
    assert "997" in text
    assert "997,997" not in text
