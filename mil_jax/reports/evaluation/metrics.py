"""What is known of a trained run's predictions for other bags: averages over models, metrics with intervals, calibration, subgroups.

Two ways of scoring, never mixed in one number. "held out": patients whom the run knows, each scored by the models of the fold that tested
on them, seeds averaged, folds not. "ensemble": patients whom no model has met, all models averaged. Thresholds and temperatures come
from the run's validation predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mil_jax.inference.scored import ENSEMBLE, HELD_OUT, Scored
from mil_jax.reports import statistics
from mil_jax.reports.evaluation import calibration
from mil_jax.run_folder.tasks_json import described
from mil_jax.tasks.base import Task
from mil_jax.tasks.classification import Classification
from mil_jax.tasks.predictions_table import probabilities_of, targets_of

LEAST_OF_SUBGROUP = 5  # bags, for metrics of their own


@dataclass(frozen=True)
class Averaged:
    """Predictions averaged over models, a row per bag (and fold, of bags held out), with the columns of predictions.csv.

    calibrated: the same with probabilities after temperature scaling, None where no temperature could be fitted.
    temperatures: {fold: T}. thresholded: metrics of decisions by validation thresholds, a row per fold; empty where there are none.
    """

    table: pd.DataFrame
    calibrated: pd.DataFrame | None
    temperatures: dict[int, float]
    thresholded: pd.DataFrame


def averaged(scored: Scored) -> Averaged:
    """Averages over models; thresholds and temperatures of the same average of the run's validation predictions."""
    task = scored.task
    table = average(task, scored.by_model, scored.how)
    validation = average(task, scored.validation, scored.how) if len(scored.validation) else scored.validation
    of_fold = dict(list(validation.groupby("fold")))
    temperatures = {}
    if isinstance(task, calibration.CALIBRATED):
        temperatures = {
            int(fold): calibration.choose_temperature(task, of_fold[fold]) if fold in of_fold else np.nan
            for fold in sorted(table["fold"].unique())
        }
    scaled = None
    if temperatures and np.isfinite(list(temperatures.values())).all():
        assert isinstance(task, calibration.CALIBRATED)
        values = probabilities_of(table, task)
        for fold, temperature in temperatures.items():
            rows = (table["fold"] == fold).to_numpy()
            values[rows] = calibration.calibrated(task, values[rows], temperature)
        scaled = table.assign(**dict(zip(task.output_names, values.T, strict=True)))
    thresholded = pd.DataFrame()
    if scored.labelled and len(validation):
        thresholded = statistics.threshold_metrics(task, table, validation)
    return Averaged(table, scaled, temperatures, thresholded)


def average(task: Task, by_model: pd.DataFrame, how: str) -> pd.DataFrame:
    """The mean of the models' probabilities: over seeds, of an ensemble over folds, too. The seed of every row is 0."""
    by = ["bag_id", "fold"] if how == HELD_OUT else ["bag_id"]
    probabilities = list(task.output_names)
    grouped = by_model.groupby(by, sort=False)
    table = grouped.first()
    table[probabilities] = grouped[probabilities].mean()
    table = table.reset_index()
    if how == ENSEMBLE:
        table["fold"] = 0
    return table.assign(seed=0)[by_model.columns.tolist()]


