"""Linear probes against scikit-learn, and through the command."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from mil_jax.experiment.linear_probe import _path
from mil_jax.tasks import Classification, Regression
from mil_jax.tasks.base import fitted

STRENGTHS = [1.0, 0.1, 0.01]


def invented() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(features [60, 4], targets, training)."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, 4)) * [1, 2, 3, 0] + 5  # the last column is constant
    return features, features @ [1.0, -0.5, 0.2, 0.0] + rng.normal(size=60), np.arange(60) < 45


def scaled(features: np.ndarray, training: np.ndarray) -> np.ndarray:
    spread = features[training].std(axis=0)
    return (features - features[training].mean(axis=0)) / np.where(spread > 0, spread, 1)


def test_a_probe_of_classes_is_l2_logistic_regression():
    features, values, training = invented()
    classes = (values > np.median(values)).astype(np.int32)
    z = scaled(features, training)
    found = _path(Classification(("no", "yes")), features, classes, training, STRENGTHS)
    for strength, (kernel, bias, _) in zip(STRENGTHS, found, strict=True):
        # Two logits share the weight of one: their difference is the log odds, and has twice the penalty's freedom.
        oracle = LogisticRegression(C=1 / (0.5 * strength * training.sum()), tol=1e-10, max_iter=10_000)
        odds = oracle.fit(z[training], classes[training]).decision_function(z)
        logits = features @ kernel + bias
        np.testing.assert_allclose(logits[:, 1] - logits[:, 0], odds, rtol=1e-4, atol=1e-4)


def test_a_probe_of_numbers_is_ridge_regression():
    features, values, training = invented()
    targets = values[:, None]
    task = fitted(Regression(("x",)), targets[training])
    z = scaled(features, training)
    for strength, (kernel, bias, _) in zip(STRENGTHS, _path(task, features, targets, training, STRENGTHS), strict=True):
        oracle = Ridge(alpha=strength * training.sum() / 2).fit(z[training], values[training])
        predicted = task.probabilities(features @ kernel + bias)[:, 0]
        np.testing.assert_allclose(predicted, oracle.predict(z), rtol=1e-4, atol=1e-4)


def test_strengths_that_are_none_are_refused():
    from mil_jax.errors import ConfigError
    from mil_jax.strategies.linear_probe_settings import LinearProbeSettings

    with pytest.raises(ConfigError, match="positive numbers"):
        LinearProbeSettings(strengths=(0.1, 0.0))
