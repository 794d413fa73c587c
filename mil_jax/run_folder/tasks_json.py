"""tasks.json of a run folder: what each label column's models predict, so that others can be made to predict the same later."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mil_jax import tasks
from mil_jax.data.label_columns import LABEL_COLUMN
from mil_jax.run_folder.folder import RunFolder, understood
from mil_jax.tasks.base import Task

FILE = "tasks.json"


def write(folder: RunFolder, of_columns: Mapping[str, Task]) -> None:
    """Writes the file: a row for each label column."""
    folder.write_json(FILE, [{LABEL_COLUMN: name, **described(task)} for name, task in of_columns.items()])


def read(folder: RunFolder) -> dict[str, Task]:
    """The task of each label column. Raises RunFolderError when the file is not there or damaged."""
    with understood(folder.path / FILE):
        return {str(row[LABEL_COLUMN]): restored(row) for row in folder.read_json(FILE)}


def described(task: Task) -> dict[str, Any]:
    """A task as JSON can hold it; what is not known yet is left out."""
    fields = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
    return {"name": task.name, "fields": {name: _plain(value) for name, value in fields.items() if _is_known(value)}}


def restored(content: Mapping[str, Any]) -> Task:
    """The inverse of `described`."""
    return tasks.kind(content["name"])(**_tuples(content["fields"]))


def of_run(task: Task, learnt: Mapping[str, Any]) -> Task:
    """The task of one run, with what its training part told, as its checkpoint holds it."""
    return dataclasses.replace(task, **_tuples(learnt))


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _is_known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and np.isnan(value))
