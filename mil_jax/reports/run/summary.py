"""The end of a run: predictions.csv, figures, summary.md and, last, summary.json, which marks the run as complete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mil_jax.reports import statistics
from mil_jax.reports.figures import curves, risk_groups
from mil_jax.reports.figures.fold_change import fold_change_view, fold_changes
from mil_jax.reports.run.statements import RunProtocol, statements
from mil_jax.reports.tables import closing_sections, markdown
from mil_jax.run_folder.folder import RunFolder
from mil_jax.tasks.base import Task
from mil_jax.tasks.predictions_table import TEST, VALIDATION


def write_summary(
    folder: RunFolder,
    *,
    task: Task,
    predictions: pd.DataFrame,
    history: Sequence[Mapping[str, Any]],
    constants: Mapping[int, np.ndarray],
    protocol: RunProtocol,
    title: str = "Result",
    fold_names: Mapping[int, str] | None = None,
    notes: Sequence[str] = (),
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes everything that a finished run leaves for people, and returns the content of summary.json.

    predictions: see `tasks/predictions_table.py`; parts "test" and, for thresholds chosen on it, "val".
    history: rows of metrics.jsonl: epoch (from 0), fold, seed and numbers by name. constants: {fold: [outputs]}
    what a model that looks at no bag would say, from the fold's training part. notes: sentences about the data.
    facts: timings, compilations, buckets, by name.
    """
    summary = summarize(
        task, predictions, constants, protocol, title=title, fold_names=fold_names, notes=notes, facts=facts
    )
    if protocol.selected_on_test:
        predictions = predictions.assign(selected_on="test")
    folder.write_table("predictions.csv", predictions)
    test = predictions[predictions["part"] == TEST]
    summary["figures"] = curves.draw_all(folder.figures, task, test, history, summary)
    folder.write_text("summary.md", markdown(summary))
    folder.write_json("summary.json", {"complete": True, **summary})
    return summary


def summarize(
    task: Task,
    predictions: pd.DataFrame,
    constants: Mapping[int, np.ndarray],
    protocol: RunProtocol,
    *,
    title: str = "Result",
    fold_names: Mapping[int, str] | None = None,
    notes: Sequence[str] = (),
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The numbers and sentences of a run, all that the tables are made from. Touches no file."""
    test = predictions[predictions["part"] == TEST].reset_index(drop=True)
    runs = statistics.run_metrics(task, test)
    # Where the test part chose the epoch, the rows called "val" are test bags: no threshold may come from them.
    validation = predictions[(predictions["part"] == VALIDATION) & (not protocol.selected_on_test)]
    thresholded = statistics.threshold_metrics(task, test, validation)
    if not thresholded.empty:
        runs = runs.merge(thresholded, on=["fold", "seed"], how="left")
    metrics: dict[str, dict[str, Any]] = statistics.spread(task, test, runs)
    for name, interval in statistics.bootstrap_intervals(task, test).items():
        metrics[name].update(low=interval.low, high=interval.high, undefined_resamples=interval.undefined)
    summary: dict[str, Any] = {
        "title": title,
        "task": task.name,
        "main_metric": task.main_metric,
        "headline": list(task.headline),
        "columns": list(task.column_names),
        "num_bags": int(test["bag_id"].nunique()),
        "num_patients": int(test["patient_id"].nunique()),
        "selected_on_test": protocol.selected_on_test,
        "fold_names": {str(fold): name for fold, name in (fold_names or {}).items()},
        "metrics": metrics,
        "runs": runs.to_dict("records"),
        "per_patient": statistics.patient_statistics(task, test),
        "leak_free": statistics.leak_free_statistics(task, test),
        "controls": {
            task.constant_name: statistics.constant_control(task, test, constants),
            "bag size": statistics.bag_size_control(task, test),
        },
        "figures": [],
        "notes": list(notes),
        "facts": dict(facts or {}),
    }
    if task.column_names and (changes := fold_changes(task, test)):
        pearson = {name: metrics[f"pearson_{name}"]["estimate"] for name in changes}
        summary["fold_change"] = fold_change_view(changes, pearson)
    if (if_perfect := statistics.perfect_calibration(task, test)) is not None:
        summary["calibration_error_if_perfect"] = if_perfect
    if task.name == "survival":
        summary["risk_groups"] = risk_groups.risk_groups(task, test)
    summary["statements"] = statements(protocol, summary)
    return summary


def write_final_summary(
    folder: RunFolder,
    *,
    history: Sequence[Mapping[str, Any]],
    statements: Sequence[str],
    title: str,
    notes: Sequence[str],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the files, and returns the content of summary.json."""
    summary: dict[str, Any] = {
        "title": f"{title}, final model",
        "final": True,
        "selected_on_test": False,
        "statements": list(statements),
        "figures": [],
        "notes": list(notes),
        "facts": dict(facts),
    }
    if history:
        curves.draw_training_curves(history, folder.figures / "training_curves.png")
        summary["figures"].append("training_curves.png")
    parts = [f"# {summary['title']}", "", *(f"- {line}" for line in statements), "", *closing_sections(summary)]
    folder.write_text("summary.md", "\n".join(parts))
    folder.write_json("summary.json", {"complete": True, **summary})
    return summary
