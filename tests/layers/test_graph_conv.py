"""The softmax over what a node receives, against the dense form, with its gradients."""

from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax.layers.graph_conv import make_graph, softmax_aggregation
from tests.accelerator import forms_of_accelerators

N, PADDED, K, D = 13, 16, 4, 5


def lists(rng: np.random.Generator) -> np.ndarray:
    """Random lists with gaps; nobody lists node 2, many list node 5; garbage behind the nodes."""
    found = np.full((PADDED, K), 5, np.int32)
    for node in range(N):
        others = [other for other in rng.permutation(N) if other not in (node, 2, 5)]
        found[node] = [5 if node != 5 else 4, *others[: K - 1]]
        found[node, 1 + rng.integers(K - 1)] = -1
    return found


def dense(messages: np.ndarray, temperature: float, incoming: np.ndarray) -> np.ndarray:
    """float64. incoming[u, v]: whether v sends to u."""
    found = np.zeros_like(messages)
    for node in np.flatnonzero(incoming.any(axis=1)):
        received = messages[incoming[node]]
        weights = np.exp(temperature * received - np.max(temperature * received, axis=0))
        found[node] = np.sum(weights * received, axis=0) / np.sum(weights, axis=0)
    return found


@pytest.mark.parametrize("form", [contextlib.nullcontext, forms_of_accelerators])
@pytest.mark.parametrize(("temperature", "scale"), [(0.7, 1.0), (-1.5, 1.0), (1.0, 300.0)])
def test_aggregate_and_gradients_are_those_of_the_dense_form(temperature, scale, form):
    """Also where the exponentials of a whole bag would underflow."""
    with form():
        _assert_that_of_the_dense_form(temperature, scale)


def _assert_that_of_the_dense_form(temperature: float, scale: float) -> None:
    rng = np.random.default_rng(0)
    neighbors = lists(rng)
    incoming = np.zeros((PADDED, PADDED), bool)
    for node in range(N):
        incoming[[target for target in neighbors[node] if target >= 0], node] = True
    messages, cotangent = scale * rng.random((PADDED, D)), rng.standard_normal((PADDED, D))
    graph = make_graph(jnp.asarray(neighbors), jnp.arange(PADDED) < N)

    def loss(messages, temperature):
        found = softmax_aggregation(messages, temperature, graph)
        return jnp.sum(found * cotangent), found

    arguments = jnp.asarray(messages, jnp.float32), jnp.float32(temperature)
    (_, found), (to_messages, to_temperature) = jax.value_and_grad(loss, (0, 1), has_aux=True)(*arguments)
    np.testing.assert_allclose(found, dense(messages, temperature, incoming), rtol=0, atol=1e-5 * scale)
    assert (np.asarray(found)[[2, *range(N, PADDED)]] == 0).all()

    def slope(change, step):
        sides = [dense(messages + sign * change[0], temperature + sign * change[1], incoming) for sign in (1, -1)]
        return np.sum((sides[0] - sides[1]) * cotangent) / (2 * step)

    expected = np.zeros_like(messages)
    for place in np.ndindex(messages.shape):
        change = np.zeros_like(messages)
        change[place] = 1e-5
        expected[place] = slope((change, 0.0), 1e-5)
    np.testing.assert_allclose(to_messages, expected, rtol=0, atol=1e-3 * np.abs(expected).max())
    np.testing.assert_allclose(to_temperature, slope((0.0, 1e-5), 1e-5), rtol=1e-3)
