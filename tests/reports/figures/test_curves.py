"""Figures are drawn whatever a run lacks."""

from __future__ import annotations

import matplotlib.image
import numpy as np
import pytest

from mil_jax.reports.figures import curves
from mil_jax.tasks import Classification, MultiLabel
from tests.reports.conftest import invented_predictions


def history(folds: int) -> list[dict]:
    return [
        {"epoch": epoch, "fold": fold, "seed": 0, "train_loss": 1.0, "val_loss": None, "val_auc": np.nan, "steps": 3}
        for fold in range(folds)
        for epoch in range(2 + fold)  # stopped at different epochs
    ]


@pytest.mark.parametrize("folds", [1, 3, 20])
def test_training_curves_of_few_and_many_folds(tmp_path, folds):
    curves.draw_training_curves(history(folds), tmp_path / "curves.png")
    height, width, _ = matplotlib.image.imread(tmp_path / "curves.png").shape
    assert width == 440  # one panel: the validation part was never measured
    assert height == 390


def test_a_run_without_any_number_still_ends(tmp_path):
    rows = [{"epoch": 0, "fold": 0, "seed": 0, "train_loss": np.nan}]
    curves.draw_training_curves(rows, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").is_file()


@pytest.mark.parametrize(
    "task",
    [
        Classification(("a", "b")),
        Classification(("a", "b", "c")),
        MultiLabel(("x", "y")),
    ],
    ids=["binary", "three classes", "multi-label"],
)
def test_roc_curves_of_each_kind_of_task(tmp_path, task):
    curves.draw_roc_curves(task, invented_predictions(task, bags=60), tmp_path / "roc.png")
    assert (tmp_path / "roc.png").stat().st_size > 5000


def test_a_fold_lacking_a_class_is_left_out_of_the_roc(binary, binary_predictions):
    one_class = binary_predictions[binary_predictions["target"] == "normal"]
    assert curves._curve(binary, one_class, 1) is None
    assert curves._mean_curve(binary, binary_predictions, 1)[1] > 0.5
