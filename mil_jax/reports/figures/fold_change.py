"""HistCode's view of many expression ratios: whether genes whose expression changes more are predicted better.

Columns are read as ratios, tumour over normal (`task.transform=log1p` predicts log10(1 + ratio)). The fold change of a column is
|log2 of the mean ratio| of the test bags; columns are put into levels by it, and its rank correlation with the columns' Pearson r is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from mil_jax.reports.figures.style import COLOURS, SELECTED_ON_TEST, save, tidy
from mil_jax.tasks.base import Task
from mil_jax.tasks.predictions_table import targets_of
from mil_jax.tasks.regression import Regression

LEVELS = ((0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, np.inf))  # of |log2|
_LEAST_COLUMNS = 3


def fold_changes(task: Task, test: pd.DataFrame) -> dict[str, float]:
    """{column: |log2 of the mean ratio|} of the bags of `test`; none where the columns are no ratios; NaN for a mean of 0 or less."""
    if not isinstance(task, Regression) or task.transform != "log1p":
        return {}
    ratios = 10.0 ** targets_of(test.drop_duplicates("bag_id"), task) - 1.0
    known = ~np.isnan(ratios)
    mean = np.where(known, ratios, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    change = np.abs(np.log2(np.where(mean > 0, mean, np.nan)))
    return dict(zip(task.columns, change.tolist(), strict=True))


def fold_change_view(changes: Mapping[str, float], pearson: Mapping[str, float]) -> dict[str, Any] | None:
    """The content of summary.json: "columns", each with fold_change and pearson; "levels"; "spearman" of the two. None of few columns."""
    names = [name for name in changes if np.isfinite(changes[name]) and np.isfinite(pearson[name])]
    if len(names) < _LEAST_COLUMNS:
        return None
    change, r = (np.array([values[name] for name in names]) for values in (changes, pearson))
    levels = []
    for low, high in LEVELS:
        mine = r[(change >= low) & (change < high)]
        if len(mine):
            level = f"{low:g} to {high:g}" if np.isfinite(high) else f"{low:g} or more"
            levels.append({"level": level, "columns": len(mine), "mean": mine.mean(), "median": np.median(mine)})
    varied = np.ptp(change) > 0 and np.ptp(r) > 0
    return {
        "columns": {name: {"fold_change": changes[name], "pearson": pearson[name]} for name in names},
        "levels": levels,
        "spearman": float(spearmanr(change, r)[0]) if varied else np.nan,
    }


def draw_fold_change(view: Mapping[str, Any], path: Path, *, selected_on_test: bool = False) -> None:
    """Pearson r of each column over its fold change."""
    points = np.array([(one["fold_change"], one["pearson"]) for one in view["columns"].values()])
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(points[:, 0], points[:, 1], s=16, color=COLOURS[0], alpha=0.6, linewidth=0)
    if len(points) <= 30:
        for name, one in view["columns"].items():
            axes.annotate(name, (one["fold_change"], one["pearson"]), (3, 3), textcoords="offset points", fontsize=7)
    axes.set(xlabel="fold change, |log2 of the mean ratio|", ylabel="Pearson r, all folds pooled")
    axes.set_title(
        f"{len(points)} label columns, Spearman {view['spearman']:.2f}{SELECTED_ON_TEST * selected_on_test}",
        fontsize=10,
    )
    tidy(axes)
    save(figure, path)
