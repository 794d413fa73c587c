"""Swin transformer (Liu et al. 2021) with a convolutional stem as an encoder: CTransPath (Wang et al. 2022), 224 x 224 pixels -> 768.

Stem: two 3 x 3 convolutions of stride 2 and one of 1 x 1 -> norm -> four stages of blocks whose attention stays inside windows of 7 x 7
tokens, shifted by half a window in every second block; between stages 2 x 2 tokens are merged into one of twice the width -> norm ->
mean over the tokens. Evaluation only.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mil_jax.bags import Bag
from mil_jax.errors import ConfigError
from mil_jax.layers import masked
from mil_jax.layers.convolution import NormedConvolutionParameters, convolve
from mil_jax.layers.initializers import Affine, AffineParameters
from mil_jax.layers.transformer import Block, BlockParameters, Norm, NormParameters
from mil_jax.types import Array

EPSILON = 1e-5
STEM_STRIDE = 4
MLP_RATIO = 4
_BLOCK = {
    "norm1": ("norm_1", "norm"),
    "attn.qkv": ("qkv", "linear"),
    "attn.proj": ("projection", "linear"),
    "norm2": ("norm_2", "norm"),
    "mlp.fc1": ("expand", "linear"),
    "mlp.fc2": ("contract", "linear"),
}


class _WindowBlock(NamedTuple):
    """A block, and the biases of its attention by the distance of two tokens: [(2 w - 1)^2, heads]."""

    block: Block
    biases: Array


class SwinTransformer(nn.Module):
    """Images [N, H, W, 3] of a bag -> their vectors [N, 8 dim].

    depths, heads: of the four stages. window: edge of the windows in tokens; the sides of every stage's grid are multiples of it.

    Raises ConfigError for images that do not fit.
    """

    dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7

    @nn.compact
    def __call__(self, bag: Bag) -> Bag:
        smallest = STEM_STRIDE * self.window * 2 ** (len(self.depths) - 1)
        shape = bag.features.shape
        if len(shape) != 4 or shape[1] % smallest or shape[2] % smallest:
            raise ConfigError(
                f"the encoder reads images [N, H, W, 3] whose sides are multiples of {smallest}, but the bag has the shape {list(shape)}"
            )
        x = self._stem(masked.zero_padding(bag.features, bag.mask))
        for stage, (depth, heads) in enumerate(zip(self.depths, self.heads)):
            for number in range(depth):
                block = self._parameters(f"stage_{stage}_block_{number}", x.shape[-1], heads)
                x = self._apply(block, x, heads, self.window // 2 if number % 2 else 0)
            if stage + 1 < len(self.depths):
                x = self._merged(f"merging_{stage}", x)
        x = self._norm("norm", x)
        return bag.replace(features=masked.zero_padding(jnp.mean(x, axis=(1, 2)), bag.mask))

    def _stem(self, images: Array) -> Array:
        x = images
        for number, outputs in enumerate((self.dim // 8, self.dim // 4)):
            x = jax.nn.relu(NormedConvolutionParameters(outputs, name=f"stem_{number}")(3, x.shape[-1])(x, 2))
        layer = AffineParameters(self.dim, name="stem_2")(1, 1, x.shape[-1])
        x = convolve(x, layer.kernel)
        return self._norm("stem_norm", x if layer.bias is None else x + layer.bias)

    def _norm(self, name: str, x: Array) -> Array:
        norm: Norm = NormParameters(name=name)(x.shape[-1])
        return norm(x, EPSILON)

    def _parameters(self, name: str, width: int, heads: int) -> _WindowBlock:
        block = BlockParameters(MLP_RATIO * width, "normal_0.02", "normal_0.02", name=name)(width)
        shape = ((2 * self.window - 1) ** 2, heads)
        return _WindowBlock(block, self.param(f"{name}_biases", nn.initializers.normal(0.02), shape))

    def _apply(self, of: _WindowBlock, x: Array, heads: int, shift: int) -> Array:
        """x [N, H, W, C] -> the same shape."""
        block, (height, width) = of.block, x.shape[1:3]
        if min(height, width) <= self.window:
            shift = 0  # one window holds everything
        rolled = jnp.roll(block.norm_1(x, EPSILON), (-shift, -shift), axis=(1, 2))
        windows = _windows(rolled, self.window)  # [N, windows, w w, C]
        allowed = _same_region(height, width, self.window, shift) if shift else None
        mixed = _attention(windows, of, heads, self.window, allowed)
        mixed = jnp.roll(_grid(block.projection(mixed), height, width, self.window), (shift, shift), axis=(1, 2))
        x = x + mixed
        return x + block.feed_forward(block.norm_2(x, EPSILON))

    def _merged(self, name: str, x: Array) -> Array:
        """x [N, H, W, C] -> [N, H / 2, W / 2, 2 C]."""
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        merged = self._norm(f"{name}_norm", jnp.concatenate(corners, axis=-1))
        layer: Affine = AffineParameters(2 * x.shape[-1], use_bias=False, name=name)(4 * x.shape[-1])
        return layer(merged)

    @nn.nowrap
    def state_dict_map(self, variant: str) -> dict[str, tuple[str, str]]:
        """Published parameter name -> (path of the parameter, transform): the names of CTransPath's checkpoint, those of timm 0.5."""
        del variant
        mapping: dict[str, tuple[str, str]] = {}
        for number, place in enumerate((0, 3)):
            names = (f"patch_embed.proj.{place}", f"patch_embed.proj.{place + 1}")
            mapping |= NormedConvolutionParameters.published(*names, f"stem_{number}")
        layers = {
            "patch_embed.proj.6": ("stem_2", "conv"),
            "patch_embed.norm": ("stem_norm", "norm"),
            "norm": ("norm", "norm"),
        }
        for stage, depth in enumerate(self.depths):
            for number in range(depth):
                theirs, ours = f"layers.{stage}.blocks.{number}", f"stage_{stage}_block_{number}"
                layers |= {f"{theirs}.{name}": (f"{ours}/{layer}", how) for name, (layer, how) in _BLOCK.items()}
                mapping[f"{theirs}.attn.relative_position_bias_table"] = (f"{ours}_biases", "same")
            if stage + 1 < len(self.depths):
                layers[f"layers.{stage}.downsample.norm"] = (f"merging_{stage}_norm", "norm")
                mapping[f"layers.{stage}.downsample.reduction.weight"] = (f"merging_{stage}/kernel", "linear")
        for published, (layer, how) in layers.items():
            weight = ("scale", "same") if how == "norm" else ("kernel", how)
            mapping[f"{published}.weight"] = (f"{layer}/{weight[0]}", weight[1])
            mapping[f"{published}.bias"] = (f"{layer}/bias", "same")
        return mapping

    @nn.nowrap
    def unused_entries(self, variant: str) -> dict[str, tuple[int, ...]]:
        """What published files hold besides: counters of the norms, numbers that are computed here, a classifier."""
        del variant
        unused: dict[str, tuple[int, ...]] = {"head.weight": (), "head.bias": ()}
        unused |= {f"patch_embed.proj.{place}.num_batches_tracked": () for place in (1, 4)}
        for stage, depth in enumerate(self.depths):
            for number in range(depth):
                unused[f"layers.{stage}.blocks.{number}.attn.relative_position_index"] = ()
                unused[f"layers.{stage}.blocks.{number}.attn_mask"] = ()
        return unused

    @nn.nowrap
    def feature_shape(self, params: Any) -> tuple[int, ...]:
        """Shape of the smallest images that fit."""
        side = STEM_STRIDE * self.window * 2 ** (len(self.depths) - 1)
        return (side, side, params["stem_0"]["kernel"].shape[2])


