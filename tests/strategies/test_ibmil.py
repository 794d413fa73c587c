"""IBMIL through the engine: three stages, each from the one before; stopped anywhere and resumed as if nothing had happened."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mil_jax.config import ConfigDict, parse
from mil_jax.engine.callbacks import TrainingInterrupted
from mil_jax.engine.checkpoints import Checkpoints
from mil_jax.engine.early_stopping import Selection
from mil_jax.engine.fit import fit
from mil_jax.engine.types import AnalysisPhase, EngineSettings, Phase
from mil_jax.errors import ConfigError
from mil_jax.experiment.make_plan import make_plan, numeric_names
from mil_jax.experiment.phases import make_phases, make_strategy
from mil_jax.strategies.base import TrainState
from mil_jax.strategies.ibmil import BRANCH, IBMIL, MakeDictionary
from mil_jax.strategies.ibmil_clusters import clusters
from mil_jax.strategies.ibmil_settings import DICTIONARY, IBMILSettings
from tests.engine import cohorts
from tests.laws import law

CONFOUNDERS = IBMILSettings("2,3", query_dim=4)
SELECTION = Selection("val_loss")


class StopsIn(cohorts.Silent):
    """Asks to stop in a stage, when two dispatches of it are done."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage = stage

    def phase(self, name: str, epoch: int, epochs: int) -> None:
        super().phase(name, epoch, epochs)
        self.dispatches = 0 if name == self.stage else -(10**9)

    def stop_requested(self) -> bool:
        return self.dispatches >= 2


def ibmil(confounders: IBMILSettings = CONFOUNDERS, **settings: Any) -> IBMIL:
    plain = cohorts.strategy()
    return IBMIL(plain.module, plain.task, plain.optimizer, plain.learning_rate, confounders=confounders, **settings)


def stages() -> list[Any]:
    backbone, last = dataclasses.replace(cohorts.strategy(), name="backbone"), ibmil()
    analysis = AnalysisPhase(MakeDictionary(backbone, last))
    return [Phase(backbone, 2, SELECTION), analysis, Phase(last, 2, SELECTION)]


def train(listener: cohorts.Silent, folder: Path | None = None, seeds: int = 1, data: Any = None) -> Any:
    keep = None if folder is None else lambda name: Checkpoints(folder / name, 1e9)
    settings, plan = EngineSettings(steps_per_dispatch=4), cohorts.plan(1, seeds)
    data = cohorts.engine_data() if data is None else data
    return fit(stages(), data, cohorts.TASK, plan, settings, listener, keep)


@pytest.fixture(scope="module")
def undisturbed() -> tuple[Any, cohorts.Silent]:
    listener = cohorts.Silent()
    return train(listener), listener


def test_all_stages_are_told_of_and_the_last_has_the_dictionary(undisturbed):
    result, listener = undisturbed
    told = [(row["phase"], row["epoch"]) for row in listener.rows]
    assert told == [("backbone", 0), ("backbone", 1), ("dictionary", 0), ("ibmil", 0), ("ibmil", 1)]
    assert {"smallest_cluster", "largest_cluster"} <= set(listener.rows[2])
    params, found = result.state[0], result.analyses[DICTIONARY]
    assert {BRANCH, DICTIONARY} <= set(params)
    np.testing.assert_array_equal(params[DICTIONARY], found["params"][DICTIONARY])
    assert params[DICTIONARY].shape == (1, 5, 16)
    assert np.isfinite(params[DICTIONARY]).all()


def test_a_dictionary_is_of_the_training_bags_alone(undisturbed):
    result, _ = undisturbed
    data = cohorts.engine_data()
    found = result.analyses[DICTIONARY]
    assert sorted(found["bags"][0].tolist()) == np.flatnonzero(data.training[0]).tolist()
    cluster, entries = found["per_bag"]["cluster"][0], found["params"][DICTIONARY][0]  # [n, 2, 1], [5, E]
    assert set(cluster[:, 0, 0]) == {0, 1}
    assert set(cluster[:, 1, 0]) == {0, 1, 2}
    sizes = np.bincount(cluster[:, 0, 0])[:, None]
    sizes_of_three = np.bincount(cluster[:, 1, 0])[:, None]
    np.testing.assert_allclose((sizes * entries[:2]).sum(0), (sizes_of_three * entries[2:]).sum(0), rtol=1e-4)


