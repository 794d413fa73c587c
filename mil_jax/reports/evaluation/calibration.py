"""Calibration: fitted on validation predictions of a run, and the reliability curve of what was predicted.

What is calibrated is the mean of the models' scores (`tasks/metrics/recalibration.py`), which are taken back from the probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mil_jax.reports.figures.style import COLOURS, GREY, save, tidy
from mil_jax.tasks.classification import Classification
from mil_jax.tasks.metrics.classification import distribution
from mil_jax.tasks.metrics.recalibration import Recalibration, fit, probabilities_of_scores, scores_of
from mil_jax.tasks.multilabel import MultiLabel
from mil_jax.tasks.predictions_table import probabilities_of, targets_of

CALIBRATED = (Classification, MultiLabel)  # the tasks whose outputs are probabilities of classes
_CURVE_BINS = 10


def exclusive(task: Classification | MultiLabel) -> bool:
    """Whether the classes exclude each other."""
    return not isinstance(task, MultiLabel)


def fitted(task: Classification | MultiLabel, validation: pd.DataFrame) -> Recalibration | None:
    """From validation predictions; None where a class has fewer than 10 cases, or a probability is not finite."""
    p, targets = probabilities_of(validation, task), targets_of(validation, task)
    if not len(p) or not np.isfinite(p).all():
        return None
    if not isinstance(task, MultiLabel):
        index = task.class_index(targets)
        targets = np.eye(task.num_classes)[index]
        targets[index < 0] = np.nan
    return fit(scores_of(p, exclusive=exclusive(task)), targets, exclusive=exclusive(task))


def mean_of_scores(task: Classification | MultiLabel, by_model: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Rows of `by_model` with one for each value of `by`: the probabilities of the mean score, whose classes stay where they are
    however many models there are. Models without finite predictions are left out.
    """
    names = list(task.output_names)
    scores = scores_of(probabilities_of(by_model, task), exclusive=exclusive(task))
    grouped = by_model.assign(**dict(zip(names, scores.T, strict=True))).groupby(list(by), sort=False)
    table = grouped.first()
    table[names] = probabilities_of_scores(grouped[names].mean().to_numpy(), exclusive=exclusive(task))
    return table.reset_index()[by_model.columns.tolist()].assign(seed=0)


def spread_of_folds(task: Classification | MultiLabel, by_model: pd.DataFrame) -> tuple[float, int]:
    """(variance of the scores of one bag between the models of different folds, seeds averaged; number of folds)."""
    seeds = mean_of_scores(task, by_model, ["bag_id", "fold"])
    folds = int(seeds["fold"].nunique())
    if folds < 2:
        return 0.0, 1
    scores = pd.DataFrame(scores_of(probabilities_of(seeds, task), exclusive=exclusive(task)))
    return float(scores.groupby(seeds["bag_id"].to_numpy()).var(ddof=1).mean().mean()), folds


def draw_reliability(
    task: Classification | MultiLabel, predictions: Sequence[tuple[str, pd.DataFrame]], path: Path, *, title: str
) -> bool:
    """How often what is said with probability p is so, for each (name, predictions); False, and no file, where nothing can be drawn.

    Two classes and multi-label: the probability of the positive class, or of each label; more classes: of the decided one.
    """
    figure = Figure(figsize=(5.2, 5.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 4)))
    drawn = False
    for place, (name, table) in enumerate(predictions):
        curve = reliability(task, table)
        if curve is None:
            continue
        said, so, cases = curve
        colour = COLOURS[place % len(COLOURS)]
        axes.plot(said, so, color=colour, linewidth=1.6, label=name)
        axes.scatter(said, so, s=8 + 90 * cases / cases.max(), color=colour, alpha=0.7, linewidth=0)
        drawn = True
    if not drawn:
        return False
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", title=title)
    axes.set(xlabel="mean predicted probability", ylabel="share of cases where it is so")
    axes.legend(loc="upper left", frameon=False, fontsize=8)
    tidy(axes)
    save(figure, path)
    return True


def reliability(
    task: Classification | MultiLabel, table: pd.DataFrame
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """(mean probability, share of cases where it is so, number of cases) of ten equal bins of probability, the empty ones left out;
    None without a labelled and finite case.
    """
    p, targets = probabilities_of(table, task), targets_of(table, task)
    if isinstance(task, MultiLabel):
        known = ~np.isnan(targets)
        said, so = p[known], targets[known] > 0
    else:
        index = task.class_index(targets)
        p, index = distribution(p[index >= 0]), index[index >= 0]
        two = task.num_classes == 2
        said = p[:, 1] if two else p.max(axis=1, initial=0.0)
        so = index == 1 if two else (p.argmax(axis=1) == index if len(p) else index > 0)
    if not len(said) or not np.isfinite(said).all():
        return None
    bins = np.minimum((said * _CURVE_BINS).astype(int), _CURVE_BINS - 1)
    cases = np.bincount(bins, minlength=_CURVE_BINS)
    there = cases > 0
    sums = (np.bincount(bins, weights=values, minlength=_CURVE_BINS)[there] for values in (said, so))
    mean_said, mean_so = (values / cases[there] for values in sums)
    return mean_said, mean_so, cases[there]
