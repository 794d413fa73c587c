"""Trains and cross-validates: `python -m mil_jax.train --config configs/abmil.py`.

All runs (folds x seeds) are trained as one program. Without `data.features` or `data.shards` the embedded digits cohort is used,
with the `demo` part of the config.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from mil_jax.cli.console import STOPPED_BY_SIGTERM, console, run_command, say
from mil_jax.cli.overview import describe_experiment
from mil_jax.cli.session import define_flags, open_folder, prepared, progress_of, training_error
from mil_jax.config import help_text, parse
from mil_jax.engine import distributed
from mil_jax.engine.engine import TrainingInterrupted
from mil_jax.engine.nan_debugging import NotFinite
from mil_jax.engine.types import FitResult
from mil_jax.experiment.experiment import Experiment
from mil_jax.experiment.final_model import final_settings, is_final, leave_validation
from mil_jax.experiment.fitter import fitter_of
from mil_jax.experiment.run import train
from mil_jax.reports.run import collect, multi_target
from mil_jax.reports.run.data_notes import notes_on_data
from mil_jax.reports.run.summary import write_final_summary
from mil_jax.run_folder.folder import RunFolder

ABOUT = """Trains and cross-validates an aggregator; everything that comes of it is in one run folder.

usage: python -m mil_jax.train --config FILE [--config.SETTING=VALUE ...] [flags]

examples:
  python -m mil_jax.train --config configs/abmil.py
  python -m mil_jax.train --config configs/abmil.py --config.data.features=FEATURES --config.data.labels=labels.csv \\
      --config.data.target=subtype --config.train.num_seeds=5 --config.run=runs/subtype
  python -m mil_jax.train --config configs/abmil.py ... --check"""


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    help_asked_for = help_text(arguments, define_flags, ABOUT)
    if help_asked_for:
        say(help_asked_for)
        return 0
    config, values, demo = parse(arguments, define_flags)
    started = time.monotonic()
    name = config.run or f"runs/{config.name}"
    experiment = prepared(config, values, name)
    describe_experiment(experiment, demo, everything=values.check)
    if values.check:
        return 0
    fitter = fitter_of(experiment)
    folder = open_folder(fitter, values, name, config.to_dict(), compiling=True)
    if folder is None:
        return 0
    with progress_of(experiment, folder) as listener:
        try:
            result = train(fitter, folder, listener)
        except TrainingInterrupted:
            say(f"Stopped; the state is saved. Continue with --resume --config.run={folder.path}")
            return STOPPED_BY_SIGTERM
        except NotFinite as found:
            raise training_error(experiment, found) from found
    with distributed.first_before_others():
        if distributed.is_first():
            seconds = time.monotonic() - started
            if is_final(config):
                _report_final(experiment, folder, result, final_settings(config).notes, seconds)
            else:
                _report(experiment, folder, result, seconds)
    written = (
        "summary.md, figures/, checkpoints/"
        if is_final(config)
        else "summary.md, predictions.csv, figures/, checkpoints/"
    )
    say(f"Everything is in {folder.path}: {written}.")
    return 0


def _report(experiment: Experiment, folder: RunFolder, result: FitResult, seconds: float) -> None:
    """Writes predictions, summary and figures, and shows the result."""
    history = folder.read_metrics()
    facts = collect.facts(experiment, folder, history, result, seconds)
    history = [row for row in history if row["phase"] == history[-1]["phase"]]  # the curves are of the last stage
    common: dict[str, Any] = {"title": collect.title(experiment), "notes": notes_on_data(experiment), "facts": facts}
    with console.status("looking at the features: what they are, and whether the parts share any"):
        shared = collect.write_evaluation_metadata(experiment, folder)
    protocol = collect.run_protocol(experiment, collect.notes_on_runs(experiment, result), shared)
    predictions = collect.predictions(experiment, result)
    with console.status("predictions, intervals and figures"):
        written = multi_target.write_reports(
            folder,
            collect.target_reports(experiment),
            predictions,
            history,
            protocol,
            experiment.left_out,
            **common,
        )
    console.print(written.console, soft_wrap=False)


def _report_final(
    experiment: Experiment, folder: RunFolder, result: FitResult, notes: Sequence[str], seconds: float
) -> None:
    """Writes the summary of the final model, which has no part to be measured on."""
    history = folder.read_metrics()
    facts = collect.facts(experiment, folder, history, result, seconds)
    shared = collect.write_evaluation_metadata(experiment, folder)
    leave_validation(experiment.config, folder)
    summary = write_final_summary(
        folder,
        history=[row for row in history if row["phase"] == history[-1]["phase"]],
        statements=[*notes, *collect.run_protocol(experiment, collect.notes_on_runs(experiment, result), shared).notes],
        title=collect.title(experiment),
        notes=notes_on_data(experiment),
        facts=facts,
    )
    for line in summary["statements"]:
        say(line)


if __name__ == "__main__":
    run_command(main)
