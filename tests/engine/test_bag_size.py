"""Where the size of a bag tells its class, neither buckets, nor their blocks, nor the order of a fold change what training reaches."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mil_jax.data.buckets import Ladder
from mil_jax.engine.early_stopping import Selection
from mil_jax.engine.fit import fit
from mil_jax.engine.plan import Plan, Replica
from mil_jax.engine.types import EngineData, EngineSettings, Phase
from tests.engine import cohorts

SEEDS, EPOCHS = 16, 6


def _cohort(lengths: tuple[int, ...]) -> EngineData:
    """Positive bags have 11 to 14 instances, the others 3 to 6; what is planted in an instance is weak."""
    data = cohorts.engine_data(num_bags=48, folds=2, seed=5)
    rng = np.random.default_rng(0)
    labels = data.targets[0]
    sizes = np.where(labels == 1, rng.integers(11, 15, len(labels)), rng.integers(3, 7, len(labels))).astype(np.int32)
    total = int(sizes.sum()) + 16
    features = rng.standard_normal((total, 6)).astype(np.float32)
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int32)
    features[offsets[labels == 1], 0] += 1.5
    bags = dataclasses.replace(
        data.bags,
        features=features,
        coords=np.zeros((total, 2), np.int32),
        slide_index=np.zeros(total, np.int32),
        offsets=offsets,
        sizes=sizes,
    )
    return dataclasses.replace(data, bags=bags, lengths=lengths, bucket=Ladder(lengths, 0.0).bucket(sizes))


@functools.cache
def _test_aucs(lengths: tuple[int, ...], order: str) -> np.ndarray:
    """Of each seed, over the pooled test bags of both folds."""
    data = _cohort(lengths)
    replicas = tuple(Replica(fold, seed) for seed in range(SEEDS) for fold in range(2))
    phase = Phase(cohorts.strategy(), EPOCHS, Selection("last"))
    plan, settings = Plan(replicas, cohorts.HYPER), EngineSettings(order=order)
    result = fit([phase], data, cohorts.TASK, plan, settings, cohorts.Silent())
    aucs = []
    for seed in range(SEEDS):
        mine = [r for r, replica in enumerate(replicas) if replica.seed == seed]
        scores = np.concatenate([cohorts.TASK.probabilities(result.logits[r]["test"])[:, 1] for r in mine])
        aucs.append(roc_auc_score(data.targets[0][np.concatenate([result.bags[r]["test"] for r in mine])], scores))
    return np.array(aucs)


@pytest.mark.full
@pytest.mark.parametrize(("lengths", "order"), [((8, 16), "independent"), ((8, 16), "fold"), ((16,), "fold")])
def test_the_mean_and_the_spread_over_seeds_are_those_of_one_uniform_shuffle(lengths, order):
    uniform, other = _test_aucs((16,), "independent"), _test_aucs(lengths, order)
    error = np.hypot(uniform.std(ddof=1), other.std(ddof=1)) / np.sqrt(SEEDS)
    assert abs(uniform.mean() - other.mean()) < 3.5 * error + 0.005
    # An F test at about 1 in 1,000 for 15 and 15 degrees of freedom.
    assert 1 / 5.6 < (other.var(ddof=1) + 1e-6) / (uniform.var(ddof=1) + 1e-6) < 5.6
