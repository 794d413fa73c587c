"""Averages over models, and what may decide about thresholds and temperatures: the run's validation predictions, nothing else."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mil_jax.inference.scored import ENSEMBLE, HELD_OUT, Scored
from mil_jax.reports.evaluation.metrics import averaged, decisions, result
from mil_jax.tasks import Classification

TASK = Classification(("no", "yes"))


def rows(
    part: str, *, bags: int = 60, folds: int = 2, seeds: int = 2, sharpness: float = 1.0, seed: int = 0
) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    labels = np.arange(bags) % 2
    tables = []
    for fold in range(folds):
        for number in range(seeds):
            p = 1 / (1 + np.exp(-sharpness * (labels * 2 - 1 + rng.standard_normal(bags) * 2 + fold)))
            table = pd.DataFrame(
                {"bag_id": [f"s{bag}" for bag in range(bags)], "patient_id": [f"p{bag}" for bag in range(bags)]}
            )
            table = table.assign(num_instances=3, fold=fold, fold_name=str(fold), seed=number, part=part)
            tables.append(table.assign(target=np.array(["no", "yes"])[labels], prob_no=1 - p, prob_yes=p))
    return pd.concat(tables, ignore_index=True)


def scored(how: str, test: pd.DataFrame, validation: pd.DataFrame) -> Scored:
    return Scored("c", "", how, TASK, test, validation, True)


@pytest.mark.parametrize(("how", "num_rows"), [(HELD_OUT, 120), (ENSEMBLE, 60)])
def test_seeds_are_averaged_and_folds_of_an_ensemble_only(how, num_rows):
    test = rows("test")
    table = averaged(scored(how, test, rows("val", seed=1))).table
    assert len(table) == num_rows
    by = ["bag_id", "fold"] if how == HELD_OUT else ["bag_id"]
    expected = test.groupby(by)["prob_yes"].mean()
    found = table.set_index(by)["prob_yes"]
    np.testing.assert_allclose(found[expected.index], expected)


@pytest.mark.parametrize("how", [HELD_OUT, ENSEMBLE])
def test_the_labels_of_the_scored_slides_decide_about_no_threshold_and_no_temperature(how):
    test, validation = rows("test"), rows("val", seed=1, sharpness=3.0)
    flipped = test.assign(target=np.where(test["target"] == "yes", "no", "yes"))
    one, other = (scored(how, table, validation) for table in (test, flipped))
    first, second = averaged(one), averaged(other)
    assert first.temperatures == second.temperatures
    assert np.isfinite(list(first.temperatures.values())).all()
    np.testing.assert_array_equal(decisions(TASK, first), decisions(TASK, second))


def test_each_fold_of_slides_held_out_has_the_temperature_of_its_own_validation_part():
    validation = pd.concat([rows("val", folds=1, sharpness=3.0), rows("val", folds=1, sharpness=0.5).assign(fold=1)])
    temperatures = averaged(scored(HELD_OUT, rows("test"), validation)).temperatures
    assert temperatures[0] > 1.5 * temperatures[1]


def test_without_validation_predictions_there_is_no_temperature_and_the_largest_probability_decides():
    one = scored(ENSEMBLE, rows("test"), pd.DataFrame(columns=["fold", "part"]))
    averages = averaged(one)
    assert averages.calibrated is None
    assert averages.thresholded.empty
    expected = np.where(averages.table["prob_yes"] > 0.5, "yes", "no")
    np.testing.assert_array_equal(decisions(TASK, averages), expected)


def test_a_small_subgroup_has_no_metrics_of_its_own():
    test = rows("test").assign(scanner=lambda table: np.where(table["bag_id"].isin(["s0", "s1", "s2"]), "A", "B"))
    one = scored(ENSEMBLE, test, rows("val", seed=1))
    groups = {group["value"]: group for group in result(one, averaged(one), ["scanner"])["subgroups"]}
    assert "metrics" not in groups["A"]
    assert groups["B"]["metrics"]["auc"]["estimate"] > 0.5
