"""Predicted against true numbers of the test parts, a panel for each label column."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mil_jax.reports.figures.style import COLOURS, GREY, SELECTED_ON_TEST, save, tidy
from mil_jax.tasks.predictions_table import probabilities_of, targets_of
from mil_jax.tasks.regression import Regression

_MOST_PANELS = 9


def draw_scatter(task: Regression, test: pd.DataFrame, path: Path, summary: Mapping[str, Any]) -> None:
    """Every bag, the mean of its seeds; the line is where predictions are right. Of many columns, the first nine."""
    names = task.columns[:_MOST_PANELS]
    across = min(len(names), 3)
    figure = Figure(figsize=(4.2 * across, 4.1 * -(-len(names) // across)), layout="constrained")
    by_bag = test.groupby(["bag_id", "fold"], sort=False)
    first = test.drop_duplicates(["bag_id", "fold"])
    true = targets_of(first, task)
    predicted = probabilities_of(by_bag[list(task.output_names)].mean().reset_index(), task)
    for place, name in enumerate(names):
        axes = figure.add_subplot(-(-len(names) // across), across, place + 1)
        x, y = true[:, place], predicted[:, place]
        ends = [np.nanmin([x, y]), np.nanmax([x, y])]
        axes.plot(ends, ends, color=GREY, linewidth=1, linestyle=(0, (4, 4)))
        axes.scatter(x, y, s=12, color=COLOURS[0], alpha=0.5, linewidth=0)
        one = summary["metrics"][f"pearson_{name}" if task.column_names else "pearson"]
        axes.set(xlabel=f"{name}, true", ylabel="predicted", title=f"{name}: Pearson r {one['estimate']:.3f}")
        tidy(axes)
    figure.suptitle(f"Test parts{SELECTED_ON_TEST * summary['selected_on_test']}", fontsize=10)
    save(figure, path)
