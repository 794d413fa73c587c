"""Vision transformers of any size over one grid of tokens: the position table with its interpolation, patches, the encoder.

x [h w, D] -> embedding -> class token in front -> + positions -> pre-norm blocks -> norm -> token 0 (Dosovitskiy et al. 2021; ViT of
DINO, Caron et al. 2021). The position table [1 + n n, C] is made to fit other grids as the reference does it, which is not what
`jax.image.resize` does: see `interpolation_matrix`.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mil_jax.layers.initializers import Affine, AffineParameters
from mil_jax.layers.transformer import Block, BlockParameters, Norm, NormParameters, pre_norm_block

Array = jax.Array
EPSILON = 1e-6
MLP_RATIO = 4
_A = -0.75  # of the cubic kernel
_OFFSET = 0.1  # added to the number of tokens when the scale is computed


class ViT(NamedTuple):
    """Parameters of an encoder. embedding: [D, C]. class_token: [C]. positions: [1 + n n, C]."""

    embedding: Affine
    class_token: Array
    positions: Array
    blocks: tuple[Block, ...]
    norm: Norm


class ViTParameters(nn.Module):
    """Declares the parameters of an encoder of width `dim`; called with the other axes of the embedding's kernel.

    table_side: n, of the grid that the position table is for. embedding_initializer: of the embedding alone.
    """

    dim: int
    depth: int
    table_side: int
    embedding_initializer: str

    @nn.compact
    def __call__(self, *axes: int) -> ViT:
        small = nn.initializers.normal(0.02)
        return ViT(
            AffineParameters(self.dim, self.embedding_initializer, name="embedding")(*axes),
            self.param("class_token", small, (self.dim,)),
            self.param("positions", small, (1 + self.table_side**2, self.dim)),
            tuple(
                BlockParameters(MLP_RATIO * self.dim, "normal_0.02", "normal_0.02", name=f"block_{number}")(self.dim)
                for number in range(self.depth)
            ),
            NormParameters(name="norm")(self.dim),
        )


def embed(vit: ViT, embedded: Array, grid: tuple[int, int]) -> Array:
    """Tokens [1 + h w, C] from embedded cells [h w, C] of a grid (h, w), row by row: with class token and positions."""
    tokens = jnp.concatenate([vit.class_token[None].astype(embedded.dtype), embedded])
    return tokens + interpolated_positions(vit.positions, grid)


def encode(
    vit: ViT,
    tokens: Array,
    *,
    num_heads: int,
    key_mask: Array | None = None,
    class_only: bool = False,
    drop_path_rate: float = 0.0,
    drop_path_key: Array | None = None,
) -> tuple[Array, Array]:
    """Tokens [T, C] -> (normed tokens behind the last block [rows, C], that block's attention [heads, rows, T]).

    key_mask: [T], tokens that may be attended to. class_only: of the last block only token 0 is computed, rows = 1.
    drop_path_rate: with a key, the probability that the branches of the last block are left out; it rises linearly from 0.
    """
    *blocks, last = vit.blocks
    factors = jnp.ones(len(vit.blocks), tokens.dtype)
    if drop_path_key is not None:
        keep = 1.0 - jnp.linspace(0.0, drop_path_rate, len(vit.blocks))
        factors = (jax.random.bernoulli(drop_path_key, keep) / keep).astype(tokens.dtype)

    def step(tokens: Array, of: tuple[Block, Array]) -> tuple[Array, None]:
        block, factor = of
        tokens, _ = pre_norm_block(
            block, tokens, num_heads=num_heads, epsilon=EPSILON, key_mask=key_mask, branch_factor=factor
        )
        return tokens, None

    if blocks:  # one body for all, which is compiled once
        tokens, _ = jax.lax.scan(step, tokens, (jax.tree.map(lambda *x: jnp.stack(x), *blocks), factors[:-1]))
    tokens, attention = pre_norm_block(
        last,
        tokens,
        num_heads=num_heads,
        epsilon=EPSILON,
        key_mask=key_mask,
        rows=1 if class_only else None,
        branch_factor=factors[-1],
    )
    return vit.norm(tokens, EPSILON), attention


def patches(image: Array, size: int) -> Array:
    """Image [H, W, channels] -> patches [H W / size^2, size * size * channels], row by row; both sides are multiples of `size`."""
    height, width, channels = image.shape
    cut = image.reshape(height // size, size, width // size, size, channels)
    return cut.transpose(0, 2, 1, 3, 4).reshape(-1, size * size * channels)


def interpolated_positions(table: Array, grid: tuple[int, int]) -> Array:
    """The position table [1 + n n, C] for a grid of h rows and w columns: [1 + h w, C]. The class token's row stays as it is."""
    height, width = grid
    side = round((len(table) - 1) ** 0.5)
    if height == width == side:
        return table
    square = table[1:].reshape(side, side, -1)
    rows, columns = (jnp.asarray(interpolation_matrix(side, size), table.dtype) for size in grid)
    fitted = jnp.einsum("in,nmc,jm->ijc", rows, square, columns, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([table[:1], fitted.reshape(height * width, -1)])


@cache
def interpolation_matrix(stored: int, wanted: int) -> np.ndarray:
    """float64 [wanted, stored]: bicubic interpolation of one axis, as the reference's.

    The scale is (wanted + 0.1) / stored, given as such; four taps about (i + 0.5) / scale - 0.5, clamped to the table; a = -0.75, no
    antialiasing, no renormalisation.
    """
    matrix = np.zeros((wanted, stored))
    source = (np.arange(wanted) + 0.5) * stored / (wanted + _OFFSET) - 0.5
    first = np.floor(source).astype(int) - 1
    for tap in range(4):
        np.add.at(
            matrix,
            (np.arange(wanted), np.clip(first + tap, 0, stored - 1)),
            _cubic(np.abs(source - first - tap)),
        )
    return matrix


def _cubic(distance: np.ndarray) -> np.ndarray:
    near = ((_A + 2) * distance - (_A + 3)) * distance**2 + 1
    far = _A * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
