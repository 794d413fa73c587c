"""The metrics of `tasks/metrics/classification.py` for many weightings of the same cases at once: [B, M] weights -> [B] values.

With weights that count how often a case was drawn, row b is the metric of resample b, ties included.
"""

from __future__ import annotations

import numpy as np

from mil_jax.tasks.metrics.classification import CALIBRATION_BINS, EPSILON, NAMES, distribution

UNDEFINED_WITHOUT_A_CLASS = (
    "auc",
    "average_precision",
    "balanced_accuracy",
    "f1",
    "precision",
    "recall",
    "cohen_kappa",
)


def of_one_label(
    p: np.ndarray, index: np.ndarray, weights: np.ndarray, *, positive_only: bool, groups: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """{metric: [B]} from probabilities [M, C], class index [M], weights [B, M]; NaN where undefined.

    groups: [M], within which alone AUC and average precision rank.
    positive_only: precision, recall, F1 and calibration of the second class, as for one label of a multi-label task.
    """
    num_classes = p.shape[1]
    if len(index) == 0 or not np.isfinite(p).all():
        return dict.fromkeys(NAMES, np.full(len(weights), np.nan))
    with np.errstate(divide="ignore", invalid="ignore"):
        decisions = (p[:, 1] >= 0.5).astype(np.int64) if positive_only else np.argmax(p, axis=1)
        groups = np.zeros(len(index)) if groups is None else groups
        scored = [1] if num_classes == 2 else range(num_classes)
        ranked = [_ranking(p[:, c], index == c, weights, groups) for c in scored]
        values = {
            "auc": np.mean([auc for auc, _ in ranked], axis=0),
            "average_precision": np.mean([precision for _, precision in ranked], axis=0),
            **_from_confusion(_confusion(index, decisions, num_classes, weights), positive_only),
            **_calibration(p, index, decisions, weights, positive_only),
        }
    cases = weights @ np.eye(num_classes)[index]  # [B, C]
    lacking = np.any(cases == 0, axis=1)
    for name in UNDEFINED_WITHOUT_A_CLASS:
        values[name] = np.where(lacking, np.nan, values[name])
    return values


def _ranking(
    scores: np.ndarray, positive: np.ndarray, weights: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUC and average precision [B] each, of the pairs and of the positives within groups."""
    sums = np.zeros((4, len(weights)))
    for group in np.unique(groups):
        mine = groups == group
        sums += _ranking_sums(scores[mine], positive[mine], weights[:, mine])
    wins, pairs, precision, positives = sums
    return wins / pairs, precision / positives


def _ranking_sums(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[4, B] of one group: pairs won, pairs, the sum over positives of the precision, positives that have a negative beside them."""
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.inf))  # the first case of each distinct score
    ordered = weights[:, order]
    here_positive = np.add.reduceat(ordered * positive[order], starts, axis=1)  # [B, distinct scores], falling
    here = np.add.reduceat(ordered, starts, axis=1)
    here_negative = here - here_positive
    above_positive = np.cumsum(here_positive, axis=1)
    num_positive, num_negative = above_positive[:, -1], np.sum(here_negative, axis=1)
    wins = np.sum(here_negative * (above_positive - 0.5 * here_positive), axis=1)
    # At the first score a resample holds nothing above it may be 0 / 0; such a point adds no recall.
    precision = np.nan_to_num(above_positive / np.cumsum(here, axis=1))
    sums = [wins, num_positive * num_negative, np.sum(here_positive * precision, axis=1), num_positive]
    return np.where(num_negative > 0, sums, 0.0)


def _confusion(index: np.ndarray, decisions: np.ndarray, num_classes: int, weights: np.ndarray) -> np.ndarray:
    """[B, C true, C decided]."""
    pairs = np.eye(num_classes * num_classes)[index * num_classes + decisions]
    return (weights @ pairs).reshape(-1, num_classes, num_classes)


def _from_confusion(confusion: np.ndarray, positive_only: bool) -> dict[str, np.ndarray]:
    right = np.diagonal(confusion, axis1=1, axis2=2)  # [B, C]
    true, decided = confusion.sum(axis=2), confusion.sum(axis=1)
    total = true.sum(axis=1)
    recall, precision = right / true, np.where(decided > 0, right / decided, 0.0)
    f1 = 2 * right / (true + decided)
    accuracy, chance = right.sum(axis=1) / total, np.sum(true * decided, axis=1) / total**2
    shown = slice(1, 2) if positive_only else slice(None)
    return {
        "accuracy": accuracy,
        "balanced_accuracy": recall.mean(axis=1),
        "f1": f1[:, shown].mean(axis=1),
        "precision": precision[:, shown].mean(axis=1),
        "recall": recall[:, shown].mean(axis=1),
        "cohen_kappa": (accuracy - chance) / (1 - chance),
    }


def _calibration(
    p: np.ndarray, index: np.ndarray, decisions: np.ndarray, weights: np.ndarray, positive_only: bool
) -> dict[str, np.ndarray]:
    num_classes = p.shape[1]
    p = distribution(p)
    squared_error = np.sum((p - np.eye(num_classes)[index]) ** 2, axis=1) / (2 if num_classes == 2 else 1)
    log_losses = -np.log(np.maximum(p[np.arange(len(index)), index], EPSILON))
    confidence, correct = (p[:, 1], index == 1) if positive_only else (np.max(p, axis=1), decisions == index)
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.eye(CALIBRATION_BINS)[bins] * (correct - confidence)[:, None]  # [M, bins]
    total = weights.sum(axis=1)
    return {
        "brier": weights @ squared_error / total,
        "expected_calibration_error": np.sum(np.abs(weights @ gaps), axis=1) / total,
        "log_loss": weights @ log_losses / total,
    }
