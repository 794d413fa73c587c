"""Vision transformers of any size over one grid of tokens: the position table with its interpolation, patches, the encoder.

x [h w, D] -> embedding -> class token, then registers, in front -> + positions -> pre-norm blocks -> norm (Dosovitskiy et al. 2021;
ViT of DINO, Caron et al. 2021; registers, Darcet et al. 2024). The position table [rows in front + n n, C] is made to fit other grids as
the reference of the weights does it, which is not what `jax.image.resize` does: see `interpolation_matrix`.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mil_jax.layers.initializers import Affine, AffineParameters
from mil_jax.layers.transformer import Block, BlockParameters, Norm, NormParameters, pre_norm_block
from mil_jax.types import Array

EPSILON = 1e-6
MLP_RATIO = 4
# dino: DINO's own code; torch: PyTorch's bicubic to a size, as `transformers` does; timm: the same with antialiasing, whose kernel differs.
INTERPOLATIONS = ("dino", "torch", "timm")
_A = {"dino": -0.75, "torch": -0.75, "timm": -0.5}  # of the cubic kernel
_OFFSET = 0.1  # of DINO: added to the number of tokens when the scale is computed


class ViT(NamedTuple):
    """Parameters of an encoder. embedding: [D, C]. class_token: [C]. registers: [K, C] or None. positions: [P + n n, C], P of tokens in
    front.
    """

    embedding: Affine
    class_token: Array
    positions: Array
    blocks: tuple[Block, ...]
    norm: Norm
    registers: Array | None = None

    @property
    def num_in_front(self) -> int:
        """Tokens before those of the grid."""
        return 1 if self.registers is None else 1 + len(self.registers)


class ViTParameters(nn.Module):
    """Declares the parameters of an encoder of width `dim`; called with the other axes of the embedding's kernel.

    table_side: n, of the grid that the position table is for. embedding_initializer: of the embedding alone. hidden_dim: of the
    feed-forward layers, 0 = 4 times the width. gated, layer_scale: of the blocks. num_registers: register tokens. positions_in_front:
    tokens in front that have a position.
    """

    dim: int
    depth: int
    table_side: int
    embedding_initializer: str
    hidden_dim: int = 0
    gated: bool = False
    layer_scale: bool = False
    num_registers: int = 0
    positions_in_front: int = 1

    @nn.compact
    def __call__(self, *axes: int) -> ViT:
        small = nn.initializers.normal(0.02)
        hidden_dim = self.hidden_dim or MLP_RATIO * self.dim
        fields: dict[str, Any] = {"gated": self.gated, "layer_scale": self.layer_scale}
        return ViT(
            AffineParameters(self.dim, self.embedding_initializer, name="embedding")(*axes),
            self.param("class_token", small, (self.dim,)),
            self.param("positions", small, (self.positions_in_front + self.table_side**2, self.dim)),
            tuple(
                BlockParameters(hidden_dim, "normal_0.02", "normal_0.02", name=f"block_{number}", **fields)(self.dim)
                for number in range(self.depth)
            ),
            NormParameters(name="norm")(self.dim),
            self.param("registers", small, (self.num_registers, self.dim)) if self.num_registers else None,
        )


def embed(vit: ViT, embedded: Array, grid: tuple[int, int], *, in_front: int = 1, interpolation: str = "dino") -> Array:
    """Tokens [1 + K + h w, C] from embedded cells [h w, C] of a grid (h, w), row by row: with class token, registers, positions.

    in_front: tokens in front that have a position.
    """
    positions = interpolated_positions(vit.positions, grid, in_front, interpolation)
    front = vit.class_token[None] if vit.registers is None else jnp.concatenate([vit.class_token[None], vit.registers])
    front = front.at[:in_front].add(positions[:in_front])
    return jnp.concatenate([front, embedded + positions[in_front:]])


def encode(
    vit: ViT,
    tokens: Array,
    *,
    num_heads: int,
    epsilon: float = EPSILON,
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
            block, tokens, num_heads=num_heads, epsilon=epsilon, key_mask=key_mask, branch_factor=factor
        )
        return tokens, None

    if blocks:  # one body for all, which is compiled once
        tokens, _ = jax.lax.scan(step, tokens, (jax.tree.map(lambda *x: jnp.stack(x), *blocks), factors[:-1]))
    tokens, attention = pre_norm_block(
        last,
        tokens,
        num_heads=num_heads,
        epsilon=epsilon,
        key_mask=key_mask,
        rows=1 if class_only else None,
        branch_factor=factors[-1],
    )
    return vit.norm(tokens, epsilon), attention


def patches(image: Array, size: int) -> Array:
    """Image [H, W, channels] -> patches [H W / size^2, size * size * channels], row by row; both sides are multiples of `size`."""
    height, width, channels = image.shape
    cut = image.reshape(height // size, size, width // size, size, channels)
    return cut.transpose(0, 2, 1, 3, 4).reshape(-1, size * size * channels)


def interpolated_positions(
    table: Array, grid: tuple[int, int], in_front: int = 1, interpolation: str = "dino"
) -> Array:
    """The position table [P + n n, C] for a grid of h rows and w columns: [P + h w, C]. The P rows in front stay as they are."""
    height, width = grid
    side = round((len(table) - in_front) ** 0.5)
    if height == width == side:
        return table
    square = table[in_front:].reshape(side, side, -1)
    rows, columns = (jnp.asarray(interpolation_matrix(side, size, interpolation), table.dtype) for size in grid)
    fitted = jnp.einsum("in,nmc,jm->ijc", rows, square, columns, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([table[:in_front], fitted.reshape(height * width, -1)])


@cache
def interpolation_matrix(stored: int, wanted: int, interpolation: str = "dino") -> np.ndarray:
    """float64 [wanted, stored]: bicubic interpolation of one axis.

    dino: the scale is (wanted + 0.1) / stored, given as such. dino and torch: four taps about (i + 0.5) / scale - 0.5, clamped to the
    table, a = -0.75. timm: a = -0.5, taps outside the table left out and the rest renormalised, the kernel widened where the grid shrinks.
    """
    matrix = np.zeros((wanted, stored))
    size = wanted + (_OFFSET if interpolation == "dino" else 0.0)
    source = (np.arange(wanted) + 0.5) * stored / size - 0.5
    if interpolation == "timm":
        distances = np.abs(source[:, None] - np.arange(stored)) / max(stored / wanted, 1.0)
        matrix = _cubic(distances, _A[interpolation])
        return matrix / matrix.sum(axis=1, keepdims=True)
    first = np.floor(source).astype(int) - 1
    for tap in range(4):
        np.add.at(
            matrix,
            (np.arange(wanted), np.clip(first + tap, 0, stored - 1)),
            _cubic(np.abs(source - first - tap), _A[interpolation]),
        )
    return matrix


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def linear_resize(stored: int, wanted: int) -> np.ndarray:
    """float64 [wanted, stored]: bilinear interpolation of one axis without antialiasing, PyTorch's `align_corners=False`."""
    source = np.clip((np.arange(wanted) + 0.5) * stored / wanted - 0.5, 0, stored - 1)
    return np.maximum(0.0, 1.0 - np.abs(source[:, None] - np.arange(stored)))
