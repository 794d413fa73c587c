"""What is predicted: targets, loss, probabilities and metrics. A task works with any aggregator."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from mil_jax.errors import ConfigError
from mil_jax.tasks.classification import Classification

__all__ = ["Classification", "create", "names"]

_TASKS = {"classification": Classification}


def names() -> tuple[str, ...]:
    """The names that `create` knows."""
    return tuple(sorted(_TASKS))


def create(name: str, classes: Sequence[str], settings: Mapping[str, Any] | None = None) -> Classification:
    """The task called `name` for these classes; `settings` are its further fields (`loss_name`, ...).

    Raises ConfigError for an unknown name or setting, suggesting the nearest.
    """
    if name not in _TASKS:
        raise ConfigError(f"task.name={name!r} is not a task; {_suggestion(name, _TASKS)}")
    fields = {field.name for field in dataclasses.fields(_TASKS[name])} - {"classes"}
    settings = dict(settings or {})
    for key in settings:
        if key not in fields:
            raise ConfigError(f"task.{key} is not a setting of the task {name!r}; {_suggestion(key, fields)}")
    return _TASKS[name](classes=tuple(classes), **settings)


def _suggestion(word: str, known: Sequence[str] | Mapping[str, Any] | set[str]) -> str:
    nearest = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(sorted(known))}"
