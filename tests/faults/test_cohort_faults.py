"""Bad labels and bad splits: one sentence that says what, where and what to do."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from mil_jax.data.cohort.cohort import CohortSettings, build_cohort, resolve_classes
from mil_jax.data.splits.checks import require_patients_whole
from mil_jax.data.splits.splits import SplitSettings, make_splits, splits_from_folds
from mil_jax.errors import ConfigError, DataError
from tests.data.splits.test_splits import cohort_of

CLAM = "case_id,slide_id,label\np1,s1,A\np1,s2,A\np2,s3,B\n"
SLIDES = ["s1", "s2", "s3"]


def build(tmp_path, text=CLAM, slides=SLIDES, name="labels.csv", **options):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return build_cohort(slides, np.full(len(slides), 5), CohortSettings(path, **options))


def assert_says(error, *parts):
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("labels.csv", b"", "empty"),
        ("labels.csv", b"a,b\n\xff\xfe,1\n", "UTF-8"),
        ("labels.csv", b"case_id,slide_id,label\np1,s1,a, b\n", "line 2"),
        ("labels.xlsx", b"no workbook", "cannot be read"),
        ("labels.parquet", b"no parquet", "cannot be read"),
        ("labels.doc", b"x", ".xlsx"),
    ],
)
def test_unreadable_table(tmp_path, name, content, says):
    with pytest.raises(DataError) as error:
        build(tmp_path, content, name=name)
    assert_says(error, name, says)


def test_missing_table(tmp_path):
    with pytest.raises(DataError) as error:
        build_cohort(SLIDES, np.ones(3, int), CohortSettings(tmp_path / "none.csv"))
    assert_says(error, "none.csv", "no such file")


@pytest.mark.parametrize(("suffix", "package"), [(".xlsx", "openpyxl"), (".parquet", "pyarrow")])
def test_missing_package_names_the_extra(tmp_path, monkeypatch, suffix, package):
    for module in (package, f"{package}.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError) as error:
        build(tmp_path, "x", name=f"labels{suffix}")
    assert_says(error, package, "mil-jax[tables]")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"target": "lable"}, "did you mean 'label'?"),
        ({"target": "Label"}, "did you mean 'label'?"),
        ({"id_column": "slideid"}, "did you mean 'slide_id'?"),
        ({"patient": "caseid"}, "did you mean 'case_id'?"),
        ({"patient": "tgca"}, "did you mean 'tcga'?"),
        ({"site": "labels"}, "did you mean 'label'?"),
        ({"columns": ["slide"]}, "did you mean 'slide_id'?"),
        ({"filter": "labl == 'A'"}, "did you mean 'label'?"),
    ],
)
def test_column_that_is_not_there_suggests_the_nearest(tmp_path, options, says):
    with pytest.raises(DataError) as error:
        build(tmp_path, **options)
    assert_says(error, "labels.csv", says)


def test_column_twice(tmp_path):
    with pytest.raises(DataError) as error:
        build(tmp_path, "case_id,slide_id,label,label\np,s1,A,B\n")
    assert_says(error, "2 columns", "label")


@pytest.mark.parametrize("expression", ["label ==", "label", "1 == 1", "label = 'A'", "label > 3", "__import__('os')"])
def test_filter_that_cannot_be_applied(tmp_path, expression):
    with pytest.raises(DataError) as error:
        build(tmp_path, filter=expression)
    assert_says(error, "data.filter", "labels.csv")


def test_filter_that_leaves_nothing(tmp_path):
    with pytest.raises(DataError) as error:
        build(tmp_path, filter="label == 'C'")
    assert_says(error, "data.filter leaves none")


def test_patient_silence(tmp_path):
    with pytest.raises(DataError) as error:
        build(tmp_path, "slide_id,label\ns1,A\n")
    assert_says(error, "data.patient", "'tcga'", "'none'", "its columns are slide_id, label")


def test_patient_rule_that_fails_names_the_slides(tmp_path):
    with pytest.raises(DataError) as error:
        build(tmp_path, patient="tcga", id_column="slide_id")
    assert_says(error, "3 of 3 slides", "s1")


def test_patient_rule_that_is_no_expression(tmp_path):
    with pytest.raises(ConfigError) as error:
        build(tmp_path, patient="regex:(")
    assert_says(error, "regular expression")


def test_patient_missing_in_its_column(tmp_path):
    with pytest.raises(DataError) as error:
        build(tmp_path, CLAM + ",s4,A\n", [*SLIDES, "s4"])
    assert_says(error, "line 5", "case_id")


def test_slide_of_two_patients(tmp_path):
    with pytest.raises(DataError) as error:
        build(tmp_path, CLAM + "p9,s1,A\n")
    assert_says(error, "slide s1", "'p1'", "'p9'", "line 5")


def test_row_without_id(tmp_path):
    with pytest.raises(DataError) as error:
        build(tmp_path, CLAM + "p4,,A\n")
    assert_says(error, "line 5", "slide_id")


def test_nothing_matched_shows_both_kinds_of_names(tmp_path):
    with pytest.raises(DataError) as error:
        build(tmp_path, slides=["x1", "x2"])
    assert_says(error, "none of 3", "s1", "x1")


def test_too_little_matched(tmp_path):
    with pytest.raises(DataError) as error:
        build(tmp_path, slides=["s1", "other"])
    assert_says(error, "only 1 of 3", "data.min_matched=0.5")


def test_labelled_patients_without_slide_rows_count_as_unmatched(tmp_path):
    (tmp_path / "slides.csv").write_text("PATIENT,FILENAME\np1,s1.h5\n")
    with pytest.raises(DataError) as error:
        build(tmp_path, "PATIENT,label\np1,A\np2,B\np3,B\n", ["s1"], slides_table=tmp_path / "slides.csv")
    assert_says(error, "only 1 of 3")


@pytest.mark.parametrize(
    ("slides", "text"),
    [([*SLIDES, "extra"], CLAM), (SLIDES[:2], CLAM), (SLIDES, CLAM.replace("s3,B", "s3,"))],
)
def test_strict_turns_each_exclusion_into_an_error(tmp_path, slides, text):
    with pytest.raises(DataError) as error:
        build(tmp_path, text, slides, strict=True)
    assert_says(error, "--strict")


def test_conflicting_labels_of_a_slide(tmp_path):
    with pytest.raises(DataError) as error:
        build(tmp_path, CLAM + "p1,s1,B\n")
    assert_says(error, "slide s1", "'A'", "'B'", "line 5")


def test_conflicting_labels_of_a_patient(tmp_path):
    with pytest.raises(DataError) as error:
        build(tmp_path, CLAM.replace("s2,A", "s2,B"), unit="patient")
    assert_says(error, "patient p1", "'A'", "'B'", "slide s1", "slide s2")


def test_row_that_means_several_slides(tmp_path):
    slides = ["TCGA-3C-AALI-01Z-00-DX1", "TCGA-3C-AALI-01Z-00-DX2"]
    with pytest.raises(DataError) as error:
        build(tmp_path, "case_id,label\nTCGA-3C-AALI,A\n", slides)
    assert_says(error, "line 2", "means 2 slides", "data.duplicates")


def test_newest_needs_dates(tmp_path):
    slides = ["TCGA-3C-AALI-01Z-00-DX1", "TCGA-3C-AALI-01Z-00-DX2"]
    with pytest.raises(DataError) as error:
        build(tmp_path, "case_id,label\nTCGA-3C-AALI,A\n", slides, duplicates="newest")
    assert_says(error, "dates")


def test_label_outside_the_declared_classes(tmp_path):
    with pytest.raises(DataError) as error:
        build(tmp_path, classes=["A", "C"])
    assert_says(error, "labels.csv, line 4", "'B'", "data.filter")


def test_one_class_only(tmp_path):
    cohort = build(tmp_path, filter="label == 'A'")
    with pytest.raises(DataError) as error:
        resolve_classes(cohort.labels, CohortSettings(tmp_path / "labels.csv"))
    assert_says(error, "1 class", "A")


def test_positive_class_that_no_bag_has(tmp_path):
    cohort = build(tmp_path)
    with pytest.raises(DataError) as error:
        resolve_classes(cohort.labels, CohortSettings(tmp_path / "labels.csv", positive="b"))
    assert_says(error, "did you mean 'B'?")


def test_several_targets_that_are_not_zero_or_one(tmp_path):
    options = {"target": ["label", "case_id"], "id_column": "slide_id"}
    cohort = build(tmp_path, **options)
    with pytest.raises(DataError) as error:
        resolve_classes(cohort.labels, CohortSettings(tmp_path / "labels.csv", **options, multi_label=True))
    assert_says(error, "'label'", "0 and 1")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"unit": "slides"}, "did you mean 'slide'?"),
        ({"duplicates": "new"}, "newest"),
        ({"min_matched": 2}, "min_matched"),
        ({"target": ""}, "data.target"),
        ({"labels": ""}, "data.labels"),
        ({"unit": "patient", "patient": "none"}, "data.patient"),
        ({"classes": ["a", "a"]}, "twice"),
        ({"classes": ["a", "b"], "positive": "c"}, "data.positive"),
        ({"target": ["a", "b"], "positive": "a", "multi_label": True}, "each column is a class"),
        ({"slides_table": "s.csv", "patient": "tcga"}, "data.slides_table"),
    ],
)
def test_settings_that_cannot_work(options, says):
    with pytest.raises(ConfigError) as error:
        CohortSettings(**{"labels": "labels.csv", **options})
    assert_says(error, says)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kind": "kfold"}, "did you mean 'k_fold'?"),
        ({"kind": "file"}, "splits.file"),
        ({"folds": 1}, "splits.folds"),
        ({"kind": "monte_carlo", "repeats": 2}, "splits.repeats"),
        ({"val_fraction": 1.5}, "splits.val_fraction"),
        ({"kind": "leave_one_group_out"}, "splits.group"),
        ({"kind": "file", "file": "x.csv", "test": "official"}, "splits.test"),
    ],
)
def test_split_settings_that_cannot_work(options, says):
    with pytest.raises(ConfigError) as error:
        SplitSettings(**options)
    assert_says(error, says)


def test_patient_in_two_parts_of_own_splits():
    with pytest.raises(DataError) as error:
        require_patients_whole(np.array([[0, 2, 0]], np.int8), ["0"], cohort_of(["p1", "p1", "p2"]))
    assert_says(error, "fold 0", "patient p1", "test", "train")


def test_class_absent_from_training():
    labels = np.array([1, 1] + [0] * 18)
    with pytest.raises(DataError) as error:
        make_splits(cohort_of([0, 0, *range(1, 19)]), labels, SplitSettings(folds=3), ["low", "high"])
    assert_says(error, "fold", "class high")


def test_declared_class_without_any_bag():
    with pytest.raises(DataError) as error:
        make_splits(cohort_of(range(20)), np.arange(20) % 2, SplitSettings(), ["a", "b", "c"])
    assert_says(error, "class c")


def test_fewer_patients_than_folds():
    with pytest.raises(DataError) as error:
        make_splits(cohort_of([0, 0, 1, 1]), None, SplitSettings(folds=3))
    assert_says(error, "3 patients", "has 2")


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"site": ["x", "x", "y", ""]}, "s3"),
        ({"site": ["x", "y", "y", "y"]}, "patient a"),
        ({}, "1 bags have no value"),
    ],
)
def test_groups_that_cannot_be_kept_apart(columns, says):
    columns = columns or {"site": ["x", None, "y", "y"]}
    with pytest.raises(DataError) as error:
        make_splits(cohort_of(["a", "a", "b", "c"], **columns), None, SplitSettings(folds=2, group="site"))
    assert_says(error, "splits.group='site'", says)


def test_group_column_that_is_not_there():
    with pytest.raises(DataError) as error:
        make_splits(cohort_of(range(4)), None, SplitSettings(folds=2, group="sites"))
    assert_says(error, "did you mean 'site'?")


@pytest.mark.parametrize(
    ("official", "says"),
    [(["test", "train", "train"], "a)"), (["x", "train", "train"], "'x'"), (["train"] * 3, "no bag")],
)
def test_official_test_set_that_cannot_be_used(official, says):
    with pytest.raises(DataError) as error:
        make_splits(cohort_of(["a", "a", "b"], official=official), None, SplitSettings(folds=2, test="official"))
    assert_says(error, says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("slide_id,x\ns0,1\n", "known form"),
        ("name,fold_0\ns0,train\n", "slide_id"),
        ("slide_id,fold_0\ns0,tarin\ns1,test\n", "line 2"),
        ("slide_id,fold_0\ns0,train\ns0,test\ns1,test\n", "fold 0"),
        ("slide_id,fold_0\nx,train\ny,test\n", "0 of 2"),
        ("slide_id,fold_0\ns0,train\nx,train\ny,test\n", "1 of 3"),
        ("slide_id,Fold\ns0,1\ns1,b\n", "line 3"),
    ],
)
def test_split_file_that_cannot_be_used(tmp_path, text, says):
    (tmp_path / "splits.csv").write_text(text)
    with pytest.raises(DataError) as error:
        make_splits(cohort_of(range(2)), None, SplitSettings("file", file=tmp_path / "splits.csv"))
    assert_says(error, "splits.csv", says)


def test_folder_without_clam_splits(tmp_path):
    with pytest.raises(DataError) as error:
        make_splits(cohort_of(range(2)), None, SplitSettings("file", file=tmp_path))
    assert_says(error, "splits_0.csv")


def test_strict_refuses_split_rows_without_bag(tmp_path):
    (tmp_path / "splits.csv").write_text("slide_id,fold_0\ns0,train\ns1,test\ngone,test\n")
    with pytest.raises(DataError) as error:
        make_splits(cohort_of(range(2)), None, SplitSettings("file", file=tmp_path / "splits.csv", strict=True))
    assert_says(error, "gone", "--strict")


def test_patient_bag_with_slides_in_two_parts(tmp_path):
    cohort = cohort_of(["a", "b"])
    cohort.slide_ids[:] = [("a1", "a2"), ("b1",)]
    (tmp_path / "splits.csv").write_text("slide_id,fold_0\na1,train\na2,test\nb1,test\n")
    with pytest.raises(DataError) as error:
        make_splits(cohort, None, SplitSettings("file", file=tmp_path / "splits.csv"))
    assert_says(error, "data.unit='slide'")


def test_fold_numbers_for_another_number_of_bags():
    with pytest.raises(DataError) as error:
        splits_from_folds(np.zeros((1, 3), int), cohort_of(range(4)), np.zeros(4), SplitSettings())
    assert_says(error, "3 bags", "4")
