"""The scores that a run's models give single instances of other bags: what a heat map shows, made comparable between bags.

An instance's score is the bag's probability of the positive class times the instance's attention (of that class), divided by the largest
of the bag: the most attended instance has the bag's probability. Of aggregators without attention it is the instance's own probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mil_jax.bags import Prediction
from mil_jax.data.cohort.cohort import Cohort
from mil_jax.data.loading.resident import load_bags
from mil_jax.data.shards.reader import Shards
from mil_jax.errors import ConfigError
from mil_jax.experiment.phases import make_strategy
from mil_jax.inference import trained_run
from mil_jax.inference.trained_run import TrainedRun
from mil_jax.strategies.base import TrainState
from mil_jax.tasks.classification import Classification
from mil_jax.types import Array


def require_scores(run: TrainedRun) -> Classification:
    """The run's task. Raises ConfigError where instances have no score: with several label columns, or no two classes."""
    task = run.tasks[run.targets[0]]
    if len(run.tasks) > 1 or not isinstance(task, Classification) or task.num_classes != 2:
        raise ConfigError("--instance-labels is for runs on one label column of two classes: leave it out")
    return task


def instance_scores(
    run: TrainedRun,
    config: ConfigDict,
    shards: Shards,
    cohort: Cohort,
    scored: np.ndarray,
    wanted: Sequence[int],
    covariates: np.ndarray | None = None,
) -> dict[int, dict[int, np.ndarray]]:
    """{bag: {fold: float64 [n]}} of the bags `wanted`, the mean over the seeds of the models that may score them; scored: bool [folds, M].

    Raises ConfigError where the aggregator scores no instances.
    """
    task = require_scores(run)
    plan = trained_run.plan_of(run, config)
    strategy = make_strategy(config, task, plan)
    sizes = cohort.bags["num_instances"].to_numpy()
    ladder = trained_run.ladder_of(run, sizes)
    hyper = plan.stacked_hyper()

    @jax.jit
    def predict(state: TrainState, bag: Any) -> tuple[Array, Array | None, Array | None]:
        prediction: Prediction = strategy.predict(state, bag)
        return prediction.logits, prediction.attention, prediction.instance_logits

    states = []  # on the device once, not once a bag
    for r in range(len(run.replicas)):
        params, own, constants = jax.tree.map(lambda x, r=r: jnp.asarray(x[r]), (run.params, hyper, run.constants))
        states.append(TrainState(jnp.int32(0), params, {}, own, constants))
    found: dict[int, dict[int, np.ndarray]] = {}
    for number in wanted:
        length = ladder.lengths[int(ladder.bucket(sizes[[number]])[0])]
        bag = load_bags(shards, [cohort.slides[number]], length, config.data.neighbors).bag(jnp.int32(0), length)
        if covariates is not None:
            bag = bag.replace(covariates=jnp.asarray(covariates[number]))
        by_fold: dict[int, list[np.ndarray]] = {}
        for replica, state in zip(run.replicas, states, strict=True):
            if scored[replica.fold, number]:
                seen = jax.device_get(predict(state, bag))
                by_fold.setdefault(replica.fold, []).append(_scores(task, *seen)[: sizes[number]])
        found[number] = {fold: np.mean(scores, axis=0) for fold, scores in by_fold.items()}
    return found


def _scores(
    task: Classification, logits: np.ndarray, attention: np.ndarray | None, instance_logits: np.ndarray | None
) -> np.ndarray:
    """[N] float64."""
    if attention is not None:
        mine = np.asarray(attention if attention.ndim == 1 else attention[-1], np.float64)
        return task.probabilities(logits[None])[0, -1] * mine / max(mine.max(), 1e-300)
    if instance_logits is None:
        raise ConfigError("this aggregator gives single instances no score: leave --instance-labels out")
    return task.probabilities(instance_logits)[:, -1]
