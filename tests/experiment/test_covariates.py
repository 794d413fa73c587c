"""Models that read covariates: through the engine and the command, with the training bags' statistics alone."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from mil_jax import aggregators, evaluate, train
from mil_jax.engine.callbacks import TrainingInterrupted
from mil_jax.engine.checkpoints import Checkpoints, read_final
from mil_jax.engine.early_stopping import Selection
from mil_jax.engine.fit import fit
from mil_jax.engine.types import EngineSettings, Phase
from mil_jax.strategies import optimizers
from mil_jax.strategies.base import Batch, TrainState
from mil_jax.strategies.dtfd import TwoTiers
from mil_jax.strategies.ibmil import DICTIONARY, IBMIL, TwoTierIBMIL
from mil_jax.strategies.ibmil_settings import IBMILSettings
from mil_jax.strategies.lr_schedule import Schedule
from mil_jax.strategies.mhim import MHIM
from mil_jax.strategies.mhim_settings import MHIMSettings
from mil_jax.strategies.supervised import COVARIATES, Supervised
from mil_jax.tasks.classification import Classification
from tests.commands import SMALL, run
from tests.engine.cohorts import TASK, Silent, engine_data, plan, strategy
from tests.invented import invent, write_labels, write_trident
from tests.laws import law

RAW = np.array([3.0, np.nan, 1.0], np.float32)
FIT = {"mean": np.array([1.0, 5.0, 0.5], np.float32), "scale": np.array([0.5, 2.0, 1.0], np.float32)}


def _method(name: str, kind: type[Supervised] = Supervised, **settings: object) -> Supervised:
    fields = {"feature_dim": 8, "attention_dim": 4} | ({"num_groups": 2} if name == "dtfd" else {})
    module = aggregators.create(name, 2, **fields) if name != "dsmil" else aggregators.create(name, 2, dropout=0.0)
    optimizer = optimizers.make(optimizers.OptimizerSettings("sgd"))
    return kind(module, Classification(("no", "yes")), optimizer, Schedule("constant"), **settings)


METHODS = {
    "abmil": functools.partial(_method, "abmil"),
    "dsmil": functools.partial(_method, "dsmil"),
    "dtfd": functools.partial(_method, "dtfd", TwoTiers),
    "ibmil": functools.partial(_method, "abmil", IBMIL, confounders=IBMILSettings(clusters="2")),
    "ibmil over dtfd": functools.partial(_method, "dtfd", TwoTierIBMIL, confounders=IBMILSettings(clusters="2")),
    "mhim": functools.partial(
        _method, "abmil", MHIM, masking=MHIMSettings(mask_high=0.0, mask_low=0.0, mask_random=0.5)
    ),
    "drawn instances": functools.partial(_method, "abmil", sample_instances=5),
}


@pytest.mark.parametrize(
    "name", [name if name == "abmil" else pytest.param(name, marks=pytest.mark.full) for name in METHODS]
)
def test_the_classifier_reads_them_and_a_step_is_exact_under_padding(name):
    method = METHODS[name]()
    hyper = {"optimizer.lr": jnp.float32(1e-2), "optimizer.weight_decay": jnp.float32(0.0)}
    bag = law.make_bag(0, 9, law.SMALL_BUCKET, (6,), 0.0).replace(covariates=jnp.asarray(RAW))
    previous = None
    if isinstance(method, IBMIL):
        shape = method.parameter_shapes(bag)[DICTIONARY].shape
        previous = TrainState.ended_with({DICTIONARY: jax.random.normal(jax.random.key(2), shape)}, 1)
    state = method.init(jax.random.key(0), bag, hyper, {COVARIATES: FIT}, previous)
    assert state.params[COVARIATES]["kernel"].shape == (3, 2)
    plain = method.predict(state, bag).logits
    kernel = jnp.array([[1.0, -1.0], [7.0, 7.0], [0.0, 2.0]])
    state = state.replace(params={**state.params, COVARIATES: {"kernel": kernel}})
    moved = method.predict(state, bag).logits
    assert not np.allclose(plain, moved)
    if name != "dsmil" and "dtfd" not in name:  # those average streams
        np.testing.assert_allclose(moved - plain, np.array([1.0, 0.0, 0.5]) @ kernel, rtol=1e-4, atol=1e-5)

    @jax.jit
    def step(bag, key):
        bag = bag.replace(covariates=jnp.asarray(RAW))
        batch = Batch(bags=jax.tree.map(lambda x: x[None], bag), targets=jnp.array([1]), weights=jnp.ones(1))
        extras = {"lr": jnp.float32(1e-2)}
        if name == "mhim":
            extras |= {"teacher_rate": jnp.float32(0.1), "mask_random": jnp.array([2])}
        after, metrics = method.step(state, batch, extras, key)
        return law.Seen((after.params[COVARIATES], metrics, method.predict(after, bag).logits), {})

    law.check_padding(step, (6,), bare_sizes=(), min_size=6)


def test_without_covariates_nothing_is_added():
    data, method = engine_data(), strategy()
    constants = method.constants(data.training_bags(plan().replicas[0], lambda: (np.zeros(6), np.zeros(6))))
    bag = law.make_bag(0, 9, law.SMALL_BUCKET, (6,))
    params = method.init(jax.random.key(0), bag, {}, constants, None).params
    assert constants == {}
    assert params.keys() == method.module.init(jax.random.key(0), bag)["params"].keys()


@pytest.mark.full
def test_each_run_has_the_statistics_of_its_own_training_bags_also_when_resumed_and_others_have_no_say(tmp_path):
    data = engine_data()
    rng = np.random.default_rng(0)
    covariates = rng.normal(5, 3, (24, 2)).astype(np.float32)
    held_out = ~data.training[0]
    spoilt = covariates.copy()
    spoilt[held_out] += 1000  # validation and test bags of fold 0

    def trained(values: np.ndarray, listener: Silent | None = None, checkpoints=None):
        with_values = dataclasses.replace(data, covariates=values)
        phases = [Phase(strategy(), 2, Selection("last"))]
        return fit(phases, with_values, TASK, plan(), EngineSettings(), listener or Silent(), checkpoints)

    one, other = trained(covariates), trained(spoilt)

    def saved(name: str) -> Checkpoints:
        return Checkpoints(tmp_path / name, seconds=1e9)

    with pytest.raises(TrainingInterrupted):
        trained(covariates, Silent(stop_after=6), saved)
    jax.tree.map(np.testing.assert_array_equal, trained(covariates, None, saved).state, one.state)
    for r, replica in enumerate(plan().replicas):
        mine = covariates[data.training[replica.fold]]
        np.testing.assert_allclose(one.state[1][COVARIATES]["mean"][r], mine.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(one.state[1][COVARIATES]["scale"][r], 1 / mine.std(axis=0), rtol=1e-5)
        if replica.fold == 0:
            jax.tree.map(lambda a, b, r=r: np.testing.assert_array_equal(a[r], b[r]), one.state, other.state)


def test_the_kernel_is_that_of_a_classifier_of_embedding_and_covariates():
    """The logits equal those of one linear map of both side by side."""
    method = _method("abmil")
    bag = law.make_bag(0, 9, law.SMALL_BUCKET, (6,), 0.0).replace(covariates=jnp.asarray(RAW))
    state = method.init(jax.random.key(0), bag, {}, {COVARIATES: FIT}, None)
    extra = jax.random.normal(jax.random.key(1), (3, 2))
    state = state.replace(params={**state.params, COVARIATES: {"kernel": extra}})
    prediction = method.predict(state, bag)
    classifier = state.params["classifier"]
    both = jnp.concatenate([prediction.embedding, jnp.array([1.0, 0.0, 0.5])])
    kernel = jnp.concatenate([classifier["kernel"], extra])
    np.testing.assert_allclose(prediction.logits, both @ kernel + classifier["bias"], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort whose slides say nothing: the class is in the columns `marker`, of numbers, and `grade`, of text."""
    home = tmp_path_factory.mktemp("covariates")
    cohort = invent(30, signal=0.0)
    rng = np.random.default_rng(0)
    table = cohort.table
    yes = (table["subtype"] == "LUSC").to_numpy()
    per_case = dict(zip(table["case_id"].unique(), rng.normal(0, 0.3, 30)))
    table["marker"] = (100 + 10 * yes + table["case_id"].map(per_case)).round(3)
    table["grade"] = np.where(table["case_id"].str[-1] == "3", "", np.where(yes, "high", "low"))
    write_trident(cohort, home / "own")
    write_labels(cohort, home / "own.csv")
    return home


