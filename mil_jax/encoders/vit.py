"""Vision transformers as encoders: an image of H x W pixels, or a grid of vectors, -> one vector (Dosovitskiy et al. 2021).

One module for all of them: the two levels of HIPT (Chen et al. 2022), the encoders of DINO, UNI, Virchow2, H-optimus, GigaPath and CONCH
v1.5, which differ in width, depth, registers, layer scale, gates, position table, and in what of the tokens is the output
(`encoders/registry.py` has their settings). A bag is mapped to a bag, instance by instance. Pre-norm blocks, no dropout.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mil_jax.bags import Bag
from mil_jax.errors import ConfigError
from mil_jax.layers import masked
from mil_jax.layers.query_pool import QueryPoolParameters
from mil_jax.layers.vit import EPSILON, ViT, ViTParameters, embed, encode, patches
from mil_jax.types import Array

VARIANTS: dict[str, dict[str, Any]] = {
    "hipt_vit256": {"dim": 384, "depth": 12, "num_heads": 6, "patch_size": 16},
    "hipt_vit4096": {"dim": 192, "depth": 6, "num_heads": 6},
}
IMAGE_SIDE, GRID_SIDE = 256, 16  # of what the published encoders of HIPT read
_BLOCK = {
    "norm1": ("norm_1", "norm"),
    "attn.qkv": ("qkv", "linear"),
    "attn.proj": ("projection", "linear"),
    "norm2": ("norm_2", "norm"),
    "mlp.fc1": ("expand", "linear"),
    "mlp.fc2": ("contract", "linear"),
}
_POOL = {
    "attn_pool_contrast.ln_q": ("norm_query", "norm"),
    "attn_pool_contrast.ln_k": ("norm_tokens", "norm"),
    "attn_pool_contrast.to_q": ("to_query", "linear"),
    "attn_pool_contrast.to_kv": ("to_key_value", "linear"),
    "attn_pool_contrast.to_out": ("to_output", "linear"),
    "ln_contrast": ("norm", "norm"),
}


class VisionTransformer(nn.Module):
    """Instances [N, H, W, channels] of a bag -> their vectors [N, E].

    patch_size: edge of the square patches of an image that are tokens; 0: every cell of a grid of vectors is one (and goes through
    a GELU behind the embedding).
    table_side: of the grid that the position table is for; other grids get one interpolated as `interpolation` says.
    mask_parts: cells that `part_mask` [N, H W] leaves out are attended to by none; else they are tokens as all others.
    at_once: instances encoded side by side; memory, in the backward pass too, is that of so many, whatever N is.
    hidden_dim: of the feed-forward layers, 0 = 4 times `dim`. gated: these are SwiGLU. layer_scale: learned factors on the branches.
    num_registers: tokens behind the class token. positions_in_front: class token and registers that have a position.
    output: "class" token [dim]; "class_and_mean": it, then the mean of the patches' tokens [2 dim]; "query": all tokens pooled by one
    learned query of `pooled_heads` heads [pooled_dim].

    Raises ConfigError for instances of another shape.
    """

    dim: int = 192
    depth: int = 6
    num_heads: int = 6
    patch_size: int = 0
    table_side: int = 14
    mask_parts: bool = False
    at_once: int = 8
    hidden_dim: int = 0
    gated: bool = False
    layer_scale: bool = False
    num_registers: int = 0
    positions_in_front: int = 1
    interpolation: str = "dino"
    epsilon: float = EPSILON
    output: str = "class"
    pooled_dim: int = 768
    pooled_heads: int = 8

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
            self.dim,
            self.depth,
            self.table_side,
            "torch" if self.patch_size else "normal_0.02",
            self.hidden_dim,
            self.gated,
            self.layer_scale,
            self.num_registers,
            self.positions_in_front,
            name="vit",
        )
        vit = parameters(*axes, x.shape[-1])
        pool = QueryPoolParameters(self.pooled_dim, name="pool")(self.dim) if self.output == "query" else None
        parts = bag.part_mask if self.mask_parts else None

        # The backward pass computes each lot again instead of keeping the layers of all.
        @jax.checkpoint
        def vector(instance: tuple[Array, Array | None]) -> Array:
            tokens, key_mask = self.tokens(vit, *instance)
            settings: dict[str, Any] = {"num_heads": self.num_heads, "epsilon": self.epsilon, "key_mask": key_mask}
            if self.output == "class":
                return encode(vit, tokens, class_only=True, **settings)[0][0]
            tokens, _ = encode(vit, tokens, **settings)
            if pool is not None:
                return pool(tokens, self.pooled_heads)
            return jnp.concatenate([tokens[0], jnp.mean(tokens[vit.num_in_front :], axis=0)])

        encoded = jax.lax.map(vector, (x, parts), batch_size=min(self.at_once, len(x)))
        return bag.replace(features=masked.zero_padding(encoded, bag.mask), part_mask=None)

    @nn.nowrap
    def tokens(self, vit: ViT, instance: Array, parts: Array | None = None) -> tuple[Array, Array | None]:
        """One instance [H, W, channels], and parts [h w] of it -> tokens [1 + K + h w, dim] and which of them may be attended to."""
        kernel = vit.embedding.kernel
        embedding = vit.embedding._replace(kernel=kernel.reshape(-1, self.dim))
        if self.patch_size:
            grid = instance.shape[0] // self.patch_size, instance.shape[1] // self.patch_size
            cells = embedding(patches(instance, self.patch_size))
        else:
            grid = instance.shape[0], instance.shape[1]
            cells = jax.nn.gelu(embedding(instance.reshape(-1, instance.shape[-1])), approximate=False)
        key_mask = None if parts is None else jnp.concatenate([jnp.ones(vit.num_in_front, bool), parts])
        return embed(vit, cells, grid, in_front=self.positions_in_front, interpolation=self.interpolation), key_mask

    @nn.nowrap
    def state_dict_map(self, variant: str) -> dict[str, tuple[str, str]]:
        """Published parameter name -> (path of the parameter, transform), for `interop.torch_checkpoints`: the names of DINO and timm."""
        del variant  # they differ in the fields
        embedding, transform = ("patch_embed.proj", "conv") if self.patch_size else ("phi.0", "linear")
        layers = {embedding: ("vit/embedding", transform), "norm": ("vit/norm", "norm")}
        mapping = {"cls_token": ("vit/class_token", "token"), "pos_embed": ("vit/positions", "tokens")}
        if self.num_registers:
            mapping["reg_token"] = ("vit/registers", "tokens")
        for number in range(self.depth):
            for published, (layer, transform) in _BLOCK.items():
                layers[f"blocks.{number}.{published}"] = (f"vit/block_{number}/{layer}", transform)
            for branch in (1, 2) if self.layer_scale else ():
                mapping[f"blocks.{number}.ls{branch}.gamma"] = (f"vit/block_{number}/scale_{branch}", "same")
        if self.output == "query":  # the transformer is the trunk of a larger tower
            layers, mapping = ({f"trunk.{name}": of for name, of in table.items()} for table in (layers, mapping))
            layers |= {name: (f"pool/{layer}", transform) for name, (layer, transform) in _POOL.items()}
            mapping["attn_pool_contrast.query"] = ("pool/query", "same")
        for published, (layer, transform) in layers.items():
            weight = ("scale", "same") if transform == "norm" else ("kernel", transform)
            mapping[f"{published}.weight"] = (f"{layer}/{weight[0]}", weight[1])
            if not published.startswith("attn_pool_contrast.to_"):  # these have none
                mapping[f"{published}.bias"] = (f"{layer}/bias", "same")
        return mapping

    @nn.nowrap
    def unused_entries(self, variant: str) -> dict[str, tuple[int, ...]]:
        """None: published files hold what is read."""
        del variant
        return {}

    @nn.nowrap
    def feature_shape(self, params: Any) -> tuple[int, ...]:
        """Shape of the instances that `params` were made for, or of those of HIPT."""
        side = IMAGE_SIDE if self.patch_size else GRID_SIDE
        if self.patch_size and side % self.patch_size:
            side = self.table_side * self.patch_size
        return (side, side, params["vit"]["embedding"]["kernel"].shape[-2])
