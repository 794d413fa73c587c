"""Tests between runs against their definitions, written out with loops, and against published numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from mil_jax.reports.comparison.significance import corrected_t, delong, holm, paired_bootstrap, rank_methods
from mil_jax.tasks import Classification

TASK = Classification(("no", "yes"))


def table(scores: np.ndarray, labels: np.ndarray, patients: np.ndarray, seed: int = 0) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "bag_id": [f"s{number}" for number in range(len(labels))],
            "patient_id": [f"p{patient}" for patient in patients],
            "fold": 0,
            "seed": seed,
            "target": np.where(labels, "yes", "no"),
            "prob_no": 1 - scores,
            "prob_yes": scores,
        }
    )


def test_delong_is_its_definition():
    rng = np.random.default_rng(0)
    positive = rng.random(60) < 0.4
    first, second = (np.round(rng.random(60) + 0.4 * positive, 1) for _ in range(2))  # with ties
    wins = [
        np.array([[(x > y) + 0.5 * (x == y) for y in scores[~positive]] for x in scores[positive]])
        for scores in (first, second)
    ]
    of_positive, of_negative = ([w.mean(axis=axis) for w in wins] for axis in (1, 0))
    covariance = np.cov(of_positive) / positive.sum() + np.cov(of_negative) / (~positive).sum()
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    difference = roc_auc_score(positive, second) - roc_auc_score(positive, first)
    result = delong(positive, first, second)
    assert result.value == pytest.approx(difference, abs=1e-12)
    assert result.p == pytest.approx(2 * stats.norm.sf(abs(difference) / np.sqrt(variance)), rel=1e-9)


def test_the_corrected_t_is_larger_in_variance_by_the_overlap():
    first, second = np.array([0.70, 0.72, 0.69, 0.75, 0.71]), np.array([0.74, 0.73, 0.75, 0.77, 0.70])
    plain = stats.ttest_rel(second, first)
    corrected = corrected_t(first, second, 0.25)
    statistic = plain.statistic * np.sqrt((1 / 5) / (1 / 5 + 0.25))
    assert corrected.value == pytest.approx(0.024)
    assert corrected.p == pytest.approx(2 * stats.t.sf(statistic, 4), rel=1e-9)
    assert np.isnan(corrected_t(first[:2], second[:2], 0.25).p)


def test_equal_runs_do_not_differ():
    rng = np.random.default_rng(1)
    labels, scores = rng.random(40) < 0.5, rng.random(40)
    one = table(scores, labels, np.arange(40))
    result = paired_bootstrap(TASK, one, one, ["auc", "brier"], resamples=50)
    assert result["auc"][:4] == (0.0, 0.0, 0.0, 1.0)
    assert result["brier"].value == 0.0


def test_the_paired_bootstrap_draws_whole_patients_and_the_same_for_both():
    rng = np.random.default_rng(2)
    labels, patients = np.arange(60) // 3 % 2 == 0, np.arange(60) // 3
    first, second = (
        table(np.clip(labels * gap + rng.random(60), 0, 1.5) / 1.5, labels, patients) for gap in (0.2, 0.5)
    )
    result = paired_bootstrap(TASK, first, second, ["auc"], resamples=200, seed=3)["auc"]
    draws = np.random.default_rng(3).integers(0, 20, (200, 20))
    names = np.unique(first["patient_id"])
    drawn = []
    for draw in draws:
        rows = np.concatenate([np.flatnonzero(first["patient_id"] == names[patient]) for patient in draw])
        y = labels[rows]
        if 0 < y.sum() < len(y):
            both = [roc_auc_score(y, one["prob_yes"].to_numpy()[rows]) for one in (first, second)]
            drawn.append(both[1] - both[0])
    assert (result.low, result.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=1e-9)
    assert result.p == pytest.approx(
        max(2 * min(np.mean(np.array(drawn) <= 0), np.mean(np.array(drawn) >= 0)), 1 / 200)
    )


def test_holm_corrects_the_smallest_most():
    assert holm([0.01, 0.04, 0.03, np.nan]) == pytest.approx([0.03, 0.06, 0.06, np.nan], nan_ok=True)


def test_the_critical_difference_is_the_published_one():
    rng = np.random.default_rng(0)
    scores = {name: rng.random(14).tolist() for name in ("a", "b", "c", "d")}
    ranks = rank_methods(scores)
    assert ranks is not None
    assert ranks.critical == pytest.approx(1.25, abs=0.005)  # Demsar 2006, section 3.2.2: 4 methods, 14 tasks
    assert sum(ranks.mean.values()) == pytest.approx(10)


def test_ranks_need_five_tasks_and_three_methods():
    assert rank_methods({name: [0.1, 0.2, 0.3, 0.4] for name in "abc"}) is None
    assert rank_methods({name: [0.1, 0.2, 0.3, 0.4, 0.5] for name in "ab"}) is None
