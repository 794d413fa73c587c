"""What is predicted: targets, loss, probabilities and metrics. A task works with any aggregator.

Another task is a class (see `base.Task`) and a line in `TASKS`; its settings are lines of `mil_jax/settings.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from mil_jax.data.cohort.settings import CohortSettings
from mil_jax.data.tables import suggestion
from mil_jax.errors import ConfigError
from mil_jax.tasks.base import Task
from mil_jax.tasks.classification import Classification
from mil_jax.tasks.multiclass import MultiClass
from mil_jax.tasks.multilabel import MultiLabel
from mil_jax.tasks.ordinal import Ordinal
from mil_jax.tasks.pathgene import PathGene
from mil_jax.tasks.regression import Regression
from mil_jax.tasks.survival import Survival

__all__ = [
    "Classification",
    "MultiClass",
    "MultiLabel",
    "Ordinal",
    "PathGene",
    "Regression",
    "Survival",
    "Task",
    "create",
    "kind",
    "names",
    "numeric_settings",
]

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Classification, MultiLabel, MultiClass, Regression, Survival, Ordinal, PathGene)
}


def names() -> tuple[str, ...]:
    """The names that `kind` knows."""
    return tuple(TASKS)


def kind(name: str) -> type[Task]:
    """The class of the task `name`. Raises ConfigError for an unknown one, suggesting the nearest."""
    if name not in TASKS:
        raise ConfigError(
            f"task.name={name!r} is not a task{suggestion(name, TASKS)}; choose one of {', '.join(TASKS)}"
        )
    return TASKS[name]


def numeric_settings(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The settings of the task that `settings` names (`name`, `loss_name`) in which runs of one program may differ."""
    chosen = kind(settings["name"])
    return chosen.numeric.get(settings["loss_name"] or chosen.losses[0], ())


def create(settings: Mapping[str, Any], labels: pd.DataFrame, cohort: CohortSettings) -> Task:
    """The task of these label columns (the index names bags). settings: `name`, and the settings of all tasks, of which it takes its own.

    Raises ConfigError and DataError as `Task.for_labels`.
    """
    chosen = kind(settings["name"])
    return chosen.for_labels(labels, cohort, {key: settings[key] for key in chosen.settings if key in settings})
