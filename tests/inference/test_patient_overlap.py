"""Which models may score which bags: the rule on which every score of `evaluate` rests."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mil_jax.data.cohort.cohort import Cohort
from mil_jax.errors import DataError
from mil_jax.inference.patient_overlap import eligible_models, require_scored


def cohort_of(bags: dict[str, str]) -> Cohort:
    """bags: slide -> patient."""
    table = pd.DataFrame({"bag_id": list(bags), "patient_id": list(bags.values())})
    slides = [np.array([number]) for number in range(len(bags))]
    empty = pd.DataFrame(columns=["slide", "reason"])
    return Cohort(table, slides, [(slide,) for slide in bags], pd.DataFrame(), empty, [])


def splits_of(rows: list[tuple[str, str, str, str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["fold", "bag_id", "patient_id", "part"])


TWO_FOLDS = splits_of(
    [
        *[("0", "s1", "p1", "test"), ("0", "s2", "p2", "train"), ("0", "s3", "p3", "validation")],
        *[("1", "s1", "p1", "train"), ("1", "s2", "p2", "test"), ("1", "s3", "p3", "train")],
    ]
)


@pytest.mark.parametrize(("met", "written"), [("p1", "P1"), ("p1", "P01"), ("7", "7.0"), ("007", "7")])
def test_a_patient_whom_the_run_met_is_known_however_the_id_is_written(met, written):
    splits = TWO_FOLDS.assign(patient_id=TWO_FOLDS["patient_id"].replace("p1", met))
    scoring = eligible_models(splits, ["0", "1"], cohort_of({"new": written}))
    assert not scoring.unseen.any()


def test_a_known_slide_is_scored_by_the_folds_that_tested_on_it():
    scoring = eligible_models(TWO_FOLDS, ["0", "1"], cohort_of({"s1": "p1", "s2": "p2"}))
    np.testing.assert_array_equal(scoring.by_fold, [[True, False], [False, True]])
    assert not scoring.unseen.any()


def test_a_new_slide_of_a_known_patient_is_scored_as_the_patient_is():
    scoring = eligible_models(TWO_FOLDS, ["0", "1"], cohort_of({"new": "p1"}))
    np.testing.assert_array_equal(scoring.by_fold, [[True], [False]])


def test_a_known_slide_is_known_under_another_patient_id_and_extension():
    scoring = eligible_models(TWO_FOLDS, ["0", "1"], cohort_of({"folder/s1.svs": "somebody else"}))
    np.testing.assert_array_equal(scoring.by_fold, [[True], [False]])


def test_tcga_slides_are_known_by_their_barcode():
    splits = splits_of([("0", "TCGA-05-4244-01Z-00-DX1.AB", "TCGA-05-4244", "train")])
    scoring = eligible_models(splits, ["0"], cohort_of({"TCGA-05-4244-01A-01-TS1": "TCGA-05-4244-01A-01-TS1"}))
    assert not scoring.scored.any()


def test_patients_whom_nobody_tested_on_are_refused_with_their_count():
    cohort = cohort_of({"s3": "p3", "other slide": "p3", "new": "p9"})
    scoring = eligible_models(TWO_FOLDS, ["0", "1"], cohort)
    np.testing.assert_array_equal(scoring.scored, [False, False, True])
    with pytest.raises(DataError, match=r"1 of 2 patients \(2 of 3 bags\).*--exclude-seen"):
        require_scored(scoring, cohort, "external")


def test_a_patient_in_the_test_part_and_another_of_a_leaking_split_is_not_scored():
    splits = splits_of([("0", "s1", "p1", "test"), ("0", "s2", "p1", "train")])
    assert not eligible_models(splits, ["0"], cohort_of({"s1": "p1"})).scored.any()


PARTS = st.sampled_from(["train", "validation", "test", ""])


@given(st.lists(st.tuples(PARTS, PARTS, PARTS), min_size=1, max_size=6), st.data())
def test_no_fold_scores_whom_it_trained_or_validated_on(parts_of_slides, data):
    patients = [f"p{data.draw(st.integers(0, 2))}" for _ in parts_of_slides]
    rows = [
        (str(fold), f"s{slide}", patients[slide], part)
        for slide, parts in enumerate(parts_of_slides)
        for fold, part in enumerate(parts)
        if part
    ]
    splits = splits_of(rows)
    cohort = cohort_of({f"s{slide}": patient for slide, patient in enumerate(patients)})
    scoring = eligible_models(splits, ["0", "1", "2"], cohort)
    for fold, bag in zip(*np.nonzero(scoring.by_fold), strict=True):
        met = splits[(splits["fold"] == str(fold)) & (splits["patient_id"] == patients[bag])]["part"]
        assert set(met) <= {"test"}
        assert scoring.unseen[bag] or len(met)
