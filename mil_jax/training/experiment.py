"""One experiment: from settings to data, task, splits and plan, and through the engine to predictions.

`prepare` reads and checks everything before anything is trained or written; `train` runs it into a run folder. Entry points parse
and report; nothing here prints.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from mil_jax import aggregators, tasks
from mil_jax.aggregators.reembedding import reembedded
from mil_jax.bags import Bag
from mil_jax.data.buckets import Ladder, fit_ladder
from mil_jax.data.cohort import Cohort, CohortSettings, build_cohort, resolve_classes
from mil_jax.data.conversion import Progress, shards_for_features
from mil_jax.data.digits import digits_cohort
from mil_jax.data.residency import load_bags
from mil_jax.data.shards import Shards
from mil_jax.data.splits import TEST, TRAIN, VALIDATION, Splits, SplitSettings, make_splits
from mil_jax.errors import ConfigError
from mil_jax.strategies.supervised import Supervised
from mil_jax.tasks.classification import Classification
from mil_jax.training import optimizers
from mil_jax.training.checkpoints import Checkpoints
from mil_jax.training.engine import EngineData, EngineSettings, FitResult, Listener, Phase, fit
from mil_jax.training.memory import side_by_side
from mil_jax.training.plan import Plan, Replica
from mil_jax.training.processes import is_first
from mil_jax.training.run_folder import RunFolder, fingerprint
from mil_jax.training.schedule import Schedule
from mil_jax.training.stopping import Selection

PROTOCOLS = ("clean", "reference")
FREE_ON_RESUME = (
    *("run", "distributed", "data.cache"),
    *("train.checkpoint_seconds", "train.debug_nans", "train.tensorboard", "train.wandb"),
)


@dataclass
class Experiment:
    """All that is known before training.

    targets: [M] or [M, C], of every bag of the cohort. ladder: bucket lengths fitted to the bags in use.
    selection_part: the part that chooses epochs: VALIDATION, or TEST where protocol "reference" has no validation part.
    fallback: the monitor used instead of the one asked for, "" where it is the one.
    side_by_side: of a run that is resumed, how many runs go side by side in each phase and bucket length.
    """

    config: ConfigDict
    shards: Shards
    cohort: Cohort
    task: Classification
    targets: np.ndarray
    splits: Splits
    plan: Plan
    ladder: Ladder
    selection: Selection
    selection_part: int = VALIDATION
    fallback: str = ""
    side_by_side: dict[str, dict[int, int]] = field(default_factory=dict)

    @property
    def embedded(self) -> bool:
        """Whether no data was named, so that the cohort is the one that comes with the library."""
        return not (self.config.data.features or self.config.data.shards)

    @property
    def excluded(self) -> pd.DataFrame:
        """slide, reason: of all that was left out at conversion, at the join with the labels, and by the splits."""
        converted = pd.DataFrame(self.shards.excluded, columns=["slide", "reason"], dtype=object)
        return pd.concat([converted, self.cohort.excluded, self.splits.excluded], ignore_index=True)

    @property
    def bucket(self) -> np.ndarray:
        """int [M], the bucket of each bag."""
        return self.ladder.bucket(self.cohort.bags["num_instances"].to_numpy())

    @property
    def fingerprints(self) -> dict[str, str]:
        """Of the data by name; a run is not resumed with other data."""
        return {
            "features": self.shards.fingerprint,
            "labels": fingerprint(self.cohort.bags[["bag_id", "patient_id"]], self.cohort.labels),
            "splits": fingerprint(self.splits.parts),
        }

    @cached_property
    def data(self) -> EngineData:
        """The bags in memory and their parts; read once. Raises ShardError for a torn or altered record."""
        return engine_data(self)


def cache_folder(config: ConfigDict) -> Path:
    """Where converted features and the embedded cohort are kept. Raises ConfigError where that is no folder."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mil_jax"
    folder = Path(config.data.cache) if config.data.cache else usual
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is no folder: name one for the converted features with data.cache")
    return folder


