"""Metrics of classification, on the host, through scikit-learn.

Cases without a label are left out. A metric that a missing class, an empty part or a non-finite probability leaves
undefined is NaN: never an exception, a warning or a silent 0. Precision, recall and F1 of single-label tasks are
macro means over the classes, two-class tasks included, as the field's papers report them; a class never predicted
has precision 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata
from sklearn import metrics as sklearn_metrics

EPSILON = float(np.finfo(np.float64).eps)
CALIBRATION_BINS = 15

RANKING = ("auc", "average_precision")
DECISIONS = ("accuracy", "balanced_accuracy", "f1", "precision", "recall", "cohen_kappa")
CALIBRATION = ("brier", "expected_calibration_error", "log_loss")
NAMES = RANKING + DECISIONS + CALIBRATION


def single_label(probabilities: np.ndarray, index: np.ndarray, groups: np.ndarray | None = None) -> dict[str, float]:
    """Metrics of one class per bag: probabilities [M, C], class index [M] (-1 = no label) -> {name: value}.

    AUC and average precision: of the positive (second) class for two classes, else macro one-vs-rest. Decisions are
    by argmax. Rows are scaled to sum 1 for the Brier score (two classes: mean (p - y)^2; more: summed over classes),
    the calibration error (confidence of the decision, 15 equal bins) and the log loss. groups: [M], within which alone AUC and average
    precision rank.
    """
    num_classes = probabilities.shape[1]
    known = index >= 0
    groups = np.zeros(int(known.sum())) if groups is None else np.asarray(groups)[known]
    probabilities, index = np.asarray(probabilities, np.float64)[known], index[known]
    if len(index) == 0 or not np.isfinite(probabilities).all():
        return dict.fromkeys(NAMES, np.nan)
    scaled = distribution(probabilities)
    one_hot = np.eye(num_classes)[index]
    squared_error = np.mean(np.sum((scaled - one_hot) ** 2, axis=1))
    decisions = np.argmax(probabilities, axis=1)
    return {
        **_ranking(probabilities, index, groups),
        **single_label_decisions(decisions, index, num_classes),
        "brier": float(squared_error / 2 if num_classes == 2 else squared_error),
        "expected_calibration_error": calibration_error(np.max(scaled, axis=1), decisions == index),
        "log_loss": log_loss(scaled, index),
    }


def single_label_decisions(decisions: np.ndarray, index: np.ndarray, num_classes: int) -> dict[str, float]:
    """Metrics of decided classes [M]; all but the accuracy are NaN when a class has no case."""
    decisions, index = decisions[index >= 0], index[index >= 0]
    values = dict.fromkeys(DECISIONS, np.nan)
    if len(index) == 0:
        return values
    values["accuracy"] = float(np.mean(decisions == index))
    if len(np.unique(index)) == num_classes:
        precision, recall, f1, _ = sklearn_metrics.precision_recall_fscore_support(
            index, decisions, labels=np.arange(num_classes), average="macro", zero_division=0
        )
        kappa = sklearn_metrics.cohen_kappa_score(index, decisions)
        values.update(balanced_accuracy=recall, f1=f1, precision=precision, recall=recall, cohen_kappa=kappa)
    return {name: float(value) for name, value in values.items()}


def multi_label(
    probabilities: np.ndarray, targets: np.ndarray, classes: Sequence[str], groups: np.ndarray | None = None
) -> dict[str, float]:
    """Metrics of labels that may each be present: probabilities, targets [M, C] (NaN = missing) -> {name: value}.

    `name_CLASS` is the metric of that class alone (decision at 0.5; precision, recall and F1 of "present"), `name`
    their mean, NaN when one of them is; `subset_accuracy` counts the bags with every label known and right. groups: as for one label.
    """
    probabilities = np.asarray(probabilities, np.float64)
    groups = np.zeros(len(targets)) if groups is None else np.asarray(groups)
    per_class = [
        _one_label(
            probabilities[:, c],
            targets[:, c],
            groups,
            multi_label_decisions(probabilities[:, [c]] >= 0.5, targets[:, [c]]),
        )
        for c in range(len(classes))
    ]
    values = {name: float(np.mean([one[name] for one in per_class])) for name in NAMES}
    complete = ~np.isnan(targets).any(axis=1)
    right = np.all((probabilities >= 0.5) == (targets > 0), axis=1)[complete]
    finite = np.isfinite(probabilities).all()
    values["subset_accuracy"] = float(np.mean(right)) if len(right) and finite else np.nan
    for name, one in zip(classes, per_class):
        values.update({f"{metric}_{name}": value for metric, value in one.items()})
    return values


def multi_label_decisions(decisions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Metrics of decisions [M, C] bool, the mean over classes, each with 'present' as the positive class."""
    per_class = []
    for decided, target in zip(np.asarray(decisions).T, targets.T):
        known = ~np.isnan(target)
        y, decided = target[known] > 0, decided[known]
        values = dict.fromkeys(DECISIONS, np.nan)
        if len(y):
            values["accuracy"] = float(np.mean(decided == y))
        if 0 < np.sum(y) < len(y):
            precision, recall, f1, _ = sklearn_metrics.precision_recall_fscore_support(
                y, decided, average="binary", pos_label=True, zero_division=0
            )
            balanced = sklearn_metrics.balanced_accuracy_score(y, decided)
            kappa = sklearn_metrics.cohen_kappa_score(y, decided)
            values.update(balanced_accuracy=balanced, f1=f1, precision=precision, recall=recall, cohen_kappa=kappa)
        per_class.append(values)
    return {name: float(np.mean([values[name] for values in per_class])) for name in DECISIONS}


