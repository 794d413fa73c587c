"""MHIM-MIL through the engine: two stages, the second from the first; stopped anywhere and resumed as if nothing had happened."""

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
from mil_jax.engine.types import EngineSettings, Phase
from mil_jax.errors import ConfigError
from mil_jax.experiment.make_plan import make_plan, numeric_names
from mil_jax.experiment.phases import make_phases, make_strategy
from mil_jax.layers.moving_average import ema_update
from mil_jax.strategies.base import Steps
from mil_jax.strategies.mhim import MHIM, taken_out
from mil_jax.strategies.mhim_settings import MHIMSettings
from tests.engine import cohorts
from tests.laws import law

MASKING = MHIMSettings(mask_random=0.2, mask_high=0.2, mask_high_share=0.5, momentum=0.9, init_student="fc")
SELECTION = Selection("val_loss")


def mhim(masking: MHIMSettings = MASKING, **settings: Any) -> MHIM:
    plain = cohorts.strategy()
    return MHIM(plain.module, plain.task, plain.optimizer, plain.learning_rate, masking=masking, **settings)


def phases() -> list[Phase]:
    teacher = dataclasses.replace(cohorts.strategy(), name="teacher")
    return [Phase(teacher, 2, SELECTION), Phase(mhim(), 2, SELECTION)]


def train(listener: cohorts.Silent, folder: Path | None = None) -> Any:
    keep = None if folder is None else lambda name: Checkpoints(folder / name, 1e9)
    settings = EngineSettings(steps_per_dispatch=4)
    return fit(phases(), cohorts.engine_data(), cohorts.TASK, cohorts.plan(1, 1), settings, listener, keep)


@pytest.fixture(scope="module")
def undisturbed() -> tuple[Any, cohorts.Silent]:
    listener = cohorts.Silent()
    return train(listener), listener


def test_both_stages_are_told_of_and_the_second_keeps_the_student(undisturbed):
    result, listener = undisturbed
    told = [(row["phase"], row["epoch"]) for row in listener.rows]
    assert told == [("teacher", 0), ("teacher", 1), ("mhim", 0), ("mhim", 1)]
    assert {"train_loss_task", "train_loss_consistency"} <= set(listener.rows[-1])
    assert set(result.state[0]) == {"feature", "attention_v", "attention_u", "attention_w", "classifier"}


@pytest.mark.parametrize("stage", ["teacher", "mhim"])
def test_stopped_in_either_stage_and_resumed_gives_the_same_bits(stage, undisturbed, tmp_path):
    result, whole = undisturbed
    first = whole.dispatches // 2
    stopped = cohorts.Silent(stop_after=2 if stage == "teacher" else first + 2)
    with pytest.raises(TrainingInterrupted):
        train(stopped, tmp_path)
    assert (tmp_path / "mhim").is_dir() == (stage == "mhim")
    again = train(cohorts.Silent(), tmp_path)
    for one, other in zip(jax.tree.leaves(again.state), jax.tree.leaves(result.state), strict=True):
        np.testing.assert_array_equal(one, other)


def state_from(strategy: MHIM, previous: Any, seed: int = 0) -> Any:
    bag = law.make_bag(0, 4, 8, (6,), 0.0)
    hyper = {name: jnp.float32(value) for name, value in cohorts.HYPER.items()}
    return strategy.init(jax.random.key(seed), bag, hyper, {}, previous)


