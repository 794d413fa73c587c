"""Numeric settings differ between runs of one program: each run is the one that the same values in a config would give."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax import aggregators
from mil_jax.aggregators import reembedding
from mil_jax.config import base_config
from mil_jax.engine.early_stopping import Selection
from mil_jax.engine.fit import fit
from mil_jax.engine.plan import Plan, Replica
from mil_jax.engine.types import EngineData, EngineSettings, FitResult, Phase
from mil_jax.errors import ConfigError
from mil_jax.experiment.make_plan import make_plan, numeric_names
from mil_jax.experiment.phases import strategy_class
from mil_jax.strategies import optimizers
from mil_jax.strategies.base import Batch, TrainState
from mil_jax.strategies.lr_schedule import Schedule
from mil_jax.strategies.supervised import Supervised
from tests.engine.cohorts import HYPER, TASK, Silent, engine_data, strategy
from tests.laws.law import make_bag

WIDTH = 12
SMALL: dict[str, dict[str, Any]] = {
    "abmil": {"feature_dim": 8, "attention_dim": 4},
    "clam_mb": {"feature_dim": 8, "attention_dim": 4, "num_sampled": 2},
    "clam_sb": {"feature_dim": 8, "attention_dim": 4, "num_sampled": 2},
    "dsmil": {"feature_layer": "linear", "feature_dim": 8, "query_dim": 4, "value": "relu"},
    "dtfd": {"feature_dim": 8, "attention_dim": 4},
    "hipt": {"region_encoder": "none", "hidden_dim": 8, "num_heads": 2},
    "hipt_none": {"one_region": True, "hidden_dim": 8},
    "max_pooling": {"feature_dim": 8},
    "mean_pooling": {"feature_dim": 8},
    "rrt": {"feature_dim": 8, "attention_dim": 4, "region_num": 2},
    "transmil": {"feature_dim": 16, "num_heads": 2, "num_landmarks": 4},
}
SLOW = ("abmil", "clam_mb", "clam_sb", "dtfd", "hipt", "max_pooling", "patch_gcn", "rrt", "transmil")


def one_bucket() -> EngineData:
    data = engine_data()
    return dataclasses.replace(data, lengths=(16,), bucket=np.zeros_like(data.bucket))


def trained(plan: Plan, of: Supervised) -> FitResult:
    phase = Phase(of, 2, Selection("last"))
    return fit([phase], one_bucket(), of.task, plan, EngineSettings(), Silent())


def assert_close(one: Any, other: Any) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * max(float(np.abs(b).max()), 1e-3))


def test_runs_with_other_rates_and_losses_are_those_of_a_config_with_these_values():
    """A dropout of 0 beside one of a quarter; rate, decay and label smoothing differ, too."""
    overrides = (
        {"aggregator.dropout": 0.0, "aggregator.attention_dropout": 0.5, "task.label_smoothing": 0.0},
        {
            **{"aggregator.dropout": 0.25, "aggregator.attention_dropout": 0.0, "task.label_smoothing": 0.2},
            **{"optimizer.lr": 1e-3, "optimizer.weight_decay": 0.1},
        },
    )
    base = HYPER | {"aggregator.dropout": 0.25, "aggregator.attention_dropout": 0.25, "task.label_smoothing": 0.0}
    plan = Plan(tuple(Replica(0, 0, overrides=tuple(one.items())) for one in overrides), base)
    together = trained(plan, strategy("sgd"))
    for r, one in enumerate(overrides):
        rates = {name.removeprefix("aggregator."): rate for name, rate in one.items() if name.startswith("aggregator.")}
        task = dataclasses.replace(TASK, label_smoothing=one["task.label_smoothing"])
        hyper = {name: one.get(name, value) for name, value in HYPER.items()}
        alone = trained(Plan((Replica(0, 0),), hyper), strategy("sgd", task=task, rates=rates))
        assert_close(jax.tree.map(lambda x, r=r: x[r], together.state), jax.tree.map(lambda x: x[0], alone.state))
        assert_close(together.logits[r], alone.logits[0])
    assert float(np.abs(together.logits[0]["test"] - together.logits[1]["test"]).max()) > 1e-3


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.full if name in SLOW else ())
        for name in aggregators.names()
        if aggregators.numeric_settings(name)
    ],
)
def test_every_numeric_setting_of_an_aggregator_is_read_while_the_program_runs(name):
    """Three steps with the values as inputs of a compiled program equal those of programs with the values compiled in."""
    fields = SMALL.get(name, {})
    numeric = aggregators.numeric_settings(name)
    weights = {setting for setting in numeric if setting.endswith("_weight")}
    point = {setting: 0.2 if setting in weights else (0.0, 0.5)[place % 2] for place, setting in enumerate(numeric)}
    inputs = {f"aggregator.{setting}": jnp.float32(value) for setting, value in point.items()}
    as_inputs = jax.jit(lambda hyper: _three_steps(_strategy(name, fields), hyper))(inputs)
    compiled_in = jax.jit(lambda: _three_steps(_strategy(name, fields | point), {}))()
    assert_close(as_inputs, compiled_in)


def _strategy(name: str, fields: dict[str, Any]) -> Supervised:
    module = aggregators.create(name, TASK.num_outputs, **fields)
    return strategy_class(module)(module, TASK, optimizers.make(optimizers.OptimizerSettings("sgd")), Schedule())


def _three_steps(of: Supervised, hyper: dict[str, jax.Array]) -> Any:
    # A chain, for those that read a graph.
    bag = make_bag(0, 11, 16, (WIDTH,)).replace(neighbors=np.arange(-1, 15, dtype=np.int32)[:, None])
    batch = Batch(jax.tree.map(lambda x: jnp.asarray(x)[None], bag), jnp.ones(1, jnp.int32), jnp.ones(1))
    hyper = {"optimizer.lr": jnp.float32(0.05), "optimizer.weight_decay": jnp.float32(0.01), **hyper}
    state = of.init(jax.random.key(0), bag, hyper, {}, None)

    def step(number: jax.Array, state: TrainState) -> TrainState:
        return of.step(state, batch, {"lr": state.hyper["optimizer.lr"]}, jax.random.key(number))[0]

    return jax.lax.fori_loop(0, 3, step, state).params


def test_only_settings_that_runs_override_are_inputs_of_the_program():
    config = base_config()
    config.aggregator.update({"name": "abmil", "dropout": 0.0, "attention_dropout": 0.25})
    assert numeric_names(config) == (
        *("optimizer.lr", "optimizer.weight_decay", "task.label_smoothing"),
        *("aggregator.dropout", "aggregator.attention_dropout"),
    )
    assert set(make_plan(config, [2], ((),)).hyper) == set(HYPER)
    plan = make_plan(config, [2], ((("aggregator.dropout", 0.0),), (("aggregator.dropout", 0.25),)))
    assert set(plan.hyper) == {*HYPER, "aggregator.dropout"}
    assert [plan.replica_hyper(replica)["aggregator.dropout"] for replica in plan.replicas] == [0.0, 0.0, 0.25, 0.25]


def test_a_re_embeddings_rates_are_numeric_settings():
    config = base_config()
    config.aggregator.name = "abmil"
    config.reembed.update({"name": "rrt", **dict.fromkeys(reembedding.numeric_settings("rrt"), 0.25)})
    assert {"reembed.dropout", "reembed.transformer_dropout"} <= set(numeric_names(config))


def test_a_setting_that_is_not_numeric_cannot_be_overridden():
    with pytest.raises(ConfigError, match="feature_dim is not a numeric setting of this plan"):
        Plan((Replica(0, 0, overrides=(("aggregator.feature_dim", 8),)),), HYPER)
