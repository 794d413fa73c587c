"""Reading label tables: text cells, named columns only, every format."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mil_jax.data.row_filter import kept_rows
from mil_jax.data.tables import mentioned_columns, read_columns, read_header
from tests.skips import needs


def write(path, text, encoding="utf-8"):
    path.write_text(text, encoding=encoding)
    return path


def test_ids_keep_leading_zeros_and_labels_stay_text(tmp_path):
    table = read_columns(write(tmp_path / "t.csv", "slide_id,label\n007,1e5\n"), ["slide_id", "label"])
    assert table.to_numpy().tolist() == [["007", "1e5"]]


def test_only_named_columns_are_kept_in_the_order_asked(tmp_path):
    table = read_columns(write(tmp_path / "t.csv", "a,b,c\n1,2,3\n"), ["c", "a"])
    assert list(table.columns) == ["c", "a"]


def test_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = write(tmp_path / "t.csv", "path,label\nx,1\n", encoding="utf-8-sig")
    assert read_header(path) == ["path", "label"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiter_is_recognised_whatever_the_suffix(tmp_path, delimiter):
    path = write(tmp_path / "t.csv", f"slide_id{delimiter}label\nx{delimiter}A\n")
    assert read_columns(path, ["label"])["label"].tolist() == ["A"]


def test_missing_values_are_nan_but_the_word_none_is_a_class(tmp_path):
    column = read_columns(write(tmp_path / "t.csv", "s,label\na,NA\nb,\nc,None\n"), ["label"])["label"]
    assert column.isna().tolist() == [True, True, False]


def test_rows_carry_their_line_numbers_across_blank_lines(tmp_path):
    table = read_columns(write(tmp_path / "t.csv", "s,label\na,1\n\nb,2\n"), ["s"])
    assert table.index.tolist() == [2, 4]


def test_trailing_delimiters_and_short_rows_are_read(tmp_path):
    table = read_columns(write(tmp_path / "t.csv", "a,b\n1,2,\n3\n"), ["a", "b"])
    assert table["a"].tolist() == ["1", "3"]
    assert table["b"].isna().tolist() == [False, True]


@pytest.mark.parametrize("suffix", [".xlsx", ".parquet"])
def test_binary_tables_read_as_the_same_text_as_csv(tmp_path, suffix):
    needs("openpyxl")
    needs("pyarrow")
    frame = pd.DataFrame({"slide_id": ["007", "b"], "label": [1.0, np.nan], "age": [60.5, 61.0], "unused": [1, 2]})
    path = tmp_path / f"t{suffix}"
    frame.to_excel(path, index=False) if suffix == ".xlsx" else frame.to_parquet(path)
    table = read_columns(path, ["slide_id", "label", "age"])
    assert table.fillna("missing").to_numpy().tolist() == [["007", "1", "60.5"], ["b", "missing", "61"]]
    assert table.index.tolist() == [2, 3]


def test_filter_compares_numbers_as_numbers_and_ids_as_text():
    table = pd.DataFrame({"age": ["9", "70"], "code": ["007", "008"]}, dtype=object)
    assert kept_rows(table, "age > 60 and code == '008'", "t.csv", ["age", "code"]).tolist() == [False, True]


def test_filter_reads_columns_named_in_backticks():
    assert mentioned_columns("`stain type` == 'HE' and age > 3", ["stain type", "age", "ages"]) == ["stain type", "age"]


def test_filter_keeps_no_row_whose_value_is_missing():
    table = pd.DataFrame({"age": ["70", np.nan]}, dtype=object)
    assert kept_rows(table, "age > 60", "t.csv", ["age"]).tolist() == [True, False]
