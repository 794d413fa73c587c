"""The promises of the replica engine: alone = in company, resumed = undisturbed, one fetch an epoch, few compilations."""

from __future__ import annotations

import ast
from pathlib import Path

import jax
import numpy as np
import pytest

import mil_jax
from mil_jax.strategies.base import TrainingBags
from mil_jax.training.checkpoints import Checkpoints
from mil_jax.training.engine import EngineSettings, FitResult, Phase, Stopped, fit
from mil_jax.training.plan import Plan, Replica
from mil_jax.training.stopping import Selection
from tests.training.cohorts import HYPER, TASK, Silent, engine_data, plan, strategy

VAL_LOSS, LAST = Selection("val_loss"), Selection("last")


def _fit(
    the_plan: Plan,
    *,
    epochs: int = 3,
    selection: Selection = LAST,
    listener=None,
    open_checkpoints=None,
    data=None,
    **settings,
) -> FitResult:
    return fit(
        [Phase(strategy(), epochs, selection)],
        data or engine_data(),
        TASK,
        the_plan,
        EngineSettings(**settings),
        listener or Silent(),
        open_checkpoints,
    )


def _assert_equal(one, other) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def _row(tree, r: int):
    return jax.tree.map(lambda x: x[r], tree)


@pytest.fixture(scope="module")
def company() -> FitResult:
    return _fit(plan())


@pytest.mark.parametrize("r", [0, 3])
def test_a_replica_alone_is_bit_identical_to_itself_in_company(company, r):
    alone = _fit(Plan((plan().replicas[r],), HYPER))
    _assert_equal(_row(alone.state, 0), _row(company.state, r))
    _assert_equal(alone.logits[0], company.logits[r])


def test_replicas_side_by_side_equal_replicas_one_after_another(company):
    vectorised = _fit(plan(), replica_axis="vmap")
    leaves = jax.tree_util.tree_leaves_with_path(vectorised.state)
    for (path, one), other in zip(leaves, jax.tree.leaves(company.state), strict=True):
        # The last bias of the attention has no gradient but round-off, of which Adam makes steps; no output depends on it.
        if not jax.tree_util.keystr(path).endswith("['attention_w']['bias']"):
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_numeric_settings_differ_between_replicas_without_another_program(company):
    pair = Plan((Replica(0, 0), Replica(0, 0, overrides=(("optimizer.lr", 1e-4),))), HYPER)
    result = _fit(pair)
    assert result.facts["compilations"] == company.facts["compilations"]
    _assert_equal(_row(result.state, 0), _row(company.state, 0))
    alone = _fit(Plan((Replica(0, 0),), HYPER | {"optimizer.lr": 1e-4}))
    _assert_equal(_row(result.state, 1), _row(alone.state, 0))


def test_two_programs_a_bucket_and_one_for_initial_states(company):
    assert company.facts["compilations"] == 2 * 2 + 1


def test_nothing_is_compiled_after_the_first_epoch():
    class AfterFirst(Silent):
        def epoch(self, rows):
            super().epoch(rows)
            armed.append(True)

    armed, late = [], []

    def count(event: str, *_: object, **__: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration" and armed and not done:
            late.append(event)

    done: list[bool] = []
    jax.monitoring.register_event_duration_secs_listener(count)

    class UntilLast(AfterFirst):
        def epoch(self, rows):
            super().epoch(rows)
            if rows[0]["epoch"] == 4:
                done.append(True)

    _fit(plan(), epochs=5, selection=VAL_LOSS, listener=UntilLast())
    assert not late


def test_one_fetch_an_epoch():
    few, many = (_fit(plan(), epochs=epochs, selection=VAL_LOSS).facts["fetches"] for epochs in (2, 7))
    assert many - few == 5


def test_only_the_engines_fetch_brings_arrays_to_the_host():
    """Below the entry points nobody but `training/devices.py` calls device_get."""
    package = Path(mil_jax.__file__).parent
    callers = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("device_get", "item", "block_until_ready")
    }
    assert callers <= {
        "training/devices.py",
        "training/engine.py",
        "training/run_folder.py",
        "data/residency.py",
        "data/streaming.py",
    }, callers


