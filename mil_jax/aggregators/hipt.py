"""HIPT, Hierarchical Image Pyramid Transformer (Chen et al., CVPR 2022), its upper two levels: regions of tiles, then the slide.

x [R, T, D], a square grid of T tiles in each of R regions -> f = ViT(x) [R, 192] -> p = relu(W f) -> 2 transformer layers over the regions,
which have no positions -> t; a = gated attention of t; z = sum a t; logits = W relu(W z). The level below, which makes the tiles' vectors,
is `encoders/vit.py`. Differences to the reference: tiles that a region lacks are zero vectors or, with `mask_parts`, no tokens; the
sizes can be chosen. `guided` is an addition: see the class.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mil_jax.aggregators import checks
from mil_jax.aggregators.base import Aggregator
from mil_jax.bags import Bag, Prediction
from mil_jax.encoders.vit import GRID_SIDE, VisionTransformer
from mil_jax.errors import ConfigError
from mil_jax.interop.torch_checkpoints import import_state_dict, load_state_dict
from mil_jax.layers import losses, masked
from mil_jax.layers.attention_pool import attention_pool, attention_scores
from mil_jax.layers.dropout import draw_key, dropout, hyper
from mil_jax.layers.initializers import Affine, AffineParameters
from mil_jax.layers.transformer import BlockParameters, post_norm_block
from mil_jax.types import Array, PyTree

EPSILON = 1e-5
NUM_LAYERS = 2
_LEVEL_2, _ENCODER = "hipt_vit4096", "region_encoder"

VARIANTS: dict[str, dict[str, Any]] = {
    "hipt": {},
    "hipt_gp": {"region_encoder": "none"},
    "hipt_c2f": {"guided": True},
}
_PUBLISHED = {
    "region": "global_phi.0",
    "attention_v": "global_attn_pool.attention_a.0",
    "attention_u": "global_attn_pool.attention_b.0",
    "attention_w": "global_attn_pool.attention_c",
    "bag": "global_rho.0",
    "classifier": "classifier",
}


class HIPT(Aggregator):
    """Vision transformer over the tiles of each region, transformer and gated attention over the regions.

    region_encoder: "vit" (features [R, T, D], T a square) or "none" (features [R, D] are vectors of regions).
    region_dim, region_depth, region_heads, table_side: of the ViT; the table is interpolated where sqrt(T) is another side.
    mask_parts: tiles that a region lacks are attended to by none.
    regions_at_once: regions that the ViT works on side by side; its memory is that of so many.
    region_weights: file of a pretrained level 2 (DINO's checkpoint, or a state dict) that training starts from; "" = at random.
    frozen: the ViT stays as it is.
    hidden_dim, num_heads: of the transformer over the regions and all layers behind it.
    dropout: behind `region` and `bag`, in the transformer's layers and on both branches of the attention.
    guided: coarse to fine. The ViT also reads each region as ONE token, the mean of its tiles plus a learned level vector; these coarse
        vectors c make a prediction of their own and guide the fine ones f:
        loss = L(fine) + guidance_weight (L(coarse) + mean over regions of 1 - cos(stop_gradient(c), W f + b)).
    guidance_weight: with 0 everything is as without `guided`.

    `dropout` and `guidance_weight` are numeric: the collection "hyper" may hold other values. Prediction: attention, scores [R] and
    embedding [hidden_dim]. aux with `guided`: "coarse_logits" [C], "guidance", "guidance_weight". Sown in "intermediates": "regions",
    "projected" and "transformed" [R, .]. Raises ConfigError for settings that cannot work, and bags of another shape.
    """

    region_encoder: str = "vit"
    region_dim: int = 192
    region_depth: int = 6
    region_heads: int = 6
    table_side: int = 14
    mask_parts: bool = False
    regions_at_once: int = 8
    region_weights: str = ""
    frozen: bool = False
    hidden_dim: int = 192
    num_heads: int = 3
    dropout: float = 0.25
    guided: bool = False
    guidance_weight: float = 1.0

    variants = VARIANTS
    numeric_settings: ClassVar[tuple[str, ...]] = ("dropout", "guidance_weight")

    def __post_init__(self) -> None:
        checks.one_of("region_encoder", self.region_encoder, ("vit", "none"))
        for name in ("region_dim", "region_depth", "region_heads", "table_side", "regions_at_once"):
            checks.positive(name, getattr(self, name))
        checks.positive("hidden_dim", self.hidden_dim)
        checks.positive("num_heads", self.num_heads)
        for heads, width in (("region_heads", "region_dim"), ("num_heads", "hidden_dim")):
            if getattr(self, width) % getattr(self, heads):
                raise ConfigError(
                    f"aggregator.{width}={getattr(self, width)} is not a multiple of aggregator.{heads}={getattr(self, heads)}"
                )
        checks.rate("dropout", self.dropout)
        checks.not_negative("guidance_weight", self.guidance_weight)
        if self.region_encoder == "none" and (self.guided or self.frozen or self.region_weights):
            raise ConfigError(
                "aggregator.guided, frozen and region_weights are about the encoder of regions: set aggregator.region_encoder='vit'"
            )
        if self.guided and self.frozen:
            raise ConfigError(
                "aggregator.guided trains the encoder of regions, and aggregator.frozen keeps it: choose one"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, bag: Bag, train: bool = False) -> Prediction:
        if self.region_encoder == "none":
            if bag.features.ndim != 2:
                raise ConfigError(
                    f"hipt with aggregator.region_encoder='none' reads vectors of regions [R, D], but the bag has the shape "
                    f"{list(bag.features.shape)}"
                )
            regions = masked.zero_padding(bag.features, bag.mask)
            return self._slide(regions, bag.mask, self._layers(regions.shape[-1]), train)
        bag = self._grids(bag)
        encoder = VisionTransformer(
            self.region_dim,
            self.region_depth,
            self.region_heads,
            table_side=self.table_side,
            mask_parts=self.mask_parts,
            at_once=self.regions_at_once,
            name=_ENCODER,
        )
        fine = encoder(bag).features  # [R, region_dim]
        layers = self._layers(self.region_dim)
        if self.frozen:
            fine = jax.lax.stop_gradient(fine)
        prediction = self._slide(fine, bag.mask, layers, train)
        return self._guided(prediction, encoder, fine, bag, layers, train) if self.guided else prediction

    def _grids(self, bag: Bag) -> Bag:
        """The bag with regions as grids [R, h, h, D], in which there is a zero where a tile is missing."""
        side = math.isqrt(bag.features.shape[1])
        if bag.features.ndim != 3 or side**2 != bag.features.shape[1]:
            raise ConfigError(
                f"hipt reads regions of square grids of tiles [R, T, D], but the bag has the shape {list(bag.features.shape)}: set "
                "data.regions=16, for shards that were written with python -m data_prep.shard --regions 16"
            )
        x = masked.zero_padding(bag.features, bag.mask)
        if bag.part_mask is not None:
            x = jnp.where(bag.part_mask[..., None], x, 0)
        return bag.replace(features=x.reshape(len(x), side, side, -1))

    def _layers(self, width: int) -> dict[str, Any]:
        """Parameters of the level of the slide, for region vectors of this width."""

        def affine(name: str, inputs: int, outputs: int) -> Affine:
            return AffineParameters(outputs, name=name)(inputs)

        d = self.hidden_dim
        return {
            "region": affine("region", width, d),
            "blocks": [BlockParameters(d, name=f"layer_{number}")(d) for number in range(NUM_LAYERS)],
            "attention_v": affine("attention_v", d, d),
            "attention_u": affine("attention_u", d, d),
            "attention_w": affine("attention_w", d, 1),
            "bag": affine("bag", d, d),
            "classifier": affine("classifier", d, self.num_outputs),
        }

    def _slide(self, regions: Array, mask: Array, layers: dict[str, Any], train: bool) -> Prediction:
        """Vectors of regions [R, .] -> the prediction."""
        rate = hyper(self, "dropout", self.dropout)

        def key(number: int) -> Array | None:
            return draw_key(self, "dropout", self.dropout, train, number)

        def dropped(x: Array, key: Array | None) -> Array:
            return x if key is None else dropout(x, rate, key)

        projected = dropped(jax.nn.relu(layers["region"](regions)), key(0))
        tokens = projected
        for number, block in enumerate(layers["blocks"]):
            tokens = post_norm_block(
                block, tokens, mask, num_heads=self.num_heads, epsilon=EPSILON, rate=rate, key=key(1 + number)
            )
        for name, values in (("regions", regions), ("projected", projected), ("transformed", tokens)):
            self.sow("intermediates", name, values)
        scores = attention_scores(
            tokens,
            layers["attention_v"],
            layers["attention_w"],
            layers["attention_u"],
            dropout_rate=rate,
            dropout_key=key(8),
        )
        attention = masked.softmax(scores, mask)
        pooled = attention_pool(attention, tokens)
        embedding = dropped(jax.nn.relu(layers["bag"](pooled))[None], key(9))[0]
        return Prediction(layers["classifier"](embedding), attention, masked.hide_padding(scores, mask), embedding)

    def _guided(
        self,
        prediction: Prediction,
        encoder: VisionTransformer,
        fine: Array,
        bag: Bag,
        layers: dict[str, Any],
        train: bool,
    ) -> Prediction:
        """The prediction with what the coarse level says, and how far the fine vectors are from its own."""
        tiles = (
            jnp.ones(bag.features.shape[:3], bool)
            if bag.part_mask is None
            else bag.part_mask.reshape(bag.features.shape[:3])
        )
        count = jnp.maximum(jnp.sum(tiles, axis=(1, 2)), 1)
        mean = jnp.sum(bag.features, axis=(1, 2)) / count[:, None]
        level = self.param("level", nn.initializers.normal(0.02), (bag.features.shape[-1],))
        coarse = encoder(bag.replace(features=(mean + level)[:, None, None], part_mask=None)).features
        wanted = jax.lax.stop_gradient(coarse)
        found = AffineParameters(self.region_dim, name="guidance")(self.region_dim)(fine)
        lengths = jnp.sqrt(jnp.sum(wanted**2, axis=-1) * jnp.sum(found**2, axis=-1) + 1e-12)
        distances = 1.0 - jnp.sum(wanted * found, axis=-1) / lengths
        aux = {
            "coarse_logits": self._slide(coarse, bag.mask, layers, train).logits,
            "guidance": masked.mean(masked.zero_padding(distances, bag.mask), bag.mask),
            "guidance_weight": jnp.asarray(hyper(self, "guidance_weight", self.guidance_weight), jnp.float32),
        }
        return prediction.replace(aux=aux)

    @nn.nowrap
    def training_loss(self, task: Any, predictions: Prediction, targets: Array, weights: Array) -> Array:
        """The task's loss, and with `guided` what is added to it; over a batch of bags [B]; weights [B], 0 = no bag."""
        loss = task.loss(predictions, targets, weights)
        if not self.guided:
            return loss
        aux = predictions.aux
        coarse = task.loss(predictions.replace(logits=aux["coarse_logits"]), targets, weights)
        guidance = losses.mean_over_bags(aux["guidance"], weights > 0, weights)
        return loss + aux["guidance_weight"][0] * (coarse + guidance)

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        return (_ENCODER,) if self.frozen else ()

    @nn.nowrap
    def starting_from(self, params: PyTree) -> Any:
        """Fresh parameters, with the encoder of regions from the file that `region_weights` names.

        Raises DataError for a file that does not fit, and ConfigError for an encoder that would stay at its random numbers.
        """
        if self.region_weights:
            encoder = VisionTransformer(
                self.region_dim, self.region_depth, self.region_heads, table_side=self.table_side
            )
            return {**params, _ENCODER: import_state_dict(encoder, load_state_dict(self.region_weights), _LEVEL_2)}
        if self.frozen:
            raise ConfigError(
                "aggregator.frozen keeps the encoder of regions as it is, which without weights is random: name its checkpoint with "
                "aggregator.region_weights"
            )
        return params

    @nn.nowrap
    def state_dict_map(self, variant: str) -> dict[str, tuple[str, str]]:
        checks.one_of("variant", variant, VARIANTS)
        mapping = {}
        if self.region_encoder == "vit":
            encoder = VisionTransformer(depth=self.region_depth).state_dict_map(_LEVEL_2)
            mapping = {f"local_vit.{name}": (f"{_ENCODER}/{path}", how) for name, (path, how) in encoder.items()}
        layers = {published: (layer, "linear") for layer, published in _PUBLISHED.items()}
        for number in range(NUM_LAYERS):
            published, layer = f"global_transformer.layers.{number}", f"layer_{number}"
            mapping[f"{published}.self_attn.in_proj_weight"] = (f"{layer}/qkv/kernel", "linear")
            mapping[f"{published}.self_attn.in_proj_bias"] = (f"{layer}/qkv/bias", "same")
            for theirs, ours in (("self_attn.out_proj", "projection"), ("linear1", "expand"), ("linear2", "contract")):
                layers[f"{published}.{theirs}"] = (f"{layer}/{ours}", "linear")
            for place in (1, 2):
                layers[f"{published}.norm{place}"] = (f"{layer}/norm_{place}", "norm")
        if self.guided:  # an addition, which no reference has: names of our own
            layers["guidance"] = ("guidance", "linear")
            mapping["level"] = ("level", "same")
        for published, (layer, how) in layers.items():
            weight = ("scale", "same") if how == "norm" else ("kernel", how)
            mapping[f"{published}.weight"] = (f"{layer}/{weight[0]}", weight[1])
            mapping[f"{published}.bias"] = (f"{layer}/bias", "same")
        return mapping

    @nn.nowrap
    def feature_shape(self, params: PyTree) -> tuple[int, ...]:
        """Shape of the instances that `params` were made for; of regions, the published number of tiles."""
        if self.region_encoder == "none":
            return (params["region"]["kernel"].shape[0],)
        return (GRID_SIDE**2, params[_ENCODER]["vit"]["embedding"]["kernel"].shape[0])


AGGREGATORS = {"hipt": HIPT}
