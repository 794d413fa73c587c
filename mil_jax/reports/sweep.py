"""The end of a sweep: which setting each fold chose by its own validation part, what these settings reach on its test part, the
settings ranked by validation, and the effect of each. No setting that was not chosen is tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.console import Group
from rich.padding import Padding
from rich.text import Text

from mil_jax.errors import ConfigError
from mil_jax.reports import tables
from mil_jax.reports.figures import curves, style
from mil_jax.reports.run.statements import RunProtocol
from mil_jax.reports.run.summary import summarize
from mil_jax.run_folder.folder import RunFolder
from mil_jax.tasks.base import METRIC_LABELS, Task, higher_is_better, monitor_label
from mil_jax.tasks.predictions_table import TEST

_MOST_CONSOLE_SETTINGS = 15
_LOG_FROM = 8.0  # values whose largest is so many times their least are drawn on a logarithmic axis


@dataclass(frozen=True)
class Choice:
    """select: the score. of_fold: the number of the setting that each fold chose. best: that with the best mean over folds.

    table: a row for each setting, the best first: number, mean, sd_folds, epoch (mean of the best ones), failed (runs whose loss was
    no longer finite), chosen_by (fold names).
    """

    select: str
    of_fold: dict[int, int]
    best: int
    table: pd.DataFrame


def choose(scores: pd.DataFrame, select: str, fold_names: Mapping[int, str]) -> Choice:
    """From rows number, fold, seed, score, epoch, failed: each fold's choice and the ranking.

    A setting without a score for one of the seeds of a fold is not chosen there, and not the best over all. Raises ConfigError where
    nothing can be chosen.
    """
    sign = -1.0 if higher_is_better(select) else 1.0
    by_fold = scores.groupby(["number", "fold"])["score"].agg(lambda one: one.mean(skipna=False)).unstack("fold")
    by_number = scores.groupby("number")
    of_fold = {}
    for fold in by_fold.columns:
        known = (sign * by_fold[fold]).dropna()
        if known.empty:
            raise ConfigError(f"{fold_names[fold]}: no setting has a validation score; try a lower optimizer.lr")
        of_fold[int(fold)] = int(known.idxmin())
    table = pd.DataFrame(
        {
            "mean": by_fold.mean(axis=1, skipna=False),
            "sd_folds": by_fold.std(axis=1, ddof=1, skipna=False),
            "epoch": by_number["epoch"].mean(),
            "failed": by_number["failed"].sum(),
        }
    )
    table["chosen_by"] = [
        ", ".join(fold_names[fold] for fold, number in of_fold.items() if number == row) for row in table.index
    ]
    table = table.sort_values("mean", ascending=sign > 0, kind="stable", na_position="last")
    if table["mean"].isna().all():
        raise ConfigError("no setting has a validation score in every fold; try a lower optimizer.lr")
    return Choice(select, of_fold, int(table.index[0]), table.rename_axis("number").reset_index())


def write_sweep_summary(
    folder: RunFolder,
    task: Task,
    predictions: pd.DataFrame,
    points: Sequence[Mapping[str, Any]],
    scores: pd.DataFrame,
    choice: Choice,
    *,
    constants: Mapping[int, np.ndarray],
    protocol: RunProtocol,
    title: str,
    fold_names: Mapping[int, str],
    notes: Sequence[str] = (),
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes predictions.csv (of the chosen settings), settings.csv, figures, summary.md and summary.json; returns the last.

    points: the swept settings and their values, by number.
    """
    summary = summarize(
        task, predictions, constants, protocol, title=title, fold_names=fold_names, notes=notes, facts=facts
    )
    score = monitor_label(choice.select)
    ranked = pd.DataFrame([dict(points[number]) for number in choice.table["number"]])
    ranked = pd.concat([ranked, choice.table.drop(columns="number")], axis=1)
    summary["sweep"] = {
        "settings": list(points[0]),
        "select": choice.select,
        "ranking": ranked.to_dict("records"),
        "chosen": {fold_names[fold]: dict(points[number]) for fold, number in choice.of_fold.items()},
        "best": dict(points[choice.best]),
    }
    summary["statements"] = [
        f"Each fold takes the setting with the best {score} on its own validation part (mean of seeds); the test figures "
        "are those of the settings so chosen, and other settings were not tested.",
        *summary["statements"],
        f"Config to deploy: best.py holds the setting with the best mean {score} over all folds. It has no test score of "
        "its own: what to expect of it are the figures of the choice as a whole, above.",
    ]
    summary["statements"] += _at_the_edge(points, choice)
    failed = int(scores["failed"].sum())
    if failed:
        summary["statements"].append(
            f"In {failed} of {len(scores)} runs the loss was no longer finite; they were stopped."
        )
    folder.write_table("predictions.csv", predictions)
    folder.write_table("settings.csv", ranked)
    _draw_effects(points, scores, choice, folder.figures / "settings.png")
    test = predictions[predictions["part"] == TEST]
    summary["figures"] = ["settings.png", *curves.draw_all(folder.figures, task, test, [], summary)]
    folder.write_text("summary.md", _markdown(summary))
    folder.write_json("summary.json", {"complete": True, **summary})
    return summary


def console_report(summary: Mapping[str, Any]) -> Group:
    """The chosen settings, their test figures, the best settings by validation, and the sentences."""
    header, rows = _ranking(summary, few=True)
    score = monitor_label(summary["sweep"]["select"])
    metrics = [name for name in tables.metric_names(summary) if name in summary["headline"]]
    few = f", the best {_MOST_CONSOLE_SETTINGS} of {len(rows)}" if len(rows) > _MOST_CONSOLE_SETTINGS else ""
    return Group(
        tables.rich_table((header, rows[:_MOST_CONSOLE_SETTINGS]), f"Settings by {score}{few}"),
        tables.rich_table(_chosen(summary, few=True), "Test part of each fold, with the setting it chose"),
        tables.rich_table(tables.statistics_grid(summary, metrics), "Result of choosing by validation"),
        *(Padding(Text(line, overflow="fold", no_wrap=False), (0, 2)) for line in summary["statements"]),
    )


