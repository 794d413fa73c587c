"""One experiment: from settings to data, task, splits and plan, and through the engine to predictions.

`prepare` reads and checks everything before anything is trained or written; `train` runs it into a run folder. Entry points parse
and report; nothing here prints.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from mil_jax.bags import Bag
from mil_jax.data.buckets import Ladder, fit_ladder, given_ladder
from mil_jax.data.cohort import Cohort, build_cohort
from mil_jax.data.conversion import Progress
from mil_jax.data.covariates import Covariates, read_covariates
from mil_jax.data.residency import row_bytes
from mil_jax.data.room import AUTO, Residency, choose_residency, open_bags
from mil_jax.data.shards import Shards
from mil_jax.data.splits import TEST, TRAIN, VALIDATION
from mil_jax.errors import ConfigError
from mil_jax.strategies.confounders import DICTIONARY
from mil_jax.strategies.supervised import Supervised
from mil_jax.tasks.base import Task
from mil_jax.training import dictionaries
from mil_jax.training.checkpoints import Checkpoints
from mil_jax.training.devices import require_devices
from mil_jax.training.engine import Engine, Listener
from mil_jax.training.engine_types import AnyPhase, EngineData, EngineSettings, FitResult
from mil_jax.training.final import save_final
from mil_jax.training.given import load_given
from mil_jax.training.memory import side_by_side, there_is
from mil_jax.training.phases import PROBE, make_phases, make_strategy, stage_names
from mil_jax.training.plan import Overrides, Plan, Replica, make_plan
from mil_jax.training.precision import chosen as chosen_precision
from mil_jax.training.probes import fit_probes, require_probe
from mil_jax.training.processes import is_first
from mil_jax.training.run_folder import RunFolder, fingerprint
from mil_jax.training.sources import open_shards
from mil_jax.training.stopping import Selection
from mil_jax.training.targets import Target, cohort_settings, make_targets, split_settings
from mil_jax.training.teachers import Given

PROTOCOLS = ("clean", "reference")
FREE_ON_RESUME = (
    *("run", "distributed", "data.cache", "data.residency", "data.prefetch_gib"),
    *("train.checkpoint_seconds", "train.debug_nans", "train.tensorboard", "train.wandb"),
    *("train.data_parallel", "train.instance_parallel"),
)


@dataclass
class Experiment:
    """All that is known before training.

    targets: what is predicted, usually one label column. left_out: label_column, reason, of those that cannot be trained.
    ladder: bucket lengths fitted to the bags in use. residency: where the features are while training, and why.
    selection_part: the part that chooses epochs: VALIDATION, or TEST where protocol "reference" has no validation part.
    fallback: the monitor used instead of the one asked for, "" where it is the one.
    side_by_side: of a run that is resumed, how many runs go side by side in each phase and bucket length.
    covariates: what models read of the label table.
    """

    config: ConfigDict
    shards: Shards
    cohort: Cohort
    targets: tuple[Target, ...]
    left_out: pd.DataFrame
    plan: Plan
    ladder: Ladder
    selection: Selection
    residency: Residency
    selection_part: int = VALIDATION
    fallback: str = ""
    side_by_side: dict[str, dict[int, int]] = field(default_factory=dict)
    covariates: Covariates | None = None

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
    def several(self) -> bool:
        """Whether there is more than one target."""
        return len(self.targets) > 1

    @cached_property
    def parts(self) -> np.ndarray:
        """int8 [rows, M]: the parts of all folds of all targets, one after another."""
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
        return f"{target.name}, {run}" if self.several else run

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

    @cached_property
    def given(self) -> Given | None:
        """What the first phase begins with, where it comes from elsewhere. Raises UserError where it does not fit, or has seen too much."""
        return load_given(self, bag_shapes(self))

    @cached_property
    def data(self) -> EngineData:
        """The bags and their parts; those held in memory are read once, when they are first needed."""
        return engine_data(self)

    @cached_property
    def phases(self) -> tuple[AnyPhase, ...]:
        """The strategies, one after another."""
        return make_phases(self.config, self.task, self.plan, self.selection)

    @cached_property
    def engine(self) -> Engine:
        """What will train it."""
        settings = dataclasses.replace(engine_settings(self.config), side_by_side=self.side_by_side)
        return Engine(self.data, self.task, self.plan, settings)


def prepare(
    config: ConfigDict,
    *,
    strict: bool = False,
    choices: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    overrides: Sequence[Overrides] = ((),),
) -> Experiment:
    """Reads tables and index, joins them, makes targets, splits, plan and ladder. Raises UserError for whatever does not fit.

    choices: those of the run folder, when resuming. progress: hears of each slide that is converted. overrides: numeric settings
    that are tried side by side, each with every fold and seed.
    """
    if config.train.protocol not in PROTOCOLS:
        raise ConfigError(f"train.protocol is {config.train.protocol!r}; choose one of {', '.join(PROTOCOLS)}")
    config = ConfigDict(config.to_dict())
    config.train.precision = (choices or {}).get("precision") or chosen_precision(config)
    shards = open_shards(config, progress)
    settings, found = cohort_settings(config, strict)
    cohort = build_cohort(
        shards.slide_ids,
        shards.num_instances,
        settings,
        modified=shards.provenance["source_mtime"].to_numpy(np.float64),
    )
    covariates = read_covariates(cohort.bags, config.data.covariates, config.data.labels)
    if covariates:
        cohort.report.extend(covariates.report)
    targets, left_out = make_targets(config, cohort, settings, split_settings(config, strict), found)
    sizes = cohort.bags["num_instances"].to_numpy()
    ladder = given_ladder(sizes, (choices or {}).get("ladder"))
    ladder = ladder or fit_ladder(sizes, max_padding=config.data.max_padding, max_buckets=config.data.max_buckets)
    asked = config.data.residency
    if asked == AUTO:  # what was chosen before is chosen again
        asked = (choices or {}).get("residency", AUTO)
    instance = row_bytes(shards, config.data.neighbors)
    residency = choose_residency(
        asked, sizes, ladder.lengths[-1], instance, config.data.prefetch_gib, there_is(config.train.memory_gib)
    )
    experiment = Experiment(
        config=config,
        shards=shards,
        cohort=cohort,
        targets=targets,
        left_out=left_out,
        plan=make_plan(config, [len(target.splits.parts) for target in targets], overrides),
        ladder=ladder,
        selection=_selection(config, config.train.monitor),
        residency=residency,
        side_by_side=side_by_side(choices or {}),
        covariates=covariates,
    )
    _check(experiment)
    return experiment


def derived(experiment: Experiment, config: ConfigDict, overrides: Sequence[Overrides]) -> Experiment:
    """The same data, targets and splits under other settings of method and training; bags that were read are shared.

    Raises UserError for settings that do not fit.
    """
    folds = [len(target.splits.parts) for target in experiment.targets]
    selection = _selection(config, config.train.monitor)
    plan = make_plan(config, folds, overrides)
    other = dataclasses.replace(experiment, config=config, plan=plan, selection=selection, fallback="")
    _check(other)
    return other


def share_bags(experiment: Experiment, other: Experiment) -> None:
    """Gives the bags that `experiment` has read to `other`, which was derived from it."""
    other.__dict__["data"] = dataclasses.replace(experiment.data, sampling=sampling_weights(other))


def _check(experiment: Experiment) -> None:
    """Finds impossible settings before anything is written, and what chooses epochs."""
    _choose_selection(experiment)
    if experiment.config.strategy.name == PROBE:
        require_probe(experiment)
    elif experiment.task.couples_bags and experiment.config.train.batch_size == 1:
        raise ConfigError(
            f"task.loss_name={experiment.task.loss_name} compares the bags of a step, and train.batch_size is 1: set it to 32, say"
        )
    parameter_shapes(experiment)
    _ = experiment.phases, experiment.given
    if DICTIONARY in stage_names(experiment.config):
        dictionaries.require_bags(experiment)
    train = experiment.config.train
    require_devices(strategy(experiment).module, train.data_parallel, train.instance_parallel)
    if train.order == "shared" and train.balanced_sampling:
        raise ConfigError(
            "train.order=shared shows all runs the same bags, and train.balanced_sampling draws them for each run: leave one of them out"
        )
    for target in experiment.targets:
        if train.class_weights:
            target.task.class_weights(target.values)
        if train.balanced_sampling:
            target.task.sampling_weights(target.values)


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


def train(experiment: Experiment, folder: RunFolder, listener: Listener) -> FitResult:
    """Runs the experiment and saves what it chose. As `train_in`."""
    result = train_in(experiment, folder, listener)
    save_final(experiment, folder, result)
    if DICTIONARY in result.surveys:
        dictionaries.save(experiment, folder, result.surveys[DICTIONARY])
    return result


def train_in(experiment: Experiment, folder: RunFolder, listener: Listener) -> FitResult:
    """Runs the experiment; raises Stopped when the listener asks to stop. Choices made before are reused when resuming."""
    keep = folder.write_choices if is_first() else lambda choices: None
    precision = experiment.config.train.precision
    keep({"residency": experiment.residency.kind, "ladder": list(experiment.ladder.lengths), "precision": precision})
    seconds = experiment.config.train.checkpoint_seconds
    return run(experiment, listener, lambda name: Checkpoints(folder.checkpoints / name, seconds), keep)


def run(
    experiment: Experiment,
    listener: Listener,
    open_checkpoints: Callable[[str], Checkpoints] | None = None,
    keep_choices: Callable[[Mapping[str, Any]], None] | None = None,
) -> FitResult:
    """Runs the experiment through the engine, or fits its linear probes; without `open_checkpoints` nothing is written."""
    if experiment.config.strategy.name == PROBE:
        return fit_probes(experiment, listener)
    engine = experiment.engine
    del experiment.engine  # it trains once
    start = experiment.given.params if experiment.given else None
    return engine.fit(experiment.phases, listener, open_checkpoints, keep_choices, start)


def engine_data(experiment: Experiment) -> EngineData:
    """Lays out the bags, which are not read yet, and their parts for the engine."""
    parts = experiment.parts
    training = parts == TRAIN
    lengths, shards, slides = experiment.ladder.lengths, experiment.shards, experiment.cohort.slides
    data = experiment.config.data
    return EngineData(
        bags=open_bags(experiment.residency, shards, slides, lengths[-1], data.prefetch_gib, data.neighbors),
        targets=np.stack([target.values for target in experiment.targets]),
        training=training,
        selection=parts == experiment.selection_part,
        test=parts == TEST,
        lengths=lengths,
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


def _choose_selection(experiment: Experiment) -> None:
    """Decides which part and which monitor choose epochs."""
    monitor, config = experiment.selection.monitor, experiment.config
    if monitor == "last":
        return
    if monitor not in experiment.task.monitors:
        known = ", ".join(("last", *experiment.task.monitors))
        raise ConfigError(
            f"train.monitor={monitor!r} is no monitor of task.name={experiment.task.name}; choose one of {known}"
        )
    parts = experiment.parts
    bare = ~(parts == VALIDATION).any(axis=1)
    if bare.any() and config.train.protocol == "reference":
        experiment.selection_part = TEST
    elif bare.any():
        names = [name for target in experiment.targets for name in target.splits.names]
        raise ConfigError(
            f"train.monitor={monitor} needs a validation part, but fold {np.array(names)[bare][0]} has none: "
            "set splits.val_fraction above 0, or train.monitor=last"
        )
    enough = (
        target.task.enough_cases(target.values[part == VALIDATION])
        for target in experiment.targets
        for part in target.splits.parts
    )
    if monitor != "val_loss" and experiment.selection_part == VALIDATION and not all(enough):
        # With few cases such a metric takes few values, and the best of many epochs is an accident.
        experiment.fallback = "val_loss"
        experiment.selection = _selection(config, "val_loss")


def _selection(config: ConfigDict, monitor: str) -> Selection:
    return Selection(monitor, config.train.patience, config.train.min_epochs, config.train.first_epoch)
