"""Attention of the first tokens alone, and dropout of an attention whose two axes are instances."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax.layers.initializers import Affine
from mil_jax.layers.transformer import attention_factors, self_attention


def test_dropout_of_attention_is_the_same_in_a_longer_bucket():
    short, long = (attention_factors(jax.random.key(0), size, 3, 0.25) for size in (7, 12))
    np.testing.assert_array_equal(long[:, :7, :7], short)
    assert set(np.unique(long)) == {0.0, np.float32(4 / 3)}
    assert np.mean(np.asarray(attention_factors(jax.random.key(1), 64, 3, 0.25)) == 0) == pytest.approx(0.25, abs=0.02)


def test_heads_rows_and_columns_are_dropped_independently():
    factors = np.asarray(attention_factors(jax.random.key(0), 24, 2, 0.5)) > 0
    assert (factors[0] != factors[1]).any()
    assert (factors[0] != factors[0].T).any()


def test_the_first_tokens_alone_are_those_of_all():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(9, 8)), jnp.float32)
    qkv = Affine(jnp.asarray(rng.normal(size=(8, 24)), jnp.float32), jnp.asarray(rng.normal(size=24), jnp.float32))
    mask = jnp.arange(9) < 6
    every, attention = self_attention(x, qkv, 2, mask)
    first, row = self_attention(x, qkv, 2, mask, rows=2)
    np.testing.assert_allclose(first, every[:2], atol=1e-5)
    np.testing.assert_allclose(row, attention[:, :2], atol=1e-6)
    assert not np.asarray(attention[..., 6:]).any()