def _markdown(summary: Mapping[str, Any]) -> str:
    """The content of summary.md."""
    score = monitor_label(summary["sweep"]["select"])
    parts = [
        f"# {summary['title']}",
        "",
        "Test parts, each fold with the setting that its own validation part chose.",
        "",
    ]
    parts += [tables.markdown_table(tables.statistics_grid(summary, tables.metric_names(summary))), ""]
    parts += ["## What each fold chose", "", tables.markdown_table(_chosen(summary)), ""]
    parts += [f"## Settings by {score}", "", tables.markdown_table(_ranking(summary)), ""]
    parts += ["## How it was done", "", *(f"- {line}" for line in summary["statements"]), ""]
    return "\n".join([*parts, *tables.closing_sections(summary)])


def _ranking(summary: Mapping[str, Any], *, few: bool = False) -> tables.Grid:
    """Header and rows: the settings from best to worst by the score; few: short, for a terminal."""
    sweep, rows = summary["sweep"], []
    for rank, row in enumerate(sweep["ranking"], start=1):
        cells = [str(rank), tables.number(row["mean"])]
        if few:
            choices = [fold for fold, point in sweep["chosen"].items() if fold in row["chosen_by"].split(", ")]
            cells += [f"{len(choices)} of {len(sweep['chosen'])}"]
        else:
            cells += [tables.number(row["sd_folds"]), f"{row['epoch']:.1f}", row["chosen_by"] or tables.DASH]
        rows.append([*cells, *(_shown(row[name]) for name in sweep["settings"])])
    kept = ["folds that chose it"] if few else ["sd over folds", "best epoch", "chosen by"]
    return ["rank", "mean of folds", *kept, *_names(sweep["settings"], short=few)], rows


def _chosen(summary: Mapping[str, Any], *, few: bool = False) -> tables.Grid:
    """Header and rows: the setting of each fold and its main test metric, mean of seeds."""
    sweep = summary["sweep"]
    values: dict[str, list[float]] = {}
    for run in summary["runs"]:
        values.setdefault(summary["fold_names"][str(run["fold"])], []).append(run[summary["main_metric"]])
    rows = [
        [fold, tables.number(float(np.mean(values[fold]))), *(_shown(point[name]) for name in sweep["settings"])]
        for fold, point in sweep["chosen"].items()
    ]
    return ["", f"test {METRIC_LABELS[summary['main_metric']]}", *_names(sweep["settings"], short=few)], rows


def _names(settings: Sequence[str], *, short: bool) -> list[str]:
    """The settings, without their groups where that is short and plain."""
    last = [name.rsplit(".", 1)[-1] for name in settings]
    return last if short and len(set(last)) == len(last) else list(settings)


def _at_the_edge(points: Sequence[Mapping[str, Any]], choice: Choice) -> list[str]:
    """A sentence for each number of which the best setting has the least or the largest of at least three values."""
    said = []
    for name, best in points[choice.best].items():
        values = sorted({point[name] for point in points}) if isinstance(best, int | float) else []
        if len(values) >= 3 and not isinstance(best, bool) and best in (values[0], values[-1]):
            edge, beyond = ("least", "lower") if best == values[0] else ("largest", "higher")
            said.append(f"The best setting has the {edge} {name} that was tried: {beyond} ones may be better still.")
    return said


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _draw_effects(points: Sequence[Mapping[str, Any]], scores: pd.DataFrame, choice: Choice, path: Path) -> None:
    """A panel for each setting: the validation score of every setting tried (mean of folds and seeds) and, as a line, the mean of those
    with the same value; of a drawn range, the dots alone."""
    names = list(points[0])
    means = choice.table.set_index("number")["mean"]
    figure = Figure(figsize=(4.2 * len(names), 3.8), layout="constrained")
    first = None
    for place, name in enumerate(names):
        axes = first = figure.add_subplot(1, len(names), place + 1, sharey=first)
        column = pd.Series([point[name] for point in points])
        numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in column)
        kinds = list(dict.fromkeys(column)) if not numeric else sorted(set(column))
        few = len(kinds) <= max(8, len(points) // 2)
        at = column.astype(float) if numeric and not few else column.map({kind: kinds.index(kind) for kind in kinds})
        shown = means.reindex(range(len(points)))
        axes.scatter(at, shown, s=18, color=style.COLOURS[0], alpha=0.55, linewidth=0)
        if few:
            line = shown.groupby(at.to_numpy()).mean()
            axes.plot(line.index, line, color="black", linewidth=1.6)
            axes.set_xticks(range(len(kinds)), [_shown(kind) for kind in kinds])
            axes.set_xlim(-0.5, len(kinds) - 0.5)
        elif min(kinds) > 0 and max(kinds) / min(kinds) >= _LOG_FROM:
            axes.set_xscale("log")
        best = choice.best
        axes.scatter(at[best], means[best], s=70, facecolor="none", edgecolor=style.COLOURS[1], linewidth=1.6)
        axes.set(xlabel=name)
        if place == 0:
            axes.set_ylabel(f"{monitor_label(choice.select)}, mean of folds")
        style.tidy(axes)
    dot = "each dot a setting, the best one ringed; line: mean of the settings with a value"
    figure.suptitle(f"Effect of each setting on the {monitor_label(choice.select)} ({dot})", fontsize=9)
    style.save(figure, path)
