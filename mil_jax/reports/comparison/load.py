"""From run folders to the differences between methods: what is read, what must be equal, and which tests apply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mil_jax.data.tables import listed
from mil_jax.errors import DataError
from mil_jax.reports.comparison.significance import (
    LEAST_FOLDS,
    LEAST_TASKS,
    Ranks,
    corrected_t,
    delong,
    holm,
    paired_bootstrap,
    rank_methods,
)
from mil_jax.reports.statistics import RESAMPLES, run_metrics
from mil_jax.run_folder import tasks_json
from mil_jax.run_folder.folder import RunFolder, is_run_folder, understood
from mil_jax.tasks.base import METRIC_LABELS, Task, higher_is_better
from mil_jax.tasks.classification import Classification
from mil_jax.tasks.predictions_table import probabilities_of, targets_of


@dataclass(frozen=True)
class TaskResult:
    """Test predictions of a method for one task. tested_to_trained: bags tested on by bags trained on, NaN where that is not known."""

    task: Task
    test: pd.DataFrame
    tested_to_trained: float
    selected_on_test: bool


@dataclass(frozen=True)
class Method:
    """results: by the name of the task."""

    name: str
    results: dict[str, TaskResult] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """metrics: the name of the main metric of each task. differences: a dictionary for each task, method but the first, and metric. scores:
    {method: {task: main metric}}. ranks: over tasks. selected_on_test: the methods that chose epochs on test parts.
    """

    methods: tuple[str, ...]
    metrics: dict[str, str]
    differences: list[dict[str, Any]]
    scores: dict[str, dict[str, float]]
    ranks: Ranks | None
    statements: list[str]
    selected_on_test: tuple[str, ...] = ()


def read_method(name: str, paths: Sequence[Path]) -> Method:
    """Raises UserError where a folder holds no test predictions, or two of them are of one task."""
    results: dict[str, TaskResult] = {}
    found = [(path, one) for path in paths for one in _read(path)]
    columns = [column for _, (column, _, _) in found]
    for path, (column, table, result) in found:
        task = f"{column} ({table})" if columns.count(column) > 1 and table else column
        if task in results:
            raise DataError(
                f"{path}: the method {name} has two results for {task}; name them apart with --run NAME={path}"
            )
        results[task] = result
    return Method(name, results)


def compare_methods(methods: Sequence[Method], *, mixed: bool = False) -> Comparison:
    """The first method with each of the others, task by task.

    mixed: also where only some chose their epochs on test parts. Raises DataError for different tasks or slides, and for such a mix.
    """
    first, others = methods[0], methods[1:]
    flattered = _selected_on_test(methods)
    if 0 < len(flattered) < len(methods) and not mixed:
        raise DataError(
            f"epochs were selected on test by {listed(flattered)} and not by the others, so the comparison would flatter the former; "
            "compare runs of one train.protocol, or say --mixed-protocols"
        )
    for other in others:
        if other.results.keys() != first.results.keys():
            raise DataError(
                f"{first.name} has results for {listed(first.results, 8)}, and {other.name} for {listed(other.results, 8)}; compare runs "
                "of the same label columns and tables"
            )
    differences = []
    for task, base in first.results.items():
        for other in others:
            require_same_bags(task, first.name, base.test, other.name, other.results[task].test)
            differences += [
                {"task": task, "method": other.name, "compared_with": first.name, **row}
                | {"selected_on_test": listed([one for one in flattered if one in (first.name, other.name)])}
                for row in _differences(base, other.results[task])
            ]
    _correct(differences)
    scores = {method.name: {task: _score(result) for task, result in method.results.items()} for method in methods}
    sense = {task: 1 if higher_is_better(result.task.main_metric) else -1 for task, result in first.results.items()}
    ranks = rank_methods({name: [sense[task] * of_task[task] for task in sense] for name, of_task in scores.items()})
    names = tuple(method.name for method in methods)
    metrics = {task: METRIC_LABELS[result.task.main_metric] for task, result in first.results.items()}
    statements = _statements(methods, ranks, differences)
    return Comparison(names, metrics, differences, scores, ranks, statements, tuple(flattered))


def _selected_on_test(methods: Sequence[Method]) -> list[str]:
    return [method.name for method in methods if any(one.selected_on_test for one in method.results.values())]


def require_same_bags(task: str, name: str, first: pd.DataFrame, other_name: str, second: pd.DataFrame) -> None:
    """Raises DataError where two runs were not tested on the same bags of the same patients with the same labels."""
    labels = [column for column in first if column == "target" or str(column).startswith("target_")]
    bags = [
        table.drop_duplicates("bag_id").set_index("bag_id").sort_index()[["patient_id", *labels]]
        for table in (first, second)
    ]
    only = [sorted(set(bags[a].index) - set(bags[b].index)) for a, b in ((0, 1), (1, 0))]
    if any(only):
        shown = "; ".join(
            f"{len(ids)} only by {who} ({listed(ids)})" for ids, who in zip(only, (name, other_name)) if ids
        )
        raise DataError(f"{task}: the runs were tested on different slides, {shown}; compare runs of the same cohort")
    differing = bags[0].index[(bags[0].fillna("") != bags[1].fillna("")).any(axis=1)]
    if len(differing):
        raise DataError(
            f"{task}: {name} and {other_name} have other patients or labels for {len(differing)} slides ({listed(differing)}); compare "
            "runs of the same label table"
        )


def _read(path: Path) -> list[tuple[str, str, TaskResult]]:
    """(label column, its table, results) of a run folder, or (cohort and label column, "", results) of an evaluation."""
    with understood(path):
        if is_run_folder(path):
            found = _read_run(RunFolder.require_complete(path))
        elif (path / "evaluation.json").is_file():
            found = _read_evaluation(RunFolder(path))
        else:
            raise DataError(f"{path}: neither a run folder nor a results folder of evaluate; name one")
        for _, _, result in found:
            _require_columns(result.test, result.task)
        return found


def _require_columns(table: pd.DataFrame, task: Task) -> None:
    """Raises KeyError, TypeError or ValueError where a table of predictions lacks something, or has words for numbers."""
    ids, numbers = table[["bag_id", "patient_id"]], table[["fold", "seed", *task.output_names]]
    if ids.isna().any(axis=None) or not all(kind.kind in "biuf" for kind in numbers.dtypes):
        raise ValueError("predictions.csv has no ids, or words where numbers should be")
    targets_of(table, task)


def _read_run(folder: RunFolder) -> list[tuple[str, str, TaskResult]]:
    labels, summary = folder.config["data"]["labels"], folder.read_json("summary.json")
    if summary.get("final"):
        raise DataError(f"{folder.path}: a final model has no test predictions; compare the cross-validated runs")
    table, splits = folder.read_table("predictions.csv"), folder.read_table("splits.csv")
    test = table[table["part"] == "test"]
    several = "targets" in summary
    found = []
    for name, task in tasks_json.read(folder).items():
        rows = test[test["label_column"] == name].dropna(axis="columns", how="all") if several else test
        own = splits[splits["label_column"] == name] if several else splits
        counts = own["part"].value_counts()
        ratio = counts.get("test", np.nan) / counts.get("train", np.nan)
        result = TaskResult(task, rows.reset_index(drop=True), float(ratio), bool(summary["selected_on_test"]))
        found.append((name, Path(labels).stem, result))
    return found


def _read_evaluation(folder: RunFolder) -> list[tuple[str, str, TaskResult]]:
    content, table = folder.read_json("evaluation.json"), folder.read_table("predictions.csv")
    found = []
    for one in content["results"]:
        if not one["labelled"]:
            continue
        chosen = (table["cohort"] == one["cohort"]) & (table["scored_by"] == one["scored"])
        if one["label_column"]:
            chosen &= table["label_column"] == one["label_column"]
        rows = table[chosen].dropna(axis="columns", how="all").assign(seed=0).reset_index(drop=True)
        if "fold" not in rows:
            rows = rows.assign(fold=0)
        name = ", ".join(filter(None, (one["cohort"], one["label_column"], one["scored"])))
        on_test = bool(one.get("selected_on_test"))
        found.append((name, "", TaskResult(tasks_json.restored(one["task"]), rows, np.nan, on_test)))
    if not found:
        raise DataError(f"{folder.path}: no cohort of this evaluation has labels, so there is nothing to compare")
    return found


def _differences(base: TaskResult, other: TaskResult) -> list[dict[str, Any]]:
    """A row for each metric: bootstrap of the pooled metric, corrected t over folds, DeLong where it applies."""
    folds = _same_folds(base.test, other.test)
    of_fold = [run_metrics(one.task, one.test).groupby("fold").mean() for one in (base, other)]
    rows = []
    for name, drawn in paired_bootstrap(base.task, base.test, other.test, base.task.metric_names).items():
        row: dict[str, Any] = {
            "metric": name,
            "main": name == base.task.main_metric,
            "difference": drawn.value,
            "low": drawn.low,
            "high": drawn.high,
        }
        row |= {"p_bootstrap": drawn.p, "undefined_resamples": drawn.undefined}
        t = corrected_t(of_fold[0][name], of_fold[1][name], base.tested_to_trained) if folds else None
        row |= {"fold_difference": t.value if t else np.nan, "p_folds": t.p if t else np.nan}
        row["p"] = row["p_folds"] if np.isfinite(row["p_folds"]) else row["p_bootstrap"]
        row["p_delong"] = _delong(base, other) if name == "auc" else np.nan
        rows.append(row)
    return rows


def _same_folds(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    """Whether both were tested on the same bags in the same folds, of which there are several."""
    cases = [set(zip(table["fold"], table["bag_id"])) for table in (first, second)]
    return cases[0] == cases[1] and first["fold"].nunique() >= LEAST_FOLDS


def _delong(base: TaskResult, other: TaskResult) -> float:
    """p, of seeds averaged; NaN unless there are two classes, one test part, and one bag for each patient."""
    task = base.task
    if not isinstance(task, Classification) or task.num_classes != 2:
        return np.nan
    tables = [one.test.groupby(["bag_id", "fold"], sort=True) for one in (base, other)]
    scores = [probabilities_of(table[list(task.output_names)].mean(), task)[:, 1] for table in tables]
    first = tables[0].first().reset_index()
    if first["fold"].nunique() > 1 or first["patient_id"].duplicated().any():
        return np.nan
    index = task.class_index(targets_of(first, task))
    known = index >= 0
    return delong(index[known] == 1, scores[0][known], scores[1][known]).p


def _score(result: TaskResult) -> float:
    """The mean of folds of the main metric, seeds averaged."""
    return float(run_metrics(result.task, result.test).groupby("fold")[result.task.main_metric].mean().mean())


def _correct(differences: list[dict[str, Any]]) -> None:
    """Adds the p of the main metric after Holm's correction for all comparisons of the table."""
    main = [row for row in differences if row["main"]]
    for row, p in zip(main, holm([row["p"] for row in main]), strict=True):
        row["p_holm"] = p


