"""Risk groups of survival predictions: Kaplan-Meier curves of high and low risk, the log-rank test between them, and their figure.

A bag is of high risk where most seeds put its predicted risk above the median of their run's training part, so no test patient decides
where the groups divide. Folds are pooled: every bag is in the test part of its own fold.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mil_jax.reports.figures.style import COLOURS, SELECTED_ON_TEST, save, tidy
from mil_jax.tasks.base import Task
from mil_jax.tasks.metrics.kaplan_meier import curve, log_rank
from mil_jax.tasks.predictions_table import targets_of

_MOST_TICKS = 8


def divided(task: Task, test: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(time, event, high risk), [bags] each, of the bags with a usable prediction."""
    usable = test[test["high_risk"].notna()]
    share = usable.groupby(["bag_id", "fold"], sort=False)["high_risk"].mean()
    first = usable.drop_duplicates(["bag_id", "fold"])
    time, event = targets_of(first, task).T
    return time, event, (share > 0.5).to_numpy()


def risk_groups(task: Task, test: pd.DataFrame) -> dict[str, Any]:
    """chi2, p: of the log-rank test; high, low: bags; median_high, median_low: the median survival, None where it is not reached."""
    time, event, high = divided(task, test)
    test_of = log_rank(time, event, high)
    found: dict[str, Any] = {"chi2": test_of.chi2, "p": test_of.p, "high": int(high.sum()), "low": int((~high).sum())}
    for name, members in (("high", high), ("low", ~high)):
        median = curve(time[members], event[members]).median if members.any() else np.inf
        found[f"median_{name}"] = median if np.isfinite(median) else None
    return found


def draw_risk_groups(task: Task, test: pd.DataFrame, path: Path, summary: Mapping[str, Any]) -> None:
    """The two curves with their 95 % intervals, ticks where bags are censored, and the numbers at risk below."""
    time, event, high = divided(task, test)
    groups = summary["risk_groups"]
    figure = Figure(figsize=(6.0, 5.0), layout="constrained")
    axes, below = figure.subplots(2, 1, height_ratios=(6, 1), sharex=True)
    rows = []
    for name, members, colour in (("low risk", ~high, COLOURS[0]), ("high risk", high, COLOURS[1])):
        if not members.any():
            continue
        one = curve(time[members], event[members])
        axes.step(one.times, one.survival, where="post", color=colour, linewidth=2, label=f"{name} ({members.sum()})")
        axes.fill_between(one.times, one.low, one.high, step="post", color=colour, alpha=0.15, linewidth=0)
        lost = np.sort(time[members & (event == 0)])
        at = one.survival[np.searchsorted(one.times, lost, side="right") - 1]
        axes.plot(lost, at, linestyle="", marker="|", markersize=5, color=colour, alpha=0.7)
        rows.append((name, members, colour))
    axes.set(ylim=(0, 1.02), xlim=(0, None), ylabel="survival")
    axes.set_title(
        f"Test parts by predicted risk, log-rank p {groups['p']:.2g}{SELECTED_ON_TEST * summary['selected_on_test']}"
    )
    axes.legend(loc="best", frameon=False, fontsize=9)
    tidy(axes)
    ticks = [tick for tick in axes.get_xticks() if 0 <= tick <= time.max()]
    ticks = ticks[:: max(1, -(-len(ticks) // _MOST_TICKS))]
    below.set(ylim=(-0.6, len(rows) - 0.4), yticks=range(len(rows)), yticklabels=[name for name, *_ in rows])
    for place, (_, members, colour) in enumerate(rows):
        for tick in ticks:
            below.text(
                tick, place, int((time[members] >= tick).sum()), ha="center", va="center", fontsize=8, color=colour
            )
    below.set_xlabel(f"{getattr(task, 'column', 'time')}; below: bags at risk")
    below.spines[:].set_visible(False)
    below.tick_params(axis="y", length=0, labelsize=8, pad=16)
    save(figure, path)
