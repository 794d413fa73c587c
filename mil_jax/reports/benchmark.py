"""The end of a benchmark: tables of tasks x methods, made from the summaries of its runs, all of which have ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Group
from rich.padding import Padding
from rich.text import Text

import mil_jax
from mil_jax.data.tables import listed
from mil_jax.reports import tables
from mil_jax.reports.run.multi_target import common_sentences
from mil_jax.run_folder import tasks_json
from mil_jax.run_folder.folder import RunFolder
from mil_jax.tasks.base import METRIC_LABELS

_STATISTICS = ("mean", "sd_folds", "worst", "estimate", "low", "high", "sd_seeds", "undefined_folds")
_CONSOLE_METHODS = 4


@dataclass(frozen=True)
class MethodOnTask:
    """task: "" where the run's label columns are the tasks. folder: of a run that has ended."""

    method: str
    task: str
    folder: Path


def write_benchmark(out: Path, name: str, protocol: str, runs: Sequence[MethodOnTask]) -> dict[str, Any]:
    """Writes summary.md, results.csv and benchmark.json into `out`; returns the content of the last.

    Raises RunFolderError for a run that has not ended.
    """
    rows, said, headline = [], {}, [""]
    for run in runs:
        folder = RunFolder.require_complete(run.folder)
        summary = folder.read_json("summary.json")
        said[f"{run.method} on {run.task}" if run.task else run.method] = summary["statements"][:1]
        columns = summary.get("targets") or {next(iter(tasks_json.read(folder))): summary}
        for column, one in columns.items():
            headline = [one["main_metric"], *(metric for metric in one["headline"] if metric != one["main_metric"])]
            title = " ".join(filter(None, (run.task, column if len(columns) > 1 or not run.task else "")))
            rows += _rows(title, run, one)
    flattered = any(row["selected_on"] == "test" for row in rows)
    content = {
        "mil_jax_version": mil_jax.__version__,
        "complete": True,
        "benchmark": name,
        "protocol": protocol,
        "selected_on_test": flattered,
        "methods": list(dict.fromkeys(run.method for run in runs)),
        "tasks": list(dict.fromkeys(row["task"] for row in rows)),
        "metrics": headline,
        "statements": [*common_sentences(said), *_statements(rows, headline[0])],
        "results": rows,
    }
    folder = RunFolder(out)
    folder.write_table("results.csv", pd.DataFrame(rows))
    folder.write_text("summary.md", markdown(content))
    folder.write_json("benchmark.json", content)
    return content


def console_report(content: Mapping[str, Any]) -> Group:
    """The table of the main metric, a few methods beside each other, and the sentences, for a terminal."""
    main, methods = content["metrics"][0], content["methods"]
    parts = [methods[start : start + _CONSOLE_METHODS] for start in range(0, len(methods), _CONSOLE_METHODS)]
    shown = [tables.rich_table(grid({**content, "methods": part}, main), _title(content, main)) for part in parts]
    sentences = [Padding(Text(line, overflow="fold", no_wrap=False), (0, 2)) for line in content["statements"]]
    return Group(*shown, *sentences)


def markdown(content: Mapping[str, Any]) -> str:
    """The content of summary.md."""
    parts = [f"# {tables.titled(content, content['benchmark'])}, protocol {content['protocol']}", ""]
    for metric in content["metrics"]:
        parts += [f"## {_title(content, metric)}", "", tables.markdown_table(grid(content, metric)), ""]
    return "\n".join([*parts, "## How it was done", "", *(f"- {line}" for line in content["statements"]), ""])


def grid(content: Mapping[str, Any], metric: str) -> tables.Grid:
    """Header and rows: a row for each task, a column for each method; mean and deviation of the folds."""
    of_task: dict[str, dict[str, str]] = {}
    for row in content["results"]:
        if row["metric"] == metric:
            cells = of_task.setdefault(row["task"], {"": f"{row['task']} ({row['bags']})"})
            cells[row["method"]] = f"{tables.number(row['mean'])} +- {tables.number(row['sd_folds'])}"
    methods = content["methods"]
    rows = [[cells[""], *(cells.get(method, tables.DASH) for method in methods)] for cells in of_task.values()]
    return ["task (bags)", *methods], rows


def _rows(title: str, run: MethodOnTask, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each metric of a method on a task."""
    common = {"task": title, "bags": summary["num_bags"], "patients": summary["num_patients"], "method": run.method}
    folds = len({one["fold"] for one in summary["runs"]})
    seeds = len({one["seed"] for one in summary["runs"]})
    last = {
        "folds": folds,
        "seeds": seeds,
        "selected_on": "test" if summary["selected_on_test"] else "",
        "leaks": summary["leak_free"] is not None,
        "run": str(run.folder),
    }
    return [
        {**common, "metric": metric, **{key: values.get(key) for key in _STATISTICS}, **last}
        for metric, values in summary["metrics"].items()
    ]


def _statements(rows: Sequence[Mapping[str, Any]], main: str) -> list[str]:
    said = [
        "Each cell: mean +- standard deviation over the folds, whose seeds are averaged first. results.csv has all metrics, the worst "
        "fold and the 95 % intervals."
    ]
    leaking = dict.fromkeys(row["task"] for row in rows if row["leaks"])
    if leaking:
        said.append(
            f"The published folds of {listed(leaking, 10)} leak: patients are in two parts of one. The summaries of the runs have the "
            "metrics without them."
        )
    lacking = [f"{row['method']} on {row['task']}" for row in rows if row["metric"] == main and row["undefined_folds"]]
    if lacking:
        said.append(
            f"Folds without {METRIC_LABELS[main]} (a class is missing, or the run diverged) are left out of the mean: "
            f"{listed(lacking, 10)}."
        )
    return said


def _title(content: Mapping[str, Any], metric: str) -> str:
    return f"{tables.titled(content, tables.label_of(metric))}, protocol {content['protocol']}"
