"""Curves of survival data and the test between them, on the host: Kaplan-Meier, Nelson-Aalen, the censoring distribution, log-rank.

Curves are right-continuous steps and take weights [B, M], one curve for each of B weightings (resamples) of the same M cases.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import chi2


class Steps(NamedTuple):
    """times: [T], ascending, where the curves may change. values: [B, T], from each time on; 1 before the first."""

    times: np.ndarray
    values: np.ndarray

    def at(self, points: np.ndarray) -> np.ndarray:
        """The values at points [P]: [B, P]."""
        padded = np.concatenate([np.ones((len(self.values), 1)), self.values], axis=1)
        return padded[:, np.searchsorted(self.times, points, side="right")]


def at_each_time(
    time: np.ndarray, event: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(distinct times [T], at risk [B, T], events there, censored there), from time, event [M], weights [B, M]."""
    order = np.argsort(time, kind="stable")
    time, event, weights = time[order], event[order].astype(bool), weights[:, order]
    starts = np.flatnonzero(np.diff(time, prepend=-np.inf))
    here = np.add.reduceat(weights, starts, axis=1)
    events = np.add.reduceat(weights * event, starts, axis=1)
    at_risk = np.cumsum(here[:, ::-1], axis=1)[:, ::-1]
    return time[starts], at_risk, events, here - events


def _product(lost: np.ndarray, of: np.ndarray) -> np.ndarray:
    """The running product of 1 - lost / of; where nobody is left nothing changes."""
    return np.cumprod(1.0 - np.divide(lost, of, out=np.zeros_like(lost), where=of > 0), axis=1)


def kaplan_meier(time: np.ndarray, event: np.ndarray, weights: np.ndarray | None = None) -> Steps:
    """S(t) = prod_{u <= t} (1 - d_u / n_u). weights: [B, M]; None: every case once."""
    weights = np.ones((1, len(time))) if weights is None else weights
    times, at_risk, events, _ = at_each_time(time, event, weights)
    return Steps(times, _product(events, at_risk))


def censoring(time: np.ndarray, event: np.ndarray, weights: np.ndarray | None = None) -> Steps:
    """The probability G of not being censored until t; at equal times events come before censorings."""
    weights = np.ones((1, len(time))) if weights is None else weights
    times, at_risk, events, censored = at_each_time(time, event, weights)
    return Steps(times, _product(censored, at_risk - events))


class Curve(NamedTuple):
    """A Kaplan-Meier curve to draw: times from 0, survival with its 95 % interval (exponential Greenwood), and how many are at risk.

    median: the first time with survival of at most a half; inf where it is not reached. cumulative_hazard: Nelson-Aalen, sum of d_u / n_u.
    """

    times: np.ndarray
    survival: np.ndarray
    low: np.ndarray
    high: np.ndarray
    cumulative_hazard: np.ndarray
    median: float


def curve(time: np.ndarray, event: np.ndarray) -> Curve:
    """The curve of M cases; at time 0 all are alive."""
    times, at_risk, events, _ = at_each_time(time, event, np.ones((1, len(time))))
    n, d = at_risk[0], events[0]
    survival = np.cumprod(1 - d / n)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.cumsum(d / (n * (n - d)))
        deviation = 1.959963984540054 * np.sqrt(variance) / np.log(survival)
        low, high = survival ** np.exp(-deviation), survival ** np.exp(deviation)
    # Without a death there is no spread; once all are dead none either.
    low, high = (np.where((survival == 1) | (survival == 0), survival, x) for x in (low, high))
    if times[0] > 0:
        times, d, n = np.r_[0.0, times], np.r_[0.0, d], np.r_[n[0], n]
        survival, low, high = np.r_[1.0, survival], np.r_[1.0, low], np.r_[1.0, high]
    reached = np.flatnonzero(survival <= 0.5)
    median = float(times[reached[0]]) if len(reached) else np.inf
    return Curve(times, survival, low, high, np.cumsum(d / n), median)


class LogRank(NamedTuple):
    """chi2 with `groups - 1` degrees of freedom, and its p; NaN where groups have nothing to compare."""

    chi2: float
    p: float


def log_rank(time: np.ndarray, event: np.ndarray, group: np.ndarray) -> LogRank:
    """Whether the survival of the groups [M] (any labels) differs, from observed minus expected deaths at every time."""
    labels = np.unique(group)
    if len(labels) < 2:
        return LogRank(np.nan, np.nan)
    members = (group[None, :] == labels[:, None]).astype(np.float64)
    _, at_risk, deaths, _ = at_each_time(time, event, members)  # [groups, T]
    n, d = at_risk.sum(axis=0), deaths.sum(axis=0)
    share = at_risk / n
    factor = np.divide(d * (n - d), n - 1, out=np.zeros_like(n), where=n > 1)
    difference = (deaths - d * share).sum(axis=1)[:-1]
    covariance = np.diag((factor * share).sum(axis=1)) - (factor * share) @ share.T
    covariance = covariance[:-1, :-1]
    if np.linalg.matrix_rank(covariance) < len(covariance):
        return LogRank(np.nan, np.nan)
    value = float(difference @ np.linalg.solve(covariance, difference))
    return LogRank(value, float(chi2.sf(value, len(labels) - 1)))
