"""The promises of the replica engine: alone = together with others, resumed = undisturbed, one fetch an epoch, few compilations."""

from __future__ import annotations

import sys

import jax
import numpy as np
import pytest

from mil_jax.engine.bag_order import BagOrder
from mil_jax.engine.callbacks import TrainingInterrupted
from mil_jax.engine.checkpoints import Checkpoints
from mil_jax.engine.early_stopping import Selection
from mil_jax.engine.fit import fit
from mil_jax.engine.nan_debugging import NotFinite
from mil_jax.engine.plan import Plan, Replica
from mil_jax.engine.types import EngineSettings, FitResult, Phase
from mil_jax.errors import RunFolderError
from mil_jax.strategies.base import TrainingBags
from tests.engine.cohorts import HYPER, TASK, Silent, engine_data, plan, strategy

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
def test_a_replica_alone_is_bit_identical_to_itself_together_with_others(company, r):
    alone = _fit(Plan((plan().replicas[r],), HYPER))
    _assert_equal(_row(alone.state, 0), _row(company.state, r))
    _assert_equal(alone.logits[0], company.logits[r])


def test_vmapped_replicas_equal_sequential_ones(company):
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
    compiled_after: list[int] = []  # how many epochs were over at each compilation
    listener = Silent()

    def heard(event: str, *_: object, **__: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled_after.append(len({row["epoch"] for row in listener.rows}))

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        _fit(plan(), epochs=5, selection=VAL_LOSS, listener=listener)
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    assert compiled_after.count(0) >= 2 * 2 + 1, "what is compiled is not heard"
    assert set(compiled_after) <= {0, 5}, "after the last epoch, what fetches the results may be compiled"


def test_one_fetch_an_epoch():
    few, many = (_fit(plan(), epochs=epochs, selection=VAL_LOSS).facts["fetches"] for epochs in (2, 7))
    assert many - few == 5


def test_while_runs_train_the_engines_fetch_alone_brings_arrays_to_the_host(monkeypatch):
    """What a module of the package may ask NumPy, JAX or an array for is watched; JAX's own guard is blind on a CPU."""
    callers: set[str] = set()

    def watched(convert):
        def converted(value, *others, **named):
            caller = sys._getframe(1)
            while caller.f_globals["__name__"] in ("jax._src.tree", "jax._src.tree_util"):
                caller = caller.f_back
            ours = caller.f_globals["__name__"].startswith("mil_jax.")
            if ours and listener.training and any(isinstance(x, jax.Array) for x in jax.tree.leaves(value)):
                callers.add(caller.f_code.co_qualname)
            return convert(value, *others, **named)

        return converted

    class Training(Silent):
        training = False

        def phase(self, *named):
            super().phase(*named)
            self.training = True

    listener = Training()
    array = type(jax.numpy.zeros(()))
    ways = [(np, name) for name in ("array", "asarray", "stack", "concatenate", "isfinite")]
    ways += [(array, name) for name in ("item", "tolist", "__float__", "__int__", "__bool__", "__index__")]
    for place, name in [*ways, (jax, "device_get")]:
        monkeypatch.setattr(place, name, watched(getattr(place, name)))
    _fit(plan(), epochs=2, selection=VAL_LOSS, listener=listener)
    assert callers == {"Placement.fetch"}


def test_a_run_stops_when_its_validation_no_longer_improves_and_keeps_its_best_epoch():
    listener = Silent()
    result = _fit(plan(), epochs=40, selection=Selection("val_loss", patience=2), listener=listener)
    for r in range(4):
        mine = [row for row in listener.rows if row["replica"] == r]
        losses = [row["val_loss"] for row in mine]
        assert result.progress.best_epoch[r] == int(np.argmin(losses))
        assert len(mine) == min(int(np.argmin(losses)) + 3, 40)
    logits = result.logits[0]["val"]
    targets = engine_data().targets[0][result.bags[0]["val"]]
    assert TASK.monitor("val_loss", logits, targets) == pytest.approx(result.progress.best[0], rel=1e-6)


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
    with pytest.raises(TrainingInterrupted):
        _fit(plan(), selection=VAL_LOSS, listener=Silent(stop_after=stop_after), open_checkpoints=checkpoints)
    resumed = _fit(plan(), selection=VAL_LOSS, open_checkpoints=checkpoints)
    _assert_equal(resumed.state, undisturbed.state)
    _assert_equal(resumed.logits, undisturbed.logits)
    _assert_equal(resumed.progress.to_json(), undisturbed.progress.to_json())


def test_a_checkpoint_of_other_runs_or_another_model_is_refused_by_name(tmp_path):
    def resume(the_plan: Plan, the_strategy=None) -> None:
        phases = [Phase(the_strategy or strategy(), 2, LAST)]
        fit(
            phases,
            engine_data(),
            TASK,
            the_plan,
            EngineSettings(),
            Silent(),
            lambda name: Checkpoints(tmp_path / name, 0),
        )

    resume(plan())
    with pytest.raises(RunFolderError, match=r"is of 4 runs .target 0, fold 0, seed 1, .* not of the 2 runs"):
        resume(plan(seeds=1))
    with pytest.raises(RunFolderError, match="another model or optimiser"):
        resume(plan(), strategy("sgd"))
    with pytest.raises(RunFolderError, match="another model or optimiser"):
        resume(plan(), strategy(feature_dim=8))


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
    assert len(seen) == 3, "once for the shapes, before any bag is read, and once a fold, not once a replica"
    for fold, (_, fitted) in enumerate(seen[1:]):
        numbers = np.flatnonzero(data.training[fold])
        rows = np.concatenate(
            [data.bags.features[o : o + s] for o, s in zip(data.bags.offsets[numbers], data.bags.sizes[numbers])]
        )
        np.testing.assert_allclose(fitted["mean"], rows.mean(axis=0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(1 / fitted["scale"], rows.std(axis=0), rtol=1e-5)


BREAKS = {"break_at": 1e9}  # the update that makes the parameters NaN


class Breaking(type(strategy())):
    """Training that goes wrong at the update `break_at` of a replica."""

    def step(self, state, batch, extras, key):
        moved, metrics = super().step(state, batch, extras, key)
        broken = state.step == state.hyper["break_at"].astype(np.int32)
        return moved.replace(params=jax.tree.map(lambda x: jax.numpy.where(broken, np.nan, x), moved.params)), metrics


def _breaking() -> Breaking:
    base = strategy()
    return Breaking(**{name: getattr(base, name) for name in base.__dataclass_fields__})


def test_a_run_whose_loss_is_not_finite_is_frozen_at_its_best_and_harms_no_other():
    def fit_breaking(*replicas: Replica) -> tuple[FitResult, Silent]:
        listener = Silent()
        phases = [Phase(_breaking(), 4, VAL_LOSS)]
        return fit(phases, engine_data(), TASK, Plan(replicas, HYPER | BREAKS), EngineSettings(), listener), listener

    per_epoch = int(engine_data().training[1].sum())
    result, listener = fit_breaking(Replica(0, 0), Replica(1, 0, overrides=(("break_at", 2.0 * per_epoch + 1),)))
    assert result.progress.failed.tolist() == [-1, 2]
    assert len([row for row in listener.rows if row["replica"] == 1]) == 3
    assert result.progress.best_epoch[1] in (0, 1)
    logits = result.logits[1]["val"]
    targets = engine_data().targets[0][result.bags[1]["val"]]
    assert TASK.monitor("val_loss", logits, targets) == pytest.approx(result.progress.best[1], rel=1e-6)
    alone, _ = fit_breaking(Replica(0, 0))
    _assert_equal(_row(result.state, 0), _row(alone.state, 0))


def _not_finite(data=None, the_strategy=None, the_plan=None, **settings) -> NotFinite:
    with pytest.raises(NotFinite) as caught:
        fit(
            [Phase(the_strategy or strategy(), 3, VAL_LOSS)],
            data or engine_data(),
            TASK,
            the_plan or plan(),
            EngineSettings(debug_nans=True, steps_per_dispatch=3, **settings),
            Silent(),
        )
    return caught.value


@pytest.mark.parametrize("replica_axis", ["map", pytest.param("vmap", marks=pytest.mark.full)])
def test_debug_nans_names_the_bag_whose_loss_is_not_finite(replica_axis):
    data = engine_data()
    bag = int(np.flatnonzero(data.training[1])[-1])
    data.bags.features[data.bags.offsets[bag]] = np.nan
    found = _not_finite(data, replica_axis=replica_axis)
    assert plan().replicas[found.replica].fold == 1
    assert found.epoch == 0
    assert found.bags.tolist() == [bag]
    assert found.loss
    order = BagOrder(data.training, data.bucket, 2).epoch(plan().replicas, np.ones(4, bool), 0)
    assert order.bags[found.replica, found.step].tolist() == [bag]
    ids = np.array([f"slide {number}" for number in range(data.training.shape[1])])
    sentence = found.sentence("fold 1, seed 0", ids)
    assert (
        f"run fold 1, seed 0: the loss is not finite any more in epoch 1, step {found.step + 1}, at bag slide {bag}:"
        in sentence
    )


@pytest.mark.full
def test_debug_nans_finds_an_update_that_is_not_finite_after_a_finite_loss():
    found = _not_finite(the_strategy=_breaking(), the_plan=Plan(plan().replicas, HYPER | {"break_at": 11.0}))
    steps = engine_data().training.sum(axis=1)
    first = plan().replicas[found.replica].fold
    assert (found.epoch, found.step) == divmod(11, steps[first])
    assert not found.loss
