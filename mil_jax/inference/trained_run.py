"""A run that has ended, opened to predict other bags: its settings, its models with fold and seed, and whom each of them has met."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from mil_jax.data.buckets import Ladder, fit_ladder
from mil_jax.data.cohort.cohort import Cohort
from mil_jax.data.cohort.covariates import FILE, Covariate, restored
from mil_jax.data.label_columns import LABEL_COLUMN, LabelColumns
from mil_jax.data.loading.residency import choose_residency, open_bags
from mil_jax.data.loading.resident import row_bytes
from mil_jax.data.shards.reader import Shards
from mil_jax.engine.checkpoints import read_final
from mil_jax.engine.device_memory import available_memory
from mil_jax.engine.plan import Plan, Replica
from mil_jax.engine.predictor import Predictor
from mil_jax.engine.types import PredictionData
from mil_jax.experiment.experiment import engine_settings
from mil_jax.experiment.final_model import validation_rows
from mil_jax.experiment.phases import make_strategy, resolve_precision
from mil_jax.run_folder import tasks_json
from mil_jax.run_folder.folder import RunFolder, understood
from mil_jax.strategies.base import TrainState
from mil_jax.tasks.base import Task
from mil_jax.types import PyTree


class ModelPredictions(NamedTuple):
    """Of one model: label column and fold (their numbers), seed, its task, numbers of the bags, and their logits [n, num_outputs]."""

    target: int
    fold: int
    seed: int
    task: Task
    bags: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True)
class TrainedRun:
    """params, constants: of all models, on a leading axis. tasks: by label column ("" where the run does not name one). folds: of each, by
    name. replicas, fitted: what each model is, and what its training part told its task.
    """

    folder: RunFolder
    config: ConfigDict
    params: PyTree
    constants: PyTree
    tasks: dict[str, Task]
    folds: tuple[tuple[str, ...], ...]
    replicas: tuple[Replica, ...]
    fitted: tuple[dict[str, Any], ...]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> TrainedRun:
        """Raises RunFolderError where there is no run, or none that has ended."""
        folder = RunFolder.require_complete(path)
        with understood(folder.path):
            return cls._open(folder)

    @classmethod
    def _open(cls, folder: RunFolder) -> TrainedRun:
        config, tasks = ConfigDict(folder.config), tasks_json.read(folder)
        config.train.precision = folder.choices.get("precision") or resolve_precision(config)
        params, constants, runs = read_final(folder.checkpoints)
        names, fitted = list(tasks), tuple(run["learnt"] for run in runs)
        folds: list[list[str]] = [[] for _ in names]
        replicas = []
        for run in runs:
            target, fold = names.index(run.get(LABEL_COLUMN, names[0])), str(run["fold"])
            if fold not in folds[target]:
                folds[target].append(fold)
            replicas.append(Replica(folds[target].index(fold), run["seed"], target))
        return cls(folder, config, params, constants, tasks, tuple(map(tuple, folds)), tuple(replicas), fitted)

    @property
    def targets(self) -> tuple[str, ...]:
        """The label columns."""
        return tuple(self.tasks)

    @property
    def covariates(self) -> tuple[Covariate, ...]:
        """What the models read of the label table."""
        with understood(self.folder.path / FILE):
            return restored(self.folder.read_json(FILE)) if self.config.data.get("covariates") else ()

    @property
    def columns(self) -> LabelColumns:
        """How files and messages name the label columns."""
        return LabelColumns(self.targets)

    def splits(self, target: int) -> pd.DataFrame:
        """The rows of splits.csv of a label column."""
        with understood(self.folder.path / "splits.csv"):
            rows = self.columns.rows(self.folder.read_table("splits.csv"), target)
            return rows[["bag_id", "patient_id", "fold", "part"]]

    def validation(self, target: int) -> pd.DataFrame:
        """The validation predictions of a label column, of this run or of the one that the final model was made from."""
        with understood(self.folder.path):
            return self.columns.rows(validation_rows(self.folder), target)


def predict(
    run: TrainedRun,
    config: ConfigDict,
    shards: Shards,
    cohort: Cohort,
    scored: Sequence[np.ndarray],
    covariates: np.ndarray | None = None,
) -> list[ModelPredictions]:
    """scored: of each label column bool [folds, M], the bags that the models of each fold score. config: the run's, with where data lies.
    covariates: [M, V], of a run that reads any.

    Raises UserError where the model and the features differ, or a bag does not fit a device.
    """
    task = run.tasks[run.targets[0]]  # what a program needs of it is the same for all label columns
    sizes = cohort.bags["num_instances"].to_numpy()
    ladder, settings = ladder_of(run, sizes), config.data
    memory = available_memory(config.train.memory_gib)
    instance = row_bytes(shards, settings.neighbors)
    residency = choose_residency(settings.residency, sizes, ladder.lengths[-1], instance, settings.prefetch_gib, memory)
    data = PredictionData(
        bags=open_bags(residency, shards, cohort.slides, ladder.lengths[-1], settings.prefetch_gib, settings.neighbors),
        lengths=ladder.lengths,
        bucket=ladder.bucket(sizes),
        first_row=tuple(np.cumsum([0, *map(len, scored[:-1])]).tolist()),
        covariates=covariates,
    )
    part, plan = np.concatenate(scored), plan_of(run, config)
    predictor = Predictor(data, task.num_outputs, plan, engine_settings(config), {"scored": part})
    with predictor.exits:
        predictor.prepare(make_strategy(config, task, plan))
        steps = np.zeros(len(plan.replicas), np.int32)
        state = TrainState(steps, run.params, {}, plan.stacked_hyper(), run.constants)
        predicted = predictor.score(state, part)
    tasks = [run.tasks[run.targets[replica.target]] for replica in plan.replicas]
    return [
        ModelPredictions(replica.target, replica.fold, replica.seed, tasks_json.of_run(own, fitted), bags, logits)
        for replica, own, fitted, (bags, logits) in zip(plan.replicas, tasks, run.fitted, predicted, strict=True)
    ]


def plan_of(run: TrainedRun, config: ConfigDict) -> Plan:
    """The run's models. config: its settings."""
    hyper = {name: float(config.optimizer[name.split(".")[1]]) for name in ("optimizer.lr", "optimizer.weight_decay")}
    return Plan(run.replicas, hyper)


def ladder_of(run: TrainedRun, sizes: np.ndarray) -> Ladder:
    """The run's bucket lengths, and further ones for bags [M] that are longer than any that it met."""
    lengths = tuple(run.folder.choices["ladder"])
    longer = sizes[sizes > lengths[-1]]
    return Ladder((*lengths, *(fit_ladder(longer).lengths if len(longer) else ())), 0.0)
