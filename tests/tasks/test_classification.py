"""The classification task against PyTorch's losses (where installed), plain formulas and scikit-learn."""

from __future__ import annotations

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from mil_jax import tasks
from mil_jax.bags import Prediction
from mil_jax.errors import ConfigError, DataError
from mil_jax.tasks import Classification, MultiLabel
from mil_jax.tasks.metrics.classification import calibration_error, perfect_calibration_error, youden_threshold
from tests.skips import needs

ABC = ("a", "b", "c")


def make_loss(task, logits, targets, weights=None):
    weights = jnp.ones(len(logits)) if weights is None else jnp.asarray(weights, jnp.float32)
    return task.loss(Prediction(logits=jnp.asarray(logits, jnp.float32)), jnp.asarray(targets), weights)


def random_case(num_classes, num_bags=60, seed=0):
    rng = np.random.default_rng(seed)
    index = rng.integers(0, num_classes, num_bags)
    index[:num_classes] = np.arange(num_classes)
    logits = rng.normal(size=(num_bags, num_classes)) + 1.2 * np.eye(num_classes)[index]
    return logits.astype(np.float32), index.astype(np.int32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_pytorchs(smoothing):
    torch = needs("torch")
    logits, index = random_case(3)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(index).long(), label_smoothing=smoothing
    )
    assert make_loss(Classification(ABC, label_smoothing=smoothing), logits, index) == pytest.approx(
        float(expected), rel=1e-6
    )


def test_binary_cross_entropy_is_pytorchs_with_gradients_at_large_logits():
    torch = needs("torch")
    task = MultiLabel(ABC)
    logits = np.array([[80.0, -80.0, 0.3], [-90.0, 2.0, -1.0]], np.float32)
    targets = np.array([[0, 0, 1], [1, 1, 0]], np.float32)
    z = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(z, torch.tensor(targets))
    expected.backward()
    value, gradient = jax.value_and_grad(lambda x: make_loss(task, x, targets))(jnp.asarray(logits))
    assert value == pytest.approx(float(expected.detach()), rel=1e-6)
    np.testing.assert_allclose(gradient, z.grad.numpy(), rtol=1e-6, atol=1e-12)


def test_bernoulli_loss_is_clamped_with_zero_gradient_outside():
    task = Classification(("no", "yes"), "bernoulli")
    logits = np.array([[20.0], [-20.0], [0.5], [-0.5]], np.float32)
    targets = np.array([0, 1, 1, 0], np.int32)
    p = np.clip(1 / (1 + np.exp(-logits[:, 0].astype(np.float64))), 1e-5, 1 - 1e-5)
    expected = -np.mean(np.where(targets == 1, np.log(p), np.log(1 - p)))
    value, gradient = jax.value_and_grad(lambda x: make_loss(task, x, targets))(jnp.asarray(logits))
    assert value == pytest.approx(expected, rel=1e-3)  # 1 - p at the clamp has three digits in float32, as in PyTorch
    np.testing.assert_array_equal(gradient[:2], 0.0)
    np.testing.assert_allclose(gradient[2:, 0], (p - targets)[2:] / 4, rtol=1e-5)


@pytest.mark.parametrize("loss_name", ["cross_entropy", "binary_cross_entropy", "bernoulli"])
def test_an_empty_place_with_a_nan_logit_changes_neither_loss_nor_gradient(loss_name):
    task = Classification(("no", "yes"), loss_name)
    targets = task.targets(pd.DataFrame({"y": ["yes", "no", "no"]}))
    logits = np.random.default_rng(0).normal(size=(3, task.num_outputs)).astype(np.float32)
    garbage = np.vstack([logits, np.full((1, task.num_outputs), np.nan, np.float32)])
    bare = jax.value_and_grad(lambda x: make_loss(task, x, targets))(jnp.asarray(logits))
    padded = jax.value_and_grad(
        lambda x: make_loss(task, x, np.concatenate([targets, targets[:1]]), [1.0, 1.0, 1.0, 0.0])
    )(jnp.asarray(garbage))
    assert padded[0] == pytest.approx(float(bare[0]), rel=1e-6)
    np.testing.assert_allclose(padded[1][:3], bare[1], rtol=1e-6)
    np.testing.assert_array_equal(padded[1][3], 0.0)