def _one_label(p: np.ndarray, target: np.ndarray, groups: np.ndarray, decided: dict[str, float]) -> dict[str, float]:
    known = ~np.isnan(target)
    p, y = p[known], target[known] > 0
    if len(y) == 0 or not np.isfinite(p).all():
        return dict.fromkeys(NAMES, np.nan)
    return {
        **dict(zip(RANKING, within_groups(p, y, groups[known]), strict=True)),
        **decided,
        "brier": float(np.mean((p - y) ** 2)),
        "expected_calibration_error": calibration_error(p, y),
        "log_loss": binary_log_loss(p[:, None], y[:, None]),
    }


def binary_auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve from ranks (ties count half): a tenth of scikit-learn's time, called every epoch.

    scores: [M]; positive: [M] bool. NaN without a positive, without a negative, or with a NaN score.
    """
    num_positive = int(np.sum(positive))
    num_negative = len(positive) - num_positive
    if num_positive == 0 or num_negative == 0 or np.isnan(scores).any():
        return np.nan
    rank_sum = np.sum(rankdata(scores)[positive])
    return float((rank_sum - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def macro_auc(probabilities: np.ndarray, index: np.ndarray) -> float:
    """AUC of the second class for two classes, else the mean of one-vs-rest AUCs; NaN when a class has no case."""
    probabilities, index = probabilities[index >= 0], index[index >= 0]
    if probabilities.shape[1] == 2:
        return binary_auc(probabilities[:, 1], index == 1)
    return float(np.mean([binary_auc(probabilities[:, c], index == c) for c in range(probabilities.shape[1])]))


def macro_auc_multi_label(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Mean over labels of the AUC among the bags where the label is known."""
    known = ~np.isnan(targets)
    return float(np.mean([binary_auc(p[k], y[k] > 0) for p, y, k in zip(probabilities.T, targets.T, known.T)]))


def log_loss(distribution: np.ndarray, index: np.ndarray, gamma: float = 0.0) -> float:
    """Mean of -(1 - p(class))^gamma log p(class), p kept above the machine epsilon; NaN for no case. gamma: of the focal loss."""
    distribution, index = distribution[index >= 0], index[index >= 0]
    if len(index) == 0:
        return np.nan
    p = np.maximum(distribution[np.arange(len(index)), index], EPSILON)
    return float(-np.mean((1 - p) ** gamma * np.log(p)))


