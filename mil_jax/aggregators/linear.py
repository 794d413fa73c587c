"""A linear classifier of the mean feature: everyone's first baseline, and what a linear probe fits (`experiment/linear_probe.py`).

x [N, D] -> mean over instances -> Linear. A slide-level embedding is a bag of one instance. No published form.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn

from mil_jax.aggregators import checks
from mil_jax.bags import Bag, Prediction
from mil_jax.errors import ConfigError
from mil_jax.layers import masked
from mil_jax.layers.initializers import AffineParameters


class Linear(nn.Module):
    """Logits of the mean instance; `embedding` [D] is the mean instance, and every instance counts equally.

    num_outputs: number of logits.
    """

    num_outputs: int

    def __post_init__(self) -> None:
        checks.positive("num_outputs", self.num_outputs)
        super().__post_init__()

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
    def feature_shape(self, params: Any) -> tuple[int, ...]:
        """Shape F of the instances that `params` were made for."""
        return (params["classifier"]["kernel"].shape[0],)


AGGREGATORS: dict[str, tuple[type[nn.Module], dict[str, dict[str, Any]]]] = {"linear": (Linear, {})}
