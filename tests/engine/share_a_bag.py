"""Trains an aggregator for one step on a long bag, on one device and with the bag shared by eight, in a process of its own:
`XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.engine.share_a_bag FOLDER AGGREGATOR...`.

Prints one JSON object: by aggregator, the largest differences between the two and what the compiler says of each device's memory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mil_jax import aggregators
from mil_jax.data.loading.resident import SplitBags
from mil_jax.data.loading.streamed import StreamedBags
from mil_jax.data.shards.reader import Shards
from mil_jax.data.shards.writer import write_shards
from mil_jax.engine.early_stopping import Selection
from mil_jax.engine.engine import Engine
from mil_jax.engine.fit import run_phases
from mil_jax.engine.plan import Plan, Replica
from mil_jax.engine.types import EngineData, EngineSettings, Phase
from mil_jax.experiment.phases import strategy_class
from mil_jax.interop.slide_bag import Provenance, SlideBag
from mil_jax.strategies import optimizers
from mil_jax.strategies.lr_schedule import Schedule
from mil_jax.strategies.supervised import Supervised
from tests.engine.cohorts import TASK, Silent

LENGTH, WIDTH, NUM_NEIGHBORS = 2048, 64, 4
SMALL = {"feature_dim": 32, "attention_dim": 16}


def cohort(folder: Path) -> EngineData:
    """Three bags: one to train on, one that chooses epochs, one to test."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.divmod(np.arange(LENGTH), 45), axis=1).astype(np.int32) * 256
    slides = [
        SlideBag(
            f"{n}",
            rng.standard_normal((n, WIDTH)).astype(np.float32),
            grid[:n],
            Provenance(coordinate_unit="level0_pixels"),
        )
        for n in (2000, 1960, LENGTH)
    ]
    write_shards(slides, folder, for_tensorflow=False, num_neighbors=NUM_NEIGHBORS)
    parts = np.eye(3, dtype=bool)[:, None]
    return EngineData(
        bags=StreamedBags(Shards.open(folder), np.arange(3)[:, None], 1 << 24, NUM_NEIGHBORS),
        targets=np.array([[1, 0, 1]], np.int32),
        training=parts[0],
        selection=parts[1],
        test=parts[2],
        lengths=(LENGTH,),
        bucket=np.zeros(3, np.int64),
    )


def strategy(name: str) -> Supervised:
    """Plain gradient descent."""
    fields = {key: value for key, value in SMALL.items() if key in aggregators.default_fields(name)}
    module = aggregators.create(name, TASK.num_outputs, **fields)
    return strategy_class(module)(module, TASK, optimizers.make(optimizers.OptimizerSettings("sgd")), Schedule())


def one_step(data: EngineData, name: str, instance_parallel: int) -> dict[str, Any]:
    """loss, the parameters after a step as long as the gradient, logits; bytes of a device beside and among the arguments."""
    listener, phase = Silent(), Phase(strategy(name), 1, Selection("last"))
    plan = Plan((Replica(0, 0),), {"optimizer.lr": 1.0, "optimizer.weight_decay": 0.0})
    engine = Engine(data, TASK, plan, EngineSettings(instance_parallel=instance_parallel))
    result = run_phases(engine, (phase,), listener)
    memory = engine.programs.built("train", 0).program.memory_analysis()
    shapes = engine.loader.shapes(0)
    assert isinstance(shapes, SplitBags) == (instance_parallel > 1)
    return {
        "loss": listener.rows[0]["train_loss"],
        "params": result.state[0],
        "logits": result.logits,
        "temporary": memory.temp_size_in_bytes,
        "features": int(np.prod(shapes.features.sharding.shard_shape(shapes.features.shape))),
    }


def compared(data: EngineData, name: str) -> dict[str, float]:
    """Differences relative to the largest value, and ratios of bytes: alone to shared."""
    alone, shared = one_step(data, name, 1), one_step(data, name, jax.device_count())

    def difference(what: str) -> float:
        pairs = zip(jax.tree.leaves(shared[what]), jax.tree.leaves(alone[what]), strict=True)
        return max(float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-2)) for ours, theirs in pairs)

    found = {what: difference(what) for what in ("loss", "params", "logits")}
    return found | {what: alone[what] / shared[what] for what in ("temporary", "features")}


if __name__ == "__main__":
    the_data = cohort(Path(sys.argv[1]))
    print(json.dumps({name: compared(the_data, name) for name in sys.argv[2:]}))
