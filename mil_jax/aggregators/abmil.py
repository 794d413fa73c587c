"""ABMIL, attention-based MIL pooling, plain and gated (Ilse, Tomczak, Welling 2018, eq. 7 to 9), in the forms that
are in use.

x [N, D] -> H = act(x Wf + bf) -> scores s = w' phi(V h) or w' (phi(V h) * sigmoid(U h)) -> a = softmax(s) -> z = (a
H) Wc + bc. The original, and what AttentionDeepMIL, MHIM-MIL, MIL-Lab and PathGene call ABMIL, differ in feature
layer, widths, activation, bias, dropout and initialisation: `VARIANTS` gives each as values of the fields.
"""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn

from mil_jax.aggregators import checks
from mil_jax.aggregators.base import Aggregator
from mil_jax.bags import Bag, Prediction
from mil_jax.errors import ConfigError
from mil_jax.layers import masked
from mil_jax.layers.activations import ACTIVATIONS
from mil_jax.layers.attention_pool import attention_pool, attention_scores
from mil_jax.layers.dropout import draw_key, dropout, hyper
from mil_jax.layers.initializers import KERNEL_INITIALIZERS, AffineParameters, ranked_product
from mil_jax.layers.instance_masks import class_certainty
from mil_jax.layers.lenet import CHANNELS, IMAGE_SIZE, KERNEL_SIZE, lenet_features
from mil_jax.types import Array, PyTree

_ILSE = {
    "feature_layer": "lenet",
    "feature_dim": 500,
    "dropout": 0.0,
    "attention_dim": 128,
    "attention_dropout": 0.0,
    "initializer": "torch",
}
_MHIM = {"dropout": 0.25, "initializer": "xavier_normal"}
_MILAB = {"dropout": 0.0, "attention_dim": 384, "attention_dropout": 0.25, "initializer": "kaiming_uniform"}

VARIANTS: dict[str, dict[str, Any]] = {
    "ilse_attention": {**_ILSE, "gated": False},
    "ilse_gated": {**_ILSE, "gated": True},
    "pathgene": {
        "feature_layer": "none",
        "dropout": 0.0,
        "attention_dim": None,
        "gated": False,
        "attention_dropout": 0.0,
        "initializer": "torch",
    },
    "mhim_dattention": {**_MHIM, "attention_dim": 128, "gated": False, "attention_dropout": 0.0},
    "mhim_gated": {**_MHIM, "attention_dim": 384, "gated": True, "attention_dropout": 0.25},
    "mhim_pure_attn": {
        **_MHIM,
        "attention_dim": 128,
        "gated": False,
        "attention_activation": "relu",
        "attention_bias": False,
        "attention_dropout": 0.0,
    },
    "milab_gated": {**_MILAB, "gated": True},
    "milab_plain": {**_MILAB, "gated": False},
}

_ILSE_CONVOLUTIONS = {"convolution_1": "feature_extractor_part1.0", "convolution_2": "feature_extractor_part1.3"}
_MHIM_GATED = {  # the attention of MHIM-MIL's published TCGA checkpoints
    "attention_v": "online_encoder.attention.attention_a.0",
    "attention_u": "online_encoder.attention.attention_b.0",
    "attention_w": "online_encoder.attention.attention_c",
}
_PUBLISHED_LAYERS: dict[str, dict[str, str]] = {
    "ilse_attention": {
        **_ILSE_CONVOLUTIONS,
        "feature": "feature_extractor_part2.0",
        "attention_v": "attention.0",
        "attention_w": "attention.2",
        "classifier": "classifier.0",
    },
    "ilse_gated": {
        **_ILSE_CONVOLUTIONS,
        "feature": "feature_extractor_part2.0",
        "attention_v": "attention_V.0",
        "attention_u": "attention_U.0",
        "attention_w": "attention_w",
        "classifier": "classifier.0",
    },
    "pathgene": {"attention_v": "attention.0", "attention_w": "attention.2", "classifier": "classifier"},
    "mhim_dattention": {
        "feature": "feature.0",
        "attention_v": "attention.0",
        "attention_w": "attention.2",
        "classifier": "classifier",
    },
    "mhim_gated": {
        "feature": "feature.0",
        "attention_v": "attention_a.0",
        "attention_u": "attention_b.0",
        "attention_w": "attention_c",
        "classifier": "classifier.0",
    },
    "mhim_pure_attn": {
        "feature": "feature.0",
        "attention_v": "online_encoder.attention.attention.0",
        "attention_w": "online_encoder.attention.attention.2",
        "classifier": "predictor",
    },
    "milab_gated": {
        "feature": "patch_embed.0",
        "attention_v": "global_attn.attention_a.0",
        "attention_u": "global_attn.attention_b.0",
        "attention_w": "global_attn.attention_c",
        "classifier": "classifier",
    },
    "milab_plain": {
        "feature": "patch_embed.0",
        "attention_v": "global_attn.module.0",
        "attention_w": "global_attn.module.3",
        "classifier": "classifier",
    },
}


