"""One bag -> one prediction. An aggregator is a Flax module from a `Bag` to a `Prediction`, found here by name.

A module of this package that defines `AGGREGATORS = {name: class}` adds aggregators; `base.Aggregator` says what their classes may say of
themselves. Nothing else has to be touched.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

from mil_jax.aggregators.base import Aggregator
from mil_jax.errors import ConfigError

__all__ = ["Aggregator", "Variant", "create", "default_fields", "names", "variants"]


class Variant(NamedTuple):
    """A published form of a method: the aggregator's name and the values of its fields that differ from the
    defaults.
    """

    aggregator: str
    fields: dict[str, Any]


@cache
def _found_in(folders: tuple[str, ...]) -> dict[str, type[Aggregator]]:
    found: dict[str, type[Aggregator]] = {}
    for module in pkgutil.iter_modules(folders):
        found.update(getattr(importlib.import_module(f"{__name__}.{module.name}"), "AGGREGATORS", {}))
    return found


def _found() -> dict[str, type[Aggregator]]:
    return _found_in(tuple(__path__))  # to which a folder of the user's may have been added


def variants() -> dict[str, Variant]:
    """All published variants by name."""
    return {
        variant: Variant(name, fields)
        for name, aggregator in _found().items()
        for variant, fields in aggregator.variants.items()
    }


def names() -> tuple[str, ...]:
    """The names that `create` knows."""
    return tuple(sorted(_found()))


def default_fields(name: str) -> dict[str, Any]:
    """Fields of the aggregator `name` with their defaults (`num_outputs` is the task's). Raises ConfigError if
    unknown.
    """
    fields = dataclasses.fields(_class_of(name))
    return {field.name: field.default for field in fields if field.name not in ("num_outputs", "parent", "name")}


def numeric_settings(name: str) -> tuple[str, ...]:
    """The fields of the aggregator `name` that it also reads from the collection "hyper". Raises ConfigError if unknown."""
    return _class_of(name).numeric_settings


def create(name: str, num_outputs: int, **fields: Any) -> Aggregator:
    """The aggregator `name` with `num_outputs` logits; `fields` override its defaults.

    Raises ConfigError for an unknown name or field (suggesting the nearest) and for settings that cannot work
    together.
    """
    known = default_fields(name)
    for key in fields:
        if key not in known:
            raise ConfigError(f"aggregator.{key} is not a setting of {name!r}; {_suggestion(key, known)}")
    return _class_of(name)(num_outputs=num_outputs, **fields)


def _class_of(name: str) -> type[Aggregator]:
    if name not in _found():
        raise ConfigError(f"aggregator.name={name!r} is not an aggregator; {_suggestion(name, _found())}")
    return _found()[name]


def _suggestion(word: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(sorted(known))}"
