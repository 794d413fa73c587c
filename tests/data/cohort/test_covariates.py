"""Covariates of a label table: what columns hold, what is refused, and that their scale is the training bags'."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mil_jax.data.cohort.covariates import (
    Covariate,
    covariate_columns,
    described,
    fitted,
    read_covariates,
    restored,
    standardised,
    values,
    without,
)
from mil_jax.errors import ConfigError, DataError

BAGS = pd.DataFrame(
    {
        "bag_id": list("abcd"),
        "age": ["50", "60", np.nan, "70"],
        "sex": ["f", "m", "f", "m"],
        "stage": ["I", np.nan, "II", "III"],
        "same": ["x"] * 4,
    }
)


def test_numbers_stay_numbers_and_text_becomes_categories_with_a_flag_where_something_is_missing():
    read = read_covariates(BAGS, "age, sex,stage", "labels.csv")
    assert read is not None
    assert read.columns == (
        Covariate("age", (), True),
        Covariate("sex", ("f", "m"), False),
        Covariate("stage", ("I", "II", "III"), True),
    )
    nan = np.nan
    expected = [
        [50, 0, 1, 0, 1, 0, 0, 0],
        [60, 0, 0, 1, nan, nan, nan, 1],
        [nan, 1, 1, 0, 0, 1, 0, 0],
        [70, 0, 0, 1, 0, 0, 1, 0],
    ]
    np.testing.assert_array_equal(read.values, np.array(expected, np.float32))
    assert restored(described(read.columns)) == read.columns
    assert "1 bags are without it" in read.report[0]


def test_categories_that_may_be_one_are_said():
    read = read_covariates(BAGS.assign(sex=["F", "m", "f", "m"]), "sex", "labels.csv")
    assert (
        "Warning: categories of column 'sex' differ only in how they are written: 'F' (1) and 'f' (1)" in read.report[0]
    )


def test_no_covariates_are_none():
    assert read_covariates(BAGS, "", "labels.csv") is None


def test_the_scale_is_of_the_training_bags_and_what_they_never_showed_says_nothing():
    known = np.array([[10.0, 0, 0], [30.0, 1, 0], [np.nan, 1, 0], [1000.0, 0, 1]], np.float32)
    fit = fitted(known[:3])
    np.testing.assert_allclose(fit["mean"], [20, 2 / 3, 0], rtol=1e-6)
    np.testing.assert_allclose(fit["scale"], [0.1, 1, 0], rtol=1e-6)
    seen = np.asarray(standardised(known, fit))
    np.testing.assert_allclose(seen[:, 0], [-1, 1, 0, 98], rtol=1e-6)
    assert (seen[:, 2] == 0).all()


@pytest.mark.parametrize(
    ("text", "said"), [("age,label", "is what is predicted"), ("age,age", "twice"), ("site", "another name")]
)
def test_names_that_cannot_be_are_refused(text, said):
    with pytest.raises(ConfigError, match=said):
        covariate_columns(text, ("label",))


def test_a_column_that_is_the_same_for_all_bags_is_refused():
    with pytest.raises(DataError, match=r"labels.csv: column 'same' says 'x' of every bag"):
        read_covariates(BAGS, "same", "labels.csv")


def test_another_cohort_must_have_the_categories_and_numbers_of_training():
    columns = (Covariate("age"), Covariate("sex", ("f", "m")))
    other = BAGS.assign(sex=["f", "unknown", "f", "m"])
    with pytest.raises(DataError, match=r"other.csv, bag b: 'unknown' in column 'sex' is none of f, m"):
        values(other, columns, "other.csv")
    with pytest.raises(DataError, match=r"bag a: 'old' in column 'age' is no finite number"):
        values(BAGS.assign(age=["old", "1", "2", "3"]), columns, "other.csv")
    assert values(BAGS, columns, "other.csv").shape == (4, 3)
    assert without(BAGS, columns) == [
        "1 of 4 bags are without the covariate 'age': the mean of the training bags stands for it"
    ]