def binary_log_loss(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Mean over bags of the mean over known labels of the binary cross entropy; [M, C] each, NaN targets = missing."""
    known = ~np.isnan(np.asarray(targets, np.float64))
    labelled = known.any(axis=1)
    if not labelled.any():
        return np.nan
    p = np.clip(probabilities, EPSILON, 1 - EPSILON)
    losses = -np.where(np.asarray(targets) > 0, np.log(p), np.log(1 - p))
    per_bag = np.sum(np.where(known, losses, 0.0), axis=1)[labelled] / np.sum(known, axis=1)[labelled]
    return float(np.mean(per_bag))


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Expected calibration error: share-weighted mean over 15 equal bins of |accuracy - mean confidence|."""
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, weights=correct.astype(np.float64) - confidence, minlength=CALIBRATION_BINS)
    return float(np.sum(np.abs(gaps)) / len(confidence))


def perfect_calibration_error(confidence: np.ndarray) -> float:
    """About the mean of `calibration_error` over cases that are right as often as these confidences say: it is far from 0 for few cases.

    A bin's sum of (right - confidence) has mean 0 and variance sum c (1 - c); of a normal variable the mean size is sqrt(2 / pi) of its
    deviation.
    """
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    variances = np.bincount(bins, weights=confidence * (1.0 - confidence), minlength=CALIBRATION_BINS)
    return float(np.sum(np.sqrt(2.0 / np.pi * variances)) / len(confidence))


def youden_threshold(scores: np.ndarray, positive: np.ndarray, *, allow_none_positive: bool = False) -> float:
    """The score with the largest tpr - fpr, the highest such score; "positive" means score >= threshold.

    allow_none_positive: where no threshold is better than calling nobody positive, +inf, as DSMIL's reference has it.
    NaN when a score is not finite.
    """
    if not np.isfinite(scores).all():
        return np.nan
    fpr, tpr, thresholds = sklearn_metrics.roc_curve(positive, scores)
    # The first point (threshold +inf, nobody positive) is no choice a model can be used with.
    first = 0 if allow_none_positive else 1
    return float(thresholds[first:][np.argmax((tpr - fpr)[first:])])


def within_groups(scores: np.ndarray, positive: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """(AUC of the pairs within groups, mean over positives of the precision within their group at their score); NaN without a pair."""
    values = []
    for group in np.unique(groups):
        score, y = scores[groups == group], positive[groups == group]
        if y.any() and not y.all():
            precision = float(sklearn_metrics.average_precision_score(y, score))
            values.append((y.sum() * (~y).sum(), binary_auc(score, y), y.sum(), precision))
    if not values:
        return np.nan, np.nan
    pairs, aucs, positives, precisions = np.array(values, np.float64).T
    return float(np.average(aucs, weights=pairs)), float(np.average(precisions, weights=positives))


def _ranking(probabilities: np.ndarray, index: np.ndarray, groups: np.ndarray) -> dict[str, float]:
    """Of the second class for two classes, else the mean of one-vs-rest."""
    num_classes = probabilities.shape[1]
    scored = [1] if num_classes == 2 else range(num_classes)
    values = [within_groups(probabilities[:, c], index == c, groups) for c in scored]
    return dict(zip(RANKING, map(float, np.mean(values, axis=0)), strict=True))


def distribution(probabilities: np.ndarray) -> np.ndarray:
    """Rows scaled to sum 1 (sigmoid outputs do not); a row of zeros becomes uniform."""
    total = np.sum(probabilities, axis=1, keepdims=True)
    uniform = np.full_like(probabilities, 1.0 / probabilities.shape[1])
    return np.where(total > 0, probabilities / np.where(total > 0, total, 1.0), uniform)
