"""Recalibration finds the temperature and the shift that were planted, and the reliability curve counts what it says."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression

from benchmarks.validity import calibration_of_ensembles
from mil_jax.reports.evaluation.calibration import draw_reliability, fitted, reliability
from mil_jax.tasks import Classification, MultiLabel
from mil_jax.tasks.metrics.recalibration import scores_of


def rows(task: Classification, p: np.ndarray, targets: np.ndarray) -> pd.DataFrame:
    table = pd.DataFrame({f"prob_{name}": p[:, c] for c, name in enumerate(task.classes)})
    if isinstance(task, MultiLabel):
        return table.assign(**{f"target_{name}": targets[:, c] for c, name in enumerate(task.classes)})
    return table.assign(target=np.array(task.classes, dtype=object)[targets])


@pytest.mark.parametrize("classes", [2, 4])
def test_an_overconfident_and_shifted_model_is_restored(classes):
    task = Classification(tuple("abcd"[:classes]))
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((20_000, classes)) * 1.5
    targets = (softmax(logits, axis=1).cumsum(axis=1) < rng.random((20_000, 1))).sum(axis=1)
    spoilt = softmax(3.0 * logits + np.arange(classes), axis=1)
    found = fitted(task, rows(task, spoilt, targets))
    assert found.temperature == pytest.approx(3.0, rel=0.05)
    np.testing.assert_allclose(found(scores_of(spoilt, exclusive=True)), softmax(logits, axis=1), atol=0.04)


def test_two_classes_are_fitted_as_by_logistic_regression():
    rng = np.random.default_rng(2)
    logits = rng.standard_normal(5_000)
    targets = (rng.random(5_000) < expit(0.5 * logits - 1)).astype(int)
    p, task = np.stack([expit(-logits), expit(logits)], axis=1), Classification(("a", "b"))
    found = fitted(task, rows(task, p, targets))
    oracle = LogisticRegression(C=np.inf).fit(logits[:, None], targets)
    assert 1 / found.temperature == pytest.approx(oracle.coef_[0, 0], rel=0.03)
    np.testing.assert_allclose(found(scores_of(p, exclusive=True)), oracle.predict_proba(logits[:, None]), atol=0.01)


def test_labels_share_a_temperature_and_have_a_bias_each():
    task = MultiLabel(("a", "b"))
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((10_000, 2))
    targets = (rng.random((10_000, 2)) < expit(logits)).astype(np.float32)
    targets[:50, 0] = np.nan
    found = fitted(task, rows(task, expit(2 * logits + [0.0, 2.0]), targets))
    assert found.temperature == pytest.approx(2.0, rel=0.1)
    np.testing.assert_allclose(found.bias, [0.0, -1.0], atol=0.1)


def test_few_validation_cases_are_not_fitted():
    task = Classification(("a", "b"))
    assert fitted(task, rows(task, np.full((12, 2), 0.5), np.array([0] * 9 + [1] * 3))) is None


def test_calibrating_an_ensemble_worsens_neither_its_log_loss_nor_its_decisions():
    """A small form of the committed simulation: by single models' scores both got worse in most settings."""
    for row in calibration_of_ensembles(repeats=25, cases=(100,), seeds=(2,), settings=8):
        assert row["log_loss"]["calibrated"] < row["log_loss"]["average"] + 0.012, row
        assert row["accuracy"]["calibrated"] > row["accuracy"]["single models' threshold"] - 0.01, row


def test_the_reliability_curve_counts_the_cases_of_each_bin(tmp_path):
    task = Classification(("a", "b"))
    p = np.array([0.05, 0.05, 0.95, 0.95, 0.95])
    table = rows(task, np.stack([1 - p, p], axis=1), np.array([0, 1, 1, 1, 0]))
    said, so, cases = reliability(task, table)
    np.testing.assert_allclose(said, [0.05, 0.95])
    np.testing.assert_allclose(so, [1 / 2, 2 / 3])
    np.testing.assert_array_equal(cases, [2, 3])
    assert draw_reliability(task, [("x", table)], tmp_path / "r.png", title="t")
    assert not draw_reliability(task, [("x", table.iloc[:0])], tmp_path / "none.png", title="t")
