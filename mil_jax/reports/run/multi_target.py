"""The end of a run of several targets: one table with a row for each label column, its figure, and the files of the run.

summary.json holds the whole summary of every target; summary.md and targets.csv the tables that have a row for each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Group
from rich.padding import Padding
from rich.text import Text

from mil_jax.data.tables import listed
from mil_jax.reports import tables
from mil_jax.reports.figures import curves
from mil_jax.reports.figures.fold_change import draw_fold_change, fold_change_view, fold_changes
from mil_jax.reports.run.statements import AUC_INTERVAL, ESTIMATE, SUSPICIOUS_BAG_SIZE, RunProtocol, selection
from mil_jax.reports.run.summary import summarize
from mil_jax.reports.statistics import RESAMPLES
from mil_jax.run_folder.folder import RunFolder
from mil_jax.tasks.base import METRIC_LABELS, Task
from mil_jax.tasks.predictions_table import TEST

_MOST_CONSOLE_TARGETS = 25


@dataclass(frozen=True)
class TargetReport:
    """What the summary of one target needs besides its predictions; see `summarize`."""

    name: str
    task: Task
    class_counts: Mapping[str, int]
    constants: Mapping[int, np.ndarray]
    fold_names: Mapping[int, str]


def write_target_summaries(
    folder: RunFolder,
    targets: Sequence[TargetReport],
    predictions: pd.DataFrame,
    history: Sequence[Mapping[str, Any]],
    protocol: RunProtocol,
    left_out: pd.DataFrame,
    *,
    title: str,
    notes: Sequence[str] = (),
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """As `write_summary`, for several targets: predictions have the column label_column; left_out: label_column, reason."""
    of_target = dict(list(predictions.groupby("label_column", sort=False)))
    summaries = {
        target.name: {
            "bags_of_class": dict(target.class_counts),
            **summarize(
                target.task,
                of_target[target.name].dropna(axis="columns", how="all"),
                target.constants,
                protocol,
                title=target.name,
                fold_names=target.fold_names,
            ),
        }
        for target in targets
    }
    main = targets[0].task.main_metric
    changes: dict[str, float] = {}
    for target in targets:
        mine = of_target[target.name]
        changes |= fold_changes(target.task, mine[mine["part"] == TEST].dropna(axis="columns", how="all"))
    summary: dict[str, Any] = {
        "title": title,
        "selected_on_test": protocol.selected_on_test,
        "main_metric": main,
        "num_targets": len(targets),
        "left_out": left_out.to_dict("records"),
        "statements": _statements(protocol, summaries),
        "figures": [],
        "notes": list(notes),
        "facts": dict(facts or {}),
        "targets": summaries,
    }
    if changes:
        pearson = {name: summaries[name]["metrics"]["pearson"]["estimate"] for name in changes}
        summary["fold_change"] = fold_change_view(changes, pearson)
    if protocol.selected_on_test:
        predictions = predictions.assign(selected_on="test")
    folder.write_table("predictions.csv", predictions)
    folder.write_table("targets.csv", _table(summaries))
    if history:
        curves.draw_training_curves(
            history, folder.figures / "training_curves.png", selected_on_test=protocol.selected_on_test
        )
        summary["figures"].append("training_curves.png")
    if any(not math.isnan(one["metrics"][main]["estimate"]) for one in summaries.values()):
        curves.draw_targets(summaries, folder.figures / "targets.png", selected_on_test=protocol.selected_on_test)
        summary["figures"].insert(0, "targets.png")
    if summary.get("fold_change"):
        draw_fold_change(
            summary["fold_change"], folder.figures / "fold_change.png", selected_on_test=protocol.selected_on_test
        )
        summary["figures"].append("fold_change.png")
    folder.write_text("summary.md", markdown(summary))
    folder.write_json("summary.json", {"complete": True, **summary})
    return summary


def console_report(summary: Mapping[str, Any]) -> Group:
    """The table for a terminal, its first rows where there are many, and the sentences."""
    header, rows = target_grid(summary, few=True)
    shown = rows[:_MOST_CONSOLE_TARGETS]
    sentences = list(summary["statements"])
    if len(rows) > len(shown):
        sentences.insert(0, f"The best {len(shown)} of {len(rows)} label columns are shown; summary.md has all.")
    grid = tables.rich_table(
        (header, shown), tables.titled(summary, f"{_main(summary)} of the test parts, by label column")
    )
    return Group(grid, *(Padding(Text(line, overflow="fold", no_wrap=False), (0, 2)) for line in sentences))


def markdown(summary: Mapping[str, Any]) -> str:
    """The content of summary.md."""
    parts = [f"# {tables.titled(summary, summary['title'])}", ""]
    parts += [
        f"{_main(summary)} of the test parts of {summary['num_targets']} label columns, the highest estimate first.",
        "",
    ]
    parts += [tables.markdown_table(target_grid(summary)), ""]
    if summary["left_out"]:
        rows = [[one["label_column"], one["reason"]] for one in summary["left_out"]]
        parts += ["## Label columns left out", "", tables.markdown_table((["label column", "why"], rows)), ""]
    parts += ["## How it was done", "", *(f"- {line}" for line in summary["statements"]), ""]
    parts += [f"## {_main(summary)} of each fold, mean of seeds", "", tables.markdown_table(_fold_grid(summary)), ""]
    parts += ["## All metrics, mean of folds", "", tables.markdown_table(_metric_grid(summary)), ""]
    return "\n".join([*parts, *tables.closing_sections(summary)])


def target_grid(summary: Mapping[str, Any], *, few: bool = False) -> tables.Grid:
    """Header and rows: the main metric of each target with spread, interval and control; the highest estimate first."""
    several_seeds = any(_several_seeds(one) for one in summary["targets"].values())
    header = ["label column", "bags of each class", "mean of folds", "sd over folds", "worst fold", "estimate"]
    header += ["95 % interval", *(["sd over seeds"] if several_seeds else []), "control: bag size"]
    rows = []
    for name, one in _ranked(summary):
        auc = one["metrics"][summary["main_metric"]]
        cells = [name, " / ".join(map(str, one["bags_of_class"].values()))]
        cells += [tables.number(auc[key]) for key in ("mean", "sd_folds", "worst", "estimate")]
        cells += [tables.interval(auc["low"], auc["high"])]
        cells += [tables.number(auc["sd_seeds"])] if several_seeds else []
        rows.append([*cells, tables.number(_bag_size(one))])
    if few:
        kept = [place for place, title in enumerate(header) if not title.startswith("sd over")]
        return [header[place] for place in kept], [[row[place] for place in kept] for row in rows]
    return header, rows


def common_sentences(of_targets: Mapping[str, Sequence[str]]) -> list[str]:
    """Each sentence once; one that does not hold for all targets begins with those it holds for."""
    names: dict[str, list[str]] = {}
    for name, sentences in of_targets.items():
        for sentence in sentences:
            names.setdefault(sentence, []).append(name)
    return [
        sentence if len(those) == len(of_targets) else f"{listed(those)}: {sentence}"
        for sentence, those in names.items()
    ]


def _statements(protocol: RunProtocol, summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    first = next(iter(summaries.values()))
    main, (of_size,) = first["main_metric"], first["controls"]["bag size"]
    name, chance = METRIC_LABELS[main], 0.5 if main in ("auc", "c_index") else 0
    said = [
        selection(protocol),
        *protocol.notes,
        ESTIMATE if main == "auc" else "Estimate: of all test predictions, averaged over seeds.",
        f"95 % interval: {AUC_INTERVAL.partition('; of')[0] if main == 'auc' else f'percentiles over {RESAMPLES} resamples of patients'}; "
        "the models stay as trained.",
        "The intervals are not corrected for the number of label columns: of columns without any signal, 2.5 % lie wholly above "
        f"{chance} by chance.",
    ]
    undefined = [column for column, one in summaries.items() if one["metrics"][main]["undefined_folds"]]
    if undefined:
        said.append(
            f"A fold's {name} is undefined (its test part lacks a class or an event, or has no usable prediction) and left out of the mean "
            f"of folds: {listed(undefined, 10)}."
        )
    least = SUSPICIOUS_BAG_SIZE[of_size]
    suspicious = [column for column, one in summaries.items() if _bag_size(one) >= least]
    if suspicious:
        said.append(
            f"The number of instances alone reaches {METRIC_LABELS[of_size]} {least} or more, so part of the result may be "
            f"bag size: {listed(suspicious, 10)}."
        )
    return said


def _table(summaries: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """The rows of targets.csv."""
    rows = []
    for name, one in summaries.items():
        main = one["main_metric"]
        metric = one["metrics"][main]
        row = {"label_column": name, "bags": sum(one["bags_of_class"].values())}
        row |= {"bags_of_rarest_class": min(one["bags_of_class"].values())}
        row |= {
            f"{main}_{key}": metric[key] for key in ("mean", "sd_folds", "worst", "estimate", "low", "high", "sd_seeds")
        }
        row |= {f"bag_size_{key}": value for key, value in one["controls"]["bag size"].items()}
        rows.append(row | {name: one["metrics"][name]["mean"] for name in tables.metric_names(one) if name != main})
    return pd.DataFrame(rows)


def _ranked(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Targets by falling main metric, undefined ones last."""

    def rank(item: tuple[str, Mapping[str, Any]]) -> float:
        value = item[1]["metrics"][item[1]["main_metric"]]["estimate"]
        return math.inf if math.isnan(value) else -value

    return sorted(summary["targets"].items(), key=rank)


