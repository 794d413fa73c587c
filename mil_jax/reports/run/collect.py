"""From what the engine returns to what the reports need: predictions, frequencies, notes and facts of an experiment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mil_jax.data.cohort import covariates
from mil_jax.data.loading.feature_moments import bag_moments
from mil_jax.data.splits.splits import TEST, TRAIN
from mil_jax.data.tables import listed
from mil_jax.engine.types import FitResult
from mil_jax.experiment.chosen_checkpoint import run_task
from mil_jax.experiment.experiment import Experiment
from mil_jax.experiment.fitter import fitter_of
from mil_jax.experiment.targets import Target
from mil_jax.reports.run.leak_report import leak_report
from mil_jax.reports.run.multi_target import TargetReport
from mil_jax.reports.run.statements import RunProtocol
from mil_jax.run_folder import features_json, tasks_json
from mil_jax.run_folder.folder import RunFolder, understood
from mil_jax.tasks.base import METRIC_LABELS
from mil_jax.tasks.predictions_table import predictions_table
from mil_jax.tasks.survival import Survival


def predictions(experiment: Experiment, result: FitResult, chosen: Iterable[int] | None = None) -> pd.DataFrame:
    """One row per bag, run and part; of the runs with the numbers `chosen`, or of all."""
    bags, tables = experiment.cohort.bags, []
    # Where the test part chose the epochs, it is the selection part, too: its rows are given once.
    parts = ("test",) if experiment.selection_part == TEST else ("val", "test")
    for r in range(len(experiment.plan.replicas)) if chosen is None else chosen:
        replica = experiment.plan.replicas[r]
        target, task = experiment.targets[replica.target], run_task(experiment, r, result)
        leaky = len(target.splits.leaks) > 0
        for part in parts:
            if part not in result.logits[r]:
                continue
            logits = result.logits[r][part]
            numbers = result.bags[r][part]
            order = np.argsort(numbers)
            rows = numbers[order]
            table = predictions_table(
                task,
                bag_ids=bags["bag_id"].to_numpy()[rows],
                patient_ids=bags["patient_id"].to_numpy()[rows],
                num_instances=bags["num_instances"].to_numpy()[rows],
                fold=replica.fold,
                seed=replica.seed,
                part=part,
                targets=target.values[rows],
                probabilities=task.probabilities(logits[order]),
                leaked=~target.splits.leak_free[replica.fold, rows] if leaky and part == "test" else None,
            )
            table.insert(table.columns.get_loc("fold") + 1, "fold_name", target.splits.names[replica.fold])
            experiment.columns.add_to(table, replica.target)
            tables.append(table)
    return pd.concat(tables, ignore_index=True)


def constant_answers(target: Target) -> dict[int, np.ndarray]:
    """{fold: [outputs]} the best answer without looking at a bag, from the fold's training part."""
    return {fold: target.task.constant(target.values[parts == TRAIN]) for fold, parts in enumerate(target.splits.parts)}


def fold_names(target: Target) -> dict[int, str]:
    """Of each fold, as tables show it."""
    return {fold: f"fold {name}" for fold, name in enumerate(target.splits.names)}


def target_reports(experiment: Experiment) -> list[TargetReport]:
    """What the summary needs of each target."""
    return [
        TargetReport(target.name, target.task, target.class_counts, constant_answers(target), fold_names(target))
        for target in experiment.targets
    ]


def title(experiment: Experiment) -> str:
    """The recipe and what it predicts."""
    return f"{experiment.config.name}: {'embedded digits' if experiment.embedded else experiment.config.data.target}"


def notes_on_runs(experiment: Experiment, result: FitResult) -> list[str]:
    """A sentence for each run whose loss was no longer finite, and what the fitter says of its runs."""
    failed, best = result.progress.failed.tolist(), result.progress.best_epoch.tolist()
    sentences = []
    for replica, epoch, best_epoch in zip(experiment.plan.replicas, failed, best):
        if epoch >= 0:
            kept = f"epoch {best_epoch + 1}, its best, counts" if best_epoch >= 0 else "it has no usable prediction"
            sentences.append(
                f"Run {experiment.run_name(replica)}: the loss was no longer finite in epoch {epoch + 1}; "
                f"it was stopped there, and {kept}."
            )
    return [*sentences, *fitter_of(experiment).notes(result)]


