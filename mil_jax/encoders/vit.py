"""The two encoders of HIPT (Chen et al. 2022): a tile of 256 x 256 pixels -> 384, a region of 16 x 16 tile vectors -> 192.

Both are vision transformers with pre-norm blocks and no dropout whose output is the class token; they differ in what a token is. Both
map a bag to a bag, instance by instance: the tiles or regions of a slide in, their vectors out.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mil_jax.bags import Bag
from mil_jax.errors import ConfigError
from mil_jax.layers import masked
from mil_jax.layers.vit import ViT, ViTParameters, embed, encode, patches

Array = jax.Array

VARIANTS: dict[str, dict[str, Any]] = {
    "hipt_vit256": {"dim": 384, "depth": 12, "num_heads": 6, "patch_size": 16},
    "hipt_vit4096": {"dim": 192, "depth": 6, "num_heads": 6},
}
IMAGE_SIDE, GRID_SIDE = 256, 16  # of what the published encoders read
_BLOCK = {
    "norm1": ("norm_1", "norm"),
    "attn.qkv": ("qkv", "linear"),
    "attn.proj": ("projection", "linear"),
    "norm2": ("norm_2", "norm"),
    "mlp.fc1": ("expand", "linear"),
    "mlp.fc2": ("contract", "linear"),
}


class VisionTransformer(nn.Module):
    """Instances [N, H, W, channels] of a bag -> their class tokens [N, dim].

    patch_size: edge of the square patches of an image that are tokens; 0: every cell of a grid of vectors is one (and goes through
    a GELU behind the embedding).
    table_side: of the grid that the position table is for; other grids get an interpolated one.
    mask_parts: cells that `part_mask` [N, H W] leaves out are attended to by none; else they are tokens as all others.
    at_once: instances encoded side by side; memory, in the backward pass too, is that of so many, whatever N is.

    Raises ConfigError for instances of another shape.
    """

    dim: int = 192
    depth: int = 6
    num_heads: int = 6
    patch_size: int = 0
    table_side: int = 14
    mask_parts: bool = False
    at_once: int = 8

    @nn.compact
    def __call__(self, bag: Bag) -> Bag:
        if bag.features.ndim != 4:
            what = "images [N, H, W, channels]" if self.patch_size else "grids of vectors [N, h, w, D]"
            raise ConfigError(f"the encoder reads {what}, but the bag has the shape {list(bag.features.shape)}")
        x = masked.zero_padding(bag.features, bag.mask)
        if self.patch_size and (x.shape[1] % self.patch_size or x.shape[2] % self.patch_size):
            raise ConfigError(
                f"images of {x.shape[1]} x {x.shape[2]} pixels cannot be cut into patches of {self.patch_size}: crop them to multiples"
            )
        axes = (self.patch_size,) * 2 if self.patch_size else ()
        parameters = ViTParameters(
            self.dim, self.depth, self.table_side, "torch" if self.patch_size else "normal_0.02", name="vit"
        )
        vit = parameters(*axes, x.shape[-1])
        parts = bag.part_mask if self.mask_parts else None

        # The backward pass computes each lot anew instead of keeping the layers of all.
        @jax.checkpoint
        def class_token(instance: tuple[Array, Array | None]) -> Array:
            tokens, key_mask = self.tokens(vit, *instance)
            return encode(vit, tokens, num_heads=self.num_heads, key_mask=key_mask, class_only=True)[0][0]

        encoded = jax.lax.map(class_token, (x, parts), batch_size=min(self.at_once, len(x)))
        return bag.replace(features=masked.zero_padding(encoded, bag.mask), part_mask=None)

    @nn.nowrap
    def tokens(self, vit: ViT, instance: Array, parts: Array | None = None) -> tuple[Array, Array | None]:
        """One instance [H, W, channels], and parts [h w] of it -> tokens [1 + h w, dim] and which of them may be attended to."""
        kernel = vit.embedding.kernel
        embedding = vit.embedding._replace(kernel=kernel.reshape(-1, self.dim))
        if self.patch_size:
            grid = instance.shape[0] // self.patch_size, instance.shape[1] // self.patch_size
            cells = embedding(patches(instance, self.patch_size))
        else:
            grid = instance.shape[0], instance.shape[1]
            cells = jax.nn.gelu(embedding(instance.reshape(-1, instance.shape[-1])), approximate=False)
        key_mask = None if parts is None else jnp.concatenate([jnp.ones(1, bool), parts])
        return embed(vit, cells, grid), key_mask

    @nn.nowrap
    def state_dict_map(self, variant: str) -> dict[str, tuple[str, str]]:
        """Published parameter name -> (path of the parameter, transform), for `interop.torch_checkpoints`."""
        del variant  # they differ in the fields
        embedding, transform = ("patch_embed.proj", "conv") if self.patch_size else ("phi.0", "linear")
        layers = {embedding: ("embedding", transform), "norm": ("norm", "norm")}
        for number in range(self.depth):
            for published, (layer, transform) in _BLOCK.items():
                layers[f"blocks.{number}.{published}"] = (f"block_{number}/{layer}", transform)
        mapping = {"cls_token": ("vit/class_token", "token"), "pos_embed": ("vit/positions", "tokens")}
        for published, (layer, transform) in layers.items():
            weight = ("scale", "same") if transform == "norm" else ("kernel", transform)
            mapping[f"{published}.weight"] = (f"vit/{layer}/{weight[0]}", weight[1])
            mapping[f"{published}.bias"] = (f"vit/{layer}/bias", "same")
        return mapping

    @nn.nowrap
    def feature_shape(self, params: Any) -> tuple[int, ...]:
        """Shape of the instances that `params` were made for."""
        side = IMAGE_SIDE if self.patch_size else GRID_SIDE
        return (side, side, params["vit"]["embedding"]["kernel"].shape[-2])
