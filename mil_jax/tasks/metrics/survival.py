"""Metrics of survival predictions for many weightings of the same cases at once: [B, M] weights -> [B] values.

C-index of Harrell (pairs; risks that differ by at most 1e-8 count half) and of Uno (weighted by the inverse probability of being
censored), cumulative dynamic AUC, Brier score. With weights that count how often a case was drawn, row b is the metric of resample b,
ties included. NaN where there is no pair, or where the censoring distribution reaches 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mil_jax.tasks.metrics.kaplan_meier import Steps, censoring, kaplan_meier

TIED = 1e-8
_BLOCK = 4_000_000  # entries of a block of the matrix of pairs


class Cases(NamedTuple):
    """time, event (bool), risk: [M]; larger risk = earlier event. groups: [M]; pairs are compared within a group."""

    time: np.ndarray
    event: np.ndarray
    risk: np.ndarray
    groups: np.ndarray


class Concordance(NamedTuple):
    """harrell, uno: [B]."""

    harrell: np.ndarray
    uno: np.ndarray


def concordance(cases: Cases, weights: np.ndarray, censored: Steps | None = None, tau: float = np.inf) -> Concordance:
    """weights: [B, M]. censored: the censoring distribution(s), of B weightings or of one; None: Uno's is not computed.

    tau: Uno's counts events before it only.
    """
    sums = np.zeros((4, len(weights)))  # concordant, comparable; the same weighted
    for rows, comparable, wins in _pairs(cases):
        of_event = weights[:, rows]
        concordant, all_pairs = weights @ wins.T, weights @ comparable.T  # [B, E]
        sums[0] += np.sum(of_event * concordant, axis=1)
        sums[1] += np.sum(of_event * all_pairs, axis=1)
        if censored is not None:
            times = cases.time[rows]
            with np.errstate(divide="ignore", invalid="ignore"):
                inverse = np.where(times < tau, censored.at(times), np.inf) ** -2.0
                inverse = np.where(of_event > 0, of_event * inverse, 0.0)
            sums[2] += np.sum(inverse * concordant, axis=1)
            sums[3] += np.sum(inverse * all_pairs, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Concordance(sums[0] / sums[1], _finite(sums[2] / sums[3]))


def _pairs(cases: Cases) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(cases with an event [E], comparable with [E, M], concordant with [E, M], a half for tied risks), in blocks."""
    time, event, risk, groups = cases
    deaths = np.flatnonzero(event)
    step = max(1, _BLOCK // max(len(time), 1))
    for start in range(0, len(deaths), step):
        rows = deaths[start : start + step]
        later = (time[rows, None] < time) | ((time[rows, None] == time) & ~event)
        comparable = later & (groups[rows, None] == groups)
        difference = risk[rows, None] - risk
        wins = np.where(np.abs(difference) <= TIED, 0.5, difference > 0) * comparable
        yield rows, comparable.astype(np.float64), wins


class DynamicAUC(NamedTuple):
    """at: [B, G], of each time. mean: [B], weighted by how many die between two times."""

    at: np.ndarray
    mean: np.ndarray


def dynamic_auc(cases: Cases, weights: np.ndarray, times: np.ndarray, censored: Steps) -> DynamicAUC:
    """Of those who have died by a time against those who live longer; ties count half. times: [G], ascending."""
    weighted = weights * _inverse(censored.at(cases.time))
    wins = np.zeros((len(weights), len(times)))
    pairs = np.zeros_like(wins)
    for group in np.unique(cases.groups):
        members = np.flatnonzero(cases.groups == group)
        order = members[np.argsort(-cases.risk[members], kind="stable")]
        starts = np.flatnonzero(np.diff(cases.risk[order], prepend=np.inf))
        for place, time in enumerate(times):
            died = (cases.time[order] <= time) & cases.event[order]
            alive = cases.time[order] > time
            positive = np.add.reduceat(weighted[:, order] * died, starts, axis=1)
            negative = np.add.reduceat(weights[:, order] * alive, starts, axis=1)
            above = np.cumsum(positive, axis=1)
            wins[:, place] += np.sum(negative * (above - 0.5 * positive), axis=1)
            pairs[:, place] += above[:, -1] * np.sum(negative, axis=1)
    alive_at = kaplan_meier(cases.time, cases.event, weights).at(times)  # [B, G]
    fall = -np.diff(alive_at, axis=1, prepend=1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.where(censored.at(times) > 0, _finite(wins / pairs), np.nan)
        # A time before the first death has no AUC, and no death to weigh it by.
        mean = np.sum(np.where(fall > 0, values * fall, 0.0), axis=1) / (1.0 - alive_at[:, -1])
    return DynamicAUC(values, _finite(mean))


def brier(cases: Cases, survival: np.ndarray, weights: np.ndarray, times: np.ndarray, censored: Steps) -> np.ndarray:
    """[B, G]: the squared error of the predicted survival [M, G] at each time, weighted for censoring."""
    died = (cases.time[:, None] <= times) & cases.event[:, None]  # [M, G]
    alive = cases.time[:, None] > times
    with np.errstate(divide="ignore", invalid="ignore"):
        of_dead = (weights * _inverse(censored.at(cases.time))) @ (died * survival**2)
        of_living = weights @ (alive * (1.0 - survival) ** 2) / censored.at(times)
        return _finite((of_dead + of_living) / weights.sum(axis=1, keepdims=True))


def integrated(scores: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The mean over time of scores [B, G], by trapezoids: [B]; NaN with fewer than two times."""
    if len(times) < 2:
        return np.full(len(scores), np.nan)
    return np.trapezoid(scores, times, axis=1) / (times[-1] - times[0])


def usable_times(cases: Cases, times: np.ndarray) -> np.ndarray:
    """Those of the times at which both a death and a longer life are possible: within [least, largest time) of the cases, G > 0."""
    inside = times[(times >= cases.time.min()) & (times < cases.time.max())]
    return inside[censoring(cases.time, cases.event).at(inside)[0] > 0]


def of_weights(cases: Cases, survival: np.ndarray, times: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """All metrics, [B] each, with the censoring distribution of the (weighted) cases themselves. survival: [M, G] at times [G]."""
    none = np.full(len(weights), np.nan)
    if len(cases.time) == 0 or not np.isfinite(cases.risk).all():
        return dict.fromkeys(("c_index", "c_index_ipcw", "dynamic_auc", "integrated_brier"), none)
    chosen = np.isin(times, usable_times(cases, times))
    times, survival = times[chosen], survival[:, chosen]
    censored = censoring(cases.time, cases.event, weights)
    tau = times[-1] if len(times) else np.inf
    harrell, uno = concordance(cases, weights, censored, tau)
    complete = bool(len(times)) and np.isfinite(survival).all()
    return {
        "c_index": harrell,
        "c_index_ipcw": uno,
        "dynamic_auc": dynamic_auc(cases, weights, times, censored).mean if len(times) else none,
        "integrated_brier": integrated(brier(cases, survival, weights, times, censored), times) if complete else none,
    }


def _inverse(probability: np.ndarray) -> np.ndarray:
    """1 / p; 0 where p is 0, which is after every time of interest, or leaves it without a value."""
    return np.divide(1.0, probability, out=np.zeros_like(probability), where=probability > 0)


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)
