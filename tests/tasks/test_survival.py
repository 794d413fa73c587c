"""Survival: bins from the training part alone, losses under padding and company, Cox over a step, metrics against brute force."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from mil_jax.bags import Prediction
from mil_jax.config import parse
from mil_jax.data.cohort.settings import CohortSettings
from mil_jax.data.splits.folds import TEST
from mil_jax.errors import ConfigError, DataError
from mil_jax.experiment.prepare import prepare
from mil_jax.run_folder.tasks_json import described, restored
from mil_jax.tasks.base import fitted
from mil_jax.tasks.metrics.kaplan_meier import censoring, kaplan_meier, log_rank
from mil_jax.tasks.metrics.survival import Cases, brier, concordance, dynamic_auc, integrated
from mil_jax.tasks.survival import Survival, bin_edges
from mil_jax.tasks.survival_losses import cox
from tests.skips import needs

COHORT = CohortSettings("labels.csv", ("months", "died"), numbers=("months",), events=("died",))


def invented(number: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(targets [M, 2] with tied times, risks [M] with ties)."""
    rng = np.random.default_rng(seed)
    time, event = rng.integers(1, 25, number) / 2.0, rng.random(number) < 0.6
    risk = np.round(rng.normal(size=number) - 0.2 * time, 1)
    return np.stack([time, event], axis=1), risk


def make_task(targets: np.ndarray, **settings: object) -> Survival:
    labels = pd.DataFrame(targets, columns=["months", "died"])
    return fitted(Survival.for_labels(labels, COHORT, settings), targets)


@pytest.mark.parametrize("loss_name", Survival.losses)
def test_the_validation_loss_is_the_loss_of_training(loss_name):
    targets, _ = invented()
    task = make_task(targets, loss_name=loss_name, alpha=0.3)
    logits = np.random.default_rng(1).normal(size=(60, task.num_outputs)).astype(np.float32) * 3
    loss = task.loss(Prediction(logits=jnp.asarray(logits)), jnp.asarray(targets), jnp.ones(60))
    assert task.monitor("val_loss", logits, targets) == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize("loss_name", Survival.losses)
def test_empty_places_and_unknown_times_change_neither_loss_nor_gradient(loss_name):
    targets, _ = invented(12)
    task = make_task(invented()[0], loss_name=loss_name)
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(12, task.num_outputs)).astype(np.float32)
    padded = np.concatenate([logits, np.full((3, task.num_outputs), np.nan, np.float32)])
    more = np.concatenate([targets, [[np.nan, np.nan], [2.0, 1.0], [3.0, 0.0]]])
    weights = jnp.array([1.0] * 13 + [0.0] * 2)

    def loss(x: jax.Array, y: np.ndarray, w: jax.Array) -> jax.Array:
        return task.loss(Prediction(logits=x), jnp.asarray(y), w)

    alone = jax.value_and_grad(loss)(jnp.asarray(logits), targets, jnp.ones(12))
    beside = jax.value_and_grad(loss)(jnp.asarray(padded), more, weights)
    assert float(beside[0]) == pytest.approx(float(alone[0]), rel=1e-6)
    np.testing.assert_allclose(beside[1][:12], alone[1], rtol=1e-5, atol=1e-7)
    assert (np.asarray(beside[1][12:]) == 0).all()


