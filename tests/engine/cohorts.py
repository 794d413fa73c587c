"""A small invented cohort for tests of the engine: two bucket lengths, two classes that a planted instance tells apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mil_jax import aggregators
from mil_jax.data.buckets import Ladder
from mil_jax.data.loading.resident import ResidentBags
from mil_jax.engine.plan import Plan, Replica
from mil_jax.engine.types import EngineData
from mil_jax.strategies import optimizers
from mil_jax.strategies.lr_schedule import Schedule
from mil_jax.strategies.supervised import Supervised
from mil_jax.tasks.classification import Classification

TASK = Classification(classes=("no", "yes"))
HYPER = {"optimizer.lr": 3e-3, "optimizer.weight_decay": 1e-3}


def engine_data(
    num_bags: int = 24, folds: int = 2, width: int = 6, seed: int = 0, lengths: tuple[int, ...] = (8, 16)
) -> EngineData:
    """Bags of 3 to 14 instances in buckets of these lengths, the last 16; a third of the training bags choose epochs."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(3, 15, num_bags)
    labels = (np.arange(num_bags) % 2).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    total = int(sizes.sum()) + 16
    features = rng.standard_normal((total, width)).astype(np.float32)
    features[offsets[labels == 1], 0] += 4.0
    features[sizes.sum() :] = 0.0
    fold = np.arange(num_bags) // 2 % folds
    test = np.stack([fold == k for k in range(folds)])
    selection = ~test & (np.arange(num_bags) // 4 % 3 == 2)
    ladder = Ladder(lengths, 0.0)
    return EngineData(
        bags=ResidentBags(
            features,
            np.zeros((total, 2), np.int32),
            np.zeros(total, np.int32),
            offsets.astype(np.int32),
            sizes.astype(np.int32),
        ),
        targets=labels[None],
        training=~test & ~selection,
        selection=selection,
        test=test,
        lengths=ladder.lengths,
        bucket=ladder.bucket(sizes),
    )


def strategy(
    optimizer: str = "adam", *, task: Classification = TASK, rates: Any = None, feature_dim: int = 16, **settings: Any
) -> Supervised:
    """Gated ABMIL with dropout; rates: other values of its dropouts."""
    module = aggregators.create("abmil", TASK.num_outputs, feature_dim=feature_dim, attention_dim=8, **(rates or {}))
    return Supervised(
        module, task, optimizers.make(optimizers.OptimizerSettings(optimizer)), Schedule("cosine"), **settings
    )


def plan(folds: int = 2, seeds: int = 2) -> Plan:
    """folds x seeds."""
    return Plan(tuple(Replica(fold, seed) for seed in range(seeds) for fold in range(folds)), HYPER)


@dataclass
class Silent:
    """A listener that keeps what it hears, and asks to stop after so many dispatches."""

    stop_after: int = 10**9
    rows: list[dict[str, Any]] = field(default_factory=list)
    dispatches: int = 0

    def phase(self, name: str, epoch: int, epochs: int) -> None:
        self.started_at = epoch

    def steps(self, count: int) -> None:
        self.dispatches += 1

    def epoch(self, rows: list[dict[str, Any]]) -> None:
        self.rows += rows

    def stop_requested(self) -> bool:
        return self.dispatches >= self.stop_after
