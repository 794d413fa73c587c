"""The final table of a run, for the console (rich) and for summary.md, both from the content of summary.json.

Two tables: the metric of each fold and seed, and statistics with control rows. An undefined number is shown as a
dash.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mil_jax.tasks.base import METRIC_LABELS

DASH = "-"
_MOST_CONSOLE_ROWS, _MOST_CONSOLE_SEEDS = 12, 8

Grid = tuple[list[str], list[list[str]]]


def console_report(summary: Mapping[str, Any]) -> Group:
    """The tables and sentences for a terminal: few metrics; very many folds and seeds are shown in summary.md
    only.
    """
    tables = []
    if len(_folds(summary)) <= _MOST_CONSOLE_ROWS:
        tables.append(rich_table(run_grid(summary, few=True), title=titled(summary, "Test part of each run")))
    metrics = [name for name in metric_names(summary) if name in summary["headline"] or name == "accuracy_at_threshold"]
    tables.append(rich_table(statistics_grid(summary, metrics), title=titled(summary, "Result")))
    sentences = [Padding(Text(line, overflow="fold", no_wrap=False), (0, 2)) for line in summary["statements"]]
    return Group(*tables, *sentences)


def markdown(summary: Mapping[str, Any]) -> str:
    """The content of summary.md."""
    parts = [f"# {titled(summary, summary['title'])}", ""]
    parts += [markdown_table(statistics_grid(summary, metric_names(summary))), ""]
    if summary["columns"]:
        parts += ["## Each label column, mean of folds", "", markdown_table(label_grid(summary)), ""]
    parts += ["## How it was done", "", *(f"- {line}" for line in summary["statements"]), ""]
    parts += [f"## {titled(summary, 'Test part of each run')}", "", markdown_table(run_grid(summary)), ""]
    return "\n".join([*parts, *closing_sections(summary)])


def closing_sections(summary: Mapping[str, Any]) -> list[str]:
    """What every summary.md ends with: figures, notes on the data, cost."""
    parts: list[str] = []
    if summary.get("fold_change"):
        correlation = number(summary["fold_change"]["spearman"])
        parts += [
            *("## Correlation and fold change", "", markdown_table(fold_change_grid(summary)), ""),
            *(
                "Columns are read as ratios; fold change: |log2 of the mean ratio| of the test bags; of each column the Pearson r of all",
            ),
            *(f"folds pooled. Spearman correlation of the two over the columns: {correlation}.", ""),
        ]
    if summary["figures"]:
        parts += ["## Figures", "", *(f"![{_stem(name)}](figures/{name})" for name in summary["figures"]), ""]
    if summary["notes"]:
        parts += ["## Data", "", *(f"- {line}" for line in summary["notes"]), ""]
    if summary["facts"]:
        parts += ["## Cost", "", markdown_table((["what", "value"], _facts(summary["facts"]))), ""]
    return parts


def metric_names(summary: Mapping[str, Any]) -> list[str]:
    """The metrics of a summary that have a label, in the order of `METRIC_LABELS`, thresholded ones last."""
    there = summary["metrics"]
    return [name for name in METRIC_LABELS if name in there] + [
        name for name in there if name.endswith("_at_threshold")
    ]


def run_grid(summary: Mapping[str, Any], *, few: bool = False) -> Grid:
    """Header and rows: the metrics of each fold for one seed; for several seeds the main metric of each fold and seed.

    few: the headline metrics only, and no column per seed when there are many.
    """
    runs, folds = summary["runs"], _folds(summary)
    seeds = sorted({run["seed"] for run in runs})
    value = {(run["fold"], run["seed"]): run for run in runs}
    if len(seeds) == 1:
        metrics = [name for name in metric_names(summary) if not few or name in summary["headline"]]
        rows = [
            [_fold_name(summary, fold), *(number(value[fold, seeds[0]].get(name)) for name in metrics)]
            for fold in folds
        ]
        return ["", *(label_of(name) for name in metrics)], rows
    main = summary["main_metric"]
    label = label_of(main)
    shown = [] if few and len(seeds) > _MOST_CONSOLE_SEEDS else seeds
    rows = []
    for fold in folds:
        values = {seed: value.get((fold, seed), {}).get(main) for seed in seeds}
        defined = [one for one in values.values() if not _undefined(one)]
        mean = sum(defined) / len(defined) if defined else None
        spread = [number(min(defined, default=None)), number(max(defined, default=None))]
        rows.append([_fold_name(summary, fold), *(number(values[seed]) for seed in shown), number(mean), *spread])
    return [label, *(f"seed {seed}" for seed in shown), "mean", "lowest", "highest"], rows


def statistics_grid(summary: Mapping[str, Any], metrics: Sequence[str]) -> Grid:
    """Header and rows: mean, spread, estimate and interval, per patient, leak-free part, control rows."""
    statistics = summary["metrics"]

    def row(label: str, cell: Any, source: Mapping[str, Any] = statistics) -> list[str]:
        return [label, *(cell(source[name]) if name in source else DASH for name in metrics)]

    rows = [
        row("mean of folds", lambda s: number(s["mean"])),
        row("sd over folds", lambda s: number(s["sd_folds"])),
        row("worst fold", lambda s: number(s["worst"])),
        row("estimate", lambda s: number(s["estimate"])),
        row("95 % interval", lambda s: interval(s.get("low"), s.get("high"))),
        row("ranked across folds", lambda s: number(s.get("across_folds"))),
        row("sd over seeds", lambda s: number(s["sd_seeds"])),
    ]
    rows = [cells for cells in rows if set(cells[1:]) != {DASH}]
    for key, label in (("per_patient", "per patient"), ("leak_free", "leak-free")):
        if summary[key]:
            rows.append(row(f"{label}, mean", lambda s: number(s["mean"]), summary[key]))
            rows.append(row(f"{label}, estimate", lambda s: number(s["estimate"]), summary[key]))
    for name, values in summary["controls"].items():
        rows.append(row(f"control: {name}", number, values))
    return ["", *(label_of(name) for name in metrics)], rows


def fold_change_grid(summary: Mapping[str, Any]) -> Grid:
    """Header and rows: the Pearson r of the label columns of each level of fold change."""
    rows = [
        [one["level"], str(one["columns"]), number(one["mean"]), number(one["median"])]
        for one in summary["fold_change"]["levels"]
    ]
    return ["fold change, |log2|", "label columns", "mean Pearson r", "median"], rows


def label_grid(summary: Mapping[str, Any]) -> Grid:
    """Header and rows: the metrics of each label column of one model, the mean of folds."""
    statistics = summary["metrics"]
    names = [name for name in METRIC_LABELS if f"{name}_{summary['columns'][0]}" in statistics]
    rows = [[label, *(number(statistics[f"{name}_{label}"]["mean"]) for name in names)] for label in summary["columns"]]
    return ["", *(label_of(name) for name in names)], rows


def _facts(facts: Mapping[str, Any]) -> list[list[str]]:
    return [[str(name), f"{value:.4g}" if isinstance(value, float) else str(value)] for name, value in facts.items()]


def titled(summary: Mapping[str, Any], title: str) -> str:
    """The title, with a warning where the test part chose."""
    return f"{title} (selected on test)" if summary["selected_on_test"] else title


def _stem(name: str) -> str:
    return name.rsplit(".", 1)[0].replace("_", " ")


def _folds(summary: Mapping[str, Any]) -> list[int]:
    return sorted({run["fold"] for run in summary["runs"]})


def _fold_name(summary: Mapping[str, Any], fold: int) -> str:
    return summary["fold_names"].get(str(fold), f"fold {fold}")


def label_of(name: str) -> str:
    """What people call a metric."""
    if name.endswith("_at_threshold"):
        return f"{METRIC_LABELS[name.removesuffix('_at_threshold')]}, own threshold"
    return METRIC_LABELS[name]


def _undefined(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def number(value: Any) -> str:
    """Three digits, or a dash for what is undefined."""
    return DASH if _undefined(value) else f"{value:.3f}"


def interval(low: Any, high: Any) -> str:
    """Two numbers, or a dash."""
    return DASH if _undefined(low) or _undefined(high) else f"{low:.3f} to {high:.3f}"


def rich_table(grid: Grid, title: str) -> Table:
    """A grid for the terminal."""
    header, rows = grid
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for place, name in enumerate(header):
        words = [word for row in [header, *rows] for word in row[place].split()]
        narrowest = max(map(len, words)) if place else None  # a terminal too narrow breaks cells between words only
        table.add_column(name, justify="right" if place else "left", no_wrap=not place, min_width=narrowest)
    for before, cells in zip([None, *rows], rows):
        # A rule above the first control row: what follows is not the model.
        if before and cells[0].startswith("control:") and not before[0].startswith("control:"):
            table.add_section()
        table.add_row(*cells)
    return table


def markdown_table(grid: Grid) -> str:
    """A grid in Markdown."""
    header, rows = grid
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [header, *rows]]
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in [cells[0], rule, *cells[1:]])
