"""Trains and cross-validates: `python -m mil_jax.train --config configs/abmil.py`.

All runs (folds x seeds) are trained as one program. Without `data.features` or `data.shards` the embedded digits cohort is used,
with the `demo` part of the config.
"""

from __future__ import annotations

import time
from typing import Any

import jax
from absl import flags

from mil_jax import results
from mil_jax.config import ConfigDict, help_text, parse
from mil_jax.console import STOPPED_BY_SIGTERM, console, run_command, say
from mil_jax.overview import describe_experiment, notes_on_data
from mil_jax.progress import TrainingProgress, conversion_progress
from mil_jax.reports import tables, targets
from mil_jax.reports.loggers import require_packages
from mil_jax.reports.summary import write_summary
from mil_jax.training.devices import use_one_device_per_core
from mil_jax.training.engine import FitResult, Stopped
from mil_jax.training.experiment import FREE_ON_RESUME, Experiment, prepare, train
from mil_jax.training.run_folder import RunFolder, is_run_folder, require_usable
from mil_jax.training.targets import splits_table

ABOUT = """Trains and cross-validates an aggregator; everything that comes of it is in one run folder.

usage: python -m mil_jax.train --config FILE [--config.SETTING=VALUE ...] [flags]

examples:
  python -m mil_jax.train --config configs/abmil.py
  python -m mil_jax.train --config configs/abmil.py --config.data.features=FEATURES --config.data.labels=labels.csv \\
      --config.data.target=subtype --config.train.num_seeds=5 --config.run=runs/subtype
  python -m mil_jax.train --config configs/abmil.py ... --check"""


def define_flags(values: flags.FlagValues) -> None:
    """The command's own flags; settings are `--config.*`."""
    flags.DEFINE_bool(
        "check",
        False,
        "stop before training: show what matched, what was excluded, leaks, the plan",
        flag_values=values,
    )
    flags.DEFINE_bool("resume", False, "go on with the run that is in the run folder", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "move the run that is in the run folder aside (PATH.old)", flag_values=values)
    flags.DEFINE_bool("strict", False, "make every exclusion of a slide or label an error", flag_values=values)


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    help_asked_for = help_text(arguments, define_flags, ABOUT)
    if help_asked_for:
        say(help_asked_for)
        return 0
    config, values, demo = parse(arguments, define_flags)
    if values.check and (values.resume or values.overwrite):
        say("--check trains nothing: --resume and --overwrite have no effect")
    require_packages(tensorboard=config.train.tensorboard, wandb=config.train.wandb)
    use_one_device_per_core()
    _set_precision(config)
    started = time.monotonic()
    name = config.run or f"runs/{config.name}"
    if not values.check:
        require_usable(name, resume=values.resume, overwrite=values.overwrite)
    resuming = values.resume and not values.check and is_run_folder(name)
    with conversion_progress() as progress:
        choices = RunFolder.open(name).choices if resuming else None
        experiment = prepare(config, strict=values.strict, choices=choices, progress=progress)
    describe_experiment(experiment, demo, everything=values.check)
    if values.check:
        return 0
    if not resuming:
        _read(experiment)  # a damaged shard is found before there is a run folder
    folder = RunFolder.create(
        name,
        config.to_dict(),
        experiment.fingerprints,
        resume=values.resume,
        overwrite=values.overwrite,
        free=FREE_ON_RESUME,
    )
    if folder.moved:
        say(f"The run that was in {folder.path} is now in {folder.moved}.")
    if folder.is_complete:
        say(f"The run in {folder.path} has ended; nothing is left to do. Its results: {folder.path / 'summary.md'}")
        return 0
    folder.write_table("splits.csv", splits_table(experiment.targets, experiment.cohort))
    folder.write_table("excluded.csv", experiment.excluded)
    if folder.resumed:
        say(f"Going on with the run in {folder.path}.")
        _read(experiment)
    with TrainingProgress(experiment, folder) as listener:
        try:
            result = train(experiment, folder, listener)
        except Stopped:
            say(f"Stopped; the state is saved. Go on with --resume --config.run={folder.path}")
            return STOPPED_BY_SIGTERM
    _report(experiment, folder, result, time.monotonic() - started)
    say(f"Everything is in {folder.path}: summary.md, predictions.csv, figures/, checkpoints/.")
    return 0


def _set_precision(config: ConfigDict) -> None:
    if config.train.matmul_precision != "default":
        jax.config.update("jax_default_matmul_precision", config.train.matmul_precision)


def _read(experiment: Experiment) -> None:
    """Reads the bags into memory."""
    with console.status(f"reading {len(experiment.cohort.bags)} bags"):
        _ = experiment.data


def _report(experiment: Experiment, folder: RunFolder, result: FitResult, seconds: float) -> None:
    """Writes predictions, summary and figures, and shows the result."""
    history = folder.read_metrics()
    facts = results.facts(experiment, folder, history, result, seconds)
    common: dict[str, Any] = {"title": results.title(experiment), "notes": notes_on_data(experiment), "facts": facts}
    conduct, predictions = results.conduct(experiment, result), results.predictions(experiment, result)
    with console.status("predictions, intervals and figures"):
        if experiment.several:
            reports = [
                targets.TargetReport(
                    target.name,
                    target.task,
                    target.class_counts,
                    results.training_frequencies(target),
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
                training_frequencies=results.training_frequencies(target),
                conduct=conduct,
                fold_names=results.fold_names(target),
                **common,
            )
    console.print((targets if experiment.several else tables).console_report(summary), soft_wrap=False)


if __name__ == "__main__":
    run_command(main)