def _main(summary: Mapping[str, Any]) -> str:
    return METRIC_LABELS[summary["main_metric"]]


def _bag_size(one: Mapping[str, Any]) -> float:
    return next(iter(one["controls"]["bag size"].values()))


def _several_seeds(one: Mapping[str, Any]) -> bool:
    return len({run["seed"] for run in one["runs"]}) > 1


def _fold_grid(summary: Mapping[str, Any]) -> tables.Grid:
    folds = list(dict.fromkeys(name for one in summary["targets"].values() for name in one["fold_names"].values()))
    rows = []
    for name, one in _ranked(summary):
        values: dict[str, list[float]] = {fold: [] for fold in folds}
        for run in one["runs"]:
            values[one["fold_names"][str(run["fold"])]].append(run[summary["main_metric"]])
        means = [float(np.mean(of_fold)) if of_fold else math.nan for of_fold in values.values()]
        rows.append([name, *map(tables.number, means)])
    return ["label column", *folds], rows


def _metric_grid(summary: Mapping[str, Any]) -> tables.Grid:
    names = list(dict.fromkeys(name for one in summary["targets"].values() for name in tables.metric_names(one)))
    rows = [
        [name, *(tables.number(one["metrics"].get(metric, {}).get("mean")) for metric in names)]
        for name, one in _ranked(summary)
    ]
    return ["label column", *map(tables.label_of, names)], rows
