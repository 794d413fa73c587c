"""Trains and cross-validates: `python -m mil_jax.train --config configs/abmil.py`.

All runs (folds x seeds) are trained as one program. Without `data.features` or `data.shards` the embedded digits cohort is used,
with the `demo` part of the config.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from mil_jax import results
from mil_jax.config import help_text, parse
from mil_jax.console import STOPPED_BY_SIGTERM, console, run_command, say
from mil_jax.overview import describe_experiment, notes_on_data
from mil_jax.reports import tables, targets
from mil_jax.reports.final_summary import write_final_summary
from mil_jax.reports.summary import write_summary
from mil_jax.session import define_flags, open_folder, prepared, progress_of, show_config, training_error
from mil_jax.training import processes
from mil_jax.training.engine import Stopped
from mil_jax.training.engine_types import FitResult
from mil_jax.training.experiment import Experiment, train
from mil_jax.training.final_model import final_settings, is_final, leave_validation
from mil_jax.training.nonfinite import NotFinite
from mil_jax.training.run_folder import RunFolder

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
    if show_config(config, values):
        return 0
    started = time.monotonic()
    name = config.run or f"runs/{config.name}"
    experiment = prepared(config, values, name)
    describe_experiment(experiment, demo, everything=values.check)
    if values.check:
        return 0
    folder = open_folder(experiment, values, name, config.to_dict(), compiling=True)
    if folder is None:
        return 0
    with progress_of(experiment, folder) as listener:
        try:
            result = train(experiment, folder, listener)
        except Stopped:
            say(f"Stopped; the state is saved. Go on with --resume --config.run={folder.path}")
            return STOPPED_BY_SIGTERM
        except NotFinite as found:
            raise training_error(experiment, found) from found
    with processes.first_before_others():
        if processes.is_first():
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
    facts = results.facts(experiment, folder, history, result, seconds)
    history = [row for row in history if row["phase"] == history[-1]["phase"]]  # the curves are of the last stage
    common: dict[str, Any] = {"title": results.title(experiment), "notes": notes_on_data(experiment), "facts": facts}
    with console.status("looking at the features: what they are, and whether the parts share any"):
        shared = results.leave_for_evaluation(experiment, folder)
    said = [*results.failures(experiment, result), *results.probe_notes(experiment, result)]
    conduct = results.conduct(experiment, said, shared)
    predictions = results.predictions(experiment, result)
    with console.status("predictions, intervals and figures"):
        if experiment.several:
            reports = [
                targets.TargetReport(
                    target.name,
                    target.task,
                    target.class_counts,
                    results.constant_answers(target),
                    results.fold_names(target),
                )
                for target in experiment.targets
            ]
            summary = targets.write_target_summaries(
                folder, reports, predictions, history, conduct, experiment.left_out, **common
            )
        else:
            target = experiment.targets[0]
            summary = write_summary(
                folder,
                task=target.task,
                predictions=predictions,
                history=history,
                constants=results.constant_answers(target),
                conduct=conduct,
                fold_names=results.fold_names(target),
                **common,
            )
    console.print((targets if experiment.several else tables).console_report(summary), soft_wrap=False)


def _report_final(
    experiment: Experiment, folder: RunFolder, result: FitResult, notes: Sequence[str], seconds: float
) -> None:
    """Writes the summary of the final model, which has no part to be measured on."""
    history = folder.read_metrics()
    facts = results.facts(experiment, folder, history, result, seconds)
    shared = results.leave_for_evaluation(experiment, folder)
    leave_validation(experiment.config, folder)
    summary = write_final_summary(
        folder,
        history=[row for row in history if row["phase"] == history[-1]["phase"]],
        statements=[*notes, *results.conduct(experiment, results.failures(experiment, result), shared).notes],
        title=results.title(experiment),
        notes=notes_on_data(experiment),
        facts=facts,
    )
    for line in summary["statements"]:
        say(line)


if __name__ == "__main__":
    run_command(main)
