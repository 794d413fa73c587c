"""What is known of a trained run's predictions for other bags: averages over models, metrics with intervals, calibration, subgroups.

Two ways of scoring, never mixed in one number. "held out": patients whom the run knows, each scored by the models of the fold that tested
on them, seeds averaged, folds not. "ensemble": patients whom no model has met, all models averaged. Thresholds and calibration come
from the run's validation predictions, each by the models of one fold, and apply to means of scores: there an average over folds has its
classes where the models of one fold have them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from mil_jax.tasks.metrics.recalibration import scores_of
from mil_jax.tasks.predictions_table import probabilities_of, targets_of

LEAST_OF_SUBGROUP = 5  # bags, for metrics of their own


@dataclass(frozen=True)
class Averaged:
    """Predictions averaged over models, a row per bag (and fold, of bags held out), with the columns of predictions.csv.

    calibrated: the same with calibrated probabilities, None where none could be fitted. temperatures: {fold: T}.
    thresholded: metrics of decisions by validation thresholds, a row per fold; empty where there are none. decided: bool [rows], the
    decision for the second of two classes by those thresholds; None without any.
    """

    table: pd.DataFrame
    calibrated: pd.DataFrame | None
    temperatures: dict[int, float]
    thresholded: pd.DataFrame
    decided: np.ndarray | None


def averaged(scored: Scored) -> Averaged:
    """Averages over models, and what validation says of them."""
    task = scored.task
    table = average(task, scored.by_model, scored.how)
    folds = sorted(map(int, table["fold"].unique()))
    if not isinstance(task, calibration.CALIBRATED):
        return Averaged(table, None, {}, pd.DataFrame(), None)
    if not len(scored.validation):
        return Averaged(table, None, dict.fromkeys(folds, np.nan), pd.DataFrame(), None)
    means = calibration.mean_of_scores(task, scored.by_model, _cases(scored.how))
    validation = calibration.mean_of_scores(task, scored.validation, _cases(HELD_OUT))
    between, models = 0.0, 1
    if scored.how == ENSEMBLE:
        means, validation = means.assign(fold=0), validation.assign(fold=0)
        between, models = calibration.spread_of_folds(task, scored.by_model)
    of_fold = dict(list(validation.groupby("fold")))
    fits = {fold: calibration.fitted(task, of_fold[fold]) if fold in of_fold else None for fold in folds}
    scaled = probabilities_of(means, task)
    scores = scores_of(scaled, exclusive=calibration.exclusive(task))
    for fold, one in fits.items():
        if one is not None:
            rows = (means["fold"] == fold).to_numpy()
            scaled[rows] = one(scores[rows], one.sharpness(between, models))
    calibrated = table.assign(**dict(zip(task.output_names, scaled.T, strict=True)))
    return Averaged(
        table,
        calibrated if all(one is not None for one in fits.values()) else None,
        {fold: np.nan if one is None else one.temperature for fold, one in fits.items()},
        statistics.threshold_metrics(task, means, validation) if scored.labelled else pd.DataFrame(),
        _decided(task, means, of_fold),
    )


def _decided(task: Task, means: pd.DataFrame, validation: Mapping[int, pd.DataFrame]) -> np.ndarray | None:
    """Of each row whether the second of two classes is called; by the largest probability where its fold has no threshold."""
    if not isinstance(task, Classification) or task.num_classes != 2:
        return None
    p = probabilities_of(means, task)[:, 1]
    called = p > 0.5
    for fold, rows in validation.items():
        threshold = task.choose_thresholds(probabilities_of(rows, task), targets_of(rows, task))[1]
        if np.isfinite(threshold):
            called = np.where(means["fold"] == fold, p >= threshold, called)
    return called


def _cases(how: str) -> list[str]:
    """What has a row of its own in an average."""
    return ["bag_id", "fold"] if how == HELD_OUT else ["bag_id"]


def average(task: Task, by_model: pd.DataFrame, how: str) -> pd.DataFrame:
    """The mean of the models' probabilities: over seeds, of an ensemble over folds, too. The seed of every row is 0."""
    by = _cases(how)
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


def decisions(task: Classification, averages: Averaged) -> np.ndarray:
    """The class that is called for each row of the averages: by the validation threshold of two classes, else the most probable."""
    names = np.array(task.classes, dtype=object)
    if averages.decided is not None:
        return names[averages.decided.astype(int)]
    return names[probabilities_of(averages.table, task).argmax(axis=1)]
