"""The end of a training: everything that a finished run leaves for people, in its run folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
from rich.console import Group
from rich.text import Text

from mil_jax.engine.types import FitResult
from mil_jax.experiment.experiment import Experiment
from mil_jax.experiment.final_model import final_settings, is_final, leave_validation
from mil_jax.reports import tables
from mil_jax.reports.run import collect, multi_target
from mil_jax.reports.run.data_notes import notes_on_data
from mil_jax.reports.run.summary import write_final_summary, write_summary
from mil_jax.run_folder.folder import RunFolder


def write_report(experiment: Experiment, folder: RunFolder, result: FitResult, seconds: float) -> dict[str, Any]:
    """Writes predictions, summary and figures; the content of summary.json, which marks the run as complete. seconds: of the session."""
    history = folder.read_metrics()
    common: dict[str, Any] = {
        "title": collect.title(experiment),
        "notes": notes_on_data(experiment),
        "facts": collect.facts(experiment, folder, history, result, seconds),
        "history": [row for row in history if row["phase"] == history[-1]["phase"]],  # curves are of the last stage
    }
    shared = collect.write_evaluation_metadata(experiment, folder)
    protocol = collect.run_protocol(experiment, collect.notes_on_runs(experiment, result), shared)
    asked = ConfigDict(folder.config)  # what was chosen automatically is not in it
    if is_final(asked):
        leave_validation(asked, folder)
        notes = final_settings(asked).notes
        return write_final_summary(folder, statements=[*notes, *protocol.notes], **common)
    predictions = collect.predictions(experiment, result)
    reports = collect.target_reports(experiment)
    if len(reports) > 1:
        return multi_target.write_target_summaries(
            folder, reports, predictions, protocol=protocol, left_out=experiment.left_out, **common
        )
    return write_summary(
        folder,
        task=reports[0].task,
        predictions=predictions,
        constants=reports[0].constants,
        protocol=protocol,
        fold_names=reports[0].fold_names,
        **common,
    )


def console_report(summary: Mapping[str, Any]) -> Group:
    """The content of summary.json for a terminal."""
    if summary.get("final"):
        return Group(*(Text(line) for line in summary["statements"]))
    return (multi_target if "targets" in summary else tables).console_report(summary)
