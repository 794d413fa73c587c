"""Own splits: patients stay whole, every bag is tested once, classes stay in proportion."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mil_jax.data.cohort.cohort import Cohort
from mil_jax.data.splits.describe import describe
from mil_jax.data.splits.splits import (
    TEST,
    TRAIN,
    UNUSED,
    VALIDATION,
    Splits,
    SplitSettings,
    make_splits,
    read_splits,
    splits_from_folds,
)


def cohort_of(patients, **columns) -> Cohort:
    """A cohort of bags s0, s1, ... of the given patients, with 10 tiles each."""
    number = len(patients)
    ids = [f"s{k}" for k in range(number)]
    bags = {"bag_id": ids, "patient_id": [str(p) for p in patients], "num_slides": 1, "num_instances": 10, "site": ""}
    nothing = pd.DataFrame(columns=["slide", "reason"])
    frame = pd.DataFrame({**bags, **columns})
    return Cohort(frame, [np.array([k]) for k in range(number)], [(name,) for name in ids], pd.DataFrame(), nothing, [])


def crossing(splits, groups):
    """Groups that are in two parts of some fold."""
    groups = np.asarray(groups)
    return [
        (name, group)
        for name, fold in zip(splits.names, splits.parts, strict=True)
        for group in np.unique(groups)
        if len(set(fold[(groups == group) & (fold != UNUSED)])) > 1
    ]


patients_and_labels = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 2)), min_size=60, max_size=120
).filter(lambda rows: len({p for p, _ in rows}) >= 20)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(patients_and_labels, st.integers(0, 5), st.sampled_from(["k_fold", "monte_carlo"]))
def test_no_patient_crosses_parts(rows, seed, kind):
    patients, labels = np.array(rows).T
    labels[np.isin(patients, np.unique(patients)[:15])] = 0  # so that no training part lacks the first class
    splits = make_splits(cohort_of(patients), np.where(labels == 0, 0, -1), SplitSettings(kind, folds=4, seed=seed))
    assert crossing(splits, patients) == []


@settings(max_examples=40, deadline=None)
@given(patients_and_labels, st.integers(0, 5))
def test_each_bag_is_tested_once_per_repeat(rows, seed):
    patients, labels = np.array(rows).T
    splits = make_splits(cohort_of(patients), labels > 3, SplitSettings(folds=4, repeats=2, seed=seed))
    assert ((splits.parts.reshape(2, 4, -1) == TEST).sum(axis=1) == 1).all()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=60, max_size=200), st.integers(2, 7), st.integers(0, 9))
def test_single_slide_patients_are_stratified_to_within_one_bag(labels, folds, seed):
    labels = np.array([0, 0, 1, 1, 2, 2, 3, 3, *labels])
    splits = make_splits(cohort_of(range(len(labels))), labels, SplitSettings(folds=folds, seed=seed, val_fraction=0))
    for number in range(4):
        held = ((splits.parts == TEST) & (labels == number)).sum(axis=1)
        assert held.max() - held.min() <= 1
        assert held.sum() == (labels == number).sum()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000))
def test_fold_sizes_stay_near_equal_with_patients_of_several_slides(seed):
    rng = np.random.default_rng(seed)
    patients = rng.integers(0, 100, 200)
    splits = make_splits(cohort_of(patients), patients % 2, SplitSettings(folds=5, seed=seed))
    assert np.abs((splits.parts == TEST).sum(axis=1) - 40).max() <= 4


def test_several_columns_are_stratified_together():
    rng = np.random.default_rng(0)
    targets = (rng.random((500, 4)) < [0.5, 0.3, 0.1, 0.04]).astype(np.float32)
    targets[:7, 0] = np.nan
    splits = make_splits(cohort_of(range(500)), targets, SplitSettings(folds=5))
    held = np.array([np.nansum(targets[fold == TEST], axis=0) for fold in splits.parts])
    assert np.abs(held - np.nansum(targets, axis=0) / 5).max() <= 2.5


def test_validation_is_a_stratified_share_of_training_patients():
    labels = np.arange(400) % 4 // 3
    splits = make_splits(cohort_of(range(400)), labels, SplitSettings(val_fraction=0.25))
    assert ((splits.parts == VALIDATION).sum(axis=1) == 80).all()
    assert {int(labels[fold == VALIDATION].sum()) for fold in splits.parts} == {20}


def test_without_val_fraction_there_is_no_validation_part():
    assert not (make_splits(cohort_of(range(20)), None, SplitSettings(val_fraction=0)).parts == VALIDATION).any()


def test_a_rare_class_stays_in_training_when_validation_is_carved():
    labels = np.zeros(60, int)
    labels[[3, 40]] = 1
    splits = make_splits(cohort_of(range(60)), labels, SplitSettings(folds=2))
    assert all((labels[fold == TRAIN] == 1).any() for fold in splits.parts)


def test_repeats_differ_and_the_seed_decides():
    cohort, labels = cohort_of(range(50)), np.arange(50) % 2
    parts = make_splits(cohort, labels, SplitSettings(repeats=2)).parts.reshape(2, 5, -1)
    assert (parts[0] != parts[1]).any()
    assert (parts.reshape(10, -1) == make_splits(cohort, labels, SplitSettings(repeats=2)).parts).all()
    assert (parts[0] != make_splits(cohort, labels, SplitSettings(seed=1)).parts).any()


def test_monte_carlo_draws_its_fraction():
    splits = make_splits(
        cohort_of(range(100)), np.arange(100) % 2, SplitSettings("monte_carlo", folds=3, test_fraction=0.3)
    )
    assert (splits.parts == TEST).sum(axis=1).tolist() == [30, 30, 30]


def test_sites_never_cross_folds():
    sites = [f"h{k % 13}" for k in range(130)]
    cohort = cohort_of(range(130), site=sites)
    splits = make_splits(cohort, np.arange(130) % 2, SplitSettings(group="site", val_fraction=0))
    assert crossing(splits, sites) == []


def test_sites_never_meet_between_training_or_validation_and_test():
    sites = np.array([f"h{k % 13}" for k in range(130)])
    splits = make_splits(cohort_of(range(130), site=sites), np.arange(130) % 2, SplitSettings(group="site"))
    assert ((splits.parts == TEST).sum(axis=0) == 1).all()
    for fold in splits.parts:
        assert not set(sites[fold == TEST]) & set(sites[fold != TEST])


def test_leave_one_group_out_tests_each_value_once():
    scanners = np.array(["a", "b", "c"])[np.arange(60) % 3]
    settings = SplitSettings("leave_one_group_out", group="scanner")
    splits = make_splits(cohort_of(range(60), scanner=scanners), np.arange(60) % 2, settings)
    assert splits.names == ["a", "b", "c"]
    assert all(set(scanners[fold == TEST]) == {name} for name, fold in zip(splits.names, splits.parts, strict=True))


@pytest.mark.parametrize("form", ["column", "list", "file"])
def test_official_test_set_is_fixed_with_folds_inside_the_rest(form, tmp_path):
    chosen = [f"s{k}" for k in range(0, 50, 5)]
    official = ["test" if f"s{k}" in chosen else "train" for k in range(50)]
    (tmp_path / "test.csv").write_text("slide_id\n" + "\n".join(f"{name}.svs" for name in chosen))
    test = {"column": "official", "list": chosen, "file": str(tmp_path / "test.csv")}[form]
    cohort = cohort_of(range(50), official=official)
    splits = make_splits(cohort, np.arange(50) % 2, SplitSettings(test=test, folds=4))
    assert all([f"s{k}" for k in np.flatnonzero(fold == TEST)] == chosen for fold in splits.parts)
    assert ((splits.parts == VALIDATION).sum(axis=0)[np.array(official) == "train"] == 1).all()


def test_ids_of_the_official_test_set_without_bag_are_counted():
    splits = make_splits(cohort_of(range(6)), None, SplitSettings(folds=2, test=["s0", "gone"]))
    assert splits.excluded["slide"].tolist() == ["gone"]


def test_official_test_set_without_validation_leaves_the_rest_to_training():
    settings = SplitSettings("monte_carlo", test=["s0", "s1"], folds=1, val_fraction=0)
    splits = make_splits(cohort_of(range(6)), np.arange(6) % 2, settings)
    assert splits.parts.tolist() == [[TEST, TEST, TRAIN, TRAIN, TRAIN, TRAIN]]


def test_class_absent_from_a_test_part_is_only_noted():
    labels = np.zeros(40, int)
    labels[:2] = 1
    splits = make_splits(cohort_of(range(40)), labels, SplitSettings(folds=4), ["low", "high"])
    assert "no test bag of class high" in " ".join(splits.report)


def test_bags_without_label_are_split_too():
    labels = np.array([-1, 0, 1] * 20)
    assert (make_splits(cohort_of(range(60)), labels, SplitSettings()).parts != UNUSED).all()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_csv_round_trip_is_exact(tmp_path_factory, data):
    number, folds = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 4))
    parts = np.array(
        data.draw(st.lists(st.lists(st.sampled_from([-1, 0, 1, 2]), min_size=number, max_size=number), min_size=folds,
                           max_size=folds)), np.int8,
    )  # fmt: skip
    parts[:, 0] = TRAIN
    names = ["NA", "1-0", "2 b", "3"][:folds]
    cohort = cohort_of([f"p{k // 2}" for k in range(number)])
    path = tmp_path_factory.mktemp("csv") / "splits.csv"
    nothing = pd.DataFrame()
    Splits(parts, names, parts == TEST, nothing, nothing, []).to_csv(path, cohort)
    again = read_splits(path, cohort)
    assert again.names == names
    assert (again.parts == parts).all()


def test_csv_is_in_long_form(tmp_path):
    cohort = cohort_of(range(10))
    make_splits(cohort, None, SplitSettings(folds=2, val_fraction=0)).to_csv(tmp_path / "splits.csv", cohort)
    table = pd.read_csv(tmp_path / "splits.csv")
    assert list(table.columns) == ["fold", "bag_id", "patient_id", "part"]
    assert len(table) == 20


def test_fold_numbers_become_one_fold_per_repeat_and_number():
    folds = np.array([[0, 1] * 10, [1, 1, 0, 0] * 5])
    splits = splits_from_folds(folds, cohort_of(range(20)), np.arange(20) // 10, SplitSettings(val_fraction=0))
    assert splits.names == ["0-0", "0-1", "1-0", "1-1"]
    assert ((splits.parts == TEST)[2] == (folds[1] == 0)).all()


def test_hundred_thousand_bags_split_within_seconds():
    rng = np.random.default_rng(0)
    cohort = cohort_of(rng.integers(0, 70_000, 100_000))
    start = time.perf_counter()
    make_splits(cohort, rng.integers(0, 4, 100_000), SplitSettings(folds=5))
    assert time.perf_counter() - start < 10


def test_description_counts_classes_parts_and_sites():
    cohort = cohort_of(range(40), site=["x", "y"] * 20)
    labels = np.arange(40) % 4 // 2
    splits = make_splits(cohort, labels, SplitSettings(folds=2, val_fraction=0), ["A", "B"])
    description = describe(cohort, labels, ["A", "B"], splits)
    counts = description.tables["counts"]
    assert counts.groupby(["fold", "part", "class"])["bags"].sum().tolist() == [10] * 8
    assert counts.groupby(["fold", "class", "site"])["patients"].sum().tolist() == [10] * 8
    assert "classes: 0 = A (20 bags), 1 = B (20 bags)" in description.sentences
    assert description.tables["bag_sizes"]["median"].tolist() == [10, 10, 10]
