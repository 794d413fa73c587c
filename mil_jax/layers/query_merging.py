"""Global query merging of MHIM-MIL v2 (Tang et al. 2025, arXiv 2509.11526): k queries gather many instances into k tokens.

Z = MCA(LN(tokens), LN(Q)): multi-head cross attention, keys and values without bias, one norm for both. Keys and values of all tokens are
never formed: with few queries (Q Wq_h)(x Wk_h)' = (Q Wq_h Wk_h') x' and A (x Wv_h) = (A x) Wv_h are the same numbers for a fraction of
the cost. The queries Q are not trained: they are a moving average of Z, which the strategy updates.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from mil_jax.layers import masked
from mil_jax.layers.dropout import dropout, dropout_factors
from mil_jax.layers.initializers import AffineParameters
from mil_jax.types import Array

QUERIES = "queries"  # the parameter that is an average


class QueryMerging(nn.Module):
    """num_queries: k. num_heads, head_dim: of the attention. dropout: of its weights and of its output, in training."""

    num_queries: int
    num_heads: int = 8
    head_dim: int = 64
    dropout: float = 0.1

    @nn.compact
    def __call__(self, tokens: Array, mask: Array, train: bool = False) -> Array:
        """tokens [N, E], of which those of `mask` [N] are gathered -> [k, E]; padding must be finite. Without any: the output's bias."""
        width, inner = tokens.shape[-1], self.num_heads * self.head_dim
        norm = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="norm")
        key_value = AffineParameters(2 * inner, "xavier_normal", use_bias=False, name="key_value")(width).kernel
        to_query = AffineParameters(inner, "xavier_normal", use_bias=False, name="query")(width)
        output = AffineParameters(width, "xavier_normal", name="output")(inner)
        queries = jax.lax.stop_gradient(self.param(QUERIES, _uniform, (self.num_queries, width)))
        keys, values = key_value.reshape(width, 2, self.num_heads, self.head_dim).transpose(1, 2, 0, 3)  # [heads, E, d]
        x = norm(tokens.astype(jnp.float32))
        q = to_query(norm(queries)).reshape(-1, self.num_heads, self.head_dim)  # [k, heads, d]
        logits = jnp.einsum("khd,hed->hke", q, keys) @ x.T / math.sqrt(self.head_dim)  # [heads, k, N]
        attention = masked.softmax(logits, mask)
        if train and self.dropout > 0:
            of_weights, of_output = jax.random.split(self.make_rng("dropout"))
            factors = dropout_factors(of_weights, (len(tokens), self.num_heads * self.num_queries), self.dropout)
            attention = attention * factors.T.reshape(attention.shape)
        pooled = jnp.einsum("hke,hed->khd", attention @ x, values)
        merged = output(pooled.reshape(-1, inner))
        return dropout(merged, self.dropout, of_output) if train and self.dropout > 0 else merged


def _uniform(key: Array, shape: tuple[int, int]) -> Array:
    """As the reference draws its queries: U(-b, b), b = sqrt(6 / (768 + E))."""
    bound = math.sqrt(6 / (768 + shape[1]))
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)
