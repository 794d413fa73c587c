"""Which runs are trained together: a replica is one (target, fold, seed, numeric overrides); a plan is all replicas of one program."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import numpy as np

from mil_jax.errors import ConfigError
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
