"""A re-embedding in front of any aggregator: it gives the bag new features, the aggregator makes the prediction.

R2T's authors propose it as a plug-in for every MIL model: x [N, D] -> R2T(x) [N, E] -> aggregator. An aggregator that
starts with a feature layer of its own keeps it; where it can do without (`feature_layer="none"`), the pair is the
published arrangement.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn

from mil_jax.aggregators.base import Aggregator
from mil_jax.aggregators.r2t import R2T, RegionTransformer
from mil_jax.bags import Bag, Prediction
from mil_jax.errors import ConfigError
from mil_jax.types import Array

REEMBEDDINGS: dict[str, type[RegionTransformer]] = {"rrt": R2T}


class Reembedded(Aggregator):
    """`aggregator` on the bag that `reembed` returns. Parameters, and entries of "hyper", lie under these two names."""

    reembed: RegionTransformer
    aggregator: Aggregator

    mixes_instances: ClassVar[bool] = True

    def __call__(self, bag: Bag, train: bool = False) -> Prediction:
        return self.aggregator(self.reembed(bag, train), train)

    @nn.nowrap
    def training_loss(self, task: Any, predictions: Prediction, targets: Array, weights: Array) -> Array:
        return self.aggregator.training_loss(task, predictions, targets, weights)


def default_fields(name: str) -> dict[str, Any]:
    """Fields of the re-embedding `name` with their defaults. Raises ConfigError if unknown."""
    fields = dataclasses.fields(_class_of(name))
    return {field.name: field.default for field in fields if field.name not in ("parent", "name")}


def numeric_settings(name: str) -> tuple[str, ...]:
    """The fields of the re-embedding `name` that it also reads from the collection "hyper". Raises ConfigError if unknown."""
    return _class_of(name).numeric_settings


def _class_of(name: str) -> type[RegionTransformer]:
    if name not in REEMBEDDINGS:
        raise ConfigError(
            f"reembed.name={name!r} is unknown; choose one of {', '.join(REEMBEDDINGS)}, or leave it empty"
        )
    return REEMBEDDINGS[name]


def reembedded(aggregator: Aggregator, settings: Mapping[str, Any]) -> Aggregator:
    """`aggregator` behind the re-embedding that the config group `reembed` asks for; itself when its name is empty.

    Raises ConfigError for an unknown name or field (suggesting the nearest) and for settings that cannot work.
    """
    fields = {key: value for key, value in settings.items() if key != "name"}
    if not settings["name"]:
        return aggregator
    known = default_fields(settings["name"])
    for key in fields:
        if key not in known:
            nearest = difflib.get_close_matches(key, list(known), n=1)
            advice = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(sorted(known))}"
            raise ConfigError(f"reembed.{key} is not a setting of {settings['name']!r}; {advice}")
    try:
        return Reembedded(aggregator.num_outputs, REEMBEDDINGS[settings["name"]](**fields), aggregator)
    except ConfigError as error:
        raise ConfigError(str(error).replace("aggregator.", "reembed.")) from error
