"""Trains and cross-validates: `python -m mil_jax.train --config configs/abmil.py`.

All runs (folds x seeds) are trained as one program. Without `data.features` or `data.shards` the embedded digits cohort is used,
with the `demo` part of the config.
"""

from __future__ import annotations

import signal
import time
from typing import Any

import numpy as np
import pandas as pd
from absl import flags
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mil_jax.config import ConfigDict, parse
from mil_jax.console import console, frame_table, run_command, say
from mil_jax.data.check import describe
from mil_jax.data.splits import TEST, TRAIN
from mil_jax.reports.loggers import open_loggers
from mil_jax.reports.predictions import predictions_table
from mil_jax.reports.statements import Conduct
from mil_jax.reports.summary import write_summary
from mil_jax.reports.tables import console_report
from mil_jax.training.devices import use_one_device_per_core
from mil_jax.training.engine import FitResult, Stopped
from mil_jax.training.experiment import FREE_ON_RESUME, Experiment, prepare, stratum, train
from mil_jax.training.run_folder import RunFolder

EXAMPLE = """examples:
  python -m mil_jax.train --config configs/abmil.py
  python -m mil_jax.train --config configs/abmil.py --config.data.features=FEATURES --config.data.labels=labels.csv \\
      --config.data.target=subtype --config.train.num_seeds=5 --config.run=runs/subtype
  python -m mil_jax.train --config configs/abmil.py ... --check      stop before training: what matched, leaks, bag sizes, plan
"""


