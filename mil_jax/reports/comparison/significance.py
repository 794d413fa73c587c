"""Whether one run is better than another on the same slides: paired bootstrap over patients, corrected t over folds, DeLong, ranks.

Paired bootstrap: both runs see the same resampled patients, and the difference of the pooled metrics is taken. Over folds the training
parts overlap, so the variance of the mean is (1/K + tested/trained) s^2, not s^2/K (Nadeau and Bengio 2003). DeLong's test (1988, in the
fast form of Sun and Xu 2014) needs independent cases scored by one model each. Over tasks: Friedman's ranks and Nemenyi's critical
difference (Demsar 2006).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from mil_jax.reports.statistics import RESAMPLES, patient_counts, pooled_metrics
from mil_jax.tasks.base import Task
from mil_jax.tasks.predictions_table import probabilities_of, targets_of

LEAST_TASKS = 5  # for ranks over tasks
LEAST_FOLDS = 3  # for a t over folds


class Difference(NamedTuple):
    """Of a metric, the second run less the first. low, high: 95 % interval. p: two-sided; undefined: share of resamples without a class."""

    value: float
    low: float
    high: float
    p: float
    undefined: float


class Test(NamedTuple):
    """A difference with a two-sided p; NaN where there is none."""

    value: float
    p: float


def paired_bootstrap(
    task: Task,
    first: pd.DataFrame,
    second: pd.DataFrame,
    names: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Difference]:
    """{metric: difference} of the pooled metrics of two tables of test predictions of the same bags, each averaged over its seeds.

    Resamples that lack a class are left out. p counts the resamples on the other side of 0 twice, and is at least 1 / resamples.
    """
    patients = np.unique(first["patient_id"].to_numpy(str))
    runs = [_per_seed(task, table, patients) for table in (first, second)]
    chunks: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for counts in patient_counts(len(patients), max(len(first), len(second)), resamples, seed):
        means = []
        for per_seed in runs:
            values = [task.weighted_metrics(p, y, counts[:, which], folds) for p, y, which, folds in per_seed]
            means.append({name: np.mean([one[name] for one in values], axis=0) for name in names})
        for name in names:
            chunks[name].append(means[1][name] - means[0][name])
    observed = [pooled_metrics(task, table).mean() for table in (first, second)]
    result = {}
    for name in names:
        drawn = np.concatenate(chunks[name])
        defined = drawn[~np.isnan(drawn)]
        low, high = np.quantile(defined, [0.025, 0.975]) if len(defined) else (np.nan, np.nan)
        value = float(observed[1][name] - observed[0][name])
        result[name] = Difference(value, float(low), float(high), _two_sided(defined), 1 - len(defined) / resamples)
    return result


def corrected_t(first: Sequence[float], second: Sequence[float], tested_to_trained: float) -> Test:
    """Nadeau and Bengio's corrected resampled t over the metrics of K folds, those undefined left out.

    tested_to_trained: bags tested on by bags trained on. p is NaN for fewer than 3 folds, and where all differences are equal.
    """
    differences = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    differences = differences[~np.isnan(differences)]
    count = len(differences)
    if count == 0:
        return Test(np.nan, np.nan)
    mean = float(differences.mean())
    variance = differences.var(ddof=1) * (1 / count + tested_to_trained) if count >= LEAST_FOLDS else 0.0
    if variance <= 0:
        return Test(mean, np.nan)
    return Test(mean, float(2 * stats.t.sf(abs(mean) / np.sqrt(variance), count - 1)))


def delong(positive: np.ndarray, first: np.ndarray, second: np.ndarray) -> Test:
    """DeLong's test of two AUCs of the same M cases. positive: bool [M]. first, second: scores [M]."""
    if positive.all() or not positive.any():
        return Test(np.nan, np.nan)
    components = [_components(positive, scores) for scores in (first, second)]
    auc = [of_positive.mean() for of_positive, _ in components]
    variance = 0.0
    for place, count in ((0, positive.sum()), (1, (~positive).sum())):
        if count < 2:
            return Test(float(auc[1] - auc[0]), np.nan)
        variance += np.var(components[1][place] - components[0][place], ddof=1) / count
    difference = float(auc[1] - auc[0])
    if variance <= 0:
        return Test(difference, 1.0 if difference == 0 else np.nan)
    return Test(difference, float(2 * stats.norm.sf(abs(difference) / np.sqrt(variance))))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction for several tests; NaN stays and does not count."""
    values = np.asarray(p, np.float64)
    order = [place for place in np.argsort(values) if not np.isnan(values[place])]
    corrected, highest = values.copy(), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * values[place]))
        corrected[place] = highest
    return corrected.tolist()


class Ranks(NamedTuple):
    """mean: {method: mean rank over tasks, 1 the best}. critical: difference of mean ranks that is more than chance at 5 % (Nemenyi).
    p: of Friedman's test that all methods are alike.
    """

    mean: dict[str, float]
    critical: float
    p: float


def rank_methods(scores: Mapping[str, Sequence[float]]) -> Ranks | None:
    """scores: of each method, one for each task, the higher the better. None for fewer than 5 tasks or 3 methods."""
    table = np.array(list(scores.values()), np.float64)
    table = table[:, ~np.isnan(table).any(axis=0)]
    methods, tasks = table.shape
    if methods < 3 or tasks < LEAST_TASKS:
        return None
    mean = np.mean([stats.rankdata(-column) for column in table.T], axis=0)
    quantile = stats.studentized_range.ppf(0.95, methods, np.inf) / np.sqrt(2)
    critical = quantile * np.sqrt(methods * (methods + 1) / (6 * tasks))
    p = stats.friedmanchisquare(*table).pvalue
    return Ranks(dict(zip(scores, mean.tolist(), strict=True)), float(critical), float(p))


def _per_seed(
    task: Task, table: pd.DataFrame, patients: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """(outputs, targets, number of the patient, fold) of the rows of each seed."""
    return [
        (
            probabilities_of(rows, task),
            targets_of(rows, task),
            np.searchsorted(patients, rows["patient_id"].to_numpy(str)),
            rows["fold"].to_numpy(),
        )
        for _, rows in table.groupby("seed", sort=True)
    ]


def _two_sided(drawn: np.ndarray) -> float:
    if not len(drawn):
        return np.nan
    other_side = min(float(np.mean(drawn <= 0)), float(np.mean(drawn >= 0)))
    return min(1.0, max(2 * other_side, 1 / len(drawn)))


def _components(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Structural components: of each positive the share of negatives below it, of each negative the share of positives above it."""
    ranks = stats.rankdata(scores)
    num_positive, num_negative = positive.sum(), (~positive).sum()
    of_positive = (ranks[positive] - stats.rankdata(scores[positive])) / num_negative
    of_negative = 1 - (ranks[~positive] - stats.rankdata(scores[~positive])) / num_positive
    return of_positive, of_negative
