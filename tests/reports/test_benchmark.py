"""The table of a benchmark: one row for each task or label column, and none while a run has not ended."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from mil_jax.errors import RunFolderError
from mil_jax.reports.benchmark import MethodOnTask, console_report, write_benchmark
from mil_jax.run_folder.folder import RunFolder


def summary(auc: float, *, undefined: int = 0, on_test: bool = False, leaks: bool = False) -> dict[str, Any]:
    """What is read of the summary of one label column."""
    metric = {"mean": auc, "sd_folds": 0.05, "worst": 0.5, "estimate": auc, "low": 0.4, "high": 0.9, "sd_seeds": None}
    return {
        "main_metric": "auc",
        "headline": ["accuracy", "auc"],
        "num_bags": 90,
        "num_patients": 60,
        "selected_on_test": on_test,
        "runs": [{"fold": fold, "seed": 0, "auc": auc} for fold in range(3)],
        "metrics": {
            "auc": {**metric, "undefined_folds": undefined},
            "accuracy": {**metric, "mean": 0.6, "undefined_folds": 0},
        },
        "statements": ["Protocol clean."],
        "leak_free": {"auc": {"mean": 0.5}} if leaks else None,
    }


def ended(path: Path, **content: Any) -> Path:
    """A run folder with that summary."""
    folder = RunFolder.create(path, {}, {})
    columns = list(content.get("targets", {"label": {}}))
    folder.write_json(
        "tasks.json",
        [{"label_column": name, "name": "classification", "fields": {"classes": ["0", "1"]}} for name in columns],
    )
    folder.write_json("summary.json", {"complete": True, **content})
    return path


def test_label_columns_of_one_run_are_tasks_and_every_metric_has_a_table(tmp_path):
    runs = []
    for method, auc in (("ABMIL", 0.8), ("mean pooling", 0.7)):
        targets = {"EGFR": summary(auc), "KRAS": summary(auc - 0.1, undefined=1)}
        folder = ended(tmp_path / method, targets=targets, statements=["Protocol clean."])
        runs.append(MethodOnTask(method, "", folder))
    content = write_benchmark(tmp_path, "genes", "clean", runs)
    assert content["tasks"] == ["EGFR", "KRAS"]
    text = (tmp_path / "summary.md").read_text()
    assert text.index("## AUC") < text.index("## accuracy")  # what leads all tables leads here
    assert "| KRAS (90) | 0.700 +- 0.050 | 0.600 +- 0.050 |" in text
    assert "left out of the mean: ABMIL on KRAS, mean pooling on KRAS." in text
    assert text.count("Protocol clean.") == 1
    results = pd.read_csv(tmp_path / "results.csv")
    assert len(results) == 8
    assert results["selected_on"].isna().all()


def test_a_run_that_chose_on_its_test_part_marks_every_table(tmp_path):
    folder = ended(tmp_path / "run", **summary(0.9, on_test=True, leaks=True))
    content = write_benchmark(tmp_path, "genes", "pathgene", [MethodOnTask("ABMIL", "A_EGFR_2", folder)])
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(console_report(content))
    shown = console.export_text()
    text = (tmp_path / "summary.md").read_text()
    assert "The published folds of A_EGFR_2 leak" in text
    assert "# genes (selected on test), protocol pathgene" in text
    assert text.count("(selected on test)") == 3
    assert "AUC (selected on test)" in shown
    assert "A_EGFR_2 (90)" in shown
    assert set(pd.read_csv(tmp_path / "results.csv")["selected_on"]) == {"test"}


def test_without_the_end_of_every_run_there_is_no_table(tmp_path):
    done = ended(tmp_path / "done", **summary(0.9))
    begun = RunFolder.create(tmp_path / "begun", {}, {}).path
    with pytest.raises(RunFolderError, match="begun: the run has not ended"):
        write_benchmark(tmp_path, "genes", "clean", [MethodOnTask("A", "", done), MethodOnTask("B", "", begun)])
    assert not (tmp_path / "summary.md").exists()
