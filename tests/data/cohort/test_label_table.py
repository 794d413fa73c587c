"""Words in the cells of a label table: patients that nobody knows, classes called like missing values."""

from __future__ import annotations

import pytest

from mil_jax.data.cohort.cohort import CohortSettings, resolve_classes
from mil_jax.errors import DataError
from tests.faults.test_cohort_faults import CLAM, SLIDES, assert_says, build


@pytest.mark.parametrize("word", ["Unknown", "[Not Available]", "-"])
def test_slides_of_unknown_patients_are_not_those_of_one(tmp_path, word):
    with pytest.raises(DataError) as error:
        build(tmp_path, f"{CLAM}{word},s4,A\n{word},s5,B\n", [*SLIDES, "s4", "s5"])
    assert_says(error, "line 5", "no patient", "2 such slides")
    kept = build(tmp_path, f"{CLAM}{word},s4,A\n{word},s5,B\n", [*SLIDES, "s4", "s5"], filter=f"case_id != '{word}'")
    assert kept.bags["bag_id"].tolist() == SLIDES


@pytest.mark.parametrize(
    ("table", "filter"),
    [("case_id,slide_id,label\n", None), ("case_id,slide_id,label\n", "label == 'A'"), ("PATIENT,label\np1,A\n", None)],
)
def test_a_table_without_rows_is_named(tmp_path, table, filter):
    (tmp_path / "slides.csv").write_text("PATIENT,FILENAME\n")
    settings = {"slides_table": tmp_path / "slides.csv"} if "PATIENT" in table else {}
    with pytest.raises(DataError) as error:
        build(tmp_path, table, filter=filter, **settings)
    assert_says(error, "slides.csv" if settings else "labels.csv")


def test_labels_of_unknown_patients_are_those_of_no_slide(tmp_path):
    (tmp_path / "slides.csv").write_text("PATIENT,FILENAME\np1,s1\np2,s2\nUnknown,s3\n")
    table = "PATIENT,label\np1,A\np2,B\nUnknown,A\nUnknown,B\n"
    cohort = build(tmp_path, table, slides_table=tmp_path / "slides.csv")
    assert cohort.bags["bag_id"].tolist() == ["s1", "s2"]
    assert ["Unknown", "its row names no patient"] in cohort.excluded.to_numpy().tolist()
    assert ["s3", "its patient has no row in labels.csv"] in cohort.excluded.to_numpy().tolist()


def test_a_class_called_na_can_be_named(tmp_path):
    table = CLAM + "p3,s4,NA\n"
    cohort = build(tmp_path, table, [*SLIDES, "s4"])
    assert cohort.labels["label"].tolist() == ["A", "A", "B"]
    assert any("1 cells say that the value is missing ('NA' 1)" in sentence for sentence in cohort.report)
    cohort = build(tmp_path, table, [*SLIDES, "s4"], classes=("A", "B", "NA"))
    assert cohort.labels["label"].tolist() == ["A", "A", "B", "NA"]


def test_a_hundred_columns_with_missing_values_are_said_in_a_few_lines(tmp_path):
    names = [f"gene{number}" for number in range(100)]
    table = f"case_id,slide_id,{','.join(names)}\np1,s1{',1' * 100}\np2,s2{',0' * 100}\np3,s3{',NA' * 100}\n"
    cohort = build(tmp_path, table, target=tuple(names), multi_label=True)
    assert sum("say that the value is missing" in sentence for sentence in cohort.report) == 8
    assert "labels.csv: and so in 92 more columns" in cohort.report


def test_one_class_and_words_for_missing(tmp_path):
    cohort = build(tmp_path, "case_id,slide_id,label\np1,s1,+\np2,s2,-\n")
    with pytest.raises(DataError) as error:
        resolve_classes(cohort.labels, CohortSettings(tmp_path / "labels.csv"))
    assert_says(error, "has 1 class", "unless data.classes names them")