def test_a_bag_without_label_does_not_count():
    logits, index = random_case(3, num_bags=8)
    task = Classification(ABC)
    expected = make_loss(task, logits[:7], index[:7])
    index[7] = -1
    assert make_loss(task, logits, index) == pytest.approx(float(expected), rel=1e-6)


def test_a_missing_label_of_one_column_leaves_the_others():
    task = MultiLabel(("x", "y"))
    value, gradient = jax.value_and_grad(lambda z: make_loss(task, z, np.array([[1.0, np.nan]], np.float32)))(
        jnp.array([[0.7, 3.0]])
    )
    assert value == pytest.approx(np.log1p(np.exp(-0.7)), rel=1e-6)
    assert gradient[0, 1] == 0.0


def test_class_weights_act_at_one_bag_per_step():
    logits, index = random_case(2, num_bags=2)
    logits, index = logits[:1], index[:1]
    task = Classification(("no", "yes"))
    assert make_loss(task, logits, index, [2.5]) == pytest.approx(2.5 * float(make_loss(task, logits, index)), rel=1e-6)


def test_a_batch_without_any_bag_has_loss_zero():
    assert make_loss(Classification(ABC), np.zeros((2, 3)), np.zeros(2, np.int32), [0.0, 0.0]) == 0.0


def test_label_smoothing_may_be_traced():
    logits, index = random_case(3)
    task = Classification(ABC)
    losses = jax.vmap(lambda e: make_loss(dataclasses.replace(task, label_smoothing=e), logits, index))(
        jnp.array([0.0, 0.1])
    )
    expected = make_loss(dataclasses.replace(task, label_smoothing=0.1), logits, index)
    assert losses[1] == pytest.approx(float(expected), rel=1e-6)


def test_labels_that_are_numbers_match_classes_written_as_text():
    task = Classification(("0", "1"))
    labels = pd.DataFrame({"y": pd.Series([1.0, 0, "1", True, None, np.nan, " 0 "], dtype=object)})
    np.testing.assert_array_equal(task.targets(labels), [1, 0, 1, 1, -1, -1, 0])


def test_one_hot_targets_of_a_missing_label_are_nan():
    targets = Classification(ABC, "binary_cross_entropy").targets(pd.DataFrame({"y": ["c", None]}))
    np.testing.assert_array_equal(targets, np.array([[0, 0, 1], [np.nan] * 3], np.float32))


def test_multi_label_targets_follow_the_order_of_the_classes():
    labels = pd.DataFrame({"EGFR": [1, 0, None], "KRAS": ["no", "yes", "true"]})
    targets = MultiLabel(("KRAS", "EGFR")).targets(labels)
    np.testing.assert_array_equal(targets, np.array([[0, 1], [1, 0], [1, np.nan]], np.float32))


def test_a_label_that_is_no_class_is_named():
    with pytest.raises(DataError, match=r"'grade'.*slide_7.*'G4'"):
        Classification(("G1", "G2")).targets(pd.DataFrame({"grade": ["G1", "G4"]}, index=["slide_6", "slide_7"]))


def test_a_class_absent_from_training_is_named():
    with pytest.raises(DataError, match=r"fold 2, seed 0.*'c'"):
        Classification(ABC).require_trainable(np.array([0, 1, -1], np.int32), "fold 2, seed 0")


def test_inverse_frequency_weights_and_balanced_sampling():
    task, targets = Classification(("no", "yes")), np.array([0, 0, 0, 1, -1], np.int32)
    np.testing.assert_allclose(task.class_weights(targets), [4 / 6, 2.0], rtol=1e-6)
    np.testing.assert_allclose(task.sampling_weights(targets), [1 / 6, 1 / 6, 1 / 6, 1 / 2, 0])


@pytest.mark.parametrize("loss_name", ["cross_entropy", "bernoulli"])
def test_probabilities_sum_to_one_in_float64(loss_name):
    task = Classification(("no", "yes"), loss_name)
    probabilities = task.probabilities(np.array([[-40.0, 40.0]], np.float32)[:, -task.num_outputs :])
    assert probabilities.dtype == np.float64
    assert probabilities.shape == (1, 2)
    assert probabilities.sum() == pytest.approx(1.0)
    assert probabilities[0, 0] > 0  # the small one is not lost to rounding


