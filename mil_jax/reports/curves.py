"""Training curves and ROC curves as PNG, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve

from mil_jax.files import written_whole
from mil_jax.reports.predictions import probabilities_of, targets_of
from mil_jax.tasks import Classification

# Okabe and Ito's colours, told apart in every kind of colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
PANELS = {"train_loss": "training loss", "val_loss": "validation loss", "val_auc": "validation AUC"}
_GREY = "#9A9A9A"
_SELECTED_ON_TEST = " (selected on test)"
_GRID = np.linspace(0, 1, 201)


def draw_all(
    folder: Path,
    task: Classification,
    test: pd.DataFrame,
    history: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
) -> list[str]:
    """Draws every figure there is data for, and returns the names of the files."""
    names = []
    if history:
        draw_training_curves(history, folder / "training_curves.png", selected_on_test=summary["selected_on_test"])
        names.append("training_curves.png")
    if not np.isnan(summary["metrics"]["auc"]["pooled"]):
        draw_roc_curves(task, test, folder / "roc_curves.png", selected_on_test=summary["selected_on_test"])
        names.append("roc_curves.png")
    return names


def draw_training_curves(history: Sequence[Mapping[str, Any]], path: Path, *, selected_on_test: bool = False) -> None:
    """One panel for each of `PANELS` that the history has: a thin line per run, coloured by fold, and the mean.

    history: rows with epoch (from 0), fold, seed and numbers by name; None or NaN leaves a gap.
    """
    table = pd.DataFrame(list(history))
    table["epoch"] += 1
    numbers = {name: pd.to_numeric(table[name], errors="coerce") for name in PANELS if name in table}
    panels = {name: values for name, values in numbers.items() if values.notna().any()}
    folds = sorted(table["fold"].unique())
    colours = {fold: COLOURS[i] if len(folds) <= len(COLOURS) else _GREY for i, fold in enumerate(folds)}
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
        title = PANELS[name].replace("validation", "test") if selected_on_test else PANELS[name]
        axes.set(xlabel="epoch", title=title, xlim=(1, max(2, table["epoch"].max())))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if name != "val_auc":
            axes.set_ylim(bottom=0)
        tidy(axes)
    _legend_below(
        figure, {f"fold {fold}": colours[fold] for fold in folds} if len(folds) <= len(COLOURS) else {"runs": _GREY}
    )
    if selected_on_test:
        figure.suptitle(f"Training{_SELECTED_ON_TEST}", fontsize=11)
    save(figure, path)


def draw_roc_curves(task: Classification, test: pd.DataFrame, path: Path, *, selected_on_test: bool = False) -> None:
    """ROC curves of the test predictions. Two classes: a thin line per run and the mean of the seeds' pooled curves;
    more classes or labels: the mean pooled curve of each, against the rest.
    """
    figure = Figure(figsize=(5.2, 5.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle=(0, (4, 4)))
    if task.num_classes == 2 and not task.multi_label:
        runs = [_curve(task, rows, 1) for _, rows in test.groupby(["fold", "seed"])]
        for curve in (one for one in runs if one is not None):
            axes.plot(*curve, color=COLOURS[0], linewidth=0.8, alpha=0.3)
        axes.plot([], [], color=COLOURS[0], linewidth=0.8, alpha=0.5, label="runs")
        positive, what = [1], ["all folds pooled"]
    else:
        positive, what = list(range(task.num_classes)), list(task.classes)
    for place, (c, name) in enumerate(zip(positive, what)):
        mean = _mean_curve(task, test, c)
        if mean is not None:
            colour = COLOURS[place % len(COLOURS)]
            axes.plot(_GRID, mean[0], color=colour, linewidth=2.2, label=f"{name} (AUC {mean[1]:.3f})")
    axes.set(
        xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", title=f"Test ROC{_SELECTED_ON_TEST * selected_on_test}"
    )
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    tidy(axes)
    save(figure, path)


def draw_targets(summaries: Mapping[str, Mapping[str, Any]], path: Path, *, selected_on_test: bool = False) -> None:
    """The pooled test AUC of each target with its interval, the highest on top. summaries: by label column, of `summarize`."""
    auc = {name: one["metrics"]["auc"] for name, one in summaries.items()}
    names = sorted((name for name in auc if not np.isnan(auc[name]["pooled"])), key=lambda name: auc[name]["pooled"])
    figure = Figure(figsize=(6.4, 1.4 + 0.24 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0.5, color=_GREY, linewidth=1, linestyle=(0, (4, 4)))
    for place, name in enumerate(names):
        one = auc[name]
        axes.plot([one["low"], one["high"]], [place, place], color=COLOURS[0], linewidth=1.6, alpha=0.6)
        axes.plot(one["pooled"], place, marker="o", markersize=4.5, color=COLOURS[0])
    axes.set(
        yticks=range(len(names)),
        yticklabels=names,
        ylim=(-0.7, len(names) - 0.3),
        xlim=(min(axes.get_xlim()[0], 0.4), 1.01),
    )
    axes.set(
        xlabel="AUC, folds pooled, and 95 % interval",
        title=f"Test AUC by label column{_SELECTED_ON_TEST * selected_on_test}",
    )
    axes.tick_params(axis="y", labelsize=9, length=0)
    tidy(axes)
    save(figure, path)


def _curve(task: Classification, rows: pd.DataFrame, c: int) -> tuple[np.ndarray, np.ndarray] | None:
    """False and true positive rates of class c against the rest; None when either is missing."""
    scores, targets = probabilities_of(rows, task)[:, c], targets_of(rows, task)
    known = ~np.isnan(targets[:, c]) if task.multi_label else task.class_index(targets) >= 0
    positive = targets[:, c] > 0 if task.multi_label else task.class_index(targets) == c
    scores, positive = scores[known], positive[known]
    if positive.all() or not positive.any() or not np.isfinite(scores).all():
        return None
    fpr, tpr, _ = roc_curve(positive, scores)
    return fpr, tpr


def _mean_curve(task: Classification, test: pd.DataFrame, c: int) -> tuple[np.ndarray, float] | None:
    """The mean over seeds of the pooled out-of-fold curve of class c, on `_GRID`, and of its area."""
    curves = [curve for _, rows in test.groupby("seed") if (curve := _curve(task, rows, c)) is not None]
    if not curves:
        return None
    areas = [np.trapezoid(tpr, fpr) for fpr, tpr in curves]
    return np.mean([np.interp(_GRID, fpr, tpr) for fpr, tpr in curves], axis=0), float(np.mean(areas))


def _legend_below(figure: Figure, colours: Mapping[str, str]) -> None:
    lines = [Line2D([], [], color=colour, linewidth=1.5, label=name) for name, colour in colours.items()]
    lines.append(Line2D([], [], color="black", linewidth=2, label="mean"))
    figure.legend(handles=lines, loc="outside lower center", ncols=min(len(lines), 9), frameon=False, fontsize=9)


def tidy(axes: Axes) -> None:
    """Few lines, and a grid behind them."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E4E4E4", linewidth=0.6)
    axes.set_axisbelow(True)


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG, whole or not at all."""
    with written_whole(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
