"""The results folder of an evaluation: summary.md, evaluation.json, predictions in three layouts, figures; readable without mil_jax."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Group
from rich.padding import Padding
from rich.text import Text

import mil_jax
from mil_jax.csv_cells import inert_table
from mil_jax.inference.scored import HELD_OUT, Scored
from mil_jax.interop.prediction_tables import clam_table, stamp_table
from mil_jax.reports.evaluation import calibration
from mil_jax.reports.evaluation.instances import instance_grid
from mil_jax.reports.evaluation.metrics import Averaged, average, class_numbers, decisions, patient_probabilities
from mil_jax.reports.figures import curves
from mil_jax.reports.figures.style import SELECTED_ON_TEST
from mil_jax.reports.tables import Grid, interval, label_of, markdown_table, metric_names, number, rich_table
from mil_jax.run_folder.folder import plain
from mil_jax.tasks.classification import Classification
from mil_jax.tasks.predictions_table import probabilities_of

MARKER = "evaluation.json"
_CALIBRATION_ERROR = "expected_calibration_error"
_MOST_CONSOLE_SUBGROUPS = 30
_LONGEST_NAME = 50  # characters of up to 4 bytes, in a name of at most 255


def write_evaluation(
    folder: Path, results: Sequence[tuple[Scored, Averaged, dict[str, Any]]], excluded: pd.DataFrame, report: Mapping[str, Any]
) -> dict[str, Any]:  # fmt: skip
    """Writes everything into a new folder, and returns the content of evaluation.json. report: title, run, statements, ..."""
    content = {
        "mil_jax_version": mil_jax.__version__,
        **report,
        "results": [one for _, _, one in results],
        "figures": [],
    }
    inert_table(pd.concat([_predictions(*one) for one in results], ignore_index=True)).to_csv(
        folder / "predictions.csv", index=False
    )
    by_model = [_named(scored, one, scored.by_model.drop(columns="part")) for scored, _, one in results]
    inert_table(pd.concat(by_model, ignore_index=True)).to_csv(folder / "predictions_of_models.csv", index=False)
    inert_table(excluded).to_csv(folder / "excluded.csv", index=False)
    names = file_names("_".join(filter(None, (one.cohort, one.label_column, one.how))) for one, _, _ in results)
    for name, (scored, averages, one) in zip(names, results, strict=True):
        _write_layouts(folder, name, scored, averages)
        content["figures"] += _draw(folder / "figures", name, scored, averages, one["selected_on_test"])
    (folder / "summary.md").write_text(markdown(content), encoding="utf-8")
    text = json.dumps(plain(content), indent=2, allow_nan=False) + "\n"
    (folder / MARKER).write_text(text, encoding="utf-8")
    return content


def console_report(content: Mapping[str, Any]) -> Group:
    """Tables and sentences for a terminal."""
    parts: list[Any] = [rich_table(result_grid(content["results"], few=True), title=content["title"])]
    if content["instances"]:
        parts.append(rich_table(instance_grid(content["instances"], few=True), title="single instances"))
    for title, grid in _further_grids(content["results"]).items():
        if len(grid[1]) <= _MOST_CONSOLE_SUBGROUPS:
            parts.append(rich_table(grid, title=title))
    sentences = [Padding(Text(line, overflow="fold", no_wrap=False), (0, 2)) for line in content["statements"]]
    return Group(*parts, *sentences)


def markdown(content: Mapping[str, Any]) -> str:
    """The content of summary.md."""
    parts = [f"# {content['title']}", "", markdown_table(result_grid(content["results"])), ""]
    if content["instances"]:
        parts += ["## Single instances", "", markdown_table(instance_grid(content["instances"])), ""]
    for title, grid in _further_grids(content["results"]).items():
        parts += [f"## {title}", "", markdown_table(grid), ""]
    for one in content["results"]:
        if one["labelled"]:
            parts += [f"## All metrics: {_result_name(one)}", "", markdown_table(_metric_grid(one)), ""]
    parts += ["## How it was done", "", *(f"- {line}" for line in content["statements"]), ""]
    for cohort in content["cohorts"]:
        parts += [f"## Data: {cohort['name']}", "", *(f"- {line}" for line in cohort["notes"]), ""]
    if content["figures"]:
        parts += ["## Figures", "", *(f"![{name[:-4]}](figures/{name})" for name in content["figures"]), ""]
    return "\n".join(parts)


def result_grid(results: Sequence[Mapping[str, Any]], *, few: bool = False) -> Grid:
    """Header and rows: a row for each cohort, label column and way of scoring. few: what a narrow terminal holds."""
    several = any(one["label_column"] for one in results)
    header = ["cohort", *(["label column"] if several else []), "scored by", "bags", "patients"]
    labelled = [one for one in results if one["labelled"]]
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {}
    for name in dict.fromkeys(one["main_metric"] for one in labelled):
        columns[label_of(name)] = _estimate(name)
        columns[f"{label_of(name)}, 95 % interval"] = _interval(name)
    shown = list(dict.fromkeys(name for one in labelled for name in one["headline"] if name != one["main_metric"]))
    columns |= {label_of(name): _estimate(name) for name in (shown[:1] if few else shown)}
    if not few and any("balanced_accuracy_at_threshold" in one["metrics"] for one in labelled):
        columns["balanced accuracy, own threshold"] = _mean("balanced_accuracy_at_threshold")
    if any(_CALIBRATION_ERROR in one["metrics"] for one in labelled):
        columns["ECE"] = _estimate(_CALIBRATION_ERROR)
    if any(one["calibrated"] for one in labelled):
        columns["ECE, calibrated"] = _estimate(_CALIBRATION_ERROR, "calibrated")
    rows = [
        [
            *(one["cohort"], *([one["label_column"]] if several else []), _models(one)),
            *(str(one["num_bags"]), str(one["num_patients"]), *(cell(one) for cell in columns.values())),
        ]
        for one in results
    ]
    return [*header, *columns], rows


def _estimate(name: str, source: str = "metrics") -> Callable[[Mapping[str, Any]], str]:
    return lambda one: number((one.get(source) or {}).get(name, {}).get("estimate"))


def _mean(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda one: number(one.get("metrics", {}).get(name, {}).get("mean"))


def _interval(name: str) -> Callable[[Mapping[str, Any]], str]:
    def cell(one: Mapping[str, Any]) -> str:
        metric = one.get("metrics", {}).get(name, {})
        return interval(metric.get("low"), metric.get("high"))

    return cell


def _further_grids(results: Sequence[Mapping[str, Any]]) -> dict[str, Grid]:
    """{title: table} of the subgroups of each result."""
    grids = {}
    for one in results:
        main, *others = dict.fromkeys((one["main_metric"], *one["headline"]))
        header = ["column", "value", "bags", "patients", label_of(main), "95 % interval", *map(label_of, others)]
        rows = [
            [
                *(group["column"], group["value"], str(group["num_bags"]), str(group["num_patients"])),
                *(_estimate(main)(group), _interval(main)(group), *(_estimate(name)(group) for name in others)),
            ]
            for group in one.get("subgroups", ())
        ]
        if rows:
            grids[f"Subgroups: {_result_name(one)}"] = header, rows
    return grids


def _metric_grid(one: Mapping[str, Any]) -> Grid:
    """Header and rows: every metric, with its interval, after calibration, per patient, and of single models."""
    metrics, after, models = one["metrics"], one["calibrated"] or {}, one["models"]
    columns = {
        "estimate": lambda name: number(metrics[name].get("estimate")),
        "mean of folds": lambda name: number(metrics[name]["mean"]),
        "ranked across folds": lambda name: number(metrics[name].get("across_folds")),
        "95 % interval": lambda name: interval(metrics[name].get("low"), metrics[name].get("high")),
        "calibrated": lambda name: number(after.get(name, {}).get("estimate")),
        "per patient": lambda name: number((one["per_patient"] or {}).get(name, {}).get("estimate")),
        "single models, mean": lambda name: number(models.get(name, {}).get("mean")),
        "lowest": lambda name: number(models.get(name, {}).get("lowest")),
        "highest": lambda name: number(models.get(name, {}).get("highest")),
    }
    names = metric_names(one)
    if one["scored"] != HELD_OUT:  # there is one average, no folds
        del columns["ranked across folds"]
        columns = {"value": columns.pop("mean of folds")} | {
            name: columns[name] for name in columns if name != "estimate"
        }
    rows = [[label_of(name), *(cell(name) for cell in columns.values())] for name in names]
    return ["", *columns], rows


def _models(one: Mapping[str, Any]) -> str:
    return (
        f"{HELD_OUT}{SELECTED_ON_TEST * one['selected_on_test']}"
        if one["scored"] == HELD_OUT
        else "one model"
        if one["num_models"] == 1
        else f"{one['num_models']} models"
    )


def _result_name(one: Mapping[str, Any]) -> str:
    named = ", ".join(filter(None, (one["cohort"], one["label_column"], one["scored"])))
    return f"{named}{SELECTED_ON_TEST * one['selected_on_test']}"


def _named(scored: Scored, one: Mapping[str, Any], table: pd.DataFrame) -> pd.DataFrame:
    """The table with leading columns for cohort, label column and way of scoring, and what chose epochs where test parts did."""
    table = table.copy()
    if one["selected_on_test"]:
        table.insert(0, "selected_on", "test")
    table.insert(0, "scored_by", scored.how)
    if scored.label_column:
        table.insert(0, "label_column", scored.label_column)
    table.insert(0, "cohort", scored.cohort)
    return table


def _predictions(scored: Scored, averages: Averaged, one: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of predictions.csv: the averages, calibrated probabilities, and what is called."""
    table = averages.table.drop(columns=["part", "seed"])
    if scored.how != HELD_OUT:
        table = table.drop(columns=[name for name in ("fold", "fold_name") if name in table])
    if averages.calibrated is not None:
        for name in scored.task.output_names:
            table[f"calibrated_{name.removeprefix('prob_')}"] = averages.calibrated[name]
    if isinstance(scored.task, Classification):
        table["decision"] = decisions(scored.task, averages)
    return _named(scored, one, table)


