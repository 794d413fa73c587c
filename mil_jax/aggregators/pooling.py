"""Mean and max pooling: a classifier of single instances whose logits are pooled over the bag (the baselines of
MHIM-MIL and CLAM).

x [N, D] -> h = relu(x Wf + bf), dropout -> instance logits h Wc + bc -> the mean, or the logits of chosen instances.
The mean of the logits is computed as the logits of the mean feature. Where instances are chosen, only the chosen
rows are computed with a gradient: the rest of the bag has none, so the backward pass costs C rows instead of N.
Without a feature layer h = x: with the largest value of each feature (`choose="feature"`) the max pooling of IBMIL.
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
from mil_jax.layers import masked
from mil_jax.layers.activations import ACTIVATIONS
from mil_jax.layers.dropout import draws, dropout_factors, hyper
from mil_jax.layers.initializers import KERNEL_INITIALIZERS, Affine, AffineParameters
from mil_jax.types import Array, PyTree

MEAN_VARIANTS: dict[str, dict[str, Any]] = {"mean_pooling": {}}
MAX_VARIANTS: dict[str, dict[str, Any]] = {
    "max_pooling": {},
    "clam_mil_fc": {"choose": "positive", "initializer": "torch"},
    "clam_mil_fc_mc": {"choose": "any", "initializer": "torch"},
}

_PUBLISHED_LAYERS = {
    "mean_pooling": {"feature": "head.0", "classifier": "head.3"},
    "max_pooling": {"feature": "head.0", "classifier": "head.3"},
    "clam_mil_fc": {"feature": "fc.0", "classifier": "classifier"},
    "clam_mil_fc_mc": {"feature": "fc.0", "classifier": "classifiers"},
}


class InstanceClassifier(Aggregator):
    """What mean and max pooling share: fields, parameters, dropout.

    feature_layer: "linear" (D -> feature_dim, then feature_activation "relu" or "gelu") or "none". dropout: after it, in
    training; numeric, the collection "hyper" may hold another rate. initializer: "xavier_normal", "torch" or
    "kaiming_uniform".
    """

    feature_layer: str = "linear"
    feature_dim: int = 512
    feature_activation: str = "relu"
    dropout: float = 0.25
    initializer: str = "xavier_normal"

    numeric_settings: ClassVar[tuple[str, ...]] = ("dropout",)

    def __post_init__(self) -> None:
        checks.one_of("feature_layer", self.feature_layer, ("linear", "none"))
        checks.positive("feature_dim", self.feature_dim)
        checks.one_of("feature_activation", self.feature_activation, ("relu", "gelu"))
        checks.rate("dropout", self.dropout)
        checks.one_of("initializer", self.initializer, KERNEL_INITIALIZERS)
        if self.feature_layer == "none" and self.dropout:
            raise ConfigError(
                f"aggregator.dropout={self.dropout} follows the feature layer; "
                "with aggregator.feature_layer='none' set it to 0"
            )
        super().__post_init__()

    def _layers(self, x: Array) -> tuple[Affine | None, Affine]:
        if x.ndim != 2:
            raise ConfigError(
                f"mean and max pooling read feature vectors [N, D], but the bag has the shape {list(x.shape)}"
            )
        feature, width = None, x.shape[-1]
        if self.feature_layer == "linear":
            feature = AffineParameters(self.feature_dim, self.initializer, name="feature")(width)
            width = self.feature_dim
        return feature, AffineParameters(self.num_outputs, self.initializer, name="classifier")(width)

    def _dropout_factors(self, num_instances: int, train: bool) -> Array | None:
        if not draws(self, "dropout", self.dropout, train):
            return None
        rate = hyper(self, "dropout", self.dropout)
        return dropout_factors(self.make_rng("dropout"), (num_instances, self.feature_dim), rate)

    def _embed(self, x: Array, feature: Affine | None, factors: Array | None) -> Array:
        if feature is None:
            return x
        h = ACTIVATIONS[self.feature_activation](feature(x))
        return h if factors is None else h * factors.astype(h.dtype)

    @nn.nowrap
    def state_dict_map(self, variant: str) -> dict[str, tuple[str, str]]:
        checks.one_of("variant", variant, _PUBLISHED_LAYERS)
        mapping = {}
        for layer, published in _PUBLISHED_LAYERS[variant].items():
            if layer == "feature" and self.feature_layer == "none":
                continue
            mapping[f"{published}.weight"] = (f"{layer}/kernel", "linear")
            mapping[f"{published}.bias"] = (f"{layer}/bias", "same")
        return mapping

    @nn.nowrap
    def feature_shape(self, params: PyTree) -> tuple[int, ...]:
        return (params["classifier" if self.feature_layer == "none" else "feature"]["kernel"].shape[0],)


class MeanPooling(InstanceClassifier):
    """Logits are the mean of the instance logits; `embedding` [E] is the mean feature."""

    variants = MEAN_VARIANTS

    @nn.compact
    def __call__(self, bag: Bag, train: bool = False) -> Prediction:
        x = masked.zero_padding(bag.features, bag.mask)  # [N, D]
        feature, classifier = self._layers(x)
        h = self._embed(x, feature, self._dropout_factors(len(x), train))  # [N, E]
        embedding = masked.mean(h, bag.mask)  # [E]
        return Prediction(
            classifier(embedding),
            embedding=embedding,
            instance_logits=masked.zero_padding(classifier(h), bag.mask),
        )


class MaxPooling(InstanceClassifier):
    """Logits of chosen instances, or of a chosen instance for each feature.

    choose: "class" = for each class the instance with its largest logit (max pooling; `embedding` [C, E],
    `aux["chosen"]` [C]); "positive" = the instance most probable to be of class 1, all its logits (CLAM's binary
    `mil`; `embedding` [E], `chosen` [1]); "any" = the instance with the largest probability of any class (CLAM's
    multi-class `mil`); "feature" = for each feature the instance in which it is largest (IBMIL's max pooling; `embedding`
    [E], `chosen` [E]). Of equals the first is chosen, and it alone receives the gradient.
    """

    choose: str = "class"

    variants = MAX_VARIANTS

    def __post_init__(self) -> None:
        checks.one_of("choose", self.choose, ("class", "positive", "any", "feature"))
        super().__post_init__()
        if self.choose == "positive" and self.num_outputs != 2:
            raise ConfigError(
                f"aggregator.choose='positive' is for two outputs, not {self.num_outputs}; use 'any' for more classes"
            )

    @property
    def chooses_by_logits(self) -> bool:
        """Unless it chooses by features."""
        return self.choose != "feature"

    @nn.compact
    def __call__(self, bag: Bag, train: bool = False) -> Prediction:
        x = masked.zero_padding(bag.features, bag.mask)  # [N, D]
        feature, classifier = self._layers(x)
        factors = self._dropout_factors(len(x), train)
        h = self._embed(x, feature, factors)  # [N, E]
        instance_logits = classifier.scores(h)  # [N, C]
        if self.choose == "feature":
            chosen = masked.argmax(jax.lax.stop_gradient(h), bag.mask)  # [E]
            embedding = jnp.take_along_axis(h, chosen[None], axis=0)[0].astype(jnp.float32)
            return Prediction(
                classifier(embedding),
                embedding=embedding,
                instance_logits=masked.zero_padding(instance_logits, bag.mask),
                aux={"chosen": chosen},
            )
        chosen = self._chosen(jax.lax.stop_gradient(instance_logits), bag.mask)  # [C] or [1]
        rows = self._embed(x[chosen], feature, None if factors is None else factors[chosen])  # [C, E] or [1, E]
        logits = classifier(rows)
        if self.choose == "class":
            logits, embedding = jnp.diagonal(logits), rows
        else:
            logits, embedding = logits[0], rows[0]
        return Prediction(
            logits,
            embedding=embedding,
            instance_logits=masked.zero_padding(instance_logits, bag.mask),
            aux={"chosen": chosen},
        )

    def _chosen(self, instance_logits: Array, mask: Array) -> Array:
        if self.choose == "class":
            return masked.argmax(instance_logits, mask)
        probabilities = jax.nn.softmax(instance_logits, axis=-1)
        best = probabilities[:, 1] if self.choose == "positive" else jnp.max(probabilities, axis=-1)
        return masked.argmax(best, mask)[None]


AGGREGATORS = {"mean_pooling": MeanPooling, "max_pooling": MaxPooling}
