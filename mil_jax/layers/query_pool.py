"""Pooling of tokens by one learned query: z = norm(W_o sum_t softmax(q K)_t V), the head of CONCH v1.5 (an attentional pooler of CoCa,
Yu et al. 2022, with one query).
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mil_jax.layers.initializers import Affine, AffineParameters
from mil_jax.layers.transformer import Norm, NormParameters
from mil_jax.types import Array

EPSILON = 1e-5


class QueryPool(NamedTuple):
    """query: [1, E]. to_key_value: [C, 2 E], keys first. Layers have no bias."""

    query: Array
    norm_query: Norm
    norm_tokens: Norm
    to_query: Affine
    to_key_value: Affine
    to_output: Affine
    norm: Norm

    def __call__(self, tokens: Array, num_heads: int) -> Array:
        """tokens [T, C] -> [E]."""
        width = self.query.shape[-1]
        query = (
            self.to_query(self.norm_query(self.query, EPSILON)).reshape(num_heads, -1) * (width // num_heads) ** -0.5
        )
        keys, values = jnp.split(self.to_key_value(self.norm_tokens(tokens, EPSILON)), 2, axis=-1)
        keys, values = (x.reshape(len(tokens), num_heads, -1) for x in (keys, values))
        scores = jnp.einsum("hd,thd->ht", query, keys, preferred_element_type=jnp.float32)
        mixed = jnp.einsum("ht,thd->hd", jax.nn.softmax(scores).astype(values.dtype), values)
        return self.norm(self.to_output(mixed.reshape(width)), EPSILON)


class QueryPoolParameters(nn.Module):
    """Declares the parameters; called with the tokens' width C. width: E, of the query and the output."""

    width: int

    @nn.compact
    def __call__(self, tokens_width: int) -> QueryPool:
        def layer(name: str, inputs: int, outputs: int) -> Affine:
            return AffineParameters(outputs, use_bias=False, name=name)(inputs)

        return QueryPool(
            self.param("query", nn.initializers.normal(1.0), (1, self.width)),
            NormParameters(name="norm_query")(self.width),
            NormParameters(name="norm_tokens")(tokens_width),
            layer("to_query", self.width, self.width),
            layer("to_key_value", tokens_width, 2 * self.width),
            layer("to_output", self.width, self.width),
            NormParameters(name="norm")(self.width),
        )
