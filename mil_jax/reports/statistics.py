"""How sure a cross-validated result is: spread over folds and seeds, patient-cluster bootstrap, control rows.

The interval resamples patients (all bags of a patient together) from the out-of-fold predictions and takes
percentiles; a resample is a vector of counts, so that a metric of all resamples is a few sums of [resamples, bags]
arrays instead of thousands of calls. The metrics are those of the task, with weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from mil_jax.tasks.base import LOWER_IS_BETTER, Task
from mil_jax.tasks.classification import Classification
from mil_jax.tasks.metrics.classification import RANKING, distribution, perfect_calibration_error
from mil_jax.tasks.metrics.within_folds import mean_interval
from mil_jax.tasks.predictions_table import per_patient, probabilities_of, targets_of

RESAMPLES = 1000
_CHUNK = 2_000_000


class Interval(NamedTuple):
    """A percentile interval; `undefined` is the share of resamples that left the metric undefined."""

    low: float
    high: float
    undefined: float


def run_metrics(task: Task, predictions: pd.DataFrame) -> pd.DataFrame:
    """One row per run: fold, seed and the metrics of its rows of `predictions` (of one part)."""
    rows = []
    for (fold, seed), rows_of_run in predictions.groupby(["fold", "seed"], sort=True):
        values = task.metrics(probabilities_of(rows_of_run, task), targets_of(rows_of_run, task))
        rows.append({"fold": fold, "seed": seed, **values})
    return pd.DataFrame(rows)


def threshold_metrics(task: Task, test: pd.DataFrame, validation: pd.DataFrame) -> pd.DataFrame:
    """Metrics of decisions by thresholds that each run chose on its own validation part; empty where none could
    be.
    """
    chosen = dict(list(validation.groupby(["fold", "seed"])))
    rows = []
    for (fold, seed), tested in test.groupby(["fold", "seed"], sort=True):
        own = chosen.get((fold, seed))
        if own is None:
            continue
        thresholds = task.choose_thresholds(probabilities_of(own, task), targets_of(own, task))
        values = task.threshold_metrics(probabilities_of(tested, task), targets_of(tested, task), thresholds)
        if values:
            rows.append({"fold": fold, "seed": seed, **values})
    return pd.DataFrame(rows)


def spread(task: Task, test: pd.DataFrame, runs: pd.DataFrame) -> dict[str, dict[str, float]]:
    """{metric: its statistics} of the test rows of all runs and their `run_metrics`.

    mean: of the folds, each averaged over seeds; undefined folds are left out. sd_folds: between those folds. worst,
    worst_fold: the worst of them. undefined_folds: how many are NaN. estimate: the metric of all out-of-fold
    predictions of a seed together, averaged over seeds; what ranks cases (AUC, C-index) compares those of one fold only. sd_seeds:
    between these of the seeds. across_folds: of AUC and average precision, with cases of different folds ranked together, which
    misleads. Deviations have n - 1 below; NaN for one.
    """
    pooled, across = pooled_metrics(task, test), pooled_metrics(task, test, within=False)
    statistics: dict[str, dict[str, float]] = {}
    for name in [column for column in runs.columns if column not in ("fold", "seed")]:
        folds = runs.groupby("fold")[name].mean()
        defined = folds.dropna()
        worst = _worst(name, defined)
        # Thresholds are each run's own: decisions by them have no pooled metric.
        of_seeds = pooled[name].dropna() if name in pooled else pd.Series(dtype=float)
        statistics[name] = {
            "mean": float(defined.mean()) if len(defined) else np.nan,
            "sd_folds": _deviation(defined),
            "worst": float(defined[worst]) if worst is not None else np.nan,
            "worst_fold": worst if worst is not None else np.nan,
            "undefined_folds": float(folds.isna().sum()),
            "estimate": float(of_seeds.mean()),
            "sd_seeds": _deviation(of_seeds),
        }
        if name in RANKING and test["fold"].nunique() > 1:
            statistics[name]["across_folds"] = float(across[name].mean())
    return statistics


def pooled_metrics(task: Task, test: pd.DataFrame, *, within: bool = True) -> pd.DataFrame:
    """One row per seed (the index): metrics of all folds' test rows together. within: cases of one fold only are ranked."""
    rows = {
        seed: task.metrics(
            probabilities_of(rows, task), targets_of(rows, task), rows["fold"].to_numpy() if within else None
        )
        for seed, rows in test.groupby("seed")
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def bootstrap_intervals(
    task: Task, test: pd.DataFrame, *, resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """{metric: interval} of the estimates of `spread`, under resampling of patients; of the AUC as `metrics/within_folds.py` has it.

    Every seed of a resample sees the same patients. Resamples that leave a metric undefined (they lack a class) are left out
    and their share reported; where all are equal there is no interval.
    """
    patients, patient = np.unique(test["patient_id"].to_numpy(str), return_inverse=True)
    per_seed = []
    for _, positions in sorted(test.reset_index(drop=True).groupby("seed").indices.items()):
        rows = test.iloc[positions]
        folds = rows["fold"].to_numpy()
        per_seed.append((probabilities_of(rows, task), targets_of(rows, task), patient[positions], folds))
    chunks: list[dict[str, np.ndarray]] = []
    for counts in patient_counts(len(patients), len(test), resamples, seed):
        seeds = [task.weighted_metrics(p, y, counts[:, which], folds) for p, y, which, folds in per_seed]
        chunks.append({name: np.mean([one[name] for one in seeds], axis=0) for name in task.metric_names})
    intervals = {}
    for name in task.metric_names:
        values = np.concatenate([chunk[name] for chunk in chunks])
        defined = values[~np.isnan(values)]
        low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]) if len(defined) else (np.nan, np.nan)
        if low == high:
            low = high = np.nan
        intervals[name] = Interval(float(low), float(high), 1 - len(defined) / resamples)
    groups = test.groupby(["fold", "seed"]).ngroup().to_numpy()
    rankings = task.rankings(probabilities_of(test, task), targets_of(test, task), groups, patient)
    if rankings:
        intervals["auc"] = Interval(*mean_interval(rankings, level), 0.0)
    return intervals


