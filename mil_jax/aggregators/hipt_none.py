"""HIPT without transformers (Chen et al., CVPR 2022, the reference's `HIPT_None_FC`): gated attention in each region, then over them.

x [R, T, D], T tiles in each of R regions -> h = relu(W x) -> r = relu(W' sum a h), a: gated attention of a region's tiles -> z = sum b r,
b: gated attention of the regions -> logits = W relu(W z). PathGene trains it on the whole slide as ONE region, so that b is 1 and its
layers learn nothing: gated ABMIL with two layers more. Difference to the reference: tiles that a region lacks get no attention.
"""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mil_jax.aggregators import checks
from mil_jax.aggregators.base import Aggregator
from mil_jax.bags import Bag, Prediction
from mil_jax.encoders.vit import GRID_SIDE
from mil_jax.errors import ConfigError
from mil_jax.layers import masked
from mil_jax.layers.attention_pool import attention_pool, attention_scores
from mil_jax.layers.dropout import draw_key, dropout, hyper
from mil_jax.layers.initializers import AffineParameters
from mil_jax.types import Array, PyTree

VARIANTS: dict[str, dict[str, Any]] = {
    "hipt_none": {},
    "hipt_pathgene": {"one_region": True},
}
_PUBLISHED = {
    "tile": "local_phi.0",
    "tile_attention_v": "local_attn_pool.attention_a.0",
    "tile_attention_u": "local_attn_pool.attention_b.0",
    "tile_attention_w": "local_attn_pool.attention_c",
    "region": "global_phi.0",
    "attention_v": "global_attn_pool.attention_a.0",
    "attention_u": "global_attn_pool.attention_b.0",
    "attention_w": "global_attn_pool.attention_c",
    "bag": "global_rho.0",
    "classifier": "classifier",
}


class HIPTNone(Aggregator):
    """Two gated attentions, one above the other.

    hidden_dim: width of all layers; 256 is the reference's size "small", 512 "big".
    one_region: the bag is tiles [N, D], which are one region.
    dropout: behind `tile`, `region` and `bag` and on both branches of both attentions.

    `dropout` is numeric: the collection "hyper" may hold another value. Prediction: attention, scores [R] of the regions, with
    `one_region` [N] of the tiles; embedding [hidden_dim]. Sown in "intermediates": "tile_scores" and "tile_attention" [R, T], "pooled"
    [R, hidden_dim]. Raises ConfigError for bags of another shape.
    """

    hidden_dim: int = 256
    one_region: bool = False
    dropout: float = 0.25

    variants = VARIANTS
    numeric_settings: ClassVar[tuple[str, ...]] = ("dropout",)

    def __post_init__(self) -> None:
        checks.positive("hidden_dim", self.hidden_dim)
        checks.rate("dropout", self.dropout)
        super().__post_init__()

    @nn.compact
    def __call__(self, bag: Bag, train: bool = False) -> Prediction:
        x, tiles = self._regions(bag)  # [R, T, D], [R, T]
        filled = jnp.any(tiles, axis=1)
        h = self._layer("tile", x.reshape(-1, x.shape[-1]), 0, train)
        scores = self._scores("tile_attention", h, 1, train).reshape(tiles.shape)
        attention = masked.softmax(scores, tiles)  # [R, T], zeros in a region without tiles
        pooled = jax.vmap(attention_pool)(attention, h.reshape(*tiles.shape, -1)).astype(h.dtype)
        for name, values in (("tile_scores", scores), ("tile_attention", attention), ("pooled", pooled)):
            self.sow("intermediates", name, values)
        regions = self._layer("region", pooled, 2, train)  # [R, hidden_dim]
        region_scores = self._scores("attention", regions, 3, train)
        region_attention = masked.softmax(region_scores, filled)
        slide = attention_pool(region_attention, regions)
        embedding = self._layer("bag", slide[None], 4, train)[0]
        logits = AffineParameters(self.num_outputs, name="classifier")(self.hidden_dim)(embedding)
        if self.one_region:
            return Prediction(logits, attention[0], masked.hide_padding(scores, tiles)[0], embedding)
        return Prediction(logits, region_attention, masked.hide_padding(region_scores, filled), embedding)

    def _regions(self, bag: Bag) -> tuple[Array, Array]:
        """Tiles [R, T, D], zero where there is none, and which there are [R, T]."""
        if bag.features.ndim != (2 if self.one_region else 3):
            wanted = (
                "tiles [N, D]; leave data.regions at 0"
                if self.one_region
                else "regions of tiles [R, T, D]; set data.regions=16, for shards that were written with python -m data_prep.shard "
                "--regions 16, or aggregator.one_region=true for the whole bag as one"
            )
            raise ConfigError(f"the bag has the shape {list(bag.features.shape)}, but hipt_none reads {wanted}")
        if self.one_region:
            tiles = bag.mask[None]
            return masked.zero_padding(bag.features, bag.mask)[None], tiles
        parts = jnp.ones(bag.features.shape[:2], bool) if bag.part_mask is None else bag.part_mask
        tiles = parts & bag.mask[:, None]
        return jnp.where(tiles[..., None], bag.features, 0), tiles

    def _layer(self, name: str, x: Array, number: int, train: bool) -> Array:
        """x [rows, .] -> [rows, hidden_dim]."""
        h = jax.nn.relu(AffineParameters(self.hidden_dim, name=name)(x.shape[-1])(x))
        key = draw_key(self, "dropout", self.dropout, train, number)
        return h if key is None else dropout(h, hyper(self, "dropout", self.dropout), key)

    def _scores(self, name: str, h: Array, number: int, train: bool) -> Array:
        """Gated attention scores [rows] of h [rows, hidden_dim]."""
        d = self.hidden_dim
        return attention_scores(
            h,
            AffineParameters(d, name=f"{name}_v")(d),
            AffineParameters(1, name=f"{name}_w")(d),
            AffineParameters(d, name=f"{name}_u")(d),
            dropout_rate=hyper(self, "dropout", self.dropout),
            dropout_key=draw_key(self, "dropout", self.dropout, train, number),
        )

    @nn.nowrap
    def state_dict_map(self, variant: str) -> dict[str, tuple[str, str]]:
        checks.one_of("variant", variant, VARIANTS)
        mapping = {}
        for layer, published in _PUBLISHED.items():
            mapping[f"{published}.weight"] = (f"{layer}/kernel", "linear")
            mapping[f"{published}.bias"] = (f"{layer}/bias", "same")
        return mapping

    @nn.nowrap
    def feature_shape(self, params: PyTree) -> tuple[int, ...]:
        """Shape of the instances that `params` were made for; of regions, the published number of tiles."""
        width = params["tile"]["kernel"].shape[0]
        return (width,) if self.one_region else (GRID_SIDE**2, width)


AGGREGATORS = {"hipt_none": HIPTNone}
