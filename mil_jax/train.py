"""Trains and cross-validates: `python -m mil_jax.train --config configs/abmil.py`.

All runs (folds x seeds) are trained as one program. Without `data.features` or `data.shards` the embedded digits cohort is used,
with the `demo` part of the config.
"""

from __future__ import annotations

import math
import time

import jax
import numpy as np
import pandas as pd
from absl import flags

from mil_jax.config import ConfigDict, help_text, parse
from mil_jax.console import STOPPED_BY_SIGTERM, console, frame_table, run_command, say
from mil_jax.data.check import describe
from mil_jax.data.split_makers import PART_NAMES
from mil_jax.data.splits import TEST, TRAIN
from mil_jax.interop.feature_files import counted
from mil_jax.progress import TrainingProgress, conversion_progress
from mil_jax.reports.loggers import require_packages
from mil_jax.reports.predictions import predictions_table
from mil_jax.reports.statements import Conduct
from mil_jax.reports.summary import write_summary
from mil_jax.reports.tables import console_report
from mil_jax.training.devices import use_compilation_cache, use_one_device_per_core
from mil_jax.training.engine import FitResult, Stopped
from mil_jax.training.experiment import (
    FREE_ON_RESUME,
    Experiment,
    cache_folder,
    parameter_shapes,
    prepare,
    stratum,
    train,
)
from mil_jax.training.run_folder import RunFolder, is_run_folder, require_usable

ABOUT = """Trains and cross-validates an aggregator; everything that comes of it is in one run folder.

usage: python -m mil_jax.train --config FILE [--config.SETTING=VALUE ...] [flags]

examples:
  python -m mil_jax.train --config configs/abmil.py
  python -m mil_jax.train --config configs/abmil.py --config.data.features=FEATURES --config.data.labels=labels.csv \\
      --config.data.target=subtype --config.train.num_seeds=5 --config.run=runs/subtype
  python -m mil_jax.train --config configs/abmil.py ... --check"""
CLASS_COLUMNS_WIDTH, FOLD_COLUMN_WIDTH = 24, 11  # of the table that --check shows


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
    use_compilation_cache(cache_folder(config))
    _set_precision(config)
    started = time.monotonic()
    name = config.run or f"runs/{config.name}"
    if not values.check:
        require_usable(name, resume=values.resume, overwrite=values.overwrite)
    resuming = values.resume and not values.check and is_run_folder(name)
    with conversion_progress() as progress:
        choices = RunFolder.open(name).choices if resuming else None
        experiment = prepare(config, strict=values.strict, choices=choices, progress=progress)
    if experiment.embedded:
        say(
            "No data is named (data.features or data.shards): training on the embedded digits cohort with the config's demo part."
        )
        for line in demo:
            say(f"  demo: {line}")
    _describe(experiment, everything=values.check)
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
    experiment.splits.to_csv(folder.path / "splits.csv", experiment.cohort)
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


def _describe(experiment: Experiment, everything: bool) -> None:
    """What matched and what is planned; with `everything` also the tables of --check."""
    cohort, ladder, config = experiment.cohort, experiment.ladder, experiment.config
    for line in _notes_on_data(experiment):
        say(line)
    if everything:
        targets = stratum(experiment.task, experiment.targets)
        for title, table in describe(cohort, targets, experiment.task.classes, experiment.splits).tables.items():
            if title == "excluded":
                table = experiment.excluded.groupby("reason").size().rename("slides").reset_index()
            if title == "counts":
                title, table = "bags in training/validation/test, by fold", _counts_by_fold(table)
            if len(table):
                console.print(frame_table(title.replace("_", " "), table))
    sizes = cohort.bags["num_instances"].to_numpy()
    say(experiment.residency.note)
    say(
        f"{counted(len(sizes), 'bag')}, {sizes.sum():,} instances; "
        f"{counted(len(ladder.lengths), 'bucket length')} ({', '.join(map(str, ladder.lengths))}), {ladder.waste:.1%} padding"
    )
    folds, seeds = len(experiment.splits.names), config.train.num_seeds
    train_bags = int((experiment.splits.parts == TRAIN).sum(axis=1).max())
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameter_shapes(experiment)))
    say(
        f"{counted(folds * seeds, 'run')} ({counted(folds, 'fold')} x {counted(seeds, 'seed')}) of {parameters:,} parameters, "
        f"at most {counted(config.train.epochs, 'epoch')} of up to {train_bags} training bags each; "
        f"at most {2 * len(ladder.lengths) + 1} programs to compile"
    )
    say(_monitor(experiment))


