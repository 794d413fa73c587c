"""Several columns of classes by one model: what each column says is what a classification of it alone says."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from mil_jax.bags import Prediction
from mil_jax.data.cohort.settings import CohortSettings
from mil_jax.errors import ConfigError, DataError
from mil_jax.run_folder.tasks_json import described, restored
from mil_jax.tasks import Classification, MultiClass

COLUMNS, CLASSES = ("gene", "stage"), (("mut", "wt"), ("I", "II", "III"))


def invented(number: int = 60) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """(logits [M, 5], targets [M, 5], class numbers of each column, -1 = unknown)."""
    rng = np.random.default_rng(0)
    indices = [rng.integers(-1, 2, number), rng.integers(-1, 3, number)]
    return rng.normal(size=(number, 5)).astype(np.float32), MultiClass(COLUMNS, CLASSES)._one_hot(indices), indices


@pytest.mark.parametrize("loss_name", MultiClass.losses)
def test_the_loss_is_the_mean_over_known_columns_and_that_of_validation(loss_name):
    task, (logits, targets, indices) = MultiClass(COLUMNS, CLASSES, loss_name), invented()

    def loss(x: jax.Array, weights: jax.Array) -> jax.Array:
        return task.loss(Prediction(logits=x), jnp.asarray(targets), weights)

    found, gradient = jax.value_and_grad(loss)(jnp.asarray(logits), jnp.ones(60))
    assert task.monitor("val_loss", logits, targets) == pytest.approx(float(found), rel=1e-5)
    places = [slice(0, 2), slice(2, 5)]
    for index, at in zip(indices, places):
        assert (np.asarray(gradient)[index < 0, at] == 0).all()
        assert (np.asarray(gradient)[index >= 0, at] != 0).any()
    both = [(indices[0] >= 0).astype(float), (indices[1] >= 0).astype(float)]
    per_bag = np.zeros(60)
    for classes, index, at, known in zip(CLASSES, indices, places, both):
        part = Classification(classes, loss_name)
        each = np.asarray(part._loss_per_bag(jnp.asarray(logits[:, at]), jnp.asarray(index)))
        per_bag += np.where(known > 0, each, 0.0)
    number = np.sum(both, axis=0)
    assert float(found) == pytest.approx(np.mean(per_bag[number > 0] / number[number > 0]), rel=1e-5)
    empty = jnp.concatenate([jnp.asarray(logits), jnp.full((2, 5), jnp.nan)])
    more = jnp.concatenate([jnp.asarray(targets), jnp.ones((2, 5))])
    padded = task.loss(Prediction(logits=empty), more, jnp.array([1.0] * 60 + [0.0] * 2))
    assert float(padded) == pytest.approx(float(found), rel=1e-6)


def test_metrics_of_a_column_are_those_of_its_classification():
    task, (logits, targets, indices) = MultiClass(COLUMNS, CLASSES), invented()
    p = task.probabilities(logits)
    values = task.metrics(p, targets)
    for column, classes, index, at in zip(COLUMNS, CLASSES, indices, (slice(0, 2), slice(2, 5))):
        np.testing.assert_allclose(p[:, at].sum(axis=1), 1.0)
        known = index >= 0
        expected = Classification(classes).metrics(p[known, at], index[known])
        for name, value in expected.items():
            assert values[f"{name}_{column}"] == pytest.approx(value, abs=1e-12)
    assert values["auc"] == pytest.approx((values["auc_gene"] + values["auc_stage"]) / 2)
    assert task.monitor("val_auc", logits, targets) == pytest.approx(values["auc"], abs=1e-12)
    drawn = np.random.default_rng(1).integers(0, 60, (5, 60))
    weights = np.stack([np.bincount(row, minlength=60) for row in drawn]).astype(float)
    resampled = task.weighted_metrics(p, targets, weights)
    for b, row in enumerate(drawn):
        expected = task.metrics(p[row], targets[row])
        for name in task.metric_names:
            assert resampled[name][b] == pytest.approx(expected[name], abs=1e-9)


def test_labels_become_targets_and_go_through_tables_and_files():
    labels = pd.DataFrame({"gene": ["wt", "mut", None], "stage": ["III", None, None]}, index=["a", "b", "c"])
    more = pd.concat([labels, pd.DataFrame({"gene": ["wt"] * 2, "stage": ["I", "II"]}, index=["d", "e"])])
    task = MultiClass.for_labels(more, CohortSettings("labels.csv", COLUMNS), {})
    assert task == MultiClass(COLUMNS, CLASSES)
    targets = task.targets(labels)
    nan = np.nan
    np.testing.assert_array_equal(targets, [[0, 1, 0, 0, 1], [1, 0, nan, nan, nan], [nan] * 5])
    assert task.known(targets).tolist() == [True, True, False]
    table = task.target_table(targets)
    assert table.loc[0].tolist() == ["wt", "III"]
    np.testing.assert_array_equal(task.targets_of(table), targets)
    assert restored(json.loads(json.dumps(described(task)))) == task
    assert task.output_names == ("prob_gene_mut", "prob_gene_wt", "prob_stage_I", "prob_stage_II", "prob_stage_III")
    with pytest.raises(DataError, match=r"'stage', bag a: 'IV' is none of the classes"):
        task.targets(labels.assign(stage=["IV", "I", "I"]))
    with pytest.raises(DataError, match=r"'stage': fold 1: the training part has no case of class 'I'"):
        task.require_trainable(targets[:2], "fold 1")
    with pytest.raises(ConfigError, match="several label columns"):
        MultiClass.for_labels(labels[["gene"]], CohortSettings("labels.csv", "gene"), {})
