"""Target columns of numbers and of survival: what may not stand there is said with file, line and value."""

from __future__ import annotations

import pytest

from mil_jax.data.cohort.label_table import read_label_rows
from mil_jax.data.cohort.settings import CohortSettings
from mil_jax.errors import ConfigError, DataError

SURVIVAL = {"target": ("months", "died"), "numbers": ("months",), "events": ("died",)}
REGRESSION = {"target": ("months",), "numbers": ("months",)}


def read(tmp_path, rows: str, options: dict):
    path = tmp_path / "labels.csv"
    path.write_text(f"slide_id,months,died\n{rows}")
    return read_label_rows(CohortSettings(path, patient="none", **options))


@pytest.mark.parametrize(
    ("rows", "options", "said"),
    [
        ("a,1,1\nb,soon,0\n", SURVIVAL, r"labels\.csv, line 3: 'soon' in column 'months' is no finite number"),
        ("a,1,1\nb,inf,0\n", REGRESSION, "line 3: 'inf' in column 'months' is no finite number"),
        ("a,1,1\nb,-2,0\n", SURVIVAL, "line 3: '-2' in column 'months' is a negative time"),
        ("a,1,1\nb,2,perhaps\n", SURVIVAL, "line 3: 'perhaps' in column 'died' is neither 0 nor 1"),
        ("a,1,1\nb,,0\nc,,1\n", SURVIVAL, r"line 3: nothing in column 'months'.*\(2 such rows\)"),
        ("a,1,1\nb,2,\n", SURVIVAL, "line 3: nothing in column 'died'"),
    ],
)
def test_what_is_no_number_time_or_event_is_named(tmp_path, rows, options, said):
    with pytest.raises(DataError, match=said):
        read(tmp_path, rows, options)


def test_negative_numbers_are_numbers_and_rows_without_time_and_event_have_no_label(tmp_path):
    assert read(tmp_path, "a,-1,1\nb,2,0\n", REGRESSION).num_labelled == 2
    assert read(tmp_path, "a,1,true\nb,,\n", SURVIVAL).num_labelled == 1


def test_classes_do_not_go_with_numbers(tmp_path):
    with pytest.raises(ConfigError, match="hold numbers"):
        read(tmp_path, "a,1,1\n", {**REGRESSION, "classes": ("0", "1")})


def test_labels_outside_the_declared_classes_are_dropped_on_request(tmp_path):
    options = {"target": "died", "classes": ("0", "1"), "unknown_labels": "drop"}
    rows = read(tmp_path, "a,1,1\nb,2,11\nc,3,0\n", options)
    assert rows.num_labelled == 2
    assert "1 labels in column 'died' are none of the classes and dropped (11)" in " ".join(rows.report)


def test_a_table_without_a_header_begins_with_its_first_row(tmp_path):
    path = tmp_path / "LUAD_TMB_2.csv"
    path.write_text("K:\\x\\a.pt,1\nK:\\x\\b.pt,0\n")
    rows = read_label_rows(CohortSettings(path, patient="none"))
    assert rows.table["name"].tolist() == ["K:\\x\\a.pt", "K:\\x\\b.pt"]
    assert rows.table.index.tolist() == [1, 2]
