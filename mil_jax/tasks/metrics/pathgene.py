"""Metrics as PathGene's scripts compute them (panliangrui/NIPS2025), for its reference protocol; too good, and said to be so.

Every class has its own sigmoid and its own threshold, chosen on the very bags that are scored (the first largest tpr - fpr of the ROC
curve); a bag is right only where all its classes are. A class that never occurs has no AUC and no threshold (the reference shifts its list
of thresholds then, so that every later class gets another's).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn import metrics as sklearn_metrics

from mil_jax.tasks.metrics.classification import binary_auc, youden_threshold

REPORTS = ("micro", "macro", "weighted", "samples")


def decisions(scores: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(one-hot targets [M, K], thresholds [K], decided [M, K]) from scores [M, K] and class numbers [M].

    A label that is no class (PathGene's tables hold some 11) is of no class.
    """
    targets = label[:, None] == np.arange(scores.shape[1])
    thresholds = np.full(scores.shape[1], np.nan)
    for k, (score, target) in enumerate(zip(scores.T, targets.T)):
        if target.any() and not target.all():
            thresholds[k] = youden_threshold(score, target, allow_none_positive=True)
    return targets, thresholds, scores >= np.where(np.isnan(thresholds), np.inf, thresholds)


def pathgene_metrics(scores: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    """auc, optimal_threshold, precision, recall, f1: [K]. mean_auc, exact_match_accuracy; selection_score, by which the reference chooses
    the epoch on the test part: half of the sum of all AUCs and the accuracy. report_micro, ...: (precision, recall, F1).
    """
    targets, thresholds, decided = decisions(scores, label)
    auc = np.array([binary_auc(score, target) for score, target in zip(scores.T, targets.T)])
    right = float(np.mean((targets == decided).all(axis=1)))
    per_class = _scores(targets, decided, None)
    found = {f"report_{how}": np.array(_scores(targets, decided, how)) for how in REPORTS}
    return {
        "auc": auc,
        "mean_auc": float(np.nanmean(auc)) if not np.isnan(auc).all() else np.nan,
        "optimal_threshold": thresholds,
        "exact_match_accuracy": right,
        "selection_score": float((np.nansum(auc) + right) / 2),
        **dict(zip(("precision", "recall", "f1"), per_class)),
        **found,
    }


def _scores(targets: np.ndarray, decided: np.ndarray, average: str | None) -> tuple[Any, Any, Any]:
    values = sklearn_metrics.precision_recall_fscore_support(targets, decided, average=average, zero_division=0)
    precision, recall, f1, _ = values
    return precision, recall, f1