def write_evaluation_metadata(experiment: Experiment, folder: RunFolder) -> list[str]:
    """Writes tasks.json, features.json and, where there are any, covariates.json, and gives the sentences of the leak report."""
    tasks_json.write(folder, {target.name: target.task for target in experiment.targets})
    bags = bag_moments(experiment.shards, experiment.cohort.slides)
    training = (experiment.parts == TRAIN).any(axis=0)
    moments = features_json.training_moments(bags, training)
    kind = features_json.FeatureKind.of(experiment.shards, np.concatenate(experiment.cohort.slides))
    features_json.write(folder, kind, moments)
    if experiment.covariates:
        folder.write_json(covariates.FILE, covariates.described(experiment.covariates.columns))
    return leak_report(experiment, bags)


def run_protocol(experiment: Experiment, of_runs: Sequence[str] = (), shared: Sequence[str] = ()) -> RunProtocol:
    """How the runs were carried out, with what does not follow from the predictions and has to stand under the result. of_runs: as
    `notes_on_runs` says. shared: the leak report.
    """
    config, notes = experiment.config, []
    for number, target in enumerate(experiment.targets):
        leaks = [line for line in target.splits.report if line.startswith("leak")]
        notes += [experiment.columns.named(number, line, ": ") for line in leaks]
    if config.train.permute_labels:
        notes.append("A control: the labels were permuted among the bags; every metric should be at chance.")
    if isinstance(experiment.task, Survival) and experiment.task.bins_leak:
        notes.append(
            "leak: the bins of survival times are quantiles of the deaths of the whole cohort, test patients included "
            "(task.bins_from=cohort), as in published code."
        )
    if experiment.covariates:
        notes.append(
            f"Not from the slides alone: the classifier reads {listed(experiment.covariates.names, 12)} of the label table beside the "
            "bag's embedding, numbers standardised by each run's training bags."
        )
    notes += [*shared, *of_runs]
    if experiment.initial_weights:
        notes.append(experiment.initial_weights.note)
    if experiment.fallback:
        notes.append(
            f"The validation loss chose the epoch, not the {METRIC_LABELS[experiment.task.main_metric]}: {experiment.task.few_cases}."
        )
    if experiment.embedded:
        notes.append(fitter_of(experiment).embedded_note)
    return RunProtocol(
        protocol=config.train.protocol,
        select=experiment.selection.monitor,
        selected_on_test=experiment.selection_part == TEST,
        order=config.train.order,
        notes=tuple(notes),
    )


def facts(
    experiment: Experiment,
    folder: RunFolder,
    history: Sequence[Mapping[str, Any]],
    result: FitResult,
    seconds: float,
) -> dict[str, Any]:
    """What the runs cost, for the summary."""
    with understood(folder.path / "metrics.jsonl"):
        bags = sum(row["steps"] for row in history) * experiment.config.train.batch_size
        training_seconds = float(history[-1]["seconds"])
    sessions = len(folder.read_json("environment.json")["sessions"])
    return {
        "runs": len(experiment.plan.replicas),
        "bucket lengths": ", ".join(map(str, experiment.ladder.lengths)),
        "padding": f"{experiment.ladder.waste:.1%}",
        "features": f"{experiment.residency.kind}, {result.facts['feature_bytes'] / 2**30:.3g} GiB of host memory",
        "compilations": result.facts["compilations"],
        "sessions": sessions,
        "seconds of training, compilation included": training_seconds,
        "bags per second": bags / max(training_seconds, 1e-9),
        "seconds in all" if sessions == 1 else "seconds of the last session": seconds,
    }