def result(scored: Scored, averages: Averaged, columns: Sequence[str] = ()) -> dict[str, Any]:
    """The numbers of one cohort, label column and way of scoring; columns: those to give subgroups of."""
    models = scored.by_model[["fold", "seed"]].drop_duplicates()
    # An average is of those that are finite; some outputs may be undefined for all.
    finite = scored.by_model[list(scored.task.output_names)].notna().any(axis=1)
    failed = scored.by_model[~finite][["fold_name", "seed"]].drop_duplicates()
    content: dict[str, Any] = {
        "cohort": scored.cohort,
        "label_column": scored.label_column,
        "scored": scored.how,
        "num_bags": int(averages.table["bag_id"].nunique()),
        "num_patients": int(averages.table["patient_id"].nunique()),
        "num_models": len(models),
        "num_folds": int(models["fold"].nunique()),
        "not_finite": [f"fold {fold}, seed {seed}" for fold, seed in failed.itertuples(index=False)],
        "labelled": scored.labelled,
        "main_metric": scored.task.main_metric,
        "headline": list(scored.task.headline),
        "task": described(scored.task),
    }
    if not scored.labelled:
        return content
    task, table = scored.task, averages.table
    content["metrics"] = _metrics(task, table, averages.thresholded)
    content["models"] = _spread_of_models(task, scored.by_model)
    content["per_patient"] = statistics.patient_statistics(task, table)
    content["temperature"] = averages.temperatures
    content["calibrated"] = None if averages.calibrated is None else _metrics(task, averages.calibrated)
    content["subgroups"] = [
        {"column": column, "value": str(value), **_subgroup(task, rows)}
        for column in columns
        for value, rows in table.assign(**{column: table[column].fillna("unknown").replace("", "unknown")}).groupby(
            column
        )
    ]
    return content


def _metrics(task: Task, table: pd.DataFrame, thresholded: pd.DataFrame | None = None) -> dict[str, Any]:
    """{metric: statistics and interval}, as in summary.json of a run."""
    runs = statistics.run_metrics(task, table)
    if thresholded is not None and not thresholded.empty:
        runs = runs.merge(thresholded, on=["fold", "seed"], how="left")
    metrics: dict[str, dict[str, Any]] = statistics.spread(task, table, runs)
    for name, interval in statistics.bootstrap_intervals(task, table).items():
        metrics[name].update(low=interval.low, high=interval.high, undefined_resamples=interval.undefined)
    return metrics


def _spread_of_models(task: Task, by_model: pd.DataFrame) -> dict[str, dict[str, float]]:
    """{metric: lowest, mean, highest} of single models."""
    runs = statistics.run_metrics(task, by_model).drop(columns=["fold", "seed"])
    return {
        name: {"lowest": float(values.min()), "mean": float(values.mean()), "highest": float(values.max())}
        for name, values in runs.items()
    }


def _subgroup(task: Task, rows: pd.DataFrame) -> dict[str, Any]:
    """Sizes, and metrics where there are enough bags."""
    content: dict[str, Any] = {"num_bags": len(rows), "num_patients": int(rows["patient_id"].nunique())}
    if len(rows) >= LEAST_OF_SUBGROUP:
        rows = rows.reset_index(drop=True)
        content["metrics"] = _metrics(task, rows)
    return content


def patient_probabilities(task: Task, table: pd.DataFrame) -> pd.DataFrame:
    """One row per patient: the mean of its bags' (and folds') probabilities and its label; none where its bags differ."""
    one = table.groupby("patient_id", sort=True)
    merged = one[list(task.output_names)].mean()
    for column in [name for name in table if name == "target" or name.startswith("target_")]:
        first, agree = one[column].first(), one[column].nunique() == 1
        merged[column] = first.where(agree, None if first.dtype == object else np.nan)
    return merged.reset_index()


def class_numbers(task: Classification, table: pd.DataFrame) -> np.ndarray:
    """int [M], -1 = no label."""
    if "target" not in table:
        return np.full(len(table), -1)
    return task.class_index(targets_of(table, task))


def decisions(task: Classification, scored: Scored, averages: Averaged) -> np.ndarray:
    """The class that is called for each row of the averages: by the validation threshold of two classes, else the most probable."""
    p = probabilities_of(averages.table, task)
    names = np.array(task.classes, dtype=object)
    called = names[p.argmax(axis=1)]
    if task.num_classes != 2 or not len(scored.validation):
        return called
    validation = average(task, scored.validation, scored.how)
    for fold, rows in validation.groupby("fold"):
        thresholds = task.choose_thresholds(probabilities_of(rows, task), targets_of(rows, task))
        mine = (averages.table["fold"] == fold).to_numpy()
        if thresholds is not None and np.isfinite(thresholds[1]):
            called[mine] = names[(p[mine, 1] >= thresholds[1]).astype(int)]
    return called
