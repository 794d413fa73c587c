"""From settings to an experiment: everything is read and checked before anything is trained or written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mil_jax.data.buckets import fit_ladder, given_ladder
from mil_jax.data.cohort.cohort import build_cohort
from mil_jax.data.cohort.covariates import read_covariates
from mil_jax.data.loading.residency import AUTO, choose_residency
from mil_jax.data.loading.resident import row_bytes
from mil_jax.data.shards.convert import Progress
from mil_jax.data.splits.splits import TEST, VALIDATION
from mil_jax.engine.device_memory import available_memory, side_by_side
from mil_jax.engine.early_stopping import Selection
from mil_jax.engine.mesh import require_devices
from mil_jax.engine.plan import Overrides
from mil_jax.errors import ConfigError
from mil_jax.experiment import ibmil_dictionary
from mil_jax.experiment.data_sources import open_shards
from mil_jax.experiment.experiment import Experiment, parameter_shapes, sampling_weights, strategy
from mil_jax.experiment.linear_probe import require_probe
from mil_jax.experiment.make_plan import make_plan
from mil_jax.experiment.phases import PROBE, resolve_precision, stage_names
from mil_jax.experiment.targets import cohort_settings, make_targets, split_settings
from mil_jax.strategies.ibmil_settings import DICTIONARY

PROTOCOLS = ("clean", "reference")


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
    config.train.precision = (choices or {}).get("precision") or resolve_precision(config)
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
        asked, sizes, ladder.lengths[-1], instance, config.data.prefetch_gib, available_memory(config.train.memory_gib)
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
        ibmil_dictionary.require_bags(experiment)
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