def test_a_run_stops_when_its_validation_no_longer_improves_and_keeps_its_best_epoch():
    listener = Silent()
    result = _fit(plan(), epochs=40, selection=Selection("val_loss", patience=2), listener=listener)
    for r in range(4):
        mine = [row for row in listener.rows if row["replica"] == r]
        losses = [row["val_loss"] for row in mine]
        assert result.progress.best_epoch[r] == int(np.argmin(losses))
        assert len(mine) == min(int(np.argmin(losses)) + 3, 40)
    probabilities = TASK.probabilities(result.logits[0]["val"])
    targets = engine_data().targets[0][result.bags[0]["val"]]
    assert TASK.monitor("val_loss", probabilities, targets) == pytest.approx(result.progress.best[0], rel=1e-6)


def test_a_stopped_replica_is_left_as_it_is_while_others_go_on():
    """A run that stops early has the state that it has when trained alone, where nothing goes on after it."""
    selection = Selection("val_loss", patience=1)
    together = _fit(plan(), epochs=30, selection=selection)
    assert len(set(together.progress.epochs.tolist())) > 1, "the cohort does not show the case"
    first = int(np.argmin(together.progress.epochs))
    alone = _fit(Plan((plan().replicas[first],), HYPER), epochs=30, selection=selection)
    _assert_equal(_row(alone.state, 0), _row(together.state, first))


@pytest.mark.parametrize("stop_after", [1, 6, 13])
def test_a_run_stopped_at_any_dispatch_and_resumed_ends_bit_identical(tmp_path, stop_after):
    def checkpoints(name: str) -> Checkpoints:
        return Checkpoints(tmp_path / name, seconds=1e9)

    undisturbed = _fit(plan(), selection=VAL_LOSS)
    with pytest.raises(Stopped):
        _fit(plan(), selection=VAL_LOSS, listener=Silent(stop_after=stop_after), open_checkpoints=checkpoints)
    resumed = _fit(plan(), selection=VAL_LOSS, open_checkpoints=checkpoints)
    _assert_equal(resumed.state, undisturbed.state)
    _assert_equal(resumed.logits, undisturbed.logits)
    _assert_equal(resumed.progress.to_json(), undisturbed.progress.to_json())


def test_a_batch_of_bags_trains_on_their_mean_loss():
    result = _fit(plan(), batch_size=4, epochs=2)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.state))
    alone = _fit(Plan((plan().replicas[2],), HYPER), batch_size=4, epochs=2)
    _assert_equal(_row(alone.state, 0), _row(result.state, 2))


def test_it_learns_the_planted_instance():
    data = engine_data(num_bags=80)
    result = _fit(plan(seeds=1), epochs=40, data=data)
    for r in range(2):
        probabilities = TASK.probabilities(result.logits[r]["test"])
        assert TASK.metrics(probabilities, data.targets[0][result.bags[r]["test"]])["auc"] > 0.9


def test_zscore_is_fitted_to_the_training_bags_of_the_fold_alone():
    seen = []

    class Watching(type(strategy())):
        def constants(self, training: TrainingBags):
            fitted = super().constants(training)
            seen.append((training, fitted))
            return fitted

    base = strategy(normalize="zscore")
    watching = Watching(**{name: getattr(base, name) for name in base.__dataclass_fields__})
    data = engine_data()
    fit([Phase(watching, 1, LAST)], data, TASK, plan(), EngineSettings(), Silent())
    assert len(seen) == 2, "once a fold, not once a replica"
    for fold, (_, fitted) in enumerate(seen):
        numbers = np.flatnonzero(data.training[fold])
        rows = np.concatenate(
            [data.bags.features[o : o + s] for o, s in zip(data.bags.offsets[numbers], data.bags.sizes[numbers])]
        )
        np.testing.assert_allclose(fitted["mean"], rows.mean(axis=0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(1 / fitted["scale"], rows.std(axis=0), rtol=1e-5)


def test_a_run_whose_loss_is_not_finite_is_frozen_at_its_best_and_harms_no_other():
    """The second replica's learning rate makes its weights overflow; the first is as it is alone."""
    pair = Plan((Replica(0, 0), Replica(1, 0, overrides=(("optimizer.lr", 1e30),))), HYPER)
    listener = Silent()
    result = _fit(pair, epochs=4, selection=VAL_LOSS, listener=listener)
    assert result.progress.failed.tolist()[0] == -1
    assert result.progress.failed[1] >= 0
    assert len([row for row in listener.rows if row["replica"] == 1]) == result.progress.failed[1] + 1
    alone = _fit(Plan((Replica(0, 0),), HYPER), epochs=4, selection=VAL_LOSS)
    _assert_equal(_row(result.state, 0), _row(alone.state, 0))
