"""Replicas that have stopped leave the programs where replicas go side by side; nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest

from mil_jax.engine.callbacks import TrainingInterrupted
from mil_jax.engine.checkpoints import Checkpoints
from mil_jax.engine.compaction import InactiveReplicas
from mil_jax.engine.compilation import Programs
from mil_jax.engine.early_stopping import Selection
from mil_jax.engine.fit import fit
from mil_jax.engine.mesh import Placement, replica_mesh
from mil_jax.engine.plan import Plan, Replica
from mil_jax.engine.types import EngineSettings, FitResult, Phase
from tests.engine.cohorts import HYPER, TASK, Silent, engine_data, strategy

STOPPED_AFTER = 2  # epochs: runs with a learning rate of 0 have not improved in the second
RUNS_PER_DEVICE = 4
COUNT = RUNS_PER_DEVICE * replica_mesh().size


def _plan() -> Plan:
    """Every second run does not learn, so that it stops."""
    still = (("optimizer.lr", 0.0),)
    return Plan(tuple(Replica(r % 2, r // 2, overrides=still if r // 2 % 2 else ()) for r in range(COUNT)), HYPER)


def _fit(listener: Silent | None = None, open_checkpoints: Callable[[str], Checkpoints] | None = None) -> FitResult:
    return fit(
        [Phase(strategy(), 4, Selection("val_loss", patience=1))],
        engine_data(num_bags=40, lengths=(16,)),
        TASK,
        _plan(),
        EngineSettings(replica_axis="vmap"),
        listener or Silent(),
        open_checkpoints,
    )


@contextmanager
def _compiling_takes(seconds: float) -> Iterator[list[int]]:
    """The replicas on each device in the smaller programs that are made meanwhile."""
    made: list[int] = []
    original = Programs.for_fewer

    def watched(self: Programs, most: int, same: dict[str, int]) -> Programs:
        made.append(most)
        return original(self, most, same)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Programs, "seconds", property(lambda self: seconds))
        patch.setattr(Programs, "for_fewer", watched)
        yield made


def _assert_same(one: FitResult, other: FitResult) -> None:
    assert one.progress.to_json().keys() == other.progress.to_json().keys()
    for name in ("best_epoch", "active", "epochs", "failed"):
        np.testing.assert_array_equal(getattr(one.progress, name), getattr(other.progress, name))
    np.testing.assert_allclose(one.progress.best, other.progress.best, rtol=1e-4)
    leaves = jax.tree_util.tree_leaves_with_path((one.state, one.logits))
    for (path, ours), theirs in zip(leaves, jax.tree.leaves((other.state, other.logits)), strict=True):
        # The last bias of the attention has no gradient but round-off, of which Adam makes steps; no output depends on it.
        if not jax.tree_util.keystr(path).endswith("['attention_w']['bias']"):
            np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def all_held() -> FitResult:
    with _compiling_takes(1e9) as made:
        result = _fit()
    assert not made, "what does not pay is not done"
    stopped = result.progress.epochs == STOPPED_AFTER
    assert stopped.sum() == COUNT // 2, "the cohort does not show the case"
    return result


def test_the_others_go_on_as_if_stopped_runs_were_there_and_those_keep_their_states(all_held):
    with _compiling_takes(0.0) as made:
        result = _fit()
    assert made == [RUNS_PER_DEVICE // 2]
    _assert_same(result, all_held)
    assert all_held.facts["compilations"] == 1 + 2
    assert result.facts["compilations"] == 1 + 2 + 2, "training and validation, for half as many"


@pytest.mark.full
def test_a_run_without_its_stopped_runs_is_saved_and_gone_on_with(tmp_path: Path, all_held):
    class InThirdEpoch(Silent):
        def stop_requested(self) -> bool:
            return len(self.rows) > 0 and self.rows[-1]["epoch"] == STOPPED_AFTER - 1 and self.dispatches > self.seen

        def epoch(self, rows):
            super().epoch(rows)
            self.seen = self.dispatches

    def checkpoints(name: str) -> Checkpoints:
        return Checkpoints(tmp_path / name, seconds=1e9)

    with _compiling_takes(0.0) as made, pytest.raises(TrainingInterrupted):
        _fit(InThirdEpoch(), checkpoints)
    assert made, "stopped too early to show the case"
    with _compiling_takes(0.0):
        resumed = _fit(open_checkpoints=checkpoints)
    _assert_same(resumed, all_held)
    assert resumed.facts["compilations"] == 1 + 2 + 1, "all runs together are only begun and evaluated at the end"


def test_stopped_runs_stay_until_the_time_given_to_them_is_that_of_compiling():
    inactive = InactiveReplicas(Placement(COUNT))
    active = np.arange(COUNT) % 2 == 0
    assert inactive.half_have_stopped(active)
    assert not inactive.half_have_stopped(np.arange(COUNT) > 0)
    inactive.epoch(3.0, np.ones(COUNT, bool))
    assert inactive.idle_seconds == 0.0
    inactive.epoch(3.0, active)
    inactive.epoch(5.0, active)
    assert inactive.idle_seconds == pytest.approx(4.0)
