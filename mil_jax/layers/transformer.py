"""Transformer layers over one sequence of tokens [T, C]: multi-head attention, layer norm, pre-norm and post-norm blocks.

Modules declare parameters, functions of them do the arithmetic (`vmap` adds a batch). Softmaxes and norms are float32 whatever the type
of the tokens. The post-norm block is PyTorch's `TransformerEncoderLayer`, the pre-norm one that of vision transformers.
"""

from __future__ import annotations

from functools import cache, partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mil_jax.layers import masked
from mil_jax.layers.dropout import dropout, dropout_factors
from mil_jax.layers.initializers import Affine, AffineParameters
from mil_jax.types import Array


class Norm(NamedTuple):
    """Scale and bias [C] of a layer norm."""

    scale: Array
    bias: Array

    def __call__(self, x: Array, epsilon: float) -> Array:
        """x [..., C] -> the same shape and type."""
        wide = x.astype(jnp.float32)
        centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + epsilon)
        return (normed * self.scale + self.bias).astype(x.dtype)


class NormParameters(nn.Module):
    """Declares `scale` and `bias`; called with the width."""

    @nn.compact
    def __call__(self, width: int) -> Norm:
        return Norm(
            self.param("scale", nn.initializers.ones, (width,)), self.param("bias", nn.initializers.zeros, (width,))
        )


class Block(NamedTuple):
    """One transformer layer: queries, keys and values side by side [C, 3 C], projection, feed-forward layers, two norms.

    scale_1, scale_2: factors [C] of the two branches (layer scale), or None. Where `expand` makes two values for each that `contract`
    reads, the feed-forward layers are SwiGLU: silu(first half) * second half.
    """

    norm_1: Norm
    qkv: Affine
    projection: Affine
    norm_2: Norm
    expand: Affine
    contract: Affine
    scale_1: Array | None = None
    scale_2: Array | None = None

    def feed_forward(self, x: Array) -> Array:
        """x [T, C] -> [T, C], of the second branch of vision transformers."""
        hidden = self.expand(x)
        if self.expand.kernel.shape[-1] == self.contract.kernel.shape[-2]:
            return self.contract(jax.nn.gelu(hidden, approximate=False))
        gate, value = jnp.split(hidden, 2, axis=-1)
        return self.contract(jax.nn.silu(gate) * value)


class BlockParameters(nn.Module):
    """Declares the parameters of a block. Called with the width C.

    hidden_dim: of the feed-forward layers. gated: SwiGLU. layer_scale: with factors on the branches, which begin at 1e-5.
    """

    hidden_dim: int
    initializer: str = "torch"
    qkv_initializer: str = "xavier_uniform"
    gated: bool = False
    layer_scale: bool = False

    @nn.compact
    def __call__(self, width: int) -> Block:
        affine = partial(AffineParameters, initializer=self.initializer)

        def scale(name: str) -> Array | None:
            return self.param(name, nn.initializers.constant(1e-5), (width,)) if self.layer_scale else None

        return Block(
            NormParameters(name="norm_1")(width),
            AffineParameters(3 * width, self.qkv_initializer, name="qkv")(width),
            affine(width, name="projection")(width),
            NormParameters(name="norm_2")(width),
            affine(self.hidden_dim * (2 if self.gated else 1), name="expand")(width),
            affine(width, name="contract")(self.hidden_dim),
            scale("scale_1"),
            scale("scale_2"),
        )


def self_attention(
    x: Array,
    qkv: Affine,
    num_heads: int,
    key_mask: Array | None = None,
    rows: int | None = None,
    factors: Array | None = None,
) -> tuple[Array, Array]:
    """Softmax attention of the first `rows` tokens (None: all) over all tokens x [T, C] -> ([rows, C], [heads, rows, T]).

    qkv: [C, 3 C], in the order q, k, v, each by heads. key_mask: [T], tokens that may be attended to. factors: [heads, rows, T], of
    the attention's dropout; the attention returned is the one before it.
    """
    width = x.shape[-1]
    head = width // num_heads

    def heads(tokens: Array, first: int, last: int) -> Array:
        columns = slice(first * width, last * width)
        part = Affine(qkv.kernel[:, columns], None if qkv.bias is None else qkv.bias[columns])
        return part(tokens).reshape(len(tokens), last - first, num_heads, head)

    if rows is None:
        q, k, v = jnp.moveaxis(heads(x, 0, 3), 1, 0)
    else:
        q, (k, v) = heads(x[:rows], 0, 1)[:, 0], jnp.moveaxis(heads(x, 1, 3), 1, 0)
    scores = jnp.einsum("qhd,khd->hqk", q * head**-0.5, k, preferred_element_type=jnp.float32)
    attention = jax.nn.softmax(scores) if key_mask is None else masked.softmax(scores, key_mask)
    weights = attention if factors is None else attention * factors
    mixed = jnp.einsum("hqk,khd->qhd", weights.astype(v.dtype), v)
    return mixed.reshape(len(q), width), attention


def pre_norm_block(
    block: Block,
    x: Array,
    *,
    num_heads: int,
    epsilon: float,
    key_mask: Array | None = None,
    rows: int | None = None,
    branch_factor: Array | float = 1.0,
) -> tuple[Array, Array]:
    """x [T, C] -> (the first `rows` tokens behind the block, their attention [heads, rows, T]).

    branch_factor: of both residual branches, for stochastic depth.
    """
    first, second = (
        branch_factor if scale is None else branch_factor * scale for scale in (block.scale_1, block.scale_2)
    )
    mixed, attention = self_attention(block.norm_1(x, epsilon), block.qkv, num_heads, key_mask, rows)
    x = x[:rows] + first * block.projection(mixed)
    return x + second * block.feed_forward(block.norm_2(x, epsilon)), attention


def post_norm_block(
    block: Block, x: Array, mask: Array, *, num_heads: int, epsilon: float, rate: Array | float, key: Array | None
) -> Array:
    """x [N, C] -> [N, C], attention over the real rows alone. With a key, `rate` is dropped out of attention, branches and hidden layer."""

    def dropped(x: Array, number: int) -> Array:
        return x if key is None else dropout(x, rate, jax.random.fold_in(key, number))

    factors = None if key is None else attention_factors(jax.random.fold_in(key, 0), len(x), num_heads, rate)
    mixed, _ = self_attention(x, block.qkv, num_heads, mask, factors=factors)
    x = block.norm_1(x + dropped(block.projection(mixed), 1), epsilon)
    hidden = dropped(jax.nn.relu(block.expand(x)), 2)
    return block.norm_2(x + dropped(block.contract(hidden), 3), epsilon)


def attention_factors(key: Array, num_tokens: int, num_heads: int, rate: Array | float) -> Array:
    """Dropout factors [heads, N, N] of an attention whose both axes are instances; a longer bucket has the same upper left corner."""
    drawn = dropout_factors(key, (num_tokens**2, num_heads), rate)
    return jnp.moveaxis(drawn[_shells(num_tokens)], -1, 0)


@cache
def _shells(size: int) -> np.ndarray:
    """int32 [size, size]: numbers of the pairs (i, j), shell after shell of equal max(i, j), so that a larger square only adds some."""
    i, j = np.indices((size, size))
    shell = np.maximum(i, j)
    return (shell * (shell + 1) + j - i).astype(np.int32)