def _statements(methods: Sequence[Method], ranks: Ranks | None, differences: Sequence[dict[str, Any]]) -> list[str]:
    said = [
        f"Difference: the named method less {methods[0].name}, of the metric of all test predictions pooled, seeds averaged; 95 % interval "
        f"from {RESAMPLES} resamples of the patients, the same for both. It is of these trained models: others of the same methods differ."
    ]
    of_methods = [bool(np.isfinite(row["p_folds"])) for row in differences if row["main"]]
    if any(of_methods):
        said.append(
            "p: whether the methods differ, by Nadeau and Bengio's corrected t over folds, which allows for training parts that overlap. "
            "Resamples of patients know nothing of other training parts, and call equally good methods different too often; their p is in "
            "differences.csv (p_bootstrap)."
        )
    if not all(of_methods):
        said.append(
            f"p{' of the other rows' * any(of_methods)}: whether these trained models differ, from the resamples. A test of the methods "
            f"needs {LEAST_FOLDS} folds or more, the same in both runs."
        )
    if len(of_methods) > 1:
        said.append("p, Holm: the p of the main metric, corrected for the number of comparisons in this table.")
    if any(np.isfinite(row["p_delong"]) for row in differences):
        said.append("p, DeLong: of two AUCs in one test part with one slide for each patient.")
    tasks_there = len(methods[0].results)
    if ranks is None:
        said.append(
            f"No critical-difference picture: it needs {LEAST_TASKS} tasks and 3 methods, and there are {tasks_there} and {len(methods)}."
        )
    else:
        said.append(
            f"Mean ranks over {tasks_there} tasks: methods whose ranks differ by less than {ranks.critical:.2f} cannot be told apart "
            f"(Nemenyi, 5 %); Friedman's test that all are alike: p = {ranks.p:.3g}."
        )
        if _share_slides([result.test for result in methods[0].results.values()]):
            said.append(
                "The tasks are label columns of the same slides: their ranks are not independent, so Friedman's p and the critical "
                "difference are too small."
            )
    flattered = _selected_on_test(methods)
    if flattered:
        said.append(f"{listed(flattered)}: epochs were SELECTED ON TEST, so these numbers are too good.")
    return said


def _share_slides(tables: Sequence[pd.DataFrame]) -> bool:
    """Whether a slide is in more than one of the tables."""
    slides = pd.concat([table["bag_id"].drop_duplicates() for table in tables])
    return bool(slides.duplicated().any())
