"""tasks.json of a run folder: what each label column's models predict, so that others can be made to predict the same later."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from mil_jax import tasks
from mil_jax.tasks import Classification
from mil_jax.training.run_folder import RunFolder
from mil_jax.training.targets import Target

FILE = "tasks.json"


def write(folder: RunFolder, targets: Sequence[Target]) -> None:
    """Writes the file: a row for each label column."""
    folder.write_json(FILE, [{"label_column": target.name, **described(target.task)} for target in targets])


def read(folder: RunFolder) -> dict[str, Classification]:
    """The task of each label column. Raises RunFolderError when the file is not there or damaged."""
    return {row.pop("label_column"): restored(row) for row in folder.read_json(FILE)}


def described(task: Classification) -> dict[str, Any]:
    """A task as JSON can hold it."""
    return {"name": "classification", "fields": dataclasses.asdict(task)}


def restored(content: dict[str, Any]) -> Classification:
    """The inverse of `described`."""
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in content["fields"].items()}
    return tasks.create(content["name"], fields.pop("classes"), fields)