@pytest.mark.parametrize("num_classes", [2, 4])
def test_single_label_metrics_are_scikit_learns(num_classes):
    task = Classification(tuple("abcd")[:num_classes])
    logits, y = random_case(num_classes)
    p = task.probabilities(logits)
    decided, one_hot = p.argmax(1), np.eye(num_classes)[y]
    binary = num_classes == 2
    expected = {
        "auc": sk.roc_auc_score(y, p[:, 1]) if binary else sk.roc_auc_score(y, p, multi_class="ovr"),
        "average_precision": sk.average_precision_score(y, p[:, 1])
        if binary
        else sk.average_precision_score(one_hot, p),
        "accuracy": sk.accuracy_score(y, decided),
        "balanced_accuracy": sk.balanced_accuracy_score(y, decided),
        "f1": sk.f1_score(y, decided, average="macro"),
        "precision": sk.precision_score(y, decided, average="macro"),
        "recall": sk.recall_score(y, decided, average="macro"),
        "cohen_kappa": sk.cohen_kappa_score(y, decided),
        "brier": sk.brier_score_loss(y, p[:, 1]) if binary else np.mean(np.sum((p - one_hot) ** 2, 1)),
        "log_loss": sk.log_loss(y, p),
    }
    values = task.metrics(p, y)
    assert values.keys() == expected.keys() | {"expected_calibration_error"}
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, abs=1e-9), name


@pytest.mark.parametrize("cases", [30, 300])
def test_the_calibration_error_of_perfect_probabilities_is_foreseen(cases):
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1.0, cases)
    found = [calibration_error(confidence, rng.random(cases) < confidence) for _ in range(2000)]
    assert perfect_calibration_error(confidence) == pytest.approx(np.mean(found), rel=0.06)
    assert perfect_calibration_error(np.ones(cases)) == 0


def test_calibration_error_by_hand():
    # Bins of width 1/15: 0.93 and 0.95 fall in different ones, 0.60 and 0.61 in one.
    confidence, correct = np.array([0.93, 0.95, 0.61, 0.60]), np.array([True, False, True, True])
    expected = (abs(1 - 0.93) + abs(0 - 0.95) + abs(2 - 1.21)) / 4
    assert calibration_error(confidence, correct) == pytest.approx(expected)


def test_multi_label_metrics_are_scikit_learns_where_labels_are_known():
    task = MultiLabel(("x", "y"))
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 2, (50, 2)).astype(np.float32)
    p = np.clip(0.35 * targets + rng.uniform(0, 0.65, (50, 2)), 0, 1)
    targets[:10, 1] = np.nan
    values = task.metrics(p, targets)
    expected = [sk.roc_auc_score(targets[k, c], p[k, c]) for c, k in enumerate((slice(None), slice(10, None)))]
    assert [values["auc_x"], values["auc_y"]] == pytest.approx(expected)
    assert values["auc"] == pytest.approx(np.mean(expected))
    assert values["f1_y"] == pytest.approx(sk.f1_score(targets[10:, 1], p[10:, 1] >= 0.5))
    assert values["subset_accuracy"] == pytest.approx(np.mean(((p >= 0.5) == targets)[10:].all(1)))
    assert values["log_loss_x"] == pytest.approx(sk.log_loss(targets[:, 0], p[:, 0]))


@pytest.mark.parametrize(
    ("probabilities", "targets"),
    [
        (np.full((3, 3), 1 / 3), np.array([0, 1, 1])),
        (np.full((3, 3), 1 / 3), np.array([2, 2, 2])),
        (np.full((2, 3), np.nan), np.array([0, 1])),
        (np.zeros((0, 3)), np.zeros(0, np.int32)),
        (np.full((2, 3), 1 / 3), np.array([-1, -1])),
        (np.zeros((3, 3)), np.array([0, 1, 2])),
    ],
    ids=["class missing", "one class", "diverged", "empty", "unlabelled", "all zero"],
)
def test_undefined_metrics_are_nan_without_a_warning(probabilities, targets):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = Classification(ABC).metrics(probabilities, targets)
    if len(np.unique(targets[targets >= 0])) < 3:
        assert np.isnan(values["auc"])
        assert np.isnan(values["f1"])
    assert set(values) >= {"auc", "accuracy", "log_loss"}


