"""Regression against scipy and scikit-learn, with ties and unknown values; ordinal classes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics as sk

from mil_jax.bags import Prediction
from mil_jax.data.cohort.settings import CohortSettings
from mil_jax.errors import DataError
from mil_jax.tasks import Ordinal, Regression
from mil_jax.tasks.base import fitted

COHORT = CohortSettings("labels.csv", ("x",), numbers=("x",))


def invented(number: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """(predictions, targets) [M, 2] with ties; of the second column some are unknown."""
    rng = np.random.default_rng(0)
    targets = np.round(rng.normal(5, 3, (number, 2)), 0)
    predictions = np.round(targets + rng.normal(0, 2, (number, 2)), 0)
    targets[rng.random(number) < 0.2, 1] = np.nan
    return predictions, targets


def test_metrics_are_those_of_scipy_and_scikit_learn():
    predictions, targets = invented()
    values = Regression(("a", "b")).metrics(predictions, targets)
    for column, name in enumerate(("a", "b")):
        known = ~np.isnan(targets[:, column])
        p, y = predictions[known, column], targets[known, column]
        expected = {
            "pearson": stats.pearsonr(p, y)[0],
            "spearman": stats.spearmanr(p, y)[0],
            "r2": sk.r2_score(y, p),
            "mae": sk.mean_absolute_error(y, p),
            "rmse": sk.root_mean_squared_error(y, p),
        }
        for metric, value in expected.items():
            assert values[f"{metric}_{name}"] == pytest.approx(value, abs=1e-9)
    assert values["pearson"] == pytest.approx((values["pearson_a"] + values["pearson_b"]) / 2, abs=1e-12)


@pytest.mark.parametrize("task", [Regression(("a", "b")), Ordinal(("low", "mid", "high"))], ids=("numbers", "ordinal"))
def test_counts_as_weights_equal_metrics_of_the_resampled_cases(task):
    predictions, targets = invented()
    if isinstance(task, Ordinal):
        rng = np.random.default_rng(3)
        predictions, targets = rng.dirichlet(np.ones(3), 60), rng.integers(-1, 3, 60)
    drawn = np.random.default_rng(1).integers(0, 60, (15, 60))
    weights = np.stack([np.bincount(row, minlength=60) for row in drawn]).astype(float)
    values = task.weighted_metrics(predictions, targets, weights)
    for b, row in enumerate(drawn):
        expected = task.metrics(predictions[row], targets[row])
        for name in task.metric_names:
            assert values[name][b] == pytest.approx(expected[name], abs=1e-9, nan_ok=True), (name, b)


@pytest.mark.parametrize("loss_name", Regression.losses)
def test_the_validation_loss_is_the_loss_of_training_and_unknown_values_count_for_nothing(loss_name):
    _, targets = invented()
    targets = targets.astype(np.float32)
    task = fitted(Regression(("a", "b"), loss_name=loss_name), targets)
    logits = np.random.default_rng(1).normal(size=(60, 2)).astype(np.float32) * 2

    def loss(x: jax.Array) -> jax.Array:
        return task.loss(Prediction(logits=x), jnp.asarray(targets), jnp.ones(60))

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(logits))
    assert task.monitor("val_loss", logits, targets) == pytest.approx(float(value), rel=1e-5)
    assert ((np.asarray(gradient) == 0) == np.isnan(targets)).all()


def test_predictions_are_in_the_unit_of_the_table():
    _, targets = invented()
    task = fitted(Regression(("a", "b")), targets)
    assert task.probabilities(np.zeros((1, 2)))[0] == pytest.approx(np.nanmean(targets, axis=0), rel=1e-6)
    assert task.constant(targets) == pytest.approx(np.nanmean(targets, axis=0))


def test_log1p_is_taken_of_the_table_and_refuses_what_has_none():
    task = Regression.for_labels(pd.DataFrame({"x": ["0", "9", "99"]}), COHORT, {"transform": "log1p"})
    assert task.targets(pd.DataFrame({"x": ["0", "9"]}))[:, 0].tolist() == pytest.approx([0, 1])
    with pytest.raises(DataError, match="no logarithm"):
        task.targets(pd.DataFrame({"x": ["-2"]}, index=["bag"]))


def test_predictions_that_do_not_vary_have_no_correlation_and_no_warning():
    values = Regression(("a",)).metrics(np.full((20, 1), 0.1), np.arange(20.0)[:, None])
    assert np.isnan(values["pearson"])
    assert np.isnan(values["spearman"])
    assert values["r2"] < 0


def test_ordinal_answers_become_probabilities_of_classes_and_their_kappa_is_scikit_learns():
    task, rng = Ordinal(("low", "mid", "high")), np.random.default_rng(0)
    logits, targets = rng.normal(size=(50, 2)), rng.integers(0, 3, 50)
    p = task.probabilities(logits)
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1)
    expected = sk.cohen_kappa_score(targets, p.argmax(axis=1), weights="quadratic")
    assert task.metrics(p, targets)["quadratic_kappa"] == pytest.approx(expected, abs=1e-9)
    loss = task.loss(Prediction(logits=jnp.asarray(logits)), jnp.asarray(targets), jnp.ones(50))
    assert task.monitor("val_loss", logits, targets) == pytest.approx(float(loss), rel=1e-5)
