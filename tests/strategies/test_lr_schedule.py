"""Learning rates by epoch and step."""

from __future__ import annotations

import numpy as np
import pytest

from mil_jax.errors import ConfigError
from mil_jax.strategies.base import Steps
from mil_jax.strategies.lr_schedule import Schedule


def _rates(schedule: Schedule, epoch: int, epochs: int = 10, count: int = 4) -> np.ndarray:
    return schedule(0.1, Steps(epoch=epoch, epochs=epochs, count=count))


def test_constant():
    np.testing.assert_array_equal(_rates(Schedule(), 3), 0.1)


def test_cosine_per_epoch_is_pytorchs_closed_form():
    schedule = Schedule("cosine", min_lr=0.01)
    for epoch in (0, 3, 9):
        expected = 0.01 + 0.09 * (1 + np.cos(np.pi * epoch / 10)) / 2
        np.testing.assert_allclose(_rates(schedule, epoch), expected, rtol=1e-15)


def test_cosine_stays_at_its_end():
    np.testing.assert_allclose(_rates(Schedule("cosine", epochs=5, min_lr=0.02), 8), 0.02)


def test_cosine_per_step_falls_within_an_epoch():
    rates = _rates(Schedule("cosine", per_step=True), 4)
    assert (np.diff(rates) < 0).all()


def test_step_multiplies_every_few_epochs():
    schedule = Schedule("step", every=3, gamma=0.5)
    assert [_rates(schedule, epoch)[0] for epoch in (0, 2, 3, 8)] == [0.1, 0.1, 0.05, 0.025]


def test_warmup_rises_linearly_step_by_step_and_then_joins():
    schedule = Schedule(warmup_epochs=2.0)
    rates = np.concatenate([_rates(schedule, epoch) for epoch in range(3)])
    np.testing.assert_allclose(rates, np.minimum(1, np.arange(1, 13) / 8) * 0.1)


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match="cosine"):
        Schedule("cosin")
