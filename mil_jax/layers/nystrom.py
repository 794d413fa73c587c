"""Nystrom attention (Xiong et al. 2021, eq. 14 and 15) as lucidrains/nystrom-attention and TransMIL compute it, for a dynamic length.

A1 Z A3 V + conv(V): A1, A3 are softmaxes between tokens and m landmarks (means of l consecutive tokens), Z is an iterated
pseudo-inverse of the landmarks' A2. The reference puts `pad` zero rows in front so that m divides the length; they shift the groups
and are keys in A3. Here they are never built: `landmark_means` counts them and the softmax of A3 gains pad * exp(0). The maps [S, m] of
the heads are recomputed in the backward pass, and on a CPU the heads are taken one after another, so that memory is linear in S with a
small factor.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mil_jax.layers import backend
from mil_jax.layers.initializers import Affine
from mil_jax.layers.pseudo_inverse import apply_pseudo_inverse
from mil_jax.types import Array

_BLOCK = 96  # tokens that one matrix product of the residual convolution covers


class NystromWeights(NamedTuple):
    """qkv: [D, 3 * heads * d], queries, keys and values side by side, each head by head, no bias. output: [heads * d, D].
    residual: [K, heads], one kernel over the tokens per head, K odd.
    """

    qkv: Array
    output: Affine
    residual: Array

    @property
    def num_heads(self) -> int:
        return self.residual.shape[1]

    @property
    def head_dim(self) -> int:
        return self.output.kernel.shape[0] // self.num_heads


def nystrom_attention(
    x: Array, num_tokens: Array, weights: NystromWeights, *, num_landmarks: int, iterations: int
) -> Array:
    """Attention over the first `num_tokens` rows of x [S, D], the others being zero -> [S, D], arbitrary in those rows."""
    padding = front_padding(num_tokens, num_landmarks)
    query_marks, key_marks, similarity = landmarks(x, num_tokens, weights, num_landmarks)
    queries, keys, values = _by_head(x @ weights.qkv, 3, weights.num_heads)  # [heads, S, d] each

    @jax.checkpoint
    def gather_and_convolve(head: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        marks, keys, values, taps = head
        return attend_with_padding(marks, keys, values, num_tokens, padding), token_convolution(values, taps)

    @jax.checkpoint
    def spread(head: tuple[Array, Array, Array]) -> Array:
        queries, marks, mixed = head
        return attend(queries, marks, mixed)

    pooled, nearby = _each_head(
        gather_and_convolve, (query_marks, keys, values, weights.residual.T)
    )  # A3 V [heads, m, d]
    mixed = apply_pseudo_inverse(similarity, pooled, iterations).astype(x.dtype)  # Z A3 V [heads, m, d]
    attended = _each_head(spread, (queries, key_marks, mixed))
    return weights.output((attended + nearby).transpose(1, 0, 2).reshape(len(x), -1))


def first_token_attention(
    x: Array, num_tokens: Array, weights: NystromWeights, *, num_landmarks: int, iterations: int
) -> Array:
    """The first token's row of A1 Z A3, per head: [heads, S], 0 behind `num_tokens`; may be negative, does not sum to 1."""
    heads, inner = weights.num_heads, weights.output.kernel.shape[0]
    padding = front_padding(num_tokens, num_landmarks)
    query_marks, key_marks, similarity = landmarks(x, num_tokens, weights, num_landmarks)
    (query,) = _by_head(x[:1] @ weights.qkv[:, :inner], 1, heads)  # [heads, 1, d]
    (keys,) = _by_head(x @ weights.qkv[:, inner : 2 * inner], 1, heads)
    logits = jnp.einsum("hid,hmd->hmi", query, key_marks) / math.sqrt(weights.head_dim)
    # (A1 Z)' of the first token [heads, m, 1]
    row = apply_pseudo_inverse(similarity, jax.nn.softmax(logits, axis=1), iterations, transposed=True)

    @jax.checkpoint
    def head_row(head: tuple[Array, Array, Array]) -> Array:
        marks, keys, row = head
        exponentials, total = _exponentials(marks, keys, num_tokens, padding)
        return (row / total)[:, 0] @ exponentials

    return _each_head(head_row, (query_marks, keys, row))


