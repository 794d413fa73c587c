"""Sentences under a result that say how it came about: what chose the epochs, what was not clean, what to
distrust.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mil_jax.reports.statistics import RESAMPLES
from mil_jax.tasks.base import METRIC_LABELS, monitor_label

SUSPICIOUS_BAG_SIZE = {"auc": 0.65, "c_index": 0.65, "pearson": 0.3}
_SURE = {  # a metric that is defined wherever there is a case with a usable prediction
    "classification": "accuracy",
    "multilabel": "accuracy",
    "multiclass": "accuracy",
    "ordinal": "accuracy",
    "pathgene": "accuracy",
    "regression": "mae",
    "survival": "c_index",
}
_NUMBERS = ("regression", "survival")
ESTIMATE = (
    "Estimate: AUC and average precision of cases ranked within a fold, whose scores are of one model; all else of all test predictions; "
    "averaged over seeds."
)
AUC_INTERVAL = "of the AUC by DeLong's variance with patients as clusters, in a score test (Hanley and McNeil's shape); of the rest "
ACROSS_FOLDS = (
    "Ranked across folds: cases of different models compared with each other. It is biased, below 1/2 where there is no signal, and "
    "stands here for comparison with papers that pool folds."
)


@dataclass(frozen=True)
class RunProtocol:
    """How runs were carried out.

    protocol: "clean" or "reference". select: what chose the epoch in the end: "last", or a monitor such as "val_loss".
    selected_on_test: whether it did so on the test part (some references do). order: the setting train.order.
    notes: sentences known before training: the monitor that was changed, leaks of published splits, permuted labels,
    demo.
    """

    protocol: str = "clean"
    select: str = "last"
    selected_on_test: bool = False
    order: str = "independent"
    notes: tuple[str, ...] = ()


def statements(protocol: RunProtocol, summary: Mapping[str, Any]) -> list[str]:
    """The sentences, the gravest first. `summary`: the content of summary.json so far."""
    return [
        selection(protocol),
        *protocol.notes,
        *_leak_free(summary),
        *_diverged(summary),
        *_undefined_folds(summary),
        *_bag_size(summary),
        *_risk_groups(summary),
        *_spread(summary),
        *_interval(summary),
        *_seeds(protocol, summary),
        *_thresholds(summary),
        *_calibration(summary),
    ]


def selection(protocol: RunProtocol) -> str:
    """What chose the epoch of each run."""
    named = f"Protocol {protocol.protocol}: "
    if protocol.select == "last":
        return f"{named}the last epoch of each run was taken; its test part was used once, after training."
    monitor = monitor_label(protocol.select)
    if protocol.selected_on_test:
        measure = monitor.removeprefix("validation ")
        return f"{named}the epoch with the best {measure} was SELECTED ON TEST, so these numbers are too good."
    return f"{named}the epoch with the best {monitor} was taken; each test part was used once, after training."


def _leak_free(summary: Mapping[str, Any]) -> list[str]:
    if not summary["leak_free"]:
        return []
    return ["The splits leak: the rows 'leak-free' leave out test bags whose patient was trained or validated on."]


def _diverged(summary: Mapping[str, Any]) -> list[str]:
    sure = _SURE[summary["task"]]
    runs = [f"fold {run['fold']} seed {run['seed']}" for run in summary["runs"] if math.isnan(run[sure])]
    if not runs:
        return []
    which = ", ".join(runs[:5]) + (" and others" if len(runs) > 5 else "")
    return [f"{len(runs)} runs have no finite predictions or no labelled test bag, and no metrics: {which}."]


def _undefined_folds(summary: Mapping[str, Any]) -> list[str]:
    runs, main, sure = summary["runs"], summary["main_metric"], _SURE[summary["task"]]
    folds = sorted({run["fold"] for run in runs if math.isnan(run[main]) and not math.isnan(run[sure])})
    if not folds:
        return []
    which = _listed(folds, summary["fold_names"])
    why = (
        "its test part has no event, or one value"
        if summary["task"] in _NUMBERS
        else "a class is missing from the test part"
    )
    return [f"{which}: the {METRIC_LABELS[main]} is undefined ({why}) and left out of the mean of folds."]


def _bag_size(summary: Mapping[str, Any]) -> list[str]:
    return [
        f"The number of instances alone reaches {METRIC_LABELS[name]} {value:.3f}: part of the result may be bag size."
        for name, value in summary["controls"]["bag size"].items()
        if value >= SUSPICIOUS_BAG_SIZE[name]
    ]


def _risk_groups(summary: Mapping[str, Any]) -> list[str]:
    if "risk_groups" not in summary:
        return []
    groups = summary["risk_groups"]
    return [
        "C-indices and dynamic AUC compare patients of the same fold only, also where folds are pooled; censoring is weighed by the "
        "distribution in the cases compared.",
        f"High risk ({groups['high']} bags) is a risk above the median of the run's training part, low ({groups['low']}) the rest, by most "
        f"seeds; log-rank test over all folds: chi2 {groups['chi2']:.2f}, p {groups['p']:.2g}.",
    ]


def _spread(summary: Mapping[str, Any]) -> list[str]:
    if not math.isfinite(summary["metrics"][summary["main_metric"]]["sd_seeds"]):
        return []
    return ["sd over folds: seeds averaged first. sd over seeds: of the estimates of single seeds."]


def _interval(summary: Mapping[str, Any]) -> list[str]:
    main = summary["metrics"][summary["main_metric"]]
    undefined = max(one.get("undefined_resamples", 0.0) for one in summary["metrics"].values())
    what = "had no pair to compare" if summary["task"] in _NUMBERS else "lacked a class"
    lost = f"; up to {undefined:.1%} of the resamples {what} and were left out" if undefined else ""
    ranked = "auc" in summary["metrics"]
    said = [
        ESTIMATE if ranked else "Estimate: of all test predictions, averaged over seeds.",
        f"95 % interval: {AUC_INTERVAL if ranked else ''}percentiles over {RESAMPLES} resamples of the {summary['num_patients']} patients "
        f"(a patient's bags together){lost}. It speaks of other patients; the models stay as trained.",
    ]
    if "across_folds" in main:
        said.append(ACROSS_FOLDS)
    return said


def _seeds(protocol: RunProtocol, summary: Mapping[str, Any]) -> list[str]:
    if protocol.order != "fold" or len({run["seed"] for run in summary["runs"]}) == 1:
        return []
    return [
        "The seeds of a fold saw its bags in the same order (train.order=fold): sd over seeds shows only initialisation and dropout."
    ]


def _thresholds(summary: Mapping[str, Any]) -> list[str]:
    if "accuracy_at_threshold" not in summary["metrics"]:
        return []
    return [
        "'Own threshold': each run's decision threshold was chosen on its validation part (largest tpr - fpr); "
        "all other decisions are by the largest probability, or 0.5."
    ]


def _calibration(summary: Mapping[str, Any]) -> list[str]:
    if "calibration_error_if_perfect" not in summary:
        return []
    return [
        f"ECE is never below 0: perfectly calibrated probabilities would show about {summary['calibration_error_if_perfect']:.3f} on these "
        "bags, and only what exceeds that speaks of miscalibration."
    ]


def _listed(folds: list[int], names: Mapping[str, str]) -> str:
    shown = [names.get(str(fold), f"fold {fold}") for fold in folds]
    text = ", ".join(shown[:10]) + (f" and {len(shown) - 10} more" if len(shown) > 10 else "")
    return text[0].upper() + text[1:]