def patient_counts(num_patients: int, num_rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Chunks [b, num_patients] float64 of how often each patient is drawn; b keeps a chunk's arrays small."""
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // num_rows)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = rng.integers(0, num_patients, (size, num_patients)) + num_patients * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * num_patients).reshape(size, num_patients).astype(np.float64)


def perfect_calibration(task: Task, test: pd.DataFrame) -> float | None:
    """The calibration error that the test rows would show if they were perfectly calibrated, mean of seeds; None where classes do not
    exclude each other.
    """
    if not isinstance(task, Classification):
        return None
    probabilities = [distribution(probabilities_of(rows, task)) for _, rows in test.groupby("seed")]
    if not all(np.isfinite(p).all() for p in probabilities):
        return None
    return float(np.mean([perfect_calibration_error(p.max(axis=1)) for p in probabilities]))


def patient_statistics(task: Task, test: pd.DataFrame) -> dict[str, dict[str, float]] | None:
    """`spread` with one case per patient (mean of the bags' probabilities); None where each patient has one bag."""
    if not test.duplicated(["patient_id", "fold", "seed"]).any():
        return None
    merged = per_patient(test, task)
    return spread(task, merged, run_metrics(task, merged))


def leak_free_statistics(task: Task, test: pd.DataFrame) -> dict[str, dict[str, float]] | None:
    """`spread` over the test rows whose patient is not in training too; None where the splits do not leak."""
    if "leaked" not in test.columns or not test["leaked"].any():
        return None
    clean = test[~test["leaked"].astype(bool)]
    return spread(task, clean, run_metrics(task, clean)) if len(clean) else None


def constant_control(task: Task, test: pd.DataFrame, constants: Mapping[int, np.ndarray]) -> dict[str, float]:
    """Metrics of a model that always gives the same answer, the best for its fold's training part, the mean over folds.

    A result that does not beat it has learnt nothing. Of classes its accuracy is that of the majority class.
    """
    one_seed = test[test["seed"] == test["seed"].min()]
    folds = []
    for fold, rows in one_seed.groupby("fold"):
        constant = np.tile(np.asarray(constants[fold], np.float64), (len(rows), 1))
        folds.append(task.metrics(constant, targets_of(rows, task)))
    table = pd.DataFrame(folds)
    return {name: float(table[name].mean()) for name in task.metric_names}


def bag_size_control(task: Task, test: pd.DataFrame) -> dict[str, float]:
    """{metric: value} of the number of instances alone, in the better direction; NaN where undefined.

    Where it is good, the size of a bag tells its label, and a model may have learnt nothing else.
    """
    bags = test.drop_duplicates("bag_id")
    return task.size_control(bags["num_instances"].to_numpy(np.float64), targets_of(bags, task))


def _worst(name: str, folds: pd.Series) -> int | None:
    if folds.empty:
        return None
    base = name.removesuffix("_at_threshold")
    return int(folds.idxmax() if base.startswith(tuple(LOWER_IS_BETTER)) else folds.idxmin())


def _deviation(values: pd.Series) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else np.nan
