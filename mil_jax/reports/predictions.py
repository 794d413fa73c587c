"""The table of predictions: one row per bag, run (fold, seed) and part; the content of predictions.csv.

Columns: bag_id, patient_id, num_instances, fold, seed, part ("val", "test"), the true class as text in
`target` (or `target_CLASS` holding 0, 1 or nothing for multi-label tasks), `prob_CLASS` for each class, and, where
published splits leak, `leaked`: whether the bag's patient is also in that fold's training or validation part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mil_jax.tasks import Classification

VALIDATION, TEST = "val", "test"


def predictions_table(
    task: Classification,
    *,
    bag_ids: Sequence[str],
    patient_ids: Sequence[str],
    num_instances: np.ndarray,
    fold: int,
    seed: int,
    part: str,
    targets: np.ndarray,
    probabilities: np.ndarray,
    leaked: np.ndarray | None = None,
) -> pd.DataFrame:
    """The rows of one run and part (`VALIDATION` or `TEST`); all but fold, seed and part have one entry per bag [M]."""
    if part not in (VALIDATION, TEST):
        raise ValueError(f"part must be {VALIDATION!r} or {TEST!r}, not {part!r}")
    table = pd.DataFrame({"bag_id": list(bag_ids), "patient_id": list(patient_ids), "num_instances": num_instances})
    table = table.assign(fold=fold, seed=seed, part=part)
    if task.multi_label:
        for c, name in enumerate(task.classes):
            table[f"target_{name}"] = targets[:, c]
    else:
        names = np.array([*task.classes, None], dtype=object)  # class number -1 picks the last: no label
        table["target"] = names[task.class_index(targets)]
    for c, name in enumerate(task.classes):
        table[f"prob_{name}"] = probabilities[:, c]
    if leaked is not None:
        table["leaked"] = leaked
    return table


def probabilities_of(table: pd.DataFrame, task: Classification) -> np.ndarray:
    """[M, C] float64."""
    return table[[f"prob_{name}" for name in task.classes]].to_numpy(np.float64)


def targets_of(table: pd.DataFrame, task: Classification) -> np.ndarray:
    """The task's targets: [M] or [M, C]."""
    if task.multi_label:
        return table[[f"target_{name}" for name in task.classes]].to_numpy(np.float32)
    return task.targets(table[["target"]])


def per_patient(table: pd.DataFrame, task: Classification) -> pd.DataFrame:
    """The same table with one row per patient, run and part: the mean of the bags' probabilities.

    A patient whose bags have different labels has no label of its own (multi-label: that label is missing).
    """
    by = ["patient_id", "fold", "seed", "part"]
    targets = [column for column in table.columns if column == "target" or column.startswith("target_")]
    grouped = table.groupby(by, sort=False)
    merged = grouped[[f"prob_{name}" for name in task.classes]].mean()
    merged["num_instances"] = grouped["num_instances"].sum()
    for column in targets:
        first, agree = grouped[column].first(), grouped[column].nunique() == 1
        merged[column] = first.where(agree, None if column == "target" else np.nan)
    merged = merged.reset_index()
    return merged.assign(bag_id=merged["patient_id"])
