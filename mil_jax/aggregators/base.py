"""What an aggregator is, and all that one can say of itself: the defaults are those of a method without specialities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn

from mil_jax.aggregators import checks
from mil_jax.bags import Bag, Prediction
from mil_jax.errors import ConfigError
from mil_jax.types import Array, PyTree


class Aggregator(nn.Module):
    """One bag -> one prediction. A subclass adds its settings as fields; num_outputs: number of logits C.

    variants: published forms by name, as values of the fields.
    numeric_settings: fields that are also read from the collection "hyper", so that runs may differ in them.
    mixes_instances: each instance is computed from others, so that devices cannot share a bag.
    strategy: how it is trained, an entry of `STRATEGIES`, where the config chooses nothing.

    Some have fields of these names, which strategies read; here is what holds of the others.
    feature_layer: "linear" = the first step is [N, D] -> [N, feature_dim], feature_activation, dropout, with the parameters `feature`.
    input_norm: a norm comes before that. initializer: of the layers that a strategy adds, too.
    """

    num_outputs: int

    variants: ClassVar[Mapping[str, dict[str, Any]]] = {}
    numeric_settings: ClassVar[tuple[str, ...]] = ()
    mixes_instances: ClassVar[bool] = False
    strategy: ClassVar[str] = "supervised"

    feature_layer = "none"
    input_norm = False
    initializer = "torch"

    def __post_init__(self) -> None:
        checks.positive("num_outputs", self.num_outputs)
        super().__post_init__()

    def __call__(self, bag: Bag, train: bool = False) -> Prediction:
        """The prediction; in training with dropout, by the random stream "dropout"."""
        raise NotImplementedError

    @nn.nowrap
    def training_loss(self, task: Any, predictions: Prediction, targets: Array, weights: Array) -> Array:
        """The loss, a scalar, of a batch of bags [B], from their predictions and what these carry in `aux`; weights [B], 0 = no bag."""
        loss: Array = task.loss(predictions, targets, weights)
        return loss

    @nn.nowrap
    def starting_from(self, params: PyTree) -> PyTree:
        """What training starts from: `params`, which are fresh, or some of them replaced by published weights."""
        return params

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        """Groups of parameters that training leaves as they are, to the bit."""
        return ()

    @property
    def chooses_by_logits(self) -> bool:
        """Whether the classifier chooses the instances that it is to read, so that no other can take its place."""
        return False

    @nn.nowrap
    def bag_logits(self, prediction: Prediction) -> Array:
        """Of the prediction for one bag what its classifier of the bag's embedding says; other streams may have a share in `logits`."""
        return prediction.logits

    @nn.nowrap
    def with_bag_logits(self, prediction: Prediction, bag_logits: Array) -> Prediction:
        """The prediction with others in place of its `bag_logits`."""
        return prediction.replace(logits=bag_logits)

    @nn.nowrap
    def state_dict_map(self, variant: str) -> dict[str, tuple[str, str]]:
        """Published parameter name -> (path of the parameter, transform), for `interop.torch_checkpoints`.

        Raises ConfigError for an unknown variant.
        """
        raise ConfigError(f"{type(self).__name__} has no published PyTorch form")

    @nn.nowrap
    def unused_entries(self, variant: str) -> dict[str, tuple[int, ...]]:
        """Parameters that a published model has and never reads, name -> shape."""
        del variant
        return {}

    @nn.nowrap
    def feature_shape(self, params: PyTree) -> tuple[int, ...]:
        """Shape F of the instances that `params` were made for, where there are published forms."""
        raise NotImplementedError
