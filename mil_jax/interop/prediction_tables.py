"""Predictions in the layouts that scripts of other pipelines read: CLAM's `fold_k.csv` and STAMP's `patient-preds.csv`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd


def clam_table(slide_ids: Sequence[str], index: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    """slide_id, Y, Y_hat, p_0, p_1, ...: class numbers index [M] (-1 = no label, left empty) and probabilities [M, C]."""
    table = pd.DataFrame({"slide_id": list(slide_ids)})
    table["Y"] = pd.array([None if number < 0 else int(number) for number in index], dtype="Int64")
    table["Y_hat"] = np.argmax(probabilities, axis=1)
    for c in range(probabilities.shape[1]):
        table[f"p_{c}"] = probabilities[:, c]
    return table


def stamp_table(
    patients: Sequence[str], target: str, classes: Sequence[str], index: np.ndarray, probabilities: np.ndarray
) -> pd.DataFrame:
    """PATIENT, the label, pred, a column TARGET_CLASS for each class, and the cross entropy as loss, by which rows are sorted."""
    names = np.array([*classes, None], dtype=object)  # class number -1 picks the last: no label
    table = pd.DataFrame({"PATIENT": list(patients), target: names[index], "pred": names[probabilities.argmax(axis=1)]})
    for c, name in enumerate(classes):
        table[f"{target}_{name}"] = probabilities[:, c]
    own = probabilities[np.arange(len(index)), np.maximum(index, 0)]
    with np.errstate(divide="ignore"):
        table["loss"] = np.where(index >= 0, -np.log(own), np.nan)
    return table.sort_values("loss", kind="stable", ignore_index=True)