def _write_layouts(folder: Path, name: str, scored: Scored, averages: Averaged) -> None:
    """CLAM's and STAMP's files, which are of classes."""
    task = scored.task
    if not isinstance(task, Classification):
        return
    seeds_averaged = average(task, scored.by_model, HELD_OUT)
    home = folder / "clam" / name
    home.mkdir(parents=True)
    by_fold = [(str(fold), rows) for fold, rows in seeds_averaged.groupby("fold_name")]
    for fold, (_, rows) in zip(file_names(fold for fold, _ in by_fold), by_fold, strict=True):
        table = clam_table(rows["bag_id"], class_numbers(task, rows), probabilities_of(rows, task))
        inert_table(table).to_csv(home / f"fold_{fold}.csv", index=False)
    patients = patient_probabilities(task, averages.table)
    table = stamp_table(
        patients["patient_id"],
        scored.label_column or "label",
        task.classes,
        class_numbers(task, patients),
        probabilities_of(patients, task),
    )
    home = folder / "stamp" / name
    home.mkdir(parents=True)
    inert_table(table).to_csv(home / "patient-preds.csv", index=False)


def _draw(folder: Path, name: str, scored: Scored, averages: Averaged, selected_on_test: bool) -> list[str]:
    """Draws what there is data for; the names of the files."""
    if not scored.labelled:
        return []
    names, task = [], scored.task
    if not isinstance(task, calibration.CALIBRATED):
        return []
    pictures = [("predicted", averages.table)]
    if averages.calibrated is not None:
        pictures.append(("calibrated", averages.calibrated))
    file = f"reliability_{name}.png"
    if calibration.draw_reliability(
        task, pictures, folder / file, title=f"{scored.name}{SELECTED_ON_TEST * selected_on_test}"
    ):
        names.append(file)
    if np.isfinite(probabilities_of(averages.table, task)).all():
        file = f"roc_{name}.png"
        mean = "mean of folds" if scored.how == HELD_OUT else "models averaged"
        curves.draw_roc_curves(task, averages.table, folder / file, mean=mean, selected_on_test=selected_on_test)
        names.append(file)
    return names


def file_names(texts: Iterable[str]) -> list[str]:
    """The name of a file for each of different texts: letters, digits and `.-_`, not too long, no two alike, whatever their case."""
    names: list[str] = []
    taken: set[str] = set()
    for text in texts:
        stem = re.sub(r"[^\w.-]+", "-", text)[:_LONGEST_NAME]
        numbered = (f"{stem}-{place}" if place > 1 else stem for place in itertools.count(1))
        name = next(name for name in numbered if name.casefold() not in taken)
        taken.add(name.casefold())
        names.append(name)
    return names
