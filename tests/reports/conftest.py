"""Invented predictions of cross-validated runs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mil_jax.tasks import Classification, MultiLabel
from mil_jax.tasks.predictions_table import predictions_table


def invented_predictions(
    task: Classification,
    *,
    folds: int = 5,
    seeds: int = 2,
    bags: int = 120,
    part: str = "test",
    bags_per_patient: int = 1,
) -> pd.DataFrame:
    """Out-of-fold predictions; probabilities are rounded to one digit, so that scores tie."""
    rng = np.random.default_rng(0)
    patient = np.arange(bags) // bags_per_patient
    label = rng.integers(0, len(task.classes), patient.max() + 1)[patient]
    sizes = rng.integers(1, 1000, bags)
    tables = []
    for seed in range(seeds):
        for fold in range(folds):
            rows = np.flatnonzero(patient % folds == fold)
            logits = rng.normal(size=(len(rows), len(task.classes))) + 1.5 * np.eye(len(task.classes))[label[rows]]
            p = np.round(np.exp(logits) / np.exp(logits).sum(1, keepdims=True), 1) + 1e-3
            if isinstance(task, MultiLabel):
                p = np.clip(p, 0, 1)
                targets = np.eye(len(task.classes), dtype=np.float32)[label[rows]]
                targets[rng.random(targets.shape) < 0.1] = np.nan
            else:
                p /= p.sum(1, keepdims=True)
                targets = label[rows]
            tables.append(
                predictions_table(
                    task,
                    bag_ids=[f"slide_{row}" for row in rows],
                    patient_ids=[f"patient_{patient[row]}" for row in rows],
                    num_instances=sizes[rows],
                    fold=fold,
                    seed=seed,
                    part=part,
                    targets=targets,
                    probabilities=p,
                )
            )
    return pd.concat(tables, ignore_index=True)


@pytest.fixture(scope="session")
def binary() -> Classification:
    return Classification(("normal", "tumor"))


@pytest.fixture(scope="session")
def binary_predictions(binary: Classification) -> pd.DataFrame:
    return invented_predictions(binary)