@pytest.mark.parametrize("loss_name", Survival.losses)
def test_replicas_with_bins_of_their_own_have_the_losses_of_single_ones(loss_name):
    task = make_task(invented()[0], loss_name=loss_name)
    targets = np.stack([invented(9, seed)[0] for seed in range(3)])
    learnt = [task.fit_targets(invented(60, seed)[0]) for seed in range(3)]
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *learnt)
    logits = np.random.default_rng(0).normal(size=(3, 9, task.num_outputs)).astype(np.float32)

    def loss(fields: dict[str, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
        return dataclasses.replace(task, **fields).loss(Prediction(logits=x), y, jnp.ones(9))

    together = jax.vmap(loss)(stacked, logits, targets)
    single = [loss(one, jnp.asarray(x), jnp.asarray(y)) for one, x, y in zip(learnt, logits, targets)]
    np.testing.assert_allclose(together, single, rtol=1e-5)


def test_coxs_risk_sets_hold_over_any_range_of_risks():
    time, event, theta = jnp.array([1.0, 2.0, 3.0]), jnp.ones(3), jnp.array([200.0, -200.0, 0.0])
    value, gradient = jax.value_and_grad(lambda x: cox(x, time, event, jnp.ones(3, bool)))(theta)
    assert float(value) == pytest.approx((0 + 200 + 0) / 3, rel=1e-6)
    assert np.isfinite(gradient).all()
    assert float(cox(theta, time, jnp.zeros(3), jnp.ones(3, bool))) == 0


def test_bins_are_those_of_the_training_part():
    targets, _ = invented()
    task = make_task(targets)
    np.testing.assert_allclose(task.fit_targets(targets[:30])["edges"], bin_edges(*targets[:30].T, 4), rtol=1e-6)
    with pytest.raises(DataError, match="do not fill task"):
        task.fit_targets(targets[targets[:, 1] == 0])
    with pytest.raises(DataError, match="fold 1: the training part has no event"):
        task.require_trainable(targets[targets[:, 1] == 0], "fold 1")


def test_bins_of_the_whole_cohort_are_those_of_published_code_and_only_by_name():
    targets, _ = invented()
    labels = pd.DataFrame(targets, columns=["months", "died"])
    whole = Survival.for_labels(labels, COHORT, {"bins_from": "cohort"})
    for part in (targets[:30], targets[30:]):
        np.testing.assert_allclose(whole.fit_targets(part)["edges"], bin_edges(*targets.T, 4), rtol=1e-6)
    assert whole.bins_leak
    assert not make_task(targets).bins_leak
    assert Survival.for_labels(labels, COHORT, {"bins_from": "cohort", "loss_name": "cox"}).fit_targets(targets) == {}
    assert restored(json.loads(json.dumps(described(whole)))) == whole


@pytest.mark.parametrize("loss_name", Survival.losses)
def test_curves_fall_and_the_higher_risk_has_the_lower_curve(loss_name):
    targets, risk = invented()
    task = make_task(targets, loss_name=loss_name)
    logits = np.repeat(risk[:, None], task.num_outputs, axis=1)
    task = task.fit_predictions(logits, targets)
    outputs = task.probabilities(logits)
    assert outputs.shape == (60, len(task.output_names))
    survival = outputs[:, 2:]
    assert (np.diff(survival, axis=1) <= 0).all()
    assert (np.diff(survival[np.argsort(outputs[:, 0])], axis=0) <= 1e-12).all()
    assert outputs[:, 1].sum() == (outputs[:, 0] > np.median(outputs[:, 0])).sum()
    again = dataclasses.replace(make_task(targets, loss_name=loss_name), **task.of_run())
    np.testing.assert_array_equal(again.probabilities(logits), outputs)


def test_breslows_baseline_of_equal_risks_is_nelson_aalens():
    targets, _ = invented()
    task = make_task(targets, loss_name="cox").fit_predictions(np.zeros((60, 1)), targets)
    hazard = [sum(1 / (targets[:, 0] >= t).sum() for t, e in targets if e and t <= time) for time in task.times]
    np.testing.assert_allclose(task.probabilities(np.zeros((1, 1)))[0, 2:], np.exp(-np.array(hazard)), rtol=1e-12)


def test_counts_as_weights_equal_metrics_of_the_resampled_cases():
    targets, risk = invented(80)
    task = make_task(targets)
    survival = np.sort(np.random.default_rng(0).random((80, len(task.times))), axis=1)[:, ::-1]
    outputs = np.concatenate([risk[:, None], np.zeros((80, 1)), survival], axis=1)
    folds = np.arange(80) % 3
    drawn = np.random.default_rng(1).integers(0, 80, (20, 80))
    weights = np.stack([np.bincount(row, minlength=80) for row in drawn]).astype(float)
    values = task.weighted_metrics(outputs, targets, weights, folds)
    compared = 0
    for b, row in enumerate(drawn):
        if targets[row, 0].max() < targets[:, 0].max():
            continue  # its own times would end earlier
        expected = task.metrics(outputs[row], targets[row], folds[row])
        for name in task.metric_names:
            assert values[name][b] == pytest.approx(expected[name], abs=1e-9, nan_ok=True), (name, b)
        compared += 1
    assert compared > 3


def test_pairs_are_compared_within_their_group():
    targets, risk = invented(40)
    folds = np.arange(40) % 2
    shifted = risk + 100.0 * folds
    once = np.ones((1, 40))
    cases = Cases(targets[:, 0], targets[:, 1] > 0, risk, folds)
    assert concordance(cases, once).harrell == concordance(cases._replace(risk=shifted), once).harrell


def _oracle_case(seed: int) -> tuple[Cases, np.ndarray]:
    targets, risk = invented(150, seed)
    return Cases(targets[:, 0], targets[:, 1] > 0, risk, np.zeros(150)), np.ones((1, 150))


@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_scikit_survivals(seed):
    sksurv = needs("sksurv.metrics")
    from sksurv.util import Surv

    cases, once = _oracle_case(seed)
    train, _ = invented(200, 100 + seed)
    train[-1] = [30.0, 0]  # censored last, so that every time has a weight
    times = np.quantile(cases.time[cases.event], np.linspace(0.1, 0.8, 7))
    survival = np.sort(np.random.default_rng(seed).random((150, 7)), axis=1)[:, ::-1]
    past, here = Surv.from_arrays(train[:, 1] > 0, train[:, 0]), Surv.from_arrays(cases.event, cases.time)
    censored = censoring(*train.T)
    ours = concordance(cases, once, censored, 10.0)
    assert ours.harrell[0] == pytest.approx(
        sksurv.concordance_index_censored(cases.event, cases.time, cases.risk)[0], abs=1e-9
    )
    assert ours.uno[0] == pytest.approx(sksurv.concordance_index_ipcw(past, here, cases.risk, tau=10.0)[0], abs=1e-9)
    auc, mean = sksurv.cumulative_dynamic_auc(past, here, cases.risk, times)
    found = dynamic_auc(cases, once, times, censored)
    np.testing.assert_allclose(found.at[0], auc, atol=1e-9)
    assert found.mean[0] == pytest.approx(mean, abs=1e-9)
    _, scores = sksurv.brier_score(past, here, survival, times)
    ours_brier = brier(cases, survival, once, times, censored)
    np.testing.assert_allclose(ours_brier[0], scores, atol=1e-9)
    whole = sksurv.integrated_brier_score(past, here, survival, times)
    assert integrated(ours_brier, times)[0] == pytest.approx(whole, abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_curves_and_tests_are_lifelines(seed):
    needs("lifelines")
    from lifelines import KaplanMeierFitter
    from lifelines.statistics import multivariate_logrank_test
    from lifelines.utils import concordance_index

    cases, once = _oracle_case(seed)
    fitted = KaplanMeierFitter().fit(cases.time, cases.event)
    points = np.linspace(0, 14, 57)
    ours = kaplan_meier(cases.time, cases.event).at(points)[0]
    np.testing.assert_allclose(ours, fitted.survival_function_at_times(points).to_numpy(), atol=1e-9)
    for groups in (2, 3):
        group = np.arange(150) % groups
        theirs = multivariate_logrank_test(cases.time, group, cases.event)
        found = log_rank(cases.time, cases.event, group)
        assert found.chi2 == pytest.approx(theirs.test_statistic, abs=1e-9)
        assert found.p == pytest.approx(theirs.p_value, abs=1e-9)
    harrell = concordance(cases, once).harrell[0]
    assert harrell == pytest.approx(concordance_index(cases.time, -cases.risk, cases.event), abs=1e-9)


def test_published_c_indices_are_recomputed_from_published_risks(shared):
    folder = shared / "data" / "survival_predictions"
    compared = 0
    for published in sorted(folder.glob("*_cindex.csv")):
        risks = pd.read_csv(folder / published.name.replace("_cindex", ""))
        for row in pd.read_csv(published).itertuples():
            if not row.exact:
                continue
            mine = risks[(risks["method"] == row.method) & (risks["fold"] == row.fold)]
            cases = Cases(
                mine["months"].to_numpy(), mine["event"].to_numpy() > 0, mine["risk"].to_numpy(), np.zeros(len(mine))
            )
            value = concordance(cases, np.ones((1, len(mine)))).harrell[0]
            assert value == pytest.approx(row.cindex, abs=1e-9), (published.name, row.method, row.fold)
            compared += 1
    assert compared > 30


def test_metrics_without_a_pair_are_nan_without_a_warning():
    task = make_task(invented()[0])
    outputs = np.zeros((3, len(task.output_names)))
    values = task.metrics(outputs, np.array([[1.0, 0], [2.0, 0], [np.nan, np.nan]]))
    assert np.isnan(list(values.values())).all()
    assert np.isnan(list(task.metrics(outputs[:0], np.zeros((0, 2))).values())).all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"loss_name": "mse"}, "nll"), ({"ties": "exact"}, "efron"), ({"bins_from": "test"}, "cohort")],
)
def test_settings_that_cannot_work_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        make_task(invented()[0], **settings)


def test_a_cohort_in_which_nobody_is_censored_is_trained(tmp_path):
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"case_id": [f"p{i}" for i in range(24)], "months": rng.exponential(9, 24).round(2), "event": 1}
    )
    table.assign(slide_id=table["case_id"]).to_csv(tmp_path / "labels.csv", index=False)
    (tmp_path / "features").mkdir()
    for patient in table["case_id"]:
        np.save(tmp_path / "features" / f"{patient}.npy", rng.normal(size=(4, 8)).astype(np.float32))
    data = {"features": tmp_path / "features", "labels": tmp_path / "labels.csv", "target": "months", "event": "event"}
    data |= {"cache": tmp_path / "cache"}
    arguments = ["--config=configs/survival.py", "--config.splits.folds=2"]
    experiment = prepare(parse([*arguments, *(f"--config.data.{k}={v}" for k, v in data.items())], lambda _: None)[0])
    (target,) = experiment.targets
    assert (target.splits.parts == TEST).sum() == 24
