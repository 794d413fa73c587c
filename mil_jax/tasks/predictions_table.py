"""The table of predictions: one row per bag, run (fold, seed) and part; the content of predictions.csv.

Columns: bag_id, patient_id, num_instances, fold, seed, part ("val", "test"), the task's targets (`target`, the true class as
text; `target_CLASS`; `target_time`, `target_event`) and outputs (`prob_CLASS`; `risk`; `predicted`), and, where
published splits leak, `leaked`: whether the bag's patient is also in that fold's training or validation part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mil_jax.tasks.base import Task, fields_of

VALIDATION, TEST = "val", "test"


def predictions_table(
    task: Task,
    *,
    bag_ids: Sequence[str],
    patient_ids: Sequence[str],
    num_instances: np.ndarray,
    fold: int,
    seed: int,
    part: str,
    targets: np.ndarray | None,
    probabilities: np.ndarray,
    leaked: np.ndarray | None = None,
) -> pd.DataFrame:
    """The rows of one run and part (`VALIDATION` or `TEST`); all but fold, seed and part have one entry per bag [M].
    targets: None where there are no labels.
    """
    if part not in (VALIDATION, TEST):
        raise ValueError(f"part must be {VALIDATION!r} or {TEST!r}, not {part!r}")
    table = pd.DataFrame({"bag_id": list(bag_ids), "patient_id": list(patient_ids), "num_instances": num_instances})
    table = table.assign(fold=fold, seed=seed, part=part)
    outputs = pd.DataFrame(probabilities, columns=list(task.output_names))
    table = pd.concat([table, *([] if targets is None else [task.target_table(targets)]), outputs], axis=1)
    if leaked is not None:
        table["leaked"] = leaked
    return table


def probabilities_of(table: pd.DataFrame, task: Task) -> np.ndarray:
    """[M, outputs] float64, as `Task.probabilities` gave them."""
    return fields_of(task.output_names, table)


def targets_of(table: pd.DataFrame, task: Task) -> np.ndarray:
    """The task's targets: [M] or [M, ...]."""
    return task.targets_of(table)


def per_patient(table: pd.DataFrame, task: Task) -> pd.DataFrame:
    """The same table with one row per patient, run and part: the mean of the bags' probabilities.

    A patient whose bags have different labels has no label of its own (multi-label: that label is missing).
    """
    by = ["patient_id", "fold", "seed", "part"]
    targets = [column for column in table.columns if column == "target" or column.startswith("target_")]
    grouped = table.groupby(by, sort=False)
    merged = grouped[list(task.output_names)].mean()
    merged["num_instances"] = grouped["num_instances"].sum()
    for column in targets:
        first, agree = grouped[column].first(), grouped[column].nunique() == 1
        merged[column] = first.where(agree, None if first.dtype == object else np.nan)
    merged = merged.reset_index()
    return merged.assign(bag_id=merged["patient_id"])
