"""One experiment: data, task, splits, plan and phases, as `prepare` found them; and what the engine is given of it.

Entry points parse and report; nothing here prints.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from mil_jax.bags import Bag
from mil_jax.data.buckets import Ladder
from mil_jax.data.cohort.cohort import Cohort
from mil_jax.data.cohort.covariates import Covariates
from mil_jax.data.label_columns import LabelColumns
from mil_jax.data.loading.residency import Residency
from mil_jax.data.loading.resident_loader import LazyBags
from mil_jax.data.loading.streamed import StreamedBags
from mil_jax.data.shards.reader import Shards
from mil_jax.data.splits.splits import TEST, TRAIN, VALIDATION
from mil_jax.engine.early_stopping import Selection
from mil_jax.engine.plan import Plan, Replica
from mil_jax.engine.types import AnyPhase, EngineData, EngineSettings
from mil_jax.experiment.phases import make_strategy
from mil_jax.experiment.pretrained_weights import InitialWeights
from mil_jax.experiment.targets import Target
from mil_jax.run_folder.folder import fingerprint
from mil_jax.strategies.supervised import Supervised
from mil_jax.tasks.base import Task


@dataclass(frozen=True)
class Experiment:
    """All that is known before training; `prepare` makes it.

    targets: what is predicted, usually one label column. left_out: label_column, reason, of those that cannot be trained.
    phases: what is trained, in order. ladder: bucket lengths fitted to the bags in use. residency: where the features are while
    training, and why. bags: which are not read yet.
    selection_part: the part that chooses epochs: VALIDATION, or TEST where protocol "reference" has no validation part.
    fallback: the monitor used instead of the one asked for, "" where it is the one.
    side_by_side: of a run that is resumed, how many runs go side by side in each phase and bucket length.
    blocks: whether the order of bags has blocks (`engine/bag_order.py`), as all have but those of runs begun before there were any.
    covariates: what models read of the label table. initial_weights: what the first phase begins with, where it comes from elsewhere.
    """

    config: ConfigDict
    shards: Shards
    cohort: Cohort
    targets: tuple[Target, ...]
    left_out: pd.DataFrame
    plan: Plan
    phases: tuple[AnyPhase, ...]
    ladder: Ladder
    selection: Selection
    residency: Residency
    bags: LazyBags | StreamedBags
    selection_part: int = VALIDATION
    fallback: str = ""
    side_by_side: dict[str, dict[int, int]] = field(default_factory=dict)
    blocks: bool = True
    covariates: Covariates | None = None
    initial_weights: InitialWeights | None = None

    @property
    def embedded(self) -> bool:
        """Whether no data was named, so that the cohort is the one that comes with the library."""
        data = self.config.data
        return not (data.features or data.shards or data.synthetic.bags)

    @property
    def task(self) -> Task:
        """The task that the runs share; targets differ in the names of their classes only."""
        return self.targets[0].task

    @property
    def columns(self) -> LabelColumns:
        """How files and messages name the targets."""
        return LabelColumns(tuple(target.name for target in self.targets))

    @cached_property
    def parts(self) -> np.ndarray:
        """int8 [rows, M]: the parts of all folds of the first target, then of the second, ...."""
        return np.concatenate([target.splits.parts for target in self.targets])

    @property
    def first_row(self) -> tuple[int, ...]:
        """The first row of each target in `parts`."""
        folds = [len(target.splits.parts) for target in self.targets]
        return tuple(np.cumsum([0, *folds[:-1]]).tolist())

    def row(self, replica: Replica) -> int:
        """The row of a run in `parts`."""
        return self.first_row[replica.target] + replica.fold

    def run_name(self, replica: Replica) -> str:
        """ "fold 2, seed 0", after the label column where there are several."""
        target = self.targets[replica.target]
        run = f"fold {target.splits.names[replica.fold]}, seed {replica.seed}"
        return self.columns.named(replica.target, run, ", ")

    @property
    def excluded(self) -> pd.DataFrame:
        """slide, reason: of all that was left out at conversion, at the join with the labels, and by the splits."""
        converted = pd.DataFrame(self.shards.excluded, columns=["slide", "reason"], dtype=object)
        by_splits = [target.splits.excluded for target in self.targets]
        return pd.concat([converted, self.cohort.excluded, *by_splits], ignore_index=True).drop_duplicates(
            ignore_index=True
        )

    @property
    def bucket(self) -> np.ndarray:
        """int [M], the bucket of each bag."""
        return self.ladder.bucket(self.cohort.bags["num_instances"].to_numpy())

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the data by name; a run is not resumed with other data."""
        return {
            "features": self.shards.fingerprint,
            "labels": fingerprint(
                *(self.cohort.bags[["bag_id", "patient_id"]], self.cohort.labels),
                *(() if self.covariates is None else (self.covariates.values,)),
            ),
            "splits": fingerprint(self.parts),
        }


def strategy(experiment: Experiment) -> Supervised:
    """The strategy that the config asks for, of its last phase."""
    return make_strategy(experiment.config, experiment.task, experiment.plan)


def parameter_shapes(experiment: Experiment) -> Any:
    """The tree of the shapes of one run's parameters, without computing any. Raises ConfigError where model and features differ."""
    return strategy(experiment).parameter_shapes(bag_shapes(experiment))


def bag_shapes(experiment: Experiment) -> Bag:
    """A bag of shapes, of the shortest bucket."""
    length, shape = experiment.ladder.lengths[0], experiment.shards.feature_shape
    neighbors, parts = experiment.config.data.neighbors, experiment.shards.num_parts
    covariates = experiment.covariates
    return Bag(
        features=jax.ShapeDtypeStruct((length, *shape), np.float32),
        coords=jax.ShapeDtypeStruct((length, 2), np.int32),
        slide_index=jax.ShapeDtypeStruct((length,), np.int32),
        mask=jax.ShapeDtypeStruct((length,), np.bool_),
        part_mask=jax.ShapeDtypeStruct((length, parts), np.bool_) if parts else None,
        neighbors=jax.ShapeDtypeStruct((length, neighbors), np.int32) if neighbors else None,
        covariates=None if covariates is None else jax.ShapeDtypeStruct(covariates.values.shape[1:], np.float32),
    )


def engine_data(experiment: Experiment) -> EngineData:
    """The bags, which are not read yet, and their parts for the engine."""
    parts = experiment.parts
    return EngineData(
        bags=experiment.bags,
        targets=np.stack([target.values for target in experiment.targets]),
        training=parts == TRAIN,
        selection=parts == experiment.selection_part,
        test=parts == TEST,
        lengths=experiment.ladder.lengths,
        bucket=experiment.bucket,
        sampling=sampling_weights(experiment),
        first_row=experiment.first_row,
        covariates=experiment.covariates.values if experiment.covariates else None,
    )


def sampling_weights(experiment: Experiment) -> np.ndarray | None:
    """Weights to draw training bags by, [rows, M], so that all classes come equally often; None where each comes once."""
    if not experiment.config.train.balanced_sampling:
        return None
    training = experiment.parts == TRAIN
    sampling = np.zeros(training.shape)
    for first, target in zip(experiment.first_row, experiment.targets):
        for row in range(first, first + len(target.splits.parts)):
            sampling[row, training[row]] = target.task.sampling_weights(target.values[training[row]])
    return sampling


def engine_settings(config: ConfigDict) -> EngineSettings:
    """The engine's own settings: those of `train` that have the name of one of its fields, and the seed of the splits."""
    names = [field.name for field in dataclasses.fields(EngineSettings) if field.name in config.train]
    return EngineSettings(data_seed=config.splits.seed, **{name: config.train[name] for name in names})
