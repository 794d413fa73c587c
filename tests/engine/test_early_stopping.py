"""Which epoch counts where the first ones may not, and how long a run waits for a better one."""

from __future__ import annotations

import numpy as np
import pytest

from mil_jax.config import parse
from mil_jax.engine.early_stopping import Progress, Selection
from mil_jax.errors import ConfigError
from mil_jax.experiment.make_plan import make_plan
from mil_jax.experiment.phases import make_phases
from tests.engine import cohorts


def run(selection: Selection, scores: list[float]) -> Progress:
    progress = Progress.start(1, selection)
    for epoch, score in enumerate(scores):
        progress.update(epoch, np.zeros(1), np.array([score]), selection)
    return progress


def test_an_epoch_before_the_first_is_not_chosen_however_good():
    progress = run(Selection("val_loss", first_epoch=2), [0.1, 0.2, 0.9, 0.8, 0.85])
    assert progress.best_epoch[0] == 3
    assert progress.best[0] == 0.8


def test_nobody_waits_for_an_epoch_that_may_not_be_chosen():
    scores = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert run(Selection("val_loss", patience=2), scores).epochs[0] == 3
    assert run(Selection("val_loss", patience=2, first_epoch=3), scores).epochs[0] == 6


def test_a_first_epoch_behind_the_last_of_a_stage_is_refused():
    arguments = ["--config=configs/mhim_abmil.py", "--config.train.epochs=9", "--config.strategy.teacher_epochs=4"]
    config, _, _ = parse([*arguments, "--config.train.precision=float32"], lambda values: None)
    with pytest.raises(ConfigError, match=r"train\.first_epoch=4 leaves no epoch to choose where there are 4"):
        make_phases(config, cohorts.TASK, make_plan(config, [2], [()]), Selection(first_epoch=4))