@pytest.mark.parametrize("stage", ["backbone", "dictionary", "ibmil"])
def test_stopped_in_any_stage_and_resumed_gives_the_same_bits(stage, undisturbed, tmp_path):
    result, _ = undisturbed
    stopped = StopsIn(stage)
    with pytest.raises(TrainingInterrupted):
        train(stopped, tmp_path)
    assert (tmp_path / "ibmil").is_dir() == (stage == "ibmil")
    assert (tmp_path / "dictionary").is_dir() == (stage != "backbone")
    again = train(cohorts.Silent(), tmp_path)
    for one, other in zip(
        jax.tree.leaves((again.state, again.analyses)), jax.tree.leaves((result.state, result.analyses)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.full
def test_a_run_alone_is_the_run_together_with_others(undisturbed):
    alone, _ = undisturbed
    together = train(cohorts.Silent(), seeds=3)
    for one, other in zip(jax.tree.leaves(alone.state), jax.tree.leaves(together.state), strict=True):
        np.testing.assert_array_equal(one[0], other[0])


def test_clusters_are_of_directions_and_entries_are_means_of_the_embeddings():
    rng = np.random.default_rng(0)
    directions = np.eye(3)[np.arange(30) % 3]
    x = (directions + 0.05 * rng.standard_normal((30, 3))) * rng.uniform(0.1, 10, (30, 1))
    found = clusters(x, 3)
    for c in range(3):
        members = np.flatnonzero(found.cluster == c)
        assert len(set(members % 3)) == 1
        np.testing.assert_allclose(found.entries[c], x[members].mean(axis=0), rtol=1e-5)


def test_equal_embeddings_give_entries_without_nan_and_one_that_is_not_finite_none():
    found = clusters(np.ones((6, 2)), 3)
    np.testing.assert_array_equal(found.entries, 1.0)
    x = np.ones((6, 2))
    x[2, 1] = np.nan
    assert np.isnan(clusters(x, 3).entries).all()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"clusters": "eight"}, "strategy.clusters='eight' must be a positive whole number, or several with commas"),
        ({"clusters": "4,0"}, "strategy.clusters='4,0' must be"),
        ({"mode": "agnostik"}, "strategy.mode='agnostik' is unknown; choose one of agnostic, specific"),
        ({"merge": "mul"}, "strategy.merge='mul' is unknown; choose one of cat, add, sub"),
        ({"query_dim": 0}, "strategy.query_dim=0 must be positive"),
        ({"dictionary_dropout": 1.0}, r"strategy.dictionary_dropout=1.0 must lie in \[0, 1\)"),
        ({"backbone_epochs": -1}, "strategy.backbone_epochs=-1 must not be negative"),
        ({"backbone": ""}, "strategy.backbone is empty"),
        ({"backbone": "a", "dictionary": "b"}, "strategy.dictionary and strategy.backbone are both set"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        IBMILSettings(**settings)


def configured(*arguments: str) -> ConfigDict:
    usual = ["--config.data.features=unused", "--config.train.precision=float32"]
    return parse([*arguments, *usual], lambda values: None)[0]


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("backbone=train", ["backbone", "dictionary", "ibmil"]),
        ("backbone=runs/plain", ["dictionary", "ibmil"]),
        ("dictionary=runs/ibmil", ["ibmil"]),
    ],
)
def test_any_config_can_ask_for_it_and_takes_the_stages_that_it_needs(setting, names):
    config = configured("--config=configs/dtfd.py", "--config.strategy.name=ibmil", f"--config.strategy.{setting}")
    assert "strategy.dictionary_dropout" in numeric_names(config)
    made = make_phases(config, cohorts.TASK, make_plan(config, [2], [()]), SELECTION)
    assert [phase.strategy.name for phase in made] == names


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--config=configs/abmil.py", "--config.strategy.name=ibml"], "choose one of ibmil, linear_probe, mhim"),
        (["--config=configs/max_pooling.py", "--config.strategy.name=ibmil"], "set aggregator.choose=feature"),
        (
            ["--config=configs/abmil.py", "--config.strategy.name=ibmil", "--config.strategy.mode=specific"],
            "strategy.mode=specific makes a dictionary for each class",
        ),
    ],
    ids=["name", "max_pooling", "mode"],
)
def test_a_config_that_cannot_work_is_refused(arguments, complaint):
    shapes: Any = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), law.make_bag(0, 4, 8, (6,), 0.0))

    def make() -> Any:
        config = configured(*arguments)
        return make_strategy(config, cohorts.TASK, make_plan(config, [1], [()])).parameter_shapes(shapes)

    with pytest.raises(ConfigError, match=complaint):
        make()


def test_the_last_stage_begins_anew_with_the_dictionary_as_it_is():
    strategy, bag = ibmil(), law.make_bag(0, 4, 8, (6,), 0.0)
    hyper = {name: jnp.float32(value) for name, value in cohorts.HYPER.items()}
    made = TrainState.ended_with({DICTIONARY: jnp.full((5, 16), 2.0)}, 1)
    begin = functools.partial(strategy.init, jax.random.key(0), bag, hyper, {})
    given, shapes = begin(made), begin(None)
    np.testing.assert_array_equal(given.params[DICTIONARY], 2.0)
    for name in given.params.keys() - {DICTIONARY}:
        jax.tree.map(np.testing.assert_array_equal, given.params[name], shapes.params[name])
