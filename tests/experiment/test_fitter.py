"""What the engine's fitter says of its runs for the summary."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from mil_jax.experiment.fitter import EngineFitter


def notes(epochs: list[int], monitor: str = "val_loss") -> list[str]:
    """Of runs of 10 epochs that chose these, from 1; 0: none."""
    experiment = SimpleNamespace(
        selection=SimpleNamespace(monitor=monitor), config=SimpleNamespace(train=SimpleNamespace(epochs=10))
    )
    progress = SimpleNamespace(best_epoch=np.array(epochs) - 1)
    return EngineFitter(experiment).notes(SimpleNamespace(progress=progress))


def test_chosen_epochs_are_in_the_summary():
    assert notes([3, 7, 4, 0, 5, 5]) == ["Chosen epochs: 3 to 7 of 10, median 5."]


def test_it_is_said_where_the_last_epoch_is_chosen_often():
    (_, said) = notes([10, 10, 4, 3])
    assert said == "The last epoch was chosen in 2 of 4 runs: more epochs may do better (train.epochs)."


@pytest.mark.parametrize(("epochs", "monitor"), [([10, 10], "last"), ([0, 0], "val_loss")])
def test_nothing_is_said_where_nothing_was_chosen(epochs, monitor):
    assert notes(epochs, monitor) == []
