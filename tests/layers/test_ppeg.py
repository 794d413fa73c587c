"""The position layer: the exact side of the square, its completion, and the convolution against plain numpy."""

from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax.layers import ppeg
from mil_jax.layers.initializers import Affine
from tests.accelerator import forms_of_accelerators

CHANNELS = 3
position_encoding = jax.jit(ppeg.position_encoding, static_argnames="min_columns")


def convolutions(*sizes: int) -> list[Affine]:
    generator = np.random.default_rng(0)
    return [
        Affine(
            jnp.asarray(generator.standard_normal((size, size, 1, CHANNELS)), jnp.float32),
            jnp.asarray(generator.standard_normal(CHANNELS), jnp.float32),
        )
        for size in sizes
    ]


def reference(image: np.ndarray, layers: list[Affine]) -> np.ndarray:
    """f + sum of depthwise convolutions of an image [H, W, D], by loops over the taps."""
    result = image.copy()
    for kernel, bias in layers:
        size = len(kernel)
        padded = np.pad(image, ((size // 2, size // 2), (size // 2, size // 2), (0, 0)))
        for i in range(size):
            for j in range(size):
                result += padded[i : i + len(image), j : j + image.shape[1]] * np.asarray(kernel[i, j, 0])
        result += np.asarray(bias)
    return result


def test_side_is_exact_around_squares():
    roots = np.array([1, 2, 3, 100, 317, 4096, 4097, 32767])
    counts = np.concatenate([roots**2, roots**2 + 1])
    sides = jax.jit(jax.vmap(ppeg.square_side))(jnp.asarray(counts, jnp.int32))
    np.testing.assert_array_equal(sides, np.concatenate([roots, roots + 1]))


@pytest.mark.parametrize("count", [1, 2, 4, 5, 9, 10, 11])
def test_square_is_completed_with_the_first_tokens(count):
    tokens = np.arange(1, 12, dtype=np.float32)[:, None]
    square = jax.jit(ppeg.complete_square)(jnp.asarray(tokens), jnp.int32(count))
    cells = int(np.ceil(np.sqrt(count))) ** 2
    expected = np.concatenate([tokens[:count], tokens[: cells - count], np.zeros((16 - cells, 1))])
    np.testing.assert_array_equal(square, expected)


@pytest.mark.parametrize("count", [1, 5, 9, 10, 16])
def test_encoding_is_the_convolution_of_the_square(count):
    layers, tokens = convolutions(7, 5, 3), np.random.default_rng(1).standard_normal((30, CHANNELS)).astype(np.float32)
    side = int(np.ceil(np.sqrt(count)))
    square = np.concatenate([tokens[:count], tokens[: side**2 - count]]).reshape(side, side, CHANNELS)
    found = position_encoding(jnp.asarray(tokens), jnp.int32(count), layers)
    np.testing.assert_allclose(found[:count], reference(square, layers).reshape(-1, CHANNELS)[:count], atol=1e-5)
    np.testing.assert_array_equal(found[count:], 0.0)


@pytest.mark.parametrize("count", [3, 10, 50])
def test_short_bags_lie_in_rows_of_at_least_min_columns(count):
    layers, tokens = convolutions(7, 3), np.random.default_rng(1).standard_normal((60, CHANNELS)).astype(np.float32)
    side = int(np.ceil(np.sqrt(count)))
    columns = max(side, 7)
    image = np.zeros((columns * columns, CHANNELS), np.float32)
    image[: side**2] = np.concatenate([tokens[:count], tokens[: side**2 - count]])
    expected = reference(image.reshape(columns, columns, CHANNELS), layers).reshape(-1, CHANNELS)[:count]
    found = position_encoding(jnp.asarray(tokens), jnp.int32(count), layers, min_columns=7)[:count]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("form", [contextlib.nullcontext, forms_of_accelerators])
def test_gradients_by_hand_are_those_of_a_dense_convolution(form):
    with form():
        _assert_gradients_are_those_of_a_dense_convolution()


def _assert_gradients_are_those_of_a_dense_convolution() -> None:
    side, channels = 5, 4
    generator = np.random.default_rng(2)
    tokens = jnp.asarray(generator.standard_normal((49, channels)), jnp.float32)
    kernel = jnp.asarray(generator.standard_normal((3, 3, channels)), jnp.float32)
    cotangent = jnp.asarray(generator.standard_normal((side * side, channels)), jnp.float32)

    def ours(tokens, kernel):
        out = ppeg.grid_convolution(tokens, jnp.int32(side * side), jnp.int32(side), kernel, 7)
        return jnp.sum(out[: side * side] * cotangent)

    def dense(tokens, kernel):
        image = tokens[: side * side].reshape(1, side, side, channels)
        out = jax.lax.conv_general_dilated(
            image,
            kernel[:, :, None],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=channels,
        )
        return jnp.sum(out.reshape(-1, channels) * cotangent)

    for found, expected in zip(
        jax.jit(jax.grad(ours, (0, 1)))(tokens, kernel),
        jax.jit(jax.grad(dense, (0, 1)))(tokens, kernel),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)
