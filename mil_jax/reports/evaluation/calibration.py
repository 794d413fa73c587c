"""Calibration: a temperature fitted on validation predictions, and the reliability curve of what was predicted.

Temperature scaling (Guo et al. 2017) divides the logits by one number T, which changes no ranking of two classes and no decision by the
largest probability; T is that of the smallest log loss of the validation cases. Logits are taken back from the probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit, softmax

from mil_jax.reports.figures.style import COLOURS, GREY, save, tidy
from mil_jax.tasks.classification import Classification
from mil_jax.tasks.metrics.classification import EPSILON, distribution
from mil_jax.tasks.multilabel import MultiLabel
from mil_jax.tasks.predictions_table import probabilities_of, targets_of

CALIBRATED = (Classification, MultiLabel)  # the tasks whose outputs are probabilities of classes
LEAST_CASES = 10  # of each class among the validation cases
_WIDEST = np.log(20.0)  # of the search for log T
_CURVE_BINS = 10


def choose_temperature(task: Classification | MultiLabel, validation: pd.DataFrame) -> float:
    """T from validation predictions; NaN where a class has fewer than 10 cases, or a probability is not finite."""
    p, targets = probabilities_of(validation, task), targets_of(validation, task)
    if not np.isfinite(p).all():
        return np.nan
    if isinstance(task, MultiLabel):
        known = ~np.isnan(targets)
        positive = targets[known] > 0
        scores = logit(np.clip(p[known], EPSILON, 1 - EPSILON))
        if min(positive.sum(), (~positive).sum()) < LEAST_CASES:
            return np.nan
        signed = np.where(positive, -scores, scores)
        return _smallest(lambda inverse: float(np.mean(np.logaddexp(0.0, signed * inverse))))
    index = task.class_index(targets)
    p, index = distribution(p[index >= 0]), index[index >= 0]
    if np.bincount(index, minlength=task.num_classes).min() < LEAST_CASES:
        return np.nan
    logits, rows = np.log(np.maximum(p, EPSILON)), np.arange(len(index))
    return _smallest(lambda inverse: float(-np.mean(log_softmax(logits * inverse, axis=1)[rows, index])))


def calibrated(task: Classification | MultiLabel, probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities [M, C] of the logits divided by T."""
    if isinstance(task, MultiLabel):
        return expit(logit(np.clip(probabilities, EPSILON, 1 - EPSILON)) / temperature)
    return softmax(np.log(np.maximum(distribution(probabilities), EPSILON)) / temperature, axis=1)


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


def _smallest(loss_of_inverse: object) -> float:
    """The temperature whose inverse has the smallest loss."""
    found = minimize_scalar(
        lambda log_t: loss_of_inverse(np.exp(-log_t)),  # type: ignore[operator]
        bounds=(-_WIDEST, _WIDEST),
        method="bounded",
    )
    return float(np.exp(found.x))
