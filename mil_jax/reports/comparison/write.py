"""The results folder of a comparison: summary.md, differences.csv, comparison.json and, over enough tasks, the picture of ranks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from rich.console import Group
from rich.padding import Padding
from rich.text import Text

import mil_jax
from mil_jax.csv_cells import inert_table
from mil_jax.reports.comparison.load import Comparison
from mil_jax.reports.comparison.significance import Ranks
from mil_jax.reports.figures.style import COLOURS, GREY, SELECTED_ON_TEST, save
from mil_jax.reports.tables import Grid, interval, label_of, markdown_table, number, rich_table
from mil_jax.run_folder.folder import plain

MARKER = "comparison.json"
PICTURE = "critical_difference.png"


def write_comparison(folder: Path, comparison: Comparison) -> dict[str, Any]:
    """Writes everything into a new folder, and returns the content of comparison.json."""
    content: dict[str, Any] = {
        "mil_jax_version": mil_jax.__version__,
        "methods": list(comparison.methods),
        "metrics": comparison.metrics,
        "scores": comparison.scores,
        "differences": comparison.differences,
        "selected_on_test": list(comparison.selected_on_test),
        "ranks": comparison.ranks._asdict() if comparison.ranks else None,
        "statements": comparison.statements,
        "figures": [],
    }
    if comparison.ranks:
        draw_critical_difference(comparison.ranks, folder / "figures" / PICTURE)
        content["figures"].append(PICTURE)
    inert_table(pd.DataFrame(comparison.differences)).to_csv(folder / "differences.csv", index=False)
    (folder / "summary.md").write_text(markdown(content), encoding="utf-8")
    text = json.dumps(plain(content), indent=2, allow_nan=False) + "\n"
    (folder / MARKER).write_text(text, encoding="utf-8")
    return content


def console_report(content: Mapping[str, Any]) -> Group:
    """The tables and sentences for a terminal."""
    tables = [rich_table(score_grid(content), title="Main metric, mean of folds")]
    tables.append(rich_table(difference_grid(content, few=True), title=f"Difference from {content['methods'][0]}"))
    sentences = [Padding(Text(line, overflow="fold", no_wrap=False), (0, 2)) for line in content["statements"]]
    return Group(*tables, *sentences)


def markdown(content: Mapping[str, Any]) -> str:
    """The content of summary.md."""
    parts = [f"# {', '.join(content['methods'][1:])} compared with {content['methods'][0]}", ""]
    parts += ["## Main metric, mean of folds", "", markdown_table(score_grid(content)), ""]
    parts += ["## Differences", "", markdown_table(difference_grid(content)), ""]
    parts += ["## How it was done", "", *(f"- {line}" for line in content["statements"]), ""]
    parts += [f"![critical difference](figures/{name})" for name in content["figures"]]
    return "\n".join(parts) + "\n"


def score_grid(content: Mapping[str, Any]) -> Grid:
    """Header and rows: a row for each method, a column for each task, and the mean rank."""
    names = list(content["scores"][content["methods"][0]])
    ranks = content["ranks"]["mean"] if content["ranks"] else {}
    rows = [
        [
            _title(method, content),
            *(number(of_task[name]) for name in names),
            *([f"{ranks[method]:.2f}"] if ranks else []),
        ]
        for method, of_task in content["scores"].items()
    ]
    titles = [f"{name}: {content['metrics'][name]}" for name in names]
    return ["", *titles, *(["mean rank"] if ranks else [])], rows


def difference_grid(content: Mapping[str, Any], *, few: bool = False) -> Grid:
    """Header and rows: a row for each task, method and metric. few: the main metrics only."""
    shown = [row for row in content["differences"] if not few or row["main"]]
    several = len({row["task"] for row in shown}) > 1
    optional = {"p_holm": "p, Holm", "p_delong": "p, DeLong"}
    there = [key for key in optional if any(number(row.get(key)) != "-" for row in shown)]
    if len([row for row in shown if row["main"]]) == 1 and "p_holm" in there:
        there.remove("p_holm")
    header = [*(["task"] if several else []), "method", *([] if few else ["metric"]), "difference", "95 % interval"]
    header += ["p", *(optional[key] for key in there)]
    rows = []
    for row in shown:
        cells = [
            *([row["task"]] if several else []),
            _title(row["method"], content),
            *([] if few else [label_of(row["metric"])]),
        ]
        cells += [_signed(row["difference"]), interval(row["low"], row["high"]), number(row["p"])]
        rows.append([*cells, *(number(row.get(key)) for key in there)])
    return header, rows


def _title(method: str, content: Mapping[str, Any]) -> str:
    return f"{method}{SELECTED_ON_TEST * (method in content['selected_on_test'])}"


def draw_critical_difference(ranks: Ranks, path: Path) -> None:
    """Mean ranks on a line, the best on the left; a bar joins methods that cannot be told apart."""
    ordered = sorted(ranks.mean, key=lambda name: ranks.mean[name])
    values = [ranks.mean[name] for name in ordered]
    groups = _groups(values, ranks.critical)
    figure = Figure(figsize=(7.2, 1.5 + 0.3 * len(ordered) + 0.14 * len(groups)), layout="constrained")
    axes = figure.add_subplot()
    lowest = -len(ordered) - 0.3
    for place, (name, value) in enumerate(zip(ordered, values)):
        height = -place - 1.0
        axes.plot([value, value], [0, height], color=GREY, linewidth=0.9, zorder=1)
        axes.plot(value, 0, "o", color=COLOURS[0], markersize=6, zorder=3)
        axes.annotate(
            f"{name}  {value:.2f}", (value, height), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9
        )
    for number_of_group, (start, stop) in enumerate(groups):
        height = 0.35 + 0.3 * number_of_group
        axes.plot([values[start], values[stop]], [height, height], color="black", linewidth=3, solid_capstyle="round")
    top = 0.6 + 0.3 * len(groups)
    axes.plot([1, 1 + ranks.critical], [top + 0.3, top + 0.3], color=COLOURS[1], linewidth=2)
    axes.annotate(
        f"critical difference {ranks.critical:.2f}",
        (1, top + 0.3),
        xytext=(0, 4),
        textcoords="offset points",
        fontsize=9,
    )
    axes.set(
        xlim=(0.9, len(ordered) + 0.9), ylim=(lowest, top + 1.2), xlabel="mean rank over tasks (1 is best)", yticks=[]
    )
    axes.spines[["top", "right", "left"]].set_visible(False)
    save(figure, path)


def _groups(values: list[float], critical: float) -> list[tuple[int, int]]:
    """(first, last) of the longest stretches of ascending values that span less than `critical`, of two or more."""
    found: list[tuple[int, int]] = []
    for start in range(len(values)):
        stop = max(place for place in range(start, len(values)) if values[place] - values[start] < critical)
        if stop > start and not (found and found[-1][1] >= stop):
            found.append((start, stop))
    return found


def _signed(value: float) -> str:
    text = number(value)
    return text if text == "-" or value < 0 else f"+{text}"
