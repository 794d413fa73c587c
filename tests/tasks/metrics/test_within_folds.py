"""Ranking within folds, its variance by the closed form, and the coverage of its interval in a small form of the committed simulation."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.validity import coverage_of_intervals
from mil_jax.tasks.metrics.within_folds import delong_variance, mean_interval, ranking


def cases(number: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    positive = np.arange(number) % 3 == 0
    return np.round(rng.standard_normal(number) + positive, 1), positive


def test_one_fold_with_one_slide_a_patient_has_delongs_variance():
    score, positive = cases()
    found = ranking(score, positive, np.zeros(40), np.arange(40), 40)
    won = (score[positive][:, None] > score[~positive]) + 0.5 * (score[positive][:, None] == score[~positive])
    expected = won.mean(1).var(ddof=1) / positive.sum() + won.mean(0).var(ddof=1) / (~positive).sum()
    assert found.value == pytest.approx(roc_auc_score(positive, score))
    assert delong_variance([found]) == pytest.approx(expected)


def test_folds_are_ranked_apart_and_weighted_by_their_pairs():
    score, positive = cases()
    folds = np.arange(40) % 4
    found = ranking(score + 100 * folds, positive, folds, np.arange(40), 40)
    of_fold = [roc_auc_score(positive[folds == fold], score[folds == fold]) for fold in range(4)]
    pairs = [positive[folds == fold].sum() * (~positive[folds == fold]).sum() for fold in range(4)]
    assert found.value == pytest.approx(np.average(of_fold, weights=pairs))


def test_slides_that_are_there_twice_and_seeds_that_agree_make_no_interval_narrower():
    score, positive = cases()
    once = mean_interval([ranking(score, positive, np.zeros(40), np.arange(40), 40)])
    copied = ranking(np.repeat(score, 3), np.repeat(positive, 3), np.zeros(120), np.repeat(np.arange(40), 3), 40)
    seeds = ranking(np.tile(score, 3), np.tile(positive, 3), np.repeat(range(3), 40), np.tile(np.arange(40), 3), 40)
    assert mean_interval([copied]) == pytest.approx(once, abs=1e-6)
    assert mean_interval([seeds]) == pytest.approx(once, abs=1e-6)


def test_without_a_pair_in_any_fold_there_is_no_ranking():
    score, positive = cases(4)
    assert ranking(score, positive, np.arange(4), np.arange(4), 4) is None


def test_few_patients_are_covered():
    for row in coverage_of_intervals(repeats=100, patients=(30,), shares=(0.5, 0.05), spreads=(1.0,)):
        assert row["coverage"] >= 0.90, row  # 93 % less two standard errors of 100 repeats
        assert row["least_width"] > 0.01