def define_flags(values: flags.FlagValues) -> None:
    """The command's own flags; settings are `--config.*`."""
    flags.DEFINE_bool("check", False, "stop before training and print what was found", flag_values=values)
    flags.DEFINE_bool("resume", False, "go on with the run that is in the run folder", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "move the run that is in the run folder aside (PATH.old)", flag_values=values)
    flags.DEFINE_bool("strict", False, "make every exclusion of a slide or label an error", flag_values=values)


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit code."""
    config, values, demo = parse(arguments, define_flags)
    if values.check and (values.resume or values.overwrite):
        say("--check trains nothing: --resume and --overwrite have no effect")
    use_one_device_per_core()
    _set_precision(config)
    started = time.time()
    experiment = prepare(config, strict=values.strict)
    if not (config.data.features or config.data.shards):
        say(
            "No data is named (data.features or data.shards): training on the embedded digits cohort with the config's demo part."
        )
        for line in demo:
            say(f"  demo: {line}")
    _describe(experiment, everything=values.check)
    if values.check:
        return 0
    name = config.run or f"runs/{config.name}"
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
    folder.write_table("excluded.csv", pd.concat([experiment.cohort.excluded, experiment.splits.excluded]))
    with _Listener(experiment, folder, config) as listener:
        try:
            result = train(experiment, folder, listener)
        except Stopped:
            say(f"Stopped; the state is saved. Go on with --resume --config.run={folder.path}")
            return 128 + signal.SIGTERM
    _report(experiment, folder, result, listener, time.time() - started)
    say(f"Everything is in {folder.path}: summary.md, predictions.csv, figures/, checkpoints/.")
    return 0


def _set_precision(config: ConfigDict) -> None:
    import jax

    if config.train.matmul_precision != "default":
        jax.config.update("jax_default_matmul_precision", config.train.matmul_precision)


def _describe(experiment: Experiment, everything: bool) -> None:
    """What matched and what is planned; with `everything` also the tables of --check."""
    cohort, ladder = experiment.cohort, experiment.ladder
    for line in [*experiment.shards.notes, *cohort.report, *experiment.splits.report]:
        say(line)
    if everything:
        description = describe(
            cohort, stratum(experiment.task, experiment.targets), experiment.task.classes, experiment.splits
        )
        for line in description.sentences:
            say(line)
        for title, table in description.tables.items():
            if len(table):
                console.print(frame_table(title.replace("_", " "), table))
    sizes = cohort.bags["num_instances"].to_numpy()
    num_bytes = sum(experiment.shards.num_bytes(int(i)) for slides in cohort.slides for i in slides)
    say(
        f"{len(sizes)} bags, {sizes.sum():,} instances ({num_bytes / 2**20:,.1f} MiB, held in memory); "
        f"{len(ladder.lengths)} bucket lengths ({', '.join(map(str, ladder.lengths))}), {ladder.waste:.1%} padding"
    )
    folds, seeds = len(experiment.splits.names), experiment.config.train.num_seeds
    train_bags = int((experiment.splits.parts == TRAIN).sum(axis=1).max())
    say(
        f"{folds * seeds} runs (folds {folds} x seeds {seeds}), at most {experiment.config.train.epochs} epochs of up to "
        f"{train_bags} training bags each; {2 * len(ladder.lengths) + 1} programs to compile at most"
    )


class _Listener:
    """Shows progress, writes metrics.jsonl, and asks to stop on SIGTERM."""

    def __init__(self, experiment: Experiment, folder: RunFolder, config: ConfigDict) -> None:
        self.experiment, self.folder = experiment, folder
        self.loggers = open_loggers(folder, tensorboard=config.train.tensorboard, wandb=config.train.wandb)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("bags, {task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=console, transient=True)
        training = (experiment.splits.parts == TRAIN).sum(axis=1)
        self.bags_per_epoch = int(sum(training[replica.fold] for replica in experiment.plan.replicas))
        self.stopped = False
        self.bags_done = 0
        self.seconds = 0.0

    def __enter__(self) -> _Listener:
        self.before = signal.signal(signal.SIGTERM, self._stop)
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        signal.signal(signal.SIGTERM, self.before)
        self.loggers.close()

    def _stop(self, *_: object) -> None:
        self.stopped = True

    def phase(self, name: str, epoch: int, epochs: int) -> None:
        self.folder.truncate_metrics(epoch - 1)
        self.begun = time.monotonic()
        total = self.bags_per_epoch * epochs
        self.task = self.bar.add_task(name, total=total, completed=epoch * self.bags_per_epoch, rate="compiling")
        self.epochs = epochs
        if epoch:
            say(f"Resumed at epoch {epoch + 1} of {epochs}.")

    def steps(self, count: int) -> None:
        self.bags_done += count * self.experiment.config.train.batch_size
        self.seconds = time.monotonic() - self.begun
        self.bar.update(
            self.task,
            advance=count * self.experiment.config.train.batch_size,
            rate=f"{self.bags_done / max(self.seconds, 1e-9):,.0f} bags/s",
        )

    def epoch(self, rows: list[dict[str, Any]]) -> None:
        names = self.experiment.splits.names
        self.folder.append_metrics({**row, "fold_name": names[row["fold"]]} for row in rows)
        self.loggers.log(rows)
        epoch = rows[0]["epoch"] + 1
        scores = {
            key: np.mean([row[key] for row in rows]) for key in ("train_loss", "val_loss", "val_auc") if key in rows[0]
        }
        shown = ", ".join(f"{key.replace('_', ' ')} {value:.3f}" for key, value in scores.items())
        self.bar.update(
            self.task,
            completed=epoch * self.bags_per_epoch,
            description=f"epoch {epoch}/{self.epochs}, {len(rows)} runs, {shown}",
        )

    def stop_requested(self) -> bool:
        return self.stopped


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
            tables.append(
                predictions_table(
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
            )
    return pd.concat(tables, ignore_index=True)


def _report(experiment: Experiment, folder: RunFolder, result: FitResult, listener: _Listener, seconds: float) -> None:
    """Writes predictions, summary and figures, and shows the result."""
    config, splits, ladder = experiment.config, experiment.splits, experiment.ladder
    training = {fold: experiment.targets[parts == TRAIN] for fold, parts in enumerate(splits.parts)}
    conduct = Conduct(
        protocol=config.train.protocol,
        select=experiment.selection.select,
        selected_on_test=experiment.selection_part == TEST,
        notes=tuple(_notes(experiment)),
    )
    facts = {
        "runs": len(experiment.plan.replicas),
        "bucket lengths": ", ".join(map(str, ladder.lengths)),
        "padding": f"{ladder.waste:.1%}",
        "compilations": result.facts["compilations"],
        "seconds of training, compilation included": listener.seconds,
        "bags per second": listener.bags_done / max(listener.seconds, 1e-9),
        "seconds in all": seconds,
    }
    summary = write_summary(
        folder,
        task=experiment.task,
        predictions=_predictions(experiment, result),
        history=folder.read_metrics(),
        training_frequencies={fold: experiment.task.frequencies(targets) for fold, targets in training.items()},
        conduct=conduct,
        title=f"{config.name}: {config.data.target or 'digits'}",
        fold_names={fold: f"fold {name}" for fold, name in enumerate(splits.names)},
        notes=[*experiment.shards.notes, *experiment.cohort.report, *splits.report],
        facts=facts,
    )
    console.print(console_report(summary), soft_wrap=False)


def _notes(experiment: Experiment) -> list[str]:
    """What was known before training and has to stand under the result."""
    config, notes = experiment.config, [line for line in experiment.splits.report if line.startswith("leak")]
    if config.train.permute_labels:
        notes.append("A control: the labels were permuted among the bags; every metric should be at chance.")
    if experiment.fallback:
        notes.append(
            "The validation loss chose the epoch, not the AUC: a fold has fewer than 10 validation cases of a class."
        )
    if not (config.data.features or config.data.shards):
        notes.append(
            "Embedded digits with the config's demo part (small widths, few epochs); name data to train in earnest."
        )
    return notes


if __name__ == "__main__":
    run_command(main)
