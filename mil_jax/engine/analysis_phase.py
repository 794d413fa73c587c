"""A phase that trains nothing: every run looks at its training bags, with what the phase before made, and finds something in them.

What it finds is computed on the host, run by run; it is saved at once, so that a run which is resumed later finds the same.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mil_jax.engine import programs
from mil_jax.engine.callbacks import Callback, TrainingInterrupted
from mil_jax.engine.checkpoints import Checkpoints
from mil_jax.engine.engine import Engine
from mil_jax.strategies.base import Analysis, TrainState
from mil_jax.types import Array, PyTree


def run(
    engine: Engine,
    analysis: Analysis,
    previous: TrainState | None,
    listener: Callback,
    checkpoints: Checkpoints | None,
) -> tuple[TrainState, PyTree]:
    """The state that the next phase is given, and what was found: "params" [R, ...], "bags" [R, V] (their numbers, -1 for none), and
    "per_bag", by name [R, V, ...].
    """
    assert previous is not None, "an analysis comes after a phase"
    runs = engine.plan.described()
    saved = bool(checkpoints and checkpoints.place(runs))
    listener.phase(analysis.name, int(saved), 1)
    if checkpoints and saved:
        found = checkpoints.as_saved()
    else:
        found, rows = _look(engine, analysis, previous, listener)
        if checkpoints:
            checkpoints.save(0, found, {"runs": runs}, wait=True)
        listener.epoch(rows)
        if checkpoints and engine.vote.blocking(listener.stop_requested()):
            raise TrainingInterrupted
    return engine.shard(TrainState.ended_with(found["params"], engine.num_replicas)), found


def _look(
    engine: Engine, analysis: Analysis, previous: TrainState, listener: Callback
) -> tuple[PyTree, list[dict[str, Any]]]:
    """What is found, and a row for each run."""
    data, plan = engine.data, engine.plan
    engine.prepare(analysis)
    hyper, constants = engine.fitted(analysis)
    state = previous.replace(hyper=hyper, constants=constants, optimizer={})
    bags, sizes = data.listed(data.training, engine.rows, int(data.training.sum(axis=1).max()))
    cohorts = engine.cohort_shapes()

    def one(state: TrainState, cohort: programs.DeviceCohort) -> Array:
        mine: TrainState = jax.tree.map(lambda x: x[0], state)
        return analysis.predict(mine, programs.read_bag(cohort, jnp.int32(0), data.lengths[0])).logits

    shape = jax.eval_shape(one, state, cohorts[0]).shape
    buckets = np.unique(data.bucket[data.training.any(axis=0)]).tolist()
    logits = bags.shape[1], *shape
    engine.programs.compile_evaluation(buckets, cohorts, state, engine.ends_shape, logits, engine.placement.count)
    batch_size = engine.settings.batch_size
    predicted = engine.predict(state, bags, shape, lambda count: listener.steps(-(-count // batch_size)))
    seen = engine.strip_padding(engine.fetch(predicted))
    findings = [analysis.analyze(seen[r, : sizes[r]]) for r in range(engine.num_replicas)]
    rows = [
        {
            **{"phase": analysis.name, "epoch": 0, "replica": r, "fold": replica.fold, "seed": replica.seed},
            **{"target": replica.target, "steps": 0, **finding.facts},
        }
        for r, (replica, finding) in enumerate(zip(plan.replicas, findings))
    ]
    per_bag = {
        name: np.stack([_padded(finding.per_bag[name], bags.shape[1]) for finding in findings])
        for name in findings[0].per_bag
    }
    params = jax.tree.map(lambda *one: np.stack(one), *[finding.params for finding in findings])
    return {"params": params, "bags": bags, "per_bag": per_bag}, rows


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    """values [n, ...] with -1 behind: [length, ...]."""
    return np.concatenate([values, np.full((length - len(values), *values.shape[1:]), -1, values.dtype)])
