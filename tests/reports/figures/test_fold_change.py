"""The fold-change view: levels and correlation by hand, of several models and of one with several outputs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mil_jax.reports.figures.fold_change import fold_change_view, fold_changes
from mil_jax.reports.run.statements import RunProtocol
from mil_jax.reports.run.summary import write_summary
from mil_jax.run_folder.folder import RunFolder
from mil_jax.tasks import Regression
from mil_jax.tasks.predictions_table import predictions_table


def predictions(task: Regression, ratios: np.ndarray) -> pd.DataFrame:
    """Two folds whose predictions are the better the larger the column."""
    rng = np.random.default_rng(0)
    y = np.log10(1 + ratios)
    noise = rng.normal(0, 1, y.shape) * np.array([2.0, 1.0, 0.5, 0.1]) * y.std(axis=0)
    return pd.concat(
        predictions_table(
            task,
            bag_ids=[f"b{row}" for row in rows],
            patient_ids=[f"b{row}" for row in rows],
            num_instances=np.full(len(rows), 10) + rows,
            fold=fold,
            seed=0,
            part="test",
            targets=y[rows],
            probabilities=(y + noise)[rows],
        )
        for fold, rows in enumerate(np.array_split(np.arange(len(y)), 2))
    )


@pytest.fixture
def ratios() -> np.ndarray:
    spread = np.random.default_rng(1).uniform(0.5, 1.5, (80, 4))
    return spread / spread.mean(axis=0) * np.array([1.1, 0.4, 6.0, 12.0])


def test_the_fold_change_is_that_of_the_mean_ratio(ratios):
    task = Regression(("a", "b", "c", "d"), transform="log1p")
    table = predictions(task, ratios)
    found = fold_changes(task, pd.concat([table, table.assign(seed=1)]))
    assert found == pytest.approx(dict(zip("abcd", np.abs(np.log2([1.1, 0.4, 6.0, 12.0])))), rel=1e-9)
    assert fold_changes(Regression(("a", "b", "c", "d")), table) == {}


def test_levels_and_correlation():
    view = fold_change_view(
        {"a": 0.5, "b": 1.5, "c": 1.6, "d": 4.0, "e": np.nan}, {"a": 0.1, "b": 0.2, "c": 0.4, "d": 0.3, "e": 1.0}
    )
    assert view is not None
    assert [(one["level"], one["columns"]) for one in view["levels"]] == [
        ("0 to 1", 1),
        ("1 to 2", 2),
        ("3 or more", 1),
    ]
    assert view["levels"][1]["mean"] == pytest.approx(0.3)
    assert view["spearman"] == pytest.approx(0.8)
    assert fold_change_view({"a": 1.0, "b": 2.0}, {"a": 0.1, "b": 0.2}) is None


def test_the_summary_of_a_model_of_several_ratios_has_it(ratios, tmp_path):
    task = Regression(("a", "b", "c", "d"), transform="log1p")
    folder = RunFolder.create(tmp_path / "run", {}, {})
    protocol = RunProtocol(protocol="clean", select="last", selected_on_test=False, order="independent")
    constants = {fold: np.zeros(4) for fold in (0, 1)}
    summary = write_summary(
        folder, task=task, predictions=predictions(task, ratios), history=[], constants=constants, protocol=protocol
    )
    assert summary["fold_change"]["spearman"] > 0.7
    assert "fold_change.png" in summary["figures"]
    assert (folder.figures / "fold_change.png").is_file()
    assert "## Correlation and fold change" in (tmp_path / "run" / "summary.md").read_text()
