"""One bag -> one prediction. An aggregator is a Flax module from a `Bag` to a `Prediction`, found here by name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any, NamedTuple

import flax.linen as nn

from mil_jax.aggregators import abmil, meanmax
from mil_jax.errors import ConfigError

__all__ = ["VARIANTS", "Variant", "create", "default_fields", "names"]

_AGGREGATORS: dict[str, type[nn.Module]] = {
    "abmil": abmil.ABMIL,
    "max_pooling": meanmax.MaxPooling,
    "mean_pooling": meanmax.MeanPooling,
}


class Variant(NamedTuple):
    """A published form of a method: the aggregator's name and the values of its fields that differ from the
    defaults.
    """

    aggregator: str
    fields: dict[str, Any]


VARIANTS: dict[str, Variant] = {
    variant: Variant(name, fields)
    for name, variants in (
        ("abmil", abmil.VARIANTS),
        ("max_pooling", meanmax.MAX_VARIANTS),
        ("mean_pooling", meanmax.MEAN_VARIANTS),
    )
    for variant, fields in variants.items()
}


def names() -> tuple[str, ...]:
    """The names that `create` knows."""
    return tuple(sorted(_AGGREGATORS))


def default_fields(name: str) -> dict[str, Any]:
    """Fields of the aggregator `name` with their defaults (`num_outputs` is the task's). Raises ConfigError if
    unknown.
    """
    if name not in _AGGREGATORS:
        raise ConfigError(f"aggregator.name={name!r} is not an aggregator; {_suggestion(name, _AGGREGATORS)}")
    fields = dataclasses.fields(_AGGREGATORS[name])
    return {field.name: field.default for field in fields if field.name not in ("num_outputs", "parent", "name")}


def create(name: str, num_outputs: int, **fields: Any) -> nn.Module:
    """The aggregator `name` with `num_outputs` logits; `fields` override its defaults.

    Raises ConfigError for an unknown name or field (suggesting the nearest) and for settings that cannot work
    together.
    """
    known = default_fields(name)
    for key in fields:
        if key not in known:
            raise ConfigError(f"aggregator.{key} is not a setting of {name!r}; {_suggestion(key, known)}")
    return _AGGREGATORS[name](num_outputs=num_outputs, **fields)


def _suggestion(word: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(sorted(known))}"