class ABMIL(Aggregator):
    """Attention-based MIL pooling.

    feature_layer: "linear" (D -> feature_dim), "lenet" (images [28, 28, 1] -> feature_dim) or "none" (H = x).
    feature_activation: "relu" or "gelu" after the feature layer; `dropout` follows it in training.
    attention_dim: hidden width; None = the width of H.
    attention_activation: "tanh", "relu" or "gelu"; the gate is always a sigmoid.
    attention_bias: whether the layers of the attention have biases.
    attention_dropout: dropout of each attention branch.
    initializer: "torch", "xavier_normal" or "kaiming_uniform".

    Both dropout rates are numeric: the collection "hyper" may hold other values, traced ones too. The prediction's
    `embedding` is [L]; aux["class_scores"] [N] (-inf on padding) orders instances by the largest class probability of what each adds to
    the logits, and costs nothing under `jit` unless it is used. The features [N, L] are sown as "instance_features" in "intermediates".
    Raises ConfigError for settings that cannot work.
    """

    feature_layer: str = "linear"
    feature_dim: int = 512
    feature_activation: str = "relu"
    dropout: float = 0.25
    attention_dim: int | None = 384
    gated: bool = True
    attention_activation: str = "tanh"
    attention_bias: bool = True
    attention_dropout: float = 0.25
    initializer: str = "xavier_normal"

    variants = VARIANTS
    numeric_settings: ClassVar[tuple[str, ...]] = ("dropout", "attention_dropout")

    def __post_init__(self) -> None:
        checks.one_of("feature_layer", self.feature_layer, ("linear", "none", "lenet"))
        checks.positive("feature_dim", self.feature_dim)
        checks.one_of("feature_activation", self.feature_activation, ("relu", "gelu"))
        checks.one_of("attention_activation", self.attention_activation, ACTIVATIONS)
        checks.one_of("initializer", self.initializer, KERNEL_INITIALIZERS)
        checks.rate("dropout", self.dropout)
        checks.rate("attention_dropout", self.attention_dropout)
        if self.attention_dim is not None:
            checks.positive("attention_dim", self.attention_dim)
        if self.feature_layer == "none" and self.dropout:
            raise ConfigError(
                f"aggregator.dropout={self.dropout} follows the feature layer; "
                "with aggregator.feature_layer='none' set it to 0"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, bag: Bag, train: bool = False) -> Prediction:
        x = masked.zero_padding(bag.features, bag.mask)  # [N, *F]
        h = self._instance_features(x, train)  # [N, L]
        self.sow("intermediates", "instance_features", h)
        scores = self._scores(h, train)  # [N]
        attention = masked.softmax(scores, bag.mask)
        embedding = attention_pool(attention, h)  # [L]
        classifier = AffineParameters(self.num_outputs, self.initializer, name="classifier")(h.shape[-1])
        shares = attention[:, None] * ranked_product(h, classifier.kernel)  # [N, C]
        return Prediction(
            classifier(embedding),
            attention,
            masked.hide_padding(scores, bag.mask),
            embedding,
            aux={"class_scores": masked.hide_padding(class_certainty(shares), bag.mask)},
        )

    def _instance_features(self, x: Array, train: bool) -> Array:
        expected = 4 if self.feature_layer == "lenet" else 2
        if x.ndim != expected:
            what = "images [N, height, width, channels]" if expected == 4 else "feature vectors [N, D]"
            raise ConfigError(
                f"aggregator.feature_layer={self.feature_layer!r} reads {what}, "
                f"but the bag has the shape {list(x.shape)}"
            )
        if self.feature_layer == "none":
            return x
        if self.feature_layer == "lenet":
            first = AffineParameters(CHANNELS[0], self.initializer, name="convolution_1")(
                KERNEL_SIZE, KERNEL_SIZE, x.shape[-1]
            )
            second = AffineParameters(CHANNELS[1], self.initializer, name="convolution_2")(
                KERNEL_SIZE, KERNEL_SIZE, CHANNELS[0]
            )
            x = lenet_features(x, first, second)  # [N, 800]
        feature = AffineParameters(self.feature_dim, self.initializer, name="feature")(x.shape[-1])
        h = ACTIVATIONS[self.feature_activation](feature(x))
        key = draw_key(self, "dropout", self.dropout, train, 0)
        if key is not None:
            h = dropout(h, hyper(self, "dropout", self.dropout), key)
        return h

    def _scores(self, h: Array, train: bool) -> Array:
        width, hidden = h.shape[-1], self.attention_dim or h.shape[-1]

        def layer(name: str, inputs: int, outputs: int) -> Any:
            return AffineParameters(outputs, self.initializer, self.attention_bias, name=name)(inputs)

        return attention_scores(
            h,
            layer("attention_v", width, hidden),
            layer("attention_w", hidden, 1),
            layer("attention_u", width, hidden) if self.gated else None,
            activation=ACTIVATIONS[self.attention_activation],
            dropout_rate=hyper(self, "attention_dropout", self.attention_dropout),
            dropout_key=draw_key(self, "attention_dropout", self.attention_dropout, train, 1),
        )

    @nn.nowrap
    def state_dict_map(self, variant: str) -> dict[str, tuple[str, str]]:
        checks.one_of("variant", variant, _PUBLISHED_LAYERS)
        mapping, layers = {}, _PUBLISHED_LAYERS[variant]
        if variant == "mhim_pure_attn" and self.gated:
            layers = layers | _MHIM_GATED
        for layer, published in layers.items():
            mapping[f"{published}.weight"] = (f"{layer}/kernel", "conv" if "convolution" in layer else "linear")
            if self.attention_bias or not layer.startswith("attention"):
                mapping[f"{published}.bias"] = (f"{layer}/bias", "same")
        return mapping

    @nn.nowrap
    def feature_shape(self, params: PyTree) -> tuple[int, ...]:
        if self.feature_layer == "lenet":
            return (IMAGE_SIZE, IMAGE_SIZE, params["convolution_1"]["kernel"].shape[2])
        return (params["attention_v" if self.feature_layer == "none" else "feature"]["kernel"].shape[0],)


AGGREGATORS = {"abmil": ABMIL}
