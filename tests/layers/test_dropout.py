"""Dropout of one byte per element."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax.layers.dropout import draws, dropout, dropout_factors, hyper

KEY = jax.random.key(3)


@pytest.mark.parametrize("width", [1, 3, 4, 510])
def test_a_longer_bucket_has_the_same_prefix(width):
    short, long = dropout_factors(KEY, (10, width), 0.25), dropout_factors(KEY, (37, width), 0.25)
    np.testing.assert_array_equal(long[:10], short)


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9])
def test_the_share_dropped_is_the_rate_rounded_to_a_byte(rate):
    factors = np.asarray(dropout_factors(KEY, (1000, 400), rate))
    assert abs((factors == 0).mean() - round(rate * 256) / 256) < 4 * np.sqrt(rate * (1 - rate) / factors.size)


def test_kept_elements_are_scaled_so_that_the_expectation_is_one():
    for rate in (0.1, 0.25):
        q = round(rate * 256) / 256
        factors = np.asarray(dropout_factors(KEY, (100, 40), rate))
        assert (factors > 0).mean() > 0.5
        np.testing.assert_allclose(factors[factors > 0], 1 / (1 - q), rtol=1e-6)


def test_a_rate_of_a_quarter_is_exact():
    assert float(dropout_factors(KEY, (100, 40), 0.25).max()) == np.float32(4 / 3)


def test_a_traced_rate_gives_what_the_number_gives():
    x = jnp.ones((9, 7))
    for rate in (0.0, 0.25, 0.6):
        np.testing.assert_array_equal(jax.jit(dropout)(x, jnp.float32(rate), KEY), dropout(x, rate, KEY))


def test_replicas_may_differ_in_their_rate_under_vmap():
    x, rates = jnp.ones((9, 7)), jnp.array([0.0, 0.5])
    together = jax.vmap(lambda rate: dropout(x, rate, KEY))(rates)
    np.testing.assert_array_equal(together[0], x)
    np.testing.assert_array_equal(together[1], dropout(x, 0.5, KEY))


def test_the_gradient_passes_kept_elements_only():
    x = jnp.ones((9, 7))
    np.testing.assert_array_equal(jax.grad(lambda x: dropout(x, 0.5, KEY).sum())(x), dropout_factors(KEY, x.shape, 0.5))


class _Reader(nn.Module):
    dropout: float = 0.0

    def __call__(self, train):
        return hyper(self, "dropout", self.dropout), draws(self, "dropout", self.dropout, train)


def test_a_setting_is_read_from_the_collection_hyper_else_from_the_field():
    assert _Reader(0.1).apply({}, True) == (0.1, True)
    assert _Reader(0.1).apply({"hyper": {"dropout": 0.3}}, True) == (0.3, True)


def test_nothing_is_drawn_in_evaluation_or_at_a_static_rate_of_zero():
    assert not _Reader(0.1).apply({}, False)[1]
    assert not _Reader(0.0).apply({}, True)[1]
    assert _Reader(0.0).apply({"hyper": {"dropout": 0.0}}, True)[1]
