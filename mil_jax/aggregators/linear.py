"""A linear classifier of the mean feature: everyone's first baseline, and what a linear probe fits (`experiment/linear_probe.py`).

x [N, D] -> mean over instances -> Linear. A slide-level embedding is a bag of one instance. No published form.
"""

from __future__ import annotations

import flax.linen as nn

from mil_jax.aggregators.base import Aggregator
from mil_jax.bags import Bag, Prediction
from mil_jax.errors import ConfigError
from mil_jax.layers import masked
from mil_jax.layers.initializers import AffineParameters
from mil_jax.types import PyTree


class Linear(Aggregator):
    """Logits of the mean instance; `embedding` [D] is the mean instance, and every instance counts equally."""

    @nn.compact
    def __call__(self, bag: Bag, train: bool = False) -> Prediction:
        del train
        if bag.features.ndim != 2:
            raise ConfigError(
                f"a linear classifier reads feature vectors [N, D], but the bag has the shape {list(bag.features.shape)}"
            )
        x = masked.zero_padding(bag.features, bag.mask)  # [N, D]
        classifier = AffineParameters(self.num_outputs, "xavier_normal", name="classifier")(x.shape[-1])
        embedding = masked.mean(x, bag.mask)
        return Prediction(
            classifier(embedding),
            embedding=embedding,
            instance_logits=masked.zero_padding(classifier(x), bag.mask),
        )

    @nn.nowrap
    def feature_shape(self, params: PyTree) -> tuple[int, ...]:
        return (params["classifier"]["kernel"].shape[0],)


AGGREGATORS = {"linear": Linear}