def same(one: Any, other: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_a_student_and_its_teacher_begin_with_what_the_settings_say():
    before = state_from(mhim(), None, seed=1)
    replace = functools.partial(dataclasses.replace, MASKING)
    start = {name: state_from(mhim(replace(init_student=name)), before) for name in ("none", "fc", "all")}
    assert not same(start["none"].params["feature"], before.params["feature"])
    assert same(start["fc"].params["feature"], before.params["feature"])
    assert not same(start["fc"].params["classifier"], before.params["classifier"])
    assert same(start["all"].params, before.params)
    assert same(start["fc"].optimizer["teacher"], before.params)
    alone = state_from(mhim(replace(init_teacher=False)), before)
    assert same(alone.optimizer["teacher"], alone.params)
    assert "teacher" not in state_from(mhim(replace(teacher_is_student=True)), before).optimizer


def test_momentum_and_high_share_follow_their_cosines():
    masking = MHIMSettings(mask_high=0.04, mask_high_cosine=True, momentum=0.9, momentum_cosine=True, schedule_epochs=4)
    shares = [masking.high_share(Steps(epoch, 9, 5))[0] for epoch in (0, 2, 4, 8)]
    np.testing.assert_allclose(shares, [0.04, 0.02, 0.0, 0.0], atol=1e-15)
    np.testing.assert_allclose([masking.momenta(Steps(epoch, 9, 5))[0] for epoch in (0, 2, 8)], [0.9, 0.95, 1.0])
    moved = ema_update({"w": jnp.ones(2)}, {"w": jnp.zeros(2)}, jnp.float32(0.25))
    assert moved["w"].tolist() == [0.75, 0.75]


def test_a_bag_keeps_the_edges_between_the_instances_that_stay():
    neighbors = jnp.array([[1, 3], [0, -1], [1, 3], [2, 0]], jnp.int32)
    bag = law.make_bag(0, 4, 4, (6,)).replace(neighbors=neighbors)
    taken = taken_out(bag, jnp.array([0, 2, 3, 0]), jnp.int32(3))
    assert taken.mask.tolist() == [True, True, True, False]
    assert taken.neighbors[:3].tolist() == [[-1, 2], [-1, 2], [1, 0]]
    np.testing.assert_array_equal(taken.features[:3], bag.features[jnp.array([0, 2, 3])])


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"mask_low": 1.2}, r"strategy.mask_low=1.2 must lie in \[0, 1\]"),
        ({"mask_high_share": 0.0}, r"strategy.mask_high_share=0.0 must lie in \(0, 1\]"),
        ({"fusion": "median"}, "strategy.fusion='median' is unknown; choose one of vote, mean"),
        ({"init_student": "half"}, "strategy.init_student='half' is unknown"),
        ({"temperature": 0.0}, "strategy.temperature=0.0 must be positive"),
        ({"merge_queries": 2, "mask_low": 0.1}, "strategy.merge_queries splits what the high part"),
        (
            {"init_teacher": False, "init_student": "none"},
            "strategy.teacher=train trains weights that nothing begins with",
        ),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        MHIMSettings(**settings)


def configured(*arguments: str) -> ConfigDict:
    usual = ["--config.data.features=unused", "--config.train.precision=float32"]
    return parse([*arguments, *usual], lambda values: None)[0]


def test_any_config_can_ask_for_it_and_then_has_its_settings():
    config = configured("--config=configs/abmil.py", "--config.strategy.mask_random=0.3", "--config.strategy.name=mhim")
    assert config.strategy.mask_random == 0.3
    assert "strategy.mask_random" in numeric_names(config)
    made = make_phases(config, cohorts.TASK, make_plan(config, [2], [()]), SELECTION)
    assert [phase.strategy.name for phase in made] == ["teacher", "mhim"]
    assert made[1].strategy.least_masked == 0.3
    overrides = [(("strategy.mask_random", 0.1),), (("strategy.mask_random", 0.6),)]
    several = make_phases(config, cohorts.TASK, make_plan(config, [2], overrides), SELECTION)
    assert several[1].strategy.least_masked == 0.1
    config.strategy.teacher = "none"
    assert len(make_phases(config, cohorts.TASK, make_plan(config, [2], [()]), SELECTION)) == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["--config=configs/abmil.py", "--config.strategy.name=mhmi"],
            "strategy.name='mhmi' is unknown; choose one of ibmil, linear_probe, mhim",
        ),
        (["--config=configs/abmil.py", "--config.strategy.mask_low=0.2"], "strategy.mask_low is not a setting"),
        (["--config=configs/dtfd.py", "--config.strategy.name=mhim"], "DTFD is trained in a way of its own"),
        (["--config=configs/mean_pooling.py", "--config.strategy.name=mhim"], "masks instances by their attention"),
        (
            ["--config=configs/max_pooling.py", "--config.strategy.name=mhim", "--config.strategy.mask_low=2"],
            r"strategy.mask_low=2.0 must lie in \[0, 1\]",
        ),
    ],
    ids=["name", "setting", "dtfd", "pooling", "ratio"],
)
def test_what_cannot_be_trained_so_is_refused(arguments, complaint):
    bag: Any = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), law.make_bag(0, 4, 8, (6,), 0.0))

    def strategy_of(arguments: list[str]) -> Any:
        config = configured(*arguments)
        return make_strategy(config, cohorts.TASK, make_plan(config, [1], [()])).parameter_shapes(bag)

    with pytest.raises(ConfigError, match=complaint):
        strategy_of(arguments)
