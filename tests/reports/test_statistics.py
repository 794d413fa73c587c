"""The statistics of a cross-validated result against scikit-learn on data resampled the plain way."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from mil_jax.reports import statistics
from mil_jax.tasks import Classification, MultiLabel
from mil_jax.tasks.metrics.classification import NAMES
from mil_jax.tasks.predictions_table import per_patient, predictions_table, probabilities_of, targets_of
from tests.reports.conftest import invented_predictions

TASKS = {
    "two classes": Classification(("a", "b")),
    "four classes": Classification(("a", "b", "c", "d")),
    "sigmoid outputs": Classification(("a", "b", "c"), "binary_cross_entropy"),
    "multi-label": MultiLabel(("x", "y", "z")),
}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS.keys())
def test_counts_as_weights_equal_metrics_of_the_resampled_cases(task):
    table = invented_predictions(task, folds=1, seeds=1, bags=80)
    p, y = probabilities_of(table, task), targets_of(table, task)
    drawn = np.random.default_rng(1).integers(0, 80, (20, 80))
    weights = np.stack([np.bincount(row, minlength=80) for row in drawn]).astype(float)
    values = task.weighted_metrics(p, y, weights)
    for b, row in enumerate(drawn):
        expected = task.metrics(p[row], y[row])
        for name in NAMES:
            assert values[name][b] == pytest.approx(expected[name], abs=1e-9, nan_ok=True), (name, b)


def test_the_weighted_auc_with_ties_is_scikit_learns():
    task, rng = TASKS["two classes"], np.random.default_rng(2)
    y, score = rng.integers(0, 2, 50), np.round(rng.random(50), 1)
    weights = rng.integers(0, 4, (10, 50)).astype(float)
    values = task.weighted_metrics(np.stack([1 - score, score], 1), y, weights)
    for b, w in enumerate(weights):
        assert values["auc"][b] == pytest.approx(
            sk.roc_auc_score(np.repeat(y, w.astype(int)), np.repeat(score, w.astype(int)))
        )
        assert values["average_precision"][b] == pytest.approx(sk.average_precision_score(y, score, sample_weight=w))


def test_a_resample_without_a_class_is_nan_only_where_that_matters():
    task = TASKS["two classes"]
    p = np.array([[0.3, 0.7], [0.6, 0.4], [0.2, 0.8]])
    values = task.weighted_metrics(p, np.array([1, 0, 1]), np.array([[1.0, 0.0, 2.0]]))
    assert np.isnan(values["auc"][0])
    assert values["accuracy"][0] == 1.0


def test_the_interval_is_that_of_a_plain_patient_bootstrap(binary):
    predictions = invented_predictions(binary, folds=3, seeds=2, bags=90, bags_per_patient=3)
    interval = statistics.bootstrap_intervals(binary, predictions, resamples=200)["log_loss"]
    rng = np.random.default_rng(9)
    patients = predictions["patient_id"].unique()
    values = []
    for _ in range(200):
        count = pd.Series(rng.choice(patients, len(patients))).value_counts()
        rows = predictions.loc[predictions.index.repeat(predictions["patient_id"].map(count).fillna(0).astype(int))]
        values.append(
            np.mean([sk.log_loss(one["target"] == "tumor", one["prob_tumor"]) for _, one in rows.groupby("seed")])
        )
    np.testing.assert_allclose(interval[:2], np.quantile(values, [0.025, 0.975]), atol=0.025)


def test_bags_of_one_patient_are_drawn_together(binary):
    """Five copies of every bag know no more than one: the interval stays, and narrows only when they are cut loose."""
    single = invented_predictions(binary, folds=1, seeds=1, bags=60)
    copies = pd.concat([single] * 5, ignore_index=True)
    loose = copies.assign(patient_id=[str(i) for i in range(len(copies))])
    width = [
        (lambda i: i.high - i.low)(statistics.bootstrap_intervals(binary, table)["accuracy"])
        for table in (single, copies, loose)
    ]
    assert width[1] == pytest.approx(width[0], rel=0.15)
    assert width[2] < 0.6 * width[0]


def test_spread_separates_folds_from_seeds(binary, binary_predictions):
    runs = statistics.run_metrics(binary, binary_predictions)
    auc = statistics.spread(binary, binary_predictions, runs)["auc"]
    by_fold = np.zeros((5, 2))
    for (fold, seed), rows in binary_predictions.groupby(["fold", "seed"]):
        by_fold[fold, seed] = sk.roc_auc_score(rows["target"] == "tumor", rows["prob_tumor"])
    seeds = []
    for _, rows in binary_predictions.groupby("seed"):
        pairs = rows.groupby("fold")["target"].apply(lambda y: (y == "tumor").sum() * (y != "tumor").sum())
        seeds.append(np.average(by_fold[:, len(seeds)], weights=pairs))
    across = [
        sk.roc_auc_score(rows["target"] == "tumor", rows["prob_tumor"])
        for _, rows in binary_predictions.groupby("seed")
    ]
    assert auc["mean"] == pytest.approx(by_fold.mean())
    assert auc["sd_folds"] == pytest.approx(by_fold.mean(1).std(ddof=1))
    assert auc["estimate"] == pytest.approx(np.mean(seeds))
    assert auc["across_folds"] == pytest.approx(np.mean(across))
    assert auc["sd_seeds"] == pytest.approx(np.std(seeds, ddof=1))
    assert (auc["worst"], auc["worst_fold"]) == (pytest.approx(by_fold.mean(1).min()), by_fold.mean(1).argmin())


def test_the_worst_fold_of_a_loss_is_its_largest(binary, binary_predictions):
    runs = statistics.run_metrics(binary, binary_predictions)
    worst = statistics.spread(binary, binary_predictions, runs)["log_loss"]["worst"]
    assert worst == pytest.approx(runs.groupby("fold")["log_loss"].mean().max())


def test_a_fold_lacking_a_class_is_nan_and_the_estimate_stands(binary, binary_predictions):
    table = binary_predictions[(binary_predictions["fold"] != 2) | (binary_predictions["target"] == "normal")]
    runs = statistics.run_metrics(binary, table)
    auc = statistics.spread(binary, table, runs)["auc"]
    assert runs.loc[runs["fold"] == 2, "auc"].isna().all()
    assert auc["undefined_folds"] == 1
    assert np.isfinite([auc["mean"], auc["estimate"]]).all()


def test_a_patients_probability_is_the_mean_of_its_bags(binary):
    predictions = invented_predictions(binary, folds=2, seeds=1, bags=12, bags_per_patient=3)
    merged = per_patient(predictions, binary)
    one = predictions[predictions["patient_id"] == "patient_1"]
    row = merged[merged["patient_id"] == "patient_1"].iloc[0]
    assert len(merged) == 4
    assert row["prob_tumor"] == pytest.approx(one["prob_tumor"].mean())
    assert row["target"] == one["target"].iloc[0]


def test_a_patient_whose_bags_disagree_has_no_label(binary):
    predictions = invented_predictions(binary, folds=1, seeds=1, bags=6, bags_per_patient=2)
    predictions.loc[:1, "target"] = ["normal", "tumor"]
    assert targets_of(per_patient(predictions, binary), binary)[0] == -1


def test_patients_are_told_apart_from_bags_only_where_they_differ(binary, binary_predictions):
    assert statistics.patient_statistics(binary, binary_predictions) is None
    several = invented_predictions(binary, bags_per_patient=2)
    assert statistics.patient_statistics(binary, several)["auc"]["mean"] > 0.5


def test_the_leak_free_part_leaves_out_bags_whose_patient_was_trained_on(binary, binary_predictions):
    assert statistics.leak_free_statistics(binary, binary_predictions) is None
    leaked = binary_predictions.assign(leaked=binary_predictions["bag_id"] == "slide_0")
    clean = binary_predictions[binary_predictions["bag_id"] != "slide_0"]
    expected = statistics.spread(binary, clean, statistics.run_metrics(binary, clean))
    assert statistics.leak_free_statistics(binary, leaked)["auc"] == pytest.approx(expected["auc"])


def test_the_majority_control_has_the_majoritys_accuracy_and_no_skill(binary, binary_predictions):
    frequencies = {fold: np.array([0.7, 0.3]) for fold in range(5)}
    values = statistics.constant_control(binary, binary_predictions, frequencies)
    one_seed = binary_predictions[binary_predictions["seed"] == 0]
    share = (one_seed["target"] == "normal").groupby(one_seed["fold"]).mean().mean()
    assert values["accuracy"] == pytest.approx(share)
    assert values["auc"] == 0.5


def test_the_bag_size_control_finds_sizes_that_tell_the_class(binary, binary_predictions):
    assert statistics.bag_size_control(binary, binary_predictions)["auc"] < 0.65
    smaller = np.where(binary_predictions["target"] == "tumor", 1, 10)
    assert statistics.bag_size_control(binary, binary_predictions.assign(num_instances=smaller)) == {"auc": 1.0}


def test_thresholds_come_from_the_runs_own_validation_part(binary):
    test, validation = (invented_predictions(binary, bags=200, part=part) for part in ("test", "val"))
    values = statistics.threshold_metrics(binary, test, validation)
    assert list(values.columns[2:]) == ["accuracy_at_threshold", "balanced_accuracy_at_threshold", "f1_at_threshold"]
    assert len(values) == 10
    assert statistics.threshold_metrics(binary, test, validation.groupby(["fold", "seed"]).head(8)).empty


def test_seeds_and_weights_rank_within_folds_as_pairs_do(binary, binary_predictions):
    """Weighted AUC and average precision within folds are those of the drawn cases, fold by fold."""
    table = binary_predictions[binary_predictions["seed"] == 0].reset_index(drop=True)
    p, y, folds = probabilities_of(table, binary), targets_of(table, binary), table["fold"].to_numpy()
    drawn = np.random.default_rng(3).integers(0, len(table), (10, len(table)))
    weights = np.stack([np.bincount(row, minlength=len(table)) for row in drawn]).astype(float)
    values = binary.weighted_metrics(p, y, weights, folds)
    for b, row in enumerate(drawn):
        expected = binary.metrics(p[row], y[row], folds[row])
        for name in ("auc", "average_precision"):
            assert values[name][b] == pytest.approx(expected[name], abs=1e-9)


@pytest.mark.parametrize("size", [20, 200])
def test_a_perfect_ranking_has_an_interval_with_a_width(size, binary):
    label = np.arange(size) % 2
    table = predictions_table(
        binary,
        bag_ids=[f"s{bag}" for bag in range(size)],
        patient_ids=[f"p{bag}" for bag in range(size)],
        num_instances=np.ones(size),
        fold=0,
        seed=0,
        part="test",
        targets=label,
        probabilities=np.stack([1 - label, label], axis=1) * 0.8 + 0.1,
    )
    interval = statistics.bootstrap_intervals(binary, table)
    assert interval["auc"].high == 1.0
    assert 0.3 / size < 1 - interval["auc"].low < 5 / size
    assert np.isnan(interval["accuracy"][:2]).all()  # every resample is the same: no interval rather than a point
