"""DSMIL, dual-stream MIL (Li, Li, Eliceiri 2021): the best instance of each class, and attention to what resembles it.

x [N, D] -> instance logits z = x Wi + bi; critical instance m_c = argmax_i z_ic; scores r_ci = q(x_i) . q(x_mc) / sqrt(Q), with one
query network q for both; B_c = sum_i softmax(r_c)_i v(x_i); bag logits = a full linear map of B [C, L]. Both streams get the
bag's label. Defaults follow the authors' code (v = identity, two-layer q), not the paper. A linear q and a linear v are never
formed for all instances: x (Wq q_m) and (A x) Wv are the same numbers for a fraction of the cost.
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
from mil_jax.errors import ConfigError
from mil_jax.layers import masked
from mil_jax.layers.activations import ACTIVATIONS
from mil_jax.layers.attention_pool import attention_pool
from mil_jax.layers.dropout import draw_key, dropout, dropout_factors, hyper
from mil_jax.layers.initializers import KERNEL_INITIALIZERS, Affine, AffineParameters
from mil_jax.layers.topk import random_subset
from mil_jax.types import Array, PyTree

_MHIM = {"feature_layer": "linear", "dropout": 0.25, "value": "relu", "initializer": "xavier_normal"}

VARIANTS: dict[str, dict[str, Any]] = {
    "official": {},
    "mhim_milnet": {**_MHIM, "bag_weight": 1.0, "max_weight": 0.0},
    "mhim_pure_dsmil": {**_MHIM, "prediction": "mean_logit", "loss": "prediction"},
    "milab": {
        "feature_layer": "linear",
        "query_dim": 384,
        "nonlinear_query": False,
        "value": "linear",
        "normalize_embedding": True,
        "prediction": "mean_logit",
        "loss": "prediction",
        "initializer": "kaiming_uniform",
    },
}

PREDICTIONS = ("bag", "mean_logit", "mean_probability", "mean_softmax")

_ENCODER = "online_encoder."
_PUBLISHED_LAYERS: dict[str, dict[str, str]] = {
    "official": {"instance_classifier": "i_classifier.fc.0", "classifier": "b_classifier.fcc"},
    "mhim_milnet": {"feature": "feature.0", "instance_classifier": "i_classifier", "classifier": "b_classifier.fcc"},
    "mhim_pure_dsmil": {
        "feature": "feature.0",
        "instance_classifier": f"{_ENCODER}i_classifier.0",
        "classifier": f"{_ENCODER}b_classifier.fcc",
    },
    "milab": {
        "feature": "patch_embed.0",
        "instance_classifier": "i_classifier.inst_classifier",
        "classifier": "classifier",
    },
}


class DSMIL(Aggregator):
    """Dual-stream MIL.

    num_outputs: number of logits C; the authors use one for a binary task, and a sigmoid per class.
    feature_layer: "none" (instances as they are) or "linear" (D -> feature_dim, feature_activation "relu" or "gelu", `dropout`).
    query_dim: Q. nonlinear_query: q = tanh(linear(relu(linear))), else linear.
    value: "identity", "relu" (`passing_v`: relu of a linear layer) or "linear"; `value_dropout` comes before the layer.
    normalize_embedding: layer norm of B.
    instance_dropout: share of the instances left out of a training step (`dropout_patch`; the reference leaves some out of test, too).
    prediction: "bag" (bag logits), "mean_logit" (mean of bag and max logits), "mean_probability" (logits whose sigmoid is the mean
        of both streams' sigmoids: `average` of the reference) or "mean_softmax" (whose softmax is the mean of theirs: MHIM-MIL v1).
    loss: "streams" = bag_weight * loss(bag logits) + max_weight * loss(max logits), or "prediction" = the loss of the logits.
    initializer: "orthogonal" (present code on slides), "torch" (classic sets, PathGene), "xavier_normal" or "kaiming_uniform".

    Prediction: attention and scores [C, N], embedding B [C, L], instance_logits [N, C]. aux: "critical" [C], the numbers of the
    critical instances; "bag_logits" and "max_logits" [C]; "bag_weight", "max_weight"; "class_scores" [N], the largest instance logit of
    each (-inf on padding). Of equal instances the first is critical.
    Raises ConfigError for settings that cannot work.
    """

    feature_layer: str = "none"
    feature_dim: int = 512
    feature_activation: str = "relu"
    dropout: float = 0.0
    query_dim: int = 128
    nonlinear_query: bool = True
    value: str = "identity"
    value_dropout: float = 0.0
    normalize_embedding: bool = False
    instance_dropout: float = 0.0
    prediction: str = "bag"
    loss: str = "streams"
    bag_weight: float = 0.5
    max_weight: float = 0.5
    initializer: str = "orthogonal"

    variants = VARIANTS
    numeric_settings: ClassVar[tuple[str, ...]] = (
        "dropout",
        "value_dropout",
        "instance_dropout",
        "bag_weight",
        "max_weight",
    )

    def __post_init__(self) -> None:
        for name in ("feature_dim", "query_dim"):
            checks.positive(name, getattr(self, name))
        checks.one_of("feature_layer", self.feature_layer, ("none", "linear"))
        checks.one_of("feature_activation", self.feature_activation, ("relu", "gelu"))
        checks.one_of("value", self.value, ("identity", "relu", "linear"))
        checks.one_of("prediction", self.prediction, PREDICTIONS)
        checks.one_of("loss", self.loss, ("streams", "prediction"))
        checks.one_of("initializer", self.initializer, KERNEL_INITIALIZERS)
        for name in ("dropout", "value_dropout", "instance_dropout"):
            checks.rate(name, getattr(self, name))
        for name in ("bag_weight", "max_weight"):
            checks.not_negative(name, getattr(self, name))
        if self.feature_layer == "none" and self.dropout:
            raise ConfigError(
                f"aggregator.dropout={self.dropout} follows the feature layer; "
                "with aggregator.feature_layer='none' set it to 0"
            )
        if self.value == "identity" and self.value_dropout:
            raise ConfigError(
                f"aggregator.value_dropout={self.value_dropout} comes before the value layer; "
                "with aggregator.value='identity' set it to 0"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, bag: Bag, train: bool = False) -> Prediction:
        if bag.features.ndim != 2:
            raise ConfigError(
                f"DSMIL reads feature vectors [N, D], but the bag has the shape {list(bag.features.shape)}"
            )
        x = masked.zero_padding(bag.features, bag.mask)  # [N, D]
        mask = self._kept(bag.mask, train)
        feature, factors = self._feature(x.shape[-1], len(x), train)
        h = _embed(x, feature, factors)  # [N, L]
        instance_layer = self._layer("instance_classifier", h.shape[-1], self.num_outputs)
        instance_logits = instance_layer.scores(h)  # [N, C]
        critical = masked.argmax(jax.lax.stop_gradient(instance_logits), mask)  # [C]
        # Recomputed from x: gathered from h, they would cost the backward pass a scatter into [N, L].
        rows = _embed(x[critical], feature, None if factors is None else factors[critical])  # [C, L]
        max_logits = jnp.diagonal(instance_layer.scores(rows))
        scores = self._scores(h, rows)  # [C, N]
        attention = masked.softmax(scores, mask)
        embedding = self._embedding(attention, h, train)  # [C, L]
        # xavier_normal of the reference leaves its convolution, which this layer is, at PyTorch's default.
        initializer = "torch" if self.initializer == "xavier_normal" else self.initializer
        classifier = AffineParameters(self.num_outputs, initializer, name="classifier")(*embedding.shape)
        flat = Affine(classifier.kernel.reshape(-1, self.num_outputs), classifier.bias)
        bag_logits = flat(embedding.reshape(-1))  # [C]
        return Prediction(
            self._predicted(bag_logits, max_logits),
            attention,
            masked.hide_padding(scores, mask),
            embedding,
            masked.zero_padding(instance_logits, bag.mask),
            {
                "critical": critical,
                "bag_logits": bag_logits,
                "max_logits": max_logits,
                "bag_weight": jnp.asarray(hyper(self, "bag_weight", self.bag_weight), jnp.float32),
                "max_weight": jnp.asarray(hyper(self, "max_weight", self.max_weight), jnp.float32),
                "class_scores": masked.hide_padding(jnp.max(instance_logits, axis=-1), bag.mask),
            },
        )

    def _layer(self, name: str, inputs: int, outputs: int) -> Affine:
        return AffineParameters(outputs, self.initializer, name=name)(inputs)

    def _kept(self, mask: Array, train: bool) -> Array:
        """The instances of this step: all, or in training a random subset of int(n (1 - rate)), at least one."""
        key = draw_key(self, "instance_dropout", self.instance_dropout, train, 2)
        if key is None:
            return mask
        rate = jnp.asarray(hyper(self, "instance_dropout", self.instance_dropout), jnp.float32)
        # A share such as 0.9 is a little off in float32: n (1 - rate) must not fall below the whole number that it is.
        count = jnp.floor(jnp.sum(mask) * (1.0 - rate) + 1e-3).astype(jnp.int32)
        return random_subset(key, mask, jnp.maximum(count, 1))

    def _feature(self, width: int, num_instances: int, train: bool) -> tuple[Any, Array | None]:
        """The feature layer with its activation, or None; and the factors of its dropout [N, L], or None."""
        if self.feature_layer == "none":
            return None, None
        layer, activation = self._layer("feature", width, self.feature_dim), ACTIVATIONS[self.feature_activation]
        factors = None
        key = draw_key(self, "dropout", self.dropout, train, 0)
        if key is not None:
            rate = hyper(self, "dropout", self.dropout)
            factors = dropout_factors(key, (num_instances, self.feature_dim), rate)
        return lambda x: activation(layer(x)), factors

    def _scores(self, h: Array, rows: Array) -> Array:
        """q(h_i) . q(row_c) / sqrt(Q): [C, N], float32."""
        first = self._layer("query_1" if self.nonlinear_query else "query", h.shape[-1], self.query_dim)
        if self.nonlinear_query:
            second = self._layer("query_2", self.query_dim, self.query_dim)

            def query(x: Array) -> Array:
                return jnp.tanh(second(jax.nn.relu(first(x))))

            scores = jnp.dot(query(rows), query(h).T, preferred_element_type=jnp.float32)
        else:
            critical = first(rows)  # [C, Q]
            scores = jnp.dot(critical @ first.kernel.T, h.T, preferred_element_type=jnp.float32)
            scores = scores + (critical @ first.bias)[:, None]  # type: ignore[operator]
        return scores / math.sqrt(self.query_dim)

    def _embedding(self, attention: Array, h: Array, train: bool) -> Array:
        if self.value != "identity":
            layer = self._layer("value", h.shape[-1], h.shape[-1])
            key = draw_key(self, "value_dropout", self.value_dropout, train, 1)
            if key is not None:
                h = dropout(h, hyper(self, "value_dropout", self.value_dropout), key)
            if self.value == "relu":
                h = jax.nn.relu(layer(h))
        embedding = attention_pool(attention, h)  # [C, L]
        if self.value == "linear":
            embedding = layer(embedding)  # the attention sums to 1
        if self.normalize_embedding:
            embedding = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="norm")(embedding)
        return embedding

    def _predicted(self, bag_logits: Array, max_logits: Array) -> Array:
        if self.prediction == "bag":
            return bag_logits
        if self.prediction == "mean_logit":
            return (bag_logits + max_logits) / 2
        if self.prediction == "mean_softmax":
            streams = jax.nn.log_softmax(jnp.stack([bag_logits, max_logits]).astype(jnp.float32), axis=-1)
            return jax.nn.logsumexp(streams, axis=0) - math.log(2)
        present = jnp.logaddexp(jax.nn.log_sigmoid(bag_logits), jax.nn.log_sigmoid(max_logits))
        absent = jnp.logaddexp(jax.nn.log_sigmoid(-bag_logits), jax.nn.log_sigmoid(-max_logits))
        return present - absent

    @nn.nowrap
    def bag_logits(self, prediction: Prediction) -> Array:
        """Of the bag's stream, [C]."""
        logits: Array = prediction.aux["bag_logits"]
        return logits

    @nn.nowrap
    def with_bag_logits(self, prediction: Prediction, bag_logits: Array) -> Prediction:
        """The prediction for one bag with other bag logits [C] in place of its classifier's."""
        logits = self._predicted(bag_logits, prediction.aux["max_logits"])
        return prediction.replace(logits=logits, aux={**prediction.aux, "bag_logits": bag_logits})

    @nn.nowrap
    def training_loss(self, task: Any, predictions: Prediction, targets: Array, weights: Array) -> Array:
        """The loss of both streams, or of the prediction, over a batch of bags [B]; weights [B], 0 = no bag."""
        if self.loss == "prediction":
            return task.loss(predictions, targets, weights)
        bag, largest = (
            task.loss(predictions.replace(logits=predictions.aux[stream]), targets, weights)
            for stream in ("bag_logits", "max_logits")
        )
        return predictions.aux["bag_weight"][0] * bag + predictions.aux["max_weight"][0] * largest

    @nn.nowrap
    def state_dict_map(self, variant: str) -> dict[str, tuple[str, str]]:
        checks.one_of("variant", variant, _PUBLISHED_LAYERS)
        layers = dict(_PUBLISHED_LAYERS[variant])
        stream = (_ENCODER if variant == "mhim_pure_dsmil" else "") + "b_classifier"
        if self.nonlinear_query:
            layers |= {"query_1": f"{stream}.q.0", "query_2": f"{stream}.q.2"}
        else:
            layers["query"] = f"{stream}.q"
        if self.value != "identity":
            layers["value"] = f"{stream}.v.1"
        mapping = {}
        for layer, published in layers.items():
            mapping[f"{published}.weight"] = (f"{layer}/kernel", "conv1d" if layer == "classifier" else "linear")
            mapping[f"{published}.bias"] = (f"{layer}/bias", "same")
        if self.normalize_embedding:
            mapping[f"{stream}.norm.weight"] = ("norm/scale", "same")
            mapping[f"{stream}.norm.bias"] = ("norm/bias", "same")
        return mapping

    @nn.nowrap
    def unused_entries(self, variant: str) -> dict[str, tuple[int, ...]]:
        width = self.feature_dim
        if variant == "mhim_pure_dsmil":
            return {"predictor.weight": (self.num_outputs, width), "predictor.bias": (self.num_outputs,)}
        if variant == "milab":
            return {"b_classifier.fcc.weight": (3, 3, width), "b_classifier.fcc.bias": (3,)}
        return {}

    @nn.nowrap
    def feature_shape(self, params: PyTree) -> tuple[int, ...]:
        layer = "instance_classifier" if self.feature_layer == "none" else "feature"
        return (params[layer]["kernel"].shape[0],)


def _embed(x: Array, feature: Any, factors: Array | None) -> Array:
    if feature is None:
        return x
    h = feature(x)
    return h if factors is None else h * factors.astype(h.dtype)


AGGREGATORS = {"dsmil": DSMIL}
