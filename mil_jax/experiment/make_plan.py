"""The plan of an experiment: label columns x folds x seeds x numeric settings."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import getitem

import numpy as np
from ml_collections import ConfigDict

from mil_jax import aggregators, tasks
from mil_jax.aggregators import reembedding
from mil_jax.engine.plan import Overrides, Plan, Replica
from mil_jax.errors import ConfigError
from mil_jax.strategies import registry


def numeric_names(config: ConfigDict) -> tuple[str, ...]:
    """The settings in which runs of one program may differ: they are read while it runs and decide about no shape."""
    names = ["optimizer.lr", "optimizer.weight_decay"]
    names += [f"task.{name}" for name in tasks.numeric_settings(config.task)]
    if config.train.sample_instances:
        names.append("train.sample_instances")  # up to the config's, by which shapes are made
    names += [f"aggregator.{name}" for name in aggregators.numeric_settings(config.aggregator.name)]
    if config.reembed.name:
        names += [f"reembed.{name}" for name in reembedding.numeric_settings(config.reembed.name)]
    if config.strategy.name:
        names += [f"strategy.{name}" for name in registry.numeric_settings(config.strategy.name)]
    return tuple(names)


def make_plan(config: ConfigDict, folds: Sequence[int], overrides: Sequence[Overrides]) -> Plan:
    """Every override x target x seed x fold; folds: how many each target has."""
    if config.train.num_seeds < 1:
        raise ConfigError(f"train.num_seeds is {config.train.num_seeds}; at least one seed is needed")
    # A setting that no run overrides is compiled in: a dropout rate of 0 then costs nothing.
    names = {"optimizer.lr", "optimizer.weight_decay"} | {name for one in overrides for name, _ in one}
    hyper = {name: reduce(getitem, name.split("."), config) for name in numeric_names(config) if name in names}
    seeds = range(config.train.seed, config.train.seed + config.train.num_seeds)
    replicas = (
        Replica(fold, seed, target, one)
        for one in overrides
        for target, count in enumerate(folds)
        for seed in seeds
        for fold in range(count)
    )
    return Plan(tuple(replicas), hyper)


def share_of(plan: Plan, number: int, of: int) -> Plan:
    """Share `number`, from 1, `of` so many of a plan: neighbouring folds with all their seeds, as equal as can be.

    Raises ConfigError where there are more shares than runs.
    """
    runs = plan.replicas
    if of > len(runs):
        raise ConfigError(f"there are {len(runs)} runs (folds x seeds), so at most as many shares, not {of}")
    by_fold = sorted(range(len(runs)), key=lambda r: (runs[r].target, runs[r].fold, r))
    mine = sorted(np.array_split(by_fold, of)[number - 1].tolist())
    return Plan(tuple(runs[r] for r in mine), plan.hyper)
