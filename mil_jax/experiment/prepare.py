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
from mil_jax.data.loading.residency import AUTO, choose_residency, open_bags
from mil_jax.data.loading.resident import row_bytes
from mil_jax.data.shards.convert import Progress
from mil_jax.data.splits.splits import TEST, VALIDATION
from mil_jax.engine.bag_order import FOLD
from mil_jax.engine.device_memory import available_memory, side_by_side
from mil_jax.engine.early_stopping import Selection
from mil_jax.engine.mesh import require_devices
from mil_jax.engine.plan import Overrides
from mil_jax.errors import ConfigError
from mil_jax.experiment import ibmil_dictionary
from mil_jax.experiment.data_sources import cache_folder, open_shards
from mil_jax.experiment.experiment import Experiment, bag_shapes, parameter_shapes, strategy
from mil_jax.experiment.fitter import fitter_of
from mil_jax.experiment.initial_weights import load_initial_weights
from mil_jax.experiment.make_plan import make_plan, share_of
from mil_jax.experiment.phases import make_phases, resolve_precision, stage_names
from mil_jax.experiment.targets import Target, cohort_settings, make_targets, split_settings
from mil_jax.strategies.ibmil_settings import DICTIONARY

PROTOCOLS = ("clean", "reference")


def prepare(
    config: ConfigDict,
    *,
    strict: bool = False,
    choices: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    overrides: Sequence[Overrides] = ((),),
    share: tuple[int, int] = (1, 1),
) -> Experiment:
    """Reads tables and index, joins them, makes targets, splits, plan and ladder. Raises UserError for whatever does not fit.

    choices: those of the run folder, when resuming. progress: hears of each slide that is converted. overrides: numeric settings
    that are tried side by side, each with every fold and seed. share: (i, n), only the i-th of n shares of the runs.
    """
    if config.train.protocol not in PROTOCOLS:
        raise ConfigError(f"train.protocol is {config.train.protocol!r}; choose one of {', '.join(PROTOCOLS)}")
    config = ConfigDict(config.to_dict())
    config.train.precision = (choices or {}).get("precision") or resolve_precision(config)
    shards, tables = open_shards(config, cache_folder(config), progress)
    config.update(tables)
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
        shards=shards,
        cohort=cohort,
        targets=targets,
        left_out=left_out,
        ladder=ladder,
        residency=residency,
        bags=open_bags(
            residency, shards, cohort.slides, ladder.lengths[-1], config.data.prefetch_gib, config.data.neighbors
        ),
        side_by_side=side_by_side(choices or {}),
        blocks=not choices or choices.get("blocks", False),
        covariates=covariates,
        **_planned(config, targets, overrides, share),
    )
    return _checked(experiment)


def derived(experiment: Experiment, config: ConfigDict, overrides: Sequence[Overrides]) -> Experiment:
    """The same data, targets and splits under other settings of method and training; bags that were read are shared.

    Raises UserError for settings that do not fit.
    """
    return _checked(dataclasses.replace(experiment, **_planned(config, experiment.targets, overrides)))


def _planned(
    config: ConfigDict, targets: Sequence[Target], overrides: Sequence[Overrides], share: tuple[int, int] = (1, 1)
) -> dict[str, Any]:
    """The fields of an experiment that follow from settings of method and training."""
    plan = share_of(make_plan(config, [len(target.splits.parts) for target in targets], overrides), *share)
    chosen = _choose_selection(config, targets)
    phases = make_phases(config, targets[0].task, plan, chosen["selection"])
    return {"config": config, "plan": plan, "phases": phases, **chosen}


def _checked(experiment: Experiment) -> Experiment:
    """The same, with what the first phase begins with. Raises UserError for impossible settings, before anything is written."""
    fitter_of(experiment).check()
    parameter_shapes(experiment)
    weights = load_initial_weights(experiment, bag_shapes(experiment))
    if DICTIONARY in stage_names(experiment.config):
        ibmil_dictionary.require_bags(experiment)
    train = experiment.config.train
    require_devices(strategy(experiment).module, train.data_parallel, train.instance_parallel)
    if train.order == FOLD and not experiment.blocks:
        raise ConfigError(
            "this run was begun with train.order=shared, one order for all folds, which is no more: it cannot be resumed, so train anew "
            "with train.order=fold"
        )
    for target in experiment.targets:
        if train.class_weights:
            target.task.class_weights(target.values)
        if train.balanced_sampling:
            target.task.sampling_weights(target.values)
    return dataclasses.replace(experiment, initial_weights=weights)


def _choose_selection(config: ConfigDict, targets: Sequence[Target]) -> dict[str, Any]:
    """Which part and which monitor choose epochs: the fields `selection`, `selection_part` and `fallback` of an experiment."""
    monitor, task = config.train.monitor, targets[0].task

    def chosen(monitor: str, part: int = VALIDATION, fallback: str = "") -> dict[str, Any]:
        selection = Selection(monitor, config.train.patience, config.train.min_epochs, config.train.first_epoch)
        return {"selection": selection, "selection_part": part, "fallback": fallback}

    if monitor == "last":
        return chosen(monitor)
    if monitor not in task.monitors:
        known = ", ".join(("last", *task.monitors))
        raise ConfigError(f"train.monitor={monitor!r} is no monitor of task.name={task.name}; choose one of {known}")
    bare = np.concatenate([~(target.splits.parts == VALIDATION).any(axis=1) for target in targets])
    if bare.any() and config.train.protocol == "reference":
        return chosen(monitor, TEST)
    if bare.any():
        names = [name for target in targets for name in target.splits.names]
        share = config.splits.val_fraction
        why = f"too few patients for splits.val_fraction={share:g}" if share else "splits.val_fraction=0"
        raise ConfigError(
            f"train.monitor={monitor} needs a validation part, but fold {np.array(names)[bare][0]} has none ({why}): "
            "raise it, or set train.monitor=last and train.patience=0"
        )
    enough = (
        target.task.enough_cases(target.values[part == VALIDATION])
        for target in targets
        for part in target.splits.parts
    )
    if monitor != "val_loss" and not all(enough):
        # With few cases such a metric takes few values, and the best of many epochs is an accident.
        return chosen("val_loss", fallback="val_loss")
    return chosen(monitor)
