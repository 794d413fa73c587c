"""Temperature scaling finds the temperature that was planted, and the reliability curve counts what it says."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, softmax

from mil_jax.reports.evaluation.calibration import calibrated, choose_temperature, draw_reliability, reliability
from mil_jax.tasks import Classification, MultiLabel


def rows(task: Classification, p: np.ndarray, targets: np.ndarray) -> pd.DataFrame:
    table = pd.DataFrame({f"prob_{name}": p[:, c] for c, name in enumerate(task.classes)})
    if isinstance(task, MultiLabel):
        return table.assign(**{f"target_{name}": targets[:, c] for c, name in enumerate(task.classes)})
    return table.assign(target=np.array(task.classes, dtype=object)[targets])


@pytest.mark.parametrize("classes", [2, 4])
def test_an_overconfident_model_gets_back_the_temperature_it_was_spoilt_by(classes):
    task = Classification(tuple("abcd"[:classes]))
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((20_000, classes)) * 1.5
    targets = (softmax(logits, axis=1).cumsum(axis=1) < rng.random((20_000, 1))).sum(axis=1)
    spoilt = softmax(logits * 3.0, axis=1)
    temperature = choose_temperature(task, rows(task, spoilt, targets))
    assert temperature == pytest.approx(3.0, rel=0.05)
    np.testing.assert_allclose(calibrated(task, spoilt, 3.0), softmax(logits, axis=1), atol=1e-6)


def test_labels_are_scaled_together():
    task = MultiLabel(("a", "b"))
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((10_000, 2))
    targets = (rng.random((10_000, 2)) < expit(logits)).astype(np.float32)
    targets[:50, 0] = np.nan
    assert choose_temperature(task, rows(task, expit(2 * logits), targets)) == pytest.approx(2.0, rel=0.1)


def test_few_validation_cases_give_no_temperature():
    task = Classification(("a", "b"))
    assert np.isnan(choose_temperature(task, rows(task, np.full((12, 2), 0.5), np.array([0] * 9 + [1] * 3))))


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