def prepare(
    config: ConfigDict,
    *,
    strict: bool = False,
    choices: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Experiment:
    """Reads tables and index, joins them, makes task, splits, plan and ladder. Raises UserError for whatever does not fit.

    choices: those of the run folder, when resuming. progress: hears of each slide that is converted.
    """
    if config.train.protocol not in PROTOCOLS:
        raise ConfigError(f"train.protocol is {config.train.protocol!r}; choose one of {', '.join(PROTOCOLS)}")
    config = ConfigDict(config.to_dict())
    shards = _open_shards(config, progress)
    settings = _cohort_settings(config, strict)
    cohort = build_cohort(
        shards.slide_ids,
        shards.num_instances,
        settings,
        modified=shards.provenance["source_mtime"].to_numpy(np.float64),
    )
    task = tasks.create(config.task.name, resolve_classes(cohort.labels, settings), _task_settings(config, settings))
    targets = task.targets(cohort.labels.set_index(cohort.bags["bag_id"]))
    if config.train.permute_labels:
        targets = np.random.default_rng([config.splits.seed, 2]).permutation(targets)
    splits = make_splits(cohort, stratum(task, targets), _split_settings(config, strict), task.classes)
    experiment = Experiment(
        config=config,
        shards=shards,
        cohort=cohort,
        task=task,
        targets=targets,
        splits=splits,
        plan=_plan(config, len(splits.parts)),
        ladder=_ladder(config, cohort.bags["num_instances"].to_numpy(), (choices or {}).get("ladder")),
        selection=Selection(config.train.select, config.train.patience, config.train.min_epochs),
        side_by_side=side_by_side(choices or {}),
    )
    _choose_selection(experiment)
    # Impossible settings are found before anything is written.
    parameter_shapes(experiment)
    if config.train.class_weights or config.train.balanced:
        task.class_weights(targets)
    return experiment


def strategy(experiment: Experiment) -> Supervised:
    """The strategy that the config asks for."""
    config = experiment.config
    optimizer = {key: value for key, value in config.optimizer.items() if key not in ("lr", "weight_decay", "schedule")}
    fields = {key: value for key, value in config.aggregator.items() if key != "name"}
    aggregator = aggregators.create(config.aggregator.name, experiment.task.num_outputs, **fields)
    return Supervised(
        module=reembedded(aggregator, config.reembed),
        task=experiment.task,
        optimizer=optimizers.make(optimizers.OptimizerSettings(**optimizer)),
        learning_rate=Schedule(**config.optimizer.schedule),
        normalize=config.data.normalize,
        class_weights=config.train.class_weights,
    )


def parameter_shapes(experiment: Experiment) -> Any:
    """The tree of the shapes of one run's parameters, without computing any. Raises ConfigError where model and features differ."""
    length, shape = experiment.ladder.lengths[0], experiment.shards.feature_shape
    bag = Bag(
        features=jax.ShapeDtypeStruct((length, *shape), np.float32),
        coords=jax.ShapeDtypeStruct((length, 2), np.int32),
        slide_index=jax.ShapeDtypeStruct((length,), np.int32),
        mask=jax.ShapeDtypeStruct((length,), np.bool_),
    )
    module = strategy(experiment).module
    return jax.eval_shape(lambda bag: module.init({"params": jax.random.key(0)}, bag, train=False)["params"], bag)


def train(experiment: Experiment, folder: RunFolder, listener: Listener) -> FitResult:
    """Runs the experiment; raises Stopped when the listener asks to stop. Choices made before are reused when resuming."""
    if is_first() and not folder.choices:
        folder.write_choices({"residency": "resident", "ladder": list(experiment.ladder.lengths)})
    seconds = experiment.config.train.checkpoint_seconds
    keep = folder.write_choices if is_first() else None
    result = run(experiment, listener, lambda name: Checkpoints(folder.checkpoints / name, seconds), keep)
    _save_final(experiment, folder, result)
    return result


def run(
    experiment: Experiment,
    listener: Listener,
    open_checkpoints: Callable[[str], Checkpoints] | None = None,
    keep_choices: Callable[[Mapping[str, Any]], None] | None = None,
) -> FitResult:
    """Runs the experiment through the engine; without `open_checkpoints` nothing is written."""
    return fit(
        [Phase(strategy(experiment), experiment.config.train.epochs, experiment.selection)],
        experiment.data,
        experiment.task,
        experiment.plan,
        replace(engine_settings(experiment.config), side_by_side=experiment.side_by_side),
        listener,
        open_checkpoints,
        keep_choices,
    )


def engine_data(experiment: Experiment) -> EngineData:
    """Reads all bags, and lays out the parts for the engine."""
    parts = experiment.splits.parts
    training = parts == TRAIN
    sampling = None
    if experiment.config.train.balanced:
        sampling = np.zeros(parts.shape)
        for fold, part in enumerate(training):
            sampling[fold, part] = experiment.task.sampling_weights(experiment.targets[part])
    lengths = experiment.ladder.lengths
    return EngineData(
        bags=load_bags(experiment.shards, experiment.cohort.slides, lengths[-1]),
        targets=experiment.targets[None],
        training=training,
        selection=parts == experiment.selection_part,
        test=parts == TEST,
        lengths=lengths,
        bucket=experiment.bucket,
        sampling=sampling,
    )


def engine_settings(config: ConfigDict) -> EngineSettings:
    """The engine's own settings."""
    return EngineSettings(
        batch_size=config.train.batch_size,
        batch_devices=config.train.batch_devices,
        data_seed=config.splits.seed,
        slots_per_dispatch=config.train.slots_per_dispatch,
        replica_axis=config.train.replica_axis,
        debug_nans=config.train.debug_nans,
        memory_gib=config.train.memory_gib,
    )


def _ladder(config: ConfigDict, sizes: np.ndarray, chosen: list[int] | None) -> Ladder:
    """The ladder of the run that is resumed, else one fitted to the sizes [M] of the bags."""
    if chosen and sizes.max() <= chosen[-1]:
        padded = np.asarray(chosen)[Ladder(tuple(chosen), 0.0).bucket(sizes)].sum()
        return Ladder(tuple(chosen), 1.0 - sizes.sum() / padded)
    return fit_ladder(sizes, max_waste=config.data.max_waste, max_shapes=config.data.max_shapes)


def _open_shards(config: ConfigDict, progress: Progress | None) -> Shards:
    """The shard folder that is named, converted, or embedded; the last also sets the tables it comes with."""
    data = config.data
    if data.shards and data.features:
        raise ConfigError("data.shards and data.features are both set; name the one to train on")
    if data.shards:
        return Shards.open(data.shards)
    if data.features:
        return shards_for_features(
            data.features,
            cache_folder(config),
            encoder_name=data.encoder_name,
            nonfinite=data.nonfinite,
            progress=progress,
        )
    for name in ("labels", "target"):
        if data[name]:
            raise ConfigError(
                f"data.{name} is set but no features are: name their folder with data.features or data.shards"
            )
    if config.splits.file or config.splits.kind != "k_fold":
        raise ConfigError("the embedded digits come with their own five folds: leave splits.kind and splits.file out")
    digits = digits_cohort(cache_folder(config))
    data.labels, data.target, data.patient = str(digits.labels), "label", "patient_id"
    data.classes = "no nine,nine"
    config.splits.kind, config.splits.file = "file", str(digits.splits)
    return Shards.open(digits.shards)


def _cohort_settings(config: ConfigDict, strict: bool) -> CohortSettings:
    data = config.data
    columns = [name for name in (config.splits.group, config.splits.test) if name and name != "site"]
    return CohortSettings(
        labels=data.labels,
        target=listed(data.target) if "," in data.target else data.target,
        slides_table=data.slides_table or None,
        id_column=data.id_column or None,
        patient=data.patient or None,
        unit=data.unit,
        filter=data.filter or None,
        classes=listed(data.classes) or None,
        positive=data.positive or None,
        site=data.site or None,
        columns=[name for name in columns if "." not in name],
        duplicates=data.duplicates,
        min_matched=data.min_matched,
        strict=strict,
    )


def _task_settings(config: ConfigDict, settings: CohortSettings) -> Mapping[str, Any]:
    chosen = {key: value for key, value in config.task.items() if key != "name"}
    if len(settings.targets) == 1 and config.task.multi_label:
        raise ConfigError(
            "task.multi_label is for several label columns of 0 and 1: name them in data.target, with commas"
        )
    if len(settings.targets) > 1 and config.task.loss_name != "binary_cross_entropy":
        raise ConfigError(
            f"data.target names {len(settings.targets)} columns, each a label of its own, and task.loss_name="
            f"{config.task.loss_name!r} is for one: set task.loss_name=binary_cross_entropy"
        )
    return chosen | {"multi_label": config.task.multi_label or len(settings.targets) > 1}


def _split_settings(config: ConfigDict, strict: bool) -> SplitSettings:
    splits = config.splits
    # The reference protocol takes splits as they are: no validation part is carved from the training patients.
    carve = splits.val_fraction if config.train.protocol == "clean" else 0.0
    return SplitSettings(
        kind="file" if splits.file else splits.kind,
        folds=splits.folds,
        repeats=splits.repeats,
        group=splits.group,
        test=splits.test,
        test_fraction=splits.test_fraction,
        val_fraction=carve,
        file=splits.file,
        seed=splits.seed,
        min_matched=config.data.min_matched,
        strict=strict,
    )


def stratum(task: Classification, targets: np.ndarray) -> np.ndarray:
    """What splits are stratified by: class numbers, or 0/1 columns."""
    return targets if task.multi_label else task.class_index(targets)


def _plan(config: ConfigDict, num_folds: int) -> Plan:
    if config.train.num_seeds < 1:
        raise ConfigError(f"train.num_seeds is {config.train.num_seeds}; at least one seed is needed")
    hyper = {"optimizer.lr": config.optimizer.lr, "optimizer.weight_decay": config.optimizer.weight_decay}
    seeds = range(config.train.seed, config.train.seed + config.train.num_seeds)
    return Plan(tuple(Replica(fold, seed) for seed in seeds for fold in range(num_folds)), hyper)


def _choose_selection(experiment: Experiment) -> None:
    """Decides which part and which monitor choose epochs."""
    select, config = experiment.selection.select, experiment.config
    if select == "last":
        return
    parts = experiment.splits.parts
    bare = ~(parts == VALIDATION).any(axis=1)
    if bare.any() and config.train.protocol == "reference":
        experiment.selection_part = TEST
    elif bare.any():
        raise ConfigError(
            f"train.select={select} needs a validation part, but fold {np.array(experiment.splits.names)[bare][0]} has none: "
            "set splits.val_fraction above 0, or train.select=last"
        )
    held_out = [experiment.targets[fold == experiment.selection_part] for fold in parts]
    if select == "val_auc" and not all(map(experiment.task.enough_cases, held_out)):
        # With few cases the AUC takes few values, and the best of many epochs is an accident.
        experiment.fallback = "val_loss"
        experiment.selection = Selection("val_loss", config.train.patience, config.train.min_epochs)


def _save_final(experiment: Experiment, folder: RunFolder, result: FitResult) -> None:
    """The chosen parameters of every run, with the ids they were trained and selected on."""
    ids = experiment.cohort.bags["bag_id"].to_numpy()
    parts = experiment.splits.parts
    runs = [
        {
            "fold": experiment.splits.names[replica.fold],
            "seed": replica.seed,
            "epoch": int(result.progress.best_epoch[r]),
            "training": ids[parts[replica.fold] == TRAIN].tolist(),
            "validation": ids[parts[replica.fold] == experiment.selection_part].tolist(),
        }
        for r, replica in enumerate(experiment.plan.replicas)
    ]
    checkpoints = Checkpoints(folder.checkpoints / "final", seconds=0)
    params, constants = result.state
    checkpoints.save(0, {"params": params, "constants": constants}, {"runs": runs}, wait=True)
    checkpoints.close()


def listed(text: str) -> tuple[str, ...]:
    """ "a, b" -> ("a", "b")."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