def _attention(windows: Array, of: _WindowBlock, heads: int, window: int, allowed: np.ndarray | None) -> Array:
    """Windows [N, M, w w, C] -> the same shape. allowed: bool [M, w w, w w], which tokens may see which, or None."""
    shape = windows.shape
    q, k, v = jnp.moveaxis(of.block.qkv(windows).reshape(*shape[:3], 3, heads, -1), 3, 0)
    scores = jnp.einsum("nmqhd,nmkhd->nmhqk", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
    scores = scores + jnp.moveaxis(of.biases[_distances(window)], -1, 0)
    if allowed is not None:
        scores = jnp.where(allowed[:, None], scores, jnp.finfo(jnp.float32).min)
    return jnp.einsum("nmhqk,nmkhd->nmqhd", jax.nn.softmax(scores).astype(v.dtype), v).reshape(shape)


def _windows(x: Array, window: int) -> Array:
    """[N, H, W, C] -> [N, windows, w w, C], row by row."""
    n, height, width, channels = x.shape
    cut = x.reshape(n, height // window, window, width // window, window, channels)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(n, -1, window**2, channels)


def _grid(windows: Array, height: int, width: int, window: int) -> Array:
    """The inverse of `_windows`."""
    n, channels = len(windows), windows.shape[-1]
    cut = windows.reshape(n, height // window, width // window, window, window, channels)
    return cut.transpose(0, 1, 3, 2, 4, 5).reshape(n, height, width, channels)


@cache
def _distances(window: int) -> np.ndarray:
    """int [w w, w w]: number of the distance of two tokens of a window."""
    row, column = np.divmod(np.arange(window**2), window)
    down, right = row[:, None] - row, column[:, None] - column
    return (down + window - 1) * (2 * window - 1) + right + window - 1


@cache
def _same_region(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """bool [windows, w w, w w]: tokens that were neighbours before the grid was rolled."""

    def parts(size: int) -> np.ndarray:
        place = np.arange(size)
        return (place >= size - window).astype(int) + (place >= size - shift)

    region = 3 * parts(height)[:, None] + parts(width)
    cut = region.reshape(height // window, window, width // window, window).swapaxes(1, 2).reshape(-1, window**2)
    return cut[:, :, None] == cut[:, None]