def first_token_output(x: Array, attention: Array, weights: NystromWeights) -> Array:
    """The first row [1, D] of `nystrom_attention` from `first_token_attention` [heads, S].

    Values are linear in x: it is pooled first and projected then, so that the values of all tokens are never computed.
    """
    heads, inner = weights.num_heads, weights.output.kernel.shape[0]
    taps = weights.residual[len(weights.residual) // 2 :][: len(x)]  # the convolution at the first token
    pooled = attention.at[:, : len(taps)].add(taps.T) @ x  # [heads, D]
    projections = weights.qkv[:, 2 * inner :].reshape(-1, heads, weights.head_dim)
    return weights.output(jnp.einsum("hc,chd->hd", pooled, projections).reshape(1, inner))


def first_token_shares(x: Array, attention: Array, weights: NystromWeights, kernel: Array) -> Array:
    """What each token adds to the first row of A1 Z A3 V, after the output layer and `kernel` [D, C]: [S, C], without gradient.

    attention: from `first_token_attention`. The three linear maps are one per head, so that no values [S, D] are formed.
    """
    x, attention, weights, kernel = jax.lax.stop_gradient((x, attention, weights, kernel))
    heads, inner = weights.num_heads, weights.output.kernel.shape[0]
    values = weights.qkv[:, 2 * inner :].reshape(-1, heads, weights.head_dim)
    outputs = (weights.output.kernel @ kernel).reshape(heads, weights.head_dim, -1)
    projections = jnp.einsum("ehd,hdc->hec", values, outputs)  # [heads, D, C]
    shares = jnp.einsum("hs,hsc->sc", attention, (x @ projections).astype(jnp.float32))
    return shares if weights.output.bias is None else shares + weights.output.bias @ kernel


def _each_head(function: Callable[..., Any], arrays: tuple[Array, ...]) -> Any:
    """`function` of the arrays of each head: one after another on a CPU, where a head's maps then stay in the cache, else all at once."""
    return lax.map(function, arrays) if backend.is_cpu() else jax.vmap(function)(arrays)


def _by_head(x: Array, parts: int, heads: int) -> Array:
    """[S, parts * heads * d] -> [parts, heads, S, d]."""
    return x.reshape(len(x), parts, heads, -1).transpose(1, 2, 0, 3)


def _group_size(num_tokens: Array, num_landmarks: int) -> Array:
    return -(-num_tokens // num_landmarks)


def front_padding(num_tokens: Array, num_landmarks: int) -> Array:
    return _group_size(num_tokens, num_landmarks) * num_landmarks - num_tokens


def landmarks(x: Array, num_tokens: Array, weights: NystromWeights, num_landmarks: int) -> tuple[Array, Array, Array]:
    """(landmarks of the queries [heads, m, d], of the keys, their softmax A2 [heads, m, m]).

    Queries and keys are linear in x, so their means are those of x, projected: m rows instead of S.
    """
    inner = weights.num_heads * weights.head_dim
    marks = landmark_means(x, num_tokens, num_landmarks)
    queries, keys = _by_head(marks @ weights.qkv[:, : 2 * inner], 2, weights.num_heads)
    logits = jnp.einsum("hid,hjd->hij", queries, keys) / math.sqrt(weights.head_dim)
    return queries, keys, jax.nn.softmax(logits.astype(jnp.float32), axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def landmark_means(x: Array, num_tokens: Array, num_landmarks: int) -> Array:
    """Means of l = ceil(num_tokens / m) consecutive rows of x [S, D] -> [m, D], as if zero rows in front made it l * m rows.

    The divisor is always l: the zero rows count. Rows from `num_tokens` on must be zero.
    """
    longest = -(-len(x) // num_landmarks)
    group = _group_size(num_tokens, num_landmarks)
    first = jnp.arange(num_landmarks)[:, None] * group - front_padding(num_tokens, num_landmarks)
    place = jnp.arange(longest)
    token = first + place  # [m, longest]
    real = (place < group) & (token >= 0)
    rows = jnp.where(real[..., None], x[jnp.clip(token, 0, len(x) - 1)], 0)
    return jnp.sum(rows, axis=1) / group.astype(x.dtype)


def _landmark_means_forward(x: Array, num_tokens: Array, num_landmarks: int) -> tuple[Array, tuple[Array, Array]]:
    return landmark_means(x, num_tokens, num_landmarks), (num_tokens, jnp.arange(len(x)))


def _landmark_means_backward(
    num_landmarks: int, residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array, np.ndarray]:
    """Each token belongs to one group: a gather, where the transposed gather would be a scatter (serial on a CPU)."""
    num_tokens, token = residuals
    group = _group_size(num_tokens, num_landmarks)
    landmark = jnp.clip((token + front_padding(num_tokens, num_landmarks)) // group, 0, num_landmarks - 1)
    share = jnp.where(token < num_tokens, 1 / group.astype(cotangent.dtype), 0)
    return cotangent[landmark] * share[:, None], np.zeros((), jax.dtypes.float0)


landmark_means.defvjp(_landmark_means_forward, _landmark_means_backward)


def _exponentials(marks: Array, keys: Array, num_tokens: Array, padding: Array) -> tuple[Array, Array]:
    """Numerators [m, S] and denominators [m, 1] of A3 for landmark queries [m, d] and keys [S, d]: `padding` further keys are 0."""
    logits = (marks @ keys.T / math.sqrt(marks.shape[-1])).astype(jnp.float32)
    logits = jnp.where(jnp.arange(len(keys)) < num_tokens, logits, -jnp.inf)
    largest = jnp.maximum(jnp.max(logits, axis=-1, keepdims=True), jnp.where(padding > 0, 0.0, -jnp.inf))
    largest = lax.stop_gradient(largest)
    exponentials = jnp.exp(logits - largest)
    return exponentials, jnp.sum(exponentials, axis=-1, keepdims=True) + padding * jnp.exp(-largest)


def attend(queries: Array, marks: Array, values: Array) -> Array:
    """A1 `values` of one head [S, d]; divided by the softmax's sums at the end, when the rows are short."""
    logits = (queries @ marks.T / math.sqrt(marks.shape[-1])).astype(jnp.float32)
    exponentials = jnp.exp(logits - lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    return ((exponentials.astype(values.dtype) @ values) / total).astype(values.dtype)


def attend_with_padding(marks: Array, keys: Array, values: Array, num_tokens: Array, padding: Array) -> Array:
    """A3 V of one head [m, d]; the padding's values are 0."""
    exponentials, total = _exponentials(marks, keys, num_tokens, padding)
    return ((exponentials.astype(values.dtype) @ values) / total).astype(values.dtype)


def token_convolution(values: Array, kernel: Array) -> Array:
    """Cross-correlation of values [S, d] over the tokens with one kernel [K], K odd, zero padding K // 2 -> [S, d].

    Blocks of tokens times a banded Toeplitz matrix: the gradients are matrix products too (33 shifted sums would be 33 passes).
    """
    size, taps = len(values), len(kernel)
    block = max(_BLOCK, taps - 1)
    num_blocks = -(-size // block)
    behind = (num_blocks + 1) * block - size - taps // 2
    blocks = jnp.pad(values, ((taps // 2, behind), (0, 0))).reshape(num_blocks + 1, block, -1)
    windows = jnp.concatenate([blocks[:-1], blocks[1:, : taps - 1]], axis=1)  # [blocks, block + K - 1, d]
    length = block + taps - 1
    row = jnp.pad(kernel, (0, length + 1 - taps))  # repeated rows that are one too long: each starts one place later
    band = jnp.tile(row, block)[: block * length].reshape(block, length)
    return jnp.einsum("ij,bjd->bid", band, windows).reshape(num_blocks * block, -1)[:size]
