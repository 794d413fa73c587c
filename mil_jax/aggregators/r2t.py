"""R2T, the Re-embedded Regional Transformer (Tang et al., CVPR 2024, eq. 3 to 9): new features for a bag's instances.

x [N, D] -> e = relu(x W + b) -> layers y <- y + R-MSA(LN(y)), the last one y <- y + CR-MSA(LN(y)) -> LN(y). Instances
lie on a square in the order of the bag, so order matters (`layers/region_attention.py`).

Differences to DearCaat/RRT-MIL: the regions of CR-MSA are a setting (there always 8 x 8); a region of equal instances
has no min-max gradient (there it explodes); ranking and reweighting of regions is an addition, off by default. Its
EPEG on values, drop path and Nystrom layers are left out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mil_jax.aggregators import checks
from mil_jax.bags import Bag
from mil_jax.errors import ConfigError
from mil_jax.layers import masked
from mil_jax.layers.activations import ACTIVATIONS
from mil_jax.layers.dropout import draws, dropout, hyper
from mil_jax.layers.initializers import Affine, AffineParameters
from mil_jax.layers.ppeg import position_encoding
from mil_jax.layers.region_attention import Grid, cross_region_attention, region_attention, region_weights
from mil_jax.types import Array, PyTree

LAYER_NORM_EPSILON = 1e-5
PPEG_COLUMNS = 7  # a smaller square is laid out in rows of this length


class RegionTransformer(nn.Module, kw_only=True):
    """What R2T and RRT-MIL share: settings, parameters, and the re-embedding of [N, D] to [N, feature_dim].

    feature_layer: "linear" (D -> feature_dim, feature_activation "relu" or "gelu", then `dropout`) or "none".
    num_layers: R-MSA layers and the CR-MSA layer together, as the reference counts (without cross_region one fewer).
    num_heads, qkv_bias, transformer_dropout (after each projection, and in the feed-forward layers): of all layers.
    region_num, region_size, min_region_num, min_region_ratio: the regions of R-MSA, see `region_attention.Grid`.
    epeg_kernel: taps of the position term over the queries, odd; 0 = off. epeg_2d: over the keys, too.
    cross_region: whether CR-MSA is there; representatives: k of it; cross_region_mlp: logits by a two-layer network;
    cross_region_heads, cross_region_num: its heads and its regions a side.
    feed_forward, feed_forward_ratio, feed_forward_activation: a feed-forward network after each attention.
    position: "none", "ppeg" or "peg"; position_place: "before" the layers or "between" the first and second R-MSA;
    position_kernel, position_bias: of its depthwise convolution (PPEG adds ones of 5 and 3).
    shortcut: adds the features to the last layer's output.
    region_reweighting: each region is weighted by a learned score of its mean; num_best_regions > 0 keeps only those
    that rank best. initializer: "xavier_normal" or "torch".

    The dropout rates are numeric: the collection "hyper" may hold other values. Raises ConfigError for settings that
    cannot work.
    """

    feature_layer: str = "linear"
    feature_dim: int = 512
    feature_activation: str = "relu"
    dropout: float = 0.25
    num_layers: int = 2
    num_heads: int = 8
    qkv_bias: bool = True
    transformer_dropout: float = 0.1
    region_num: int = 8
    region_size: int = 0
    min_region_num: int = 0
    min_region_ratio: float = 0.0
    epeg_kernel: int = 15
    epeg_2d: bool = False
    cross_region: bool = True
    representatives: int = 3
    cross_region_mlp: bool = False
    cross_region_heads: int = 8
    cross_region_num: int = 8
    feed_forward: bool = False
    feed_forward_ratio: float = 4.0
    feed_forward_activation: str = "gelu"
    position: str = "none"
    position_place: str = "before"
    position_kernel: int = 7
    position_bias: bool = True
    shortcut: bool = False
    region_reweighting: bool = False
    num_best_regions: int = 0
    initializer: str = "xavier_normal"

    numeric_settings: ClassVar[tuple[str, ...]] = ("dropout", "transformer_dropout")
    mixes_instances: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.one_of("feature_layer", self.feature_layer, ("linear", "none"))
        checks.one_of("feature_activation", self.feature_activation, ("relu", "gelu"))
        checks.one_of("feed_forward_activation", self.feed_forward_activation, ("relu", "gelu"))
        checks.one_of("position", self.position, ("none", "ppeg", "peg"))
        checks.one_of("position_place", self.position_place, ("before", "between"))
        checks.one_of("initializer", self.initializer, ("xavier_normal", "torch"))
        for name in (
            "feature_dim",
            "num_layers",
            "num_heads",
            "region_num",
            "representatives",
            "cross_region_heads",
            "cross_region_num",
        ):
            checks.positive(name, getattr(self, name))
        for name in ("region_size", "min_region_num", "epeg_kernel", "num_best_regions"):
            if getattr(self, name) != 0:
                checks.positive(name, getattr(self, name))
        checks.not_negative("min_region_ratio", self.min_region_ratio)
        checks.rate("dropout", self.dropout)
        checks.rate("transformer_dropout", self.transformer_dropout)
        self._check_together()
        super().__post_init__()

    def _check_together(self) -> None:
        if self.feature_layer == "none" and self.dropout:
            raise ConfigError(
                f"aggregator.dropout={self.dropout} follows the feature layer; "
                "with aggregator.feature_layer='none' set it to 0"
            )
        if self.feature_layer == "linear":
            self._check_heads(self.feature_dim)
        for name in ("epeg_kernel", "position_kernel"):
            if getattr(self, name) and getattr(self, name) % 2 == 0:
                raise ConfigError(f"aggregator.{name}={getattr(self, name)} must be odd, to have a middle")
        if self.position != "none" and self.position_place == "between" and self.num_layers < 3:
            raise ConfigError(
                "aggregator.position_place='between' is before the second R-MSA layer, and "
                f"aggregator.num_layers={self.num_layers} has none: set it to 3 or more"
            )
        if self.num_best_regions and not self.region_reweighting:
            raise ConfigError("aggregator.num_best_regions ranks regions: set aggregator.region_reweighting, too")

    def _check_heads(self, width: int) -> None:
        heads = {"num_heads": self.num_heads} | (
            {"cross_region_heads": self.cross_region_heads} if self.cross_region else {}
        )
        for name, count in heads.items():
            if width % count:
                raise ConfigError(f"aggregator.{name}={count} does not divide the width of the instances, {width}")

    @property
    def grid(self) -> Grid:
        """The regions of R-MSA."""
        return Grid(self.region_num, self.region_size, self.min_region_num, self.min_region_ratio)

    def _reembedded(self, bag: Bag, train: bool) -> Array:
        """[N, feature_dim], 0 on padding."""
        # Without dropout no key is needed, and none is asked for.
        key = self.make_rng("dropout") if self._draws(train) else jax.random.key(0)
        y = features = self._features(bag, train, key)  # [N, E]
        self._check_heads(y.shape[-1])
        if self.position_place == "before":
            y = self._positioned(y, bag.mask)
        for number in range(self.num_layers - 1):
            if number == 1 and self.position_place == "between":
                y = self._positioned(y, bag.mask)
            y = self._layer(number, f"layer_{number}", y, bag.mask, self._region_attention, train, key)
        if self.cross_region:
            number = self.num_layers - 1
            y = self._layer(number, "cross_region", y, bag.mask, self._cross_region_attention, train, key)
        y = masked.zero_padding(self._norm("norm", y + features if self.shortcut else y), bag.mask)
        return y * self._weights(y, bag.mask)[:, None] if self.region_reweighting else y

    def _features(self, bag: Bag, train: bool, key: Array) -> Array:
        x = masked.zero_padding(bag.features, bag.mask)  # [N, D]
        if x.ndim != 2:
            raise ConfigError(
                f"region attention reads feature vectors [N, D], but the bag has the shape {list(x.shape)}"
            )
        if self.feature_layer == "none":
            return x
        h = ACTIVATIONS[self.feature_activation](self._linear("feature", x.shape[-1], self.feature_dim)(x))
        if draws(self, "dropout", self.dropout, train):
            h = dropout(h, hyper(self, "dropout", self.dropout), jax.random.fold_in(key, 0))
        return h

    def _layer(
        self,
        number: int,
        name: str,
        y: Array,
        mask: Array,
        attention: Callable[[str, Array, Array, Callable[[Array], Array]], Array],
        train: bool,
        key: Array,
    ) -> Array:
        """y + attention(LN(y)), and the feed-forward network where there is one."""
        drops = draws(self, "transformer_dropout", self.transformer_dropout, train)
        rate = hyper(self, "transformer_dropout", self.transformer_dropout)

        def drop(x: Array, use: int = 1) -> Array:
            return dropout(x, rate, jax.random.fold_in(key, 3 * number + use)) if drops else x

        y = y + attention(name, self._norm(f"{name}_norm", y), mask, drop).astype(y.dtype)
        if self.feed_forward:
            width, hidden_width = y.shape[-1], int(y.shape[-1] * self.feed_forward_ratio)
            z = self._linear(f"{name}_feed_forward_1", width, hidden_width)(self._norm(f"{name}_feed_forward_norm", y))
            z = drop(ACTIVATIONS[self.feed_forward_activation](z), 2)
            y = y + drop(self._linear(f"{name}_feed_forward_2", hidden_width, width)(z), 3)
        self.sow("intermediates", name, y)
        return y

    def _region_attention(self, name: str, x: Array, mask: Array, drop: Callable[[Array], Array]) -> Array:
        epeg = None
        if self.epeg_kernel:
            shape = (self.epeg_kernel, self.epeg_kernel if self.epeg_2d else 1, 1)
            epeg = AffineParameters(self.num_heads, self.initializer, name=f"{name}_epeg")(*shape)
        qkv, projection = self._attention_parameters(name, x.shape[-1])
        return drop(region_attention(x, mask, qkv, projection, epeg, num_heads=self.num_heads, grid=self.grid))

    def _cross_region_attention(self, name: str, x: Array, mask: Array, drop: Callable[[Array], Array]) -> Array:
        qkv, projection = self._attention_parameters(name, x.shape[-1])
        phi, heads, grid = self._phi(x.shape[-1]), self.cross_region_heads, Grid(self.cross_region_num)
        return cross_region_attention(x, mask, phi, qkv, projection, num_heads=heads, grid=grid, drop=drop)

    def _attention_parameters(self, name: str, width: int) -> tuple[Affine, Affine]:
        qkv = AffineParameters(3 * width, self.initializer, self.qkv_bias, name=f"{name}_qkv")(width)
        return qkv, self._linear(f"{name}_projection", width, width)

    def _phi(self, width: int) -> Callable[[Array], Array]:
        if self.cross_region_mlp:
            hidden = AffineParameters(width // 4, self.initializer, False, name="cross_region_hidden")(width)
            output = AffineParameters(self.representatives, self.initializer, False, name="cross_region_logits")
            logits = output(width // 4)
            return lambda x: logits(jnp.tanh(hidden(x)))

        # The reference reads the fan-in of this matrix as k: the first logits are large.
        def uniform(key: Array, shape: tuple[int, ...]) -> Array:
            bound = 1.0 / math.sqrt(self.representatives)
            return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

        phi = self.param("cross_region_phi", uniform, (width, self.representatives))
        return lambda x: x @ phi

    def _positioned(self, y: Array, mask: Array) -> Array:
        if self.position == "none":
            return y
        sizes = (self.position_kernel, 5, 3) if self.position == "ppeg" else (self.position_kernel,)
        convolutions = [
            AffineParameters(y.shape[-1], self.initializer, self.position_bias, name=f"position_{number}")(
                size, size, 1
            )
            for number, size in enumerate(sizes)
        ]
        min_columns = PPEG_COLUMNS if self.position == "ppeg" else 1
        y = masked.zero_padding(y, mask)
        return position_encoding(y, jnp.sum(mask, dtype=jnp.int32), convolutions, min_columns=min_columns)

    def _weights(self, y: Array, mask: Array) -> Array:
        score = self._linear("region_score", y.shape[-1], 1)
        return region_weights(y, mask, lambda x: score(x)[:, 0], grid=self.grid, num_best=self.num_best_regions)

    def _linear(self, name: str, inputs: int, outputs: int) -> Affine:
        return AffineParameters(outputs, self.initializer, name=name)(inputs)

    def _norm(self, name: str, y: Array) -> Array:
        return nn.LayerNorm(LAYER_NORM_EPSILON, use_fast_variance=False, name=name)(y)

    def _draws(self, train: bool) -> bool:
        return any(draws(self, name, getattr(self, name), train) for name in self.numeric_settings)

    def _encoder_map(self, prefix: str) -> dict[str, tuple[str, str]]:
        mapping: dict[str, tuple[str, str]] = {}

        def add(published: str, path: str, weight: tuple[str, str] = ("kernel", "linear"), bias: bool = True) -> None:
            mapping[f"{prefix}{published}.weight"] = (f"{path}/{weight[0]}", weight[1])
            if bias:
                mapping[f"{prefix}{published}.bias"] = (f"{path}/bias", "same")

        norm, convolution = ("scale", "same"), ("kernel", "conv")
        layers = {f"layers.{number}": f"layer_{number}" for number in range(self.num_layers - 1)}
        for published, path in layers.items() | ({"cr_msa": "cross_region"} if self.cross_region else {}).items():
            add(f"{published}.norm", f"{path}_norm", norm)
            add(f"{published}.attn.attn.qkv", f"{path}_qkv", bias=self.qkv_bias)
            add(f"{published}.attn.attn.proj", f"{path}_projection")
            if self.epeg_kernel and path != "cross_region":
                add(f"{published}.attn.attn.pe", f"{path}_epeg", convolution)
            if self.feed_forward:
                add(f"{published}.norm2", f"{path}_feed_forward_norm", norm)
                add(f"{published}.mlp.fc1", f"{path}_feed_forward_1")
                add(f"{published}.mlp.fc2", f"{path}_feed_forward_2")
        if self.cross_region and self.cross_region_mlp:
            add("cr_msa.attn.phi.0", "cross_region_hidden", bias=False)
            add("cr_msa.attn.phi.2", "cross_region_logits", bias=False)
        elif self.cross_region:
            mapping[f"{prefix}cr_msa.attn.phi"] = ("cross_region_phi", "same")
        for number in range({"none": 0, "peg": 1, "ppeg": 3}[self.position]):
            add(f"pos_embedding.proj{number or ''}", f"position_{number}", convolution, self.position_bias)
        add("norm", "norm", norm)
        return mapping

    @nn.nowrap
    def feature_shape(self, params: PyTree) -> tuple[int, ...]:
        """Shape F of the instances that `params` were made for."""
        return params["norm"]["scale"].shape if self.feature_layer == "none" else params["feature"]["kernel"].shape[:1]


class R2T(RegionTransformer, kw_only=True):
    """Re-embeds a bag: the same bag with features [N, feature_dim], 0 on padding. Fields: `RegionTransformer`."""

    @nn.compact
    def __call__(self, bag: Bag, train: bool = False) -> Bag:
        return dataclasses.replace(bag, features=self._reembedded(bag, train))

    @nn.nowrap
    def state_dict_map(self, variant: str) -> dict[str, tuple[str, str]]:
        """Published parameter name -> (path of the parameter, transform), for `interop.torch_checkpoints`.

        The variant "encoder" is the published encoder alone (`feature_layer="none"`). Raises ConfigError for others.
        """
        checks.one_of("variant", variant, ("encoder",))
        return self._encoder_map("")

    @nn.nowrap
    def unused_entries(self, variant: str) -> dict[str, tuple[int, ...]]:
        """None: the encoder reads all of its parameters."""
        del variant
        return {}
