"""TransMIL (Shao et al., NeurIPS 2021, Algorithm 2): embedding, squaring, class token, Nystrom layer, PPEG, Nystrom layer.

E = act(x We + be); Y1 = Y0 + NA(LN(Y0)), Y0 = [class token; E and as many of its first rows again as make h^2, h = ceil(sqrt n)];
Y2 = Y1 with its tokens through PPEG; Y3 = Y2 + NA(LN(Y2)); logits = W LN(Y3)[0] + b. Exact for a dynamic n in a static bucket. Of the
last layer only the class token is computed, since nothing else is read. `squaring=False` is the `selfattn` of MHIM-MIL: the class
token joins the n tokens as they are, and the position layer squares inside itself. The pseudo-inverse is scaled per bag.
"""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from mil_jax.aggregators import checks
from mil_jax.aggregators.base import Aggregator
from mil_jax.bags import Bag, Prediction
from mil_jax.errors import ConfigError
from mil_jax.layers import backend, masked
from mil_jax.layers.activations import ACTIVATIONS
from mil_jax.layers.dropout import draw_key, dropout, hyper
from mil_jax.layers.initializers import KERNEL_INITIALIZERS, Affine, AffineParameters
from mil_jax.layers.instance_masks import class_certainty
from mil_jax.layers.nystrom import (
    NystromWeights,
    first_token_attention,
    first_token_output,
    first_token_shares,
    nystrom_attention,
)
from mil_jax.layers.ppeg import complete_square, position_encoding, square_encoding, square_side
from mil_jax.types import Array, PyTree

_ROWS = 128  # of which a GPU's matrix products take a multiple: rows of zeros fill the last one

VARIANTS: dict[str, dict[str, Any]] = {
    "transmil_original": {},
    "transmil_mhim": {"dropout": 0.25, "initializer": "xavier_normal", "class_token_deviation": 1e-6},
    "transmil_milab": {"dropout": 0.25, "num_heads": 4},
    "transmil_selfattn": {"dropout": 0.25, "initializer": "xavier_normal", "squaring": False},
}

# Published names: of the embedding, the class token, the Nystrom layers with their attention, the position layer, norm and classifier.
_PUBLISHED: dict[str, tuple[str, str, str, str, str, str]] = {
    "transmil_original": ("_fc1.0", "", "layer{}.attn", "pos_layer", "norm", "_fc2"),
    "transmil_mhim": ("feature.0", "", "layer{}.attn", "pos_layer", "norm", "classifier"),
    "transmil_milab": ("patch_embed.0", "", "blocks.{}.attention", "pos_layer", "norm", "classifier"),
    "transmil_selfattn": ("feature.0", "online_encoder.", "layer{}.attn", "pos_embedding", "norm", "predictor"),
}


