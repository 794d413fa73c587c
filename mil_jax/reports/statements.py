"""Sentences under a result that say how it came about: what chose the epochs, what was not clean, what to
distrust.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mil_jax.reports.statistics import RESAMPLES

SUSPICIOUS_BAG_SIZE_AUC = 0.65
_MONITORS = {"val_loss": "validation loss", "val_auc": "validation AUC"}


@dataclass(frozen=True)
class Conduct:
    """How runs were carried out.

    protocol: "clean" or "reference". select: what chose the epoch in the end: "last", "val_loss" or "val_auc".
    selected_on_test: whether it did so on the test part (some references do). order: the setting train.order.
    notes: sentences known before training: the monitor that was changed, leaks of published splits, permuted labels,
    demo.
    """

    protocol: str = "clean"
    select: str = "last"
    selected_on_test: bool = False
    order: str = "independent"
    notes: tuple[str, ...] = ()


def statements(conduct: Conduct, summary: Mapping[str, Any]) -> list[str]:
    """The sentences, the gravest first. `summary`: the content of summary.json so far."""
    return [
        selection(conduct),
        *conduct.notes,
        *_leak_free(summary),
        *_diverged(summary),
        *_undefined_folds(summary),
        *_bag_size(summary),
        *_spread(summary),
        *_interval(summary),
        *_seeds(conduct, summary),
        *_thresholds(summary),
    ]


def selection(conduct: Conduct) -> str:
    """What chose the epoch of each run."""
    protocol = f"Protocol {conduct.protocol}: "
    if conduct.select == "last":
        return f"{protocol}the last epoch of each run was taken; its test part was used once, after training."
    monitor = _MONITORS[conduct.select]
    if conduct.selected_on_test:
        measure = monitor.removeprefix("validation ")
        return f"{protocol}the epoch with the best {measure} was SELECTED ON TEST, so these numbers are too good."
    return f"{protocol}the epoch with the best {monitor} was taken; each test part was used once, after training."


def _leak_free(summary: Mapping[str, Any]) -> list[str]:
    if not summary["leak_free"]:
        return []
    return ["The splits leak: the rows 'leak-free' leave out test bags whose patient was trained or validated on."]


def _diverged(summary: Mapping[str, Any]) -> list[str]:
    runs = [f"fold {run['fold']} seed {run['seed']}" for run in summary["runs"] if math.isnan(run["accuracy"])]
    if not runs:
        return []
    which = ", ".join(runs[:5]) + (" and others" if len(runs) > 5 else "")
    return [f"{len(runs)} runs have no finite predictions or no labelled test bag, and no metrics: {which}."]


def _undefined_folds(summary: Mapping[str, Any]) -> list[str]:
    runs = summary["runs"]
    folds = sorted({run["fold"] for run in runs if math.isnan(run["auc"]) and not math.isnan(run["accuracy"])})
    if not folds:
        return []
    which = _listed(folds, summary["fold_names"])
    return [f"{which}: the AUC is undefined (a class is missing from the test part) and left out of the mean of folds."]


def _bag_size(summary: Mapping[str, Any]) -> list[str]:
    value = summary["controls"]["bag size"]["auc"]
    if math.isnan(value) or value < SUSPICIOUS_BAG_SIZE_AUC:
        return []
    return [f"The number of instances alone reaches AUC {value:.3f}: part of the result may be bag size."]


def _spread(summary: Mapping[str, Any]) -> list[str]:
    if not math.isfinite(summary["metrics"]["auc"]["sd_seeds"]):
        return []
    return ["sd over folds: seeds averaged first. sd over seeds: of the metric of all folds' predictions pooled."]


def _interval(summary: Mapping[str, Any]) -> list[str]:
    undefined = summary["metrics"]["auc"]["undefined_resamples"]
    lost = f"; {undefined:.1%} of the resamples lacked a class and were left out" if undefined else ""
    return [
        f"95 % interval: percentiles over {RESAMPLES} resamples of the {summary['num_patients']} patients (a patient's bags "
        f"together) for the metric of all folds' predictions pooled, averaged over seeds{lost}; the models stay as trained."
    ]


def _seeds(conduct: Conduct, summary: Mapping[str, Any]) -> list[str]:
    if conduct.order != "shared" or len({run["seed"] for run in summary["runs"]}) == 1:
        return []
    return [
        "All seeds saw the bags in the same order (train.order=shared): sd over seeds shows only initialisation and dropout."
    ]


def _thresholds(summary: Mapping[str, Any]) -> list[str]:
    if "accuracy_at_threshold" not in summary["metrics"]:
        return []
    return [
        "'Own threshold': each run's decision threshold was chosen on its validation part (largest tpr - fpr); "
        "all other decisions are by the largest probability, or 0.5."
    ]


def _listed(folds: list[int], names: Mapping[str, str]) -> str:
    shown = [names.get(str(fold), f"fold {fold}") for fold in folds]
    text = ", ".join(shown[:10]) + (f" and {len(shown) - 10} more" if len(shown) > 10 else "")
    return text[0].upper() + text[1:]
