"""Training curves and ROC curves as PNG, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve

from mil_jax.reports.figures.fold_change import draw_fold_change
from mil_jax.reports.figures.risk_groups import draw_risk_groups
from mil_jax.reports.figures.scatter import draw_scatter
from mil_jax.reports.figures.style import COLOURS, GREY, SELECTED_ON_TEST, save, tidy
from mil_jax.tasks.base import METRIC_LABELS, Task, monitor_label
from mil_jax.tasks.classification import Classification
from mil_jax.tasks.multilabel import MultiLabel
from mil_jax.tasks.predictions_table import probabilities_of, targets_of
from mil_jax.tasks.regression import Regression
from mil_jax.tasks.survival import Survival

_GRID = np.linspace(0, 1, 201)


def draw_all(
    folder: Path,
    task: Task,
    test: pd.DataFrame,
    history: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
) -> list[str]:
    """Draws every figure there is data for, and returns the names of the files."""
    names = []
    if history:
        draw_training_curves(history, folder / "training_curves.png", selected_on_test=summary["selected_on_test"])
        names.append("training_curves.png")
    if np.isnan(summary["metrics"][task.main_metric]["estimate"]):
        return names
    if isinstance(task, Survival):
        draw_risk_groups(task, test, folder / "risk_groups.png", summary)
        names.append("risk_groups.png")
    elif isinstance(task, Regression):
        draw_scatter(task, test, folder / "predicted.png", summary)
        names.append("predicted.png")
        if summary.get("fold_change"):
            draw_fold_change(
                summary["fold_change"], folder / "fold_change.png", selected_on_test=summary["selected_on_test"]
            )
            names.append("fold_change.png")
    elif isinstance(task, Classification | MultiLabel) and not np.isnan(summary["metrics"]["auc"]["estimate"]):
        draw_roc_curves(task, test, folder / "roc_curves.png", selected_on_test=summary["selected_on_test"])
        names.append("roc_curves.png")
    return names


def draw_training_curves(history: Sequence[Mapping[str, Any]], path: Path, *, selected_on_test: bool = False) -> None:
    """One panel for the training loss and for each monitor that the history has: a thin line per run, coloured by fold, and the mean.

    history: rows with epoch (from 0), fold, seed and numbers by name; None or NaN leaves a gap.
    """
    table = pd.DataFrame(list(history))
    table["epoch"] += 1
    shown_names = ["train_loss", *(name for name in table if name.startswith("val_"))]
    numbers = {name: pd.to_numeric(table[name], errors="coerce") for name in shown_names if name in table}
    panels = {name: values for name, values in numbers.items() if values.notna().any()}
    folds = sorted(table["fold"].unique())
    colours = {fold: COLOURS[i] if len(folds) <= len(COLOURS) else GREY for i, fold in enumerate(folds)}
    runs = [name for name in ("seed", "label_column") if name in table]
    figure = Figure(figsize=(4.4 * max(len(panels), 1), 3.9), layout="constrained")
    for place, (name, values) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), place + 1)
        shown = table.assign(value=values)
        for who, run in shown.sort_values("epoch").groupby(["fold", *runs]):
            axes.plot(run["epoch"], run["value"], color=colours[who[0]], linewidth=0.9, alpha=0.6)
        epochs = shown.groupby("epoch")["value"]
        # Runs that stopped early would let the mean jump; it ends when half of them have.
        mean = epochs.mean()[epochs.count() * 2 > epochs.count().max()]
        axes.plot(mean.index, mean, color="black", linewidth=2)
        part = "test" if selected_on_test else "validation"
        title = "training loss" if name == "train_loss" else monitor_label(name, part)
        axes.set(xlabel="epoch", title=title, xlim=(1, max(2, table["epoch"].max())))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if name in ("train_loss", "val_loss") and (values >= 0).all():
            axes.set_ylim(bottom=0)
        tidy(axes)
    _legend_below(
        figure, {f"fold {fold}": colours[fold] for fold in folds} if len(folds) <= len(COLOURS) else {"runs": GREY}
    )
    if selected_on_test:
        figure.suptitle(f"Training{SELECTED_ON_TEST}", fontsize=11)
    save(figure, path)


def draw_roc_curves(
    task: Classification | MultiLabel,
    test: pd.DataFrame,
    path: Path,
    *,
    selected_on_test: bool = False,
    mean: str = "mean of folds",
) -> None:
    """ROC curves of the test predictions. Two classes: a thin line per run and their mean, weighted by the pairs of each run, which is
    called `mean`; more classes or labels: the mean of each, against the rest.
    """
    figure = Figure(figsize=(5.2, 5.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 4)))
    if len(task.classes) == 2 and isinstance(task, Classification):
        runs = [_curve(task, rows, 1) for _, rows in test.groupby(["fold", "seed"])]
        for run in (one for one in runs if one is not None):
            axes.plot(*run[:2], color=COLOURS[0], linewidth=0.8, alpha=0.3)
        axes.plot([], [], color=COLOURS[0], linewidth=0.8, alpha=0.5, label="runs")
        positive, what = [1], [mean]
    else:
        positive, what = list(range(len(task.classes))), list(task.classes)
    for place, (c, name) in enumerate(zip(positive, what)):
        curve = _mean_curve(task, test, c)
        if curve is not None:
            colour = COLOURS[place % len(COLOURS)]
            axes.plot(_GRID, curve[0], color=colour, linewidth=2.2, label=f"{name} (AUC {curve[1]:.3f})")
    axes.set(
        xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", title=f"Test ROC{SELECTED_ON_TEST * selected_on_test}"
    )
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    tidy(axes)
    save(figure, path)


def draw_targets(summaries: Mapping[str, Mapping[str, Any]], path: Path, *, selected_on_test: bool = False) -> None:
    """The main test metric of each target with its interval, the highest on top. summaries: by label column, of `summarize`."""
    main = next(iter(summaries.values()))["main_metric"]
    chance = 0.5 if main in ("auc", "c_index") else 0.0
    auc = {name: one["metrics"][main] for name, one in summaries.items()}
    names = sorted(
        (name for name in auc if not np.isnan(auc[name]["estimate"])), key=lambda name: auc[name]["estimate"]
    )
    figure = Figure(figsize=(6.4, 1.4 + 0.24 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(chance, color=GREY, linewidth=1, linestyle=(0, (4, 4)))
    for place, name in enumerate(names):
        one = auc[name]
        axes.plot([one["low"], one["high"]], [place, place], color=COLOURS[0], linewidth=1.6, alpha=0.6)
        axes.plot(one["estimate"], place, marker="o", markersize=4.5, color=COLOURS[0])
    axes.set(
        yticks=range(len(names)),
        yticklabels=names,
        ylim=(-0.7, len(names) - 0.3),
        xlim=(min(axes.get_xlim()[0], chance - 0.1), 1.01),
    )
    axes.set(
        xlabel=f"{METRIC_LABELS[main]}, estimate and 95 % interval",
        title=f"Test {METRIC_LABELS[main]} by label column{SELECTED_ON_TEST * selected_on_test}",
    )
    axes.tick_params(axis="y", labelsize=9, length=0)
    tidy(axes)
    save(figure, path)


def _curve(task: Classification | MultiLabel, rows: pd.DataFrame, c: int) -> tuple[np.ndarray, np.ndarray, int] | None:
    """False and true positive rates of class c against the rest, and the number of pairs; None when either is missing."""
    scores, targets = probabilities_of(rows, task)[:, c], targets_of(rows, task)
    if isinstance(task, MultiLabel):
        known, positive = ~np.isnan(targets[:, c]), targets[:, c] > 0
    else:
        index = task.class_index(targets)
        known, positive = index >= 0, index == c
    scores, positive = scores[known], positive[known]
    if positive.all() or not positive.any() or not np.isfinite(scores).all():
        return None
    fpr, tpr, _ = roc_curve(positive, scores)
    return fpr, tpr, int(positive.sum() * (~positive).sum())


def _mean_curve(task: Classification | MultiLabel, test: pd.DataFrame, c: int) -> tuple[np.ndarray, float] | None:
    """The mean over runs of the curve of class c, on `_GRID`, and of its area; weighted by pairs."""
    found = [curve for _, rows in test.groupby(["fold", "seed"]) if (curve := _curve(task, rows, c)) is not None]
    if not found:
        return None
    pairs = [one[2] for one in found]
    area = np.average([np.trapezoid(tpr, fpr) for fpr, tpr, _ in found], weights=pairs)
    return np.average([np.interp(_GRID, fpr, tpr) for fpr, tpr, _ in found], axis=0, weights=pairs), float(area)


def _legend_below(figure: Figure, colours: Mapping[str, str]) -> None:
    lines = [Line2D([], [], color=colour, linewidth=1.5, label=name) for name, colour in colours.items()]
    lines.append(Line2D([], [], color="black", linewidth=2, label="mean"))
    figure.legend(handles=lines, loc="outside lower center", ncols=min(len(lines), 9), frameon=False, fontsize=9)