class TransMIL(Aggregator):
    """Transformer of two Nystrom layers over all instances of a bag, in their order.

    feature_layer: "linear" (D -> feature_dim, then `feature_activation`, then `dropout` in training) or "none" (feature_dim = D).
    input_norm: a LayerNorm before the feature layer.
    num_heads, head_dim: of both attention layers; head_dim None = feature_dim / num_heads.
    num_landmarks: None = feature_dim / 2. pinv_iterations: of the pseudo-inverse. residual_kernel: taps of the values' convolution.
    attention_dropout: dropout of each attention layer's output.
    squaring: repeat the first instances until the tokens fill a square; False: only inside the position layer.
    position: "ppeg" (three convolutions: `position_kernel`, 5 and 3), "peg" (one) or "none".
    class_token_deviation: of its normal initialisation.
    initializer: "torch", "xavier_normal" or "kaiming_uniform".

    Both dropout rates are numeric: the collection "hyper" may hold other values. The prediction's `embedding` is LN(Y3)[0], its
    `aux["unnormalized_embedding"]` Y3[0]. `aux["class_attention"]` [2, heads, N] is the class token's row of A1 Z A3 in both layers,
    `attention` [N] its mean over the heads of the last: as in the method it may be negative and does not sum to 1;
    `aux["class_scores"]` [N] (-inf on padding) orders instances by the largest class probability of what each adds to the class token in
    the first layer. Under `jit` these three cost nothing unless they are used; they carry no gradient. Raises ConfigError for settings
    that cannot work.
    """

    feature_layer: str = "linear"
    feature_dim: int = 512
    feature_activation: str = "relu"
    input_norm: bool = False
    dropout: float = 0.0
    num_heads: int = 8
    head_dim: int | None = None
    num_landmarks: int | None = None
    pinv_iterations: int = 6
    residual_kernel: int = 33
    attention_dropout: float = 0.1
    squaring: bool = True
    position: str = "ppeg"
    position_kernel: int = 7
    class_token_deviation: float = 1.0
    initializer: str = "torch"

    variants = VARIANTS
    numeric_settings: ClassVar[tuple[str, ...]] = ("dropout", "attention_dropout")
    mixes_instances: ClassVar[bool] = True

    def __post_init__(self) -> None:
        checks.one_of("feature_layer", self.feature_layer, ("linear", "none"))
        checks.one_of("feature_activation", self.feature_activation, ("relu", "gelu"))
        checks.one_of("position", self.position, ("ppeg", "peg", "none"))
        checks.one_of("initializer", self.initializer, KERNEL_INITIALIZERS)
        for name in ("feature_dim", "num_heads", "pinv_iterations"):
            checks.positive(name, getattr(self, name))
        for name in ("head_dim", "num_landmarks"):
            if getattr(self, name) is not None:
                checks.positive(name, getattr(self, name))
        for name in ("residual_kernel", "position_kernel"):
            checks.positive(name, getattr(self, name))
            if getattr(self, name) % 2 == 0:
                raise ConfigError(f"aggregator.{name}={getattr(self, name)} must be odd, so that it has a centre")
        checks.rate("dropout", self.dropout)
        checks.rate("attention_dropout", self.attention_dropout)
        if self.feature_layer == "linear":
            self._check_width(self.feature_dim)
        elif self.dropout:
            raise ConfigError(
                f"aggregator.dropout={self.dropout} follows the feature layer; "
                "with aggregator.feature_layer='none' set it to 0"
            )
        super().__post_init__()

    @nn.nowrap
    def _check_width(self, width: int) -> None:
        if self.head_dim is None and width % self.num_heads:
            raise ConfigError(
                f"aggregator.num_heads={self.num_heads} does not divide the width {width}; "
                "choose a divisor of it or set aggregator.head_dim"
            )

    @nn.compact
    def __call__(self, bag: Bag, train: bool = False) -> Prediction:
        if bag.features.ndim != 2:
            raise ConfigError(
                f"transmil reads feature vectors [N, D], but the bag has the shape {list(bag.features.shape)}"
            )
        num_instances = bag.num_instances
        h = self._instance_features(masked.zero_padding(bag.features, bag.mask), train)  # [N, E]
        self._check_width(h.shape[-1])
        h = masked.zero_padding(h, bag.mask)
        tokens, num_tokens = h, num_instances
        if self.squaring:
            tokens, num_tokens = complete_square(h, num_instances), square_side(num_instances) ** 2
        class_token = self.param("class_token", nn.initializers.normal(self.class_token_deviation), (1, 1, h.shape[-1]))
        behind = 0 if backend.is_cpu() else -(1 + len(tokens)) % _ROWS
        y = jnp.concatenate([class_token[0], jnp.pad(tokens, ((0, behind), (0, 0)))])  # [S, E]
        classifier = self._affine("classifier", self.num_outputs, h.shape[-1])
        y, first, shares = self._layer("layer_1", y, num_tokens + 1, 1, train, kernel=classifier.kernel)
        self.sow("intermediates", "layer_1", y)
        y = self._with_position(y, num_tokens, len(tokens))
        self.sow("intermediates", "position", y)
        y, last, _ = self._layer("layer_2", y, num_tokens + 1, 2, train, first_only=True)  # [1, E]
        self.sow("intermediates", "layer_2", y)
        embedding = _layer_norm("norm")(y)[0].astype(jnp.float32)
        class_attention = jnp.where(bag.mask, jnp.stack([first, last])[..., 1 : len(h) + 1], 0)  # [2, heads, N]
        class_scores = masked.hide_padding(class_certainty(shares[1 : len(h) + 1]), bag.mask)
        return Prediction(
            classifier(embedding),
            jnp.mean(class_attention[1], axis=0),
            embedding=embedding,
            aux={
                "class_attention": class_attention,
                "class_scores": class_scores,
                "unnormalized_embedding": y[0].astype(jnp.float32),
            },
        )

    def _instance_features(self, x: Array, train: bool) -> Array:
        if self.input_norm:
            x = _layer_norm("input_norm")(x)
        if self.feature_layer == "none":
            return x
        h = ACTIVATIONS[self.feature_activation](self._affine("feature", self.feature_dim, x.shape[-1])(x))
        key = draw_key(self, "dropout", self.dropout, train, 0)
        if key is not None:
            h = dropout(h, hyper(self, "dropout", self.dropout), key)
        return h

    def _layer(
        self,
        name: str,
        y: Array,
        num_tokens: Array,
        number: int,
        train: bool,
        first_only: bool = False,
        kernel: Array | None = None,
    ) -> tuple[Array, Array, Array]:
        """y + NA(LN(y)), of all tokens [S, E] or the first [1, E], and the first token's attention [heads, S].

        kernel: [E, C]; then also what each token adds to the first one's logits, [S, C].
        """
        width = y.shape[-1]
        inner = self.num_heads * (self.head_dim or width // self.num_heads)
        weights = NystromWeights(
            self._affine(f"{name}_qkv", 3 * inner, width, use_bias=False).kernel,
            self._affine(f"{name}_output", width, inner),
            self._affine(f"{name}_residual", self.num_heads, self.residual_kernel, 1, 1, use_bias=False).kernel[
                :, 0, 0
            ],
        )
        settings = {"num_landmarks": self.num_landmarks or max(width // 2, 1), "iterations": self.pinv_iterations}
        real = (jnp.arange(len(y)) < num_tokens)[:, None]
        x = jnp.where(real, _layer_norm(f"{name}_norm")(y), 0)
        if first_only:
            attention = first_token_attention(x, num_tokens, weights, **settings)
            attended, y = first_token_output(x, attention, weights), y[:1]
        else:
            attended = nystrom_attention(x, num_tokens, weights, **settings)
            x, weights = jax.lax.stop_gradient((x, weights))
            attention = first_token_attention(x, num_tokens, weights, **settings)
        shares = jnp.zeros(()) if kernel is None else first_token_shares(x, attention, weights, kernel)
        key = draw_key(self, "attention_dropout", self.attention_dropout, train, number)
        if key is not None:
            attended = dropout(attended, hyper(self, "attention_dropout", self.attention_dropout), key)
        y = y + attended if first_only else jnp.where(real, y + attended, 0)
        return y, jax.lax.stop_gradient(attention), shares

    def _with_position(self, y: Array, num_tokens: Array, size: int) -> Array:
        """The first `size` tokens behind the class token through the position layer."""
        if self.position == "none":
            return y
        sizes = {"position_1": self.position_kernel}
        if self.position == "ppeg":
            sizes |= {"position_2": 5, "position_3": 3}
        convolutions = [self._affine(name, y.shape[-1], size, size, 1) for name, size in sizes.items()]
        if self.squaring:
            tokens = square_encoding(y[1 : size + 1], square_side(num_tokens), convolutions)
        else:  # MHIM-MIL, whose PPEG squares by itself and lays short bags in rows of 7
            min_columns = 7 if self.position == "ppeg" else 1
            tokens = position_encoding(y[1 : size + 1], num_tokens, convolutions, min_columns=min_columns)
        return jnp.concatenate([y[:1], tokens.astype(y.dtype), y[size + 1 :]])

    def _affine(self, name: str, outputs: int, *axes: int, use_bias: bool = True) -> Affine:
        return AffineParameters(outputs, self.initializer, use_bias, name=name)(*axes)

    @nn.nowrap
    def state_dict_map(self, variant: str) -> dict[str, tuple[str, str]]:
        checks.one_of("variant", variant, _PUBLISHED)
        feature, encoder, attention, position, norm, classifier = _PUBLISHED[variant]
        mapping = {f"{encoder}cls_token": ("class_token", "same")}

        def linear(published: str, layer: str, transform: str = "linear") -> None:
            mapping[f"{published}.weight"] = (f"{layer}/kernel", transform)
            mapping[f"{published}.bias"] = (f"{layer}/bias", "same")

        def layer_norm(published: str, layer: str) -> None:
            mapping[f"{published}.weight"] = (f"{layer}/scale", "same")
            mapping[f"{published}.bias"] = (f"{layer}/bias", "same")

        if self.input_norm:
            layer_norm("feature.0", "input_norm")
            feature = feature.replace("feature.0", "feature.1")
        if self.feature_layer == "linear":
            linear(feature, "feature")
        for number in (1, 2):
            block = encoder + attention.format(number - 1 if variant == "transmil_milab" else number)
            layer_norm(f"{block.rpartition('.')[0]}.norm", f"layer_{number}_norm")
            mapping[f"{block}.to_qkv.weight"] = (f"layer_{number}_qkv/kernel", "linear")
            linear(f"{block}.to_out.0", f"layer_{number}_output")
            mapping[f"{block}.res_conv.weight"] = (f"layer_{number}_residual/kernel", "conv")
        published = {"ppeg": ("proj", "proj1", "proj2"), "peg": ("proj",), "none": ()}[self.position]
        for number, name in enumerate(published, start=1):
            linear(f"{encoder}{position}.{name}", f"position_{number}", "conv")
        layer_norm(f"{encoder}{norm}", "norm")
        linear(classifier, "classifier")
        return mapping

    @nn.nowrap
    def feature_shape(self, params: PyTree) -> tuple[int, ...]:
        if self.feature_layer == "linear":
            return (params["feature"]["kernel"].shape[0],)
        return (params["norm"]["scale"].shape[0],)


def _layer_norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)


AGGREGATORS = {"transmil": TransMIL}