def _counts_by_fold(counts: pd.DataFrame) -> pd.DataFrame:
    """Rows (fold, part, class, site, bags) -> a row per class and site, a column per fold, "train/val/test" in each cell."""
    folds = list(dict.fromkeys(counts["fold"]))
    shown = folds[: max(1, (console.width - CLASS_COLUMNS_WIDTH) // FOLD_COLUMN_WIDTH)]
    per_class = counts.groupby(["fold", "part", "class"], as_index=False)["bags"].sum().assign(site="all")
    both = pd.concat([per_class, counts]) if (counts["site"] != "").any() else per_class
    bags = both.set_index(["class", "site", "fold", "part"])["bags"].to_dict()
    rows = []
    for name in dict.fromkeys(counts["class"]):
        for site in sorted(
            {site for of_class, site, _, _ in bags if of_class == name}, key=lambda one: (one != "all", one)
        ):
            cells = {
                f"fold {fold}": "/".join(str(bags.get((name, site, fold, part), 0)) for part in PART_NAMES.values())
                for fold in shown
            }
            rows.append({"class": name, "site": site or "unknown", **cells})
    if len(shown) < len(folds):
        say(f"the first {len(shown)} of {len(folds)} folds are shown")
    return pd.DataFrame(rows)


def _notes_on_data(experiment: Experiment) -> list[str]:
    """Sentences on what was converted, matched, excluded and split."""
    shards, cohort, splits = experiment.shards, experiment.cohort, experiment.splits
    described = describe(cohort, stratum(experiment.task, experiment.targets), experiment.task.classes, splits)
    converted = pd.DataFrame(shards.excluded, columns=["slide", "reason"])
    lost = [f"excluded at conversion {len(rows)}: {reason}" for reason, rows in converted.groupby("reason")]
    return [*shards.notes, *lost, *described.sentences]


def _monitor(experiment: Experiment) -> str:
    """What chooses the epoch of each run."""
    select = experiment.selection.select
    if select == "last":
        return "the last epoch of each run is taken"
    chosen_by = {"val_loss": "loss", "val_auc": "AUC"}[select]
    if experiment.selection_part == TEST:
        return f"the epoch is chosen by the {chosen_by} of the TEST part (protocol reference)"
    why = ", not the AUC: a fold has fewer than 10 validation cases of a class" if experiment.fallback else ""
    return f"the epoch is chosen by the validation {chosen_by}{why}"


def _predictions(experiment: Experiment, result: FitResult) -> pd.DataFrame:
    """One row per bag, run and part."""
    bags, splits, tables = experiment.cohort.bags, experiment.splits, []
    leaky = len(splits.leaks) > 0
    # Where the test part chose the epochs, it is the selection part, too: its rows are given once.
    parts = ("test",) if experiment.selection_part == TEST else ("val", "test")
    for r, replica in enumerate(experiment.plan.replicas):
        for part in parts:
            if part not in result.logits[r]:
                continue
            logits = result.logits[r][part]
            numbers = result.bags[r][part]
            order = np.argsort(numbers)
            rows = numbers[order]
            table = predictions_table(
                experiment.task,
                bag_ids=bags["bag_id"].to_numpy()[rows],
                patient_ids=bags["patient_id"].to_numpy()[rows],
                num_instances=bags["num_instances"].to_numpy()[rows],
                fold=replica.fold,
                seed=replica.seed,
                part=part,
                targets=experiment.targets[rows],
                probabilities=experiment.task.probabilities(logits[order]),
                leaked=~splits.leak_free[replica.fold, rows] if leaky and part == "test" else None,
            )
            table.insert(table.columns.get_loc("fold") + 1, "fold_name", splits.names[replica.fold])
            tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _report(experiment: Experiment, folder: RunFolder, result: FitResult, seconds: float) -> None:
    """Writes predictions, summary and figures, and shows the result."""
    config, splits, ladder = experiment.config, experiment.splits, experiment.ladder
    training = {fold: experiment.targets[parts == TRAIN] for fold, parts in enumerate(splits.parts)}
    conduct = Conduct(
        protocol=config.train.protocol,
        select=experiment.selection.select,
        selected_on_test=experiment.selection_part == TEST,
        notes=tuple(_notes(experiment, result)),
    )
    history = folder.read_metrics()
    bags = sum(row["steps"] for row in history) * config.train.batch_size
    training_seconds = history[-1]["seconds"]
    sessions = len(folder.read_json("environment.json")["sessions"])
    facts = {
        "runs": len(experiment.plan.replicas),
        "bucket lengths": ", ".join(map(str, ladder.lengths)),
        "padding": f"{ladder.waste:.1%}",
        "features": f"{experiment.residency.kind}, {result.facts['feature_bytes'] / 2**30:.3g} GiB of host memory",
        "compilations": result.facts["compilations"],
        "sessions": sessions,
        "seconds of training, compilation included": training_seconds,
        "bags per second": bags / max(training_seconds, 1e-9),
        "seconds in all" if sessions == 1 else "seconds of the last session": seconds,
    }
    with console.status("predictions, intervals and figures"):
        summary = write_summary(
            folder,
            task=experiment.task,
            predictions=_predictions(experiment, result),
            history=history,
            training_frequencies={fold: experiment.task.frequencies(targets) for fold, targets in training.items()},
            conduct=conduct,
            title=f"{config.name}: {'embedded digits' if experiment.embedded else config.data.target}",
            fold_names={fold: f"fold {name}" for fold, name in enumerate(splits.names)},
            notes=_notes_on_data(experiment),
            facts=facts,
        )
    console.print(console_report(summary), soft_wrap=False)


def _notes(experiment: Experiment, result: FitResult) -> list[str]:
    """What does not follow from the predictions and has to stand under the result."""
    config, notes = experiment.config, [line for line in experiment.splits.report if line.startswith("leak")]
    if config.train.permute_labels:
        notes.append("A control: the labels were permuted among the bags; every metric should be at chance.")
    for replica, epoch in zip(experiment.plan.replicas, result.progress.failed.tolist()):
        if epoch >= 0:
            run = f"fold {experiment.splits.names[replica.fold]}, seed {replica.seed}"
            kept = "its best epoch counts" if experiment.selection.select != "last" else "it has no usable prediction"
            notes.append(
                f"Run {run}: the loss was no longer finite in epoch {epoch + 1}; it was stopped there, and {kept}."
            )
    if experiment.fallback:
        notes.append(
            "The validation loss chose the epoch, not the AUC: a fold has fewer than 10 validation cases of a class."
        )
    if experiment.embedded:
        notes.append(
            "Embedded digits with the config's demo part (small widths, few epochs); name data to train in earnest."
        )
    return notes


if __name__ == "__main__":
    run_command(main)
