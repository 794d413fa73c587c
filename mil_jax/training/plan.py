"""Which runs are trained together: a replica is one (target, fold, seed, numeric overrides); a plan is all replicas of one program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem

import jax
import numpy as np
from ml_collections import ConfigDict

from mil_jax import aggregators, tasks
from mil_jax.aggregators import reembedding
from mil_jax.errors import ConfigError
from mil_jax.strategies import chosen
from mil_jax.types import Array

Overrides = tuple[tuple[str, float], ...]  # dotted names of numeric settings and their values


@dataclass(frozen=True)
class Replica:
    """One run. `target`, `fold` and `seed` are numbers; `overrides` maps dotted names of numeric settings to values."""

    fold: int
    seed: int
    target: int = 0
    overrides: Overrides = ()


@dataclass(frozen=True)
class Plan:
    """The replicas of one architecture, and the numeric settings they share.

    Raises ConfigError when the plan is empty, names a replica twice, or overrides a setting that is not numeric.
    """

    replicas: tuple[Replica, ...]
    hyper: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.replicas:
            raise ConfigError("there is nothing to train: the list of runs (folds x seeds) is empty")
        if len(set(self.replicas)) != len(self.replicas):
            raise ConfigError("a run (fold, seed) appears twice in the plan; list each fold and each seed once")
        unknown = {name for replica in self.replicas for name, _ in replica.overrides} - set(self.hyper)
        if unknown:
            raise ConfigError(
                f"{sorted(unknown)[0]} is not a numeric setting of this plan; known: {', '.join(sorted(self.hyper))}"
            )

    def replica_hyper(self, replica: Replica) -> dict[str, float]:
        """The numeric settings of one replica. All replicas have the same names."""
        return self.hyper | dict(replica.overrides)

    def stacked_hyper(self) -> dict[str, np.ndarray]:
        """{name: float32 [R]}."""
        rows = [self.replica_hyper(replica) for replica in self.replicas]
        return {name: np.array([row[name] for row in rows], np.float32) for name in sorted(self.hyper)}

    def described(self) -> list[str]:
        """Each run in words, in their order."""
        return [
            f"target {replica.target}, fold {replica.fold}, seed {replica.seed}"
            + "".join(f", {name}={value:g}" for name, value in replica.overrides)
            for replica in self.replicas
        ]

    def keys(self) -> Array:
        """[R] keys; replicas that differ only in their overrides share theirs."""
        folds = np.array([replica.fold for replica in self.replicas], np.uint32)
        seeds = np.array([replica.seed for replica in self.replicas], np.uint32)
        return jax.vmap(lambda seed, fold: jax.random.fold_in(jax.random.key(seed), fold))(seeds, folds)


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
        names += [f"strategy.{name}" for name in chosen.numeric_settings(config.strategy.name)]
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