def test_undefined_multi_label_metrics_are_nan_without_a_warning():
    task = MultiLabel(("x", "y"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = task.metrics(np.full((2, 2), 0.5), np.array([[1, np.nan], [0, np.nan]], np.float32))
    assert values["auc_x"] == 0.5
    assert np.isnan(values["auc_y"])
    assert np.isnan(values["auc"])


@pytest.mark.parametrize("loss_name", Classification.losses)
def test_the_validation_loss_is_the_loss_of_training(loss_name):
    task = Classification(("no", "yes"), loss_name)
    logits, index = random_case(2)
    targets = task.targets(pd.DataFrame({"y": np.array(["no", "yes"])[index]}))
    logits = logits[:, : task.num_outputs]
    value = task.monitor("val_loss", logits, targets)
    assert value == pytest.approx(float(make_loss(task, logits, targets)), rel=1e-5)


def test_the_validation_auc_handles_ties():
    task, y = Classification(("no", "yes")), np.array([0, 1, 0, 1, 1])
    p = np.array([0.2, 0.2, 0.5, 0.5, 0.5])
    value = task.monitor("val_auc", np.log(np.stack([1 - p, p], 1)), y)
    assert value == pytest.approx(sk.roc_auc_score(y, p))


def test_a_threshold_is_chosen_only_with_ten_validation_cases_per_class():
    task = Classification(("no", "yes"))
    p = np.linspace(0, 1, 20)
    probabilities = np.stack([1 - p, p], 1)
    assert task.choose_thresholds(probabilities, (np.arange(20) >= 10).astype(int))[1] == pytest.approx(p[10])
    few = (np.arange(20) >= 11).astype(int)
    assert np.isnan(task.choose_thresholds(probabilities, few)).all()
    assert not task.enough_cases(few)


def test_the_threshold_column_decides_by_the_threshold():
    task = Classification(("no", "yes"))
    p, y = np.array([0.1, 0.3, 0.35, 0.4]), np.array([0, 0, 1, 1])
    probabilities = np.stack([1 - p, p], 1)
    values = task.threshold_metrics(probabilities, y, np.array([np.nan, 0.35]))
    assert values == {"accuracy_at_threshold": 1.0, "balanced_accuracy_at_threshold": 1.0, "f1_at_threshold": 1.0}
    assert task.metrics(probabilities, y)["accuracy"] == 0.5
    assert task.threshold_metrics(probabilities, y, np.array([np.nan, np.nan])) == {}


def test_multi_label_thresholds_are_chosen_label_by_label():
    task = MultiLabel(("x", "y"))
    p = np.linspace(0, 1, 24)
    targets = np.stack([np.arange(24) >= 12, np.arange(24) >= 20], 1).astype(np.float32)
    thresholds = task.choose_thresholds(np.stack([p, p], 1), targets)
    assert thresholds[0] == pytest.approx(p[12])
    assert np.isnan(thresholds[1])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss_name": "bce"}, "cross_entropy"),
        ({"loss_name": "bernoulli"}, "two classes"),
        ({"label_smoothing": 1.0}, r"\[0, 1\)"),
        ({"label_smoothing": 0.1, "loss_name": "binary_cross_entropy"}, "cross_entropy"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        Classification(ABC, **settings)


def test_an_unknown_task_suggests_the_nearest():
    with pytest.raises(ConfigError, match="'classification'"):
        tasks.kind("clasification")


def test_frequencies_count_labelled_bags_only():
    assert Classification(ABC).frequencies(np.array([0, 0, 1, -1])).tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    task = MultiLabel(("x", "y"))
    targets = np.array([[1, np.nan], [0, np.nan], [1, 0]], np.float32)
    assert task.constant(targets).tolist() == pytest.approx([2 / 3, 0])


def test_a_threshold_that_calls_nobody_positive_is_chosen_only_where_allowed():
    scores, positive = np.array([0.1, 0.2, 0.8, 0.9]), np.array([True, True, False, False])
    assert youden_threshold(scores, positive) == 0.1
    assert youden_threshold(scores, positive, allow_none_positive=True) == np.inf