def _arguments(home: Path, *more: str) -> list[str]:
    data = [f"--config.data.features={home / 'own'}", f"--config.data.labels={home / 'own.csv'}"]
    data += ["--config.data.target=subtype", f"--config.data.cache={home / 'cache'}", "--config.optimizer.lr=0.02"]
    return [*SMALL, *data, "--config.train.epochs=4", *more]


def test_what_only_a_covariate_tells_is_learnt_and_evaluated(home, capsys, tmp_path):
    ended = run(
        train.main, _arguments(home, "--config.data.covariates=marker,grade", f"--config.run={home / 'run'}"), capsys
    )
    assert ended.code == 0, ended.err
    summary = json.loads((home / "run" / "summary.json").read_text())
    assert summary["metrics"]["auc"]["mean"] > 0.95
    assert any("Not from the slides alone" in line for line in summary["statements"])
    _, constants, runs = read_final(home / "run" / "checkpoints")
    table = pd.read_csv(home / "own.csv").set_index("slide_id")
    for r, one in enumerate(runs):
        mine = table.loc[one["training"], "marker"]
        assert constants[COVARIATES]["mean"][r][0] == pytest.approx(mine.mean(), rel=1e-5)
    files = ["--run", str(home / "run"), "--features", str(home / "own"), "--labels", str(home / "own.csv")]
    assert run(evaluate.main, [*files, "--out", str(tmp_path / "out")], capsys).code == 0
    scored = pd.read_csv(tmp_path / "out" / "predictions.csv").set_index(["bag_id", "fold"])["prob_LUSC"]
    trained = pd.read_csv(home / "run" / "predictions.csv").query("part == 'test'")
    trained = trained.set_index(["bag_id", "fold"])["prob_LUSC"]
    np.testing.assert_allclose(scored[trained.index], trained, rtol=1e-4, atol=1e-6)

    strange = pd.read_csv(home / "own.csv").assign(grade="middling")
    strange.to_csv(tmp_path / "strange.csv", index=False)
    refused = run(
        evaluate.main, [*files[:4], "--labels", str(tmp_path / "strange.csv"), "--out", str(tmp_path / "no")], capsys
    )
    assert (refused.code, "'middling' in column 'grade' is none of high, low" in refused.err) == (2, True)
    refused = run(evaluate.main, [*files[:4], "--out", str(tmp_path / "no")], capsys)
    assert (refused.code, "reads marker, grade of the label table" in refused.err) == (2, True)
    lacking = run(
        train.main, _arguments(home, "--config.data.covariates=mark", f"--config.run={tmp_path / 'x'}"), capsys
    )
    assert (lacking.code, "'mark'" in lacking.err and "'marker'" in lacking.err) == (2, True)


@pytest.mark.full
def test_a_linear_probe_reads_them_too(home, capsys, tmp_path):
    arguments = [
        one
        for one in _arguments(home)
        if not one.startswith(("--config=", "--config.aggregator", "--config.optimizer", "--config.train"))
    ]
    arguments += [
        "--config=configs/linear_probe.py",
        "--config.data.covariates=marker,grade",
        f"--config.run={tmp_path / 'run'}",
    ]
    assert run(train.main, arguments, capsys).code == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["metrics"]["auc"]["mean"] > 0.95
    files = ["--run", str(tmp_path / "run"), "--features", str(home / "own"), "--labels", str(home / "own.csv")]
    assert run(evaluate.main, [*files, "--out", str(tmp_path / "out")], capsys).code == 0
    scored = pd.read_csv(tmp_path / "out" / "predictions.csv").set_index(["bag_id", "fold"])["prob_LUSC"]
    trained = pd.read_csv(tmp_path / "run" / "predictions.csv").query("part == 'test'")
    trained = trained.set_index(["bag_id", "fold"])["prob_LUSC"]
    np.testing.assert_allclose(scored[trained.index], trained, rtol=1e-3, atol=1e-5)
